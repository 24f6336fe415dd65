"""Where the time of calls went: shares that add up, and the slowest."""

from __future__ import annotations

from fastclaw.stages import STAGES
from fastclaw.telemetry.lines import Line
from fastclaw.telemetry.summary import Summary, own_times, stages_of, took_us

REACHED = (10, 30, 60, 100, 210, 200, 205, 300)
RUN = dict(zip(STAGES[1:], REACHED, strict=True))
"""Its first byte was read after its end."""


def a_run(number: int = 0, **timings: int) -> Line:
    return Line(kind="run", id=f"p-{number}", lane="spawn", outcome="exited", timings=timings or RUN)


def test_a_stage_s_own_time_is_since_the_one_before_it() -> None:
    assert own_times(a_run()) == dict(zip(STAGES[1:], (10, 20, 30, 40, 110, 0, 0, 90), strict=True))
    assert took_us(a_run()) == sum(own_times(a_run()).values()) == 300


def test_an_exec_is_answered_when_it_has_started() -> None:
    line = Line(kind="exec", timings={"started": 100, "exited": 5_000, "gone": 5_001, "answered": 130})
    assert own_times(line) == {"started": 100, "exited": 4_900, "gone": 1, "answered": 30}
    assert took_us(line) == 5_001


def test_the_start_of_an_environment_has_its_own_stages() -> None:
    line = Line(kind="environment_start", timings={"answered": 40, "made": 20, "ready": 30, "admitted": 10, "sent": 5})
    assert stages_of(line) == ["admitted", "made", "ready", "answered"]


def test_rows_are_by_kind_lane_and_outcome_and_their_shares_are_of_the_whole() -> None:
    summary = Summary(0)
    for _ in range(10):
        summary.add(a_run())
    summary.add(Line(kind="run", lane="spawn", outcome="not_found", timings={"admitted": 5}))
    summary.add(Line(kind="lost", lines=3))
    summary.add(Line(kind="gone", id="p-0", timings={"gone": 10**9}))
    rows = list(summary.rows())
    assert [(row.outcome, row.stage) for row in rows] == [
        *(("exited", stage) for stage in [*RUN, "total"]),
        ("not_found", "admitted"),
        ("not_found", "total"),
    ]
    assert sum(row.share for row in rows[:8]) == 1.0
    assert {row.count for row in rows[:9]} == {10}
    assert summary.lost == 3
    assert summary.slowest() == []


def test_the_slowest_are_kept_and_no_more() -> None:
    summary = Summary(3)
    for number in range(1000):
        summary.add(a_run(number, exited=(number * 7) % 1000))
    assert [took_us(line) for line in summary.slowest()] == [999, 998, 997]
    assert len(summary._slowest) == 3


def test_what_runtimes_lost_one_after_the_other_is_added_up() -> None:
    summary = Summary(0)
    for lines in (100, 130, 3, 5):
        summary.add(Line(kind="lost", lines=lines))
    assert summary.lost == 135
