"""When a container is followed by a fresh one. Counts in, decisions out.

An engine keeps every exec session in the container's record and rewrites it whole at each step of each exec (Podman
4.3.1: 26 starts/s on a fresh container, 12 on one with 1 100 sessions), so a container serves a number of execs and
then drains. A container that died is followed at once, and ever later if its successors die too.
"""

from fastclaw import limits


class Rotation:
    """One container's use.

    Attributes:
        live: processes and starts that need it.
        started: execs it has been given.
    """

    __slots__ = ("live", "started")

    def __init__(self) -> None:
        self.live = 0
        self.started = 0

    def take(self) -> None:
        """One more exec."""
        self.live += 1
        self.started += 1

    def give_back(self) -> None:
        """One exec is over."""
        self.live -= 1

    @property
    def is_worn(self) -> bool:
        """Whether it should be followed by a fresh one."""
        return self.started >= limits.EXECS_PER_CONTAINER

    @property
    def is_drained(self) -> bool:
        """Whether no exec needs it."""
        return self.live == 0


def revival_delay_s(failures: int) -> float:
    """Seconds before the next attempt to replace a container, after `failures` that did not last."""
    delay: float = limits.REVIVE_FIRST_MS / 1000 * 2 ** min(failures, 30)
    return min(delay, limits.REVIVE_LAST_MS / 1000)
