"""Decisions of a climb: the next level, whether a step converged, what bound it; and its text at any width."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from fastclaw import bench_limits
from fastclaw.bench.cliff import Cliff, Seen, Step, bounds, broken, held, next_level, to_json, to_text, why_not
from fastclaw.bench.job import Plan
from fastclaw.bench.leftovers import Leftovers
from tests.bench.test_report import latency, measured

if TYPE_CHECKING:
    from fastclaw.bench.cliff import By


def seen(**changes: Any) -> Seen:
    told: dict[str, Any] = {
        "processors": 2,
        "machine": 0.5,
        "tree": 0.3,
        "runtime": 0.2,
        "generator": 0.1,
        "files": 30,
        "files_limit": 1_000,
        "waiting": 0,
        "status": "healthy",
    }
    return Seen(**(told | changes))


GOOD = measured(failed={}, right_percent=100.0)


def step(level: float, why: str = "", per_s: float | None = None, **changes: Any) -> Step:
    of = structs.replace(GOOD, per_s=level if per_s is None else per_s)
    return Step(level=level, why=why, measured=of, seen=seen(**changes))


def climbed(cliff: float, by: By = "rate", start: float = 1, highest: float = 1_000_000) -> list[Step]:
    """All steps on a runtime that holds up to `cliff`."""
    steps: list[Step] = []
    while (level := next_level(steps, start, highest, by)) is not None:
        steps.append(step(level, "" if level <= cliff else "rate not held"))
        assert len(steps) <= bench_limits.BENCH_STEPS
    return steps


@settings(deadline=None)
@given(st.floats(1, 500_000), st.floats(1, 1_000))
def test_a_rate_is_found_to_a_tenth(cliff: float, start: float) -> None:
    steps = climbed(cliff, start=start)
    assert held(steps)[-1] <= cliff < broken(steps)[0]
    assert broken(steps)[0] / held(steps)[-1] <= 1.15


@settings(deadline=None)
@given(st.integers(1, 5_000), st.integers(1, 64))
def test_a_concurrency_is_found_to_a_tenth_or_exactly(cliff: int, start: int) -> None:
    steps = climbed(cliff, "concurrency", start)
    low, high = held(steps)[-1], broken(steps)[0]
    assert low <= cliff < high
    assert low == int(low)
    assert high / low <= 1.15 or high - low <= max(1, low * 0.15)


def test_what_never_breaks_ends_at_the_highest_level() -> None:
    steps = climbed(math.inf, "concurrency", 3, 100)
    assert [one.level for one in steps] == [3, 6, 12, 24, 48, 96, 100]


def test_what_never_holds_ends_below_one() -> None:
    steps = climbed(0, "concurrency", 8)
    assert [one.level for one in steps] == [8, 8, 4, 4, 2, 2, 1, 1]
    assert 0.1 <= climbed(0, start=1)[-1].level < 0.2
    assert held(steps) == []


def test_a_step_that_breaks_once_is_made_again() -> None:
    assert next_level([step(10), step(20, "2 failed")], 10, 1_000, "rate") == 20
    assert next_level([step(10), step(20, "2 failed"), step(20)], 10, 1_000, "rate") == 40
    assert broken([step(20, "2 failed"), step(20)]) == []


@pytest.mark.parametrize(
    ("changes", "by", "why"),
    [
        ({"failed": {"overloaded": 3}}, "rate", "3 failed"),
        ({"failed": {}, "right": 0}, "rate", "nothing ended"),
        ({"failed": {}, "is_held": False}, "rate", "rate not held"),
        ({"failed": {}, "is_held": True}, "rate", ""),
        ({"failed": {}, "per_s": 104.0}, "concurrency", "no more a second"),
        ({"failed": {}, "per_s": 106.0}, "concurrency", ""),
    ],
)
def test_why_a_step_has_not_converged(changes: dict[str, Any], by: By, why: str) -> None:
    assert why_not(20, measured(**changes), [step(10, per_s=100.0)], by) == why


def test_the_first_step_needs_no_gain() -> None:
    assert why_not(10, measured(failed={}, per_s=1.0), [], "concurrency") == ""


@pytest.mark.parametrize(
    ("one", "ended", "first"),
    [
        (step(1), "runtime exited with code 1", "the runtime ended: runtime exited with code 1"),
        (step(1, files=950), None, "descriptors: 950 of 1000"),
        (step(1, generator=0.95), None, "the generator took 0.95 of its one processor"),
        (step(1, runtime=0.97), None, "one processor: the runtime's own process took 0.97"),
        (step(1, machine=1.9, tree=1.2), None, "all processors: 1.90 of 2 busy, 1.20 with the runtime"),
        (step(1, waiting=40), None, "the runtime's queue: 40 waited"),
        (step(1), None, "nothing that is watched"),
        (step(1, files=950, files_limit=None), None, "nothing that is watched"),
    ],
)
def test_what_bound_first(one: Step, ended: str | None, first: str) -> None:
    assert bounds(one, ended)[0].startswith(first)


def test_errors_come_with_their_count_behind_what_caused_them() -> None:
    of = measured(failed={"no_answer": 2, "overloaded": 9}, late=latency(50_000))
    told = bounds(Step(level=1, why="11 failed", measured=of, seen=seen(waiting=7)), None)
    assert [line.split(",")[0] for line in told] == [
        "the runtime's queue: 7 waited",
        "errors: 9 overloaded",
        "errors: 2 no_answer",
        "the generator began late",
    ]


def cliff(**changes: Any) -> Cliff:
    told: dict[str, Any] = {
        "ok": True,
        "command": ["x"],
        "server": {"name": "fastclaw", "version": "0.1.0"},
        "load": "exec",
        "plan": Plan(rate=100, duration_s=3),
        "by": "rate",
        "steps": [step(100), step(200), step(400, "rate not held", 310.0), step(400, "11 failed", 300.0)],
        "highest": 200.0,
        "per_s": 200.0,
        "first": 400.0,
        "bounds": ["one processor: the runtime's own process took 0.97"],
        "ended_early": None,
        "exit_code": 0,
        "leftovers": Leftovers(processes=0, sockets=0, containers=0, environments=0),
    }
    return Cliff(**(told | changes))


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_the_text_fits_the_terminal(width: int) -> None:
    odd = cliff(highest=None, per_s=None, interrupted=True, oddities={"not_json": 3}, ended_early="it died")
    for one in (cliff(), odd, cliff(first=None, bounds=[], exit_code=None)):
        lines = to_text(one, width).splitlines()
        assert max(map(len, lines)) <= width
    told = " ".join(to_text(cliff(), width).split())
    assert "holds 200/s, 200/s right not 400/s; what bound first: - one processor" in told
    assert ("waiting" in told) == (width >= 100)


def test_json_has_each_step() -> None:
    told = json.loads(to_json(cliff()))
    assert (told["version"], told["highest"], len(told["steps"])) == (1, 200.0, 4)
    assert told["steps"][0]["seen"]["files_limit"] == 1_000
