"""Threads in network namespaces, and what the kernel says to messages."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.linux import netlink as rtnetlink
from fastclaw.network.bridge import netns
from fastclaw.network.bridge.netns import Netlink
from tests.network.bridge.rig import need_bridge

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def _bridge() -> None:
    need_bridge()


def apart() -> int:
    """A new namespace, by descriptor."""
    netns.enter_new()
    return netns.open_netns("thread-self")


async def test_a_thread_of_its_own_enters_and_nobody_else_does() -> None:
    fd = await netns.in_own_thread(apart)
    try:
        assert not netns.is_own_netns(fd)

        def inside() -> tuple[bool, list[str], str]:
            netns.enter(fd)
            return netns.is_own_netns(fd), [name for _, name in socket.if_nameindex()], threading.current_thread().name

        own, names, thread = await netns.in_own_thread(inside)
        assert own
        assert "lo" in names
        assert "eth0" not in names
        assert thread not in [one.name for one in threading.enumerate()]
        assert not netns.is_own_netns(fd)
    finally:
        os.close(fd)


async def test_what_a_thread_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await netns.in_own_thread(lambda: 1 // 0)


async def test_a_call_goes_on_when_nobody_waits_for_it() -> None:
    go, done = threading.Event(), threading.Event()

    def call() -> None:
        go.wait(10)
        done.set()

    waiting = asyncio.ensure_future(netns.in_own_thread(call))
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
            netns.enter(fd)
    finally:
        os.close(fd)


def test_a_process_that_is_gone_has_no_namespace() -> None:
    with pytest.raises(OSError, match="No such"):
        netns.open_netns(2**22 + 1)


async def test_interfaces_are_made_and_removed() -> None:
    def try_it() -> None:
        netns.enter_new()
        with Netlink() as netlink:
            for name in ("fctest0", "fctest1", "other"):
                netlink.request(rtnetlink.new_bridge(name, b"\x02\xfc\0\0\0\1"))
            with pytest.raises(FileExistsError):
                netlink.request(rtnetlink.new_bridge("other", b"\x02\xfc\0\0\0\1"))
            with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
                netlink.request(rtnetlink.del_link(9_999))
        assert sorted(netns.interfaces("fctest")) == ["fctest0", "fctest1"]
        netns.remove_interfaces("fctest")
        assert netns.interfaces("fctest") == []
        assert netns.interfaces("other") == ["other"]

    await netns.in_own_thread(try_it)


async def test_an_interface_that_does_not_come_up_is_not_awaited_for_ever() -> None:
    def try_it() -> None:
        netns.enter_new()
        with Netlink() as netlink:
            netlink.request(rtnetlink.new_bridge("fctest0", b"\x02\xfc\0\0\0\1"))
            with pytest.raises(TimeoutError):
                netlink.await_operational("fctest0", 5)
            with pytest.raises(ProtocolError):
                netlink.await_operational("fctest1", 5)

    await netns.in_own_thread(try_it)


async def test_a_kernel_that_says_nothing_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "NETLINK_MS", 10)
    with Netlink() as netlink, pytest.raises(TimeoutError):
        netlink._socket.recv(1)


async def test_settings_are_those_of_the_threads_namespace() -> None:
    def try_it() -> str:
        netns.enter_new()
        netns.configure("ipv4", "lo", "arp_ignore", 3)
        netns.configure("ipv4", "nothing", "arp_ignore", 3)
        return netns._SYSCTL.joinpath("ipv4/conf/lo/arp_ignore").read_text().strip()

    before = netns._SYSCTL.joinpath("ipv4/conf/lo/arp_ignore").read_text()
    assert await netns.in_own_thread(try_it) == "3"
    assert netns._SYSCTL.joinpath("ipv4/conf/lo/arp_ignore").read_text() == before
