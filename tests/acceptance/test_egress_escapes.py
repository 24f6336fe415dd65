"""Attempts to get out of the sandbox, one by one (docs/security.md, "Against the network"): none gets anywhere.

That none does is not only what the program inside reads: afterwards nothing has reached the origin, to which every
address outside leads, nor the canary, which listens on every address of this host.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from fastclaw import network_limits
from tests.acceptance.egress_rig import CLIENT, GATEWAY, ORIGIN, UNLISTED, Canary, Origin, inside, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastclaw.client import RuntimeClient
    from tests.engine_fixtures import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

NAMES = ["origin.test:80,443,8080", "loop.test:*", "meta.test:*", "six.test:*", "*.wild.test:443"]
ALLOW = [*NAMES, f"{ORIGIN}:80,443,8080"]
"""Generous on purpose: names that lead to the host's loopback and to the metadata address are allowed, as names."""

METADATA = "169.254.169.254"
LOOPBACK_FORMS = [
    *(
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0177.0.0.1",
        "0x7f.1",
        "127.0.0.1.",
    ),
    *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]"),
    *("0", "0.0.0.0", "[::]", "loop.test", "six.test"),
]
LOOPBACK_NAMES = ["localhost", "LOCALHOST", "localhost.", "host.fastclaw.internal", "host.docker.internal"]


class Box:
    """One sandbox and what is around it."""

    def __init__(self, mode: str, client: RuntimeClient, origin: Origin, canary: Canary) -> None:
        self.mode, self.client, self._origin, self.canary = mode, client, origin, canary

    async def inside(self, word: str, *arguments: object, **request: Any) -> Any:
        return await inside(self.client, word, *arguments, **request)

    async def fail(self, *attempts: tuple[object, ...]) -> None:
        """Attempts, each a word with its arguments, that end in errors."""
        found = await self.inside("many", json.dumps(attempts))
        assert all("error" in one for one in found), list(zip(attempts, found, strict=True))

    async def is_refused(self, reason: str, word: str, *arguments: object) -> None:
        """An attempt that the proxy answers with a reason."""
        found = await self.inside(word, *arguments)
        assert found.get("reason") == reason, found

    def heads(self) -> list[str]:
        """What the origin has read since the last time."""
        return [event["data"] for event in self._origin.drain() if event["data"]]

    def nothing_happened(self) -> None:
        """Neither the origin nor the host has heard of it."""
        assert self._origin.drain() == []
        assert not self.canary.was_reached

    @property
    def proxy(self) -> str:
        assert self.client.welcome is not None
        return self.client.welcome.env["HTTP_PROXY"].removeprefix("http://").partition(":")[0]


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    one = Canary()
    yield one
    one.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["proxy", "bridge"])
async def box(
    engine_service: EngineService, image: str, origin: Origin, canary: Canary, request: pytest.FixtureRequest
) -> AsyncIterator[Box]:
    """The sandbox that the tests of a mode share; at the end what is allowed works as in the beginning."""
    async with a_box(engine_service, image, origin, canary, request.param) as one:
        yield one
        assert (await one.inside("fetch", "http://origin.test/"))["status"] == 200


@asynccontextmanager
async def a_box(
    service: EngineService, image: str, origin: Origin, canary: Canary, mode: str, namespace: str = "escapes"
) -> AsyncIterator[Box]:
    async with served(service, origin, {"mode": mode, "allow": ALLOW}, namespace, image=image) as client:
        origin.drain()
        yield Box(mode, client, origin, canary)


# --- around the proxy ---


@pytest.mark.parametrize("port", [22, 25, 6667])
async def test_other_ports_of_an_allowed_host(box: Box, port: int) -> None:
    await box.fail(("tcp", ORIGIN, port))
    await box.is_refused("not_allowed", "via", f"origin.test:{port}")
    box.nothing_happened()


async def test_an_address_that_no_rule_names(box: Box) -> None:
    found = await box.inside("plain", UNLISTED, 80)
    assert "error" in found or found["reason"] in ("not_allowed", "special_address", "name_mismatch")
    await box.fail(("tls", UNLISTED, 443, ""), ("tcp", UNLISTED, 22))
    assert (await box.inside("via", f"{UNLISTED}:443"))["status"] == 403
    box.nothing_happened()


@pytest.mark.parametrize("port", [53, 443, 4444])
async def test_udp(box: Box, port: int) -> None:
    """QUIC among it: 443."""
    for found in await box.inside("many", json.dumps([("udp", ORIGIN, port), ("udp", UNLISTED, port)])):
        assert "error" in found or (box.mode == "bridge" and port == 53), found
    box.nothing_happened()


async def test_icmp(box: Box) -> None:
    await box.fail(*(("ping", address) for address in {ORIGIN, GATEWAY, box.proxy} - {"127.0.0.1"}))
    box.nothing_happened()


async def test_broadcast_and_multicast(box: Box) -> None:
    network = box.proxy.rpartition(".")[0]
    for address in (f"{network}.255", "224.0.0.251", "255.255.255.255"):
        await box.inside("broadcast", address, box.canary.port)
    box.nothing_happened()


async def test_dns_tunnelling_by_the_resolver_of_the_sandbox(box: Box) -> None:
    """A name with data in it, below a zone that the attacker owns: nobody asks for it."""
    assert (await box.inside("resolve", "c2VjcmV0.tunnel.test"))["error"] == "gaierror"
    box.nothing_happened()


@pytest.mark.parametrize("over", ["udp", "tcp"])
async def test_dns_tunnelling_by_a_resolver_of_ones_own(box: Box, over: str) -> None:
    for server in (ORIGIN, UNLISTED, box.proxy):
        found = await box.inside("dns", server, "c2VjcmV0.tunnel.test", over)
        assert "error" in found or (found["rcode"], found["answers"]) == (5, 0), found
    box.nothing_happened()


async def test_dns_tunnelling_by_the_proxy(box: Box) -> None:
    """The name is refused before it is resolved."""
    await box.is_refused("not_allowed", "via", "c2VjcmV0.tunnel.test:443")
    await box.is_refused("not_allowed", "fetch", "http://c2VjcmV0.tunnel.test/")
    box.nothing_happened()


async def test_services_of_the_host(box: Box) -> None:
    """On the bridge's gateway, on another address of the host, and on what would be its loopback."""
    addresses = (box.proxy, GATEWAY, "127.0.0.1")
    await box.fail(*((over, address, box.canary.port) for over in ("tcp", "udp") for address in addresses))
    box.nothing_happened()


async def test_abstract_sockets_of_the_host(box: Box) -> None:
    await box.fail(("abstract", box.canary.name))
    box.nothing_happened()


async def test_the_engines_socket(box: Box, engine_service: EngineService) -> None:
    path = engine_service.url.removeprefix("unix://")
    await box.fail(*(("unix", one) for one in (path, "/run/podman/podman.sock", "/var/run/docker.sock")))
    await box.is_refused("bad_target", "raw", f"GET unix://{path}/libpod/info HTTP/1.1\\r\\nHost: d\\r\\n\\r\\n")
    await box.is_refused("bad_target", "raw", f"GET http+unix://{path}/ HTTP/1.1\\r\\nHost: d\\r\\n\\r\\n")


async def test_ipv6(box: Box) -> None:
    near = "fe80::1%eth0" if box.mode == "bridge" else "fe80::1"
    addresses = ("::1", near, "::ffff:198.51.100.10", "2001:db8::1")
    await box.fail(*((over, address, box.canary.port) for over in ("tcp", "udp") for address in addresses))
    box.nothing_happened()


async def test_rights_that_would_help(box: Box) -> None:
    found = await box.inside("privileged")
    assert found == {
        "packet": "EPERM",
        "raw": "EPERM",
        "route": "EPERM",
        "namespace": "EPERM",
        "steal loopback": "EADDRINUSE" if box.mode == "proxy" else "EADDRNOTAVAIL",
        "steal any": "EADDRINUSE" if box.mode == "proxy" else "done",
    }


async def test_the_metadata_service(box: Box) -> None:
    found = await box.inside("plain", METADATA, 80)
    assert "error" in found or found["status"] == 403
    for target in (f"{METADATA}:80", f"[::ffff:{METADATA}]:80", "2852039166:80", "meta.test:80"):
        await box.is_refused("special_address", "via", target)
    await box.is_refused("special_address", "fetch", "http://meta.test/latest/meta-data/")


async def test_a_container_of_another_namespace(
    box: Box, engine_service: EngineService, image: str, origin: Origin
) -> None:
    async with a_box(engine_service, image, origin, box.canary, box.mode, "neighbours") as other:
        server = await other.client.exec(["python3", "-c", CLIENT, "listen"])
        async with server:
            addresses = json.loads(await asyncio.wait_for(server.stdout_read(), 20))
            assert len(addresses) == (box.mode == "bridge")
            around = [*addresses, other.proxy]
            await box.fail(*((over, address, 8000) for over in ("tcp", "udp") for address in around))
            targets = [f"{address}:{port}" for address in around for port in (8000, network_limits.EGRESS_PROXY_PORT)]
            for found in (await box.inside("vias", *targets)).values():
                assert found["reason"] == "special_address"
            if box.mode == "bridge":
                await box.fail(("tcp", other.proxy, network_limits.EGRESS_PROXY_PORT))
            await server.kill(0)


# --- through the proxy, to where it must not lead ---


async def test_the_hosts_loopback_by_every_form(box: Box) -> None:
    for forms, expected in (
        (LOOPBACK_FORMS, {"special_address", "bad_target", "bad_request"}),
        (LOOPBACK_NAMES, {"not_allowed"}),
    ):
        found = await box.inside("vias", *(f"{form}:{box.canary.port}" for form in forms))
        reasons = {target: one["reason"] for target, one in found.items()}
        assert set(reasons.values()) <= expected, reasons
    box.nothing_happened()


async def test_addresses_of_the_host_by_the_proxy(box: Box) -> None:
    for address in (GATEWAY, box.proxy):
        await box.is_refused("special_address", "via", f"{address}:{box.canary.port}")
    box.nothing_happened()


async def test_the_proxy_itself(box: Box) -> None:
    for host in ("127.0.0.1", box.proxy, "2130706433", "[::1]"):
        await box.is_refused("special_address", "via", f"{host}:{network_limits.EGRESS_PROXY_PORT}")


async def test_a_redirect_to_where_it_must_not_lead(box: Box) -> None:
    found = await box.inside("fetch", f"http://origin.test/to/{GATEWAY}:{box.canary.port}")
    assert found["reason"] == "special_address"
    assert len(box.heads()) == 1
    box.nothing_happened()


async def test_another_name_inside_a_tunnel(box: Box) -> None:
    """Domain fronting: an allowed host by CONNECT, and a neighbour of its by TLS."""
    await box.fail(("fronted", "origin.test:443", "other.test"))
    assert box.heads() == []


async def test_another_host_in_the_header_than_in_the_target(box: Box) -> None:
    """The target counts (RFC 9112, 3.2.2): the origin reads its own name."""
    request = "GET http://origin.test/ HTTP/1.1\\r\\nHost: other.test\\r\\nConnection: close\\r\\n\\r\\n"
    found = await box.inside("raw", request)
    assert (found["status"], "other.test" in found["body"]) == (200, False)
    assert len(box.heads()) == 1


@pytest.mark.parametrize(
    "target",
    [
        "http://origin.test@198.51.100.11/",
        "http://198.51.100.11\\\\@origin.test/",
        "http://198.51.100.11#@origin.test/",
        "http://198.51.100.11?@origin.test/",
        "http://origin.test.198.51.100.11.tunnel.test/",
        "http://origin.test%2e198.51.100.11/",
        "http://%32%30%33.0.113.11/",
        "http://\\xef\\xbc\\x92\\xef\\xbc\\x90\\xef\\xbc\\x93.0.113.11/",
        "http://198.51.100.11\\tx.origin.test/",
        "http://198.51.100.11:80:origin.test/",
        "http://origin.test:0x1bb/",
        "http://[198.51.100.11]/",
        "http:198.51.100.11/",
        "https://origin.test/",
        "ftp://origin.test/",
        "//origin.test/",
        "/",
        "*",
    ],
)
async def test_targets_that_two_parsers_may_read_differently(box: Box, target: str) -> None:
    found = await box.inside("raw", f"GET {target} HTTP/1.1\\r\\nHost: origin.test\\r\\nConnection: close\\r\\n\\r\\n")
    assert found["status"] in (400, 403), found
    box.nothing_happened()


@pytest.mark.parametrize(
    "rest",
    [
        "Content-Length: 6\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nG",
        "Transfer-Encoding: chunked\\r\\nContent-Length: 4\\r\\n\\r\\n0\\r\\n\\r\\n",
        "Content-Length: 4\\r\\nContent-Length: 5\\r\\n\\r\\nabcde",
        "Transfer-Encoding: xchunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        "Transfer-Encoding : chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
        "X: 1\\r\\n Transfer-Encoding: chunked\\r\\nBad\\0: 1\\r\\n\\r\\n",
        "X: b\\rc\\r\\n\\r\\n",
    ],
)
async def test_smuggled_requests(box: Box, rest: str) -> None:
    found = await box.inside("raw", f"POST http://origin.test/ HTTP/1.1\\r\\nHost: a\\r\\n{rest}")
    assert found["status"] in (400, None), found
    box.nothing_happened()


async def test_oversized_headers(box: Box) -> None:
    huge = "x" * (network_limits.EGRESS_HEAD_BYTES + 1000)
    found = await box.inside("raw", f"GET http://origin.test/ HTTP/1.1\\r\\nHost: a\\r\\nX: {huge}\\r\\n\\r\\n")
    assert found["status"] in (400, 431), found
    box.nothing_happened()


async def test_methods_and_protocols_that_are_none(box: Box) -> None:
    for request in (
        "G E T http://origin.test/ HTTP/1.1",
        "GET http://origin.test/ HTTP/9.9",
        "\\x16\\x03\\x01\\x02\\0",
        "\\x05\\x01\\0",
    ):
        found = await box.inside("raw", f"{request}\\r\\nHost: a\\r\\n\\r\\n")
        assert found["status"] in (400, None), found
    box.nothing_happened()


async def test_a_second_request_is_judged_like_the_first(box: Box) -> None:
    first = "GET http://origin.test/ HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
    second = f"GET http://{UNLISTED}/ HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
    found = await box.inside("raw", first + second)
    assert "special_address" in found["body"] or "not_allowed" in found["body"]
    assert len(box.heads()) == 1


# --- connections that are turned to the proxy ---


only_bridge = pytest.mark.parametrize("box", ["bridge"], indirect=True)


@only_bridge
async def test_an_allowed_name_on_the_way_to_another_address(box: Box) -> None:
    await box.fail(("tls", UNLISTED, 443, "origin.test"))
    await box.is_refused("name_mismatch", "plain", UNLISTED, 80, "origin.test")
    box.nothing_happened()


@only_bridge
async def test_no_name_on_the_way_to_an_address_that_is_not_listed(box: Box) -> None:
    await box.fail(("tls", UNLISTED, 443, ""))
    found = await box.inside("tcp", UNLISTED, 80, "GET / HTTP/1.0\r\n\r\n")
    assert "200 OK" not in found.get("data", "")
    box.nothing_happened()


@only_bridge
async def test_the_port_that_connections_are_turned_to(box: Box) -> None:
    """AccessRequest for by itself it has no original destination but its own."""
    ports = range(network_limits.EGRESS_PROXY_PORT + 1, network_limits.EGRESS_PROXY_PORT + 5)
    await box.fail(*(("plain", box.proxy, port, "origin.test") for port in ports))
    box.nothing_happened()
