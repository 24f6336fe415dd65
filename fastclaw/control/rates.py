"""What one client of a control socket saw at its last looks: a rate is what there is between two of them.

Times are seconds of any clock that only goes forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastclaw import telemetry_limits

if TYPE_CHECKING:
    from collections.abc import Collection


class Rates:
    """Processor time by what had it."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int, float | None]] = {}

    def percent(self, key: str, cpu_us: int | None, now: float) -> float | None:
        """Processor time since the last look, of one processor; None at the first.

        Parameters:
            key: what had it.
            cpu_us: how much it has had in all; None: unknown. It may fall: of a tree, what has left it counts no more.
        """
        if cpu_us is None:
            return None
        before = self._seen.get(key)
        if before is not None and now - before[0] < telemetry_limits.CONTROL_RATE_MS / 1000:
            return before[2]
        rate = None if before is None else max(0.0, (cpu_us - before[1]) / (now - before[0]) / 1e4)
        self._seen[key] = (now, cpu_us, rate)
        return rate

    def keep(self, keys: Collection[str]) -> None:
        """Forget all others."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}


class Rank(NamedTuple):
    """What puts a process in its place in an order by usage."""

    cpu: float
    memory: int
    time: int
    bytes: int


class Looks:
    """The last looks of one client.

    Attributes:
        environments, processes: their rates.
        ranks: of each process, when all were measured last.
        ranked_at: Unix time of that; None: never.
        starts: how many commands had ended, and how long their starts had taken in all.
    """

    def __init__(self) -> None:
        self.environments, self.processes = Rates(), Rates()
        self.ranks: dict[str, Rank] = {}
        self.ranked_at: float | None = None
        self.starts = (0, 0)
        self._next = 0.0

    def may_rank(self, now: float) -> bool:
        """Whether all processes may be measured again."""
        return now >= self._next

    def ranked(self, ranks: dict[str, Rank], at: float, took_s: float, now: float) -> None:
        """All have been measured. Not again before what that took is `CONTROL_RANK_PERCENT` of the time.

        Parameters:
            at: Unix time.
            took_s: processor time, of this process.
        """
        self.ranks, self.ranked_at = ranks, at
        self._next = now + took_s * telemetry_limits.CONTROL_RANK_SHARE * 100 / telemetry_limits.CONTROL_RANK_PERCENT
