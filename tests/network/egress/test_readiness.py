"""One epoll for many sockets: who is called, when, and what a fault of one does to the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.network.egress.readiness import ENDED, READABLE, WRITABLE, Readiness
from tests.waiting import turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
async def readiness() -> AsyncIterator[Readiness]:
    made = Readiness()
    yield made
    made.close()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [socket.socketpair() for _ in range(3)]
    for ours, theirs in made:
        ours.setblocking(False)
        theirs.setblocking(False)
    yield made
    for ours, theirs in made:
        ours.close()
        theirs.close()


async def test_what_arrives_is_told_once(readiness: Readiness, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    seen: list[int] = []
    readiness.watch(ours.fileno(), seen.append)
    await turns()
    assert seen == []
    theirs.send(b"x")
    await turns()
    assert len(seen) == 1
    assert seen[0] & READABLE
    assert not seen[0] & ENDED
    theirs.send(b"y")  # a new edge, though the first byte was not read
    await turns()
    assert len(seen) == 2


async def test_what_was_there_before_is_told(readiness: Readiness, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    theirs.close()
    seen: list[int] = []
    readiness.watch(ours.fileno(), seen.append)
    await turns()
    assert seen
    assert seen[0] & ENDED


async def test_room_is_told_when_it_was_asked_for(readiness: Readiness, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    seen: list[int] = []
    readiness.watch(ours.fileno(), seen.append)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    readiness.watch_writing(ours.fileno())
    await turns()
    assert seen == []
    with contextlib.suppress(BlockingIOError):
        while True:
            theirs.recv(1 << 20)
    await turns()
    assert seen
    assert seen[-1] & WRITABLE


async def test_nobody_is_called_for_what_another_has_closed(readiness: Readiness, pairs: list[Pair]) -> None:
    called: list[int] = []

    def close_all(mine: int, events: int) -> None:
        called.append(mine)
        for ours, _ in pairs:
            readiness.forget(ours.fileno())
            ours.close()

    for number, (ours, theirs) in enumerate(pairs):
        readiness.watch(ours.fileno(), partial(close_all, number))
        theirs.send(b"x")
    await turns()
    assert len(called) == 1


async def test_a_fault_of_one_is_reported_and_the_others_are_called(readiness: Readiness, pairs: list[Pair]) -> None:
    loop = asyncio.get_running_loop()
    reported: list[Any] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    called: list[int] = []

    def fail(_: int) -> None:
        raise ZeroDivisionError

    try:
        for (ours, theirs), callback in zip(pairs, (fail, called.append, called.append), strict=True):
            readiness.watch(ours.fileno(), callback)
            theirs.send(b"x")
        await turns()
    finally:
        loop.set_exception_handler(handler)
    assert len(called) == 2
    assert [type(error) for error in reported] == [ZeroDivisionError]


async def test_again_is_the_next_turn(readiness: Readiness) -> None:
    calls: list[str] = []

    def once_more() -> None:
        calls.append("first")
        readiness.again(lambda: calls.append("second"))

    readiness.again(once_more)
    assert calls == []
    await asyncio.sleep(0)
    assert calls == ["first"]
    await asyncio.sleep(0)
    assert calls == ["first", "second"]


async def test_closed_it_calls_nobody(pairs: list[Pair]) -> None:
    readiness = Readiness()
    calls: list[int] = []
    ours, theirs = pairs[0]
    readiness.watch(ours.fileno(), calls.append)
    readiness.again(lambda: calls.append(0))
    theirs.send(b"x")
    readiness.close()
    await turns()
    assert calls == []


async def test_news_of_one_that_was_closed_is_not_for_who_got_its_number(
    readiness: Readiness, pairs: list[Pair]
) -> None:
    (first, its_peer), (old, old_peer), (new, _) = pairs
    number = old.fileno()
    seen: list[int] = []

    def replace(events: int) -> None:
        readiness.forget(number)
        os.dup2(new.fileno(), number)  # closes the old one
        readiness.watch(number, seen.append)

    readiness.watch(first.fileno(), replace)
    readiness.watch(number, seen.append)
    its_peer.send(b"x")
    old_peer.close()
    await turns()
    assert seen == []
