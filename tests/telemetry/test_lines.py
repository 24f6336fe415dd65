"""Lines of a journal: what is written is read again, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import stages
from fastclaw.stages import Flight
from fastclaw.telemetry.lines import Line, decoded, encoded, of_call


def test_a_call_is_one_line() -> None:
    flight = Flight(5_000)
    flight.method, flight.subject, flight.environment, flight.lane = "exec", "ab-1", "main", "spawn"
    flight.merge((0, 7_000, 0, 9_000, 0))
    flight.end("exited")
    line = of_call(flight, 12.5)
    assert line.count(b"\n") == 1
    assert decoded(line) == Line(
        kind="exec", time=12.5, received_ns=5_000, id="ab-1", environment="main", lane="spawn", outcome="exited",
        timings={"started": 2, "exited": 4},
    )  # fmt: skip
    assert stages.STAGES.index("started") == stages.STARTED


@given(st.text(), st.dictionaries(st.sampled_from(stages.STAGES), st.integers(0, 2**53)))
def test_any_name_is_read_again(name: str, timings: dict[str, int]) -> None:
    line = Line(kind="run", id=name, timings=timings)
    assert decoded(encoded(line)) == line


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{",
        b'{"kind":"run","timings":{"exi',
        b'{"kind":"run","timings":{"exited":-1}}',
        b'{"kind":"run","timings":{"exited":%d}}' % 2**54,
        b'{"kind":"lost","lines":-1}',
        b'{"kind":"walk"}',
        b"[]",
        b"\xff\xfe",
        b'{"id":"x"}',
        b"null",
    ],
)
def test_what_is_no_line_is_none(data: bytes) -> None:
    assert decoded(data) is None
