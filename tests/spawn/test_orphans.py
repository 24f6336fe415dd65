"""Whose zombie it is: orphans are reaped, commands and other people's children are not."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.spawn.orphans import Orphanage, become_subreaper
from tests.balance import children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def spawn() -> Iterator[Callable[..., int]]:
    """Starts a child that nobody reaps until the end of the test, in a session of its own unless told."""
    started = []

    def start(*cmd: str, own_session: bool = True) -> int:
        started.append(os.posix_spawnp(cmd[0], cmd, os.environ, setsid=own_session))
        return started[-1]

    yield start
    for pid in started:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ORPHAN_SWEEP_MS", 5)
    monkeypatch.setattr(limits, "ORPHAN_PATIENCE_MS", 15)


def ended(*pids: int) -> None:
    """Wait until these are zombies, without reaping them."""
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def reaped(*pids: int) -> None:
    async with asyncio.timeout(10):
        while children() & set(pids):  # noqa: ASYNC110 - the kernel has no event for somebody's reaping
            await asyncio.sleep(0.005)


def test_orphans_of_descendants_come_to_us() -> None:
    become_subreaper()
    become_subreaper()
    before = children()
    orphan = int(subprocess.check_output(["sh", "-c", "sleep 1000 >/dev/null & echo $!"]))
    assert children() - before == {orphan}
    os.kill(orphan, signal.SIGKILL)
    os.waitpid(orphan, 0)


def test_a_kernel_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def prctl(self, *arguments: int) -> int:
            ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing())
    with pytest.raises(StartFailed, match="cannot become a subreaper: Operation not permitted"):
        become_subreaper()


async def test_reap_takes_the_zombies_of_a_tree_and_nothing_else(spawn: Callable[..., int]) -> None:
    orphanage = Orphanage()
    orphan, command, foreign = (spawn("true") for _ in range(3))
    alive = spawn("sleep", "1000")
    ended(orphan, command, foreign)
    orphanage.register(command)
    orphanage.leave_alone(foreign)
    orphanage.reap([orphan, command, foreign, alive, os.getpid(), 1, orphan])
    assert children() & {orphan, command, foreign, alive} == {command, foreign, alive}
    orphanage.forget(command)
    orphanage.reap([command])
    assert command not in children()
    orphanage.close()


@pytest.mark.usefixtures("quick")
async def test_the_sweep_takes_only_what_is_nobodys(spawn: Callable[..., int]) -> None:
    orphanage = Orphanage()
    command, foreign, first, second = (spawn("true") for _ in range(4))
    neighbour, alive = spawn("true", own_session=False), spawn("sleep", "1000")
    ended(command, foreign, neighbour, first, second)
    orphanage.register(command)
    orphanage.leave_alone(foreign)
    await reaped(first, second)
    assert {command, foreign, neighbour, alive} <= children()
    orphanage.close()


async def test_an_unknown_zombie_is_left_to_its_parent_for_a_while(
    spawn: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ORPHAN_SWEEP_MS", 1)
    monkeypatch.setattr(limits, "ORPHAN_PATIENCE_MS", 60)
    loop, orphanage = asyncio.get_running_loop(), Orphanage()
    unknown, command = spawn("true"), spawn("sleep", "1000")
    ended(unknown)
    begun = loop.time()
    orphanage.register(command)
    await reaped(unknown)
    assert loop.time() - begun >= 0.060
    orphanage.close()


@pytest.mark.usefixtures("quick")
async def test_an_orphan_that_outlives_the_last_command_is_still_waited_for(spawn: Callable[..., int]) -> None:
    orphanage = Orphanage()
    orphan, command = spawn("sleep", "1000"), spawn("true")
    ended(command)
    orphanage.register(command)
    orphanage.forget(command)
    orphanage.reap([command])
    await asyncio.sleep(0.02)  # several sweeps see it alive
    assert orphan in children()
    os.kill(orphan, signal.SIGKILL)
    await reaped(orphan)
    orphanage.close()


async def test_close_is_without_patience_and_spares_who_has_an_owner(spawn: Callable[..., int]) -> None:
    orphanage = Orphanage()
    orphan, foreign, command, alive = spawn("true"), spawn("true"), spawn("true"), spawn("sleep", "1000")
    neighbour = spawn("true", own_session=False)
    ended(orphan, foreign, command, neighbour)
    orphanage.register(command)
    orphanage.leave_alone(foreign)
    orphanage.close()
    assert children() & {orphan, foreign, command, alive, neighbour} == {foreign, command, alive, neighbour}
    orphanage.close()
