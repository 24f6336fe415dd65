"""When something that ended is started again: soon where it had proven itself, else later and later. Has no clock."""

from collections.abc import Callable

from fastclaw import limits


class Backoff:
    """The pause before the next start of one thing that is kept running.

    Parameters:
        now: the time, in seconds.
        forgiven: failures at the beginning that cost the first pause only.

    Attributes:
        failures: in a row, since it last was up for `limits.REVIVE_PROVEN_MS`.
    """

    __slots__ = ("_now", "_up_since", "failures")

    def __init__(self, now: Callable[[], float], forgiven: int = 0) -> None:
        self._now = now
        self._up_since: float | None = None
        self.failures = -forgiven

    def came_up(self) -> None:
        """It has been started."""
        self._up_since = self._now()

    def ended(self) -> None:
        """It has ended, or could not be started. One that was up for long enough has not failed."""
        up_since, self._up_since = self._up_since, None
        is_proven = up_since is not None and (self._now() - up_since) * 1000 >= limits.REVIVE_PROVEN_MS
        self.failures = 0 if is_proven else self.failures + 1

    def failed(self) -> None:
        """A successor did not come up; nothing is said of what may still be up."""
        self.failures += 1

    @property
    def pause_s(self) -> float:
        """Seconds before the next attempt."""
        return pause_s(self.failures)


def pause_s(failures: int) -> float:
    """Seconds before the next attempt after so many failures: doubled each time, up to `limits.REVIVE_LAST_MS`."""
    pause: float = limits.REVIVE_FIRST_MS / 1000 * 2 ** min(max(failures, 0), 30)
    return min(pause, limits.REVIVE_LAST_MS / 1000)
