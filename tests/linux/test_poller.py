"""One epoll for many descriptors: who is called, when, and what a fault of one does to the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.linux.poller import EDGES, EDGES_BOTH_WAYS, ENDED, ONCE_READABLE, READABLE, WRITABLE, Poller
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    made = Poller()
    yield made
    made.close()
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


async def test_what_arrives_is_told_once(poller: Poller, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    seen: list[int] = []
    poller.watch(ours.fileno(), EDGES, seen.append)
    assert repr(poller) == "<Poller watching=1>"
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


async def test_what_was_there_before_is_told(poller: Poller, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    theirs.close()
    seen: list[int] = []
    poller.watch(ours.fileno(), EDGES, seen.append)
    await turns()
    assert seen
    assert seen[0] & ENDED


async def test_watched_again_it_is_told_to_the_new_callback_only(poller: Poller, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    first: list[int] = []
    second: list[int] = []
    poller.watch(ours.fileno(), ONCE_READABLE, first.append)
    theirs.send(b"x")
    await turns()
    theirs.send(b"y")
    await turns()
    assert len(first) == 1
    poller.forget(ours.fileno())
    poller.watch(ours.fileno(), EDGES, second.append)
    await turns()
    assert (len(first), len(second)) == (1, 1)


async def test_room_is_told_when_it_was_asked_for(poller: Poller, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    seen: list[int] = []
    poller.watch(ours.fileno(), EDGES, seen.append)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    poller.change(ours.fileno(), EDGES_BOTH_WAYS)
    await turns()
    assert seen == []
    with contextlib.suppress(BlockingIOError):
        while True:
            theirs.recv(1 << 20)
    await turns()
    assert seen
    assert seen[-1] & WRITABLE


async def test_only_a_full_close_is_a_hangup(poller: Poller, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    left: list[str] = []
    poller.watch_hangup(ours.fileno(), partial(left.append, "left"))
    theirs.send(b"x")
    theirs.shutdown(socket.SHUT_WR)
    await turns()
    assert left == []
    theirs.close()
    await turns()
    assert left == ["left"]


async def test_a_peer_that_is_gone_already_is_noticed_once(poller: Poller, pairs: list[Pair]) -> None:
    calls: list[str] = []
    for name, (ours, theirs) in zip("abc", pairs, strict=True):
        theirs.close()
        poller.watch_hangup(ours.fileno(), partial(calls.append, name))
    for _ in range(2):  # the second finds nothing to do
        poller.unwatch(pairs[1][0].fileno())
    await turns()
    assert sorted(calls) == ["a", "c"]


async def test_a_fault_of_one_is_reported_and_the_others_are_called(poller: Poller, pairs: list[Pair]) -> None:
    loop = asyncio.get_running_loop()
    reported: list[Any] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    called: list[int] = []

    def fail(_: int = 0) -> None:
        raise ZeroDivisionError

    try:
        for (ours, theirs), callback in zip(pairs, (fail, called.append, called.append), strict=True):
            poller.watch(ours.fileno(), EDGES, callback)
            theirs.send(b"x")
        poller.again(fail)
        poller.again(partial(called.append, 0))
        await turns()
    finally:
        loop.set_exception_handler(handler)
    assert len(called) == 3
    assert [type(error) for error in reported] == [ZeroDivisionError] * 2


async def test_what_the_kernel_does_not_watch_is_not_watched(poller: Poller) -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(PermissionError):
        poller.watch(fd, EDGES, print)
    os.close(fd)
    assert repr(poller) == "<Poller watching=0>"


async def test_again_is_the_next_turn(poller: Poller) -> None:
    calls: list[str] = []

    def once_more() -> None:
        calls.append("first")
        poller.again(lambda: calls.append("second"))

    poller.again(once_more)
    assert calls == []
    await asyncio.sleep(0)
    assert calls == ["first"]
    await asyncio.sleep(0)
    assert calls == ["first", "second"]


@pytest.mark.parametrize("way", ["events", "again"])
async def test_a_busy_one_leaves_the_others_their_turns(way: str, poller: Poller) -> None:
    """Each callback of the busy one has more to do at once, as a tunnel in which bulk flows."""
    busy, called, seen = Poller(most=4), [0], list[int]()
    pairs = [socket.socketpair() for _ in range(50)]
    pair = socket.socketpair()

    def work() -> None:
        called[0] += 1
        if way == "again":
            busy.again(work)

    for ours, theirs in pairs:
        theirs.send(b"x")
        if way == "again":
            busy.again(work)
        else:
            busy.watch(ours.fileno(), READABLE, lambda _: work())
    poller.watch(pair[0].fileno(), EDGES, lambda _: seen.append(called[0]))
    await until(lambda: called[0] > 100)
    before = called[0]
    pair[1].send(b"x")
    await until(lambda: seen)
    assert seen[0] - before <= 3 * 4
    busy.close()
    for end in (*pair, *(end for both in pairs for end in both)):
        end.close()


async def test_closed_it_calls_nobody(pairs: list[Pair]) -> None:
    poller = Poller()
    calls: list[int] = []
    ours, theirs = pairs[0]
    poller.watch(ours.fileno(), EDGES, calls.append)
    poller.again(lambda: calls.append(0))
    theirs.send(b"x")
    poller.close()
    await turns()
    assert calls == []


@pytest.mark.parametrize("end", ["unwatch", "forget"])
async def test_nothing_is_called_for_what_an_earlier_one_of_the_batch_has_closed(
    poller: Poller, pairs: list[Pair], end: str
) -> None:
    called: list[int] = []

    def close_all(mine: int, _: int) -> None:
        called.append(mine)
        for ours, _theirs in pairs:
            getattr(poller, end)(ours.fileno())
            ours.close()

    for number, (ours, theirs) in enumerate(pairs):
        poller.watch(ours.fileno(), EDGES, partial(close_all, number))
        theirs.send(b"x")
    await turns()
    assert len(called) == 1


@pytest.mark.parametrize("first", ["edges", "hangup", "listener"])
async def test_news_of_one_that_was_closed_is_not_for_who_got_its_number(
    poller: Poller, pairs: list[Pair], first: str
) -> None:
    """A client reconnects ("connect new, close old") while another one connects: all in one turn of the loop."""
    (ours, theirs), (old, old_peer), (new, new_peer) = pairs
    number = old.fileno()
    calls: list[str] = []

    def replace(_: int = 0) -> None:
        if first != "hangup":
            ours.recv(1)
        poller.forget(number)
        os.dup2(new.fileno(), number)  # closes the old one
        new.close()
        poller.watch_hangup(number, partial(calls.append, "the new one"))

    if first == "edges":
        poller.watch(ours.fileno(), EDGES, replace)
    elif first == "hangup":
        poller.watch_hangup(ours.fileno(), replace)
    else:
        poller.watch_listener(ours.fileno(), replace)
    poller.watch_hangup(number, partial(calls.append, "the old one"))
    theirs.close() if first == "hangup" else theirs.send(b"x")
    old_peer.close()
    await turns()
    assert new.fileno() == -1
    assert calls == []
    new_peer.close()
    await turns()
    assert calls == ["the new one"]
