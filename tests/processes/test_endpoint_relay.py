"""The end of an endpoint while somebody is connected, and what shows whether that one reads; with both movers."""

import asyncio
import errno
import fcntl
import hashlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from fastclaw import limits
from fastclaw.linux import splice
from fastclaw.linux.splice import Copy, Move, is_holding
from fastclaw.processes.endpoint import Relay
from fastclaw.processes.listeners import Listener
from tests.processes.endpoint_rig import EndpointRig
from tests.waiting import until


@pytest.fixture(params=["splice", "copy"], autouse=True)
def mover(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(splice, "kind", lambda: request.param)
    return str(request.param)


async def test_released_without_a_client_it_is_closed(rig: EndpointRig) -> None:
    rig.endpoint.release()
    rig.endpoint.release()
    with pytest.raises(FileNotFoundError):
        rig.connect_blind()
    with pytest.raises(BrokenPipeError):
        await rig.stdout.write(b"x")
    assert await rig.stdin.read() == b""


async def test_released_its_client_is_served_to_the_end(rig: EndpointRig) -> None:
    client = await rig.connect()
    rig.endpoint.release()
    with pytest.raises(FileNotFoundError):
        rig.connect_blind()
    await client.send(b"in")
    assert await rig.stdin.read() == b"in"
    data = random.Random(1).randbytes(1 << 20)
    reading = asyncio.create_task(client.read_to_end())
    await rig.stdout.write(data)
    rig.stdout.close()
    assert await reading == data
    await rig.vacant()
    assert rig.drained == 1
    assert await rig.stdin.read() == b""


async def test_released_a_client_that_leaves_closes_it(rig: EndpointRig) -> None:
    client = await rig.connect()
    rig.endpoint.release()
    client.close()
    await rig.vacant()
    with pytest.raises(BrokenPipeError):
        await rig.stdout.write(b"x")
    assert (rig.abandoned, rig.drained) == (0, 0)


async def test_released_when_its_output_was_at_its_end_there_is_nothing_to_wait_for(rig: EndpointRig) -> None:
    client = await rig.connect()
    rig.stdout.close()
    assert await client.read() == b""
    rig.endpoint.release()
    assert not rig.endpoint.connected
    assert await rig.stdin.read() == b""


async def test_released_while_it_is_out_of_descriptors_it_does_not_listen_again(
    rig: EndpointRig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_RETRY_MS", 5)
    client = await rig.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Listener, "accept", _refuse)
        late = rig.connect_blind()
        await until(lambda: rig.endpoint._retry is not None)
        rig.endpoint.release()
        await asyncio.sleep(0.02)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        await late.send(b"x")
    await rig.stdout.write(b"still")
    assert await client.read() == b"still"


def _refuse(listener: object) -> socket.socket:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_what_its_client_has_taken_shows(rig: EndpointRig) -> None:
    assert rig.endpoint.progress() == (0, 0)
    client = await rig.connect()
    await rig.stdout.flood()
    before = rig.endpoint.progress()
    assert before[0] > 0
    assert rig.endpoint.progress() == before
    await client.read_exactly(before[0] // 4)
    assert rig.endpoint.progress() != before


async def test_clients_are_told_of(rig: EndpointRig) -> None:
    for number in range(2):
        client = await rig.connect()
        assert rig.changes == 2 * number + 1
        client.close()
        await rig.vacant()
        assert rig.changes == 2 * number + 2


PATTERN = bytes(range(256)) * 1024


class Rig:
    """A pipe relayed to a socket: we hold the other ends."""

    def __init__(self, move: Move) -> None:
        self.source, self.feed = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
        self.move = move
        self.ended: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        self.relay = self.new_relay()

    def new_relay(self) -> Relay:
        return Relay(self.source, self.ours.fileno(), self.source, self.move, self.ended.set_result)

    def close_feed(self) -> None:
        if self.feed >= 0:
            os.close(self.feed)
            self.feed = -1

    def close(self) -> None:
        self.relay.cancel()
        self.close_feed()
        os.close(self.source)
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=["splice", "copy"])
async def relayed(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(splice.splice if request.param == "splice" else Copy())
    try:
        yield made
    finally:
        made.close()


async def test_the_last_bytes_reach_a_slow_reader_while_the_writer_stays(relayed: Rig) -> None:
    """What a full target left behind must not wait for more from the source."""
    loop = asyncio.get_running_loop()
    data = hashlib.shake_256(b"x").digest(400_000)
    view = memoryview(data)
    relayed.relay.start()
    received = bytearray()
    async with asyncio.timeout(10):
        while view:
            try:
                view = view[os.write(relayed.feed, view) :]
            except BlockingIOError:
                received += await loop.sock_recv(relayed.theirs, 3_000)
        while len(received) < len(data):  # the writer stays open and silent
            received += await loop.sock_recv(relayed.theirs, 100_000)
    assert received == data


async def test_a_second_relay_goes_on_where_the_first_was_stopped(relayed: Rig) -> None:
    loop = asyncio.get_running_loop()
    data = random.Random(1).randbytes(900_000)
    fcntl.fcntl(relayed.source, fcntl.F_SETPIPE_SZ, limits.BULK_PIPE_BYTES)
    os.write(relayed.feed, data)
    relayed.relay.start()
    received = bytearray(await loop.sock_recv(relayed.theirs, 100))
    relayed.relay.cancel()
    while True:
        try:
            received += relayed.theirs.recv(1 << 20)
        except BlockingIOError:
            break
    assert len(received) < len(data)
    relayed.relay = relayed.new_relay()
    relayed.relay.start()
    async with asyncio.timeout(10):
        while len(received) < len(data):
            received += await loop.sock_recv(relayed.theirs, 1 << 20)
    assert received == data


async def test_a_reader_that_goes_is_the_error(relayed: Rig) -> None:
    relayed.relay.start()
    relayed.theirs.close()
    os.write(relayed.feed, b"x")
    async with asyncio.timeout(5):
        assert isinstance(await relayed.ended, BrokenPipeError)


class Interrupted(Copy):
    """Moves as another mover does, and then lets something happen before anybody looks."""

    def __init__(self, move: Move, happens: Callable[[], None]) -> None:
        self._move_on = move
        self._happens = happens

    @property
    def is_holding(self) -> bool:
        """As that one says."""
        return is_holding(self._move_on)

    def __call__(self, source: int, target: int) -> int:
        moved = self._move_on(source, target)
        self._happens()
        return moved


@pytest.mark.parametrize("size", [1, limits.PIPE_BYTES])
async def test_a_reader_that_goes_during_a_move_has_left_something_unread(relayed: Rig, size: int) -> None:
    """The kernel returns what it has moved, and nobody hears of the error after that."""

    def it_goes() -> None:
        os.write(relayed.feed, b"and what it does not take any more")
        relayed.theirs.close()
        assert relayed.ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET

    relayed.move = Interrupted(relayed.move, it_goes)
    relayed.relay = relayed.new_relay()
    relayed.relay.start()
    os.write(relayed.feed, b"x" * size)
    async with asyncio.timeout(5):
        assert isinstance(await relayed.ended, ConnectionResetError)


async def test_a_reader_that_goes_with_everything_has_left_nothing(relayed: Rig) -> None:
    """Between a move and what is looked at after it there is time to read."""

    def it_goes() -> None:
        assert relayed.theirs.recv(100) == b"all"
        relayed.theirs.close()

    relayed.move = Interrupted(relayed.move, it_goes)
    relayed.relay = relayed.new_relay()
    relayed.relay.start()
    os.write(relayed.feed, b"all")
    for _ in range(5):
        await asyncio.sleep(0)
    assert relayed.relay.moved == 3
    assert not relayed.ended.done()


async def test_stopped_it_touches_nothing(relayed: Rig) -> None:
    relayed.relay.start()
    relayed.relay.cancel()
    relayed.relay.cancel()
    os.write(relayed.feed, b"x")
    relayed.close_feed()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not relayed.ended.done()
    assert os.read(relayed.source, 10) == b"x"


async def test_only_a_busy_pipe_is_enlarged(relayed: Rig) -> None:
    loop = asyncio.get_running_loop()
    relayed.relay.start()
    os.write(relayed.feed, b"x" * 1000)
    async with asyncio.timeout(5):
        await loop.sock_recv(relayed.theirs, 1000)
        assert fcntl.fcntl(relayed.source, fcntl.F_GETPIPE_SZ) == limits.PIPE_BYTES
        os.write(relayed.feed, PATTERN[: limits.PIPE_BYTES])
        received = 0
        while received < limits.PIPE_BYTES:
            received += len(await loop.sock_recv(relayed.theirs, 1 << 20))
    assert fcntl.fcntl(relayed.source, fcntl.F_GETPIPE_SZ) == limits.BULK_PIPE_BYTES


async def test_a_bulk_stream_gives_the_loop_back() -> None:
    """A source that never runs dry must not keep the loop: at most a burst of moves per turn."""
    calls = 0

    def endless(source: int, target: int) -> int:
        nonlocal calls
        calls += 1
        return limits.RELAY_CHUNK_BYTES

    relayed = Rig(endless)
    try:
        os.write(relayed.feed, b"x")  # stays there, so the source is always readable
        relayed.relay.start()
        most = 0
        for _ in range(20):
            before = calls
            await asyncio.sleep(0)
            most = max(most, calls - before)
        assert 0 < most <= limits.RELAY_BURST
    finally:
        relayed.close()
