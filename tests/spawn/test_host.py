"""The host lane with real processes: starting, refusing, exits, descriptors, orphans."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from unittest.mock import ANY
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.lane import PROCESS_ID_VARIABLE, ExitStatus, Grace, LaneProcess, StartSpec
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import SpawnLane
from fastclaw.transport import procfs
from tests.balance import balanced, children

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as somebody else")


@asynccontextmanager
async def a_lane() -> AsyncIterator[SpawnLane]:
    async with balanced():
        home = HostHome()
        await home.start()
        yield SpawnLane(home, can_set_user=True)
        await home.aclose()


def spec(*cmd: str, **more: object) -> StartSpec:
    return StartSpec(process_id=uuid4().hex, cmd=list(cmd), **{"env": {}, **more})  # type: ignore[arg-type]  # shorthand


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
    await process.aclose()
    return status, out, err


async def run(lane: SpawnLane, *cmd: str, stdin: bytes = b"", **more: object) -> tuple[ExitStatus, bytes, bytes]:
    return await finish(await lane.start(spec(*cmd, **more), 0), stdin)


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
        processes = [await lane.start(spec("sh", "-c", f"exit {n}"), 0) for n in range(32)]
        statuses = [status for status, _, _ in await asyncio.gather(*map(finish, processes))]
        assert [status.exit_code for status in statuses] == list(range(32))


async def test_without_stdin_it_reads_nothing() -> None:
    async with a_lane() as lane:
        process = await lane.start(spec("cat", stdin=False), 0)
        assert process.stdin_fd is None
        assert (await finish(process))[:2] == (ExitStatus(reason="exited", exit_code=0, usage=ANY), b"")


async def test_environment_and_working_directory(tmp_path: Path) -> None:
    async with a_lane() as lane:
        one = spec("sh", "-c", "pwd; env", env={"ONE": "1"}, working_dir=str(tmp_path))
        _, out, _ = await finish(await lane.start(one, 0))
        lines = out.decode().splitlines()
        assert lines[0] == str(tmp_path)
        assert {"ONE=1", f"{PROCESS_ID_VARIABLE}={one.process_id}", f"HOME={os.environ['HOME']}"} <= set(lines)


async def test_the_command_is_looked_up_in_its_own_path(tmp_path: Path) -> None:
    tool = tmp_path / "only-here"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    async with a_lane() as lane:
        assert (await run(lane, "only-here", env={"PATH": f"{tmp_path}:/bin"}))[1] == b"found\n"
        with pytest.raises(ExecFailed):
            await lane.start(spec("only-here"), 0)


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


LIBC_SIGNALS = (32, 33)
"""The C library keeps them for itself and lets nobody set them (nptl(7)): they stay as whoever started us left them."""


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
    seen["ignored"] &= ~sum(1 << signum - 1 for signum in LIBC_SIGNALS)
    python = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    assert seen == {"blocking": [True] * 3, "fds": [0, 1, 2], "ignored": python, "blocked": 0, "leads": True}


async def test_our_ends_do_not_block_and_are_not_inherited() -> None:
    async with a_lane() as lane:
        process = await lane.start(spec("cat"), 0)
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


def refusals(path: Path) -> dict[str, tuple[StartSpec, str]]:
    (path / "text").write_text("echo no shebang\n")
    (path / "text").chmod(0o755)
    (path / "plain").write_text("#!/bin/sh\n")
    (path / "plain").chmod(0o644)
    (path / "lost").write_text("#!/no/such/interpreter\n")
    (path / "lost").chmod(0o755)
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
        "missing directory": (spec("true", working_dir="/no/such"), "bad_working_dir"),
        "a file as directory": (spec("true", working_dir=str(path / "text")), "bad_working_dir"),
        "directory and command the same": (spec("/no/such", working_dir="/no/such"), "bad_working_dir"),
        "relative directory": (spec("true", working_dir="tmp"), "bad_working_dir"),
        "an argument too long": (spec("true", "x" * limits.MIB), "too_long"),
        "a variable too long": (spec("true", env={"BIG": "x" * limits.MIB}), "too_long"),
        "a name too long": (spec("/" + "x" * 300), "too_long"),
        "NUL in an argument": (spec("true", "a\0b"), "invalid_params"),
        "NUL in a value": (spec("true", env={"A": "\0"}), "invalid_params"),
        "= in a name": (spec("true", env={"A=B": "1"}), "invalid_params"),
        "lone surrogate": (spec("true", "\ud800"), "invalid_params"),
        "unknown user": (spec("true", user="no-such-user"), "unknown_user"),
    }


async def test_every_refusal_has_its_reason_and_leaves_nothing(tmp_path: Path) -> None:
    async with a_lane() as lane:
        for name, (bad, reason) in refusals(tmp_path).items():
            with pytest.raises(ExecFailed) as refused:
                await lane.start(bad, 0)
            assert (name, refused.value.reason) == (name, reason)
        assert lane.health()["live"] == 0


async def test_without_descriptors_it_is_overloaded_and_leaks_none() -> None:
    async with a_lane() as lane:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        reasons = []
        for room in range(12):  # fails at each step in turn: pipes, Popen's own, the pidfd
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, hard))
            try:
                await finish(await lane.start(spec("true"), 0))
            except ExecFailed as refused:
                reasons.append((refused.reason, refused.retryable))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(reasons) >= 3
        assert set(reasons) == {("overloaded", True)}


async def test_a_process_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with a_lane() as lane:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pidfd_open", refuse)
            with pytest.raises(ExecFailed) as refused:
                await lane.start(spec("sleep", "1000"), 0)
        assert refused.value.reason == "overloaded"


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
        process = await lane.start(spec("sleep", "1000"), 0)
        with pytest.raises(ExecFailed) as refused:
            process.signal(4711)
        assert refused.value.reason == "unsupported"
        process.signal(signal.SIGUSR1)
        status, _, _ = await finish(process)
        assert status.signal == signal.SIGUSR1
        process.signal(signal.SIGKILL)


async def test_end_tree_takes_everything_and_reaps_it() -> None:
    async with a_lane() as lane:
        script = "sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & env -i setsid sleep 1000 & echo up; wait"
        process = await lane.start(spec("sh", "-c", script), 0)
        await readable(process.stdout_fd)
        await end(process)
        assert process.exited.done()
        assert (await finish(process))[0].signal == signal.SIGKILL


async def test_end_tree_after_the_end_takes_the_orphans() -> None:
    others = orphans()  # an engine that the tests of the session share, say
    async with a_lane() as lane:
        process = await lane.start(spec("sh", "-c", "env -i sleep 1000 & setsid sleep 1000 & exit 3"), 0)
        assert (await process.exited).exit_code == 3
        assert len(orphans() - others) == 2
        await end(process)
        assert orphans() == others
        await finish(process)


def orphans() -> set[int]:
    """Orphans came to us: this process is their subreaper."""
    return {pid for pid, stat in procfs.children(os.getpid()) if stat.session != os.getsid(0)}


async def test_orphans_are_looked_for_while_a_command_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ORPHAN_SWEEP_MS", 10)
    monkeypatch.setattr(limits, "ORPHAN_PATIENCE_MS", 30)
    async with a_lane() as lane:
        _, out, _ = await run(lane, "sh", "-c", "sh -c 'exec >/dev/null 2>&1; sleep 0.1' & echo $!")
        async with asyncio.timeout(10):
            while int(out) in children():  # noqa: ASYNC110 - the kernel has no event for somebody's reaping
                await asyncio.sleep(0.01)


async def test_end_all_takes_what_ended_commands_left_too() -> None:
    others = orphans()
    async with a_lane() as lane:
        ended = await lane.start(spec("sh", "-c", "setsid sleep 1000 & exit 3"), 0)
        live = [await lane.start(spec("env", "-i", "sleep", "1000"), 0) for _ in range(20)]
        await ended.exited
        await lane.end_all(list(live), Grace(0.0))
        assert {process.exited.result().signal for process in live} == {signal.SIGKILL}
        assert orphans() == others
        for process in (ended, *live):
            await finish(process)


async def test_exits_of_the_loops_own_children_are_not_taken() -> None:
    async with a_lane() as lane:
        theirs = await asyncio.create_subprocess_exec("sh", "-c", "exit 9")
        await run(lane, "true")
        assert await theirs.wait() == 9


async def readable(fd: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), 10)
    finally:
        loop.remove_reader(fd)
