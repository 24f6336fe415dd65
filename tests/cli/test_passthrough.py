"""Our own streams towards those of a process."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from fastclaw.cli.passthrough import feed_stdin, own_streams, pass_on
from fastclaw.errors import IoError

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.client import RemoteProcess


BOUND = 8 << 20
"""More than the kernel holds for one socket."""


class Reader:
    """The process's side of its stdin.

    Attributes:
        gate: it takes nothing while this is cleared.
    """

    def __init__(self, takes: int | None = None) -> None:
        self.got: list[bytes] = []
        self.ended = False
        self.gate = asyncio.Event()
        self.gate.set()
        self._takes = takes

    async def write(self, data: bytes) -> None:
        await self.gate.wait()
        if self._takes is not None and len(self.got) >= self._takes:
            raise IoError("it reads no more")
        self.got.append(data)

    async def write_eof(self) -> None:
        self.ended = True


def as_process(reader: Reader) -> RemoteProcess:
    return cast("RemoteProcess", reader)


async def test_all_of_a_pipe_and_then_its_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    reader = Reader()
    feeding = asyncio.create_task(feed_stdin(as_process(reader), reading))
    os.write(writing, b"one")
    os.close(writing)
    await asyncio.wait_for(feeding, 5)
    os.close(reading)
    assert (reader.got, reader.ended) == ([b"one"], True)


async def test_a_file_is_read_chunk_by_chunk(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "f").write_bytes(data)
    reader = Reader()
    with (tmp_path / "f").open("rb") as file:
        await asyncio.wait_for(feed_stdin(as_process(reader), file.fileno()), 5)
    assert (b"".join(reader.got), reader.ended) == (data, True)
    assert len(reader.got) > 1


async def test_what_the_process_does_not_take_stays_in_the_pipe() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        reader = Reader()
        reader.gate.clear()
        feeding = asyncio.create_task(feed_stdin(as_process(reader), theirs.fileno()))
        sent = 0
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while sent < BOUND:
                    await loop.sock_sendall(ours, bytes(4096))
                    sent += 4096
        assert sent < BOUND, "somebody buffers without bound"
        feeding.cancel()
        await asyncio.wait([feeding])


async def test_a_process_that_reads_no_more_is_no_error() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one")
    reader = Reader(takes=0)
    await asyncio.wait_for(feed_stdin(as_process(reader), reading), 5)
    assert not reader.ended
    os.close(reading)
    os.close(writing)


class Chunks:
    """The process's side of an output."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = [*chunks, b""]

    async def read(self) -> bytes:
        return self._chunks.pop(0)


async def test_all_output_and_then_no_more() -> None:
    reading, writing = os.pipe()
    left: list[int] = []
    await pass_on(Chunks(b"one ", b"two").read, writing, lambda _: left.append(1))
    os.close(writing)
    assert (os.read(reading, 100), os.read(reading, 100), left) == (b"one two", b"", [])
    os.close(reading)


async def test_a_reader_that_left_is_told_once_and_the_rest_is_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    left: list[int] = []
    await pass_on(Chunks(b"one", b"two", b"three").read, writing, lambda _: left.append(1))
    os.close(writing)
    assert left == [1]


async def test_a_reader_that_is_slow_holds_the_process() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    asked = 0

    async def read() -> bytes:
        nonlocal asked
        asked += 1
        return bytes(1 << 16) if asked < 20 else b""

    passing = asyncio.create_task(pass_on(read, writing, lambda _: None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asked <= 3
    total = 0
    async with asyncio.timeout(5):
        while total < 19 << 16:
            with suppress(BlockingIOError):
                total += len(os.read(reading, 1 << 20))
            await asyncio.sleep(0)
        await passing
    os.close(writing)
    assert (total, os.read(reading, 1)) == (19 << 16, b"")
    os.close(reading)


def test_our_streams_are_given_back_as_they_were() -> None:
    before = [os.get_blocking(fd) for fd in (0, 1, 2)]
    with own_streams() as streams:
        assert len(set(streams)) == 3
    assert [os.get_blocking(fd) for fd in (0, 1, 2)] == before
