"""The real spawner as fastclaw sees it: reapers, pumps, signals, files and listeners inside, requests of any size."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Grace
from tests.balance import open_descriptors
from tests.spawner.fake_spawner import (
    children_of,
    commands_of,
    descendants_of,
    has_not_ended,
    is_there,
    pump_of,
    reaper_of,
    state_of,
)
from tests.spawner.rig import a_home, run, settled, spec, start
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

SPARE = limits.SPAWN_SPARE_REAPERS


@pytest.mark.parametrize("who", ["reaper", "pump"])
async def test_a_killed_reaper_or_pump_takes_its_process_along_and_nobody_else(who: str) -> None:
    async with a_home() as (home, lane):
        other = await start(lane, "cat")
        script = "sleep 1000 & setsid sleep 1000 & env -i setsid sleep 1000 & echo $$; wait"
        process = await start(lane, "sh", "-c", script)
        command = int(await process.line())
        await until(lambda: len(descendants_of(command)) == 3)
        tree = [command, *descendants_of(command)]
        reaper = reaper_of(home.pid, command)
        pump = pump_of(reaper)
        os.kill(reaper if who == "reaper" else pump, signal.SIGKILL)
        # Without its pump its reaper ends it, and still gets to say so.
        assert (await process.finish())[0].reason == ("container_gone" if who == "reaper" else "signaled")
        await process.end()
        await until(lambda: not any(map(is_there, [reaper, pump, *tree])))
        await settled(home, 1)
        assert (await run(lane, "echo", "on"))[1] == b"on\n"
        assert (await other.finish(b"still here"))[1] == b"still here"
        await until(lambda: home.spawner.counts()["reapers"] == len(children_of(home.pid)))


async def test_some_idle_ones_that_die_in_the_middle_of_starts_lose_none_but_those() -> None:
    async with a_home() as (home, lane):
        running = [asyncio.ensure_future(run(lane, "echo", str(number))) for number in range(100)]
        killed = 0
        while not all(one.done() for one in running):
            for reaper in children_of(home.pid):
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
        await settled(home)
        await until(lambda: home.spawner.counts()["reapers"] == len(children_of(home.pid)))


async def test_a_killed_spawner_takes_everything_along() -> None:
    async with a_home() as (home, lane):
        processes = [await start(lane, "sh", "-c", "setsid sleep 1000 & sleep 1000") for _ in range(3)]
        await until(lambda: len([one for reaper in children_of(home.pid) for one in descendants_of(reaper)[1:]]) >= 9)
        everybody = descendants_of(home.pid)
        os.kill(home.pid, signal.SIGKILL)
        for process in processes:
            # Its reaper ends it, and may still get to say so.
            assert (await process.finish())[0].reason in {"container_gone", "signaled"}
        await until(lambda: not any(map(has_not_ended, everybody)))
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true")
        assert refused.value.reason == "container_gone"


async def test_fastclaw_holds_no_descriptor_of_a_process() -> None:
    """Nor do main and its reaper: whoever holds an end of a pipe waits for who has locked it, if only to close it."""
    async with a_home() as (home, lane):
        idle = set(children_of(home.pid))
        process = await lane.start(spec("sh", "-c", "exec sleep 1000"), 0)
        assert process.started is not None
        await process.started
        command = next(iter(commands_of(reaper_of_any(home.pid))))
        theirs = {os.readlink(f"/proc/{command}/fd/{fd}") for fd in range(3)}
        assert {one.partition(":")[0] for one in theirs} == {"pipe"}
        reaper = reaper_of(home.pid, command)
        for holder in (os.getpid(), home.pid, *idle, reaper):
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
    async with a_home() as (home, _):
        listener, port = await home.spawner.listen_inside()
        with listener:
            assert listener.getsockname() == ("127.0.0.1", port)
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            assert not os.get_blocking(listener.fileno())
            assert not listener.get_inheritable()
            with socket.create_connection(("127.0.0.1", port)):
                accepted, _ = listener.accept()
                accepted.close()
            with pytest.raises(ExecFailed, match=f"port {port} inside: Address already in use") as refused:
                await home.spawner.listen_inside(port)
            assert refused.value.reason == "io_error"
        again, same = await home.spawner.listen_inside(port)
        again.close()
        assert same == port


def slurp(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def test_many_files_at_once_beside_many_starts() -> None:
    async with a_home() as (home, lane):
        passwd = slurp("/etc/passwd")
        reads = [home.spawner.read_file("/etc/passwd") for _ in range(100)]
        starts = [run(lane, "echo", "on") for _ in range(100)]
        found, ended = await asyncio.gather(asyncio.gather(*reads), asyncio.gather(*starts))
        assert set(found) == {passwd}
        assert {out for _, out, _ in ended} == {b"on\n"}


async def test_three_hundred_live_and_back() -> None:
    async with a_home() as (home, lane):
        many = 300
        processes = await asyncio.gather(*(start(lane, "sleep", "1000", stdin=False) for _ in range(many)))
        counts = home.spawner.counts()
        assert counts["kept"] == many
        assert many <= counts["reapers"] <= many + many // 2
        await asyncio.gather(*(process.end() for process in processes))
        assert {process.process.exited.result().signal for process in processes} == {signal.SIGKILL}
        for process in processes:
            process.close()
        await until(lambda: home.spawner.counts() == {"reapers": limits.SPAWN_IDLE_REAPERS, "kept": 0})
        await until(lambda: len(children_of(home.pid)) == limits.SPAWN_IDLE_REAPERS)


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
    async with a_home() as (_, lane):
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
    async with a_home() as (_, lane):
        process = await start(lane, "sleep", "1000")
        process.signal(signum)
        assert (await process.finish())[0].signal == signum


async def test_a_stopped_process_goes_on_and_can_be_ended() -> None:
    async with a_home() as (_, lane):
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
    async with a_home() as (_, lane):
        text = "x" * (120 * limits.KIB)
        _, out, _ = await run(lane, "sh", "-c", 'printf %s "$1"', "sh", text)
        assert out == text.encode()


async def test_ten_thousand_variables(tmp_path: Path) -> None:
    async with a_home() as (_, lane):
        env = {f"V_{number}": str(number) for number in range(10_000)}
        _, out, _ = await run(lane, "env", env=env, working_dir=str(tmp_path))
        assert {f"{name}={value}" for name, value in env.items()} <= set(out.decode().splitlines())


async def test_two_megabytes_of_variables_need_a_larger_stack() -> None:
    env = {f"V_{number}": "x" * (102 * limits.KIB) for number in range(20)}
    async with a_home() as (_, lane):
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "env", env=env, limits={"stack": 4 * limits.MIB})
        assert refused.value.reason == "too_long"
        process = await start(lane, "env", env=env, limits={"stack": 64 * limits.MIB})
        _, out, _ = await process.finish()
        assert set(out.decode().splitlines()) >= {f"{name}={value}" for name, value in env.items()}


async def test_more_than_the_spawner_takes_is_too_long_and_leaks_nothing() -> None:
    async with a_home() as (_, lane):
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true", *["x" * limits.MIB] * 8)
        assert refused.value.reason == "too_long"


async def test_many_large_requests_at_once() -> None:
    async with a_home() as (_, lane):
        texts = [f"{number} " + "x" * (40 * limits.KIB) for number in range(20)]
        results = await asyncio.gather(*(run(lane, "echo", "-n", text) for text in texts))
        assert [out.decode() for _, out, _ in results] == texts
