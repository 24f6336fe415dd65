"""A full close is told from a half-close, once, whenever it happens."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest

from fastclaw.linux.poller import Watcher
from tests.waiting import turns


@pytest.fixture
async def watcher() -> AsyncIterator[Watcher]:
    made = Watcher()
    yield made
    made.close()


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


@pytest.mark.parametrize("first", ["hangup", "listener"])
async def test_news_of_one_that_was_closed_is_not_for_who_got_its_number(watcher: Watcher, first: str) -> None:
    """A client reconnects ("connect new, close old") while another one connects: all in one turn of the loop."""
    ours, theirs = socket.socketpair()
    old, its_peer = socket.socketpair()
    made: list[socket.socket] = []
    calls: list[str] = []

    def replace() -> None:
        if not made:
            watcher.unwatch(old.fileno())
            number = old.detach()
            made.extend(socket.socketpair())
            os.dup2(made[0].fileno(), number)
            made[0].close()
            made[0] = socket.socket(fileno=number)
            watcher.watch_hangup(number, partial(calls.append, "the new one"))

    if first == "hangup":
        watcher.watch_hangup(ours.fileno(), replace)
    else:
        watcher.watch_listener(ours.fileno(), replace)
    watcher.watch_hangup(old.fileno(), partial(calls.append, "the old one"))
    theirs.close()
    its_peer.close()
    await turns()
    assert made
    assert calls == []
    made[1].close()
    await turns()
    assert calls == ["the new one"]
    watcher.unwatch(ours.fileno())
    ours.close()
    made[0].close()
