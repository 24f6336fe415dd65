"""What tunnels share: the pipes that are lent, and how streams are told of."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING, cast

import pytest

from fastclaw import network_limits
from fastclaw.linux import splice
from fastclaw.linux.poller import EDGES
from fastclaw.network.egress.tunnel import Batching, Pipe, PipePool, PipeShare
from tests.balance import descriptors_left, open_descriptors
from tests.network.egress.tunnel_rig import LonePipes
from tests.waiting import turns

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterator

    from fastclaw.linux.poller import Poller


@pytest.fixture
async def pool(poller: Poller) -> AsyncIterator[LonePipes]:
    made = LonePipes(poller)
    yield made
    made.close()


def lend(pool: LonePipes) -> Pipe:
    pipe = pool.borrow()
    assert pipe is not None
    return pipe


async def test_a_pipe_is_large_and_blocks_nobody(pool: LonePipes) -> None:
    pipe = lend(pool)
    assert fcntl.fcntl(pipe.write_end, fcntl.F_GETPIPE_SZ) == network_limits.TUNNEL_PIPE_BYTES
    assert not os.get_blocking(pipe.read_end)
    assert not os.get_blocking(pipe.write_end)
    assert not os.get_inheritable(pipe.read_end)
    pool.give_back(pipe)


async def test_an_empty_pipe_is_lent_again(pool: LonePipes) -> None:
    pipe = lend(pool)
    pool.give_back(pipe)
    assert pool.borrow() is pipe
    pool.give_back(pipe)
    assert pool.lent == 0


async def test_nobody_gets_the_bytes_of_another(pool: LonePipes) -> None:
    pipe = lend(pool)
    pipe.held = os.write(pipe.write_end, b"secret")
    pool.give_back(pipe)
    other = lend(pool)
    assert other is not pipe
    with pytest.raises(BlockingIOError):
        os.read(other.read_end, 10)
    pool.give_back(other)


async def test_there_are_so_many_and_no_more(poller: Poller) -> None:
    pool = LonePipes(poller, 2)
    first, second = lend(pool), lend(pool)
    assert pool.borrow() is None
    pool.give_back(first)
    third = lend(pool)
    assert pool.borrow() is None
    for pipe in (second, third):
        pool.give_back(pipe)
    pool.close()


async def test_one_environment_takes_half_of_them_and_leaves_some_to_the_next(poller: Poller) -> None:
    pool = PipePool(6)
    greedy, other = PipeShare(pool, poller), PipeShare(pool, poller)
    lent = [greedy.borrow() for _ in range(10)]
    pipe = other.borrow()
    assert (greedy.lent, lent[3:], other.lent) == (3, [None] * 7, 1)
    assert pipe is not None
    other.give_back(pipe)
    for one in lent[:3]:
        assert one is not None
        greedy.give_back(one)
    assert pool.units.free == 6
    pool.close()


async def test_only_a_few_are_kept(pool: LonePipes) -> None:
    before = len(open_descriptors())
    lent = [lend(pool) for _ in range(network_limits.TUNNEL_SPARE_PIPES + 3)]
    for pipe in lent:
        pool.give_back(pipe)
    assert len(open_descriptors()) == before + 2 * network_limits.TUNNEL_SPARE_PIPES


async def test_without_descriptors_there_is_none_until_there_are(pool: LonePipes) -> None:
    with descriptors_left(0):
        with pytest.raises(OSError, match="Too many open files"):
            socket.socket()
        assert pool.borrow() is None
        assert pool.lent == 0
    pool.give_back(lend(pool))


async def test_where_splice_is_refused_there_are_none(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "kind", lambda: "copy")
    pool = LonePipes(poller)
    assert pool.borrow() is None
    pool.close()


class Source:
    """A stream as `Batching` sees it, over real TCP."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            self.socket = listener.accept()[0]
        self.socket.setblocking(False)
        self.streak = network_limits.TUNNEL_STREAM_BYTES

    @property
    def wakes_for(self) -> int:
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    def close(self) -> None:
        self.peer.close()
        self.socket.close()


class Clock:
    """The timers of a loop, which a test lets fire; itself the handle of the only one."""

    def __init__(self) -> None:
        self._due: Callable[[], None] | None = None

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Clock:
        assert (delay_s, self._due) == (network_limits.TUNNEL_BATCH_MS / 1000, None)
        self._due = callback
        return self

    def cancel(self) -> None:
        self._due = None

    def fire(self) -> bool:
        """Whether a timer ran."""
        due, self._due = self._due, None
        if due is not None:
            due()
        return due is not None


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batching(clock: Clock) -> Batching:
    return Batching(cast("asyncio.AbstractEventLoop", clock))


def test_a_stream_wakes_for_batches_while_it_moves(batching: Batching, clock: Clock, source: Source) -> None:
    batching.join(source)
    for _ in range(10):
        assert source.wakes_for == network_limits.TUNNEL_BATCH_BYTES
        source.streak += 100_000
        assert clock.fire()


def test_one_that_pauses_wakes_for_each_byte_and_has_to_prove_itself_again(
    batching: Batching, clock: Clock, source: Source
) -> None:
    source.streak = 1 << 40
    batching.join(source)
    clock.fire()
    assert source.wakes_for == 1
    assert source.streak == network_limits.TUNNEL_STREAM_BYTES // 2
    assert not clock.fire()
    batching.join(source)
    assert source.wakes_for == network_limits.TUNNEL_BATCH_BYTES


def test_to_join_twice_is_to_join_once(batching: Batching, clock: Clock, source: Source) -> None:
    for _ in range(2):
        batching.join(source)
    clock.fire()
    assert source.wakes_for == 1
    assert source.streak == network_limits.TUNNEL_STREAM_BYTES // 2


@pytest.mark.parametrize("ends", [False, True])
async def test_less_than_a_batch_is_told_at_a_pause_and_an_end_at_once(
    poller: Poller, batching: Batching, clock: Clock, source: Source, ends: bool
) -> None:
    told: list[int] = []
    poller.watch(source.socket.fileno(), EDGES, told.append)
    batching.join(source)
    source.peer.send(b"the rest")
    if ends:
        source.peer.shutdown(socket.SHUT_WR)
    await turns()
    assert bool(told) is ends
    clock.fire()
    await turns()
    assert told


def test_one_that_was_closed_is_forgotten(batching: Batching, clock: Clock, source: Source) -> None:
    batching.join(source)
    source.socket.close()
    assert clock.fire()
    assert not clock.fire()


def test_closed_it_looks_no_more(batching: Batching, clock: Clock, source: Source) -> None:
    batching.join(source)
    batching.close()
    assert not clock.fire()
