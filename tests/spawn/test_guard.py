"""The guard and its warden: a fastclaw that is killed outright leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import IoError
from fastclaw.spawn import warden
from fastclaw.spawn.guard import Guard
from fastclaw.transport import procfs
from tests.balance import balanced, children

if TYPE_CHECKING:
    from pathlib import Path

VICTIM = """
import asyncio, sys
from fastclaw.lane import StartSpec
from fastclaw.spawn.guard import Guard
from fastclaw.spawn.host import HostLane

SCRIPTS = (
    "exec sleep 1000",
    "sleep 1000 & setsid sleep 1000 & env -i sleep 1000 & wait",
    "exec env -i sleep 1000",
    "exec env -i sh -c 'trap \\"\\" TERM HUP; sleep 1000 & wait'",
    "setsid sh -c 'sleep 1000 & exit' & exec sleep 1000",
)

async def main():
    guard = Guard()
    guard.add_directory(sys.argv[1])
    lane = HostLane(guard)
    for n, script in enumerate(SCRIPTS):
        await lane.start(StartSpec(process_id=str(n), cmd=["sh", "-c", script], env={}), 0)
    await asyncio.sleep(0.3)
    print(guard.token, guard.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def descendants(pid: int) -> dict[int, int]:
    """Everything below a process: pid to starttime."""
    table = {row.pid: row for row in procfs.scan(warden.VARIABLE)}
    found = {pid}
    while more := {row.pid for row in table.values() if row.ppid in found} - found:
        found |= more
    return {one: table[one].starttime for one in found - {pid}}


def still_there(processes: dict[int, int]) -> list[int]:
    return [pid for pid, starttime in processes.items() if procfs.is_running(pid, starttime)]


def test_killed_outright_everything_is_gone_within_a_second(tmp_path: Path) -> None:
    doomed, ours = tmp_path / "doomed", children()
    (doomed / "inner").mkdir(parents=True)
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(doomed)], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    victim.stdout.readline()
    family = descendants(victim.pid)
    assert len(family) >= 10
    victim.kill()
    victim.communicate()
    deadline = time.monotonic() + 1
    while (still_there(family) or doomed.exists()) and time.monotonic() < deadline:
        time.sleep(0.01)  # what is waited for is the end of other people's processes: no event
    assert still_there(family) == []
    reap(children() - ours)
    assert not doomed.exists()
    assert tmp_path.exists()


def reap(processes: set[int]) -> None:
    """Where an earlier test has made this process a subreaper, orphans come to us and not to init."""
    for pid in processes:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def owned(guard: Guard) -> subprocess.Popen[bytes]:
    """A process that the warden would end."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, env={**os.environ, **guard.variable})


async def test_a_normal_end_touches_nothing(tmp_path: Path) -> None:
    async with balanced():
        guard = Guard()
        guard.add_directory(tmp_path)
        bystander = owned(guard)
        await guard.aclose()
        await guard.aclose()
        assert bystander.poll() is None
        assert tmp_path.name in os.listdir(tmp_path.parent)
        bystander.communicate()


async def test_a_warden_that_is_gone_is_an_error() -> None:
    async with balanced():
        guard = Guard()
        os.kill(guard.pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, guard.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(IoError):
            guard.add_directory("/nonexistent")
        await guard.aclose()


async def test_slots_are_given_back() -> None:
    async with balanced():
        guard = Guard()
        slots = [guard.track(4711) for _ in range(3)]
        for slot in slots:
            guard.untrack(slot)
        assert sorted(guard.track(4712) for _ in range(3)) == sorted(slots)
        await guard.aclose()
        guard.untrack(slots[0])
