"""The two ends of an HTTP conversation, over socket pairs: what each reads, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, closing
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import h11
import pytest

from fastclaw.linux.poller import Poller
from fastclaw.network.egress.http_peer import Client, Upstream, UpstreamFailed
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.socket_io import IdleTimeout, SocketReader
from fastclaw.network.egress.targets import Rejected
from tests.network.egress.rig import listening, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = request("GET http://a/ HTTP/1.1\nHost: a")
POST = request("POST http://a/ HTTP/1.1\nHost: a\nContent-Length: 4")
ANSWER = h11.Response(status_code=200, headers=[("Content-Length", "2")])


class Budget:
    """Counts, and says no after `most` bytes."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.left = most
        self.moved = {"sent": 0, "received": 0}

    def sent(self, count: int) -> bool:
        return self._spend("sent", count)

    def received(self, count: int) -> bool:
        return self._spend("received", count)

    def _spend(self, way: str, count: int) -> bool:
        self.moved[way] += count
        self.left -= count
        return self.left >= 0


@asynccontextmanager
async def a_client(early: bytes = b"") -> AsyncIterator[tuple[Client, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(Poller()) as poller:
        ours.setblocking(False)
        async with asyncio.timeout(20) as alarm:
            yield Client(ours, IdleTimeout(alarm, 20), SocketReader(poller), early), theirs


@asynccontextmanager
async def an_upstream(budget: Budget | None = None) -> AsyncIterator[tuple[Upstream, socket.socket]]:
    with listening() as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        ours.setblocking(False)
        with theirs, closing(Poller()) as poller:
            async with asyncio.timeout(20) as alarm:
                yield Upstream(ours, IdleTimeout(alarm, 20), SocketReader(poller), budget or Budget()), theirs


async def ask(upstream: Upstream) -> None:
    await upstream.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    await upstream.send(h11.EndOfMessage())


# --- a client ---


async def test_requests_one_after_the_other_with_what_came_too_early() -> None:
    async with a_client() as (client, theirs):
        theirs.sendall(POST + b"body" + GET)
        first = await client.request()
        assert first is not None
        assert first.method == b"POST"
        assert not client.goes_on()
        assert bytes((await client.next()).data) == b"body"
        assert isinstance(await client.next(), h11.EndOfMessage)
        for event in (ANSWER, h11.Data(data=b"ok"), h11.EndOfMessage()):
            assert client.is_unanswered == (event is ANSWER)
            await client.send(event)
        assert client.goes_on()
        second = await client.request()
        assert second is not None
        assert second.method == b"GET"
        theirs.close()


async def test_a_client_that_has_nothing_to_say_and_one_that_breaks_off() -> None:
    async with a_client() as (client, theirs):
        theirs.close()
        assert await client.request() is None
    async with a_client() as (client, theirs):
        theirs.sendall(GET[:10])
        theirs.close()
        with pytest.raises(Rejected, match="in the middle"):
            await client.request()
        assert client.has_begun


async def test_what_was_read_before_comes_first() -> None:
    async with a_client(GET[:20]) as (client, theirs):
        theirs.sendall(GET[20:])
        found = await client.request()
        assert found is not None
        assert found.target == b"http://a/"


async def test_an_error_does_not_quote_the_client() -> None:
    async with a_client() as (client, theirs):
        theirs.sendall(request("GET http://a/ HTTP/1.1\nHost: a\nAuthorization : hunter2"))
        with pytest.raises(Rejected) as rejected:
            await client.request()
        assert "hunter2" not in rejected.value.text


async def test_an_answer_that_h11_does_not_write_is_the_servers_failure() -> None:
    async with a_client() as (client, theirs):
        theirs.sendall(GET)
        await client.request()
        await client.next()
        await client.send(ANSWER)
        with pytest.raises(UpstreamFailed):
            await client.send(h11.Data(data=b"more than two"))


@pytest.mark.parametrize(("method", "body"), [("GET", b"no\n"), ("HEAD", b"")])
async def test_a_refusal_fits_the_request(method: str, body: bytes) -> None:
    async with a_client() as (client, theirs):
        theirs.sendall(request(f"{method} http://a/ HTTP/1.1\nHost: a"))
        await client.request()
        await client.refuse(Refused("too_fast", "no"))
        assert theirs.recv(1000).partition(b"\r\n\r\n")[2] == body


# --- a server ---


async def test_a_server_is_kept_while_it_waits() -> None:
    budget = Budget()
    async with an_upstream(budget) as (upstream, theirs):
        await ask(upstream)
        assert upstream.idle_at() is None
        sent = theirs.recv(1000)
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert (await upstream.next()).status_code == 200
        assert bytes((await upstream.next()).data) == b"ok"
        assert isinstance(await upstream.next(), h11.EndOfMessage)
        assert (upstream.has_spoken, upstream.has_served) == (True, False)
        upstream.finish()
        assert (upstream.has_spoken, upstream.has_served) == (False, True)
        assert upstream.idle_at() == IPv4Address("127.0.0.1")
        assert budget.moved == {"sent": len(sent), "received": 40}
        await ask(upstream)


@pytest.mark.parametrize("after", [b"", b"unasked"])
async def test_a_server_that_closed_or_speaks_unasked_is_not_kept(after: bytes) -> None:
    async with an_upstream() as (upstream, theirs):
        await ask(upstream)
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await upstream.next()
        await upstream.next()
        upstream.finish()
        assert upstream.idle_at() is not None
        theirs.sendall(after)
        theirs.close()
        await _readable(upstream.sock)
        assert upstream.idle_at() is None


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    await ready.wait()
    loop.remove_reader(sock)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore",
    ],
)
async def test_a_server_that_will_close_or_said_too_much_is_not_kept(answer: bytes) -> None:
    async with an_upstream() as (upstream, theirs):
        await ask(upstream)
        theirs.sendall(answer)
        await upstream.next()
        await upstream.next()
        upstream.finish()
        assert upstream.idle_at() is None


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"nonsense\r\n\r\n", b"HTTP/1.1 099 X\r\n\r\n"]
)
async def test_a_server_that_speaks_no_http(answer: bytes) -> None:
    async with an_upstream() as (upstream, theirs):
        await ask(upstream)
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(UpstreamFailed) as failed:
            await upstream.next()
        assert failed.value.reason == "unreachable"


async def test_a_server_that_resets() -> None:
    async with an_upstream() as (upstream, theirs):
        await ask(upstream)
        theirs.close()  # with the request unread: a reset
        with pytest.raises(UpstreamFailed):
            await upstream.next()


async def test_a_server_that_resets_in_the_middle_of_a_body() -> None:
    async with an_upstream() as (upstream, theirs):
        await upstream.send(h11.Request(method="PUT", target="/", headers=[("Host", "a"), ("Content-Length", "2")]))
        theirs.close()
        await _readable(upstream.sock)
        with pytest.raises(UpstreamFailed):  # the second at the latest: the error of a socket is told once
            await _send_twice(upstream)


async def _send_twice(upstream: Upstream) -> None:
    await upstream.send(h11.Data(data=b"a"))
    await upstream.send(h11.Data(data=b"b"))


async def _ask_and_hear(upstream: Upstream) -> None:
    await ask(upstream)
    await upstream.next()


@pytest.mark.parametrize("most", [10, 60])
async def test_the_budget_ends_both_ways(most: int) -> None:
    async with an_upstream(Budget(most)) as (upstream, theirs):
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n")
        with pytest.raises(Rejected) as rejected:
            await _ask_and_hear(upstream)
        assert rejected.value.reason == "too_many_bytes"
