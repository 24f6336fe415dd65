"""Clients that know of no proxy: their connections are turned by a real firewall, in namespaces without a way out."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest

from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.sandbox_server import Commons, Server
from fastclaw.network.egress.sessions import original_destination
from tests.network.egress.namespaces import CLIENT, HOST, PORT, SERVER, SERVER_V6, Namespaces, namespaces
from tests.network.egress.rig import LENGTH_FIRST, UNREADABLE, Client, Origin, Rig, client_hello, config, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from typing import Any

    from fastclaw.network.egress.addresses import Address


@pytest.fixture(scope="module")
def net() -> Iterator[Namespaces]:
    with namespaces() as made:
        yield made


async def _lookup(name: str) -> Sequence[Address]:
    places = {"site.test": [SERVER, SERVER_V6], "denied.test": [SERVER], "elsewhere.test": ["192.31.196.77"]}
    if name not in places:
        raise OSError("no such name")
    return [ip_address(address) for address in places[name]]


class TurningRig(Rig):
    """A rig whose clients are in a namespace of their own."""

    net: Namespaces

    async def reach(self, address: str, port: int) -> Client:
        """A connection of the client's to an address of the world, as it believes."""
        sock = self.net.tcp("client", socket.AF_INET6 if ":" in address else socket.AF_INET)
        async with asyncio.timeout(10):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        client = Client(*await asyncio.open_connection(sock=sock))
        self._clients.append(client)
        return client


@asynccontextmanager
async def _rig(net: Namespaces, allow: Sequence[str], **options: Any) -> AsyncIterator[TurningRig]:
    counters = Counters.create()
    commons = Commons(1_000)
    server = Server(config(allow, **options), counters, print, commons, _lookup)
    for id, address in enumerate(("0.0.0.0", "::")):
        server.add(id, "transparent", net.listener("host", address, PORT))
    origin = Origin()
    await origin.start(net.listener("server", SERVER, 80))
    rig = TurningRig(server, counters, origin, PORT, [])
    rig.net = net
    try:
        yield rig
    finally:
        await rig.aclose()
        commons.close()


def test_a_request_goes_to_where_it_was_going_if_its_host_may_be_there(net: Namespaces) -> None:
    async def main() -> None:
        async with _rig(net, ["site.test"], subnet="10.99.0.0/24") as rig:
            client = await rig.reach(SERVER, 80)
            for number in range(3):
                answer = await client.ask(f"GET /{number} HTTP/1.1\nHost: Site.test")
                assert (answer.status, answer.fields["via"]) == (200, "1.1 fastclaw")
            assert rig.origin.seen[0].line == "GET /0 HTTP/1.1"
            assert rig.origin.seen[0].fields["host"] == "site.test"
            assert rig.origin.connections == 1
            assert rig.counters.snapshot()["allowed"] == 3

    net.run_on_host(main())


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("GET / HTTP/1.1\nHost: evil.test", "not_allowed"),
        ("GET / HTTP/1.1\nHost: denied.test", "denied"),
        ("GET / HTTP/1.1\nHost: elsewhere.test", "name_mismatch"),
        ("GET / HTTP/1.1\nHost: 192.31.196.77", "name_mismatch"),
        ("GET / HTTP/1.1\nHost: site.test:8080", "name_mismatch"),
        ("GET http://evil.test/ HTTP/1.1\nHost: site.test", "not_allowed"),
        ("GET / HTTP/1.1\nHost: " + SERVER, "no_name"),
        ("GET / HTTP/1.1\nHost:", "no_name"),
        ("GET / HTTP/1.0", "no_name"),
        ("GET / HTTP/1.1\nHost: site.test/@evil", "bad_target"),
        ("GET / HTTP/1.1\nHost: a, site.test", "bad_target"),
        ("CONNECT site.test:443 HTTP/1.1\nHost: site.test", "bad_target"),
        ("GET /\nHost: site.test", "bad_request"),
    ],
)
def test_a_request_that_does_not_say_where_it_may_go_goes_nowhere(net: Namespaces, head: str, reason: str) -> None:
    async def main() -> None:
        async with _rig(net, ["site.test", "denied.test", "elsewhere.test"], deny=["denied.test"]) as rig:
            client = await rig.reach(SERVER, 80)
            answer = await client.ask(head)
            assert answer.reason == reason
            assert rig.origin.connections == 0

    net.run_on_host(main())


def test_a_name_that_no_rule_allows_is_refused_also_on_a_connection_that_was_fine(net: Namespaces) -> None:
    async def main() -> None:
        async with _rig(net, ["site.test"]) as rig:
            client = await rig.reach(SERVER, 80)
            assert (await client.ask("GET / HTTP/1.1\nHost: site.test")).status == 200
            answer = await client.ask("GET / HTTP/1.1\nHost: evil.test")
            assert (answer.status, answer.reason) == (403, "not_allowed")
            assert len(rig.origin.seen) == 1

    net.run_on_host(main())


@pytest.mark.parametrize("address", [SERVER, SERVER_V6])
def test_tls_is_joined_with_the_server_it_was_going_to(net: Namespaces, address: str) -> None:
    hello = client_hello("site.test")

    async def main() -> None:
        heard = asyncio.get_running_loop().create_future()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.set_result(await reader.readexactly(len(hello)))
            writer.write(b"server hello")
            writer.close()

        async with _rig(net, ["site.test"]) as rig:
            server = await asyncio.start_server(listen, sock=net.listener("server", address, 443))
            async with server:
                client = await rig.reach(address, 443)
                await client.say(hello)
                assert await client.rest() == b"server hello"
                assert heard.result() == hello

    net.run_on_host(main())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("evil.test", "not_allowed"), ("elsewhere.test", "name_mismatch"), (None, "no_name"), ("denied.test", "denied")],
)
def test_tls_for_another_server_is_refused(net: Namespaces, name: str | None, reason: str) -> None:
    async def main() -> None:
        async with _rig(net, ["site.test", "elsewhere.test"], deny=["denied.test"]) as rig:
            client = await rig.reach(SERVER, 443)
            await client.say(client_hello(name))
            assert await client.rest() == bytes.fromhex("15030300020231")
            assert rig.denied == {reason: 1}

    net.run_on_host(main())


def test_an_address_that_a_rule_lists_needs_no_name(net: Namespaces) -> None:
    async def main() -> None:
        async with _rig(net, [f"{SERVER}:80"]) as rig:
            client = await rig.reach(SERVER, 80)
            assert (await client.ask("GET / HTTP/1.0")).status == 200
            assert rig.origin.seen[0].fields["host"] == SERVER

    net.run_on_host(main())


@pytest.mark.parametrize("words", [b"SSH-2.0-x\r\n", LENGTH_FIRST, UNREADABLE[0]])
def test_words_that_are_neither_need_a_rule_that_lists_the_address(net: Namespaces, words: bytes) -> None:
    async def main() -> None:
        heard = asyncio.get_running_loop().create_future()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.set_result(await reader.readexactly(len(words)))
            writer.close()

        server = await asyncio.start_server(listen, sock=net.listener("server", SERVER, 443))
        async with server:
            async with _rig(net, ["site.test"]) as rig:
                await (refused := await rig.reach(SERVER, 443)).say(words)
                assert (await refused.rest())[:1] in (b"H", b"\x15")
                assert rig.denied == {"bad_request": 1}
            async with _rig(net, [f"{SERVER}:443"]) as rig:
                client = await rig.reach(SERVER, 443)
                await client.say(words)
                assert await heard == words
                assert rig.counters.snapshot()["allowed"] == 1

    net.run_on_host(main())


def test_who_comes_to_the_listener_itself_is_refused(net: Namespaces) -> None:
    async def main() -> None:
        async with _rig(net, ["*", f"{HOST}:*"]) as rig:
            client = await rig.reach(HOST, PORT)
            answer = await client.ask("GET / HTTP/1.1\nHost: site.test")
            assert (answer.status, answer.reason) == (400, "bad_target")
            assert rig.origin.connections == 0

    net.run_on_host(main())


def test_who_is_not_of_the_subnet_is_turned_away(net: Namespaces) -> None:
    async def main() -> None:
        async with _rig(net, ["site.test"], subnet="10.99.0.128/25") as rig:
            client = await rig.reach(SERVER, 80)
            answer = await client.answer()
            assert (answer.status, answer.reason) == (403, "not_from_sandbox")
            assert CLIENT.encode() in answer.body
            assert rig.open == 0

    net.run_on_host(main())


def test_the_kernel_says_where_a_connection_was_going(net: Namespaces) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for listen, address, there in (
            ("0.0.0.0", SERVER, IPv4Address(SERVER)),
            ("::", SERVER_V6, IPv6Address(SERVER_V6)),
        ):
            with (
                net.listener("host", listen, PORT) as listener,
                net.tcp("client", listener.family) as client,
                net.tcp("client", listener.family) as direct,
            ):
                await loop.sock_connect(client, (address, 443))
                with listener.accept()[0] as turned:
                    assert original_destination(turned) == (there, 443)
                await loop.sock_connect(direct, (HOST if listen == "0.0.0.0" else "fd99::1", PORT))
                with listener.accept()[0] as accepted:
                    assert original_destination(accepted) is None

    net.run_on_host(main())


def test_without_a_firewall_there_is_no_such_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert original_destination(connection) is None


# --- tunnels to an address that no rule lists, which loopback is not ---


@asynccontextmanager
async def _tunnelling(net: Namespaces, allow: Sequence[str], port: int = 80) -> AsyncIterator[tuple[Rig, Client]]:
    """A tunnel to `site.test`."""
    async with _rig(net, allow) as rig:
        rig.server.add(9, "proxy", net.listener("host", HOST, 3128))
        client = await rig.reach(HOST, 3128)
        await client.say(request(f"CONNECT site.test:{port} HTTP/1.1\nHost: x"))
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        yield rig, client


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("GET / HTTP/1.1\nHost: evil.test", "not_allowed"),
        ("GET http://evil.test/ HTTP/1.1\nHost: site.test", "not_allowed"),
        ("GET / HTTP/1.1\nHost: site.test:8080", "name_mismatch"),
        ("\nGET / HTTP/1.1\nHost: evil.test", "not_allowed"),
        ("PRI * HTTP/2.0", "bad_request"),
        ("GET /", "bad_request"),
    ],
)
def test_a_request_in_a_tunnel_is_judged_like_any(net: Namespaces, head: str, reason: str) -> None:
    async def main() -> None:
        async with _tunnelling(net, ["site.test"]) as (rig, client):
            assert (await client.ask("GET /good HTTP/1.1\nHost: site.test")).status == 200
            await client.say(request(head))
            assert (await client.answer()).reason == reason
            assert [seen.line for seen in rig.origin.seen] == ["GET /good HTTP/1.1"]
            assert rig.origin.connections == 1
        async with _tunnelling(net, ["site.test"]) as (rig, client):
            await client.say(request(head)[:1])
            await client.say(request(head)[1:])
            assert (await client.answer()).reason == reason
            assert rig.origin.seen == []

    net.run_on_host(main())


def test_a_request_with_bare_line_feeds_is_no_way_around_that(net: Namespaces) -> None:
    async def main() -> None:
        async with _tunnelling(net, ["site.test"]) as (rig, client):
            await client.say(b"\nGET / HTTP/1.1\nHost: evil.test\n\n")
            assert (await client.answer()).status == 400
            assert rig.origin.seen == []

    net.run_on_host(main())


def test_a_request_in_a_tunnel_that_names_nobody_is_for_who_was_asked_for(net: Namespaces) -> None:
    async def main() -> None:
        async with _tunnelling(net, ["site.test"]) as (rig, client):
            assert (await client.ask("GET / HTTP/1.0")).status == 200
            assert rig.origin.seen[0].fields["host"] == "site.test"

    net.run_on_host(main())


@pytest.mark.parametrize("words", [*UNREADABLE, LENGTH_FIRST, b"*1\r\n$4\r\nPING\r\n", b"\0\x01", b"SSH-2.0-x\r\n"])
def test_what_could_be_tls_and_cannot_be_read_is_refused(net: Namespaces, words: bytes) -> None:
    """And what no server takes for TLS or HTTP is not, whatever its first byte."""

    async def main() -> None:
        heard = asyncio.get_running_loop().create_future()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.set_result(await reader.read(1 << 16))
            writer.close()

        server = await asyncio.start_server(listen, sock=net.listener("server", SERVER, 443))
        async with server, _tunnelling(net, ["site.test"], 443) as (rig, client):
            await client.say(words)
            assert await heard == (b"" if words in UNREADABLE else words)
            assert rig.denied == ({"bad_request": 1} if words in UNREADABLE else {})

    net.run_on_host(main())
