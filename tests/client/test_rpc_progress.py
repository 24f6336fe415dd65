"""Notifications, as the call table hands them to whoever listens to a call."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastclaw.client.rpc import PendingCalls
from fastclaw.errors import IoError, ProtocolError
from fastclaw.progress import Progress
from tests.waiting import turns

if TYPE_CHECKING:
    from collections.abc import Callable


def table() -> PendingCalls:
    writable = asyncio.Event()
    writable.set()
    return PendingCalls(lambda _: None, writable)


def progress(**params: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "method": "progress", "params": params}) + b"\n"


def answer(call_id: int) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": call_id, "result": "done"}) + b"\n"


async def test_each_call_hears_of_itself() -> None:
    calls = table()
    heard: list[list[Progress]] = [[], []]
    pending = [asyncio.ensure_future(calls.call("image_build", {}, None, one.append)) for one in heard]
    await turns()
    calls.feed(progress(id=2, text="b\n") + progress(id=1, text="a\n", done=1, total=2, dropped=3) + progress(id=2))
    assert heard == [[Progress(text="a\n", done=1, total=2, dropped=3)], [Progress(text="b\n"), Progress()]]
    calls.feed(answer(1) + answer(2))
    assert await asyncio.gather(*pending) == ["done", "done"]


def _raise(_: Progress) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("listen", [_raise, None])
async def test_who_fails_at_listening_or_does_not_listen_breaks_nothing(
    listen: Callable[[Progress], None] | None, caplog: pytest.LogCaptureFixture
) -> None:
    calls = table()
    call = asyncio.ensure_future(calls.call("image_build", {}, None, listen))
    await turns()
    with caplog.at_level(logging.ERROR):
        calls.feed(progress(id=1, text="a\n"))
    calls.feed(answer(1))
    assert await call == "done"
    assert len([one for one in caplog.records if one.exc_info]) == (listen is not None)


@pytest.mark.parametrize(
    "line",
    [
        progress(id=9),
        progress(id="1"),
        progress(id=True),
        progress(),
        b'{"jsonrpc":"2.0","method":"progress"}\n',
        b'{"jsonrpc":"2.0","method":"progress","params":[1]}\n',
        b'{"jsonrpc":"2.0","method":"news","params":{"id":1}}\n',
    ],
)
async def test_what_is_for_nobody_is_dropped(line: bytes) -> None:
    calls = table()
    heard: list[Progress] = []
    call = asyncio.ensure_future(calls.call("image_build", {}, None, heard.append))
    await turns()
    calls.feed(line + answer(1))
    assert await call == "done"
    assert heard == []


async def test_after_the_answer_nobody_listens() -> None:
    calls = table()
    heard: list[Progress] = []
    call = asyncio.ensure_future(calls.call("image_build", {}, None, heard.append))
    await turns()
    calls.feed(answer(1))
    await call
    calls.feed(progress(id=1))
    assert heard == []
    assert not calls._hearers


async def test_one_of_another_shape_is_no_protocol() -> None:
    calls = table()
    call = asyncio.ensure_future(calls.call("image_build", {}, None, lambda told: None))
    await turns()
    calls.feed(progress(id=1, text=5))
    with pytest.raises(ProtocolError, match="progress"):
        await call


@pytest.mark.parametrize("method", ["image_pull", "image_build", "image_load"])
async def test_a_call_that_is_cancelled_is_taken_back_and_heard_no_more(method: str) -> None:
    written: list[bytes] = []
    writable = asyncio.Event()
    writable.set()
    calls = PendingCalls(written.append, writable)
    call = asyncio.ensure_future(calls.call(method, {}, None, lambda told: None))
    await turns()
    call.cancel()
    await asyncio.wait((call,))
    await turns()
    assert orjson.loads(written[-1]) == {"jsonrpc": "2.0", "method": "cancel", "params": {"id": 1}}
    assert not calls._hearers
    calls.lose(partial(IoError, "over"))
