"""A connection to a process's socket: what comes, what does not, and what comes instead."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fastclaw.bench.recorder import Failed
from fastclaw.bench.streams import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    Connect = Callable[[Serve], Awaitable[Stream]]

DEADLINE_MS = 200


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    """A connection to whoever serves."""
    ends: list[Callable[[], None]] = []

    async def connected(serve: Serve) -> Stream:
        server = await asyncio.start_unix_server(serve, tmp_path / "s")
        stream = await Stream.connect(str(tmp_path / "s"), DEADLINE_MS)
        ends.extend((stream.close, server.close))
        return stream

    yield connected
    for end in ends:
        end()
    await asyncio.sleep(0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As cat, in pieces."""
    while data := await reader.read(5):
        writer.write(data)
        await writer.drain()
    writer.close()


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Other bytes."""
    while data := await reader.read(100):
        writer.write(data.upper())
    writer.close()


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Nothing."""
    writer.close()


async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Nothing, for as long as the client stays."""
    await reader.read()
    writer.close()


async def test_an_echo_in_pieces(connect: Connect) -> None:
    stream = await connect(echo)
    for _ in range(3):
        assert await stream.echo(b"a line of some length\n") > 0


async def test_the_first_byte_and_the_end(connect: Connect) -> None:
    stream = await connect(echo)
    stream.write(b"x" * 100)
    first = await stream.first_byte()
    stream.write_eof()
    assert await stream.end() >= first


@pytest.mark.parametrize(("serve", "reason"), [(shout, "wrong_bytes"), (leave, "stream_ended"), (wait, "no_answer")])
async def test_what_comes_instead_has_a_reason(connect: Connect, serve: Serve, reason: str) -> None:
    stream = await connect(serve)
    with pytest.raises(Failed, match=reason):
        await stream.echo(b"ping\n")


async def test_an_end_that_does_not_come(connect: Connect) -> None:
    stream = await connect(wait)
    with pytest.raises(Failed, match="no_answer"):
        await stream.end()


async def test_no_byte_before_the_end(connect: Connect) -> None:
    stream = await connect(leave)
    with pytest.raises(Failed, match="stream_ended"):
        await stream.first_byte()


@pytest.mark.parametrize("address", ["/nonexistent/socket", "relative\0name", "x" * 300])
async def test_where_nobody_listens(address: str) -> None:
    with pytest.raises(Failed, match="cannot_connect"):
        await Stream.connect(address, DEADLINE_MS)
