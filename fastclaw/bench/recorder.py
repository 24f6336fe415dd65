"""What came of the operations: their latencies, by stage too, failures by reason, and each second by itself.

Is told the time and has no clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from msgspec import Struct

from fastclaw import bench_limits
from fastclaw.bench.histogram import Latencies

_SECOND_NS = 1_000_000_000
_OTHER = "other"

Stages = tuple[tuple[str, int], ...]
"""Of one operation: each stage with its nanoseconds."""


class Ended(NamedTuple):
    """An operation that was right.

    Parameters:
        at_ns: when it had ended, by the monotonic clock.
        timings: of the exit record, as the runtime gave it, which may be anything.
    """

    at_ns: int
    stages: Stages = ()
    timings: Any = None


class Failed(Exception):
    """An operation that did not go as it must.

    Parameters:
        reason: a word or two, the same for the same cause.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Second(Struct, frozen=True, kw_only=True):
    """What ended within one second.

    Parameters:
        at: which second, counted from the first operation that counts.
        encoded: the histogram of those that were right, as HdrHistogram encodes it; empty where none is kept.
    """

    at: int
    right: int
    failed: int
    max_us: int = 0
    encoded: bytes = b""


class Recorder:
    """Takes what each operation came to.

    Parameters:
        keeps_histograms: of each second as well.

    Attributes:
        inside: microseconds of the stages that the runtime tells of, all of them together.
        inside_count: of how many operations.
    """

    def __init__(self, *, keeps_histograms: bool = False) -> None:
        self.whole = Latencies()
        self.stages: dict[str, Latencies] = {}
        self.inside: Counter[str] = Counter()
        self.inside_count = 0
        self.late = Latencies()
        self.right = 0
        self.failed: Counter[str] = Counter()
        self.warm_up = 0
        self.warm_up_failed = 0
        self.cut_off = 0
        self.seconds: list[Second] = []
        self.first_ns = 0
        self.last_ns = 0
        self._keeps = keeps_histograms
        self._second = 0
        self._second_right = self._second_failed = 0
        self._of_second = Latencies()

    @property
    def ended(self) -> int:
        """How many that count, right or not."""
        return self.right + self.failed.total()

    def count_from(self, first_ns: int) -> None:
        """Operations that began before this moment are the warm-up."""
        self.first_ns = self.last_ns = first_ns

    def begun_late(self, nanoseconds: int) -> None:
        """By so much the generator itself was behind the intended moment."""
        self.late.record(nanoseconds)

    def took(self, began_ns: int, ended: Ended) -> None:
        """One that was right."""
        ended_ns = ended.at_ns
        if began_ns < self.first_ns:
            self.warm_up += 1
            return
        self._reach(ended_ns)
        self.right += 1
        self._second_right += 1
        duration = ended_ns - began_ns
        self.whole.record(duration)
        if self._keeps:
            self._of_second.record(duration)
        self._look_inside(ended.timings)
        for name, nanoseconds in ended.stages:
            if name not in self.stages:
                self.stages[name] = Latencies()
            self.stages[name].record(nanoseconds)

    def _look_inside(self, timings: Any) -> None:
        """Each is counted from the reading of the request; what is no such thing is passed over."""
        if not isinstance(timings, dict) or not timings:
            return
        names = self.inside.keys() | timings.keys()
        if len(names) > bench_limits.BENCH_TIMINGS or any(type(us) is not int or us < 0 for us in timings.values()):
            return
        self.inside_count += 1
        before = 0
        for name, us in sorted(timings.items(), key=lambda one: one[1]):
            self.inside[name] += us - before
            before = us

    def went_wrong(self, began_ns: int, ended_ns: int, reason: str) -> None:
        """One that was not."""
        if began_ns < self.first_ns:
            self.warm_up_failed += 1
            return
        self._reach(ended_ns)
        self._second_failed += 1
        name = reason[: bench_limits.BENCH_REASON_CHARS]
        if name not in self.failed and len(self.failed) >= bench_limits.BENCH_REASONS:
            name = _OTHER
        self.failed[name] += 1

    def close(self) -> None:
        """Nothing more comes."""
        if self._second_right or self._second_failed:
            self._close_second()

    def _reach(self, now_ns: int) -> None:
        """What ends in one turn of the loop may come in any order: the second that is reached takes it."""
        self.last_ns = max(self.last_ns, now_ns)
        second = (self.last_ns - self.first_ns) // _SECOND_NS
        if second > self._second:
            self._close_second()
            self._second = second

    def _close_second(self) -> None:
        of_second = self._of_second.histogram
        kept = bool(self._keeps and self._second_right)
        self.seconds.append(
            Second(
                at=self._second,
                right=self._second_right,
                failed=self._second_failed,
                max_us=int(of_second.max_value),
                encoded=of_second.encode() if kept else b"",
            )
        )
        self._second_right = self._second_failed = 0
        if kept:
            self._of_second = Latencies()
