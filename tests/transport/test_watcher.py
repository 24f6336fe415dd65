"""A full close is told from a half-close, once, whenever it happens."""

import asyncio
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest

from fastclaw.transport.watcher import Watcher


@pytest.fixture
async def watcher() -> AsyncIterator[Watcher]:
    made = Watcher()
    yield made
    made.close()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0.001)


async def test_only_a_full_close_counts(watcher: Watcher) -> None:
    ours, theirs = socket.socketpair()
    left = asyncio.Event()
    with ours, theirs:
        watcher.watch_hangup(ours.fileno(), left.set)
        theirs.send(b"x")
        theirs.shutdown(socket.SHUT_WR)
        await turns()
        assert not left.is_set()
        theirs.close()
        async with asyncio.timeout(5):
            await left.wait()


async def test_one_that_is_gone_already_is_noticed(watcher: Watcher) -> None:
    ours, theirs = socket.socketpair()
    left = asyncio.Event()
    with ours:
        theirs.close()
        watcher.watch_hangup(ours.fileno(), left.set)
        async with asyncio.timeout(5):
            await left.wait()


async def test_it_calls_once_and_not_after_unwatch(watcher: Watcher) -> None:
    calls: list[str] = []
    pairs = [socket.socketpair() for _ in range(2)]
    for name, (ours, _) in zip("ab", pairs, strict=True):
        watcher.watch_hangup(ours.fileno(), partial(calls.append, name))
    watcher.unwatch(pairs[1][0].fileno())
    watcher.unwatch(pairs[1][0].fileno())
    for _, theirs in pairs:
        theirs.close()
    await turns()
    assert calls == ["a"]
    for ours, _ in pairs:
        ours.close()


async def test_one_callback_may_unwatch_another_of_the_same_batch(watcher: Watcher) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    calls: list[int] = []

    def left(fd: int) -> None:
        calls.append(fd)
        for ours, _ in pairs:
            watcher.unwatch(ours.fileno())

    for ours, _ in pairs:
        watcher.watch_hangup(ours.fileno(), partial(left, ours.fileno()))
    for _, theirs in pairs:
        theirs.close()
    await turns()
    assert len(calls) == 1
    for ours, _ in pairs:
        ours.close()
