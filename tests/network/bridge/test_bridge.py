"""Networks that come and go, with real containers on them; and nft(8). What they hold back is in test_walls.py."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pytest

from fastclaw import network_limits
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import InitPlan, container_spec
from fastclaw.engine.service.facts import find_program
from fastclaw.errors import StartFailed
from fastclaw.linux import proc
from fastclaw.linux.proc import Owner, this_process
from fastclaw.network.bridge import bridge as bridge_module
from fastclaw.network.bridge import firewall, links
from fastclaw.network.bridge.bridge import (
    FirewalledBridge,
    apply_rules,
    our_tables,
    remove_abandoned_networks,
    why_no_bridge,
)
from tests.network.bridge.rig import (
    OUTSIDE,
    PATIENCE_S,
    accepted,
    blackholed,
    ip,
    left_of,
    need_bridge,
    original_destination,
    room,
    started,
)
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from fastclaw.network.egress.proxy_frames import Role
    from tests.engine_fixtures import EngineService
    from tests.network.bridge.rig import Started


NAMESPACE = "bridge-tests"

OWNER = """
import asyncio, sys
from pathlib import Path
from fastclaw.network.bridge.bridge import FirewalledBridge

async def main() -> None:
    network = FirewalledBridge(Path(sys.argv[1]))
    await network.start()
    print(network.interface, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

OWNER_OF_AN_ENGINE = """
import asyncio, sys
from pathlib import Path
import msgspec
from fastclaw.engine.container_spec import InitPlan, container_spec
from fastclaw.engine.service.plan import DEFAULT_IMAGE, ServicePlan
from fastclaw.network.bridge.bridge import FirewalledBridge
from fastclaw.engine.api import EngineLifecycle
from fastclaw.linux.proc import this_process
from fastclaw.engine.service.service import ManagedService

async def main() -> None:
    base = Path(sys.argv[1])
    service = ManagedService(msgspec.json.decode(sys.argv[2], type=ServicePlan), base / "s", base / "r")
    await service.start()
    network = FirewalledBridge(base)
    await network.start()
    engine = EngineLifecycle(service.url)
    await engine.ensure_image(DEFAULT_IMAGE)
    container = await engine.create_container(container_spec(
        image=DEFAULT_IMAGE, name="left", namespace="left", owner=this_process().label, init=InitPlan(),
        network=network.spec,
    ))
    await engine.start_container(container)
    state = await engine.inspect_container(container)
    await network.attach(container, state.pid)
    print(network.interface, state.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def _bridge() -> None:
    need_bridge()


class Box:
    """A container on a network."""

    def __init__(self, engine: EngineLifecycle, image: str) -> None:
        self._engine, self._image = engine, image
        self.id, self.pid = "", 0

    async def start(self, network: FirewalledBridge) -> None:
        spec = container_spec(
            image=self._image,
            name=f"{NAMESPACE}-{os.getpid()}",
            namespace=NAMESPACE,
            owner="o",
            init=InitPlan(),
            network=network.spec,
        )
        self.id = await self._engine.create_container(spec)
        await self._engine.start_container(self.id)
        state = await self._engine.inspect_container(self.id)
        assert state is not None
        self.pid = state.pid
        await network.attach(self.id, self.pid)

    async def run(self, script: str) -> str:
        """What a shell script prints inside, with no more rights than the container's init has."""
        argv = ["nsenter", "-t", str(self.pid), "-a", "-S", "0", "--", "/bin/sh", "-c", script]
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        return output.decode()

    async def remove(self) -> None:
        if self.id:
            await self._engine.remove_container(self.id)


@pytest.fixture
async def box(engine_service: EngineService) -> AsyncIterator[Box]:
    engine = EngineLifecycle(engine_service.url)
    one = Box(engine, engine_service.image)
    yield one
    await one.remove()
    await engine.aclose()


@pytest.mark.podman
async def test_a_container_reaches_the_proxy_and_whatever_it_asks_for_is_turned_to_us(
    network: Started, box: Box
) -> None:
    await box.start(network.network)
    assert await box.run("cat /etc/resolv.conf") == f"nameserver {network.gateway}\n"
    assert await box.run("echo x > /etc/resolv.conf || echo refused") == "refused\n"
    asked: list[tuple[str, Role, tuple[str, int] | None]] = [
        (f"echo hello | nc {network.gateway} {network_limits.EGRESS_PROXY_PORT}", "proxy", None),
        (f"echo hello | nc {OUTSIDE} 443", "transparent", (OUTSIDE, 443)),
    ]
    for script, role, target in asked:
        with blackholed():
            asking = asyncio.ensure_future(box.run(script))
            with await links.in_own_thread(partial(accepted, network.listeners[role])) as connection:
                assert connection.recv(100) == b"hello\n"
                assert target is None or original_destination(connection) == target
                connection.sendall(b"there\n")
            assert await asking == "there\n"


@pytest.mark.podman
async def test_a_container_that_is_connected_has_woken_nobody(network: Started, box: Box) -> None:
    """Its connection was proven, with one to the transparent listener that says nothing."""
    await box.start(network.network)
    for role, listener in network.listeners.items():
        with pytest.raises(BlockingIOError):
            listener.recv(1) if role == "dns_udp" else listener.accept()


@pytest.mark.podman
async def test_the_container_is_cut_off_when_the_network_goes(network: Started, box: Box) -> None:
    await box.start(network.network)
    await network.network.aclose()
    assert (
        await box.run(f"nc -w 1 {network.gateway} {network_limits.EGRESS_PROXY_PORT} < /dev/null || echo no way")
        == "no way\n"
    )
    with pytest.raises(StartFailed, match="network is gone"):
        await network.network.attach(box.id, box.pid)


async def test_ending_twice_or_before_the_start_is_fine(tmp_path: Path) -> None:
    network = FirewalledBridge(tmp_path)
    await network.aclose()
    await network.start()
    assert links.interfaces(network.interface) == [network.interface]
    await asyncio.gather(network.aclose(), network.aclose())
    await network.aclose()
    assert left_of(network.interface) == []
    assert not os.listdir(tmp_path)


async def test_what_nobody_asked_for_is_closed(tmp_path: Path) -> None:
    """The check of descriptors after each test would notice its listeners."""
    network = FirewalledBridge(tmp_path)
    await network.start()
    assert network.spec.resolv_conf is not None
    await network.aclose()


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    before = our_tables("nft")
    network = FirewalledBridge(tmp_path)
    starting = asyncio.ensure_future(network.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [
        name for name in our_tables("nft") if name.startswith(this_process().table_prefix) and name not in before
    ] == []
    assert not os.listdir(tmp_path)


@pytest.fixture
def taken() -> Iterator[int]:
    """The number of a subnet that an interface of this host has."""
    index = firewall.SUBNETS - 7
    ip("link", "add", "fctest-taken", "type", "bridge")
    try:
        ip("addr", "add", f"{firewall.subnet_at(index)[9]}/24", "dev", "fctest-taken")
        ip("link", "set", "fctest-taken", "up")
        yield index
    finally:
        ip("link", "del", "fctest-taken")


@pytest.mark.parametrize("noticed", ["before", "after"])
async def test_a_subnet_that_somebody_has_is_not_taken(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: str
) -> None:
    """Also if both took it at the same time."""
    numbers = iter([taken, taken + 1])
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(numbers))
    if noticed == "after":
        looks = iter([False])
        really = links.is_taken
        monkeypatch.setattr(links, "is_taken", lambda bridge: next(looks, None) is None and really(bridge))
    async with started(tmp_path) as network:
        assert network.network.subnet == str(firewall.subnet_at(taken + 1))
        assert len([name for name in our_tables("nft") if name.startswith(this_process().table_prefix)]) == 1


async def test_no_subnet_is_free(taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "BRIDGE_TRIES", 2)
    monkeypatch.setattr(secrets, "randbelow", lambda _: taken)
    with pytest.raises(StartFailed, match="no free subnet") as caught:
        await FirewalledBridge(tmp_path).start()
    assert caught.value.reason == "network_failed"


async def test_the_proxys_port_may_be_somebody_elses_on_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers still find it where it always is."""
    with socket.create_server(("0.0.0.0", 0)) as somebodys:
        monkeypatch.setattr(network_limits, "EGRESS_PROXY_PORT", somebodys.getsockname()[1])
        async with started(tmp_path) as network, room(network) as inside:
            assert await inside.reaches((network.gateway, network_limits.EGRESS_PROXY_PORT))
            accepted(network.listeners["proxy"]).close()


async def test_a_host_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "find_program", lambda _: "/bin/false")
    with pytest.raises(StartFailed, match="nft: it gives no reason") as caught:
        await FirewalledBridge(tmp_path).start()
    assert caught.value.reason == "network_failed"
    assert (await why_no_bridge() or "").startswith("this host refuses")


async def test_a_host_without_nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "find_program", lambda _: None)
    with pytest.raises(StartFailed, match="apt-get install nftables") as caught:
        await FirewalledBridge(tmp_path).start()
    assert caught.value.reason == "network_failed"
    assert "nftables" in (await why_no_bridge() or "")
    await remove_abandoned_networks()


@contextmanager
def owner(script: str, *words: str) -> Iterator[tuple[Callable[[], None], list[str]]]:
    """Another fastclaw: how to kill it, and the words that it prints once it is up."""
    with subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True) as process:

        def kill() -> None:
            process.kill()
            process.wait(PATIENCE_S)

        try:
            assert process.stdout is not None
            yield kill, process.stdout.readline().split()
        finally:
            kill()


async def test_what_a_killed_owner_left_goes_with_the_next_start(network: Started, tmp_path: Path) -> None:
    """And nothing that belongs to somebody alive, or to somebody of whom we cannot know."""
    elsewhere = firewall.table_name(Owner(1, 1, 1), "0123abcd")
    (tmp_path / "dead").mkdir()
    with owner(OWNER, str(tmp_path / "dead")) as (kill, [interface]):
        await remove_abandoned_networks()
        assert len(left_of(interface)) == 3  # table, interface, route
        kill()
    apply_rules("nft", f"add table inet {elsewhere}\n")
    try:
        await remove_abandoned_networks()
        assert left_of(interface) == []
        assert elsewhere in our_tables("nft")
    finally:
        apply_rules("nft", f"delete table inet {elsewhere}\n")
    assert len(left_of(network.bridge.interface)) == 3


@pytest.mark.podman
async def test_the_janitor_of_a_private_engine_removes_networks_too(
    engine_service: EngineService, short_dir: Path
) -> None:
    plan = msgspec.json.encode(engine_service.plan).decode()
    with owner(OWNER_OF_AN_ENGINE, str(short_dir), plan) as (kill, [interface, pid]):
        assert len(left_of(interface)) == 4  # table, both interfaces, route
        kill()
    await until(lambda: not left_of(interface) and proc.read_stat(int(pid)) is None)  # the janitor is no child of ours


TABLE = "fastclaw_1_2_3_0123abcd"


def stand_in(directory: Path, script: str) -> str:
    path = directory / "nft"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_a_transaction_is_carried_out_whole_or_not_at_all() -> None:
    need_bridge()
    program = find_program("nft")
    assert program is not None

    def try_it() -> None:
        links.enter_new()
        apply_rules(program, f"add table inet {TABLE}\nadd table inet somebodys\n")
        assert our_tables(program) == [TABLE]
        with pytest.raises(StartFailed, match=r"nft: .*No such file or directory") as caught:
            apply_rules(program, f"delete table inet {TABLE}\ndelete table inet nobodys\n")
        assert caught.value.reason == "network_failed"
        assert "\n" not in str(caught.value)
        assert our_tables(program) == [TABLE]
        apply_rules(program, f"delete table inet {TABLE}\n")
        assert our_tables(program) == []

    await links.in_own_thread(try_it)


def test_one_that_is_not_there() -> None:
    with pytest.raises(StartFailed, match="cannot run /nonexistent/nft: No such file") as caught:
        our_tables("/nonexistent/nft")
    assert caught.value.reason == "network_failed"


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "NFT_MS", 50)
    with pytest.raises(StartFailed, match="does not answer within 50 ms"):
        our_tables(stand_in(tmp_path, "exec sleep 60"))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Error: Operation not permitted' >&2; echo '   ^^^' >&2; exit 1", "nft: Operation not permitted"),
        ("exit 1", "nft: it gives no reason"),
    ],
)
def test_one_that_refuses(tmp_path: Path, script: str, says: str) -> None:
    with pytest.raises(StartFailed) as caught:
        apply_rules(stand_in(tmp_path, f"cat > {os.devnull}; {script}"), "x")
    assert str(caught.value) == f"start failed: {says}"
