"""Both ends of a pipe, on real pipes."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.runtimes.memory_pipes import PipeSource, PipeWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = limits.MEMORY_WRITER_BYTES + 1


@contextmanager
def a_source() -> Iterator[tuple[PipeSource, int]]:
    """A source, and the end to write to; both may be closed already at the end."""
    theirs, ours = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    source = PipeSource(theirs)
    with os.fdopen(ours, "wb", buffering=0, closefd=False):
        yield source, ours
    source.close()
    source.close()


@contextmanager
def a_writer() -> Iterator[tuple[PipeWriter, int]]:
    """A writer, and the end to read from."""
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    writer = PipeWriter(theirs)
    yield writer, ours
    writer.close()
    writer.close()


def fill(writer: PipeWriter) -> None:
    """So much that the pipe is full and the writer holds all it may."""
    writer.write(bytes(limits.PIPE_BYTES))
    writer.write(bytes(FULL))


async def take(fd: int, count: int) -> bytes:
    """So many bytes, read as they come."""
    got = b""
    async with asyncio.timeout(10):
        while len(got) < count:
            try:
                got += os.read(fd, limits.PIPE_BYTES)
            except BlockingIOError:
                await asyncio.sleep(0)
    return got


async def test_what_comes_is_read_to_its_end() -> None:
    with a_source() as (source, theirs):
        os.write(theirs, b"one\ntwo")
        assert await source.reader.readline() == b"one\n"
        os.close(theirs)
        assert await source.reader.read() == b"two"
        assert source.reader.at_eof()
        assert not source.is_closing()


async def test_a_source_that_nobody_reads_stops_and_goes_on() -> None:
    with a_source() as (source, theirs):
        data = bytes(range(256)) * 4096
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while sent < len(data):
                try:
                    sent += os.write(theirs, data[sent : sent + limits.PIPE_BYTES])
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            os.close(theirs)

        pouring = asyncio.create_task(pour())
        done, _ = await asyncio.wait([pouring], timeout=0.05)
        assert not done
        assert 0 < sent < len(data) // 2
        assert await source.reader.read() == data
        await pouring


async def test_a_closed_source_gives_its_descriptor_back_and_ignores_its_reader() -> None:
    with a_source() as (source, theirs):
        source.close()
        assert source.is_closing()
        source.pause_reading()
        source.resume_reading()
        with pytest.raises(BrokenPipeError):
            os.write(theirs, b"x")
        os.close(theirs)


async def test_small_writes_are_in_the_pipe_at_once() -> None:
    with a_writer() as (writer, theirs):
        writer.write(b"a")
        writer.write(b"")
        writer.write(b"b")
        assert os.read(theirs, 10) == b"ab"
        await writer.drain()
        await writer.flush()
        os.close(theirs)


async def test_beyond_its_bound_drain_is_due() -> None:
    with a_writer() as (writer, theirs):
        fill(writer)
        with pytest.raises(BufferError, match="drain"):
            writer.write(b"x")
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        await take(theirs, limits.PIPE_BYTES)
        await draining
        writer.write(b"x")
        flushing = asyncio.create_task(writer.flush())
        assert (await take(theirs, FULL + 1))[-1:] == b"x"
        await flushing
        os.close(theirs)


async def test_large_writes_arrive_whole_and_in_order() -> None:
    with a_writer() as (writer, theirs):
        data = bytes(range(251)) * 8_000
        writer.write(data)
        reading = asyncio.create_task(take(theirs, len(data)))
        await writer.flush()
        assert await reading == data
        os.close(theirs)


async def test_a_reader_that_has_left_shows_at_the_next_write() -> None:
    with a_writer() as (writer, theirs):
        os.close(theirs)
        await writer.flush()
        writer.write(b"lost")
        with pytest.raises(BrokenPipeError):
            writer.write(b"x")
        with pytest.raises(BrokenPipeError):
            await writer.drain()
        with pytest.raises(BrokenPipeError):
            await writer.flush()


@pytest.mark.parametrize("leaver", ["reader", "writer"])
async def test_whoever_leaves_wakes_those_who_wait(leaver: str) -> None:
    with a_writer() as (writer, theirs):
        fill(writer)
        waiting = [asyncio.create_task(writer.drain()), asyncio.create_task(writer.flush())]
        await asyncio.sleep(0)
        if leaver == "reader":
            os.close(theirs)
        else:
            writer.close()
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert [type(result) for result in results] == [BrokenPipeError] * 2
    if leaver == "writer":
        assert len(os.read(theirs, 2 * limits.PIPE_BYTES)) == limits.PIPE_BYTES
        assert os.read(theirs, 1) == b""
        os.close(theirs)
