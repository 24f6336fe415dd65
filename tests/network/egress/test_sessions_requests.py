"""Clients of a proxy listener: refusals, and everything that is no request."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.network.egress.enforcement import AccessRequest
from fastclaw.network.egress.policy import Policy, Refused
from tests.network.egress.rig import HERE, Client, Rig, a_proxy, request
from tests.waiting import until

if TYPE_CHECKING:
    from fastclaw.network.egress.addresses import Address

SSH = b"SSH-2.0-server\r\n"
POST = b"POST http://h/ HTTP/1.1\r\nHost: h\r\n"
LONG = "x" * (network_limits.EGRESS_HEAD_BYTES + 1)


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


async def test_the_refusal_of_a_head_has_no_body(client: Client) -> None:
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
        rig.server.enforcer.policy = Policy(allow, ["127.0.0.0/9:4", "[::1]:5"])
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
        rig.server.enforcer.policy = Policy([f"{names[0]}:{port}"], ["127.0.0.0/8", "[::1]"])
        assert (await (await rig.connect()).ask(f"CONNECT {names[0]}:{port} HTTP/1.1\nHost: x")).reason == "denied"
        with pytest.raises(Refused, match="through the proxy"):
            await rig.server.enforcer.admit(AccessRequest("dns", names[0], 0))


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
async def test_what_is_no_body_ends_the_request(rig: Rig, client: Client, what: str) -> None:
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


async def test_a_length_that_does_not_reach_leaves_a_second_request_that_is_judged(rig: Rig, client: Client) -> None:
    inner = "GET http://evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n"
    await client.say(f"POST {rig.url}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n{inner}".encode())
    assert (await client.answer("POST")).status == 200
    refused = await client.answer()
    assert (refused.status, refused.reason) == (403, "not_allowed")
    assert len(rig.origin.seen) == 1


async def test_a_request_in_pieces_is_read_as_one(rig: Rig, client: Client) -> None:
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


async def test_many_slow_clients_hold_nobody_up(rig: Rig) -> None:
    for _ in range(200):
        await (await rig.connect()).say(b"GET http://h/ HTTP/1.1\r\nHost: ")
    await until(lambda: rig.open == 200)
    await rig.still_works()
