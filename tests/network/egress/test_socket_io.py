"""Tasks that read from sockets with one epoll for all."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits, network_limits
from fastclaw.network.egress.socket_io import IdleTimeout, Listener, SocketReader, close_gently
from tests.balance import descriptors_left
from tests.network.egress.rig import HERE, listening
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastclaw.linux.poller import Poller


@pytest.fixture
async def reader(poller: Poller) -> AsyncIterator[SocketReader]:
    yield SocketReader(poller)
    assert repr(poller) == "<Poller watching=0>"


@contextmanager
def a_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


async def test_what_is_there_comes_at_once_and_what_comes_is_waited_for(reader: SocketReader) -> None:
    with a_pair() as (ours, theirs):
        for number in range(3):  # each wait after the first finds its entry there
            theirs.send(b"there")
            assert await reader.receive(ours) == b"there"
            later = asyncio.create_task(reader.receive(ours))
            await asyncio.sleep(0)
            theirs.send(b"%d" % number)
            assert await later == b"%d" % number
        theirs.close()
        assert await reader.receive(ours) == b""


async def test_the_first_of_several(reader: SocketReader) -> None:
    with a_pair() as (one, its_peer), a_pair() as (other, _):
        for _ in range(2):
            first = asyncio.create_task(reader.first(other, one))
            await asyncio.sleep(0)
            its_peer.send(b"x")
            assert await first is one
        assert await reader.receive(one) == b"xx"


@pytest.mark.parametrize("how", ["close", "shutdown"])
async def test_an_end_is_something_to_read(reader: SocketReader, how: str) -> None:
    with a_pair() as (ours, theirs):
        later = asyncio.create_task(reader.receive(ours))
        await asyncio.sleep(0)
        theirs.close() if how == "close" else theirs.shutdown(socket.SHUT_WR)
        assert await later == b""


async def test_who_is_cancelled_waits_no_more_and_another_may(reader: SocketReader) -> None:
    with a_pair() as (ours, theirs):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.receive(ours), 0.01)
        theirs.send(b"x")
        assert await reader.receive(ours) == b"x"


async def test_a_new_socket_of_an_old_number_is_waited_for(reader: SocketReader) -> None:
    with a_pair() as (ours, _):
        number = ours.fileno()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.receive(ours), 0.01)
    with a_pair() as (ours, theirs):
        assert ours.fileno() == number
        later = asyncio.create_task(reader.receive(ours))
        await asyncio.sleep(0)
        theirs.send(b"new")
        assert await later == b"new"


async def test_an_event_that_nobody_waits_for_is_nothing(reader: SocketReader) -> None:
    with a_pair() as (ours, theirs), a_pair() as (other, its_peer):
        first = asyncio.create_task(reader.first(ours, other))
        await asyncio.sleep(0)
        its_peer.send(b"x")
        assert await first is other
        theirs.send(b"later")  # `ours` has an entry still, and no waiter
        its_peer.send(b"x")
        assert await reader.first(other) is other
        assert await reader.receive(ours) == b"later"


async def test_who_always_finds_something_leaves_the_loop_to_others(reader: SocketReader) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    with a_pair() as (ours, theirs):
        for _ in range(4 * network_limits.TUNNEL_BURST):
            theirs.send(b"x" * 10)
            assert await reader.receive(ours) == b"x" * 10
    assert 2 <= turns <= 8
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_many_wait_at_once(reader: SocketReader) -> None:
    pairs = [socket.socketpair() for _ in range(2 * limits.POLLER_EVENTS)]
    for ours, _ in pairs:
        ours.setblocking(False)
    tasks = [asyncio.create_task(reader.receive(ours)) for ours, _ in pairs]
    await asyncio.sleep(0)
    for number, (_, theirs) in enumerate(pairs):
        theirs.send(b"%d" % number)
    assert await asyncio.gather(*tasks) == [b"%d" % number for number in range(len(pairs))]
    for pair in pairs:
        for sock in pair:
            sock.close()


async def test_an_idle_timeout_begins_anew_with_what_moves_unless_it_is_limited() -> None:
    async with asyncio.timeout(None) as timeout:
        now = asyncio.get_running_loop().time()
        idle = IdleTimeout(timeout, 20)
        idle.moved()
        assert now + 20 <= (timeout.when() or 0) <= now + 30
        idle.within(1)
        assert now + 1 <= (timeout.when() or 0) < now + 15
        idle.off()
        await asyncio.sleep(0)
        assert timeout.when() is None


async def test_what_moves_after_the_end_is_too_late_and_no_error() -> None:
    timeout = asyncio.timeout(None)
    idle = IdleTimeout(timeout, 20)

    async def wait_for_the_end() -> None:
        async with timeout:
            idle.within(0)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await wait_for_the_end()
    idle.moved()
    idle.off()


async def test_closing_gently_leaves_the_time_to_read_the_last_words(
    reader: SocketReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_PART_MS", 20_000)
    with listening() as listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        ours.setblocking(False)
        theirs.sendall(b"unread " * 1000)
        ours.send(b"last words")
        parting = asyncio.create_task(close_gently(ours, reader))
        await asyncio.sleep(0)
        assert theirs.recv(100) == b"last words"
        assert theirs.recv(100) == b""
        theirs.close()
        await parting
        assert ours.fileno() == -1


async def test_closing_gently_has_an_end(reader: SocketReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_PART_MS", 50)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        await asyncio.wait_for(close_gently(ours, reader), 10)
        assert ours.fileno() == -1


async def test_closing_gently_what_is_gone(reader: SocketReader) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    await close_gently(ours, reader)


# --- listeners ---


class Taking:
    """A listener that closes whom it takes in."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.looks = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.listener = Listener(listening(), self._on_ready, self.tasks)
        self.at = self.listener.socket.getsockname()

    def _on_ready(self, listener: Listener) -> None:
        self.looks += 1
        for client, peer in listener.accept(1):
            assert not client.getblocking()
            client.close()
            self.taken.append(peer)


async def test_clients_are_taken_in_and_those_over_a_burst_in_the_next_turn() -> None:
    taking = Taking()
    for _ in range(3):
        socket.create_connection(taking.at).close()
    await until(lambda: taking.taken == [HERE] * 3)
    assert taking.looks >= 3
    taking.listener.close()
    taking.listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(taking.at)


async def test_without_descriptors_clients_wait_until_there_are_some(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the loop does not spin meanwhile."""
    monkeypatch.setattr(limits, "ACCEPT_RETRY_MS", 60_000)
    taking = Taking()
    with socket.create_connection(taking.at):
        with descriptors_left(0):
            await until(lambda: "no connection can be accepted" in caplog.text)
            looks = taking.looks
            await turns()
            assert (taking.looks, taking.taken) == (looks, [])
        monkeypatch.setattr(limits, "ACCEPT_RETRY_MS", 1)
        taking.listener._watch()
        await until(lambda: taking.taken == [HERE])
    taking.listener.close()


async def test_a_listener_may_be_closed_while_it_waits_for_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop complains of a reader that is added to a closed socket."""
    monkeypatch.setattr(limits, "ACCEPT_RETRY_MS", 1)
    taking = Taking()
    with socket.create_connection(taking.at):
        with descriptors_left(0):
            await until(lambda: taking.looks > 0)
            taking.listener.close()
        retry = taking.listener._retry
        assert retry is not None
        assert retry.cancelled()


async def test_tasks_end_with_their_listener_whether_they_have_begun_or_not(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> int:
        raise ZeroDivisionError

    async def say(number: int) -> int:
        if number > 1:
            await asyncio.Event().wait()
        return number

    taking = Taking()
    results: list[int | None] = []
    taking.listener.spawn(say(1), results.append)
    taking.listener.spawn(fail(), results.append)
    await until(lambda: results == [1, None])
    assert "ZeroDivisionError" in caplog.text
    taking.listener.spawn(say(2), results.append)
    await turns()
    taking.listener.spawn(say(3), results.append)
    taking.listener.close()
    assert len(taking.tasks) == 2
    await until(lambda: results == [1, None, None, None])
    assert taking.tasks == set()
