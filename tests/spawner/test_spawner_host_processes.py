"""This host's spawner with real processes: signals, the ends of trees, reapers that die, listeners, large requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Grace
from tests.balance import children, open_descriptors
from tests.pids import children_of, descendants_of, has_not_ended, is_there, state_of
from tests.spawner.fake_spawner import commands_of, pump_of, reaper_of
from tests.spawner.rig import a_host, a_lane, run, settled, spec, start
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# --- signals, and the ends of trees ---


async def test_a_signal_is_the_commands_alone() -> None:
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", "trap 'exit 5' TERM; sleep 1000 & echo $!; wait")
        child = int(await process.line())
        process.signal(signal.SIGTERM)
        assert (await process.exited()).exit_code == 5
        assert is_there(child)
        assert not process.is_gone
        await process.end()
        assert not is_there(child)
        process.close()


INTERRUPTED = """
trap : INT
sh -c 'trap "" INT; echo $$; exec sleep 1000' &
setsid sh -c 'echo $$; exec sleep 1000' &
sh -c 'echo up; exec sleep 1000'
echo ended $?
"""


async def test_a_signal_to_the_group_reaches_what_the_command_runs() -> None:
    """marimo-team/marimo#10468, jupyter/jupyter_client#104: interrupted, and the work goes on."""
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", INTERRUPTED)
        said = b""
        while said.count(b"\n") < 3:
            said += await process.line()
        others = [int(line) for line in said.split() if line != b"up"]
        process.signal(signal.SIGINT, group=True)
        assert await process.line() == b"ended 130\n"
        assert all(is_there(pid) for pid in others)
        assert (await process.exited()).exit_code == 0
        process.signal(signal.SIGUSR1, group=True)  # its leader has ended: nobody is hit
        assert all(is_there(pid) for pid in others)
        await process.end()
        process.close()


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
    async with a_host() as (host, lane):
        idle = set(descendants_of(host.pid))
        process = await start(lane, "sh", "-c", f"{shape} echo up; {'exit 3' if ends_first else 'wait; sleep 1000'}")
        await process.line()
        if ends_first:
            assert (await process.exited()).exit_code == 3
        tree = set(descendants_of(host.pid)) - idle
        assert tree
        await process.end()
        assert not any(map(is_there, tree))
        status = process.process.exited.result()
        assert (status.exit_code, status.signal) == ((3, None) if ends_first else (None, signal.SIGKILL))
        process.close()


async def test_end_tree_takes_two_hundred_that_left_every_way_they_could() -> None:
    async with a_host() as (host, lane):
        script = (
            "i=0; while [ $i -lt 200 ]; do (env -i setsid sleep 1000 &); i=$((i+1)); done; echo up; wait; sleep 1000"
        )
        process = await start(lane, "sh", "-c", script, stdin=False)
        await process.line()
        tree = [pid for pid in descendants_of(host.pid) if command_of(pid)[:1] == [b"sleep"]]
        assert len(tree) > 150, "some are still on their way"
        await process.end()
        assert not any(map(is_there, tree))
        assert host.spawner.counts()["kept"] == 0
        assert not any(commands_of(reaper) for reaper in children_of(host.pid))
        process.close()


def command_of(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as words:
            return words.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


async def test_grace_lets_the_tree_end_by_itself() -> None:
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", "trap 'echo bye; exit 4' TERM; sleep 1000 & echo up; wait")
        await process.line()
        await process.end(grace_s=1000)
        status, out, _ = await process.finish()
        assert (status.exit_code, out) == (4, b"bye\n")


FORGETFUL = """
import os, signal, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
def until_asked():  # nothing that waits for a signal knows whether it has been there already
    while not asked: time.sleep(0.01)
if os.fork() == 0:
    print("up", flush=True)
    until_asked()
    time.sleep(0.1)
    os.execvp("sleep", ["sleep", "1000"])
until_asked()
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
        await process.line()
        await asyncio.wait_for(process.end(grace_s=1000), 20)
        await process.finish()


async def test_who_was_asked_to_end_may_tidy_up() -> None:
    """It is not asked again, however long it takes, and those who help it are not asked at all."""
    script = "trap 'echo asked; sleep 0.5 && echo tidy; exit 4' TERM; echo up; while :; do sleep 0.01; done"
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", script, stdin=False)
        await process.line()
        await asyncio.wait_for(process.end(grace_s=1000), 20)
        status, out, _ = await process.finish()
        assert (status.exit_code, out) == (4, b"asked\ntidy\n")


async def test_a_grace_that_is_cut_short_ends_in_kill() -> None:
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1000; done")
        await process.line()
        grace = Grace(asyncio.get_running_loop().time() + 1000)
        ending = asyncio.ensure_future(process.process.end_tree(grace))
        await asyncio.sleep(0)
        grace.ends_at = 0.0
        await asyncio.wait_for(ending, 10)
        assert (await process.finish())[0].signal == signal.SIGKILL


async def test_a_start_that_is_given_up_at_once_leaves_nothing() -> None:
    async with a_host() as (host, lane):
        processes = [await lane.start(spec("sleep", "1000"), 0) for _ in range(20)]
        assert processes[-1].started is not None
        assert not processes[-1].started.done()
        await processes[-1].end_tree(Grace(0.0))  # nothing was read since the request left
        assert processes[-1].started.cancelled()
        await asyncio.gather(*(process.end_tree(Grace(0.0)) for process in processes))
        assert {process.exited.result().signal for process in processes} == {signal.SIGKILL}
        assert lane.health()["kept"] == 0
        await until(lambda: not any(commands_of(reaper) for reaper in children_of(host.pid)))


async def test_end_all_takes_starts_that_nobody_has_taken_up_yet() -> None:
    async with a_lane() as lane:
        processes = [await lane.start(spec("sleep", "1000"), 0) for _ in range(40)]
        assert processes[-1].started is not None
        assert not processes[-1].started.done()
        await lane.end_all(list(processes), Grace(0.0))
        assert lane.health()["kept"] == 0
        assert {process.exited.result().signal for process in processes} == {signal.SIGKILL}


# --- killed before it is what was asked for ---

ENTRIES = 30_000
"""Of PATH, in each of which nothing is found: a failing execve takes microseconds, all of them tenths of a second."""


async def until_found(find: Callable[[], list[int]]) -> list[int]:
    async with asyncio.timeout(10):
        while not (found := find()):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0)
    return found


async def test_one_that_is_stopped_in_its_start_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "SPAWN_START_MS", 300)
    async with a_host() as (host, lane):
        process = await lane.start(spec("late", env={"PATH": "/x:" * ENTRIES + str(tmp_path)}), 0)
        assert process.started is not None
        child = (await until_found(lambda: [pid for one in children_of(host.pid) for pid in commands_of(one)]))[0]
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(ExecFailed) as refused:
            await process.started
        assert refused.value.reason == "engine_timeout"
        await until(lambda: not is_there(child))
        await settled(host)
        assert (await run(lane, "echo", "on"))[1] == b"on\n"


async def test_end_all_takes_what_ended_commands_left_too() -> None:
    async with a_host() as (host, lane):
        idle = set(descendants_of(host.pid))
        ended = await start(lane, "sh", "-c", "setsid sleep 1000 & exit 3")
        live = [await start(lane, "env", "-i", "sleep", "1000") for _ in range(20)]
        await ended.exited()
        tree = set(descendants_of(host.pid)) - idle
        assert len(tree) > 20
        await lane.end_all([one.process for one in live], Grace(0.0))
        assert {one.process.exited.result().signal for one in live} == {signal.SIGKILL}
        assert host.spawner.counts()["kept"] == 0
        assert not any(commands_of(reaper) for reaper in children_of(host.pid))
        for process in (ended, *live):
            process.close()


async def test_closing_ends_all_that_runs() -> None:
    async with a_host() as (host, lane):
        process = await start(lane, "sh", "-c", "trap '' TERM; env -i setsid sleep 1000 & echo up; sleep 1000")
        await process.line()
        everybody = [host.pid, *descendants_of(host.pid)]
        await host.aclose()
        await host.aclose()
        assert not any(map(is_there, everybody))
        assert (await process.finish())[0].reason == "container_gone"


KILLED_OUTRIGHT = """
import asyncio, signal, socket
from fastclaw.processes.lane import StartSpec
from fastclaw.spawner.spawner_host import LocalHost
from fastclaw.spawner.spawn_lane import SpawnLane

async def main():
    host = LocalHost()
    await host.start()
    lane = SpawnLane(host, can_set_user=True)
    script = "trap '' TERM; env -i setsid sleep 1000 & echo up; sleep 1000"
    process = await lane.start(StartSpec(process_id="p", cmd=["sh", "-c", script], env={}), 0)
    await process.started
    ours, theirs = socket.socketpair()
    process.attach(0, theirs.detach())
    await asyncio.sleep(0)  # it may have to wait for room
    ours.recv(10)
    print(host.pid, flush=True)
    signal.pause()

asyncio.run(main())
"""


async def test_everything_ends_when_we_are_killed_outright() -> None:
    us = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED_OUTRIGHT, stdout=subprocess.PIPE)
    assert us.stdout is not None
    spawner = int(await us.stdout.readline())
    everybody = [spawner, *descendants_of(spawner)]
    assert len(everybody) > limits.SPAWN_SPARE_REAPERS + 2
    us.kill()
    await us.wait()
    await until(lambda: not any(map(has_not_ended, everybody)))


async def test_nothing_of_a_command_becomes_our_child() -> None:
    async with a_lane() as lane:
        before = children()
        process = await start(lane, "sh", "-c", "(setsid sleep 1000 &); exit 0")
        await process.exited()
        assert children() == before
        await process.end()
        assert children() == before
        process.close()


async def test_exits_of_the_loops_own_children_are_not_taken() -> None:
    async with a_lane() as lane:
        theirs = await asyncio.create_subprocess_exec("sh", "-c", "exit 9")
        await run(lane, "true")
        assert await theirs.wait() == 9


# --- reapers and pumps ---


SPARE = limits.SPAWN_SPARE_REAPERS


@pytest.mark.parametrize("who", ["reaper", "pump"])
async def test_a_killed_reaper_or_pump_takes_its_process_along_and_nobody_else(who: str) -> None:
    async with a_host() as (host, lane):
        other = await start(lane, "cat")
        script = "sleep 1000 & setsid sleep 1000 & env -i setsid sleep 1000 & echo $$; wait"
        process = await start(lane, "sh", "-c", script)
        command = int(await process.line())
        await until(lambda: len(descendants_of(command)) == 3)
        tree = [command, *descendants_of(command)]
        reaper = reaper_of(host.pid, command)
        pump = pump_of(reaper)
        os.kill(reaper if who == "reaper" else pump, signal.SIGKILL)
        # Without its pump its reaper ends it, and still gets to say so.
        assert (await process.finish())[0].reason == ("container_gone" if who == "reaper" else "signaled")
        await process.end()
        await until(lambda: not any(map(is_there, [reaper, pump, *tree])))
        await settled(host, 1)
        assert (await run(lane, "echo", "on"))[1] == b"on\n"
        assert (await other.finish(b"still here"))[1] == b"still here"
        await until(lambda: host.spawner.counts()["reapers"] == len(children_of(host.pid)))


async def test_some_idle_ones_that_die_in_the_middle_of_starts_lose_none_but_those() -> None:
    async with a_host() as (host, lane):
        running = [asyncio.ensure_future(run(lane, "echo", str(number))) for number in range(100)]
        killed = 0
        while not all(one.done() for one in running):
            for reaper in children_of(host.pid):
                if not commands_of(reaper) and killed < 8:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(reaper, signal.SIGKILL)
                        killed += 1
            await asyncio.sleep(0)
        results = await asyncio.gather(*running, return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        assert {getattr(error, "reason", error) for error in failed} <= {"container_gone"}
        lost = [result for result in results if not isinstance(result, BaseException) and result[0].reason != "exited"]
        assert len(failed) + len(lost) <= killed
        assert killed
        await settled(host)
        await until(lambda: host.spawner.counts()["reapers"] == len(children_of(host.pid)))


async def test_a_killed_spawner_takes_everything_along() -> None:
    async with a_host() as (host, lane):
        processes = [await start(lane, "sh", "-c", "setsid sleep 1000 & sleep 1000") for _ in range(3)]
        await until(lambda: len([one for reaper in children_of(host.pid) for one in descendants_of(reaper)[1:]]) >= 9)
        everybody = descendants_of(host.pid)
        os.kill(host.pid, signal.SIGKILL)
        for process in processes:
            # Its reaper ends it, and may still get to say so.
            assert (await process.finish())[0].reason in {"container_gone", "signaled"}
        await until(lambda: not any(map(has_not_ended, everybody)))
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true")
        assert refused.value.reason == "container_gone"


async def test_fastclaw_holds_no_descriptor_of_a_process() -> None:
    """Nor do main and its reaper: whoever holds an end of a pipe waits for who has locked it, if only to close it."""
    async with a_host() as (host, lane):
        idle = set(children_of(host.pid))
        process = await lane.start(spec("sh", "-c", "exec sleep 1000"), 0)
        assert process.started is not None
        await process.started
        command = next(iter(commands_of(reaper_of_any(host.pid))))
        theirs = {os.readlink(f"/proc/{command}/fd/{fd}") for fd in range(3)}
        assert {one.partition(":")[0] for one in theirs} == {"pipe"}
        reaper = reaper_of(host.pid, command)
        for holder in (os.getpid(), host.pid, *idle, reaper):
            assert not theirs & held_by(holder), holder
        assert theirs <= held_by(pump_of(reaper))
        await process.end_tree(Grace(0.0))


def reaper_of_any(spawner: int) -> int:
    return next(reaper for reaper in children_of(spawner) if commands_of(reaper))


def held_by(pid: int) -> set[str]:
    """What its descriptors refer to."""
    with contextlib.suppress(FileNotFoundError):
        return set(open_descriptors(pid).values())
    return set()


async def test_a_listener_inside_is_on_loopback_and_takes_connections() -> None:
    async with a_host() as (host, _):
        listener, port = await host.spawner.listen_inside()
        with listener:
            assert listener.getsockname() == ("127.0.0.1", port)
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            assert not os.get_blocking(listener.fileno())
            assert not listener.get_inheritable()
            with socket.create_connection(("127.0.0.1", port)):
                accepted, _ = listener.accept()
                accepted.close()
            with pytest.raises(ExecFailed, match=f"port {port} inside: Address already in use") as refused:
                await host.spawner.listen_inside(port)
            assert refused.value.reason == "io_error"
        again, same = await host.spawner.listen_inside(port)
        again.close()
        assert same == port


def slurp(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def test_many_files_at_once_beside_many_starts() -> None:
    async with a_host() as (host, lane):
        passwd = slurp("/etc/passwd")
        reads = [host.spawner.read_file("/etc/passwd") for _ in range(100)]
        starts = [run(lane, "echo", "on") for _ in range(100)]
        found, ended = await asyncio.gather(asyncio.gather(*reads), asyncio.gather(*starts))
        assert set(found) == {passwd}
        assert {out for _, out, _ in ended} == {b"on\n"}


async def test_three_hundred_live_and_back() -> None:
    async with a_host() as (host, lane):
        many = 300
        processes = await asyncio.gather(*(start(lane, "sleep", "1000", stdin=False) for _ in range(many)))
        counts = host.spawner.counts()
        assert counts["kept"] == many
        assert many <= counts["reapers"] <= many + many // 2
        await asyncio.gather(*(process.end() for process in processes))
        assert {process.process.exited.result().signal for process in processes} == {signal.SIGKILL}
        for process in processes:
            process.close()
        await until(lambda: host.spawner.counts() == {"reapers": limits.SPAWN_IDLE_REAPERS, "kept": 0})
        await until(lambda: len(children_of(host.pid)) == limits.SPAWN_IDLE_REAPERS)


HEARS = """
import os, signal
heard = set(range(1, 65)) - {9, 19, 32, 33}
signal.pthread_sigmask(signal.SIG_BLOCK, heard)
os.write(1, b"0")
while True:
    os.write(1, b"%d" % signal.sigwait(heard))
"""
LIBC_SIGNALS = (32, 33)
"""The C library keeps them for itself (nptl(7)), so that Python cannot wait for them."""


async def test_every_signal_arrives() -> None:
    async with a_host() as (_, lane):
        process = await start(lane, sys.executable, "-S", "-c", HEARS)
        assert await process.line() == b"0"
        for signum in sorted(set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, *LIBC_SIGNALS}):
            for group in (False, True):
                process.signal(signum, group=group)
                assert await process.line() == b"%d" % signum
        await process.end()
        await process.finish()


@pytest.mark.parametrize("signum", [signal.SIGKILL, *LIBC_SIGNALS, signal.SIGRTMAX])
async def test_a_signal_ends_who_does_not_care(signum: int) -> None:
    async with a_host() as (_, lane):
        process = await start(lane, "sleep", "1000")
        process.signal(signum)
        assert (await process.finish())[0].signal == signum


async def test_a_stopped_process_goes_on_and_can_be_ended() -> None:
    async with a_host() as (_, lane):
        process = await start(lane, "sh", "-c", "echo $$; read line; echo $line; sleep 1000")
        pid = int(await process.line())
        process.signal(signal.SIGSTOP)
        await until(lambda: state_of(pid) == "T")
        process.signal(signal.SIGCONT)
        await process.stdio.send(b"on\n")
        assert await process.line() == b"on\n"
        process.signal(signal.SIGSTOP)
        await until(lambda: state_of(pid) == "T")
        await process.end()
        assert (await process.finish())[0].signal == signal.SIGKILL


# --- requests that are too large for a frame ---


async def test_one_long_argument() -> None:
    async with a_host() as (_, lane):
        text = "x" * (120 * limits.KIB)
        _, out, _ = await run(lane, "sh", "-c", 'printf %s "$1"', "sh", text)
        assert out == text.encode()


async def test_ten_thousand_variables(tmp_path: Path) -> None:
    async with a_host() as (_, lane):
        env = {f"V_{number}": str(number) for number in range(10_000)}
        _, out, _ = await run(lane, "env", env=env, working_dir=str(tmp_path))
        assert {f"{name}={value}" for name, value in env.items()} <= set(out.decode().splitlines())


async def test_two_megabytes_of_variables_need_a_larger_stack() -> None:
    env = {f"V_{number}": "x" * (102 * limits.KIB) for number in range(20)}
    async with a_host() as (_, lane):
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "env", env=env, limits={"stack": 4 * limits.MIB})
        assert refused.value.reason == "too_long"
        process = await start(lane, "env", env=env, limits={"stack": 64 * limits.MIB})
        _, out, _ = await process.finish()
        assert set(out.decode().splitlines()) >= {f"{name}={value}" for name, value in env.items()}


async def test_more_than_the_spawner_takes_is_too_long_and_leaks_nothing() -> None:
    async with a_host() as (_, lane):
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true", *["x" * limits.MIB] * 8)
        assert refused.value.reason == "too_long"


async def test_many_large_requests_at_once() -> None:
    async with a_host() as (_, lane):
        texts = [f"{number} " + "x" * (40 * limits.KIB) for number in range(20)]
        results = await asyncio.gather(*(run(lane, "echo", "-n", text) for text in texts))
        assert [out.decode() for _, out, _ in results] == texts
