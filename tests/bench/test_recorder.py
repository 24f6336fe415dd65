"""What operations came to: the warm-up apart, failures by reason, each second by itself."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram

from fastclaw import bench_limits
from fastclaw.bench.recorder import Recorder

SECOND = 1_000_000_000
FIRST = 5 * SECOND


def recorder(*, keeps_histograms: bool = False) -> Recorder:
    one = Recorder(keeps_histograms=keeps_histograms)
    one.count_from(FIRST)
    return one


def test_the_warm_up_is_counted_apart() -> None:
    one = recorder()
    one.took(FIRST - 1, FIRST + 5, (("exec", 1),))
    one.went_wrong(FIRST - 1, FIRST + 5, "no_answer")
    one.took(FIRST, FIRST + 5_000, (("exec", 2_000), ("wait", 3_000)))
    assert (one.warm_up, one.warm_up_failed, one.right, one.ended) == (1, 1, 1, 1)
    assert one.whole.summary().max_us == 5
    assert {name: stage.summary().max_us for name, stage in one.stages.items()} == {"exec": 2, "wait": 3}


def test_a_failure_has_a_reason_and_no_latency() -> None:
    one = recorder()
    one.went_wrong(FIRST, FIRST + SECOND, "no_answer")
    one.went_wrong(FIRST, FIRST + SECOND, "no_answer")
    assert one.failed == {"no_answer": 2}
    assert one.whole.summary().samples == 0


def test_reasons_without_end_are_counted_together() -> None:
    one = recorder()
    for number in range(bench_limits.BENCH_REASONS + 10):
        one.went_wrong(FIRST, FIRST + 1, f"{number} {'x' * 1000}")
    assert len(one.failed) == bench_limits.BENCH_REASONS + 1
    assert one.failed["other"] == 10
    assert max(map(len, one.failed)) == bench_limits.BENCH_REASON_CHARS


def test_each_second_by_itself() -> None:
    one = recorder(keeps_histograms=True)
    one.took(FIRST, FIRST + 7_000, ())
    one.took(FIRST, FIRST + 9_000, ())
    one.went_wrong(FIRST, FIRST + 2 * SECOND, "no_answer")
    one.took(FIRST, FIRST + SECOND, ())  # read in the same turn of the loop as what ended later
    one.close()
    rows = [(second.at, second.right, second.failed, second.max_us) for second in one.seconds]
    assert rows == [(0, 2, 0, 9), (2, 1, 1, 1_000_000)]
    decoded = HdrHistogram.decode(one.seconds[0].encoded)
    assert (decoded.total_count, decoded.max_value) == (2, 9)


def test_seconds_keep_no_histogram_unless_asked() -> None:
    one = recorder()
    one.took(FIRST, FIRST + 7_000, ())
    one.close()
    assert [(second.right, second.encoded) for second in one.seconds] == [(1, b"")]
    assert one.whole.summary().samples == 1
