"""Clients of a proxy listener: tunnels, and what is said first in one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastclaw import network_limits
from tests.network.egress.rig import HERE, LENGTH_FIRST, UNREADABLE, Client, Rig, a_proxy, client_hello, request
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


SSH = b"SSH-2.0-server\r\n"
POST = b"POST http://h/ HTTP/1.1\r\nHost: h\r\n"
LONG = "x" * (network_limits.EGRESS_HEAD_BYTES + 1)


# --- tunnels ---


async def test_a_tunnel_carries_bytes_both_ways_and_counts_them(rig: Rig) -> None:
    client = await rig.tunnel()
    answer = await client.ask("GET /inside HTTP/1.1\nHost: whatever")
    assert answer.status == 200
    sent = len(request("GET /inside HTTP/1.1\nHost: whatever"))
    bytes_moved = rig.counters.snapshot()["bytes"]
    assert bytes_moved["sent"] == sent
    assert bytes_moved["received"] > sent
    await client.close()
    await until(lambda: rig.open == 0)


async def test_what_comes_with_the_request_goes_first(rig: Rig, client: Client) -> None:
    where = f"{HERE}:{rig.origin.port}"
    await client.say(request(f"CONNECT {where} HTTP/1.1\nHost: {where}") + request("GET /now HTTP/1.1\nHost: x"))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert (await client.answer()).status == 200


async def test_a_server_that_speaks_first_is_heard_at_once(rig: Rig) -> None:
    server = await asyncio.start_server(_greet, HERE, 0)
    async with server:
        client = await rig.tunnel(f"{HERE}:{server.sockets[0].getsockname()[1]}")
        assert await client.read(len(SSH)) == SSH
        await client.say(b"SSH-2.0-client\r\n")
        assert await client.read(2) == b"ok"
        assert await client.rest() == b""


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SSH)
    assert await reader.readline() == b"SSH-2.0-client\r\n"
    writer.write(b"ok")
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_only_listens_is_let_be(rig: Rig) -> None:
    client = await rig.tunnel()
    client.writer.write_eof()
    assert await client.rest() == b""
    await until(lambda: rig.open == 0)


async def test_a_server_that_closes_ends_the_tunnel(rig: Rig) -> None:
    client = await rig.tunnel()
    await client.say(request("GET /closes HTTP/1.1\nHost: x"))
    assert (await client.rest()).endswith(b"end")


async def test_an_idle_tunnel_is_cut_and_counted_as_that(tmp_path: Path) -> None:
    """BerriAI/litellm#34819: a silent stream that was cut must not look complete."""
    async with a_proxy(idle_timeout_ms=200, log=tmp_path / "log") as rig:
        silent, spoken = await rig.tunnel(), await rig.tunnel()
        assert (await spoken.ask("GET / HTTP/1.1\nHost: x")).status == 200
        for client in (silent, spoken):
            with pytest.raises(ConnectionResetError):
                await client.read(1)
        await until(lambda: rig.open == 0)
        assert rig.counters.snapshot()["failed"] == {"idle_timeout": 2}
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    cut = [(line["decision"], line["host"]) for line in lines if line["reason"] == "idle_timeout"]
    assert cut == [("failed", HERE)] * 2


@pytest.mark.parametrize("talks", ["client", "server"])
async def test_bytes_in_either_direction_keep_a_tunnel(talks: str) -> None:
    async with a_proxy(idle_timeout_ms=600) as rig:
        ends: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, writer: ends.append(writer), HERE, 0)
        async with server:
            client = await rig.tunnel(f"{HERE}:{server.sockets[0].getsockname()[1]}")
            await until(lambda: bool(ends))
            for _ in range(9):
                (client.writer if talks == "client" else ends[0]).write(b"x")
                await asyncio.sleep(0.1)
            assert rig.open == 1
            ends[0].close()


# --- the first words in a tunnel ---


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("name", ["origin.test", "ORIGIN.test", None])
async def test_tls_for_the_server_that_was_asked_for_passes(name: str | None, pieces: int) -> None:
    async with a_proxy(["127.0.0.1:*", "origin.test:*"]) as rig:
        hello = client_hello(name)
        server, heard = await _a_listener(len(hello))
        async with server:
            client = await rig.tunnel(f"origin.test:{server.sockets[0].getsockname()[1]}")
            size = -(-len(hello) // pieces)
            for start in range(0, len(hello), size):
                await client.say(hello[start : start + size])
                await asyncio.sleep(0.01 if pieces > 1 else 0)  # a packet of its own
            assert await asyncio.wait_for(heard, 20) == hello


async def _a_listener(size: int) -> tuple[asyncio.Server, asyncio.Future[bytes]]:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.readexactly(size))
        writer.close()

    return await asyncio.start_server(listen, HERE, 0), heard


@pytest.mark.parametrize(
    ("target", "name", "reason"),
    [
        ("origin.test", "other.test", "name_mismatch"),
        ("origin.test", "127.0.0.1.", "name_mismatch"),
        (HERE, "denied.test", "denied"),
    ],
)
async def test_tls_for_another_server_is_refused(target: str, name: str, reason: str) -> None:
    async with a_proxy(["127.0.0.1:*", "*.test:*"], deny=["denied.test"]) as rig:
        client = await rig.tunnel(f"{target}:{rig.origin.port}")
        await client.say(client_hello("a" * len(name)).replace(b"a" * len(name), name.encode()))
        assert await client.rest() == bytes.fromhex("15030300020231")
        assert rig.denied == {reason: 1}
        await asyncio.wait_for(rig.origin.gone.wait(), 20)
        assert rig.origin.seen == []


@pytest.mark.parametrize("words", [*UNREADABLE, LENGTH_FIRST, b"hello", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
async def test_an_address_that_a_rule_lists_hears_whatever_is_said(rig: Rig, words: bytes) -> None:
    """mandiant/flare-fakenet-ng#57: what looks like TLS in its first byte is not refused for being none."""
    server, heard = await _a_listener(len(words))
    async with server:
        client = await rig.tunnel(f"{HERE}:{server.sockets[0].getsockname()[1]}")
        await client.say(words)
        assert await asyncio.wait_for(heard, 20) == words
        assert rig.denied == {}


# --- a server that asks for another greeting (RFC 8446, 4.1.4) ---

RETRY = bytes.fromhex(
    "160303 0038 02 000034 0303 cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
    "00 1301 00 000c 002b 0002 0304 0033 0002 0017"
)
CHANGE_CIPHER_SPEC = bytes.fromhex("140303 0001 01")


@pytest.mark.parametrize("is_eager", [False, True])
@pytest.mark.parametrize("second", ["origin.test", "evil.test"])
async def test_the_second_greeting_names_the_same_server(second: str, is_eager: bool) -> None:
    """Also where it is sent before it was asked for: what is behind the first one waits for the answer to that."""
    first, again = client_hello("origin.test"), CHANGE_CIPHER_SPEC + client_hello(second) + b"\x15"
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def ask_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.readexactly(len(first)))
        writer.write(RETRY)
        heard.put_nowait(await reader.read(1 << 16))
        writer.close()

    async with a_proxy(["127.0.0.1:*", "*.test:*"]) as rig:
        server = await asyncio.start_server(ask_again, HERE, 0)
        async with server:
            client = await rig.tunnel(f"origin.test:{server.sockets[0].getsockname()[1]}")
            await client.say(first + again if is_eager else first)
            assert await client.read(len(RETRY)) == RETRY
            if not is_eager:
                await client.say(again)
            assert await heard.get() == first
            assert await heard.get() == (again if second == "origin.test" else b"")
            assert rig.denied == ({} if second == "origin.test" else {"name_mismatch": 1})
            assert await client.rest() == (b"" if second == "origin.test" else bytes.fromhex("15030300020231"))


async def test_a_client_that_leaves_after_its_greeting_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_HEAD_MS", 200)
    hello = client_hello("origin.test")
    async with a_proxy(["127.0.0.1:*", "origin.test:*"]) as rig:
        with socket.create_server((HERE, 0)) as silent:
            client = await rig.tunnel(f"origin.test:{silent.getsockname()[1]}")
            await client.say(hello)
            await client.close()
            await until(lambda: rig.open == 0)


# --- PostgreSQL, which asks before it begins with TLS ---


@pytest.mark.parametrize(
    ("answer", "then", "denied"),
    [
        (b"S", client_hello("origin.test"), {}),
        (b"S", client_hello("evil.test"), {"name_mismatch": 1}),
        (b"S", b"\0\0\0\x09plain", {"bad_request": 1}),
        (b"N", b"\0\0\0\x09plain", {}),
    ],
)
async def test_tls_after_an_ssl_request_names_its_server(answer: bytes, then: bytes, denied: dict[str, int]) -> None:
    asks = bytes.fromhex("0000000804d2162f")
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.readexactly(len(asks)))
        writer.write(answer)
        heard.put_nowait(await reader.read(1 << 16))
        writer.close()

    async with a_proxy(["127.0.0.1:*", "*.test:*"]) as rig:
        server = await asyncio.start_server(serve, HERE, 0)
        async with server:
            client = await rig.tunnel(f"origin.test:{server.sockets[0].getsockname()[1]}")
            await client.say(asks[:5])
            await client.say(asks[5:])
            assert await client.read(1) == answer
            await client.say(then)
            assert await heard.get() == asks
            assert await heard.get() == (b"" if denied else then)
            assert rig.denied == denied


# --- plain HTTP in a tunnel ---


async def test_a_denied_name_is_refused_in_a_tunnel_too() -> None:
    """Where the address is listed; where it is not, in test_sessions_transparent.py."""
    async with a_proxy(["127.0.0.1:*"], deny=["denied.test"]) as rig:
        client = await rig.tunnel()
        assert (await client.ask("GET /a HTTP/1.1\nHost: whoever.test")).status == 200
        answer = await client.ask("GET /b HTTP/1.1\nHost: denied.test")
        assert (answer.status, answer.reason) == (403, "denied")
        assert [seen.line for seen in rig.origin.seen] == ["GET /a HTTP/1.1"]


async def test_a_secret_is_added_in_a_tunnel_too() -> None:
    """As Node's fetch asks for plain HTTP."""
    inject = [("origin.test", "X-Key", "s3cret")]
    async with a_proxy(["127.0.0.1:*", "origin.test:*"], inject=inject) as rig:
        client = await rig.tunnel(f"origin.test:{rig.origin.port}")
        assert (await client.ask("GET / HTTP/1.1\nHost: origin.test\nX_Key: mine")).status == 200
        assert rig.origin.seen[0].fields["x-key"] == "s3cret"
        assert "x_key" not in rig.origin.seen[0].fields


async def test_half_a_greeting_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_HEAD_MS", 200)
    async with a_proxy() as rig:
        client = await rig.tunnel()
        await client.say(client_hello("x.test")[:40])
        assert (await client.rest())[:1] == b"\x15"
        assert rig.denied == {"bad_request": 1}


WORDS = [
    client_hello("origin.test"), client_hello(None)[:50], b"\x16\x03\x01", b"\x14\x03\x03\0\1\1", RETRY,
    b"\0\0\0\x08", bytes.fromhex("0000000804d2162f"), b"\x04\xd2\x16\x2f", b"GET / HTTP/1.1\r\n", b"Host: x\r\n\r\n",
    b"\n", b"\r\n", b"\0", b"G", b" ", b"PRI * HTTP/2.0\r\n", b"Host: denied.test\r\n\r\n",
]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=5), st.lists(st.sampled_from(WORDS), max_size=3), st.booleans())
async def test_whatever_is_said_in_a_tunnel_comes_to_an_end(
    said: list[bytes], answer: list[bytes], waits: bool
) -> None:
    """The same, whatever the server says, first or not."""

    loop, served = asyncio.get_running_loop(), list[asyncio.Task[None] | None]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            if waits:
                await reader.read(1)
            writer.write(b"".join(answer))
            writer.close()
            await writer.wait_closed()

    async with a_proxy(["127.0.0.1:*", "origin.test:*"], deny=["denied.test"]) as rig:
        server = await asyncio.start_server(serve, HERE, 0)
        connect = request(f"CONNECT origin.test:{server.sockets[0].getsockname()[1]} HTTP/1.1\nHost: x")
        async with server:
            with socket.create_connection((HERE, rig.port)) as client, contextlib.suppress(OSError):  # it was cut
                client.setblocking(False)
                for words in (connect, *said):
                    await loop.sock_sendall(client, words)
                    await asyncio.sleep(0)
                client.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(20):
                    while await loop.sock_recv(client, 1 << 16):
                        pass
            await until(lambda: rig.open == 0)
            await asyncio.gather(*filter(None, served))
