"""The call table by itself."""

import asyncio
from functools import partial

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.client.rpc import Calls
from fastclaw.errors import BY_CODE, FastclawError, IoError, ProtocolError
from tests.strategies import JSON


def _calls(written: list[bytes]) -> Calls:
    writable = asyncio.Event()
    writable.set()
    return Calls(written.append, writable)


async def test_one_write_per_turn_of_the_loop() -> None:
    written: list[bytes] = []
    calls = _calls(written)
    pending = [asyncio.ensure_future(calls.call("x", None, None)) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(written) == 1
    assert [orjson.loads(line)["id"] for line in written[0].splitlines()] == list(range(1, 51))
    calls.feed(b"".join(b'{"jsonrpc":"2.0","id":%d,"result":%d}\n' % (n, n) for n in range(1, 51)))
    assert await asyncio.gather(*pending) == list(range(1, 51))


async def test_a_paused_writer_holds_calls_back() -> None:
    written: list[bytes] = []
    writable = asyncio.Event()
    calls = Calls(written.append, writable)
    call = asyncio.ensure_future(calls.call("x", None, None))
    await asyncio.sleep(0.01)
    assert written == []
    writable.set()
    await asyncio.sleep(0.01)
    assert len(written) == 1
    calls.lose(partial(IoError, "gone"))
    with pytest.raises(IoError, match="gone"):
        await call


async def test_a_cancelled_call_leaves_nothing_and_its_answer_is_dropped() -> None:
    calls = _calls([])
    call = asyncio.ensure_future(calls.call("x", None, None))
    await asyncio.sleep(0)
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
    assert str(made)[:0] == ""


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_an_error_survives_the_wire(kind: type[FastclawError]) -> None:
    sent = kind("why", "overloaded", path="$.x")
    made = FastclawError.from_wire(orjson.loads(orjson.dumps(sent.to_wire())))
    assert type(made) is kind
    assert made.to_wire() == sent.to_wire()


def test_a_foreign_code_keeps_its_number() -> None:
    made = FastclawError.from_wire({"code": -32050, "message": "strange", "data": {"reason": "odd", "x": 1}})
    assert (type(made), str(made), made.reason) == (ProtocolError, "strange", "odd")
    assert made.data == {"code": -32050, "x": 1}
