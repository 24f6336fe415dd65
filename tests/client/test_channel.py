"""One socket: both directions on their own, on real sockets."""

import asyncio
import socket
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.client.channel import Channel
from fastclaw.errors import InvalidState, IoError


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
        await asyncio.sleep(0.02)
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
