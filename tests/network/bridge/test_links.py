"""Namespaces, interfaces and a bridge with what is connected to it, as the kernel sees them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import network_limits
from fastclaw.errors import ProtocolError, StartFailed
from fastclaw.linux import netlink as rtnetlink
from fastclaw.network.bridge import firewall, links
from fastclaw.network.bridge.firewall import Bridge
from fastclaw.network.bridge.links import Netlink
from tests.network.bridge.rig import ip, need_bridge, room
from tests.waiting import until

if TYPE_CHECKING:
    from tests.network.bridge.rig import Started


@pytest.fixture(scope="module", autouse=True)
def _bridge() -> None:
    need_bridge()


def setting(family: str, interface: str, name: str) -> str:
    """Empty where this kernel has no such family."""
    path = Path(f"/proc/sys/net/{family}/conf/{interface}/{name}")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def new_netns() -> int:
    links.enter_new()
    return links.open_netns("thread-self")


async def test_the_bridge(network: Started) -> None:
    name = network.bridge.interface
    assert repr(network.network) == f"<FirewalledBridge {name} {network.bridge.subnet}>"
    shown = ip("-d", "addr", "show", "dev", name)
    assert f"inet {network.gateway}/24 " in shown
    assert f"link/ether 02:fc:{':'.join(network.bridge.token[at : at + 2] for at in range(0, 8, 2))}" in shown
    assert "mcast_snooping 0" in shown
    assert [setting("ipv4", name, one) for one in ("forwarding", "arp_ignore")] == ["0", "1"]
    assert setting("ipv6", name, "disable_ipv6") in ("1", "")


async def test_what_is_plugged_in_has_an_address_and_one_way_out(network: Started) -> None:
    async with room(network) as one:
        routes = await one.run(lambda: ip("-4", "route"))
        assert f"default via {network.gateway} dev eth0" in routes
        assert len(routes.splitlines()) == 2
        assert await one.run(lambda: ip("-6", "route", "show", "dev", "eth0")) == ""
        assert (await one.address()).startswith(f"{network.bridge.subnet[0]}"[:-1])
        assert "isolated on" in ip("-d", "link", "show", "dev", network.bridge.veth(2))


async def test_each_has_an_address_of_its_own_until_it_is_gone(network: Started) -> None:
    async with room(network) as first:
        async with room(network) as second:
            assert [await one.address() for one in (first, second)] == [
                str(network.bridge.subnet[number]) for number in (2, 3)
            ]
        await until(lambda: network.bridge.veth(3) not in links.interfaces("fc"))  # the kernel does it by and by
        async with room(network) as third:
            assert await third.address() == str(network.bridge.subnet[3])


async def test_no_address_is_left(network: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "LAST_HOST", 3)
    async with room(network), room(network):
        with pytest.raises(StartFailed, match="are in use"):
            async with room(network):
                pass


def connect(network: Started, container: str, pid: int) -> None:
    links.connect(network.bridge, container, pid, firewall.FIRST_HOST)


@pytest.mark.parametrize(
    ("pid", "says"), [(2**22 + 1, "No such file"), (os.getpid(), "not on this host")], ids=["nobody", "here"]
)
async def test_a_number_that_is_not_the_containers_is_left_alone(network: Started, pid: int, says: str) -> None:
    with pytest.raises(StartFailed, match=says) as caught:
        await links.in_own_thread(lambda: connect(network, "c0ffee" * 10, pid))
    assert caught.value.reason == "network_failed"
    assert links.interfaces(network.bridge.interface) == [network.bridge.interface]


def own_cgroup() -> str:
    return Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()[0]


async def test_this_hosts_own_network_is_left_alone(network: Started) -> None:
    """A container that shares it would turn the host's own routes."""
    ours = own_cgroup()
    routes = ip("route", "show", "default")
    with pytest.raises(StartFailed, match="this host's network"):
        await links.in_own_thread(lambda: connect(network, ours, os.getpid()))
    assert ip("route", "show", "default") == routes


async def test_a_subnet_that_is_on_another_interface(network: Started) -> None:
    assert not links.is_taken(network.bridge)
    assert links.is_taken(Bridge(token="00000000", subnet=network.bridge.subnet))


async def test_a_bridge_that_went_meanwhile(network: Started) -> None:
    gone = Bridge(token="00000000", subnet=network.bridge.subnet)
    fd = await links.in_own_thread(new_netns)
    try:
        with pytest.raises(OSError, match=r"no interface|No such device"):
            await links.in_own_thread(lambda: links.plug(gone, fd, 2))
    finally:
        os.close(fd)


async def test_a_thread_of_its_own_enters_and_nobody_else_does() -> None:
    fd = await links.in_own_thread(new_netns)
    try:
        assert not links.is_own_netns(fd)

        def inside() -> tuple[bool, list[str], str]:
            links.enter(fd)
            return links.is_own_netns(fd), [name for _, name in socket.if_nameindex()], threading.current_thread().name

        own, names, thread = await links.in_own_thread(inside)
        assert own
        assert "lo" in names
        assert "eth0" not in names
        assert thread not in [one.name for one in threading.enumerate()]
        assert not links.is_own_netns(fd)
    finally:
        os.close(fd)


async def test_what_a_thread_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await links.in_own_thread(lambda: 1 // 0)


async def test_a_call_goes_on_when_nobody_waits_for_it() -> None:
    go, done = threading.Event(), threading.Event()

    def call() -> None:
        go.wait(10)
        done.set()

    waiting = asyncio.ensure_future(links.in_own_thread(call))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go.set()
    assert await asyncio.to_thread(done.wait, 10)


def test_a_descriptor_of_something_else_is_not_entered(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            links.enter(fd)
    finally:
        os.close(fd)


def test_a_process_that_is_gone_has_no_namespace() -> None:
    with pytest.raises(OSError, match="No such"):
        links.open_netns(2**22 + 1)


async def test_interfaces_are_made_and_removed() -> None:
    def try_it() -> None:
        links.enter_new()
        with Netlink() as netlink:
            for name in ("fctest0", "fctest1", "other"):
                netlink.request(rtnetlink.new_bridge(name, b"\x02\xfc\0\0\0\1"))
            with pytest.raises(FileExistsError):
                netlink.request(rtnetlink.new_bridge("other", b"\x02\xfc\0\0\0\1"))
            with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
                netlink.request(rtnetlink.del_link(9_999))
        assert sorted(links.interfaces("fctest")) == ["fctest0", "fctest1"]
        links.remove_interfaces("fctest")
        assert links.interfaces("fctest") == []
        assert links.interfaces("other") == ["other"]

    await links.in_own_thread(try_it)


async def test_an_interface_that_does_not_come_up_is_not_awaited_for_ever() -> None:
    def try_it() -> None:
        links.enter_new()
        with Netlink() as netlink:
            netlink.request(rtnetlink.new_bridge("fctest0", b"\x02\xfc\0\0\0\1"))
            with pytest.raises(TimeoutError):
                netlink.await_operational("fctest0", 5)
            with pytest.raises(ProtocolError):
                netlink.await_operational("fctest1", 5)

    await links.in_own_thread(try_it)


async def test_a_kernel_that_says_nothing_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "NETLINK_MS", 10)
    with Netlink() as netlink, pytest.raises(TimeoutError):
        netlink._socket.recv(1)


async def test_settings_are_those_of_the_threads_namespace() -> None:
    def try_it() -> str:
        links.enter_new()
        links.configure("ipv4", "lo", "arp_ignore", 3)
        links.configure("ipv4", "nothing", "arp_ignore", 3)
        return links._SYSCTL.joinpath("ipv4/conf/lo/arp_ignore").read_text().strip()

    before = links._SYSCTL.joinpath("ipv4/conf/lo/arp_ignore").read_text()
    assert await links.in_own_thread(try_it) == "3"
    assert links._SYSCTL.joinpath("ipv4/conf/lo/arp_ignore").read_text() == before
