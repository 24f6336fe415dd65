"""Runs over a real spawner of this host: what goes in and what comes out, to the byte, and every way one ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Collected, Collection, Grace, LaneProcess, Output, StartSpec
from tests.balance import open_descriptors
from tests.pids import children_of, descendants_of, is_there
from tests.spawner.fake_spawner import busy_reapers_of, commands_of, pump_of, reaper_of
from tests.spawner.locks import LEFT_LOCKED, STDOUT
from tests.spawner.rig import PATIENCE_S, a_host, a_lane, needs_root, settled, spec
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path
    from typing import Any

    from fastclaw.runtime import Keep
    from fastclaw.spawner.spawn_lane import SpawnLane

MIB = limits.MIB
INLINE = limits.SPAWN_INLINE_BYTES
SIZES = [0, 1, INLINE - 1, INLINE, INLINE + 1, MIB, 16 * MIB]

PATTERN = """
import hashlib, os, sys
def pattern(size, seed):
    block = b"".join(hashlib.sha256(b"%d %d" % (seed, n)).digest() for n in range(2048))
    return (block * (size // len(block) + 1))[:size]
def write(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:int(sys.argv[1])]):]
"""


def pattern(size: int, seed: int) -> bytes:
    """Bytes of all values, no two parts alike within 64 KiB; the same as of the program above."""
    block = b"".join(hashlib.sha256(b"%d %d" % (seed, number)).digest() for number in range(2048))
    return (block * (size // len(block) + 1))[:size]


def program(code: str, chunk: int = MIB) -> list[str]:
    """One that has the two functions, and writes in pieces of this size at most."""
    return [sys.executable, "-S", "-c", PATTERN + code, str(chunk)]


async def begin(lane: SpawnLane, *cmd: str, more: dict[str, Any] | None = None, **wanted: object) -> LaneProcess:
    process = await lane.run(spec(*cmd, **(more or {})), Collection(**wanted), 0)  # type: ignore[arg-type]  # shorthand
    assert process.collected is not None
    return process


async def run(lane: SpawnLane, *cmd: str, more: dict[str, Any] | None = None, **wanted: object) -> Collected:
    """`more`: of the StartSpec; `wanted`: of the Collection."""
    return await collected(await begin(lane, *cmd, more=more, **wanted))


async def collected(process: LaneProcess) -> Collected:
    assert process.collected is not None
    async with asyncio.timeout(PATIENCE_S):
        return await process.collected


def whole(output: Output) -> bytes:
    assert output.total == len(output.head) + len(output.tail)
    return output.head + output.tail


# --- output ---


async def test_both_streams_and_the_exit_code() -> None:
    async with a_host() as (host, lane):
        found = await run(lane, "sh", "-c", "echo out; echo problem >&2; exit 7")
        assert (whole(found.stdout), whole(found.stderr)) == (b"out\n", b"problem\n")
        assert (found.status.reason, found.status.exit_code, found.status.signal) == ("exited", 7, None)
        assert found.status.usage is not None
        assert (found.incomplete, found.limited, found.overloaded) == (False, False, False)
        await settled(host)
        await until(lambda: host.spawner._kept == {})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", [1, 2])
async def test_output_of_every_size_is_whole(which: int, size: int) -> None:
    async with a_lane() as lane:
        found = await run(lane, *program(f"write({which}, pattern({size}, 1))"), output_limit=16 * MIB)
        outputs = [found.stdout, found.stderr]
        assert whole(outputs[which - 1]) == pattern(size, 1)
        assert outputs[2 - which] == Output()


@pytest.mark.parametrize("size", SIZES)
async def test_both_streams_at_once_are_whole_and_not_mixed_up(size: int) -> None:
    async with a_lane() as lane:
        code = (
            f"import threading; other = threading.Thread(target=write, args=(2, pattern({size}, 2))); other.start()\n"
        )
        code += f"write(1, pattern({size}, 1)); other.join()"
        found = await run(lane, *program(code, chunk=10_007), output_limit=16 * MIB)
        assert whole(found.stdout) == pattern(size, 1)
        assert whole(found.stderr) == pattern(size, 2)


@pytest.mark.parametrize("chunk", [1, 100, INLINE - 1, INLINE, INLINE + 1])
async def test_in_small_pieces_it_is_the_same(chunk: int) -> None:
    async with a_lane() as lane:
        found = await run(lane, *program("write(1, pattern(20_000, 1))", chunk=chunk))
        assert whole(found.stdout) == pattern(20_000, 1)


LIMITS = [0, 1, 100, INLINE, INLINE + 1, 100_000]


@pytest.mark.parametrize("keep", ["head", "tail", "ends"])
@pytest.mark.parametrize("limit", LIMITS)
async def test_what_is_over_the_limit_is_counted_and_the_right_part_is_kept(limit: int, keep: Keep) -> None:
    async with a_lane() as lane:
        for size in sorted({0, 1, max(limit - 1, 0), limit, limit + 1, 2 * limit + 3, 300_001}):
            for chunk in (1_009, MIB):
                code = f"write(1, pattern({size}, 1)); write(2, pattern({size // 2}, 2))"
                found = await run(lane, *program(code, chunk=chunk), output_limit=limit, keep=keep)
                check_kept(found.stdout, pattern(size, 1), limit, keep)
                check_kept(found.stderr, pattern(size // 2, 2), limit, keep)
                assert found.status.exit_code == 0
                assert not found.limited


def check_kept(output: Output, data: bytes, limit: int, keep: Keep) -> None:
    assert output.total == len(data)
    if len(data) <= limit:
        assert output.head + output.tail == data
        return
    head = {"head": limit, "tail": 0, "ends": limit - limit // 2}[keep]
    assert output.head == data[:head]
    assert output.tail == data[len(data) - (limit - head) :]


async def test_output_without_an_end_is_counted_and_costs_no_memory() -> None:
    async with a_lane() as lane:
        found = await run(lane, "head", "-c", str(300 * MIB), "/dev/zero", output_limit=100, keep="tail")
        assert (found.stdout.total, found.stdout.tail) == (300 * MIB, bytes(100))


async def test_stderr_may_be_stdout() -> None:
    async with a_lane() as lane:
        script = "echo one; echo two >&2; echo three; [ /dev/stdout -ef /dev/stderr ] && echo same"
        found = await run(lane, "sh", "-c", script, more={"merge_stderr": True})
        assert (whole(found.stdout), found.stderr) == (b"one\ntwo\nthree\nsame\n", Output())


@pytest.mark.parametrize("user", [None, pytest.param("65534", marks=needs_root)])
async def test_streams_can_be_opened_again_by_name(user: str | None) -> None:
    async with a_lane() as lane:
        script = "id -u; cat </dev/stdin >/dev/stdout; echo problem >/dev/stderr"
        found = await run(lane, "sh", "-c", script, input=b"through", more={"user": user})
        uid = os.geteuid() if user is None else int(user)
        assert (whole(found.stdout), whole(found.stderr)) == (b"%d\nthrough" % uid, b"problem\n")


# --- input ---


@pytest.mark.parametrize("size", [*SIZES, 16_000, 64 * limits.KIB, 64 * limits.KIB + 1])
async def test_input_of_every_size_is_whole(size: int) -> None:
    """It goes along in the frame or as a file, and into the pipe before the command runs as far as it fits."""
    async with a_lane() as lane:
        data = pattern(size, 3)
        found = await run(lane, "cat", input=data, output_limit=16 * MIB)
        assert whole(found.stdout) == data
        assert found.status.exit_code == 0


async def test_without_input_stdin_is_at_its_end() -> None:
    async with a_lane() as lane:
        assert whole((await run(lane, "sh", "-c", "cat; readlink /proc/self/fd/0")).stdout) == b"/dev/null\n"


@pytest.mark.parametrize("size", [10, MIB])
@pytest.mark.parametrize("script", ["true", "exec <&-; exec sleep 0.1", "head -c 5 >/dev/null"])
async def test_input_that_nobody_reads_holds_nobody_up(size: int, script: str) -> None:
    async with a_host() as (host, lane):
        found = await run(lane, "sh", "-c", script, input=bytes(size))
        assert found.status.exit_code == 0
        assert not found.incomplete
        await settled(host)


async def test_input_is_there_however_late_it_is_read() -> None:
    async with a_lane() as lane:
        found = await run(lane, "sh", "-c", "sleep 0.2; cat", input=pattern(MIB, 1), output_limit=MIB)
        assert whole(found.stdout) == pattern(MIB, 1)


async def test_a_large_command_with_a_large_input() -> None:
    async with a_lane() as lane:
        text = "x" * (100 * limits.KIB)
        found = await run(
            lane, "sh", "-c", 'cat; printf %s "$1"', "sh", text, input=pattern(MIB, 1), output_limit=2 * MIB
        )
        assert whole(found.stdout) == pattern(MIB, 1) + text.encode()


# --- what is left when the command has ended ---


async def test_what_holds_a_stream_is_waited_for_no_longer_than_its_time() -> None:
    async with a_host() as (host, lane):
        began = time.monotonic()
        process = await begin(lane, "sh", "-c", "sleep 1000 & echo up; exit 3", drain_ms=100)
        found = await collected(process)
        assert 0.1 <= time.monotonic() - began < 5
        assert (whole(found.stdout), found.status.exit_code) == (b"up\n", 3)
        assert not found.incomplete
        await process.end_tree(Grace(0.0))
        await settled(host)


async def test_what_is_written_within_that_time_counts() -> None:
    async with a_lane() as lane:
        found = await run(lane, "sh", "-c", "(sleep 0.2; echo late) & echo early", drain_ms=10_000)
        assert whole(found.stdout) == b"early\nlate\n"


async def test_without_any_time_what_the_command_wrote_itself_is_there() -> None:
    async with a_lane() as lane:
        for _ in range(20):
            process = await begin(lane, "sh", "-c", "sleep 1000 & echo up; echo problem >&2", drain_ms=0)
            found = await collected(process)
            assert (whole(found.stdout), whole(found.stderr)) == (b"up\n", b"problem\n")
            await process.end_tree(Grace(0.0))


LATE = """
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    time.sleep(0.3)
    for _ in range(200): os.write(1, b"x" * 65536)
    open(sys.argv[2], "w").write("went on")
    os._exit(0)
write(1, b"early")
"""


async def test_what_an_orphan_writes_later_is_thrown_away_and_ends_it_not(tmp_path: Path) -> None:
    async with a_host() as (host, lane):
        process = await begin(lane, *program(LATE), str(tmp_path / "proof"), drain_ms=1)
        assert whole((await collected(process)).stdout) == b"early"
        await until((tmp_path / "proof").exists)
        await settled(host)
        await until(lambda: host.spawner._kept == {})


async def test_what_comes_after_the_end_was_told_is_nobody_s() -> None:
    """Least of all the next run's of the same pump."""
    async with a_lane() as lane:
        script = "(while :; do echo noise; sleep 0.005; done) & echo mine; exit 0"
        processes = [await begin(lane, "sh", "-c", script, drain_ms=1) for _ in range(5)]
        for process in processes:
            assert b"mine\n" in whole((await collected(process)).stdout)
        for _ in range(20):
            assert whole((await run(lane, "echo", "next")).stdout) == b"next\n"
        await asyncio.gather(*(process.end_tree(Grace(0.0)) for process in processes))


@pytest.mark.parametrize("orphans", ["keep", "kill"])
async def test_what_it_leaves_is_kept_or_ended(orphans: str) -> None:
    async with a_host() as (host, lane):
        script = "(env -i setsid sleep 1000 >/dev/null 2>&1 &); echo up; exit 3"
        process = await begin(lane, "sh", "-c", script, more={"orphans": orphans})
        found = await collected(process)
        assert (whole(found.stdout), found.status.exit_code) == (b"up\n", 3)
        if orphans == "kill":
            await settled(host)
        else:
            assert host.spawner.counts()["kept"] == 1
            assert len([one for reaper in busy_reapers_of(host.pid) for one in commands_of(reaper)]) == 1
            await process.end_tree(Grace(0.0))
        assert busy_reapers_of(host.pid) == []


async def test_ended_orphans_hold_no_stream() -> None:
    async with a_lane() as lane:
        began = time.monotonic()
        found = await run(lane, "sh", "-c", "sleep 1000 & echo up", drain_ms=60_000, more={"orphans": "kill"})
        assert whole(found.stdout) == b"up\n"
        assert time.monotonic() - began < 10


# --- limits that end it ---


@pytest.mark.parametrize("limit", [0, 1, INLINE, INLINE + 1, MIB])
@pytest.mark.parametrize("which", [1, 2])
async def test_over_its_limit_it_is_ended_where_it_is_to_be(which: int, limit: int) -> None:
    async with a_host() as (host, lane):
        script = f"sleep 1000 & while :; do echo xxxxxxxxxxxxxxx; done >&{which}"
        found = await run(lane, "sh", "-c", script, output_limit=limit, on_limit="kill", keep="head")
        assert found.limited
        assert found.status.signal == signal.SIGKILL
        output = found.stdout if which == 1 else found.stderr
        assert output.head == (b"xxxxxxxxxxxxxxx\n" * (limit // 16 + 1))[:limit]
        assert output.total > limit
        await settled(host)
        assert busy_reapers_of(host.pid) == []


@pytest.mark.parametrize("size", [99, 100])
async def test_up_to_its_limit_it_is_not(size: int) -> None:
    async with a_lane() as lane:
        found = await run(lane, "head", "-c", str(size), "/dev/zero", output_limit=100, on_limit="kill")
        assert not found.limited
        assert (found.status.exit_code, whole(found.stdout)) == (0, bytes(size))


async def test_all_runs_together_have_no_more_than_they_may() -> None:
    room = 4 * MIB
    async with a_host(collect_bytes=room) as (host, lane):
        holders = [await begin(lane, *hold(2 * MIB), output_limit=16 * MIB) for _ in range(2)]
        await until(lambda: len(stores()) == 2)
        await until(lambda: sum(map(blocks, stores())) >= room)
        found = await run(lane, "head", "-c", str(9 * MIB), "/dev/zero", output_limit=16 * MIB)
        assert found.overloaded
        assert found.status.signal == signal.SIGKILL
        small = await run(lane, "head", "-c", str(INLINE - 1), "/dev/zero")
        assert (whole(small.stdout), small.overloaded) == (bytes(INLINE - 1), False)
        for holder in holders:
            holder.signal(signal.SIGUSR1)
            ended = await collected(holder)
            assert not ended.overloaded
            assert whole(ended.stdout) == pattern(2 * MIB, 1)
        await settled(host)
        again = await run(lane, "head", "-c", str(3 * MIB), "/dev/zero", output_limit=16 * MIB)
        assert (whole(again.stdout), again.overloaded) == (bytes(3 * MIB), False)


def hold(size: int) -> list[str]:
    """Writes so much and waits for SIGUSR1."""
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
    code += "signal.signal(signal.SIGUSR1, print)\n"  # never called: it shows that the signal is blocked by now
    return program(f"{code}write(1, pattern({size}, 1))\nsignal.sigwait([signal.SIGUSR1])")


def has_blocked_signal(pid: int) -> bool:
    """Whether one that holds will not miss its signal. While it waits for it, SigBlk does not show it."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        mask = next(line for line in status if line.startswith("SigCgt:")).split()[1]
        return bool(int(mask, 16) & 1 << signal.SIGUSR1 - 1)
    return False


def stores() -> list[int]:
    """Our descriptors of files with output."""
    return [fd for fd, name in open_descriptors().items() if "fastclaw-run" in name]


def blocks(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


async def test_room_that_was_taken_comes_back_however_a_run_ends() -> None:
    room = 4 * MIB
    async with a_host(collect_bytes=room) as (host, lane):
        for how in ("killed", "reaper", "pump", "orphan", "limited", "truncated") * 2:
            on_limit = "kill" if how == "limited" else "truncate"
            limit = MIB if how in ("limited", "truncated") else 16 * MIB
            script = f"head -c {3 * MIB} /dev/zero; {'sleep 1000 &' if how == 'orphan' else 'exec sleep 1000'}"
            if how == "truncated":
                script = f"head -c {3 * MIB} /dev/zero"
            process = await begin(lane, "sh", "-c", script, output_limit=limit, drain_ms=50, on_limit=on_limit)
            if how in ("killed", "reaper", "pump"):
                await until(lambda: sum(map(blocks, stores())) >= 3 * MIB)
                (reaper,) = busy_reapers_of(host.pid)
                if how == "killed":
                    await process.end_tree(Grace(0.0))
                else:
                    os.kill(reaper if how == "reaper" else pump_of(reaper), signal.SIGKILL)
            with contextlib.suppress(ExecFailed):
                assert not (await collected(process)).overloaded, how
            await process.end_tree(Grace(0.0))
            await settled(host)
            await until(lambda: host.spawner._kept == {})
            full = await run(lane, "head", "-c", str(room), "/dev/zero", output_limit=16 * MIB)
            assert (whole(full.stdout), full.overloaded) == (bytes(room), False), how


# --- starts that come to nothing, and ends by signals ---


async def test_a_start_that_is_refused_has_its_reason_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("echo no shebang\n")
    (tmp_path / "text").chmod(0o755)
    async with a_host() as (host, lane):
        before = open_descriptors()
        for cmd, more, reason in (
            (["/no/such"], {}, "not_found"),
            ([str(tmp_path)], {}, "permission_denied"),
            ([str(tmp_path / "text")], {}, "not_executable"),
            (["true"], {"working_dir": "/no/such"}, "bad_working_dir"),
            (["true", "x" * MIB], {}, "too_long"),
            (["true"], {"limits": {"nofile": 2**63}}, "permission_denied"),
            (["a\0b"], {}, "invalid_params"),
            ([""], {}, "not_found"),
        ):
            for given in (b"", b"x", bytes(MIB)):
                with pytest.raises(ExecFailed) as refused:
                    await run(lane, *cmd, more=more, input=given)
                assert refused.value.reason == reason
        await until(lambda: host.spawner._kept == {})
        assert host.spawner.counts()["kept"] == 0
        assert open_descriptors() == before
        assert whole((await run(lane, "echo", "on")).stdout) == b"on\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMAX])
async def test_an_end_by_a_signal(signum: int) -> None:
    async with a_lane() as lane:
        found = await run(lane, "sh", "-c", f"ulimit -c 0; echo up; kill -{int(signum)} $$")
        assert (found.status.reason, found.status.signal, whole(found.stdout)) == ("signaled", signum, b"up\n")


async def test_it_can_be_sent_signals_and_be_ended() -> None:
    async with a_host() as (host, lane):
        process = await begin(lane, "sh", "-c", "trap 'echo heard; exit 4' USR1; echo up; while :; do sleep 0.01; done")
        assert process.started is not None
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(process.started)
        process.signal(signal.SIGUSR1)
        found = await collected(process)
        assert found.status.exit_code == 4
        assert whole(found.stdout).endswith(b"heard\n")
        process = await begin(lane, "sh", "-c", "echo up; setsid sleep 1000 & exec sleep 1000")
        await until(lambda: len([one for reaper in children_of(host.pid) for one in commands_of(reaper)]) >= 1)
        await process.end_tree(Grace(0.0))
        found = await collected(process)
        assert found.status.signal == signal.SIGKILL
        await settled(host)
        assert busy_reapers_of(host.pid) == []


async def test_runs_that_are_given_up_at_once_leave_nothing() -> None:
    """Nobody may have taken the request up when its end is asked for."""
    async with a_host() as (host, lane):
        for _ in range(5):
            processes = [await begin(lane, "sleep", "1000") for _ in range(30)]
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(process.end_tree(Grace(0.0)) for process in reversed(processes)))
            assert {process.exited.result().signal for process in processes} <= {signal.SIGKILL}
            await settled(host)
            await until(lambda: busy_reapers_of(host.pid) == [])
        assert host.spawner._kept == {}


async def test_one_that_asked_for_more_than_it_gets_is_not_overtaken_by_its_end() -> None:
    """A run whose answer nobody waits for any more is a run like any other: nothing of it stays."""
    async with a_host() as (host, lane):
        before = open_descriptors()
        for number in range(40):
            process = await begin(lane, "head", "-c", str(number * 3_000), "/dev/zero")
            assert process.collected is not None
            process.collected.cancel()
            await asyncio.sleep(0)
        await settled(host)
        await until(lambda: host.spawner._kept == {})
        assert open_descriptors() == before


# --- many at once ---


async def test_sixty_four_at_once_with_bytes_of_their_own() -> None:
    async with a_host() as (host, lane):
        before = open_descriptors()

        async def one(number: int) -> None:
            size = SIZES[number % len(SIZES)] // (1 if number % 3 else 4)
            data = pattern(size, number)
            code = "data = sys.stdin.buffer.read(); write(1, data); write(2, data[::-1]); sys.exit(len(data) % 200)"
            found = await run(lane, *program(code), input=data, output_limit=16 * MIB)
            assert whole(found.stdout) == data
            assert whole(found.stderr) == data[::-1]
            assert found.status.exit_code == size % 200

        await asyncio.gather(*map(one, range(64)))
        await settled(host)
        await until(lambda: host.spawner._kept == {})
        assert open_descriptors() == before


async def test_two_thousand_short_ones() -> None:
    async with a_host() as (host, lane):
        gate = asyncio.Semaphore(64)

        async def one(number: int) -> None:
            async with gate:
                given = b"%d " % number * (number % 50 + 1)
                found = await run(lane, "cat", input=given)
                assert whole(found.stdout) == given

        await asyncio.gather(*map(one, range(2_000)))
        await settled(host)
        counts = host.spawner.counts()
        assert counts["kept"] == 0
        await until(lambda: host.spawner._kept == {})
        assert host.spawner.counts()["reapers"] == len(children_of(host.pid))


async def test_among_execs_and_files_they_are_all_told_apart() -> None:
    async with a_host() as (host, lane):

        async def a_start(number: int) -> None:
            process = await lane.start(spec("sh", "-c", f"exit {number}"), 0)
            assert (await process.exited).exit_code == number

        async def a_run(number: int) -> None:
            found = await run(lane, "sh", "-c", f"echo {number}; exit {number}")
            assert (whole(found.stdout), found.status.exit_code) == (b"%d\n" % number, number)

        async def a_read(number: int) -> None:
            assert b"root" in await host.spawner.read_file("/etc/passwd")

        jobs: list[Coroutine[Any, Any, None]] = []
        for number in range(100):
            jobs += [a_start(number), a_run(number), a_read(number)]
        await asyncio.gather(*jobs)


# --- reapers and pumps that die ---


@pytest.mark.parametrize("who", ["reaper", "pump"])
@pytest.mark.parametrize("size", [10, 3 * MIB])
async def test_one_that_dies_in_the_middle_ends_its_run_and_no_other(who: str, size: int) -> None:
    async with a_host() as (host, lane):
        before = open_descriptors()
        other = await begin(lane, *hold(size), output_limit=16 * MIB)
        await until(lambda: len(busy_reapers_of(host.pid)) == 1)
        spared = busy_reapers_of(host.pid)
        await until(lambda: has_blocked_signal(commands_of(spared[0])[0]))
        process = await begin(
            lane, "sh", "-c", f"head -c {size} /dev/zero; setsid sleep 1000 & exec sleep 1000", output_limit=16 * MIB
        )
        await until(lambda: len(busy_reapers_of(host.pid)) == 2)
        (reaper,) = [one for one in busy_reapers_of(host.pid) if one not in spared]
        await until(lambda: len(descendants_of(reaper)) == 3)
        everybody = [reaper, *descendants_of(reaper)]
        os.kill(reaper if who == "reaper" else pump_of(reaper), signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            status = await asyncio.shield(process.exited)
        assert status.reason in ("container_gone", "signaled")
        await check_lost(process)
        await until(lambda: not any(map(is_there, everybody)))
        await settled(host, 1)
        other.signal(signal.SIGUSR1)
        assert whole((await collected(other)).stdout) == pattern(size, 1)
        await settled(host)
        await until(lambda: open_descriptors() == before)
        assert whole((await run(lane, "echo", "on")).stdout) == b"on\n"


async def check_lost(process: LaneProcess) -> None:
    """It says what it has, and that this may not be all; or that it is gone."""
    assert process.collected is not None
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([process.collected])
    error = process.collected.exception()
    if isinstance(error, ExecFailed):
        assert error.reason == "container_gone"
    else:
        assert process.collected.result().incomplete


async def test_a_spawner_that_dies_ends_all_runs() -> None:
    async with a_host() as (host, lane):
        before = open_descriptors()
        processes = [await begin(lane, *hold(size), output_limit=16 * MIB) for size in (10, 3 * MIB) for _ in range(3)]
        await until(lambda: len(stores()) == 3)
        os.kill(host.pid, signal.SIGKILL)
        for process in processes:
            await check_lost(process)
        assert stores() == []
        assert len(open_descriptors()) < len(before)


# --- pipes that are locked ---


@pytest.mark.parametrize("text", ["", "said", "x" * 20_000])
async def test_a_stdout_that_somebody_left_locked_holds_nobody_up(text: str) -> None:
    """Its pump sleeps; the answer comes all the same, with what there is."""
    async with a_host() as (host, lane):
        process = await begin(lane, sys.executable, "-S", "-c", LEFT_LOCKED, text, drain_ms=100)
        began = time.monotonic()
        found = await collected(process)
        assert time.monotonic() - began < 10
        assert found.status.exit_code == 3
        output = found.stdout.head + found.stdout.tail
        assert text.encode().startswith(output)
        assert found.incomplete or output == text.encode()
        assert whole((await run(lane, "echo", "on")).stdout) == b"on\n"
        async with asyncio.timeout(limits.TREE_DEADLINE_MS / 1000):
            await process.end_tree(Grace(0.0))
        await settled(host)
        await until(lambda: host.spawner._kept == {})


async def test_one_that_locks_its_own_stdout_can_be_ended() -> None:
    async with a_host() as (host, lane):
        process = await begin(lane, sys.executable, "-S", "-c", STDOUT, "said")
        await until(lambda: bool(busy_reapers_of(host.pid)))
        assert process.started is not None
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(process.started)
            await process.end_tree(Grace(0.0))
        found = await collected(process)
        assert found.status.signal == signal.SIGKILL
        assert b"said".startswith(found.stdout.head)
        await settled(host)
        await until(lambda: host.spawner._kept == {})


async def test_fastclaw_holds_no_pipe_of_a_run_and_its_file_cannot_be_changed() -> None:
    async with a_host() as (host, lane):
        process = await begin(lane, *hold(2 * MIB), output_limit=16 * MIB)
        await until(lambda: len(stores()) == 1)
        (store,) = stores()
        await until(lambda: blocks(store) >= 2 * MIB)
        for size in (0, 100 * MIB):
            with pytest.raises(PermissionError):
                os.ftruncate(store, size)
        (command,) = [one for reaper in busy_reapers_of(host.pid) for one in commands_of(reaper)]
        theirs = {os.readlink(f"/proc/{command}/fd/{fd}") for fd in (1, 2)}
        assert not theirs & set(open_descriptors().values())
        reaper = reaper_of(host.pid, command)
        maps = [open_maps(pid) for pid in (host.pid, reaper, pump_of(reaper))]
        assert not any("fastclaw-run" in one for one in maps), "it would be PID 1's to the out-of-memory killer"
        await process.end_tree(Grace(0.0))
        assert whole((await collected(process)).stdout) == pattern(2 * MIB, 1)


def open_maps(pid: int) -> str:
    with open(f"/proc/{pid}/maps") as maps:
        return maps.read()


async def test_a_run_is_told_to_have_started_where_it_takes_a_while() -> None:
    """A short one is told with its end: that is one packet less."""
    async with a_lane() as lane:
        process = await begin(lane, "sh", "-c", "sleep 0.3; echo up")
        assert process.started is not None
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(process.started)
        assert not process.exited.done()
        assert whole((await collected(process)).stdout) == b"up\n"


def test_the_spec_of_a_run_is_that_of_an_exec() -> None:
    assert StartSpec(process_id="p", cmd=["x"]).orphans == "keep"
    assert Collection().keep == "ends"
    assert (Collection().output_limit, Collection().drain_ms) == (limits.RUN_OUTPUT_LIMIT_BYTES, limits.DRAIN_MS)
