"""Ending trees for real: everything that tries to get away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from fastclaw.errors import ExecFailed, IoError
from fastclaw.linux import proc
from fastclaw.podman.rest_lane import local_tree
from fastclaw.podman.rest_lane.local_tree import end_tree
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, Grace
from tests.balance import balanced, descriptors_left

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Command:
    """A marked command in a session of its own, which tells by a line on stdout that it is ready."""

    def __init__(self, script: str, *argv: str) -> None:
        self.marker = uuid4().hex
        env = {**os.environ, PROCESS_ID_VARIABLE: self.marker}
        args = argv or ("sh", "-c", script)
        self.child = subprocess.Popen(args, stdout=subprocess.PIPE, env=env, start_new_session=True)
        assert self.child.stdout is not None
        self.said = self.child.stdout.readline().split()

    def left(self) -> set[int]:
        """Who is still in the tree: by marker, or in the command's session."""
        rows = proc.scan(PROCESS_ID_VARIABLE)
        return {row.pid for row in rows if row.marker == self.marker or row.session == self.child.pid}

    def close(self) -> None:
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.communicate()


@asynccontextmanager
async def started(script: str, *argv: str) -> AsyncIterator[Command]:
    async with balanced():
        command = Command(script, *argv)
        try:
            yield command
        finally:
            command.close()


def over() -> Grace:
    return Grace(asyncio.get_running_loop().time())


def lasting(seconds: float) -> Grace:
    return Grace(asyncio.get_running_loop().time() + seconds)


TREES = {
    "plain": "echo up; exec sleep 1000",
    "grandchildren": "sleep 1000 & (sleep 1000; true) & echo up; wait",
    "orphan in a new session": "setsid sh -c 'sleep 1000 & echo up; exit' & wait; sleep 1000",
    "without its environment": "env -i sleep 1000 & echo up; wait",
    "new session, no environment, a parent that lives": "env -i setsid sleep 1000 & echo up; wait",
    "ignores TERM": "trap '' TERM; sleep 1000 & echo up; while :; do wait; done",
}


@pytest.mark.parametrize("name", TREES)
async def test_killed_at_once(name: str) -> None:
    async with started(TREES[name]) as command:
        ended = await end_tree(command.marker, command.child.pid, over())
        assert command.left() == set()
        assert command.child.pid in ended
        assert command.child.wait() == -signal.SIGKILL


async def test_term_ends_it_within_the_grace() -> None:
    async with started("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done") as command:
        began = time.monotonic()
        await end_tree(command.marker, command.child.pid, lasting(30))
        assert time.monotonic() - began < 10
        assert command.child.wait() == 7
        assert command.left() == set()


async def test_a_stopped_process_gets_its_term() -> None:
    async with started("trap 'exit 7' TERM; echo up; kill -STOP $$; exit 1") as command:
        await asyncio.to_thread(os.waitid, os.P_PID, command.child.pid, os.WSTOPPED)
        await end_tree(command.marker, command.child.pid, lasting(30))
        assert command.child.wait() == 7


async def test_kill_comes_only_when_the_grace_is_over() -> None:
    async with started(TREES["ignores TERM"]) as command:
        grace = lasting(0.3)
        await end_tree(command.marker, command.child.pid, grace)
        assert asyncio.get_running_loop().time() >= grace.ends_at
        assert command.child.wait() == -signal.SIGKILL


async def test_a_grace_can_be_cut_short_while_it_runs() -> None:
    async with started(TREES["ignores TERM"]) as command:
        grace = lasting(60)
        ending = asyncio.create_task(end_tree(command.marker, command.child.pid, grace))
        await asyncio.wait([ending], timeout=0.1)
        grace.ends_at = 0.0
        async with asyncio.timeout(10):
            await ending
        assert command.left() == set()


FORKER = """
import os, signal, sys
print("up", flush=True)
for n in range(4_000):
    if os.fork():
        os._exit(0)
    os.setsid()
"""


async def test_a_chain_that_forks_away_from_every_signal() -> None:
    async with started("", sys.executable, "-c", FORKER) as command:
        command.child.wait()
        await end_tree(command.marker, None, over())
        assert command.left() == set()
        assert command.child.stdout is not None
        async with asyncio.timeout(1):  # the next link would hold stdout
            assert await asyncio.to_thread(command.child.stdout.read) == b""


async def test_a_crowd_that_forks_faster_than_it_is_scanned() -> None:
    async with started(
        "f() { while :; do sleep 0.01 & [ $((n += 1)) -gt 300 ] && exit; done; }; f & f & echo up; f"
    ) as command:
        await end_tree(command.marker, command.child.pid, over())
        assert command.left() == set()


async def test_orphans_of_a_command_that_was_reaped() -> None:
    async with started("env -i sleep 1000 & echo $!") as command:
        command.child.wait()
        led = {command.child.pid: proc.ticks_now()}
        ended = await end_tree(command.marker, None, over(), led=led)
        assert ended == {int(command.said[0])}


async def test_nothing_to_end_is_a_success() -> None:
    async with balanced():
        assert await end_tree(uuid4().hex, None, over()) == frozenset()


async def test_neighbours_are_left_alone() -> None:
    async with started(TREES["plain"]) as one, started(TREES["plain"]) as other:
        await end_tree(one.marker, one.child.pid, over())
        assert other.child.poll() is None


async def test_many_at_once_share_their_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = 0

    def counted(variable: str, scan: object = proc.scan_with_doubt) -> object:
        nonlocal scans
        scans += 1
        return scan(variable)  # type: ignore[operator]  # procfs.scan_with_doubt itself

    monkeypatch.setattr(proc, "scan_with_doubt", counted)
    async with balanced():
        commands = [Command(TREES["plain"]) for _ in range(40)]
        await asyncio.gather(*(end_tree(each.marker, each.child.pid, over()) for each in commands))
        assert scans < 40
        assert [each.child.wait() for each in commands] == [-signal.SIGKILL] * 40
        for each in commands:
            each.close()


async def test_past_the_deadline_it_says_who_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_tree._Held, "kill", lambda held: None)
    async with started(TREES["plain"]) as command:
        with pytest.raises(ExecFailed, match=str(command.child.pid)) as failed:
            await end_tree(command.marker, command.child.pid, over(), deadline_s=0.1)
        assert failed.value.reason == "engine_timeout"


async def test_cancelled_it_holds_nothing() -> None:
    async with started(TREES["ignores TERM"]) as command:
        ending = asyncio.create_task(end_tree(command.marker, command.child.pid, lasting(60)))
        await asyncio.wait([ending], timeout=0.2)
        ending.cancel()
        await asyncio.wait([ending])
        assert ending.cancelled()


async def test_no_descriptors_is_no_proof_of_an_end() -> None:
    async with started(TREES["plain"]) as command:
        ending = asyncio.create_task(end_tree(command.marker, command.child.pid, over()))
        with descriptors_left(0):
            await asyncio.wait([ending], timeout=0.2)
            assert not ending.done()
            assert command.child.poll() is None
        await ending
        assert command.left() == set()


async def test_a_process_table_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with balanced():
        with monkeypatch.context() as patched:
            patched.setattr(proc, "PROC", "/dev/null")
            with pytest.raises(IoError):
                await end_tree(uuid4().hex, None, over())
