"""Connecting to addresses that were checked, and which addresses are this host's own."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from fastclaw import network_limits
from fastclaw.linux import netlink
from fastclaw.network.egress import dialing as module
from fastclaw.network.egress.addresses import Address
from fastclaw.network.egress.dialing import LocalAddresses, dial
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.shares import Pool, Share
from tests.balance import balanced
from tests.network.egress.namespaces import needs_root, run_apart
from tests.network.egress.rig import many, reason_of

ONE, TWO, THREE, FOUR = (ip_address(f"127.0.0.{number}") for number in (1, 2, 3, 4))
SIX = ip_address("::1")

CLOSED = 1
"""A port of loopback where nobody listens (tcpmux)."""


THROUGH_THE_LOOP = (errno.EINPROGRESS, errno.EALREADY, 0)
"""What counts as unanswered, so that each answer takes the way through the loop, as a distant one's does."""


class Ports:
    """Listeners on loopback, on the same port of several addresses."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.port = 0

    def listen(self, host: str, backlog: int = 16) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = self.stack.enter_context(socket.socket(family))
        listener.bind((host, self.port))
        listener.listen(backlog)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        return listener

    def silent(self, host: str) -> socket.socket:
        """A listener with a full backlog: the kernel drops further SYNs, and a connect waits."""
        listener = self.listen(host, 0)
        filler = self.stack.enter_context(socket.create_connection((host, self.port)))
        assert filler.getpeername()[0] == host
        return listener


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    with made.stack:
        yield made


async def test_a_connection_comes_about(ports: Ports) -> None:
    listener = ports.listen("127.0.0.1")
    with (await dial([ONE], ports.port, 5, many())).socket as sock:
        assert sock.getpeername() == listener.getsockname()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert not sock.getblocking()
        assert not os.get_inheritable(sock.fileno())


async def test_over_ipv6_too(ports: Ports) -> None:
    ports.listen("::1")
    with (await dial([SIX], ports.port, 5, many())).socket as sock:
        assert sock.getpeername()[0] == "::1"


async def test_addresses_are_tried_in_order(ports: Ports) -> None:
    ports.listen("127.0.0.2")
    ports.listen("127.0.0.3")
    with (await dial([ONE, THREE, TWO], ports.port, 5, many())).socket as sock:
        assert sock.getpeername()[0] == "127.0.0.3"


async def test_nobody_listens() -> None:
    async with balanced():
        with pytest.raises(Refused, match=r"127\.0\.0\.2 port 1: Connection refused") as caught:
            await dial([ONE, TWO], CLOSED, 5, many())
    assert caught.value.reason == "unreachable"


async def test_no_address_is_no_connection() -> None:
    assert await reason_of(dial([], CLOSED, 5, many())) == "unreachable"


async def test_no_way_leads_there() -> None:
    """The kernel refuses a link-local address without a zone by itself."""
    assert await reason_of(dial([ip_address("fe80::1")], CLOSED, 5, many())) == "unreachable"


async def test_silence_ends_at_the_deadline(ports: Ports) -> None:
    ports.silent("127.0.0.1")
    async with balanced():
        began = asyncio.get_running_loop().time()
        with pytest.raises(Refused, match="no answer within") as caught:
            await dial([ONE], ports.port, 0.2, many())
        took = asyncio.get_running_loop().time() - began
    assert round(took, 3) >= 0.2  # the loop's clock has whole milliseconds, its difference all the digits of a float
    assert caught.value.reason == "connect_timeout"


async def test_the_next_address_does_not_wait_for_a_silent_one(ports: Ports) -> None:
    ports.silent("127.0.0.1")
    ports.silent("127.0.0.2")
    ports.listen("127.0.0.3")
    async with balanced():
        began = asyncio.get_running_loop().time()
        sock = (await dial([ONE, TWO, THREE], ports.port, 60, many())).socket
        took = asyncio.get_running_loop().time() - began
        assert sock.getpeername()[0] == "127.0.0.3"
        sock.close()
    assert 2 * network_limits.EGRESS_NEXT_ADDRESS_MS / 1000 <= round(took, 3) < 30


async def test_the_one_that_answers_ends_all_the_others(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    ports.silent("127.0.0.1")
    ports.listen("127.0.0.2")
    last = ports.listen("127.0.0.3")
    monkeypatch.setattr(network_limits, "EGRESS_NEXT_ADDRESS_MS", 20)
    monkeypatch.setattr(module, "_UNDER_WAY", THROUGH_THE_LOOP)
    (await dial([ONE, TWO, THREE], ports.port, 60, many())).socket.close()
    await asyncio.sleep(0.06)  # three times as long as the next one waits for
    with pytest.raises(BlockingIOError):
        last.accept()


async def test_a_refusal_that_comes_late_brings_the_next(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel repeats its SYN after a second, and then nobody listens any more."""
    monkeypatch.setattr(network_limits, "EGRESS_NEXT_ADDRESS_MS", 60_000)
    with ports.silent("127.0.0.1"):
        ports.listen("127.0.0.2")
        dialling = asyncio.create_task(dial([ONE, TWO], ports.port, 60, many()))
        await asyncio.sleep(0)
    with (await dialling).socket as sock:
        assert sock.getpeername()[0] == "127.0.0.2"


async def test_one_refusal_while_another_is_silent_brings_the_next_at_once(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports.silent("127.0.0.1")
    ports.listen("127.0.0.3")
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(network_limits, "EGRESS_NEXT_ADDRESS_MS", 60_000)
    race = module._Race([ONE, TWO, THREE], ports.port, 60, many())
    race.start()
    loop.call_soon(race._try_next)  # as the timer does
    await race.ended
    sock = race.take().socket
    race.close()
    assert sock.getpeername()[0] == "127.0.0.3"
    sock.close()


async def test_with_one_descriptor_the_next_address_waits_for_the_one_before(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_NEXT_ADDRESS_MS", 10)
    ports.listen("127.0.0.2")
    pool = Pool(0)
    (await dial([ONE, TWO], ports.port, 60, Share(pool))).socket.close()  # ONE refuses
    ports.silent("127.0.0.1")
    assert await reason_of(dial([ONE, TWO], ports.port, 0.2, Share(pool))) == "connect_timeout"
    pool.free = 2
    (await dial([ONE, TWO], ports.port, 60, Share(pool))).socket.close()
    assert pool.free == 2


async def test_all_addresses_share_one_deadline(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_NEXT_ADDRESS_MS", 10)
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        ports.silent(host)
    async with balanced():
        with pytest.raises(Refused, match=r"127\.0\.0\.1, 127\.0\.0\.2, 127\.0\.0\.3 port") as caught:
            await dial([ONE, TWO, THREE], ports.port, 0.3, many())
    assert caught.value.reason == "connect_timeout"


@pytest.mark.parametrize("addresses", [[ONE], [ONE, TWO], [ONE, TWO, THREE]])
async def test_giving_up_leaves_nothing(
    ports: Ports, addresses: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in addresses:
        ports.silent(str(address))
    ports.listen("127.0.0.4")
    async with balanced():
        dialling = asyncio.create_task(dial(addresses, ports.port, 60, many()))
        await asyncio.sleep(0)
        assert not dialling.done()
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        # The next one gets the same descriptors, and hears of its own answer.
        monkeypatch.setattr(module, "_UNDER_WAY", THROUGH_THE_LOOP)
        (await dial([FOUR], ports.port, 10, many())).socket.close()


@pytest.mark.parametrize("turns", range(6))
async def test_giving_up_at_any_turn_leaves_nothing(ports: Ports, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between the kernel's answer and the moment it is handed on."""
    monkeypatch.setattr(module, "_UNDER_WAY", THROUGH_THE_LOOP)
    ports.listen("127.0.0.2")
    async with balanced():
        dialling = asyncio.create_task(dial([TWO], ports.port, 60, many()))
        for _ in range(turns):
            await asyncio.sleep(0)
        dialling.cancel()
        [result] = await asyncio.gather(dialling, return_exceptions=True)
        if isinstance(result, module.Dialled):
            result.socket.close()
        else:
            assert isinstance(result, asyncio.CancelledError)


async def test_without_descriptors_it_is_unreachable(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ports.listen("127.0.0.1")
    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(Refused, match="Too many open files") as caught:
        await dial([ONE], ports.port, 5, many())
    assert caught.value.reason == "unreachable"


ELSEWHERE = ["8.8.8.8", "2606:4700:4700::1111"]
"""Somebody else's. Only the route there is asked for: nothing is sent."""


@pytest.fixture
def local() -> Iterator[LocalAddresses]:
    made = LocalAddresses()
    try:
        yield made
    finally:
        made.close()
        made.close()


@pytest.mark.parametrize("text", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "0.0.0.0"])
def test_loopback_is_ours_in_every_form(local: LocalAddresses, text: str) -> None:
    assert local.has(ip_address(text))


@pytest.mark.parametrize("text", ELSEWHERE)
def test_what_is_elsewhere_is_not(local: LocalAddresses, text: str) -> None:
    assert not local.has(ip_address(text))


def test_without_a_kernel_to_ask_everything_is_ours(local: LocalAddresses) -> None:
    local.close()
    assert local.has(ip_address(ELSEWHERE[0]))


def test_an_answer_that_came_too_late_is_passed_over(local: LocalAddresses) -> None:
    local._socket.send(netlink.get_route(ip_address("127.0.0.1"), 0))
    assert not local.has(ip_address(ELSEWHERE[0]))
    assert local.has(ip_address("127.0.0.1"))


IN_A_NAMESPACE = """
import subprocess
from ipaddress import ip_address
from fastclaw.network.egress.dialing import LocalAddresses

def ip(*words):
    subprocess.run(["ip", *words], check=True)

local = LocalAddresses()
first, second, other, six = map(ip_address, ("203.0.113.7", "203.0.113.8", "203.0.113.9", "2001:db8::7"))
assert not local.has(first)
ip("link", "add", "d0", "type", "bridge")
ip("link", "set", "d0", "up")
for address in (first, second):
    ip("address", "add", f"{address}/24", "dev", "d0")
ip("link", "set", "lo", "up")
ip("address", "add", f"{six}/64", "dev", "lo", "nodad")
assert local.has(first), "an address that came after the socket"
assert local.has(second), "a second address of the same network"
assert local.has(six)
assert local.has(ip_address("203.0.113.255")), "a broadcast"
assert local.has(ip_address(f"::ffff:{first}"))
assert local.has(ip_address("2002:cb00:7107::1")), "6to4 of the first"
assert not local.has(other)
assert not local.has(ip_address("2001:db8::8"))
open("/proc/sys/net/ipv4/ip_nonlocal_bind", "w").write("1")
assert not local.has(other), "where anything can be bound to"
ip("route", "add", "local", "198.51.100.0/24", "dev", "d0")
assert local.has(ip_address("198.51.100.77")), "a whole network that is delivered here"
for number, kind in enumerate(("blackhole", "unreachable", "prohibit")):
    ip("route", "add", kind, f"10.{number}.0.0/16")
    assert not local.has(ip_address(f"10.{number}.0.1")), kind
ip("address", "del", f"{first}/24", "dev", "d0")
ip("link", "del", "d0")
assert not local.has(first)
local.close()
"""


@needs_root
def test_addresses_that_come_and_go() -> None:
    assert run_apart(IN_A_NAMESPACE) == ""
