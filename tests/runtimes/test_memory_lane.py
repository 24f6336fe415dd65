"""The in-process lane: programs over real pipes."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import ExitStatus, Grace, LaneProcess, StartSpec
from fastclaw.runtimes.memory_lane import MemoryLane
from tests.balance import balanced
from tests.spawner.rig import finish, read_all

if TYPE_CHECKING:
    from fastclaw.runtimes.memory_programs import Env, Reader, Writer


def spec(*cmd: str, **more: object) -> StartSpec:
    return StartSpec(process_id=uuid4().hex, cmd=list(cmd), **{"env": {}, **more})  # type: ignore[arg-type]  # shorthand


def exited(code: int) -> ExitStatus:
    return ExitStatus(reason="exited", exit_code=code)


@pytest.mark.parametrize("path", ["", "/bin/", "/usr/bin/"])
async def test_a_program_has_streams_environment_and_directory(path: str) -> None:
    async with balanced():
        lane = MemoryLane()
        for cmd, out, err in (("cat", b"in", b""), ("pwd", b"/tmp\n", b""), ("stderr x", b"", b"x\n")):
            process = await lane.start(spec(*f"{path}{cmd}".split(), working_dir="/tmp"), 0)
            assert await finish(process, b"in") == (exited(0), out, err)
        process = await lane.start(spec(f"{path}printenv", "ONE", env={"ONE": "1"}), 0)
        assert await finish(process) == (exited(0), b"1\n", b"")


async def test_a_reader_that_does_not_read_holds_the_program() -> None:
    async with balanced():
        process = await MemoryLane().start(spec("out", str(limits.MIB)), 0)
        await asyncio.wait([process.exited], timeout=0.05)
        assert not process.exited.done()
        assert (await finish(process))[0] == exited(0)


async def test_a_reader_that_leaves_ends_it_by_sigpipe() -> None:
    async with balanced():
        process = await MemoryLane().start(spec("out", str(limits.MIB), stdin=False), 0)
        os.close(process.stdout_fd)
        assert await process.exited == ExitStatus(reason="signaled", signal=signal.SIGPIPE)
        await read_all(process.stderr_fd)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_signals_end_it_even_before_its_first_step(signum: int) -> None:
    async with balanced():
        process = await MemoryLane().start(spec("sleep", "inf"), 0)
        process.signal(signal.SIGUSR1)
        process.signal(signum)
        assert (await finish(process))[0] == ExitStatus(reason="signaled", signal=signum)
        process.signal(signum)


async def stubborn(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """Does not go at the first TERM."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()
    return 0


async def broken(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    raise RuntimeError("it broke")


async def leaves(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    raise SystemExit(5)


async def floods(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    while True:
        out.write(bytes(limits.PIPE_BYTES))


OWN = {"stubborn": stubborn, "broken": broken, "leaves": leaves, "floods": floods}


async def test_end_all_gives_term_then_kill() -> None:
    async with balanced():
        lane, now = MemoryLane(OWN), asyncio.get_running_loop().time()
        processes: list[LaneProcess] = [await lane.start(spec(*cmd), 0) for cmd in (("stubborn",), ("sleep", "inf"))]
        await asyncio.sleep(0)
        await lane.end_all(processes, Grace(now + 0.1))
        signals = [(await finish(process))[0].signal for process in processes]
        assert signals == [signal.SIGKILL, signal.SIGTERM]
        assert lane.health()["live"] == 0


@pytest.mark.parametrize(
    ("name", "code", "err"), [("broken", 1, b"it broke"), ("leaves", 5, b""), ("floods", 1, b"BufferError")]
)
async def test_programs_that_raise(name: str, code: int, err: bytes) -> None:
    async with balanced():
        status, _, said = await finish(await MemoryLane(OWN).start(spec(name), 0))
        assert status == exited(code)
        assert err in said


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (spec("no-such"), "not_found"),
        (spec(""), "not_found"),
        (spec("/tmp"), "permission_denied"),
        (spec("true", working_dir="tmp"), "bad_working_dir"),
        (spec("true", working_dir="/no/such"), "bad_working_dir"),
        (spec("true", user="no-such-user"), "unknown_user"),
        (spec("true", "a\0b"), "invalid_params"),
        (spec("true", env={"BIG": "x" * limits.MIB}), "too_long"),
    ],
)
async def test_refusals(bad: StartSpec, reason: str) -> None:
    async with balanced():
        with pytest.raises(ExecFailed) as refused:
            await MemoryLane().start(bad, 0)
        assert refused.value.reason == reason


async def test_a_promised_directory_is_there() -> None:
    async with balanced():
        process = await MemoryLane(directories=["/workspace"]).start(spec("pwd", working_dir="/workspace"), 0)
        assert (await finish(process))[1] == b"/workspace\n"
