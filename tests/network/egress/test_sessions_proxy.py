"""Clients that use the proxy as one: tunnels, their first words, and everything that is no request."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.network.egress.enforcement import Asked
from fastclaw.network.egress.policy import Policy, Refused
from tests.network.egress.rig import HERE, LENGTH_FIRST, UNREADABLE, Rig, a_proxy, client_hello, request
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.network.egress.addresses import Address

SSH = b"SSH-2.0-server\r\n"
POST = b"POST http://h/ HTTP/1.1\r\nHost: h\r\n"
LONG = "x" * (network_limits.EGRESS_HEAD_BYTES + 1)


# --- tunnels ---


async def test_a_tunnel_carries_bytes_both_ways_and_counts_them() -> None:
    async with a_proxy() as rig:
        client = await rig.tunnel()
        answer = await client.ask("GET /inside HTTP/1.1\nHost: whatever")
        assert answer.status == 200
        sent = len(request("GET /inside HTTP/1.1\nHost: whatever"))
        bytes_moved = rig.counters.snapshot()["bytes"]
        assert bytes_moved["sent"] == sent
        assert bytes_moved["received"] > sent
        await client.close()
        await until(lambda: rig.open == 0)


async def test_what_comes_with_the_request_goes_first() -> None:
    async with a_proxy() as rig:
        client = await rig.connect()
        where = f"{HERE}:{rig.origin.port}"
        await client.say(request(f"CONNECT {where} HTTP/1.1\nHost: {where}") + request("GET /now HTTP/1.1\nHost: x"))
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert (await client.answer()).status == 200


async def test_a_server_that_speaks_first_is_heard_at_once() -> None:
    async with a_proxy() as rig:
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


async def test_a_client_that_only_listens_is_let_be() -> None:
    async with a_proxy() as rig:
        client = await rig.tunnel()
        client.writer.write_eof()
        assert await client.rest() == b""
        await until(lambda: rig.open == 0)


async def test_a_server_that_closes_ends_the_tunnel() -> None:
    async with a_proxy() as rig:
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
async def test_an_address_that_a_rule_lists_hears_whatever_is_said(words: bytes) -> None:
    """mandiant/flare-fakenet-ng#57: what looks like TLS in its first byte is not refused for being none."""
    async with a_proxy() as rig:
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


# --- refusals ---


async def test_a_refusal_says_why_in_a_field_and_a_line() -> None:
    async with a_proxy(["127.0.0.1:*"]) as rig:
        client = await rig.connect()
        answer = await client.ask("CONNECT evil.test:443 HTTP/1.1\nHost: evil.test:443")
        assert (answer.status, answer.reason) == (403, "not_allowed")
        assert answer.fields["content-type"].startswith("text/plain")
        assert answer.fields["connection"] == "close"
        assert b"evil.test" in answer.body
        assert answer.body.count(b"\n") == 1
        assert answer.body.endswith(b"\n")
        assert await client.rest() == b""
        assert rig.denied == {"not_allowed": 1}


@pytest.mark.parametrize("deny", [[], ["evil.test"]])
async def test_the_status_line_of_a_refusal_names_target_and_rule(deny: list[str]) -> None:
    """NVIDIA/NemoClaw#3836: of an answer to CONNECT, curl -v, pip and npm show that line and nothing else."""
    words = "denied: evil.test:443 is denied by 'evil.test'" if deny else "not_allowed: no rule allows evil.test:443"
    async with a_proxy(["127.0.0.1:*"], deny=deny) as rig:
        client = await rig.connect()
        await client.say(request("CONNECT evil.test:443 HTTP/1.1\nHost: x"))
        assert (await client.rest()).startswith(f"HTTP/1.1 403 {words}\r\n".encode())

        def tunnel() -> None:
            connection = http.client.HTTPSConnection(HERE, rig.port)
            connection.set_tunnel("evil.test", 443)
            with pytest.raises(OSError, match=f"Tunnel connection failed: 403 {words}"):
                connection.connect()

        await asyncio.to_thread(tunnel)


async def test_a_program_inside_can_read_the_rules_and_no_secret() -> None:
    """openai/codex#20928. By a plain request and in a tunnel, as Node's fetch asks."""
    inject = [("*.b.test", "X-Key", "s3cret")]
    allow = ["127.0.0.1:*", "a.test"]
    async with a_proxy(allow, inject=inject, deny=["c.test"]) as rig:
        client = await rig.connect()
        head = "{} http://rules.fastclaw.internal/ HTTP/1.1\nHost: x"
        plain = await client.ask(head.format("GET"))
        assert json.loads(plain.body) == {
            "allow": allow, "deny": ["c.test"], "inject": [{"host": "*.b.test", "header": "X-Key"}]
        }  # fmt: skip
        assert (await client.ask(head.format("HEAD"))).body == b""
        tunnel = await rig.tunnel("rules.fastclaw.internal:80")
        assert (await tunnel.ask("GET / HTTP/1.1\nHost: rules.fastclaw.internal")).body == plain.body
        assert (await tunnel.ask("GET / HTTP/1.1\nHost: evil.test")).reason == "not_allowed"
        assert (await client.ask(head.format("DELETE"))).reason == "bad_target"
        refused = await (await rig.connect()).ask("GET http://evil.test/ HTTP/1.1\nHost: x")
        assert b"http://rules.fastclaw.internal/" in refused.body
        assert rig.counters.snapshot()["allowed"] == 0


async def test_the_refusal_of_a_head_has_no_body() -> None:
    async with a_proxy() as rig:
        client = await rig.connect()
        await client.say(request("HEAD http://evil.test/ HTTP/1.1\nHost: evil.test"))
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403 ")
        assert body == b""


async def test_a_server_that_cannot_be_reached_is_a_bad_gateway() -> None:
    async with a_proxy(hint="; say more") as rig:
        with socket.create_server((HERE, 0)) as unused:
            port = unused.getsockname()[1]
        client = await rig.connect()
        answer = await client.ask(f"CONNECT {HERE}:{port} HTTP/1.1\nHost: x")
        assert (answer.status, answer.reason) == (502, "unreachable")
        assert answer.body.endswith(b"refused; say more\n")
        assert rig.counters.snapshot()["failed"] == {"unreachable": 1}


SELF = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "127.0.0.01",
    "127.000.000.001", "0x7F.0x0.0x0.0x1", "0", "0.0.0.0", "127.255.255.254", "localhost", "LOCALHOST.", "localhost.",
    "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[::]", "rebind.test",
]  # fmt: skip


@pytest.mark.parametrize("host", SELF)
async def test_the_proxy_does_not_lead_to_itself(host: str) -> None:
    """By no name and in no form, with rules that let every public host and these names pass."""
    async with a_proxy(["*:*", "localhost:*", "rebind.test:*"]) as rig:
        for head in (
            f"CONNECT {host}:{rig.port} HTTP/1.1\nHost: x",
            f"GET http://{host}:{rig.port}/ HTTP/1.1\nHost: x",
        ):
            client = await rig.connect()
            answer = await client.ask(head)
            assert answer.status in (400, 403)
            assert answer.reason in ("special_address", "bad_target")
        assert rig.counters.snapshot()["allowed"] == 0


async def test_the_hosts_loopback_has_a_name_for_the_ports_that_a_rule_names() -> None:
    """docker/sbx-releases#147, banksean/sand#103. No resolver is asked, and no pattern fits it."""

    async def nobody(name: str) -> list[Address]:
        raise AssertionError(name)

    names = ["host.fastclaw.internal", "host.docker.internal", "host.containers.internal"]
    async with a_proxy(["*:*", "*.internal:*"], lookup=nobody) as rig:
        for name in names:
            answer = await (await rig.connect()).ask(f"GET http://{name}:{rig.origin.port}/ HTTP/1.1\nHost: x")
            assert answer.reason == "not_allowed"
        port = rig.origin.port
        allow = [f"{names[0]}:{port},{rig.port}", f"{names[1]}:*"]
        rig.server.gate.policy = Policy(allow, ["127.0.0.0/9:4", "[::1]:5"])
        for name, at, reason in (
            (names[0], port, ""),
            (names[0], rig.port, "special_address"),
            (names[0], 1, "not_allowed"),
            (names[1], port, ""),
            (names[1], rig.port, "special_address"),
            (names[1], 4, "unreachable"),
            (names[2], port, "not_allowed"),
            (HERE, port, "special_address"),
        ):
            for head in (f"GET http://{name}:{at}/ HTTP/1.1\nHost: x", f"CONNECT {name}:{at} HTTP/1.1\nHost: x"):
                client = await rig.connect()
                await client.say(request(head))
                said = (await client.until(b"\r\n\r\n")).split()
                assert said[2].startswith(reason.encode()) if reason else said[1] == b"200"
        rig.server.gate.policy = Policy([f"{names[0]}:{port}"], ["127.0.0.0/8", "[::1]"])
        assert (await (await rig.connect()).ask(f"CONNECT {names[0]}:{port} HTTP/1.1\nHost: x")).reason == "denied"
        with pytest.raises(Refused, match="through the proxy"):
            await rig.server.gate.admit(Asked("dns", names[0], 0))


# --- what is no request ---

BAD = {
    "a method with a blank": b"GE T http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a method that is no token": b"G@T http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "no method": b" http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: h\r\n\r\n",
    "no version": b"GET http://h/\r\nHost: h\r\n\r\n",
    "version 0.9": b"GET http://h/ HTTP/0.9\r\nHost: h\r\n\r\n",
    "version 2.0": b"GET http://h/ HTTP/2.0\r\nHost: h\r\n\r\n",
    "version 1.10": b"GET http://h/ HTTP/1.10\r\nHost: h\r\n\r\n",
    "a version in lower case": b"GET http://h/ http/1.1\r\nHost: h\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "origin form": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "another scheme": b"GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a file": b"GET file:///etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n",
    "no host": b"GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n",
    "a user in the target": b"GET http://a:b@h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a fragment in the target": b"GET http://h/#x HTTP/1.1\r\nHost: h\r\n\r\n",
    "a backslash in the host": b"GET http://h\\@evil/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "an escape in the host": b"GET http://%31%32%37.0.0.1/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "port 0": b"GET http://h:0/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "port 65536": b"GET http://h:65536/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a port that is none": b"GET http://h:8o/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a control character in the target": b"GET http://h/\x01 HTTP/1.1\r\nHost: h\r\n\r\n",
    "a blank in the target": b"GET http://h/a b HTTP/1.1\r\nHost: h\r\n\r\n",
    "a letter beyond ASCII in the target": "GET http://h/ä HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
    "CONNECT without a port": b"CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n",
    "CONNECT with a path": b"CONNECT h:1/x HTTP/1.1\r\nHost: h\r\n\r\n",
    "CONNECT with a scheme": b"CONNECT http://h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
    "CONNECT with a user": b"CONNECT a@h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
    "CONNECT with a body": b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    "CONNECT with chunks": b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no Host": b"GET http://h/ HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
    "a field without a colon": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nnonsense\r\n\r\n",
    "a field without a name": b"GET http://h/ HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n",
    "a blank before the colon": b"GET http://h/ HTTP/1.1\r\nHost : h\r\n\r\n",
    "a folded line": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
    "a line folded with a tab": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nA: b\r\n\tc\r\n\r\n",
    "a blank before the first field": b"GET http://h/ HTTP/1.1\r\n Host: h\r\n\r\n",
    "bare LFs": b"GET http://h/ HTTP/1.1\nHost: h\n\n",
    "one bare LF": b"GET http://h/ HTTP/1.1\r\nA: b\nHost: h\r\n\r\n",
    "a bare CR": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nA: b\rC: d\r\n\r\n",
    "a CR before the CRLF": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nA: b\r\r\n\r\n",
    "a NUL in a value": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n",
    "a NUL in a name": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nA\0: b\r\n\r\n",
    "a NUL in the line": b"GET http://h/\0 HTTP/1.1\r\nHost: h\r\n\r\n",
    "both lengths": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "both, the other way round": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG",
    "two lengths": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two lengths in one": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 2\r\n\r\nab",
    "a negative length": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
    "a length with a plus": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\na",
    "a length with a point": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1.0\r\n\r\na",
    "a length in hex": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 0x1\r\n\r\na",
    "an endless length": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\na",
    "an empty length": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: \r\n\r\n",
    "another coding": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n",
    "a coding with a tab": b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a coding in quotes": b'POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "chunks of HTTP/1.0": b"POST http://h/ HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a huge field": b"GET http://h/ HTTP/1.1\r\nHost: h\r\nA: " + LONG.encode() + b"\r\n\r\n",
    "a huge target": b"GET http://h/" + LONG.encode() + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    "many fields": b"GET http://h/ HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    "a line without an end": LONG.encode(),
    "TLS to the proxy": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SOCKS 4": b"\x04\x01\x00\x50\x7f\x00\x00\x01\0",
    "SOCKS 5": b"\x05\x01\x00",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": b"\0" * 100,
    "high bytes": b"\xff\xfe\xfd\r\n\r\n",
    "empty lines": b"\r\n\r\n\r\n",
    "a second request that is none": b"\r\nGET",
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
async def test_what_is_no_request_is_refused_at_once(what: str) -> None:
    async with a_proxy(["127.0.0.1:*", "h:*", "*.test:*"]) as rig:
        started = time.monotonic()
        client = await rig.connect()
        await client.say(BAD[what])
        if what in ("empty lines", "a second request that is none"):
            client.writer.write_eof()
        said = await client.rest()
        assert time.monotonic() - started < 1
        assert said == b"" or said.startswith(b"HTTP/1.1 400 bad_")
        assert said.count(b"X-Fastclaw-Reason") <= 1
        assert rig.counters.snapshot()["allowed"] == 0
        assert rig.origin.connections == 0
        await client.close()
        await rig.still_works()
        await until(lambda: rig.open <= 1)


BAD_BODIES = {
    "a size that is none": b"xyz\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a size with a blank before": b" 5\r\nhello\r\n0\r\n\r\n",
    "an endless size": b"f" * 30 + b"\r\nhello\r\n",
    "a size line without an end": b"1" * 40_000,
    "a chunk that is longer": b"5\r\nhello!\r\n0\r\n\r\n",
    "a chunk that ends in a bare LF": b"5\r\nhello\n0\r\n\r\n",
    "a trailer that is none": b"5\r\nhello\r\n0\r\nnonsense\r\n\r\n",
    "an endless trailer": b"0\r\n" + b"A: b\r\n" * 20_000,
}


@pytest.mark.parametrize("what", BAD_BODIES)
async def test_what_is_no_body_ends_the_request(what: str) -> None:
    async with a_proxy() as rig:
        client = await rig.connect()
        await client.say(request(f"POST {rig.url}/ HTTP/1.1\nHost: x\nTransfer-Encoding: chunked") + BAD_BODIES[what])
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        await rig.still_works()
        assert [seen.line for seen in rig.origin.seen] == ["GET /next HTTP/1.1"]


PIECES = [
    b"GET ", b"POST ", b"CONNECT ", b"http://127.0.0.1:{port}/", b"127.0.0.1:{port}", b"/", b" HTTP/1.1", b" HTTP/1.0",
    b"\r\n", b"\n", b"\r", b"Host: h\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n",
    b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"\0", b"\xff",
    b" ", b":", b"Connection: Upgrade\r\nUpgrade: x\r\n", b"\x16\x03\x01",
]  # fmt: skip
REQUESTS = st.lists(st.sampled_from(PIECES), max_size=12) | st.lists(st.sampled_from(PIECES), max_size=5).map(
    lambda pieces: [b"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: h\r\n", *pieces]
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
async def test_whatever_is_said_comes_to_an_end(pieces: list[bytes]) -> None:
    """The rig fails where the proxy logs an error."""
    async with a_proxy() as rig:
        client = await rig.connect()
        await client.say(b"".join(pieces).replace(b"{port}", str(rig.origin.port).encode()))
        client.writer.write_eof()
        said = await client.rest()
        assert said == b"" or said.startswith(b"HTTP/1.1 ")
        await client.close()
        await rig.still_works()


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


# --- smuggling: what the server sees is one request, whatever else is in its bytes ---


INNER = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
ONE_REQUEST = {
    "in a counted body": ("Content-Length: {size}", INNER),
    "in a chunk": ("Transfer-Encoding: chunked", "{hex}\r\n" + INNER + "\r\n0\r\n\r\n"),
    "in an extension of a chunk": (
        "Transfer-Encoding: chunked",
        "1;" + INNER.split("\r\n", 1)[0] + "\r\nx\r\n0\r\n\r\n",
    ),
    "with a length that Connection names": ("Content-Length: {size}\r\nConnection: Content-Length", INNER),
    "with a coding that Connection names": (
        "Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding",
        "{hex}\r\n" + INNER + "\r\n0\r\n\r\n",
    ),
    "with the same length twice": ("Content-Length: {size}\r\nContent-Length: {size}", INNER),
    "with a length of zeros in front": ("Content-Length: 000{size}", INNER),
    "with a coding in capitals": ("Transfer-Encoding: CHUNKED", "{hex}\r\n" + INNER + "\r\n0\r\n\r\n"),
    "with a length under another name": ("Content_Length: 0\r\nX-Content-Length: 0\r\nContent-Length: {size}", INNER),
}


@pytest.mark.parametrize("what", ONE_REQUEST)
async def test_one_request_is_one_request_to_the_server(what: str) -> None:
    fields, body = (text.format(size=len(INNER), hex=f"{len(INNER):x}") for text in ONE_REQUEST[what])
    async with a_proxy() as rig:
        client = await rig.connect()
        await client.say(f"POST {rig.url}/outer HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}".encode())
        assert (await client.answer("POST")).status == 200
        await rig.still_works()
        assert [seen.line for seen in rig.origin.seen] == ["POST /outer HTTP/1.1", "GET /next HTTP/1.1"]


async def test_a_length_that_does_not_reach_leaves_a_second_request_that_is_judged() -> None:
    async with a_proxy() as rig:
        client = await rig.connect()
        inner = "GET http://evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n"
        await client.say(f"POST {rig.url}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n{inner}".encode())
        assert (await client.answer("POST")).status == 200
        refused = await client.answer()
        assert (refused.status, refused.reason) == (403, "not_allowed")
        assert len(rig.origin.seen) == 1


async def test_a_request_in_pieces_is_read_as_one() -> None:
    async with a_proxy() as rig:
        client = await rig.connect()
        for byte in request(f"GET {rig.url}/ HTTP/1.1\nHost: x"):
            await client.say(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200


# --- slow clients ---


@pytest.mark.parametrize("start", [b"", b"GET http://h/ HT", b"GET http://h/ HTTP/1.1\r\nHost: h\r\nA: "])
async def test_a_slow_client_is_not_waited_for(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris: a byte now and then does not put off the deadline of a head."""
    monkeypatch.setattr(network_limits, "EGRESS_HEAD_MS", 300)
    async with a_proxy() as rig:
        client = await rig.connect()
        await client.say(start)
        started = time.monotonic()
        drip = asyncio.create_task(_drip(rig, client.writer)) if start else None
        said = await client.rest()
        assert 0.2 < time.monotonic() - started < 5
        if drip is not None:
            drip.cancel()
            await asyncio.gather(drip, return_exceptions=True)
        assert said.startswith(b"HTTP/1.1 400 ") if start else said == b""
        await rig.still_works()


async def _drip(rig: Rig, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.02)


async def test_a_slow_second_request_is_not_waited_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_HEAD_MS", 300)
    async with a_proxy() as rig:
        client = await rig.connect()
        assert (await client.ask(f"GET {rig.url}/ HTTP/1.1\nHost: x")).status == 200
        await client.say(b"GET http://h/ HTTP/1.1\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


async def test_many_slow_clients_hold_nobody_up() -> None:
    async with a_proxy() as rig:
        for _ in range(200):
            await (await rig.connect()).say(b"GET http://h/ HTTP/1.1\r\nHost: ")
        await until(lambda: rig.open == 200)
        await rig.still_works()
