"""The report: whether a rate was held, and a text that fits any terminal of 40 columns or more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct, structs

from fastclaw.bench.cliff import Cliff, Seen, Step
from fastclaw.bench.histogram import Latencies, Latency, Percentile
from fastclaw.bench.job import Plan
from fastclaw.bench.leftovers import Leftovers
from fastclaw.bench.report import (
    LATE_US,
    Floor,
    Measured,
    Report,
    is_held,
    sentences,
    time_text,
    to_json,
    to_text,
    wrapped,
)


def latency(*values_us: int) -> Latency:
    summed = Latencies()
    for value in values_us:
        summed.record(value * 1_000)
    return summed.summary()


def measured(**changes: Any) -> Measured:
    one = Measured(
        begun=1_002,
        right=1_000,
        failed={"no_answer": 2},
        cut_off=0,
        warm_up=0,
        warm_up_failed=0,
        seconds=10.0,
        per_s=100.0,
        right_percent=99.8004,
        latency=latency(*range(1_000, 2_000)),
        stages={"exec": latency(*range(1_000)), "wait": latency(*range(1_000, 3_000))},
        inside={"started": 300.0, "exited": 500.0},
        late=None,
        is_held=None,
        cpu_us=31.5,
    )
    return structs.replace(one, **changes)


def report(**changes: Any) -> Report:
    floor = Floor(measured=measured(failed={}, right_percent=100.0), timer=latency(20, 21), clock_ns=1)
    one = Report(
        ok=False,
        command=["x"],
        server={"name": "fastclaw", "version": "0.1.0"},
        load="exec",
        loop="closed",
        plan=Plan(concurrency=4, count=1_002),
        cmd=["true"],
        live=4,
        size=4_096,
        floor=floor,
        measured=measured(),
        oddities={},
        example="",
        messages={"no_answer": "said nothing"},
        exit_code=0,
        leftovers=Leftovers(processes=0, sockets=0, containers=0, environments=0),
    )
    return structs.replace(one, **changes)


@pytest.mark.parametrize("width", [40, 41, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    late = measured(late=latency(5, 6), is_held=False, warm_up=5)
    odd = report(measured=late, oddities={"not_json": 3}, example="x" * 300, interrupted=True, ended_early="it died")
    for one in (report(), odd, report(floor=None)):
        lines = to_text(one, width).splitlines()
        assert max(map(len, lines)) <= width
        told = " ".join(" ".join(lines).split())
        assert all(word in told for word in ("p99.9", "whole", "behind", "exec", "wait", "99.80 %"))


def test_the_table_at_eighty_columns() -> None:
    lines = to_text(report(), 80).splitlines()
    assert lines[:2] == [
        "exec on fastclaw 0.1.0: closed loop, 4 at once, 1002 operations",
        "1 000 right of 1 002, 100/s",
    ]
    assert lines[3].split() == ["whole", "behind", "floor", "exec", "wait"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[4:12]}
    assert rows["right"][:2] == ["99.80", "%"]
    assert rows["p50"][:3] == ["1.50", "ms", "500"]
    assert rows["p99.9"][2] == "1"


def test_failures_come_with_the_runtimes_own_words_the_most_first() -> None:
    said = sentences(report(measured=measured(failed={"no_answer": 2, "overloaded": 7})))
    assert said[:2] == ["failed: 7 overloaded", "failed: 2 no_answer (said nothing)"]


def test_nothing_that_happened_is_left_out() -> None:
    left = Leftovers(processes=2, sockets=1, containers=0, environments=0)
    said = " ".join(
        sentences(report(leftovers=left, exit_code=3, oddities={"twice": 4}, example="{}", interrupted=True))
    )
    for words in ("2 processes, 1 sockets", "exit code 3", "4 twice, the first: {}", "interrupted"):
        assert words in said
    assert "left over: nothing" in sentences(report())
    assert "the runtime had to be killed" in sentences(report(exit_code=None))
    assert "ended early: it died" in sentences(report(ended_early="it died", exit_code=7))


def test_where_the_time_goes_inside_and_outside() -> None:
    told = "inside the runtime, on average: started 300 µs, exited 500 µs; outside of it 700 µs"
    assert told in sentences(report())
    assert not any("inside" in line for line in sentences(report(measured=measured(inside={}))))


def test_what_a_runtime_says_does_not_move_the_cursor() -> None:
    nasty = "\x1b[2J\r\x07\u202e"
    one = report(
        server={"name": nasty, "version": "x" * 500}, messages={"no_answer": nasty}, oddities={"x": 1}, example=nasty
    )
    lines = to_text(one, 80).splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines[0]) <= 80


def test_nothing_measured_is_a_report_too() -> None:
    empty = measured(begun=0, right=0, right_percent=0.0, per_s=0.0, seconds=0.0, latency=latency(), stages={})
    assert "0 right of 0" in to_text(report(measured=empty), 40)
    late = structs.replace(empty, late=latency(), is_held=True)
    assert "rate held" in to_text(report(measured=late), 200)


@pytest.mark.parametrize(
    ("turns", "late_us", "failed", "held"),
    [
        ([(500, 490), (1_000, 990)], 100, {}, True),
        ([(500, 490), (1_000, 930)], 100, {}, True),  # chance
        ([(500, 490), (1_000, 800)], 100, {}, False),
        ([(5_000, 5_000), (10_000, 9_700)], 100, {}, True),
        ([(5_000, 5_000), (10_000, 9_500)], 100, {}, False),
        ([(500, 490), (1_000, 990)], LATE_US + 1, {}, False),
        ([(500, 490), (1_000, 990)], 100, {"generator_full": 1}, False),
        ([(500, 490), (1_000, 990)], 100, {"overloaded": 1}, True),
        ([(3, 3)], 100, {}, True),
        ([], 0, {}, True),
    ],
)
def test_whether_a_rate_was_held(
    turns: list[tuple[int, int]], late_us: int, failed: dict[str, int], held: bool
) -> None:
    assert is_held(turns, late_us, failed) is held


def test_a_number_stays_with_its_unit() -> None:
    for width in range(12, 40):
        lines = wrapped("started 630 µs, exited 1.59 ms, 3 samples; outside of it 12 s", width)
        assert [line for line in lines if line.split()[0] in ("µs,", "ms,", "s")] == []
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("us", "text"),
    [(0, "0 µs"), (999, "999 µs"), (1_000, "1.00 ms"), (12_345, "12.3 ms"), (123_456, "123 ms"), (1_500_000, "1.50 s")],
)
def test_times_as_text(us: int, text: str) -> None:
    assert time_text(us) == text


def test_json_is_one_line_with_all_of_it() -> None:
    line = to_json(report())
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    told = json.loads(line)
    assert told["version"] == 1
    assert told["measured"]["latency"]["percentiles"]["p99"] == {"us": 1989, "behind": 10}
    assert told["leftovers"] == {"processes": 0, "sockets": 0, "containers": 0, "environments": 0}


PAGE = (Path(__file__).parents[2] / "docs" / "bench.md").read_text()


@pytest.mark.parametrize("shape", [Report, Plan, Measured, Floor, Latency, Percentile, Leftovers, Cliff, Step, Seen])
def test_each_field_of_the_json_is_on_the_page(shape: type[Struct]) -> None:
    section = PAGE.split("## The report as JSON")[1].split("\n## ")[0]
    named = {word for code in re.findall(r"`([^`]+)`", section) for word in re.findall(r"[\w.]+", code)}
    assert set(shape.__struct_fields__) - named == set()
