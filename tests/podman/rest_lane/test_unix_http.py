"""The pool, against scripted servers on real Unix sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ProtocolError
from fastclaw.limits import ENGINE_IDLE_CONNECTIONS
from fastclaw.podman.rest_lane.unix_http import HttpPool, Response, Upgraded, parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Script = Callable[["Peer"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """The server's side of one connection; `number` counts from 1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader, self.writer, self.number = reader, writer, number

    async def request(self) -> bytes:
        """One request's head; b"" at the end."""
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    def say(self, data: bytes) -> None:
        """Answer."""
        self.writer.write(data)


class Server:
    """Counts connections and runs a script for each."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(Peer(reader, writer, self.connections)))
        self._tasks.add(task)

    async def _serve(self, peer: Peer) -> None:
        try:
            await self.script(peer)
        finally:
            peer.writer.close()

    async def end(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[Server, HttpPool]]:
    """A server with this script, and a pool towards it."""
    server = Server(script)
    with TemporaryDirectory(prefix="fc", dir="/tmp") as name:
        path = Path(name) / "s"
        listening = await asyncio.start_unix_server(server.accept, path)
        pool = HttpPool(f"unix://{path}")
        try:
            yield server, pool
        finally:
            pool.close()
            listening.close()
            await server.end()
            await listening.wait_closed()


async def answer_all(peer: Peer) -> None:
    """A well-behaved server."""
    while await peer.request():
        peer.say(OK)


async def test_a_connection_is_used_again() -> None:
    async with serving(answer_all) as (server, pool):
        for _ in range(5):
            assert await pool.request("GET", "/", None, 1000) == Response(200, {b"content-length": b"2"}, b"ok")
        assert (server.connections, pool.idle()) == (1, 1)


async def test_connections_kept_are_bounded() -> None:
    arrived = asyncio.Event()
    waiting = 0

    async def answer_together(peer: Peer) -> None:
        nonlocal waiting
        await peer.request()
        waiting += 1
        if waiting == ENGINE_IDLE_CONNECTIONS + 4:
            arrived.set()
        await arrived.wait()
        peer.say(OK)
        await peer.request()

    async with serving(answer_together) as (_, pool):
        await asyncio.gather(*(pool.request("GET", "/", None, 5000) for _ in range(ENGINE_IDLE_CONNECTIONS + 4)))
        assert pool.idle() == ENGINE_IDLE_CONNECTIONS


async def test_no_answer_ends_at_the_deadline_and_the_connection_is_not_kept() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.request()

    async with serving(silent) as (_, pool):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await pool.request("GET", "/", None, 50)
        with pytest.raises(TimeoutError):
            await pool.upgrade("POST", "/", b"{}", 50)
        assert time.monotonic() - began < 1
        assert pool.idle() == 0


async def test_a_cancelled_request_closes_its_connection() -> None:
    asked = asyncio.Event()
    gone = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.request()
        asked.set()
        assert await peer.request() == b""
        gone.set()

    async with serving(silent) as (_, pool):
        task = asyncio.ensure_future(pool.request("GET", "/", None, 5000))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 1)
        assert pool.idle() == 0


@pytest.mark.parametrize("wire", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_garbage_and_a_cut_answer_are_protocol_errors(wire: bytes) -> None:
    async def broken(peer: Peer) -> None:
        await peer.request()
        peer.say(wire)

    async with serving(broken) as (_, pool):
        with pytest.raises(ProtocolError):
            await pool.request("POST", "/", b"{}", 1000)
        with pytest.raises(ProtocolError):
            await pool.upgrade("POST", "/", b"{}", 1000)
        assert pool.idle() == 0


async def drop_the_second_request(peer: Peer) -> None:
    """Keep the connection alive, but close it instead of answering again."""
    if await peer.request():
        peer.say(OK)
        await peer.request()


async def test_a_kept_connection_that_dies_is_replaced_for_get_only() -> None:
    async with serving(drop_the_second_request) as (server, pool):
        await pool.request("GET", "/", None, 1000)
        assert (await pool.request("GET", "/", None, 1000)).body == b"ok"
        assert server.connections == 2
        with pytest.raises(ConnectionError):
            await pool.request("POST", "/", b"{}", 1000)
        assert server.connections == 2


async def test_a_get_is_not_tried_a_third_time() -> None:
    async def answer_once_then_die(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            peer.say(OK)
            await peer.request()

    async with serving(answer_once_then_die) as (server, pool):
        await pool.request("GET", "/", None, 1000)
        with pytest.raises(ConnectionError):
            await pool.request("GET", "/", None, 1000)
        assert server.connections == 2


async def test_a_kept_connection_that_is_known_to_be_closed_serves_no_post() -> None:
    closed = asyncio.Event()

    async def answer_once(peer: Peer) -> None:
        await peer.request()
        peer.say(OK)
        await peer.writer.drain()
        peer.writer.close()
        await peer.writer.wait_closed()
        closed.set()

    async with serving(answer_once) as (server, pool):
        await pool.request("GET", "/", None, 1000)
        await closed.wait()
        assert (await pool.request("POST", "/", b"{}", 1000)).body == b"ok"
        assert server.connections == 2


async def test_an_answer_with_bytes_behind_it_ends_the_connection() -> None:
    async def too_much(peer: Peer) -> None:
        await peer.request()
        peer.say(OK + b"HTTP/1.1 200 OK\r\n")
        await peer.request()

    async with serving(too_much) as (_, pool):
        assert (await pool.request("GET", "/", None, 1000)).body == b"ok"
        assert pool.idle() == 0


async def test_the_first_bytes_of_a_stream_may_come_with_the_header() -> None:
    async def upgrade(peer: Peer) -> None:
        assert b"Connection: Upgrade" in await peer.request()
        peer.say(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nfirst")
        await peer.request()

    async with serving(upgrade) as (_, pool):
        upgraded = await pool.upgrade("POST", "/", b"{}", 1000)
        assert isinstance(upgraded, Upgraded)
        with upgraded.sock:
            assert upgraded.leftover == b"first"


async def test_a_refused_upgrade_is_an_answer() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
        await peer.request()

    async with serving(refuse) as (_, pool):
        answer = await pool.upgrade("POST", "/", b"{}", 1000)
        assert isinstance(answer, Response)
        assert (answer.status, answer.body) == (404, b"{}")


async def test_a_large_request_and_answer_cross_whole() -> None:
    size = 4 << 20

    async def echo_size(peer: Peer) -> None:
        await peer.request()
        body = await peer.reader.readexactly(size)
        peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, body))
        await peer.request()

    body = bytes(range(256)) * (size // 256)
    async with serving(echo_size) as (_, pool):
        assert (await pool.request("POST", "/", body, 5000)).body == body


async def test_no_socket_is_an_os_error() -> None:
    pool = HttpPool("unix:///nonexistent/engine.sock")
    with pytest.raises(FileNotFoundError):
        await pool.request("GET", "/", None, 1000)


@pytest.mark.parametrize("url", ["", "unix:", "unix://host/path", "http://x:1", "tcp://x", "tcp://:1", "ssh://h/p"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="engine address"):
        parse_url(url)


async def test_tcp_works_too() -> None:
    server = Server(answer_all)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    pool = HttpPool(f"tcp://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    assert (await pool.request("GET", "/", None, 1000)).body == b"ok"
    pool.close()
    listening.close()
    await server.end()
    await listening.wait_closed()
