"""The client, against scripted servers on real sockets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from itertools import chain, repeat
from typing import TYPE_CHECKING

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.engine.rest_lane.http_client import HttpClient, Upgraded, _Exchange, _is_quiet, parse_url
from fastclaw.errors import ProtocolError
from fastclaw.limits import ENGINE_IDLE_CONNECTIONS, HTTP_READ_BYTES, MAX_HTTP_BODY_BYTES, MAX_HTTP_HEADER_BYTES
from tests.engine.rest_lane.rest_rig import UPGRADED, FakeEngine, fake_engine
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.engine.rest_lane.rest_rig import Request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def serving(
    directory: Path, *wires: bytes | None, close: bool = False
) -> AsyncIterator[tuple[FakeEngine, HttpClient]]:
    """A server with these answers, the last of them for all further requests, and a client of it.

    None, and `close` after each answer, ends the connection.
    """
    answers = chain(wires, repeat(wires[-1]))

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        wire = next(answers)
        writer.write(wire or b"")
        if wire is None or close:
            await writer.drain()
            raise EOFError

    async with fake_engine(directory, serve) as engine:
        client = HttpClient(engine.url)
        yield engine, client
        client.close()


async def test_a_connection_is_used_again(short_dir: Path) -> None:
    async with serving(short_dir, OK) as (engine, client):
        for _ in range(5):
            assert (await client.request("GET", "/", None, 1000))[:2] == (200, b"ok")
        assert (engine.connections, client.idle()) == (1, 1)
        assert repr(client).endswith("engine.sock open idle=1>")


async def test_connections_kept_are_bounded(short_dir: Path) -> None:
    count = ENGINE_IDLE_CONNECTIONS + 4
    together = asyncio.Barrier(count)

    async def answer_together(request: Request, writer: asyncio.StreamWriter) -> None:
        await together.wait()
        writer.write(OK)

    async with fake_engine(short_dir, answer_together) as engine:
        client = HttpClient(engine.url)
        await asyncio.gather(*(client.request("GET", "/", None, 5000) for _ in range(count)))
        assert client.idle() == ENGINE_IDLE_CONNECTIONS
        client.close()


async def test_no_answer_ends_at_the_deadline_and_the_connection_is_not_kept(short_dir: Path) -> None:
    async with serving(short_dir, b"") as (_, client):
        with pytest.raises(TimeoutError):
            await client.request("GET", "/", None, 50)
        with pytest.raises(TimeoutError):
            await client.upgrade("POST", "/", b"{}", 50)
        assert client.idle() == 0


async def test_a_cancelled_request_closes_its_connection(short_dir: Path) -> None:
    """One that is left open fails the test: descriptors are weighed (tests/conftest.py)."""
    async with serving(short_dir, b"") as (engine, client):
        task = asyncio.ensure_future(client.request("GET", "/", None, 5000))
        await until(lambda: engine.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
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
async def test_garbage_a_cut_answer_and_a_large_one_are_protocol_errors(short_dir: Path, wire: bytes) -> None:
    async with serving(short_dir, wire, close=True) as (_, client):
        with pytest.raises(ProtocolError):
            await client.request("POST", "/", b"{}", 5000)
        with pytest.raises(ProtocolError):
            await client.upgrade("POST", "/", b"{}", 5000)
        assert client.idle() == 0


async def test_a_switch_that_was_not_asked_for_is_a_protocol_error(short_dir: Path) -> None:
    async with serving(short_dir, UPGRADED) as (_, client):
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
async def test_a_path_that_would_break_the_request_line_is_refused(short_dir: Path, path: str) -> None:
    async with serving(short_dir, OK) as (engine, client):
        with pytest.raises((h11.LocalProtocolError, ValueError)):
            await client.request("GET", path, None, 1000)
        assert engine.connections == 0


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\n",
    ],
    ids=["it is closed, it says", "the end is the close", "more came"],
)
async def test_a_connection_that_is_not_fit_for_another_request_is_not_kept(short_dir: Path, wire: bytes) -> None:
    async with serving(short_dir, wire, close=True) as (_, client):
        assert (await client.request("GET", "/", None, 1000))[:2] == (200, b"ok")
        assert client.idle() == 0


async def test_no_more_is_read_than_is_enough(short_dir: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * MAX_HTTP_BODY_BYTES)
    async with serving(short_dir, head + bytes(100_000)) as (_, client):
        answer = await client.request("GET", "/", None, 1000, enough=70_000)
        assert 70_000 <= len(answer.body) <= 100_000
        assert client.idle() == 0


async def test_a_kept_connection_that_dies_is_replaced_for_get_only(short_dir: Path) -> None:
    async with serving(short_dir, OK, None, OK, None) as (engine, client):
        await client.request("GET", "/", None, 1000)
        assert (await client.request("GET", "/", None, 1000)).body == b"ok"
        assert engine.connections == 2
        with pytest.raises(ConnectionError):
            await client.request("POST", "/", b"{}", 1000)
        assert engine.connections == 2


async def test_a_get_is_not_tried_a_third_time(short_dir: Path) -> None:
    async with serving(short_dir, OK, None) as (engine, client):
        await client.request("GET", "/", None, 1000)
        with pytest.raises(ConnectionError):
            await client.request("GET", "/", None, 1000)
        assert engine.connections == 2


async def test_a_kept_connection_that_is_known_to_be_closed_serves_no_post(short_dir: Path) -> None:
    async with serving(short_dir, OK, close=True) as (engine, client):
        await client.request("GET", "/", None, 1000)
        await until(lambda: not _is_quiet(client._idle[0]))
        assert (await client.request("POST", "/", b"{}", 1000)).body == b"ok"
        assert engine.connections == 2


def test_podman_wants_these_words_for_a_stream() -> None:
    assert b"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" in _Exchange("POST", "/", b"{}", upgrade=True)._request


@pytest.mark.parametrize("line", [b"101 UPGRADED", b"200 OK"])
@pytest.mark.parametrize("cut", [0, 9, 30, -5, -2, None])
async def test_the_first_bytes_of_a_stream_may_come_with_the_header(
    short_dir: Path, line: bytes, cut: int | None
) -> None:
    wire = b"HTTP/1.1 " + line + b"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nfirst"

    async def upgrade(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(wire[:cut])
        await asyncio.sleep(0)
        writer.write(b"" if cut is None else wire[cut:])
        await writer.drain()
        raise EOFError

    async with fake_engine(short_dir, upgrade) as engine:
        upgraded = await HttpClient(engine.url).upgrade("POST", "/", b"{}", 1000)
        assert isinstance(upgraded, Upgraded)
        with upgraded.sock:
            stream = upgraded.leftover
            while part := await asyncio.get_running_loop().sock_recv(upgraded.sock, 100):
                stream += part
            assert stream == b"first"


async def test_a_refused_upgrade_is_an_answer(short_dir: Path) -> None:
    async with serving(short_dir, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}") as (_, client):
        assert (await client.upgrade("POST", "/", b"{}", 1000))[:2] == (404, b"{}")


async def test_a_large_request_and_answer_cross_whole(short_dir: Path) -> None:
    body = bytes(range(256)) * (1 << 14)
    wire = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with serving(short_dir, wire) as (engine, client):
        assert (await client.request("POST", "/", body, 5000)).body == body
        assert engine.asked[0].body == body


async def test_no_socket_is_an_os_error() -> None:
    client = HttpClient("unix:///nonexistent/engine.sock")
    with pytest.raises(FileNotFoundError):
        await client.request("GET", "/", None, 1000)


@pytest.mark.parametrize("url", ["", "unix:", "unix://host/path", "http://x:1", "tcp://x", "tcp://:1", "ssh://h/p"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="engine address"):
        parse_url(url)


async def test_tcp_works_too(short_dir: Path) -> None:
    async with serving(short_dir, OK) as (engine, _):
        listening = await asyncio.start_server(engine.accept, "127.0.0.1", 0)
        client = HttpClient(f"tcp://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        assert (await client.request("GET", "/", None, 1000)).body == b"ok"
        client.close()
        listening.close()
        await listening.wait_closed()
