"""What the kernel calls this host's own; on this machine as it is, and in a network namespace made for it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from fastclaw.linux import netlink
from fastclaw.network.egress.local_addresses import LocalAddresses

PUBLIC = ["8.8.8.8", "2606:4700:4700::1111"]
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


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_elsewhere_is_not(local: LocalAddresses, text: str) -> None:
    assert not local.has(ip_address(text))


def test_without_a_kernel_to_ask_everything_is_ours(local: LocalAddresses) -> None:
    local.close()
    assert local.has(ip_address(PUBLIC[0]))


def test_an_answer_that_came_too_late_is_passed_over(local: LocalAddresses) -> None:
    local._socket.send(netlink.get_route(ip_address("127.0.0.1"), 0))
    assert not local.has(ip_address(PUBLIC[0]))
    assert local.has(ip_address("127.0.0.1"))


IN_A_NAMESPACE = """
import subprocess
from ipaddress import ip_address
from fastclaw.network.egress.local_addresses import LocalAddresses

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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a network namespace without asking")
def test_addresses_that_come_and_go() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", IN_A_NAMESPACE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
