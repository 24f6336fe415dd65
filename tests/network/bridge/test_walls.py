"""What the walls of a bridge hold back: from network namespaces in which the test is root, so more than containers can.

Each wall is taken away in the end, and what it held back comes through: the attempt was a real one.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING

import pytest

from fastclaw import network_limits
from fastclaw.errors import StartFailed
from fastclaw.network.bridge import links
from tests.network.bridge.rig import (
    OUTSIDE,
    PATIENCE_S,
    SOON_S,
    accepted,
    blackholed,
    connected,
    datagram,
    heard,
    ip,
    need_bridge,
    nft,
    original_destination,
    room,
    send_raw,
    started,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.network.bridge.rig import Room, Started


@pytest.fixture(scope="module", autouse=True)
def _bridge() -> None:
    need_bridge()


@pytest.fixture
async def inside(network: Started) -> AsyncIterator[Room]:
    async with room(network) as one:
        yield one


@pytest.fixture
async def other(network: Started, tmp_path: Path) -> AsyncIterator[Started]:
    """Another environment's network; its gateway is one more address of this host, too."""
    (tmp_path / "other").mkdir()
    async with started(tmp_path / "other") as one:
        yield one


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A TCP service of this host, on all its addresses."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        yield listener


@pytest.fixture
def service(listening: socket.socket) -> int:
    """Its port."""
    port: int = listening.getsockname()[1]
    return port


@pytest.fixture
def udp_service() -> Iterator[socket.socket]:
    """A UDP service of this host, on all its addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        yield sock


async def test_the_proxy_is_reached(network: Started, inside: Room) -> None:
    assert await inside.reaches((network.gateway, network_limits.EGRESS_PROXY_PORT))
    with accepted(network.listeners["proxy"]) as connection:
        assert connection.getpeername()[0] == await inside.address()


@pytest.mark.parametrize("port", [80, 443])
async def test_http_and_tls_are_turned_to_us_wherever_they_were_going(
    network: Started, inside: Room, port: int
) -> None:
    def ask() -> bytes:
        with socket.create_connection((OUTSIDE, port), 10) as sock:
            sock.sendall(b"hello")
            return sock.recv(5)

    with blackholed():
        asking = asyncio.ensure_future(inside.run(ask))
        await asyncio.sleep(0)
        with await links.in_own_thread(lambda: accepted(network.listeners["transparent"])) as connection:
            assert original_destination(connection) == (OUTSIDE, port)
            assert connection.recv(5) == b"hello"
            connection.sendall(b"there")
        assert await asking == b"there"


async def test_questions_for_names_are_turned_to_us(network: Started, inside: Room) -> None:
    with blackholed():
        await inside.sends((OUTSIDE, 53), (network.gateway, 53))
        assert len(heard(network.listeners["dns_udp"], 2)) == 2
        assert len(await inside.reaches((OUTSIDE, 53), (network.gateway, 53))) == 2
        for target in (OUTSIDE, network.gateway):
            with accepted(network.listeners["dns_tcp"]) as connection:
                assert original_destination(connection)[1] == 53, target


async def test_an_answer_comes_from_where_the_question_went(network: Started, inside: Room) -> None:
    def ask() -> tuple[bytes, str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(b"?", (network.gateway, 53))
            data, peer = sock.recvfrom(100)
            return data, f"{peer[0]}:{peer[1]}"

    def answer() -> None:
        listener = network.listeners["dns_udp"]
        listener.settimeout(10)
        _, peer = listener.recvfrom(100)
        listener.sendto(b"!", peer)

    asking = asyncio.ensure_future(inside.run(ask))
    await links.in_own_thread(answer)
    assert await asking == (b"!", f"{network.gateway}:53")


async def test_a_question_in_fragments_comes_whole_and_others_do_not(
    network: Started, inside: Room, udp_service: socket.socket
) -> None:
    await inside.sends((network.gateway, 53), (network.gateway, udp_service.getsockname()[1]), data=b"x" * 4_000)
    assert [len(data) for data, _ in heard(network.listeners["dns_udp"], 1)] == [4_000]
    assert heard(udp_service) == []


async def test_no_service_of_this_host_is_reached(network: Started, inside: Room, other: Started, service: int) -> None:
    """On the gateway's address, on others of the host's, and where connections are turned to."""
    hidden = [listener.getsockname()[1] for role, listener in network.listeners.items() if role != "dns_udp"]
    targets = [(address, port) for address in (network.gateway, other.gateway) for port in (service, 22, 8_080)]
    targets += [(network.gateway, port) for port in hidden]
    targets += [(other.gateway, network_limits.EGRESS_PROXY_PORT), (other.gateway, other.port("proxy"))]
    assert await inside.gets_to(*targets) == []
    network.open_walls()
    other.open_walls()
    now = await inside.reaches(*targets)
    real = {(network.gateway, service), (other.gateway, service), (other.gateway, other.port("proxy"))}
    assert real | {(network.gateway, network.port("proxy"))} <= {*now}


async def test_no_datagram_gets_to_a_service(
    network: Started, inside: Room, other: Started, udp_service: socket.socket
) -> None:
    """By no address: the gateway's, another one of the host's, the subnet's broadcast, everybody's, a group's."""
    port = udp_service.getsockname()[1]
    group = "239.255.77.7"
    membership = socket.inet_aton(group) + socket.inet_aton(network.gateway)
    udp_service.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    broadcast = str(network.bridge.subnet.broadcast_address)
    targets = [(address, port) for address in (network.gateway, other.gateway, broadcast, "255.255.255.255", group)]
    await inside.sends(*targets)
    assert heard(udp_service) == []
    network.open_walls()
    await inside.sends(*targets)
    assert len(heard(udp_service, 4)) >= 4


async def test_no_other_source_is_believed(network: Started, inside: Room, other: Started) -> None:
    """A loopback address, the gateway's own, somebody else's, everybody's."""
    questions, gateway, own = network.listeners["dns_udp"], network.gateway, await inside.address()
    forged = ["127.0.0.1", gateway, other.gateway, str(network.bridge.subnet.broadcast_address)]
    for source in (own, *forged, own):
        await inside.run(partial(send_raw, datagram(source, gateway, 53), gateway))
    assert heard(questions, 2) == [(b"!", own)] * 2


async def test_no_echo(network: Started, inside: Room) -> None:
    def ping(seconds: float) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.settimeout(seconds)
            sock.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 0), (network.gateway, 0))
            try:
                return bool(sock.recv(100))
            except TimeoutError:
                return False

    assert not await inside.run(partial(ping, SOON_S))
    network.open_walls()
    assert await inside.run(partial(ping, PATIENCE_S))


async def test_two_networks_do_not_see_each_other(network: Started, inside: Room, other: Started) -> None:
    async with room(other) as neighbour:
        address = await neighbour.address()
        with await neighbour.run(lambda: socket.create_server(("0.0.0.0", 0))) as listener:
            port = listener.getsockname()[1]
            assert await inside.gets_to((address, port), (address, 80)) == []
            assert (
                await links.in_own_thread(lambda: connected([(address, port)], SOON_S)) == []
            )  # not even from this host
            other.open_walls()
            assert await links.in_own_thread(lambda: connected([(address, port)], PATIENCE_S)) != []
            assert await inside.gets_to((address, port)) == []


async def test_two_containers_of_one_network_do_not_see_each_other(network: Started, inside: Room) -> None:
    async with room(network) as neighbour:
        address = await neighbour.address()
        assert address != await inside.address()
        with await neighbour.run(lambda: socket.create_server(("0.0.0.0", 0))) as listener:
            port = listener.getsockname()[1]
            network.open_walls()
            assert await inside.gets_to((address, port)) == []
            for name in links.interfaces(network.network.interface + "v"):
                ip("link", "set", "dev", name, "type", "bridge_slave", "isolated", "off")
            await inside.forget_neighbours()
            assert await inside.reaches((address, port)) != []


async def test_ipv6_is_off_and_would_not_help(network: Started, inside: Room) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        assert "inet6" not in await inside.run(lambda: ip("addr", "show", "dev", links.DEVICE))
        assert "inet6" not in ip("addr", "show", "dev", network.network.interface)
        _switch_on(network.network.interface)
        await inside.run(lambda: _switch_on(links.DEVICE))
        address = next(
            word.split("/")[0]
            for word in ip("addr", "show", "dev", network.network.interface).split()
            if "fe80" in word
        )
        target = (f"{address}%{links.DEVICE}", port)
        assert await inside.gets_to(target) == []
        network.open_walls()
        await inside.forget_neighbours()
        assert await inside.reaches(target) != []


def _switch_on(interface: str) -> None:
    """Link-local addresses, without the second that the kernel takes to see whether they are somebody else's."""
    for name, value in (("accept_dad", 0), ("disable_ipv6", 0)):
        links.configure("ipv6", interface, name, value)


async def test_the_hosts_own_processes_do_not_reach_the_listeners(network: Started) -> None:
    targets = [(network.gateway, network.port("proxy")), (network.gateway, network.port("dns_tcp"))]
    assert await links.in_own_thread(lambda: connected(targets, SOON_S)) == []
    network.open_walls()
    assert len(await links.in_own_thread(lambda: connected(targets, PATIENCE_S))) == 2


async def test_what_other_tables_say_does_not_open_ours(
    network: Started, inside: Room, listening: socket.socket, service: int
) -> None:
    """Accepted by them before and after; turned elsewhere by them after us, and before."""
    name = f"test_{network.bridge.token}"
    hooks = "".join(
        f"chain {hook}{at} {{ type filter hook {hook} priority {priority}; policy accept; accept; }};\n"
        for hook in ("prerouting", "input", "forward", "output")
        for at, priority in enumerate((-190, 190))
    )
    late, early = (
        f"chain turn{at} {{ type nat hook prerouting priority {priority}; "
        f'iifname "{network.network.interface}" tcp dport {port} dnat ip to {network.gateway}:{service}; }};\n'
        for at, (priority, port) in enumerate(((-100, 443), (-150, 8_443)))
    )
    nft(f"table inet {name} {{\n{hooks}{late}{early}}}")
    try:
        with blackholed():
            assert await inside.gets_to((network.gateway, service), (OUTSIDE, 8_443)) == []
            assert await inside.reaches((OUTSIDE, 443)) == [(OUTSIDE, 443)]
            assert select.select([listening], [], [], 0)[0] == []
            network.open_walls()
            assert len(await inside.reaches((network.gateway, service), (OUTSIDE, 443), (OUTSIDE, 8_443))) == 3
    finally:
        nft(f"delete table inet {name}")


async def test_another_firewall_that_is_in_the_way_is_noticed(
    network: Started, inside: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test_{network.bridge.token}"
    nft(f"table inet {name} {{ chain input {{ type filter hook input priority 0; policy accept; }}; }}")
    try:
        await inside.run(lambda: links._prove(network.bridge))
        nft(f'add rule inet {name} input iifname "fc*" drop')
        monkeypatch.setattr(network_limits, "BRIDGE_PROOF_MS", 200)
        with pytest.raises(StartFailed, match="does a firewall of this host drop") as caught:
            await inside.run(lambda: links._prove(network.bridge))
        assert caught.value.reason == "network_failed"
    finally:
        nft(f"delete table inet {name}")
