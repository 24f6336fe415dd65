"""The client, against scripted servers on real sockets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.errors import ProtocolError
from fastclaw.limits import ENGINE_IDLE_CONNECTIONS, HTTP_READ_BYTES, MAX_HTTP_BODY_BYTES, MAX_HTTP_HEADER_BYTES
from fastclaw.podman.rest_lane.http_client import HttpClient, Response, Upgraded, _Exchange, parse_url

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
async def serving(script: Script) -> AsyncIterator[tuple[Server, HttpClient]]:
    """A server with this script, and a client of it."""
    server = Server(script)
    with TemporaryDirectory(prefix="fc", dir="/tmp") as name:
        path = Path(name) / "s"
        listening = await asyncio.start_unix_server(server.accept, path)
        client = HttpClient(f"unix://{path}")
        try:
            yield server, client
        finally:
            client.close()
            listening.close()
            await server.end()
            await listening.wait_closed()


async def answer_all(peer: Peer) -> None:
    """A well-behaved server."""
    while await peer.request():
        peer.say(OK)


async def test_a_connection_is_used_again() -> None:
    async with serving(answer_all) as (server, client):
        for _ in range(5):
            assert await client.request("GET", "/", None, 1000) == Response(200, b"ok")
        assert (server.connections, client.idle()) == (1, 1)
        assert repr(client).endswith("s open idle=1>")


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

    async with serving(answer_together) as (_, client):
        await asyncio.gather(*(client.request("GET", "/", None, 5000) for _ in range(ENGINE_IDLE_CONNECTIONS + 4)))
        assert client.idle() == ENGINE_IDLE_CONNECTIONS


async def test_no_answer_ends_at_the_deadline_and_the_connection_is_not_kept() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.request()

    async with serving(silent) as (_, client):
        with pytest.raises(TimeoutError):
            await client.request("GET", "/", None, 50)
        with pytest.raises(TimeoutError):
            await client.upgrade("POST", "/", b"{}", 50)
        assert client.idle() == 0


async def test_a_cancelled_request_closes_its_connection() -> None:
    asked = asyncio.Event()
    gone = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.request()
        asked.set()
        assert await peer.request() == b""
        gone.set()

    async with serving(silent) as (_, client):
        task = asyncio.ensure_future(client.request("GET", "/", None, 5000))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 1)
        assert client.idle() == 0


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_HTTP_BODY_BYTES + 1),
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1" * 5000,
        CHUNKED + b"%x\r\n" % (MAX_HTTP_BODY_BYTES + 1) + bytes(MAX_HTTP_BODY_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * (MAX_HTTP_HEADER_BYTES + HTTP_READ_BYTES),
    ],
    ids=["ssh", "cut head", "cut body", "two lengths", "coding", "length", "size", "size line", "body", "head"],
)
async def test_garbage_a_cut_answer_and_a_large_one_are_protocol_errors(wire: bytes) -> None:
    async def broken(peer: Peer) -> None:
        await peer.request()
        peer.say(wire)

    async with serving(broken) as (_, client):
        with pytest.raises(ProtocolError):
            await client.request("POST", "/", b"{}", 5000)
        with pytest.raises(ProtocolError):
            await client.upgrade("POST", "/", b"{}", 5000)
        assert client.idle() == 0


async def test_a_switch_that_was_not_asked_for_is_a_protocol_error() -> None:
    async def switch(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")

    async with serving(switch) as (_, client):
        with pytest.raises(ProtocolError):
            await client.request("POST", "/", b"{}", 1000)


@given(st.binary(max_size=200), st.booleans(), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", CHUNKED]))
async def test_no_answer_makes_anything_but_an_answer_or_a_known_error(data: bytes, upgrade: bool, head: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(head + data)
        theirs.shutdown(socket.SHUT_WR)
        with suppress(ProtocolError, ConnectionError):
            await _Exchange("GET", "/", None, upgrade=upgrade).run(ours)


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/ä", "/a\0"])
async def test_a_path_that_would_break_the_request_line_is_refused(path: str) -> None:
    async with serving(answer_all) as (server, client):
        with pytest.raises((h11.LocalProtocolError, ValueError)):
            await client.request("GET", path, None, 1000)
        assert server.connections == 0


@pytest.mark.parametrize(
    "wire",
    [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\n\r\nok"],
    ids=["said", "until the close"],
)
async def test_a_connection_that_the_engine_closes_is_not_kept(wire: bytes) -> None:
    async def answer_once(peer: Peer) -> None:
        await peer.request()
        peer.say(wire)

    async with serving(answer_once) as (_, client):
        assert await client.request("GET", "/", None, 1000) == Response(200, b"ok")
        assert client.idle() == 0


async def test_no_more_is_read_than_is_enough() -> None:
    async def answer_for_ever(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * MAX_HTTP_BODY_BYTES) + bytes(100_000))
        assert await peer.request() == b""

    async with serving(answer_for_ever) as (_, client):
        answer = await client.request("GET", "/", None, 1000, enough=70_000)
        assert 70_000 <= len(answer.body) <= 100_000
        assert client.idle() == 0


async def drop_the_second_request(peer: Peer) -> None:
    """Keep the connection alive, but close it instead of answering again."""
    if await peer.request():
        peer.say(OK)
        await peer.request()


async def test_a_kept_connection_that_dies_is_replaced_for_get_only() -> None:
    async with serving(drop_the_second_request) as (server, client):
        await client.request("GET", "/", None, 1000)
        assert (await client.request("GET", "/", None, 1000)).body == b"ok"
        assert server.connections == 2
        with pytest.raises(ConnectionError):
            await client.request("POST", "/", b"{}", 1000)
        assert server.connections == 2


async def test_a_get_is_not_tried_a_third_time() -> None:
    async def answer_once_then_die(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            peer.say(OK)
            await peer.request()

    async with serving(answer_once_then_die) as (server, client):
        await client.request("GET", "/", None, 1000)
        with pytest.raises(ConnectionError):
            await client.request("GET", "/", None, 1000)
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

    async with serving(answer_once) as (server, client):
        await client.request("GET", "/", None, 1000)
        await closed.wait()
        assert (await client.request("POST", "/", b"{}", 1000)).body == b"ok"
        assert server.connections == 2


async def test_an_answer_with_bytes_behind_it_ends_the_connection() -> None:
    async def too_much(peer: Peer) -> None:
        await peer.request()
        peer.say(OK + b"HTTP/1.1 200 OK\r\n")
        await peer.request()

    async with serving(too_much) as (_, client):
        assert (await client.request("GET", "/", None, 1000)).body == b"ok"
        assert client.idle() == 0


@pytest.mark.parametrize("line", [b"101 UPGRADED", b"200 OK"])
@pytest.mark.parametrize("cut", [0, 9, 30, -5, -2, None])
async def test_the_first_bytes_of_a_stream_may_come_with_the_header(line: bytes, cut: int | None) -> None:
    wire = b"HTTP/1.1 " + line + b"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nfirst"

    async def upgrade(peer: Peer) -> None:
        assert b"Connection: Upgrade" in await peer.request()
        peer.say(wire[:cut])
        await asyncio.sleep(0)
        peer.say(b"" if cut is None else wire[cut:])

    async with serving(upgrade) as (_, client):
        upgraded = await client.upgrade("POST", "/", b"{}", 1000)
        assert isinstance(upgraded, Upgraded)
        with upgraded.sock:
            stream = upgraded.leftover
            while part := await asyncio.get_running_loop().sock_recv(upgraded.sock, 100):
                stream += part
            assert stream == b"first"


async def test_a_refused_upgrade_is_an_answer() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
        await peer.request()

    async with serving(refuse) as (_, client):
        answer = await client.upgrade("POST", "/", b"{}", 1000)
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
    async with serving(echo_size) as (_, client):
        assert (await client.request("POST", "/", body, 5000)).body == body


async def test_no_socket_is_an_os_error() -> None:
    client = HttpClient("unix:///nonexistent/engine.sock")
    with pytest.raises(FileNotFoundError):
        await client.request("GET", "/", None, 1000)


@pytest.mark.parametrize("url", ["", "unix:", "unix://host/path", "http://x:1", "tcp://x", "tcp://:1", "ssh://h/p"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="engine address"):
        parse_url(url)


async def test_tcp_works_too() -> None:
    server = Server(answer_all)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    client = HttpClient(f"tcp://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    assert (await client.request("GET", "/", None, 1000)).body == b"ok"
    client.close()
    listening.close()
    await server.end()
    await listening.wait_closed()
