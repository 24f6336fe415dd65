"""A company's proxy outside: asked for what is allowed and goes out, with credentials that nobody else sees."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from fastclaw.network.egress.proxy_frames import Upstream
from tests.network.egress.rig import HERE, a_proxy, client_hello, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path
    from typing import Any

    from fastclaw.network.egress.addresses import Address
    from tests.network.egress.rig import Rig

PUBLIC = "192.31.196.1"
"""Never connected to here; of AS112 (RFC 7535)."""

SECRET = "Basic dTpzM2NyZXQ="


async def _lookup(name: str) -> Sequence[Address]:
    places = {"public.test": PUBLIC, "rebind.test": "169.254.169.254", "inside.test": HERE}
    if name not in places:
        raise OSError("no such name")
    return [ip_address(places[name])]


class Company:
    """Answers what it is told to; a tunnel repeats what comes.

    Attributes:
        heads: what it was asked, with all fields.
    """

    def __init__(self, answer: bytes) -> None:
        self.heads: list[str] = []
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self._answer)
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    @property
    def lines(self) -> list[str]:
        return [head.partition(" HTTP/")[0] for head in self.heads]


@asynccontextmanager
async def _behind(
    answer: bytes = b"HTTP/1.1 200 Fine\r\nX: y\r\n\r\nhi", allow: Sequence[str] = ("*.test:*",), **options: Any
) -> AsyncIterator[tuple[Rig, Company]]:
    company = Company(answer)
    server = await asyncio.start_server(company.serve, HERE, 0)
    upstream = Upstream(host=HERE, port=server.sockets[0].getsockname()[1], authorization=SECRET)
    async with server, a_proxy(allow, lookup=_lookup, upstream=upstream, **options) as rig:
        yield rig, company


@pytest.mark.parametrize("target", ["unknown.test:443", "public.test:443", f"{PUBLIC}:443"])
async def test_a_tunnel_goes_through_the_proxy_outside_by_its_name(target: str, tmp_path: Path) -> None:
    """NVIDIA/OpenShell#1792, docker/sbx-releases#330."""
    log = tmp_path / "log"
    async with _behind(allow=["*.test:443", "*"], log=log) as (rig, company):
        client = await rig.tunnel(target)
        assert await client.read(2) == b"hi"
        await client.say(b"there")
        assert await client.read(5) == b"there"
        assert company.heads == [
            f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: {SECRET}\r\n\r\n"
        ]
        rules = await (await rig.connect()).ask("GET http://rules.fastclaw.internal/ HTTP/1.1\nHost: x")
        assert SECRET.encode() not in rules.body
    assert SECRET not in log.read_text()
    assert [json.loads(line)["address"] for line in log.read_text().splitlines()] == [None]


async def test_what_a_tunnel_carries_is_looked_at_all_the_same() -> None:
    async with _behind(b"HTTP/1.1 200 Fine\r\n\r\n", allow=["unknown.test:*"]) as (rig, company):
        client = await rig.tunnel("unknown.test:443")
        await client.say(client_hello("evil.test"))
        assert await client.rest() == bytes.fromhex("15030300020231")
        client = await rig.tunnel("unknown.test:80")
        assert (await client.ask("GET / HTTP/1.1\nHost: evil.test")).reason == "not_allowed"
        assert rig.denied == {"name_mismatch": 1, "not_allowed": 1}
        assert company.lines == ["CONNECT unknown.test:443", "CONNECT unknown.test:80"]


async def test_plain_requests_are_asked_of_it_each_on_a_connection_of_its_own() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with _behind(answer) as (rig, company):
        client = await rig.connect()
        for path in ("/a?b", "/c"):
            mine = "Proxy-Authorization: mine\nHost: x"
            assert (await client.ask(f"GET http://unknown.test:81{path} HTTP/1.1\n{mine}")).body == b"ok"
        assert company.lines == ["GET http://unknown.test:81/a?b", "GET http://unknown.test:81/c"]
        assert all(f"Proxy-Authorization: {SECRET}\r\n" in head and "mine" not in head for head in company.heads)
        tunnel = await rig.tunnel("unknown.test:80")  # which it refuses to be one for: it is asked once more, plainly
        await tunnel.close()
        assert rig.counters.snapshot()["allowed"] == 3


async def test_policy_comes_first_and_addresses_are_judged_where_they_are_known() -> None:
    async with _behind(allow=["*.test:443", "public.test:80", "[::1]:443"]) as (rig, company):
        for target, reason in (
            ("evil.example:443", "not_allowed"),
            ("unknown.test:80", "not_allowed"),
            ("rebind.test:443", "special_address"),
            ("169.254.169.254:443", "special_address"),
            (f"{HERE}:443", "special_address"),
            ("inside.test:443", "special_address"),
        ):
            answer = await (await rig.connect()).ask(f"CONNECT {target} HTTP/1.1\nHost: x")
            assert answer.reason == reason, target
        assert company.heads == []


async def test_what_a_rule_lists_inside_is_reached_straight() -> None:
    async with _behind(allow=["127.0.0.1:*", "inside.test:*"]) as (rig, company):
        client = await rig.connect()
        for host in (HERE, "inside.test"):
            assert (await client.ask(f"GET http://{host}:{rig.origin.port}/ HTTP/1.1\nHost: x")).status == 200
        rig.server.enforcer.policy = type(rig.server.enforcer.policy)([f"host.fastclaw.internal:{rig.origin.port}"])
        url = f"http://host.fastclaw.internal:{rig.origin.port}/"
        assert (await client.ask(f"GET {url} HTTP/1.1\nHost: x")).status == 200
        assert company.heads == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 403 Secret words\r\n\r\n", "it answered 403 for unknown.test:443"),
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "answered 407 for unknown.test:443, and wants credentials"),
        (b"SSH-2.0\r\n\r\n", "answered no HTTP"),
        (b"x" * 40_000, "no answer"),
    ],
)
async def test_what_it_says_instead_of_a_tunnel_is_told_without_its_words(answer: bytes, text: str) -> None:
    async with _behind(answer) as (rig, _):
        found = await (await rig.connect()).ask("CONNECT unknown.test:443 HTTP/1.1\nHost: x")
        assert (found.status, found.reason) == (502, "unreachable")
        assert text in found.body.decode()
        assert b"Secret words" not in found.body
        if answer.startswith(b"HTTP/1.1 407"):
            found = await (await rig.connect()).ask("GET http://unknown.test/ HTTP/1.1\nHost: x")
            assert (found.status, found.reason, b"wants credentials" in found.body) == (502, "unreachable", True)


async def test_one_that_does_not_answer_is_waited_for_no_longer_than_any_server() -> None:
    async with _behind(b"", connect_timeout_ms=200) as (rig, _):
        client = await rig.connect()
        await client.say(request("CONNECT unknown.test:443 HTTP/1.1\nHost: x"))
        assert (await client.answer()).reason == "connect_timeout"
