"""`fastclaw trace` over journals of real runtimes, and over what is none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from fastclaw.cli.trace import duration
from fastclaw.telemetry.lines import Line, encoded
from tests.served import served

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.programs import Call


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Of a runtime that ran three commands and one that is not there."""
    path = tmp_path / "journal"
    for runtime in served(tmp_path, "local"):
        runtime.initialize(journal=str(path))
        for _ in range(3):
            runtime.call("run", cmd=["echo", "x"])
        runtime.call("run", cmd=["no-such-program"])
        runtime.end_input()
        runtime.exit_code()
    return path


def test_the_tables_are_by_kind_lane_and_outcome(call: Call, journal: Path) -> None:
    done = call("trace", str(journal))
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert heads == ["environment_start, local, ready", "run, spawn, exited", "run, spawn, not_found", "the slowest:"]
    first = lines.index("run, spawn, exited")
    rows = {line.split()[0]: line.split()[1] for line in lines[first + 2 : lines.index("", first)]}
    assert rows == dict.fromkeys(
        ["admitted", "sent", "taken", "started", "first_byte", "exited", "gone", "answered", "total"], "3"
    )
    assert len(lines[lines.index("the slowest:") + 1 :]) == 5


def test_the_same_as_json_and_as_a_trace(call: Call, journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    done = call("trace", "--json", "--slowest", "2", "--last", "1", "--perfetto", str(out), str(journal))
    told = json.loads(done.stdout)
    assert (told["lost"], told["bad"], len(told["slowest"])) == (0, 0, 2)
    assert {row["kind"] for row in told["stages"]} == {"environment_start", "run"}
    slices = [event for event in json.loads(out.read_bytes())["traceEvents"] if event["ph"] == "X"]
    assert slices[0]["name"] == "run not_found", "the last call"


def test_what_is_missing_is_said(call: Call, journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(encoded(Line(kind="lost", lines=7)) + b'{"kind":"run","timi')
    done = call("trace", str(journal))
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == [
        "7 lines are missing: the disk did not keep up",
        "1 lines were no lines of a journal, or cut",
    ]


def test_who_reads_no_terminal_gets_whole_lines_and_nobody_gets_control_characters(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    timings = {"admitted": 1, "sent": 3, "exited": 6}
    path.write_bytes(encoded(Line(kind="run", id="i" * 80, outcome="\x1b]0;x\x07\n", timings=timings)))
    text = call("trace", str(path)).stdout.decode()
    took = "exited 3 us, sent 2 us, admitted 1 us"
    assert text.splitlines()[-1] == f"      6 us  run {'i' * 80} \ufffd]0;x\ufffd\ufffd: {took}"
    assert all(letter == "\n" or letter.isprintable() for letter in text)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\0" * 100])
def test_a_file_without_a_call_is_an_error_in_one_line(call: Call, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    done = call("trace", str(path))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"options.journal" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "0 us"),
        (999, "999 us"),
        (1_000, "1.00 ms"),
        (99_940, "99.9 ms"),
        (123_456, "123 ms"),
        (61_000_000, "61.0 s"),
    ],
)
def test_durations_have_three_digits(microseconds: int, text: str) -> None:
    assert duration(microseconds) == text
