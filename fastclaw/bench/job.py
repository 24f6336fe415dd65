"""What is to be measured, as values: of which runtime, which operations, how many, when. Knows no clock."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

from fastclaw import bench_limits

LoadName = Literal["exec", "run", "hold", "environments", "files"]


class Plan(Struct, frozen=True, kw_only=True):
    """When operations begin. With neither `rate` nor `burst` it is a closed loop.

    Parameters:
        concurrency: of a closed loop: each of so many begins an operation when its last one has ended.
        rate: of an open loop: operations a second, at random (Poisson), whether or not others have ended.
        burst: so many at once, and again when all of them have ended.
        duration_s: how long operations are begun, the warm-up not counted; None is until `count`.
        count: how many are begun, the warm-up not counted; None is until `duration_s`.
        warm_up_s: before it, in the same way, and not counted.
        seed: of what is random.
    """

    concurrency: int = 1
    rate: float | None = None
    burst: int | None = None
    duration_s: float | None = None
    count: int | None = None
    warm_up_s: float = 0.0
    seed: int = 1

    @property
    def loop(self) -> Literal["closed", "open", "burst"]:
        """Which of the three it is."""
        if self.rate is not None:
            return "open"
        return "closed" if self.burst is None else "burst"

    def __str__(self) -> str:
        how = {
            "closed": f"closed loop, {self.concurrency} at once",
            "open": f"open loop, {self.rate:g}/s at random" if self.rate is not None else "",
            "burst": f"bursts of {self.burst}",
        }[self.loop]
        spans = [f"{self.duration_s:g} s"] if self.duration_s is not None else []
        spans += [f"{self.count} operations"] if self.count is not None else []
        warm = f" after {self.warm_up_s:g} s of warm-up" if self.warm_up_s else ""
        return f"{how}, {' or '.join(spans)}{warm}"


class Job(Struct, frozen=True, kw_only=True):
    """A runtime, and what it is to do.

    Parameters:
        command: argv that serves the runtime over stdin and stdout.
        options: of `initialize`.
        cmd: argv of the commands of `exec` and `run`.
        live: how many processes `hold` holds.
        size: bytes of a file of `files`.
        deadline_ms: of each call of an operation.
        keeps_histograms: of each second too, for a log or a plot.
    """

    command: list[str]
    load: LoadName
    plan: Plan
    options: dict[str, Any] = field(default_factory=dict)
    cmd: list[str] = field(default_factory=lambda: ["true"])
    live: int = 1
    size: int = 4096
    deadline_ms: int = bench_limits.BENCH_OPERATION_MS
    keeps_histograms: bool = False

    @property
    def most_at_once(self) -> int:
        """How many operations may be under way."""
        room = bench_limits.BENCH_HELD_BYTES // self.size if self.load == "files" else bench_limits.BENCH_AT_ONCE
        return min(room, bench_limits.BENCH_AT_ONCE)
