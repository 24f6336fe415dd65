"""The trace: slices that lie in each other and never across, and counters that come back to nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastclaw.stages import STAGES
from fastclaw.telemetry.lines import Line
from fastclaw.telemetry.perfetto import STARTS, document, events
from fastclaw.telemetry.summary import took_us

calls = st.builds(
    Line,
    kind=st.sampled_from(["exec", "run"]),
    received_ns=st.integers(0, 10**6).map(lambda microseconds: microseconds * 1_000),
    id=st.text(max_size=5),
    environment=st.sampled_from(["main", "e1"]),
    outcome=st.just("exited"),
    timings=st.dictionaries(st.sampled_from(STAGES[1:]), st.integers(1, 10**6), min_size=1),
)


def slices(found: list[dict[str, Any]]) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """By row, where each begins and ends."""
    by_row = defaultdict(list)
    for event in found:
        if event["ph"] == "X":
            by_row[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    return by_row


@given(st.lists(calls, max_size=30))
def test_in_a_row_slices_lie_in_each_other_or_apart(lines: list[Line]) -> None:
    for row in slices(list(events(lines))).values():
        ends: list[float] = []
        for begin, end in sorted(row, key=lambda slice: (slice[0], -slice[1])):
            while ends and ends[-1] <= begin:
                ends.pop()
            assert not ends or end <= ends[-1]
            ends.append(end)


@given(st.lists(calls, max_size=30))
def test_each_call_has_a_slice_of_its_length_and_counters_end_at_zero(lines: list[Line]) -> None:
    found = list(events(lines))
    named = [event for event in found if event["ph"] == "X" and event["cat"] in {"exec", "run"}]
    assert sorted(event["dur"] for event in named) == sorted(map(took_us, lines))
    last = {event["name"]: event["args"][event["name"]] for event in found if event["ph"] == "C"}
    assert set(last.values()) <= {0}


def test_environments_are_processes_and_their_starts_have_one() -> None:
    start = Line(kind="environment_start", id="e1", outcome="ready", timings={"made": 5, "ready": 6})
    run = Line(kind="run", environment="e1", received_ns=9_000, timings={"exited": 2})
    read = json.loads(b"".join(document([run, start])))["traceEvents"]
    assert [event["args"]["name"] for event in read if event["ph"] == "M"] == [STARTS, "e1"]
    assert [(event["name"], event["ts"], event["dur"]) for event in read if event["ph"] == "X"] == [
        ("environment_start ready", 0, 5 + 1), ("made", 0, 5), ("ready", 5, 1), ("run ", 9, 2), ("exited", 9, 2),
    ]  # fmt: skip


def test_of_nothing_there_is_a_trace_too() -> None:
    assert json.loads(b"".join(document([]))) == {"displayTimeUnit": "ms", "traceEvents": []}
