"""The checker's end of the wire, against small scripted runtimes, and how it reads an answer of `run`."""

from __future__ import annotations

import base64
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.conformance.wire import Broken, Wire, around_gap, dropped, ending, given, outputs
from fastclaw.errors import IoError
from tests.client.fakes import POLITE, fake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ECHO = """
for line in sys.stdin:
    sys.stdout.write(line)
    sys.stdout.flush()
"""


@asynccontextmanager
async def a_wire(script: str) -> AsyncIterator[Wire]:
    """A wire to a runtime that runs this script."""
    wire = await Wire.start(fake(script))
    try:
        yield wire
    finally:
        await wire.aclose()


def saying(*lines: str) -> str:
    """A runtime that says these lines and waits for EOF."""
    return f"sys.stdout.write({''.join(line + chr(10) for line in lines)!r}); sys.stdout.flush(); sys.stdin.read()"


async def test_a_runtime_that_is_not_there() -> None:
    with pytest.raises(IoError, match="cannot be started"):
        await Wire.start(["/no/such/runtime"])


async def test_answers_are_taken_by_id_in_any_order() -> None:
    async with a_wire(POLITE) as wire:
        first, second = wire.post("echo", {"n": 1}), wire.post("echo", {"n": 2})
        assert (await wire.answer(second))["result"] == {"n": 2}
        assert (await wire.answer(first))["result"] == {"n": 1}
        assert (await wire.request("echo", [3]))["result"] == [3]


async def test_what_a_post_puts_on_the_wire() -> None:
    async with a_wire(ECHO) as wire:
        assert wire.post("a") == 1
        assert wire.post("b", {"x": None}, id="own", jsonrpc="1.0") == "own"
        wire.post("c", [], id=None)
        wire.close_stdin()
        assert len(await wire.finished()) == 3
        sent = [
            '{"jsonrpc":"2.0","id":1,"method":"a"}',
            '{"jsonrpc":"1.0","id":"own","method":"b","params":{"x":null}}',
            '{"jsonrpc":"2.0","id":null,"method":"c","params":[]}',
        ]
        assert [entry for entry in wire.exchange if entry.startswith("<-")][:3] == [f"<- {line}" for line in sent]


async def test_ids_of_another_type_are_other_ids() -> None:
    answers = [f'{{"jsonrpc":"2.0","id":{told},"result":{n}}}' for n, told in enumerate(("true", "1.0", '"1"', "1"))]
    async with a_wire(saying(*answers)) as wire:
        assert (await wire.answer(1))["result"] == 3
        assert (await wire.answer("1"))["result"] == 2
        assert [message["result"] for message in (await wire.next(), await wire.next())] == [0, 1]


async def test_an_answer_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECK_ANSWER_MS", 20)
    async with a_wire("sys.stdin.read()") as wire:
        with pytest.raises(Broken, match="the answer to id 1 did not come within 20 ms"):
            await wire.request("health")
        with pytest.raises(Broken, match="a message did not come within 20 ms"):
            await wire.next()


@pytest.mark.parametrize(
    "line",
    [
        "Listening on port 80",
        "[]",
        "7",
        '{"id":1,"result":{}}',
        '{"jsonrpc":"2.0","result":{}}',
        '{"jsonrpc":"2.0","id":1}',
        '{"jsonrpc":"2.0","id":1,"result":{},"error":{}}',
        '{"jsonrpc":"2.0","method":"news"}',
        '[{"jsonrpc":"2.0","id":1,"result":{}},7]',
    ],
)
async def test_what_is_no_answer_is_foul(line: str) -> None:
    async with a_wire(saying(line)) as wire:
        with pytest.raises(Broken, match="something else than the protocol"):
            await wire.answer("never", 10_000)
        assert wire.foul == [line]


async def test_what_came_before_the_foul_line_is_still_taken() -> None:
    async with a_wire(saying('{"jsonrpc":"2.0","id":1,"result":{}}', "what?")) as wire:
        assert (await wire.answer(1))["result"] == {}
        with pytest.raises(Broken, match=r"what\?"):
            await wire.next()


async def test_a_batch_is_one_message() -> None:
    batch = '[{"jsonrpc":"2.0","id":1,"result":{}},{"jsonrpc":"2.0","id":2,"error":{}}]'
    async with a_wire(saying(batch)) as wire:
        assert [item["id"] for item in await wire.next()] == [1, 2]
        assert wire.foul == []


async def test_a_line_over_the_limit_is_foul() -> None:
    async with a_wire(f"print('x' * {limits.MAX_LINE_BYTES + 1}, flush=True); sys.stdin.read()") as wire:
        with pytest.raises(Broken, match="a line over the limit"):
            await wire.next()


async def test_rest_is_what_came_unasked() -> None:
    script = "for request in requests():\n    say(id=None, result='extra')\n    answer(request, {})\n"
    async with a_wire(script) as wire:
        assert await wire.rest() == [{"jsonrpc": "2.0", "id": None, "result": "extra"}]
        assert len(await wire.rest()) == 1


async def test_an_end_is_seen_with_what_was_said_before() -> None:
    async with a_wire("say(id=9, result={}); sys.stdin.read(); sys.exit(3)") as wire:
        with pytest.raises(Broken, match="still runs after 20 ms"):
            await wire.exit_code(20)
        wire.close_stdin()
        assert await wire.exit_code(10_000) == 3
        assert await wire.finished() == [{"jsonrpc": "2.0", "id": 9, "result": {}}]
        with pytest.raises(Broken, match="the answer to id 5 did not come: the runtime ended with code 3"):
            await wire.answer(5)
        assert "-> (EOF)" in wire.exchange
        assert "exited with code 3" in wire.exchange[-1]


async def test_an_end_by_signal() -> None:
    async with a_wire("sys.stdin.read()") as wire:
        wire.signal(signal.SIGKILL)
        assert await wire.exit_code(10_000) == -signal.SIGKILL
        assert "-> (signal 9)" in wire.exchange


async def test_a_stdout_that_stays_open_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECK_SOON_MS", 20)
    async with a_wire("sys.stdin.read()") as wire:
        with pytest.raises(Broken, match="stdout did not end within 20 ms"):
            await wire.finished()


async def test_the_exchange_is_short() -> None:
    async with a_wire(ECHO) as wire:
        for number in range(limits.CHECK_EXCHANGE_ENTRIES + 5):
            wire.send(f'{{"jsonrpc":"2.0","id":{number},"result":"{"x" * limits.CHECK_ENTRY_CHARS}"}}\n'.encode())
        await wire.answer(limits.CHECK_EXCHANGE_ENTRIES + 4)
        assert len(wire.exchange) == limits.CHECK_EXCHANGE_ENTRIES
        assert all("bytes more)" in entry for entry in wire.exchange)
        assert max(map(len, wire.exchange)) < limits.CHECK_ENTRY_CHARS + 40


# --- Answers of run ---


STREAMS = ("stdout", "stderr")


def an_answer(**fields: Any) -> dict[str, Any]:
    whole = {
        "state": "exited", "exit_code": 0, "reason": "exited", "stdout": "", "stderr": "",
        "dropped": {"stdout": 0, "stderr": 0},
    }  # fmt: skip
    return whole | fields


def binary(data: bytes, stream: str = "stdout") -> dict[str, Any]:
    return an_answer(**{stream: None, f"{stream}_base64": base64.b64encode(data).decode()})


@pytest.mark.parametrize("stream", STREAMS)
def test_text_and_bytes(stream: str) -> None:
    assert given(an_answer(**{stream: "é\0"}), stream) == "é\0".encode()
    assert given(binary(b"\xff\0", stream), stream) == b"\xff\0"
    assert given(an_answer(**{stream: "", f"{stream}_base64": None}), stream) == b""


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    ("text", "encoded", "said"),
    [
        (None, None, "NoneType"),
        ("a", "/w==", "comes as"),
        (7, None, "comes as"),
        (None, 7, "comes as"),
        (None, "/w", "is no base64"),
        (None, "YQ==", "is text, and comes as base64"),
        (None, "", "is text, and comes as base64"),
    ],
)
def test_what_comes_in_no_right_form(stream: str, text: Any, encoded: Any, said: str) -> None:
    with pytest.raises(Broken, match=f"{stream}.*{said}"):
        given(an_answer(**{stream: text, f"{stream}_base64": encoded}), stream)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dropped": {"stdout": 1, "stderr": 0}}, "`dropped` is"),
        ({"dropped": {"stdout": 0}}, "`dropped` is"),
        ({"dropped": None}, "`dropped` is"),
        ({"gap_at": {"stdout": 0}}, "`gap_at` is"),
        ({"incomplete": True}, "`incomplete`"),
    ],
)
def test_a_run_that_says_it_lost_something(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Broken, match=said):
        outputs(an_answer(**fields))


@pytest.mark.parametrize("told", [None, 3, {}, {"stderr": 1}, {"stdout": -1}, {"stdout": True}, {"stdout": "1"}])
def test_how_much_is_missing_is_a_number(told: Any) -> None:
    with pytest.raises(Broken, match="`dropped` is"):
        dropped(an_answer(dropped=told), "stdout")


@pytest.mark.parametrize("at", [0, 1, 4])
def test_both_sides_of_a_gap(at: int) -> None:
    answer = an_answer(stdout="abcd", gap_at={"stdout": at})
    assert around_gap(answer, "stdout") == (b"abcd"[:at], b"abcd"[at:])


@pytest.mark.parametrize("told", [None, 3, {}, {"stderr": 1}, {"stdout": -1}, {"stdout": 5}, {"stdout": "1"}])
def test_a_gap_is_somewhere_in_what_is_given(told: Any) -> None:
    with pytest.raises(Broken, match="`gap_at` is"):
        around_gap(an_answer(stdout="abcd", gap_at=told), "stdout")


def test_what_was_given_and_dropped_and_how_it_ended() -> None:
    assert outputs(an_answer(stdout="out", stderr="err")) == (b"out", b"err")
    answer = an_answer(dropped={"stdout": 3, "stderr": 0})
    assert [dropped(answer, stream) for stream in STREAMS] == [3, 0]
    assert ending(an_answer(exit_code=3, reason="killed")) == ("exited", 3, "killed")
    assert ending({}) == (None, None, None)
