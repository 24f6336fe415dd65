"""Processes on a terminal, over the lane itself: what the terminal is, how it ends, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.lane import ExitStatus, Grace, StartSpec
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import SpawnLane
from fastclaw.spawn.process import SpawnProcess
from fastclaw.spawn.stdio import terminal_streams
from tests.balance import balanced, open_descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SIZE = (24, 80)
DEADLINE_S = 20
ROOM_OF_A_TERMINAL = 5
"""Descriptors while it is taken: the master, two copies, and a pipe of which one end stays."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as somebody else")


@asynccontextmanager
async def a_lane() -> AsyncIterator[SpawnLane]:
    async with balanced():
        home = HostHome()
        await home.start()
        try:
            yield SpawnLane(home, can_set_user=True)
        finally:
            await home.aclose()


async def start(lane: SpawnLane, script: str, **more: object) -> SpawnProcess:
    asked = {"tty": SIZE, **more}
    spec = StartSpec(process_id=uuid4().hex, cmd=["sh", "-c", script], **asked)  # type: ignore[arg-type]  # shorthand
    process = await lane.start(spec, 0)
    assert isinstance(process, SpawnProcess)
    return process


async def ready(fd: int) -> None:
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, came.set)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await came.wait()
    finally:
        loop.remove_reader(fd)


async def read(fd: int) -> bytes:
    """What is there, or b'' at the end, which a terminal tells as EIO."""
    while True:
        try:
            return os.read(fd, 65_536)
        except BlockingIOError:
            await ready(fd)
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise


async def read_until(process: SpawnProcess, wanted: bytes) -> bytes:
    got = b""
    while wanted not in got and (data := await read(process.stdout_fd)):
        got += data
    return got


async def finish(process: SpawnProcess) -> tuple[ExitStatus, bytes]:
    """Its output to the end, and how it ended."""
    out = b""
    while data := await read(process.stdout_fd):
        out += data
    async with asyncio.timeout(DEADLINE_S):
        status = await asyncio.shield(process.exited)
    close(process)
    return status, out


def close(process: SpawnProcess) -> None:
    for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd):
        if fd is not None:
            os.close(fd)


async def output(lane: SpawnLane, script: str, **more: object) -> bytes:
    return (await finish(await start(lane, script, **more)))[1]


async def end(process: SpawnProcess) -> None:
    await process.end_tree(Grace(0.0))


async def test_all_three_are_one_terminal_of_its_own() -> None:
    async with a_lane() as lane:
        script = "tty; tty <&1; tty <&2; test /dev/fd/0 -ef $(tty) && echo same; echo own >/dev/tty"
        name, one, two, same, own, rest = (await output(lane, script)).split(b"\r\n")
        assert name.startswith(b"/dev/pts/")
        assert (one, two, same, own, rest) == (name, name, b"same", b"own", b"")


async def test_it_leads_a_session_on_it() -> None:
    async with a_lane() as lane:
        stat = (await output(lane, "read stat </proc/$$/stat; echo $stat")).split()
        pid, group, session, terminal, foreground = stat[0], stat[4], stat[5], int(stat[6]), stat[7]
        assert pid == group == session == foreground
        assert os.major(terminal) == 136  # Unix98 pseudo-terminals (Documentation/admin-guide/devices.txt)


async def test_stderr_is_an_output_at_its_end() -> None:
    async with a_lane() as lane:
        process = await start(lane, "echo problem >&2; exec sleep 1000")
        assert os.read(process.stderr_fd, 1) == b""
        assert await read(process.stdout_fd) == b"problem\r\n"
        await end(process)
        await finish(process)


async def test_our_ends_do_not_block_and_are_not_inherited() -> None:
    async with a_lane() as lane:
        process = await start(lane, "exec sleep 1000")
        assert process.stdin_fd is not None
        for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd):
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
        await end(process)
        await finish(process)


async def test_the_size_is_there_from_the_start_and_can_be_changed() -> None:
    async with a_lane() as lane:
        assert await output(lane, "stty size", tty=(3, 65_535)) == b"3 65535\r\n"
        script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 1 & wait; done"
        process = await start(lane, script)
        await read_until(process, b"ready\r\n")
        process.resize(50, 132)
        assert await read_until(process, b"\n") == b"50 132\r\n"
        await end(process)
        await finish(process)
        process.resize(1, 1)  # it has ended: nothing happens


@pytest.mark.parametrize("count", [0, 1, 3_000])
async def test_output_before_an_instant_exit_is_there_however_late_it_is_read(count: int) -> None:
    async with a_lane() as lane:
        processes = [await start(lane, f"head -c {count} /dev/zero") for _ in range(20)]
        for process in processes:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.shield(process.exited)
        assert {(await finish(process))[1] for process in processes} == {bytes(count)}


async def test_more_output_than_a_terminal_keeps_blocks_the_process_and_all_of_it_comes() -> None:
    async with a_lane() as lane:
        process = await start(lane, "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done")
        await ready(process.stdout_fd)
        assert not process.exited.done()
        _, out = await finish(process)
        assert out == b"".join(b"%d\r\n" % number for number in range(20_000))


async def test_the_end_of_the_process_hangs_up_nobody_else() -> None:
    async with a_lane() as lane:
        process = await start(lane, "trap '' HUP; (read line; echo late $line) & echo early; exit 3")
        await read_until(process, b"early\r\n")
        status = await asyncio.shield(process.exited)
        assert status.exit_code == 3
        assert process.stdin_fd is not None
        os.write(process.stdin_fd, b"\n")
        await end(process)
        await finish(process)


async def test_without_stdin_only_the_outputs_are_the_terminal() -> None:
    async with a_lane() as lane:
        process = await start(lane, "cat; tty <&1; echo own >/dev/tty", stdin=False)
        assert process.stdin_fd is None
        _, out = await finish(process)
        name, own, _ = out.split(b"\r\n")
        assert (name[:9], own) == (b"/dev/pts/", b"own")


async def test_a_long_command_line_goes_as_a_file_and_with_its_window() -> None:
    async with a_lane() as lane:
        size = await output(lane, f"stty size # {'x' * 2 * limits.SPAWN_FRAME_BYTES}", tty=(7, 9))
        assert size == b"7 9\r\n"


async def test_a_frame_that_the_window_makes_too_long_goes_as_a_file() -> None:
    async with a_lane() as lane:
        for spare in range(3_000, 3_064):  # around the edge, wherever the environment puts it
            padding = "x" * (limits.SPAWN_FRAME_BYTES - spare - sum(len(k) + len(v) + 2 for k, v in os.environ.items()))
            assert await output(lane, f"stty size # {padding}") == b"24 80\r\n"


@needs_root
async def test_its_user_may_open_it_again_by_name() -> None:
    async with a_lane() as lane:
        script = "id -u; echo out >/dev/stdout; echo err >/dev/stderr; echo name >$(tty)"
        assert await output(lane, script, user="65534") == b"65534\r\nout\r\nerr\r\nname\r\n"


@needs_root
async def test_a_keeper_that_had_another_user_s_terminal_still_notices_the_end_of_main() -> None:
    async with a_lane() as lane:
        process = await start(lane, "trap '' HUP TERM; echo ready; while :; do sleep 1000; done", user="65534")
        await read_until(process, b"ready\r\n")
        os.kill(lane._homes.take(0)._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        status, _ = await finish(process)
        assert status.reason in ("container_gone", "signaled")  # whichever of main's end and its own is told first


async def test_what_cannot_be_started_leaves_nothing() -> None:
    async with a_lane() as lane:
        before = open_descriptors()
        with pytest.raises(ExecFailed) as raised:
            await lane.start(StartSpec(process_id="p", cmd=["/no/such/program"], tty=SIZE), 0)
        assert raised.value.reason == "not_found"
        assert open_descriptors() == before
        assert await output(lane, "echo next") == b"next\r\n"
        assert lane._homes.take(0).spawner._terminals == set()


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_start_leaves_nothing(turns: int) -> None:
    async with a_lane() as lane:
        before = open_descriptors()
        starting = asyncio.create_task(start(lane, "exec sleep 1000"))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await finish_at_once(await starting)
        await settled(lane)
        assert open_descriptors() == before


async def test_a_start_that_is_cancelled_just_as_it_succeeds_leaves_nothing() -> None:
    async with a_lane() as lane:
        before = open_descriptors()
        starting = asyncio.create_task(start(lane, "exec sleep 1000"))
        spawner = lane._homes.take(0).spawner
        while not spawner._kept:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0)
        (process,) = spawner._kept.values()
        process.started.add_done_callback(lambda _: starting.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            await finish_at_once(await starting)
        await settled(lane)
        assert open_descriptors() == before


async def finish_at_once(process: SpawnProcess) -> None:
    await end(process)
    close(process)


async def settled(lane: SpawnLane, others: int = 0) -> None:
    """Until nothing but these is kept any more, of which nobody is told."""
    async with asyncio.timeout(DEADLINE_S):
        while len(lane._homes.take(0).spawner._kept) > others:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.001)


async def test_no_descriptor_for_a_terminal_is_overloaded_and_hurts_nobody_else() -> None:
    async with a_lane() as lane:
        other = await start(lane, "read line; echo got $line")
        for room in range(ROOM_OF_A_TERMINAL):
            with descriptors_left(room), pytest.raises(ExecFailed) as raised:
                await finish_at_once(await start(lane, "exec sleep 1000"))
            assert raised.value.reason == "overloaded"
        with descriptors_left(ROOM_OF_A_TERMINAL):
            await finish_at_once(await start(lane, "exec sleep 1000"))
        await settled(lane, others=1)
        assert other.stdin_fd is not None
        os.write(other.stdin_fd, b"word\n")
        assert (await finish(other))[1].endswith(b"got word\r\n")


@contextlib.contextmanager
def descriptors_left(room: int) -> Iterator[None]:
    """Only so many more can be opened."""
    used, limit = open_descriptors(), 0
    while room or limit in used:
        room -= limit not in used
        limit += 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_streams_of_no_master() -> None:
    with pytest.raises(ExecFailed) as raised:
        terminal_streams(None, stdin=True)
    assert raised.value.reason == "overloaded"


async def test_an_interrupt_is_a_character() -> None:
    async with a_lane() as lane:
        process = await start(lane, "echo ready; exec sleep 1000")
        await read_until(process, b"ready\r\n")
        assert process.stdin_fd is not None
        os.write(process.stdin_fd, b"\x03")
        status, out = await finish(process)
        assert (status.signal, out) == (signal.SIGINT, b"^C")


async def test_modes_are_the_usual_ones() -> None:
    async with a_lane() as lane:
        process = await start(lane, "exec sleep 1000")
        modes = termios.tcgetattr(process.stdout_fd)[3]
        assert modes & termios.ICANON
        assert modes & termios.ECHO
        assert modes & termios.ISIG
        await end(process)
        await finish(process)
