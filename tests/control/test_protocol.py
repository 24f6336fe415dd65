"""Lines of the control socket, there and back, and what is none."""

import pytest

from fastclaw import telemetry_limits
from fastclaw.control.protocol import (
    AskKill,
    AskProcesses,
    AskSnapshot,
    EnvironmentRow,
    Killed,
    ProcessRow,
    ProcessRows,
    Refusal,
    Snapshot,
    line_of,
    read_answer,
    read_ask,
)
from fastclaw.errors import ProtocolError

ROW = ProcessRow(process_id="a-1", environment="main", command="x", state="running", started_at=1.0)
ENVIRONMENT = EnvironmentRow(environment="main", state="running", started_at=1.0, runtime="local", cpu_us=0)
REFUSAL = Refusal(message="no", reason="internal")
SNAPSHOT = Snapshot(
    at=2.0, pid=7, version="1", namespace="n", started_at=1.0, states={}, environments=[ENVIRONMENT], total=1
)


@pytest.mark.parametrize(
    "asked", [AskSnapshot(limit=0), AskProcesses(sort="cpu", filter="\n"), AskKill(process_id="a")]
)
def test_a_request_comes_back_as_one_line(asked: AskSnapshot | AskProcesses | AskKill) -> None:
    line = line_of(asked)
    assert line.count(b"\n") == 1
    assert read_ask(line) == asked


@pytest.mark.parametrize(
    "answer", [SNAPSHOT, ProcessRows(at=1.0, total=1, offset=0, rows=[ROW]), Killed(process_id="a"), REFUSAL]
)
def test_an_answer_comes_back_as_one_line(answer: Snapshot | ProcessRows | Killed | Refusal) -> None:
    line = line_of(answer)
    assert line.count(b"\n") == 1
    assert read_answer(line) == answer


def test_what_is_not_known_is_not_in_the_line() -> None:
    assert line_of(ProcessRows(at=1.0, total=1, offset=0, rows=[ROW])) == (
        b'{"answer":"processes","at":1.0,"total":1,"offset":0,"rows":[{"process_id":"a-1","environment":"main",'
        b'"command":"x","state":"running","started_at":1.0}]}\n'
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"ask":"shutdown"}',
        b'{"ask":"kill"}',
        b'{"ask":"processes","limit":501}',
        b'{"ask":"processes","offset":-1}',
        b'{"ask":"processes","sort":"id"}',
        b'{"ask":"processes","filter":"' + b"x" * (telemetry_limits.CONTROL_TEXT_CHARS + 1) + b'"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_request_is_refused_in_a_line(line: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        read_ask(line)
    assert "\n" not in str(raised.value)


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no fastclaw"):
        read_answer(b"HTTP/1.1 400 Bad Request\r\n")
