"""What operations came to: the warm-up apart, failures by reason, each second by itself."""

from __future__ import annotations

import pytest
from hdrh.histogram import HdrHistogram

from fastclaw import bench_limits
from fastclaw.bench.recorder import Ended, Recorder

SECOND = 1_000_000_000
FIRST = 5 * SECOND


def recorder(*, keeps_histograms: bool = False) -> Recorder:
    one = Recorder(keeps_histograms=keeps_histograms)
    one.count_from(FIRST)
    return one


def test_the_warm_up_is_counted_apart() -> None:
    one = recorder()
    one.took(FIRST - 1, Ended(FIRST + 5, (("exec", 1),)))
    one.went_wrong(FIRST - 1, FIRST + 5, "no_answer")
    one.took(FIRST, Ended(FIRST + 5_000, (("exec", 2_000), ("wait", 3_000))))
    assert (one.warm_up, one.warm_up_failed, one.right, one.ended) == (1, 1, 1, 1)
    assert one.whole.summary().max_us == 5
    assert {name: stage.summary().max_us for name, stage in one.stages.items()} == {"exec": 2, "wait": 3}


def test_what_a_runtime_tells_of_its_stages_is_summed_by_their_order_in_time() -> None:
    one = recorder()
    for started, exited in ((100, 300), (200, 600)):
        timings = {"exited": exited, "started": started}
        one.took(FIRST, Ended(FIRST + 1, (), timings))
    assert (one.inside_count, dict(one.inside)) == (2, {"started": 300, "exited": 600})
    assert list(one.inside) == ["started", "exited"]


@pytest.mark.parametrize(
    "timings", [None, [], {}, "x", {"a": -1}, {"a": "1"}, {"a": True}, {"a": 1.5}, {str(n): n for n in range(100)}]
)
def test_timings_that_are_none_are_passed_over(timings: object) -> None:
    one = recorder()
    one.took(FIRST, Ended(FIRST + 1, (), timings))
    assert (one.right, one.inside_count, dict(one.inside)) == (1, 0, {})


def test_new_stages_without_end_are_bounded() -> None:
    one = recorder()
    for number in range(100):
        one.took(FIRST, Ended(FIRST + 1, (), {f"stage {number}": 5}))
    assert len(one.inside) == one.inside_count == bench_limits.BENCH_TIMINGS


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
    one.took(FIRST, Ended(FIRST + 7_000, ()))
    one.took(FIRST, Ended(FIRST + 9_000, ()))
    one.went_wrong(FIRST, FIRST + 2 * SECOND, "no_answer")
    one.took(FIRST, Ended(FIRST + SECOND, ()))  # read in the same turn of the loop as what ended later
    one.close()
    rows = [(second.at, second.right, second.failed, second.max_us) for second in one.seconds]
    assert rows == [(0, 2, 0, 9), (2, 1, 1, 1_000_000)]
    decoded = HdrHistogram.decode(one.seconds[0].encoded)
    assert (decoded.total_count, decoded.max_value) == (2, 9)


def test_seconds_keep_no_histogram_unless_asked() -> None:
    one = recorder()
    one.took(FIRST, Ended(FIRST + 7_000, ()))
    one.close()
    assert [(second.right, second.encoded) for second in one.seconds] == [(1, b"")]
    assert one.whole.summary().samples == 1
