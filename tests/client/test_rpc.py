"""The call table by itself."""

import asyncio
from functools import partial
from typing import Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.client.rpc import PendingCalls
from fastclaw.errors import BY_CODE, FastclawError, IoError, ProtocolError
from tests.strategies import JSON
from tests.waiting import turns


def _calls(written: list[bytes]) -> PendingCalls:
    writable = asyncio.Event()
    writable.set()
    return PendingCalls(written.append, writable)


async def test_one_write_per_turn_of_the_loop() -> None:
    written: list[bytes] = []
    calls = _calls(written)
    pending = [asyncio.ensure_future(calls.call("x", None, None)) for _ in range(50)]
    await turns()
    assert len(written) == 1
    assert [orjson.loads(line)["id"] for line in written[0].splitlines()] == list(range(1, 51))
    calls.feed(b"".join(b'{"jsonrpc":"2.0","id":%d,"result":%d}\n' % (n, n) for n in range(1, 51)))
    assert await asyncio.gather(*pending) == list(range(1, 51))


async def test_a_paused_writer_holds_calls_back() -> None:
    written: list[bytes] = []
    writable = asyncio.Event()
    calls = PendingCalls(written.append, writable)
    call = asyncio.ensure_future(calls.call("x", None, None))
    await turns()
    assert written == []
    writable.set()
    await turns()
    assert len(written) == 1
    calls.lose(partial(IoError, "gone"))
    with pytest.raises(IoError, match="gone"):
        await call


async def test_a_cancelled_call_leaves_nothing_and_its_answer_is_dropped() -> None:
    calls = _calls([])
    call = asyncio.ensure_future(calls.call("x", None, None))
    await turns()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    calls.feed(b'{"jsonrpc":"2.0","id":1,"result":1}\n')
    assert not calls._open


async def test_the_first_reason_stays() -> None:
    calls = _calls([])
    calls.lose(partial(ProtocolError, "first"))
    calls.lose(partial(IoError, "second"))
    with pytest.raises(ProtocolError, match="first"):
        await calls.call("x", None, None)


_members = st.fixed_dictionaries(
    {},
    optional={
        "code": st.sampled_from([*BY_CODE]) | JSON,
        "message": JSON,
        "data": st.fixed_dictionaries(
            {}, optional={"reason": JSON, "fault": JSON, "retryable": JSON, "kind": JSON, "more": JSON}
        )
        | JSON,
    },
)


@given(_members | JSON)
def test_any_error_member_becomes_an_exception(error: object) -> None:
    made = FastclawError.from_wire(error)
    assert made.fault in ("caller", "engine", "runtime")
    assert isinstance(made.retryable, bool)
    assert isinstance(made.reason, str)


def test_a_foreign_code_keeps_its_number() -> None:
    made = FastclawError.from_wire({"code": -32050, "message": "strange", "data": {"reason": "odd", "x": 1}})
    assert (type(made), str(made), made.reason) == (ProtocolError, "strange", "odd")
    assert made.data == {"code": -32050, "x": 1}


# --- calls that are taken back ---


When = Literal["before", "meanwhile", "after"]


async def _cancelled(method: str, answers: bytes = b"", when: When = "after") -> list[dict[str, object]]:
    """What has been written after a call of this method was cancelled and `answers` came: in the turn of the loop in
    which it was cancelled, before or after that, or in a later one."""
    written: list[bytes] = []
    calls = _calls(written)
    call = asyncio.ensure_future(calls.call(method, {}, None))
    await turns()
    written.clear()
    if when == "before":
        calls.feed(answers)
    call.cancel()
    if when == "meanwhile":
        calls.feed(answers)
    await asyncio.wait((call,))
    assert call.cancelled()
    await turns()
    if when == "after":
        calls.feed(answers)
        await turns()
    assert not calls._open
    assert not calls._late
    return [orjson.loads(line) for line in b"".join(written).splitlines()]


_CANCEL = {"jsonrpc": "2.0", "method": "cancel", "params": {"id": 1}}
_KILL = {"jsonrpc": "2.0", "method": "kill", "params": {"process_id": "p", "grace_ms": 0}}
_STARTED = b'{"jsonrpc":"2.0","id":1,"result":{"process_id":"p","stdio_addr":"/s","stderr_addr":"/e"}}\n'
_REFUSED = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32800,"message":"cancelled"}}\n'


CONTENTS = ["read_file", "write_file", "read_tar", "write_tar"]


@pytest.mark.parametrize("method", ["exec", "run", "wait", "list_dir", "remove", "image_build", *CONTENTS])
async def test_a_cancelled_call_is_cancelled_at_the_runtime(method: str) -> None:
    assert await _cancelled(method, _REFUSED) == [_CANCEL]


@pytest.mark.parametrize("method", ["health", "kill", "list", "shutdown"])
async def test_other_calls_are_only_forgotten(method: str) -> None:
    assert await _cancelled(method) == []


@pytest.mark.parametrize("method", ["exec", *CONTENTS])
async def test_an_exec_or_a_stream_that_was_answered_all_the_same_is_killed(method: str) -> None:
    assert await _cancelled(method, _STARTED + _STARTED) == [_CANCEL, _KILL]
    assert await _cancelled(method, _STARTED, "before") == [_KILL]
    assert await _cancelled(method, _STARTED, "meanwhile") == [_KILL]


@pytest.mark.parametrize("method", ["run", "wait"])
async def test_nothing_else_is_ever_killed(method: str) -> None:
    assert await _cancelled(method, _STARTED) == [_CANCEL]
    assert await _cancelled(method, _STARTED, "before") == []
    assert await _cancelled(method, _STARTED, "meanwhile") == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_one_that_was_refused_in_that_turn_is_not_cancelled_any_more(when: When) -> None:
    assert await _cancelled("exec", _REFUSED, when) == []


async def test_an_answer_to_nobody_is_not_kept() -> None:
    calls = _calls([])
    for call_id in range(100):
        calls.feed(b'{"jsonrpc":"2.0","id":%d,"result":{"process_id":"p"}}\n' % call_id)
    assert not calls._late


async def test_a_call_that_never_left_is_not_cancelled() -> None:
    written: list[bytes] = []
    calls = PendingCalls(written.append, asyncio.Event())  # the other side does not read
    call = asyncio.ensure_future(calls.call("exec", {}, None))
    await turns()
    call.cancel()
    await asyncio.wait((call,))
    await turns()
    assert written == []


async def test_a_call_without_an_answer_in_time_is_taken_back_too() -> None:
    written: list[bytes] = []
    calls = _calls(written)
    with pytest.raises(IoError) as raised:
        await calls.call("exec", {}, 0.01)
    assert raised.value.reason == "no_answer"
    await turns()
    assert orjson.loads(b"".join(written).splitlines()[-1]) == _CANCEL
