"""This host as the lane's home, with real processes: signals, and the ends of trees.

A command is a grandchild: the spawner's child keeps it. So nothing of it ever becomes a child of ours.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from fastclaw import limits
from fastclaw.lane import Grace
from tests.balance import children
from tests.spawn.fake_spawner import descendants_of, has_not_ended, is_there, until
from tests.spawn.rig import a_home, a_lane, close_streams, end, finish, line, run, spec, start


async def test_signal_reaches_the_command_and_not_its_number_later() -> None:
    async with a_lane() as lane:
        process = await start(lane, "sleep", "1000")
        process.signal(signal.SIGUSR1)
        status, _, _ = await finish(process)
        assert status.signal == signal.SIGUSR1
        process.signal(signal.SIGKILL)


async def test_a_signal_is_the_commands_alone() -> None:
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", "trap 'exit 5' TERM; sleep 1000 & echo $!; wait")
        child = int(await line(process))
        process.signal(signal.SIGTERM)
        assert (await asyncio.wait_for(asyncio.shield(process.exited), 10)).exit_code == 5
        assert is_there(child)
        assert not process.is_gone
        await end(process)
        assert not is_there(child)
        close_streams(process)


SHAPES = {
    "children": "sleep 1000 & sleep 1000 &",
    "another session": "setsid sh -c 'sleep 1000 & sleep 1000' &",
    "an orphan": "(sleep 1000 &);",
    "an orphan in a session and environment of its own": "(env -i setsid sleep 1000 &);",
    "one that ignores TERM": "(trap '' TERM; sleep 1000) &",
    "a stopped one": "sleep 1000 & kill -STOP $!;",
    "a pipeline": "sleep 1000 | sleep 1000 | sleep 1000 &",
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("ends_first", [False, True])
async def test_end_tree_takes_everything(shape: str, ends_first: bool) -> None:
    async with a_home() as (home, lane):
        idle = set(descendants_of(home.pid))
        process = await start(lane, "sh", "-c", f"{shape} echo up; {'exit 3' if ends_first else 'wait; sleep 1000'}")
        await line(process)
        if ends_first:
            assert (await asyncio.wait_for(asyncio.shield(process.exited), 10)).exit_code == 3
        tree = set(descendants_of(home.pid)) - idle
        assert tree
        await end(process)
        assert not any(map(is_there, tree))
        status = process.exited.result()
        assert (status.exit_code, status.signal) == ((3, None) if ends_first else (None, signal.SIGKILL))
        close_streams(process)


async def test_end_tree_takes_two_hundred_that_left_every_way_they_could() -> None:
    async with a_home() as (home, lane):
        script = (
            "i=0; while [ $i -lt 200 ]; do (env -i setsid sleep 1000 &); i=$((i+1)); done; echo up; wait; sleep 1000"
        )
        process = await start(lane, "sh", "-c", script, stdin=False)
        await line(process)
        tree = [pid for pid in descendants_of(home.pid) if command_of(pid)[:1] == [b"sleep"]]
        assert len(tree) > 150, "some are still on their way"
        await end(process)
        assert not any(map(is_there, tree))
        assert home.spawner.counts()["kept"] == 0
        assert not any(descendants_of(keeper) for keeper in descendants_of(home.pid))
        close_streams(process)


def command_of(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as words:
            return words.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


async def test_grace_lets_the_tree_end_by_itself() -> None:
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", "trap 'echo bye; exit 4' TERM; sleep 1000 & echo up; wait")
        await line(process)
        await end(process, grace_s=1000)
        status, out, _ = await finish(process)
        assert (status.exit_code, out) == (4, b"bye\n")


FORGETFUL = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: None)
if os.fork() == 0:
    print("up", flush=True)
    signal.pause()
    time.sleep(0.1)
    os.execvp("sleep", ["sleep", "1000"])
signal.pause()
"""


@pytest.mark.parametrize(
    "cmd",
    [
        ("sh", "-c", "trap 'sleep 1000 & exit 4' TERM; echo up; while :; do sleep 0.01; done"),
        ("sh", "-c", "trap 'setsid sleep 1000 & exit 4' TERM; echo up; while :; do sleep 0.01; done"),
        (sys.executable, "-c", FORGETFUL),
    ],
    ids=["forks", "forks a session", "asked before its execve"],
)
async def test_who_is_born_while_the_tree_is_asked_to_end_is_asked_too(cmd: tuple[str, ...]) -> None:
    """Else the whole grace time would pass: here it would not within the test's."""
    async with a_lane() as lane:
        process = await start(lane, *cmd, stdin=False)
        await line(process)
        await asyncio.wait_for(end(process, grace_s=1000), 20)
        await finish(process)


async def test_who_was_asked_to_end_may_tidy_up() -> None:
    """It is not asked again, however long it takes, and those who help it are not asked at all."""
    script = "trap 'echo asked; sleep 0.5 && echo tidy; exit 4' TERM; echo up; while :; do sleep 0.01; done"
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", script, stdin=False)
        await line(process)
        await asyncio.wait_for(end(process, grace_s=1000), 20)
        status, out, _ = await finish(process)
        assert (status.exit_code, out) == (4, b"asked\ntidy\n")


async def test_a_grace_that_is_cut_short_ends_in_kill() -> None:
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1000; done")
        await line(process)
        grace = Grace(asyncio.get_running_loop().time() + 1000)
        ending = asyncio.ensure_future(process.end_tree(grace))
        await asyncio.sleep(0)
        grace.ends_at = 0.0
        await asyncio.wait_for(ending, 10)
        assert (await finish(process))[0].signal == signal.SIGKILL


async def test_a_start_that_is_given_up_at_once_leaves_nothing() -> None:
    async with a_lane() as lane:
        processes = [await lane.start(spec("sleep", "1000"), 0) for _ in range(20)]
        assert processes[-1].started is not None
        assert not processes[-1].started.done()
        await end(processes[-1])  # nothing was read since the request left
        assert processes[-1].started.cancelled()
        await asyncio.gather(*map(end, processes))
        for process in processes:
            assert process.exited.result().signal == signal.SIGKILL
            close_streams(process)
        assert lane.health()["kept"] == 0


async def test_end_all_takes_starts_that_nobody_has_taken_up_yet() -> None:
    async with a_lane() as lane:
        processes = [await lane.start(spec("sleep", "1000"), 0) for _ in range(40)]
        assert processes[-1].started is not None
        assert not processes[-1].started.done()
        await lane.end_all(list(processes), Grace(0.0))
        assert lane.health()["kept"] == 0
        assert {process.exited.result().signal for process in processes} == {signal.SIGKILL}
        for process in processes:
            close_streams(process)


async def test_end_all_takes_what_ended_commands_left_too() -> None:
    async with a_home() as (home, lane):
        idle = set(descendants_of(home.pid))
        ended = await start(lane, "sh", "-c", "setsid sleep 1000 & exit 3")
        live = [await start(lane, "env", "-i", "sleep", "1000") for _ in range(20)]
        await ended.exited
        tree = set(descendants_of(home.pid)) - idle
        assert len(tree) > 20
        await lane.end_all(list(live), Grace(0.0))
        assert {process.exited.result().signal for process in live} == {signal.SIGKILL}
        assert home.spawner.counts()["kept"] == 0
        assert not any(descendants_of(keeper) for keeper in descendants_of(home.pid))
        for process in (ended, *live):
            close_streams(process)


async def test_closing_ends_all_that_runs() -> None:
    async with a_home() as (home, lane):
        process = await start(lane, "sh", "-c", "trap '' TERM; env -i setsid sleep 1000 & echo up; sleep 1000")
        await line(process)
        everybody = [home.pid, *descendants_of(home.pid)]
        await home.aclose()
        await home.aclose()
        assert not any(map(is_there, everybody))
        assert (await finish(process))[0].reason == "container_gone"


KILLED_OUTRIGHT = """
import asyncio, os, signal
from fastclaw.lane import StartSpec
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import SpawnLane

async def main():
    home = HostHome()
    await home.start()
    lane = SpawnLane(home, can_set_user=True)
    script = "trap '' TERM; env -i setsid sleep 1000 & echo up; sleep 1000"
    process = await lane.start(StartSpec(process_id="p", cmd=["sh", "-c", script], env={}), 0)
    await process.started
    os.set_blocking(process.stdout_fd, True)
    os.read(process.stdout_fd, 10)
    print(home.pid, flush=True)
    signal.pause()

asyncio.run(main())
"""


async def test_everything_ends_when_we_are_killed_outright() -> None:
    us = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED_OUTRIGHT, stdout=subprocess.PIPE)
    assert us.stdout is not None
    spawner = int(await us.stdout.readline())
    everybody = [spawner, *descendants_of(spawner)]
    assert len(everybody) > limits.SPAWN_SPARE_KEEPERS + 2
    us.kill()
    await us.wait()
    await until(lambda: not any(map(has_not_ended, everybody)))


async def test_nothing_of_a_command_becomes_our_child() -> None:
    async with a_lane() as lane:
        before = children()
        process = await start(lane, "sh", "-c", "(setsid sleep 1000 &); exit 0")
        await process.exited
        assert children() == before
        await end(process)
        assert children() == before
        close_streams(process)


async def test_exits_of_the_loops_own_children_are_not_taken() -> None:
    async with a_lane() as lane:
        theirs = await asyncio.create_subprocess_exec("sh", "-c", "exit 9")
        await run(lane, "true")
        assert await theirs.wait() == 9
