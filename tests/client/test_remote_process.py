"""One socket, both directions on their own, on real sockets; and how long a stream is read after its command's exit."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.client.remote_process import Channel, DrainedStream, StreamEnds
from fastclaw.errors import InvalidState, IoError, MethodNotFound
from tests.waiting import turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


def _pair() -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Channel(ours), theirs


async def test_reads_wait_and_end() -> None:
    channel, peer = _pair()
    reading = asyncio.ensure_future(channel.read())
    await asyncio.sleep(0)
    peer.send(b"hello")
    assert await reading == b"hello"
    peer.close()
    assert [await channel.read(), await channel.read()] == [b"", b""]
    channel.close()


async def test_a_large_write_waits_for_its_reader() -> None:
    channel, peer = _pair()
    data = bytes(range(256)) * 16_384
    writing = asyncio.ensure_future(channel.write(data))
    got = await asyncio.to_thread(_read_all, peer, len(data))
    await writing
    assert got == data
    channel.close()
    peer.close()


def _read_all(peer: socket.socket, count: int) -> bytes:
    return peer.recv(count, socket.MSG_WAITALL)


async def test_half_close_lets_output_flow_on() -> None:
    channel, peer = _pair()
    channel.write_eof()
    assert peer.recv(1) == b""
    peer.send(b"still here")
    assert await channel.read() == b"still here"
    channel.close()
    peer.close()


async def test_a_failed_write_loses_no_unread_output() -> None:
    channel, peer = _pair()
    peer.send(b"last words")
    peer.close()
    with pytest.raises(IoError, match="no longer reads") as caught:
        await channel.write(b"x")
    assert isinstance(caught.value.data["errno"], int)
    assert await channel.read() == b"last words"
    assert await channel.read() == b""
    channel.close()


async def test_input_that_was_not_read_does_not_hide_the_output() -> None:
    channel, peer = _pair()
    await channel.write(b"nobody reads this")
    peer.send(b"last words")
    # The kernel answers this close with ECONNRESET once the output is read.
    peer.close()
    assert await channel.read() == b"last words"
    assert await channel.read() == b""
    channel.close()


async def test_closing_wakes_reader_and_writer() -> None:
    channel, peer = _pair()
    reading = asyncio.ensure_future(channel.read())
    writing = asyncio.ensure_future(channel.write(bytes(8 * limits.MIB)))
    await asyncio.sleep(0)
    channel.close()
    channel.close()
    for waiting in (reading, writing):
        with pytest.raises(IoError, match="closed"):
            await waiting
    with pytest.raises(IoError, match="closed"):
        channel.write_eof()
    peer.close()


async def test_one_reader_and_one_writer_at_a_time() -> None:
    channel, peer = _pair()
    reading = asyncio.ensure_future(channel.read())
    await asyncio.sleep(0)
    with pytest.raises(InvalidState, match="another task reads"):
        await channel.read()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    peer.send(b"x")
    assert await channel.read() == b"x"
    channel.close()
    peer.close()


async def test_connecting_to_nobody(tmp_path: Path) -> None:
    with pytest.raises(IoError, match="cannot connect"):
        await Channel.connect(str(tmp_path / "none"))


async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first = await Channel.connect(path)
        second = asyncio.ensure_future(Channel.connect(path))
        await turns()
        assert not second.done()
        listener.accept()[0].close()
        (await second).close()
        first.close()


async def test_a_backlog_that_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_CONNECT_MS", 20)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first = await Channel.connect(path)
        with pytest.raises(IoError, match="cannot connect"):
            await Channel.connect(path)
        first.close()


# --- after the exit ---


PATIENCE_S = 20.0


class Source:
    """A stream that gives what it is told, and then waits."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)
        self.more = asyncio.Event()

    async def read(self) -> bytes:
        while not self.chunks:
            self.more.clear()
            await self.more.wait()
        return self.chunks.pop(0)

    def give(self, *chunks: bytes) -> None:
        self.chunks += chunks
        self.more.set()


async def rest_of(read: Callable[[], Awaitable[bytes]]) -> bytes:
    got = b""
    async with asyncio.timeout(10):
        while chunk := await read():
            got += chunk
    return got


async def test_before_the_exit_nothing_but_its_end_ends_it() -> None:
    source = Source(b"a")
    reading = asyncio.ensure_future(rest_of(DrainedStream(source.read, 0.0).read))
    await turns()
    assert not reading.done()
    source.give(b"b", b"")
    assert await reading == b"ab"


async def test_after_the_exit_it_ends_when_the_time_is_over() -> None:
    for is_reading in (False, True):
        source = Source()
        stream = DrainedStream(source.read, 0.05)
        reading = asyncio.ensure_future(rest_of(stream.read))
        if is_reading:
            await turns()
        stream.on_exit()
        source.give(b"late")
        assert await reading == b"late"


async def test_a_slow_reader_gets_all_that_was_there() -> None:
    source = Source(*[b"x"] * 20)
    stream = DrainedStream(source.read, 0.02)
    stream.on_exit()
    got = b""
    while chunk := await stream.read():
        got += chunk
        await asyncio.sleep(0.005)  # a consumer's own time does not count
    assert got == b"x" * 20


async def test_somebody_who_writes_now_and_then_does_not_hold_it_open() -> None:
    source = Source()
    stream = DrainedStream(source.read, 0.1)
    stream.on_exit()

    async def write() -> None:
        while True:
            source.give(b"x")
            await asyncio.sleep(0.01)

    writing = asyncio.ensure_future(write())
    assert len(await rest_of(stream.read)) < 100
    writing.cancel()


async def test_somebody_who_writes_without_a_pause_does_neither() -> None:
    class Flood:
        async def read(self) -> bytes:
            return bytes(64 * limits.KIB)

    stream = DrainedStream(Flood().read, PATIENCE_S)
    stream.on_exit()
    assert len(await rest_of(stream.read)) == limits.CLIENT_DRAIN_BYTES


async def test_the_exit_ends_all_streams() -> None:
    exited = asyncio.Event()

    async def wait(timeout_ms: int | None) -> object:
        return await exited.wait()

    ending = StreamEnds(wait, drain_ms=10)
    readings = [asyncio.ensure_future(rest_of(ending.of(Source().read))) for _ in range(2)]
    watching = asyncio.ensure_future(ending.watch())
    await turns()
    assert not any(reading.done() for reading in readings)
    exited.set()
    assert await asyncio.gather(*readings) == [b"", b""]
    await watching
    await ending.confirm()


async def test_a_runtime_that_cannot_tell_is_alive_all_the_same() -> None:
    async def wait(timeout_ms: int | None) -> object:
        raise MethodNotFound("no wait")

    ending = StreamEnds(wait, drain_ms=0)
    reading = asyncio.ensure_future(rest_of(ending.of(Source().read)))
    await ending.watch()
    await ending.confirm()
    await turns()
    assert not reading.done()
    reading.cancel()


async def test_a_runtime_that_is_gone_is_no_end_of_a_stream() -> None:
    async def wait(timeout_ms: int | None) -> object:
        raise IoError("gone", "runtime_exited")

    for call in (StreamEnds(wait).watch, StreamEnds(wait).confirm):
        with pytest.raises(IoError):
            await call()
