"""This host as the lane's home, with real processes: starting, refusing, exits, descriptors, trees.

A command is a grandchild: the spawner's child keeps it. So nothing of it ever becomes a child of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from unittest.mock import ANY
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed, InvalidParams, StartFailed
from fastclaw.lane import ExitStatus, Grace, LaneProcess, StartSpec
from fastclaw.spawn import binary
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import SpawnLane
from fastclaw.spawn.process import SpawnProcess
from fastclaw.transport.outbox import close_all
from tests.balance import balanced, children, open_descriptors
from tests.spawn.fake_spawner import descendants_of, has_not_ended, is_there, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as somebody else")


@asynccontextmanager
async def a_lane() -> AsyncIterator[SpawnLane]:
    async with a_home() as home:
        yield SpawnLane(home, can_set_user=True)


@asynccontextmanager
async def a_home() -> AsyncIterator[HostHome]:
    async with balanced():
        home = HostHome()
        await home.start()
        try:
            yield home
        finally:
            await home.aclose()


def spec(*cmd: str, **more: object) -> StartSpec:
    return StartSpec(process_id=uuid4().hex, cmd=list(cmd), **{"env": {}, **more})  # type: ignore[arg-type]  # shorthand


async def start(lane: SpawnLane, *cmd: str, **more: object) -> SpawnProcess:
    return await start_spec(lane, spec(*cmd, **more))


async def start_spec(lane: SpawnLane, spec: StartSpec) -> SpawnProcess:
    """Start a command and wait until it runs; closes its streams where it does not."""
    process = await lane.start(spec, 0)
    assert isinstance(process, SpawnProcess)
    try:
        await process.started
    except BaseException:
        close_streams(process)
        raise
    return process


def close_streams(process: LaneProcess) -> None:
    close_all(fd for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd) if fd is not None)


async def read_all(fd: int) -> bytes:
    """Everything up to EOF, then close."""
    loop, data = asyncio.get_running_loop(), b""
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            with contextlib.suppress(BlockingIOError):
                part = os.read(fd, limits.PIPE_BYTES)
                if not part:
                    return data
                data += part
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def finish(process: LaneProcess, stdin: bytes = b"") -> tuple[ExitStatus, bytes, bytes]:
    if process.stdin_fd is not None:
        if stdin:
            os.write(process.stdin_fd, stdin)
        os.close(process.stdin_fd)
    out, err = await asyncio.gather(read_all(process.stdout_fd), read_all(process.stderr_fd))
    status = await asyncio.wait_for(asyncio.shield(process.exited), 10)
    closing = process.aclose()
    if closing is not None:
        await closing
    return status, out, err


async def run(lane: SpawnLane, *cmd: str, stdin: bytes = b"", **more: object) -> tuple[ExitStatus, bytes, bytes]:
    return await finish(await start(lane, *cmd, **more), stdin)


async def end(process: LaneProcess, grace_s: float = 0) -> None:
    await process.end_tree(Grace(asyncio.get_running_loop().time() + grace_s))


async def test_all_three_streams_and_the_exit_code() -> None:
    async with a_lane() as lane:
        status, out, err = await run(lane, "sh", "-c", "cat; echo bad >&2; exit 7", stdin=b"in")
        assert (status.reason, status.exit_code, status.signal) == ("exited", 7, None)
        assert (out, err) == (b"in", b"bad\n")


async def test_an_end_by_signal_and_its_usage() -> None:
    async with a_lane() as lane:
        status, _, _ = await run(lane, "sh", "-c", "kill -9 $$")
        assert (status.reason, status.exit_code, status.signal) == ("signaled", None, 9)
        assert status.usage is not None
        assert set(status.usage) == {"user_us", "system_us", "max_rss_kb"}
        assert status.usage["max_rss_kb"] > 0


async def test_instant_exits_are_exact() -> None:
    async with a_lane() as lane:
        processes = [await start(lane, "sh", "-c", f"exit {n}") for n in range(32)]
        statuses = [status for status, _, _ in await asyncio.gather(*map(finish, processes))]
        assert [status.exit_code for status in statuses] == list(range(32))


async def test_without_stdin_it_reads_nothing() -> None:
    async with a_lane() as lane:
        process = await start(lane, "cat", stdin=False)
        assert process.stdin_fd is None
        assert (await finish(process))[:2] == (ExitStatus(reason="exited", exit_code=0, usage=ANY), b"")


async def test_environment_and_working_directory(tmp_path: Path) -> None:
    async with a_lane() as lane:
        _, out, _ = await run(lane, "sh", "-c", "pwd; env", env={"ONE": "1"}, working_dir=str(tmp_path))
        lines = out.decode().splitlines()
        assert lines[0] == str(tmp_path)
        assert {"ONE=1", f"HOME={os.environ['HOME']}"} <= set(lines)


async def test_the_command_is_looked_up_in_its_own_path(tmp_path: Path) -> None:
    tool = tmp_path / "only-here"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    async with a_lane() as lane:
        assert (await run(lane, "only-here", env={"PATH": f"{tmp_path}:/bin"}))[1] == b"found\n"
        with pytest.raises(ExecFailed):
            await start(lane, "only-here")


INSIDE = """
import json, os, signal
fds = {int(fd) for fd in os.listdir("/proc/self/fd")}
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "blocking": [os.get_blocking(fd) for fd in (0, 1, 2)],
    "fds": sorted(fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")),
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16),
    "leads": os.getsid(0) == os.getpid() == os.getpgrp(),
}))
"""


async def test_a_clean_start_whatever_we_are_ourselves(tmp_path: Path) -> None:
    leak = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leak, True)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with a_lane() as lane:
            _, out, _ = await run(lane, sys.executable, "-S", "-c", INSIDE)
    finally:
        signal.signal(signal.SIGHUP, before)
        os.close(leak)
    seen = json.loads(out)
    python = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    assert seen == {"blocking": [True] * 3, "fds": [0, 1, 2], "ignored": python, "blocked": 0, "leads": True}


async def test_our_ends_do_not_block_and_are_not_inherited() -> None:
    async with a_lane() as lane:
        process = await start(lane, "cat")
        assert process.stdin_fd is not None
        for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd):
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
        assert process.timings["spawn"] > 0
        await finish(process)


async def test_stdio_can_be_opened_again() -> None:
    async with a_lane() as lane:
        _, out, err = await run(lane, "sh", "-c", "cat </dev/stdin >/dev/stdout; echo e >/dev/stderr", stdin=b"through")
        assert (out, err) == (b"through", b"e\n")


def foreign_program() -> bytes:
    """The head of an ELF file (elf(5)) for a machine that this is not."""
    x86_64, aarch64 = 62, 183
    machine = aarch64 if platform.machine() == "x86_64" else x86_64
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0) + bytes(56)


def refusals(path: Path) -> dict[str, tuple[StartSpec, str]]:
    (path / "text").write_text("echo no shebang\n")
    (path / "text").chmod(0o755)
    (path / "plain").write_text("#!/bin/sh\n")
    (path / "plain").chmod(0o644)
    (path / "lost").write_text("#!/no/such/interpreter\n")
    (path / "lost").chmod(0o755)
    (path / "foreign").write_bytes(foreign_program())
    (path / "foreign").chmod(0o755)
    (path / "bytes").write_bytes(bytes(64))
    (path / "bytes").chmod(0o755)
    return {
        "missing in PATH": (spec("no-such-command"), "not_found"),
        "missing file": (spec("/no/such/file"), "not_found"),
        "below a file": (spec("/etc/passwd/x"), "not_found"),
        "missing interpreter": (spec(str(path / "lost")), "not_found"),
        "empty": (spec(""), "not_found"),
        "not executable": (spec(str(path / "plain")), "permission_denied"),
        "a directory": (spec(str(path)), "permission_denied"),
        "a directory, in itself": (spec(str(path), working_dir=str(path)), "permission_denied"),
        "no shebang": (spec(str(path / "text")), "not_executable"),
        "no shebang, by PATH": (spec("text", env={"PATH": str(path)}), "not_executable"),
        "of another machine": (spec(str(path / "foreign")), "not_executable"),
        "no program at all": (spec(str(path / "bytes")), "not_executable"),
        "missing directory": (spec("true", working_dir="/no/such"), "bad_working_dir"),
        "a file as directory": (spec("true", working_dir=str(path / "text")), "bad_working_dir"),
        "directory and command the same": (spec("/no/such", working_dir="/no/such"), "bad_working_dir"),
        "relative directory": (spec("true", working_dir="tmp"), "bad_working_dir"),
        "an argument too long": (spec("true", "x" * limits.MIB), "too_long"),
        "a variable too long": (spec("true", env={"BIG": "x" * limits.MIB}), "too_long"),
        "a name too long": (spec("/" + "x" * 300), "too_long"),
        "NUL in an argument": (spec("true", "a\0b"), "invalid_params"),
        "NUL in a value": (spec("true", env={"A": "\0"}), "invalid_params"),
        "lone surrogate": (spec("true", "\ud800"), "invalid_params"),
        "unknown user": (spec("true", user="no-such-user"), "unknown_user"),
        "unknown limit": (spec("true", limits={"nofiles": 1}), "invalid_params"),
        "a limit below what is asked for": (spec("true", limits={"nofile": 2**63}), "permission_denied"),
    }


async def test_every_refusal_has_its_reason_and_leaves_nothing(tmp_path: Path) -> None:
    async with a_lane() as lane:
        for name, (bad, reason) in refusals(tmp_path).items():
            with pytest.raises((ExecFailed, InvalidParams)) as refused:
                await start_spec(lane, bad)
            assert (name, refused.value.reason) == (name, reason)
        assert lane.health()["kept"] == 0
        assert (await run(lane, "echo", "on"))[1] == b"on\n"


async def test_a_directory_that_was_deleted_is_a_bad_working_dir(tmp_path: Path) -> None:
    async with a_lane() as lane:
        directory = tmp_path / "gone"
        directory.mkdir()
        process = await start(lane, "sh", "-c", "read line; pwd -P", working_dir=str(directory))
        directory.rmdir()
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true", working_dir=str(directory))
        assert refused.value.reason == "bad_working_dir"
        assert str(directory) in str(refused.value)
        await finish(process, b"\n")


async def test_without_descriptors_it_is_overloaded_and_recovers() -> None:
    async with a_lane() as lane:
        with few_descriptors():
            taken = fill_descriptors()
            reasons = []
            for _ in range(8):  # fails at each step in turn: the pipes, and for a large request its file
                try:
                    await finish(await start(lane, "true", "x" * limits.SPAWN_FRAME_BYTES))
                except ExecFailed as refused:
                    reasons.append((refused.reason, refused.retryable))
                os.close(taken.pop())
            close_all(taken)
        assert reasons == [("overloaded", True)] * 7
        assert (await run(lane, "echo", "on"))[1] == b"on\n"


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    """A limit just above what is open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def fill_descriptors() -> list[int]:
    """Take all that are left."""
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    return taken


async def test_limits_are_the_processes_own() -> None:
    async with a_lane() as lane:
        script = "ulimit -n; ulimit -c; ulimit -Hn"
        _, out, _ = await run(lane, "sh", "-c", script, limits={"nofile": 123, "core": 0})
        assert out.split() == [b"123", b"0", b"123"]
        _, out, _ = await run(lane, "sh", "-c", "ulimit -n")
        assert int(out) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@needs_root
@pytest.mark.parametrize(
    ("user", "ids"),
    [("nobody", "65534 65534 65534"), ("65534:0", "65534 0 0"), ("54321", "54321 54321 54321"), ("root", None)],
)
async def test_users(user: str, ids: str | None) -> None:
    async with a_lane() as lane:
        _, out, _ = await run(lane, "sh", "-c", "echo $(id -u) $(id -g) $(id -G)", user=user)
        assert out.decode().strip().startswith(ids or "0 0")


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
    async with a_home() as home:
        lane = SpawnLane(home, can_set_user=True)
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
    async with a_home() as home:
        lane = SpawnLane(home, can_set_user=True)
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
    async with a_home() as home:
        lane = SpawnLane(home, can_set_user=True)
        process = await start(lane, "sh", "-c", "trap 'echo bye; exit 4' TERM; sleep 1000 & echo up; wait")
        await line(process)
        # A child that is not through its own execve yet has its shell's handler.
        await until(lambda: any(command_of(pid)[:1] == [b"sleep"] for pid in descendants_of(home.pid)))
        await end(process, grace_s=1000)
        status, out, _ = await finish(process)
        assert (status.exit_code, out) == (4, b"bye\n")


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
    async with a_home() as home:
        lane = SpawnLane(home, can_set_user=True)
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
    async with a_home() as home:
        lane = SpawnLane(home, can_set_user=True)
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
    async with a_home() as home:
        lane = SpawnLane(home, can_set_user=True)
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


async def line(process: LaneProcess) -> bytes:
    """What it writes next."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.stdout_fd, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), 10)
        return os.read(process.stdout_fd, limits.PIPE_BYTES)
    finally:
        loop.remove_reader(process.stdout_fd)


# --- bringing it up ---


async def test_without_a_spawner_for_this_machine_it_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "BINARIES", tmp_path)
    home = HostHome()
    with pytest.raises(StartFailed, match="was not built with this package") as refused:
        await home.start()
    assert refused.value.reason == "unsupported"
    await home.aclose()


@pytest.mark.parametrize(
    ("program", "reason"), [(b"", "io_error"), (b"#!/bin/sh\nexit 0\n", "engine_error"), (b"#!/no/such\n", "io_error")]
)
async def test_a_spawner_that_is_none_does_not_start(
    program: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "BINARIES", tmp_path)
    path = binary.path_for(platform.machine())
    path.write_bytes(program)
    path.chmod(0o755)
    async with balanced():
        with pytest.raises(StartFailed) as refused:
            await HostHome().start()
    assert refused.value.reason == reason


async def test_one_that_says_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "BINARIES", tmp_path)
    monkeypatch.setattr(limits, "SPAWN_HELLO_MS", 20)
    monkeypatch.setattr(limits, "SPAWN_EXIT_MS", 20)
    path = binary.path_for(platform.machine())
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o755)
    async with balanced():
        with pytest.raises(StartFailed, match="said nothing"):
            await HostHome().start()


async def test_a_large_environment_of_ours_does_not_keep_it_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG", "x" * limits.SPAWN_HELLO_BYTES)
    async with a_lane() as lane:
        assert len((await run(lane, "sh", "-c", "echo $BIG"))[1]) == limits.SPAWN_HELLO_BYTES + 1


async def test_health() -> None:
    async with a_lane() as lane:
        process = await start(lane, "cat")
        health = lane.health()
        assert (health["name"], health["isolation"], health["kept"]) == ("spawn", "none", 1)
        assert health["keepers"] == 2 * limits.SPAWN_SPARE_KEEPERS or health["keepers"] == limits.SPAWN_SPARE_KEEPERS
        await finish(process)
