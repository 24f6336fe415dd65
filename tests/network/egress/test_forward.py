"""Requests on their way to a server: the two ends, over socket pairs, and all of it through a proxy."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, closing
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import h11
import pytest

from fastclaw.linux.poller import Poller
from fastclaw.network.egress.forward import ClientPeer, ServerFailed, ServerPeer
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.socket_io import IdleTimeout, SocketReader
from tests.network.egress.rig import HERE, Client, Rig, a_proxy, listening, reason_of, request
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


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
async def a_client(early: bytes = b"") -> AsyncIterator[tuple[ClientPeer, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(Poller()) as poller:
        ours.setblocking(False)
        async with asyncio.timeout(20) as alarm:
            yield ClientPeer(ours, IdleTimeout(alarm, 20), SocketReader(poller), early), theirs


@asynccontextmanager
async def an_upstream(budget: Budget | None = None) -> AsyncIterator[tuple[ServerPeer, socket.socket]]:
    with listening() as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        ours.setblocking(False)
        with theirs, closing(Poller()) as poller:
            async with asyncio.timeout(20) as alarm:
                yield ServerPeer(ours, IdleTimeout(alarm, 20), SocketReader(poller), budget or Budget()), theirs


async def ask(upstream: ServerPeer) -> None:
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
        with pytest.raises(Refused, match="in the middle"):
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
        with pytest.raises(Refused) as rejected:
            await client.request()
        assert "hunter2" not in rejected.value.text


async def test_an_answer_that_h11_does_not_write_is_the_servers_failure() -> None:
    async with a_client() as (client, theirs):
        theirs.sendall(GET)
        await client.request()
        await client.next()
        await client.send(ANSWER)
        with pytest.raises(ServerFailed):
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
        upstream.end_answer()
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
        upstream.end_answer()
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
        upstream.end_answer()
        assert upstream.idle_at() is None


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"nonsense\r\n\r\n", b"HTTP/1.1 099 X\r\n\r\n"]
)
async def test_a_server_that_speaks_no_http(answer: bytes) -> None:
    async with an_upstream() as (upstream, theirs):
        await ask(upstream)
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ServerFailed) as failed:
            await upstream.next()
        assert failed.value.reason == "unreachable"


async def test_a_server_that_resets() -> None:
    async with an_upstream() as (upstream, theirs):
        await ask(upstream)
        theirs.close()  # with the request unread: a reset
        with pytest.raises(ServerFailed):
            await upstream.next()


async def test_a_server_that_resets_in_the_middle_of_a_body() -> None:
    async with an_upstream() as (upstream, theirs):
        await upstream.send(h11.Request(method="PUT", target="/", headers=[("Host", "a"), ("Content-Length", "2")]))
        theirs.close()
        await _readable(upstream.sock)
        with pytest.raises(ServerFailed):  # the second at the latest: the error of a socket is told once
            await _send_twice(upstream)


async def _send_twice(upstream: ServerPeer) -> None:
    await upstream.send(h11.Data(data=b"a"))
    await upstream.send(h11.Data(data=b"b"))


async def _ask_and_hear(upstream: ServerPeer) -> None:
    await ask(upstream)
    await upstream.next()


@pytest.mark.parametrize("most", [10, 60])
async def test_the_budget_ends_both_ways(most: int) -> None:
    async with an_upstream(Budget(most)) as (upstream, theirs):
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n")
        assert await reason_of(_ask_and_hear(upstream)) == "too_many_bytes"


async def test_a_request_arrives_as_its_target_and_not_as_its_host_field_says(rig: Rig, client: Client) -> None:
    answer = await client.ask(f"GET {rig.url}/a?b=%20c HTTP/1.1\nHost: elsewhere.test\nAccept: */*\nX-Mine: 1")
    assert answer.status == 200
    [seen] = rig.origin.seen
    assert seen.line == "GET /a?b=%20c HTTP/1.1"
    assert seen.fields == {
        "host": f"{HERE}:{rig.origin.port}",
        "accept": "*/*",
        "x-mine": "1",
        "via": "1.1 fastclaw",
    }
    assert answer.fields["via"] == "1.1 fastclaw"


async def test_fields_of_one_hop_end_here_in_both_directions(rig: Rig, client: Client) -> None:
    hops = "Connection: keep-alive, X-Hop, Accept\nX-Hop: 1\nKeep-Alive: 5\nProxy-Connection: keep-alive\n"
    hops += "Proxy-Authorization: Basic Zm9v\nTE: gzip\nUpgrade: h2c\nAccept: x"
    answer = await client.ask(f"GET {rig.url}/hops HTTP/1.1\nHost: x\n{hops}")
    assert set(rig.origin.seen[0].fields) == {"host", "via"}
    assert answer.body == b"ok"
    assert set(answer.fields) == {"content-length", "x-stays", "via"}


async def test_connections_are_kept_on_both_sides_and_each_request_is_decided(rig: Rig, client: Client) -> None:
    for number in range(5):
        answer = await client.ask(f"POST {rig.url}/{number} HTTP/1.1\nHost: x\nContent-Length: 3", b"abc")
        assert answer.body.endswith(b"\r\n\r\nabc")
    assert rig.origin.connections == 1
    assert rig.counters.snapshot()["allowed"] == 5


async def test_another_server_is_another_connection() -> None:
    async with a_proxy(["127.0.0.1:*", "origin.test:*", "other.test:*"]) as rig:
        client = await rig.connect()
        for host in ("origin.test", "other.test", "other.test"):
            answer = await client.ask(f"GET http://{host}:{rig.origin.port}/ HTTP/1.1\nHost: x")
            assert answer.status == 200
        assert [seen.fields["host"] for seen in rig.origin.seen] == [
            f"origin.test:{rig.origin.port}",
            *[f"other.test:{rig.origin.port}"] * 2,
        ]
        assert rig.origin.connections == 2


async def test_a_standing_connection_is_no_way_around_a_later_decision() -> None:
    """The name moves to a forbidden address between two requests (DNS rebinding)."""
    places = ["127.0.0.1", "169.254.169.254"]

    async def moving(name: str) -> list[IPv4Address]:
        return [IPv4Address(places.pop(0))]

    async with a_proxy(["127.0.0.1:*", "origin.test:*"], lookup=moving) as rig:
        client = await rig.connect()
        url = f"http://origin.test:{rig.origin.port}/"
        assert (await client.ask(f"GET {url} HTTP/1.1\nHost: x")).status == 200
        rig.server.enforcer._resolver._answers.clear()  # as after its seconds are over
        answer = await client.ask(f"GET {url} HTTP/1.1\nHost: x")
        assert (answer.status, answer.reason) == (403, "special_address")
        assert len(rig.origin.seen) == 1


async def test_a_redirect_to_a_forbidden_address_leads_nowhere(rig: Rig, client: Client) -> None:
    answer = await client.ask(f"GET {rig.url}/redirect HTTP/1.1\nHost: x")
    assert answer.status == 302
    followed = await client.ask(f"GET {answer.fields['location']} HTTP/1.1\nHost: 169.254.169.254")
    assert (followed.status, followed.reason) == (403, "special_address")
    assert await client.rest() == b""


async def test_a_server_that_has_closed_meanwhile_is_asked_anew(rig: Rig, client: Client) -> None:
    for _ in range(3):
        answer = await client.ask(f"GET {rig.url}/closes HTTP/1.1\nHost: x")
        assert (answer.status, answer.body) == (200, b"end")
    assert rig.origin.connections == 3


# --- bodies ---


async def test_chunks_and_trailers_pass_in_both_directions(rig: Rig, client: Client) -> None:
    body = b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nX-Sum: 6\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\r\n"
    head = f"POST {rig.url}/chunked HTTP/1.1\nHost: x\nTE: trailers\nTransfer-Encoding: chunked"
    answer = await client.ask(head, body)
    assert answer.body == b"abcdefg"
    assert answer.trailers == {"x-sum": "7"}
    [seen] = rig.origin.seen
    assert seen.body == b"hello![X-Sum: 6]"
    assert (seen.fields["te"], seen.fields["connection"]) == ("trailers", "TE")


async def test_a_client_of_http_1_0_gets_plain_bytes_and_a_close(rig: Rig, client: Client) -> None:
    await client.say(request(f"GET {rig.url}/chunked HTTP/1.0"))
    head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body == b"abcdefg"
    assert rig.origin.seen[0].fields["via"] == "1.0 fastclaw"


async def test_a_body_that_runs_until_the_close_is_chunked_for_the_client_who_stays(rig: Rig, client: Client) -> None:
    answer = await client.ask(f"GET {rig.url}/until-close HTTP/1.1\nHost: x")
    assert (answer.body, answer.fields["transfer-encoding"]) == (b"all of it", "chunked")
    assert (await client.ask(f"GET {rig.url}/old HTTP/1.1\nHost: x")).body == b"old"
    assert (await client.ask(f"GET {rig.url}/ HTTP/1.1\nHost: x")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "length"),
    [
        ("HEAD", "/head", 200, "500"),
        ("GET", "/304", 304, "500"),
        ("GET", "/204", 204, None),
        ("GET", "/both-lengths", 200, None),
    ],
)
async def test_answers_whose_length_is_not_their_bodys(
    rig: Rig, client: Client, method: str, path: str, status: int, length: str | None
) -> None:
    answer = await client.ask(f"{method} {rig.url}{path} HTTP/1.1\nHost: x")
    assert (answer.status, answer.fields.get("content-length")) == (status, length)
    assert answer.body == (b"ok" if path == "/both-lengths" else b"")
    assert (await client.ask(f"GET {rig.url}/ HTTP/1.1\nHost: x")).status == 200


async def test_a_large_body_waits_for_a_slow_reader() -> None:
    size = 64 << 20
    async with a_proxy() as rig:
        client = await rig.connect()
        await client.say(request(f"GET {rig.url}/big/{size} HTTP/1.1\nHost: x"))
        await client.until(b"\r\n\r\n")
        assert await _stands_still(lambda: rig.counters.snapshot()["bytes"]["received"]) < size / 2
        left = size
        while left:
            left -= len(await client.reader.read(1 << 20))
        assert rig.counters.snapshot()["bytes"]["received"] > size


async def _stands_still(count: Callable[[], int]) -> int:
    """The count when it grows no more: everybody's buffers are full."""
    before = count()
    for _ in range(100):
        await asyncio.sleep(0.1)
        if before == (before := count()):
            return before
    raise AssertionError(f"{before} and growing")


async def test_a_large_body_goes_up_whole() -> None:
    body = bytes(range(256)) * (8 << 12)
    async with a_proxy() as rig:
        client = await rig.connect()
        answer = await client.ask(f"POST {rig.url}/ HTTP/1.1\nHost: x\nContent-Length: {len(body)}", body)
        assert answer.status == 200
        assert rig.origin.seen[0].body == body


async def test_a_server_that_answers_before_the_body_is_through_is_heard(rig: Rig, client: Client) -> None:
    answer = await client.ask(f"POST {rig.url}/refuses-body HTTP/1.1\nHost: x\nContent-Length: 1000000", b"x" * 1000)
    assert (answer.status, answer.body) == (413, b"no\n")
    assert await client.rest() == b""
    await rig.still_works()


# --- expectations, hints, switches ---


async def test_a_client_that_waits_for_100_gets_the_servers(rig: Rig, client: Client) -> None:
    await client.say(request(f"PUT {rig.url}/continue HTTP/1.1\nHost: x\nContent-Length: 4\nExpect: 100-continue"))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await client.say(b"body")
    answer = await client.answer("PUT")
    assert answer.body.endswith(b"body")
    assert rig.origin.seen[0].fields["expect"] == "100-continue"


async def test_early_hints_pass_but_not_to_an_old_client(rig: Rig, client: Client) -> None:
    answer = await client.ask(f"GET {rig.url}/hints HTTP/1.1\nHost: x")
    assert (answer.interim, answer.status) == ([103], 200)
    old = await rig.connect()
    await old.say(request(f"GET {rig.url}/hints HTTP/1.0"))
    assert (await old.rest()).startswith(b"HTTP/1.1 200")


async def test_a_switch_makes_a_tunnel(rig: Rig, client: Client) -> None:
    head = f"GET {rig.url}/upgrade HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: Echo, h2c\nSec-Key: k"
    await client.say(request(head) + b"early")
    answer = await client.until(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nUpgrade: echo\r\n" in answer
    assert await client.read(8) == b"hi!EARLY"
    await client.say(b"more")
    assert await client.read(4) == b"MORE"
    client.writer.write_eof()
    assert await client.rest() == b""
    assert rig.origin.seen[0].fields["upgrade"] == "Echo"
    await until(lambda: rig.open == 0)


async def test_no_switch_without_a_wish_for_one(rig: Rig, client: Client) -> None:
    answer = await client.ask(f"GET {rig.url}/unasked-101 HTTP/1.1\nHost: x\nUpgrade: echo")
    assert (answer.status, answer.reason) == (502, "unreachable")
    assert "upgrade" not in rig.origin.seen[0].fields


async def test_pipelined_requests_are_answered_in_order(rig: Rig, client: Client) -> None:
    post = request(f"POST {rig.url}/b HTTP/1.1\nHost: x\nContent-Length: 2") + b"hi"
    await client.say(
        request(f"GET {rig.url}/a HTTP/1.1\nHost: x") + post + request(f"GET {rig.url}/c HTTP/1.1\nHost: x")
    )
    assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]
    assert [seen.line.split()[1] for seen in rig.origin.seen] == ["/a", "/b", "/c"]


# --- when a side breaks ---


@pytest.mark.parametrize("path", ["/silent", "/garbage", "/bad-length", "/huge-head"])
async def test_a_server_that_speaks_no_http_is_a_bad_gateway(rig: Rig, client: Client, path: str) -> None:
    answer = await client.ask(f"GET {rig.url}{path} HTTP/1.1\nHost: x")
    assert (answer.status, answer.reason) == (502, "unreachable")
    assert rig.counters.snapshot()["failed"] == {"unreachable": 1}
    await rig.still_works()


@pytest.mark.parametrize("path", ["/cut", "/cut-chunk"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_that_breaks_off_does_not_look_whole(rig: Rig, client: Client, path: str, version: str) -> None:
    await client.say(request(f"GET {rig.url}{path} HTTP/{version}\nHost: x"))
    await client.until(b"only ten..")
    with pytest.raises(ConnectionResetError):
        await client.reader.read()
    await rig.still_works()


async def test_a_client_that_leaves_in_the_middle_of_its_body_takes_the_servers_connection_along(
    rig: Rig, client: Client
) -> None:
    await client.say(request(f"POST {rig.url}/ HTTP/1.1\nHost: x\nContent-Length: 100") + b"half")
    await until(lambda: rig.origin.connections == 1)
    await client.close()
    await asyncio.wait_for(rig.origin.gone.wait(), 20)
    await until(lambda: rig.open == 0)
    assert rig.origin.seen == []


async def test_a_client_that_leaves_during_the_answer_takes_the_servers_connection_along(
    rig: Rig, client: Client
) -> None:
    await client.say(request(f"GET {rig.url}/big/{1 << 30} HTTP/1.1\nHost: x"))
    await client.until(b"\r\n\r\n")
    client.writer.transport.abort()
    await asyncio.wait_for(rig.origin.gone.wait(), 20)
    await until(lambda: rig.open == 0)


async def test_a_client_that_says_no_more_still_gets_its_answer(rig: Rig, client: Client) -> None:
    await client.say(request(f"GET {rig.url}/slow HTTP/1.1\nHost: x"))
    client.writer.write_eof()
    await until(lambda: len(rig.origin.seen) == 1)
    rig.origin.go.set()
    assert (await client.answer()).status == 200
    assert await client.rest() == b""


async def test_a_body_that_is_no_body_is_refused_and_the_server_does_not_wait_for_it(rig: Rig, client: Client) -> None:
    head = f"POST {rig.url}/ HTTP/1.1\nHost: x\nTransfer-Encoding: chunked"
    answer = await client.ask(head, b"5\r\nhello\r\nZZ\r\n")
    assert (answer.status, answer.reason) == (400, "bad_request")
    await asyncio.wait_for(rig.origin.gone.wait(), 20)


async def test_a_server_that_never_answers_is_given_up() -> None:
    async with a_proxy(idle_timeout_ms=200) as rig:
        client = await rig.connect()
        answer = await client.ask(f"GET {rig.url}/slow HTTP/1.1\nHost: x")
        assert (answer.status, answer.reason) == (504, "idle_timeout")


async def test_an_idle_client_is_let_go_without_a_word() -> None:
    async with a_proxy(idle_timeout_ms=200) as rig:
        client = await rig.connect()
        assert (await client.ask(f"GET {rig.url}/ HTTP/1.1\nHost: x")).status == 200
        assert await client.rest() == b""
        assert rig.denied == {}


async def test_the_budget_of_bytes_ends_an_answer() -> None:
    async with a_proxy(max_bytes=1 << 20) as rig:
        client = await rig.connect()
        await client.say(request(f"GET {rig.url}/big/{8 << 20} HTTP/1.1\nHost: x"))
        assert len(await client.rest()) < 2 << 20
        late = await rig.connect()
        answer = await late.ask(f"GET {rig.url}/ HTTP/1.1\nHost: x")
        assert (answer.status, answer.reason) == (403, "too_many_bytes")


# --- added fields ---


async def test_a_secret_is_added_for_its_host_and_replaces_the_clients_own() -> None:
    async with a_proxy(["127.0.0.1:*", "*.test:*"], inject=[("origin.test", "Authorization", "Bearer s3cret")]) as rig:
        client = await rig.connect()
        for host in ("origin.test", "ORIGIN.test.", "other.test"):
            mine = "authorization: mine\nConnection: close-not, Authorization"
            await client.ask(f"GET http://{host}:{rig.origin.port}/ HTTP/1.1\nHost: origin.test\n{mine}")
        given = [seen.fields.get("authorization") for seen in rig.origin.seen]
        assert given == ["Bearer s3cret", "Bearer s3cret", None]


async def test_a_method_that_would_show_the_secret_is_refused() -> None:
    async with a_proxy(["127.0.0.1:*", "*.test:*"], inject=[("origin.test", "X-Key", "s3cret")]) as rig:
        client = await rig.connect()
        answer = await client.ask(f"TRACE http://origin.test:{rig.origin.port}/ HTTP/1.1\nHost: x")
        assert (answer.status, answer.reason) == (403, "unsafe_method")
        assert rig.origin.connections == 0
        other = await rig.connect()
        assert (await other.ask(f"TRACE http://other.test:{rig.origin.port}/ HTTP/1.1\nHost: x")).status == 200
