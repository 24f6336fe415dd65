"""Processes on a terminal, over the lane itself: what the terminal is, how it ends, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Grace
from fastclaw.spawner import frames
from tests.balance import open_descriptors
from tests.pids import children_of, has_not_ended
from tests.spawner import rig
from tests.spawner.fake_spawner import BareHost, commands_of, pump_of, pumps_of, reaper_of
from tests.spawner.locks import a_locked_fifo
from tests.spawner.rig import STDIO, Client, Running, a_host, a_lane, needs_root, settled
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.spawner.spawn_lane import SpawnLane

SIZE = (24, 80)
DEADLINE_S = 20


async def start(lane: SpawnLane, script: str, **more: object) -> Running:
    return await rig.start(lane, "sh", "-c", script, **{"tty": SIZE, **more})


async def output(lane: SpawnLane, script: str, **more: object) -> bytes:
    process = await start(lane, script, **more)
    out = await process.stdio.read_all()
    assert await process.stderr.read_all() == b""
    await process.exited()
    process.close()
    return out


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
        assert await process.stderr.read_all() == b""
        assert await process.stdio.read() == b"problem\r\n"
        await process.end_and_close()


async def test_only_its_pump_has_the_terminal_s_other_side() -> None:
    async with a_host() as (host, lane):
        before = open_descriptors()
        process = await lane.start(rig.spec("sh", "-c", "exec sleep 1000", tty=SIZE), 0)
        assert process.started is not None
        await process.started
        assert open_descriptors() == before
        (command,) = [pid for reaper in children_of(host.pid) for pid in commands_of(reaper)]
        reaper = reaper_of(host.pid, command)
        holders = [pid for pid in (host.pid, *children_of(host.pid), *pumps_of(host.pid)) if masters_of(pid)]
        assert holders == [pump_of(reaper)]
        assert masters_of(command) == []
        await process.end_tree(Grace(0.0))


def masters_of(pid: int) -> list[str]:
    return [link for link in open_descriptors(pid).values() if link.endswith("ptmx")]


async def test_the_size_is_there_from_the_start_and_can_be_changed() -> None:
    async with a_lane() as lane:
        assert await output(lane, "stty size", tty=(3, 65_535)) == b"3 65535\r\n"
        script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 1 & wait; done"
        process = await start(lane, script)
        await process.stdio.read_until(b"ready\r\n")
        process.process.resize(50, 132)
        assert await process.stdio.read_until(b"\n") == b"50 132\r\n"
        await process.end_and_close()
        process.process.resize(1, 1)  # it has ended: nothing happens


async def test_a_size_for_another_kind_of_process_changes_nothing() -> None:
    async with a_lane() as lane:
        process = await rig.start(lane, "cat")
        process.process.resize(50, 132)
        assert (await process.finish(b"on"))[1] == b"on"


@pytest.mark.parametrize("count", [0, 1, 3_000])
async def test_output_before_an_instant_exit_is_there_however_late_it_is_read(count: int) -> None:
    async with a_lane() as lane:
        specs = [rig.spec("head", "-c", str(count), "/dev/zero", tty=SIZE) for _ in range(20)]
        processes = [await lane.start(one, 0) for one in specs]
        for process in processes:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.shield(process.exited)
        running = [Running(process) for process in processes]  # type: ignore[arg-type]  # of this lane
        assert {out for _, out, _ in await asyncio.gather(*(one.finish() for one in running))} == {bytes(count)}


async def test_more_output_than_a_terminal_keeps_blocks_the_process_and_all_of_it_comes() -> None:
    async with a_lane() as lane:
        process = await lane.start(
            rig.spec("sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; echo end", tty=SIZE), 0
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.shield(process.exited)
        assert not process.exited.done()
        _, out, _ = await Running(process).finish()  # type: ignore[arg-type]  # of this lane
        assert out == b"".join(b"%d\r\n" % number for number in range(20_000)) + b"end\r\n"


@pytest.mark.parametrize("size", [1, 4_095, 4_096, 100_000])
async def test_input_reaches_it_whole(size: int) -> None:
    """In lines, for a terminal drops what is longer (termios(3), canonical mode)."""
    async with a_lane() as lane:
        text = (b"x" * 63 + b"\n") * (size // 64) + b"y" * (size % 64)
        process = await start(lane, "stty -echo -onlcr; echo ready; cat; echo end")
        assert await process.stdio.read_until(b"ready\n") == b"ready\n"
        _, out, _ = await process.finish(text)
        assert out == text + b"end\n"


async def test_the_end_of_the_process_hangs_up_nobody_else() -> None:
    async with a_lane() as lane:
        script = "trap '' HUP; (trap '' HUP; read line; echo late $line) & echo early; exit 3"
        process = await start(lane, script)
        await process.stdio.read_until(b"early\r\n")
        assert (await process.exited()).exit_code == 3
        await process.end_and_close()


async def test_without_stdin_only_the_outputs_are_the_terminal() -> None:
    async with a_lane() as lane:
        process = await start(lane, "cat; tty <&1; echo own >/dev/tty", stdin=False)
        _, out, _ = await process.finish(b"for nobody")
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
async def test_a_pump_that_had_another_user_s_terminal_still_goes_with_main() -> None:
    async with a_host() as (host, lane):
        process = await start(lane, "trap '' HUP TERM; echo ready; while :; do sleep 1000; done", user="65534")
        await process.stdio.read_until(b"ready\r\n")
        pumps = pumps_of(host.pid)
        os.kill(host.pid, signal.SIGKILL)
        status, _, _ = await process.finish()
        assert status.reason in ("container_gone", "signaled")  # whichever of main's end and its own is told first
        await until(lambda: not any(map(has_not_ended, pumps)))


@needs_root
def test_what_is_no_terminal_in_ptmx_s_place_is_refused_at_once(tmp_path: Path) -> None:
    """A container's root may put there what he likes: a FIFO that he has locked holds up whoever opens it."""
    os.mkfifo(tmp_path / "fifo")
    script = f'mount --bind {tmp_path / "fifo"} /dev/ptmx && exec "$@"'
    with a_locked_fifo(str(tmp_path / "fifo")):
        host = BareHost("unshare", "--mount", "sh", "-c", script, "sh")
        try:
            host.greet()
            host.send_welcome()
            host.grow(2)
            for id in (1, 2, 3):
                host.send_start(id, "true", tty=SIZE)
                assert host.event()[:4] == (frames.REFUSED, id, errno.ENXIO, frames.STEP_TTY)
            host.start(4, "true")
        finally:
            host.close()


async def test_what_cannot_be_started_leaves_nothing() -> None:
    async with a_host() as (host, lane):
        process = await lane.start(rig.spec("/no/such/program", tty=SIZE), 0)
        assert process.started is not None
        with pytest.raises(ExecFailed) as raised:
            await process.started
        assert raised.value.reason == "not_found"
        await settled(host)
        await until(lambda: not any(map(masters_of, pumps_of(host.pid))))
        assert await output(lane, "echo next") == b"next\r\n"


async def test_one_that_is_given_up_at_once_leaves_nothing() -> None:
    async with a_host() as (host, lane):
        processes = [await lane.start(rig.spec("sleep", "1000", tty=SIZE), 0) for _ in range(20)]
        await asyncio.gather(*(process.end_tree(Grace(0.0)) for process in processes))
        await settled(host)
        await until(lambda: not any(map(masters_of, pumps_of(host.pid))))
        assert await output(lane, "echo next") == b"next\r\n"


@pytest.mark.parametrize("room", range(4))
async def test_no_descriptor_for_a_terminal_is_overloaded_and_hurts_nobody_else(room: int) -> None:
    """A pump needs the master, for a moment its path, the other side, and a copy of the master for input."""
    async with a_host() as (host, lane):
        other = await start(lane, "read line; echo got $line")
        reaper = next(one for one in children_of(host.pid) if commands_of(one))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        await host.spawner.make_room()  # more are made, of which none is to come later
        await until(lambda: host.spawner.counts()["reapers"] > limits.SPAWN_SPARE_REAPERS)
        idle = [pump for pump in pumps_of(host.pid) if pump != pump_of(reaper)]
        assert len(idle) >= limits.SPAWN_SPARE_REAPERS
        for pump in idle:
            held = max(int(fd) for fd in os.listdir(f"/proc/{pump}/fd"))
            resource.prlimit(pump, resource.RLIMIT_NOFILE, (held + 1 + room, hard))
        process = await lane.start(rig.spec("sleep", "1000", tty=SIZE), 0)
        assert process.started is not None
        if room < 3:
            with pytest.raises(ExecFailed) as raised:
                await process.started
            assert raised.value.reason == "overloaded"
        else:
            await process.started
            await process.end_tree(Grace(0.0))
        await settled(host, 1)
        await other.stdio.send(b"word\n")
        assert (await other.stdio.read_all()).endswith(b"got word\r\n")
        other.close()


async def test_an_interrupt_is_a_character() -> None:
    async with a_lane() as lane:
        process = await start(lane, "echo ready; exec sleep 1000")
        await process.stdio.read_until(b"ready\r\n")
        await process.stdio.send(b"\x03")
        assert await process.stdio.read_all() == b"^C"
        assert (await process.exited()).signal == signal.SIGINT
        process.close()


MODES = f"""
import termios
modes = termios.tcgetattr(0)[3]
print([bool(modes & bit) for bit in ({termios.ICANON}, {termios.ECHO}, {termios.ISIG})])
"""


async def test_modes_are_the_usual_ones() -> None:
    async with a_lane() as lane:
        process = await rig.start(lane, sys.executable, "-S", "-c", MODES, tty=SIZE)
        assert (await process.stdio.read_all()).strip() == b"[True, True, True]"
        process.close()


# --- the end of input ---


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b""), (b"word", b"word"), (b"line\n", b"line\n"), (b"line\nword", b"line\nword")]
)
async def test_the_end_of_input_is_a_character_wherever_in_a_line_it_comes(before: bytes, after: bytes) -> None:
    async with a_lane() as lane:
        process = await start(lane, "stty -echo -onlcr; echo ready; cat; echo end")
        await process.stdio.read_until(b"ready\n")
        assert (await process.finish(before))[1] == after + b"end\n"


async def test_in_raw_mode_there_is_no_such_character_and_nothing_is_sent() -> None:
    async with a_lane() as lane:
        script = "stty raw -echo min 0 time 10; echo ready; cat | od -An -tx1; echo end"
        process = await start(lane, script)
        await process.stdio.read_until(b"ready\n")
        assert (await process.finish(b"ab"))[1].split() == [b"61", b"62", b"end"]


async def test_a_client_that_is_held_sends_no_end() -> None:
    async with a_lane() as lane:
        process = await start(lane, "stty -echo; echo ready; read line; echo got $line", holds_stdin=True)
        await process.stdio.read_until(b"ready\r\n")
        process.stdio.close()
        other = Client(process.process, STDIO)
        await other.send(b"word\n")
        assert await other.read_all() == b"got word\r\n"
        other.close()
        process.close()
