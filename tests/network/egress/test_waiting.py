"""Tasks that read from sockets with one epoll for all."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits, network_limits
from fastclaw.network.egress.waiting import Patience, Waiting, part
from tests.network.egress.rig import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
async def waiting() -> Waiting:
    return Waiting()


@pytest.fixture(autouse=True)
async def _close(waiting: Waiting) -> AsyncIterator[None]:
    yield
    waiting.close()


@contextmanager
def a_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


async def test_what_is_there_comes_at_once_and_what_comes_is_waited_for(waiting: Waiting) -> None:
    with a_pair() as (ours, theirs):
        for number in range(3):  # each wait after the first finds its entry there
            theirs.send(b"there")
            assert await waiting.receive(ours) == b"there"
            later = asyncio.create_task(waiting.receive(ours))
            await asyncio.sleep(0)
            theirs.send(b"%d" % number)
            assert await later == b"%d" % number
        theirs.close()
        assert await waiting.receive(ours) == b""


async def test_the_first_of_several(waiting: Waiting) -> None:
    with a_pair() as (one, its_peer), a_pair() as (other, _):
        for _ in range(2):
            first = asyncio.create_task(waiting.first(other, one))
            await asyncio.sleep(0)
            its_peer.send(b"x")
            assert await first is one
        assert await waiting.receive(one) == b"xx"


@pytest.mark.parametrize("how", ["close", "shutdown"])
async def test_an_end_is_something_to_read(waiting: Waiting, how: str) -> None:
    with a_pair() as (ours, theirs):
        later = asyncio.create_task(waiting.receive(ours))
        await asyncio.sleep(0)
        theirs.close() if how == "close" else theirs.shutdown(socket.SHUT_WR)
        assert await later == b""


async def test_who_is_cancelled_waits_no_more_and_another_may(waiting: Waiting) -> None:
    with a_pair() as (ours, theirs):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting.receive(ours), 0.01)
        theirs.send(b"x")
        assert await waiting.receive(ours) == b"x"
        assert waiting._waiters == {}


async def test_a_new_socket_of_an_old_number_is_waited_for(waiting: Waiting) -> None:
    with a_pair() as (ours, _):
        number = ours.fileno()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting.receive(ours), 0.01)
    with a_pair() as (ours, theirs):
        assert ours.fileno() == number
        later = asyncio.create_task(waiting.receive(ours))
        await asyncio.sleep(0)
        theirs.send(b"new")
        assert await later == b"new"


async def test_an_event_that_nobody_waits_for_is_nothing(waiting: Waiting) -> None:
    with a_pair() as (ours, theirs), a_pair() as (other, its_peer):
        first = asyncio.create_task(waiting.first(ours, other))
        await asyncio.sleep(0)
        its_peer.send(b"x")
        assert await first is other
        theirs.send(b"later")  # `ours` has an entry still, and no waiter
        its_peer.send(b"x")
        assert await waiting.first(other) is other
        assert await waiting.receive(ours) == b"later"


async def test_who_always_finds_something_leaves_the_loop_to_others(waiting: Waiting) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    with a_pair() as (ours, theirs):
        for _ in range(4 * limits.TUNNEL_BURST):
            theirs.send(b"x" * 10)
            assert await waiting.receive(ours) == b"x" * 10
    assert 2 <= turns <= 8
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_many_wait_at_once(waiting: Waiting) -> None:
    pairs = [socket.socketpair() for _ in range(2 * limits.TUNNEL_EVENTS)]
    for ours, _ in pairs:
        ours.setblocking(False)
    tasks = [asyncio.create_task(waiting.receive(ours)) for ours, _ in pairs]
    await asyncio.sleep(0)
    for number, (_, theirs) in enumerate(pairs):
        theirs.send(b"%d" % number)
    assert await asyncio.gather(*tasks) == [b"%d" % number for number in range(len(pairs))]
    for pair in pairs:
        for sock in pair:
            sock.close()


# --- patience ---


async def test_what_moves_puts_the_end_off_and_what_is_only_given_so_long_does_not() -> None:
    alarm = asyncio.timeout(None)
    patience = Patience(alarm, 20)
    with pytest.raises(TimeoutError):
        await _wait_out(alarm, patience)
    patience.moved()  # too late, and no error
    patience.off()


async def _wait_out(alarm: asyncio.Timeout, patience: Patience) -> None:
    async with alarm:
        patience.moved()
        patience.only(0.05)
        await asyncio.Event().wait()


async def test_patience_can_be_off() -> None:
    async with asyncio.timeout(0.05) as alarm:
        Patience(alarm, 20).off()
        await asyncio.sleep(0.1)


# --- parting ---


async def test_parting_leaves_the_time_to_read_the_last_words(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_PART_MS", 20_000)
    with listening() as listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        ours.setblocking(False)
        theirs.sendall(b"unread " * 1000)
        ours.send(b"last words")
        parting = asyncio.create_task(part(ours, waiting))
        await asyncio.sleep(0)
        assert theirs.recv(100) == b"last words"
        assert theirs.recv(100) == b""
        theirs.close()
        await parting
        assert ours.fileno() == -1


async def test_parting_has_an_end(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_PART_MS", 50)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        await asyncio.wait_for(part(ours, waiting), 10)
        assert ours.fileno() == -1


async def test_parting_from_who_is_gone(waiting: Waiting) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    await part(ours, waiting)
