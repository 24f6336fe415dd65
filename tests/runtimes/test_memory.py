"""The in-process runtime: its programs behind the real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed, InvalidParams
from fastclaw.processes.lane import ExitStatus, Grace, LaneProcess, StartSpec
from fastclaw.runtime import InitializeParams
from fastclaw.runtimes.host import EnvironmentHost
from fastclaw.runtimes.memory import MemoryLane, PipeSource, PipeWriter
from tests.spawner.rig import finish, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastclaw.runtimes.memory_programs import Env, Reader, Writer


async def test_the_workspace_is_told() -> None:
    runtime = EnvironmentHost("memory")
    started = await runtime.start(InitializeParams(namespace="n", options={"workspace": {"target": "/tmp"}}))
    assert started.workspace_root == "/tmp"
    await runtime.stop()


async def test_templates_are_refused() -> None:
    runtime = EnvironmentHost("memory")
    options = {"templates": {"t": {"cmd": ["cat"]}}}
    with pytest.raises(InvalidParams) as raised:
        await runtime.start(InitializeParams(namespace="n", options=options))
    assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", "$.options.templates")
    await runtime.stop()


def spec(*cmd: str, **more: object) -> StartSpec:
    return StartSpec(process_id=uuid4().hex, cmd=list(cmd), **{"env": {}, **more})  # type: ignore[arg-type]  # shorthand


def exited(code: int) -> ExitStatus:
    return ExitStatus(reason="exited", exit_code=code)


@pytest.mark.parametrize("path", ["", "/bin/", "/usr/bin/"])
async def test_a_program_has_streams_environment_and_directory(path: str) -> None:
    lane = MemoryLane()
    for cmd, out, err in (("cat", b"in", b""), ("pwd", b"/tmp\n", b""), ("stderr x", b"", b"x\n")):
        process = await lane.start(spec(*f"{path}{cmd}".split(), working_dir="/tmp"), 0)
        assert await finish(process, b"in") == (exited(0), out, err)
    process = await lane.start(spec(f"{path}printenv", "ONE", env={"ONE": "1"}), 0)
    assert await finish(process) == (exited(0), b"1\n", b"")


async def test_a_reader_that_does_not_read_holds_the_program() -> None:
    process = await MemoryLane().start(spec("out", str(limits.MIB)), 0)
    await asyncio.wait([process.exited], timeout=0.05)
    assert not process.exited.done()
    assert (await finish(process))[0] == exited(0)


async def test_a_reader_that_leaves_ends_it_by_sigpipe() -> None:
    process = await MemoryLane().start(spec("out", str(limits.MIB), stdin=False), 0)
    os.close(process.stdout_fd)
    assert await process.exited == ExitStatus(reason="signaled", signal=signal.SIGPIPE)
    await read_all(process.stderr_fd)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_signals_end_it_even_before_its_first_step(signum: int) -> None:
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
    with pytest.raises(ExecFailed) as refused:
        await MemoryLane().start(bad, 0)
    assert refused.value.reason == reason


async def test_a_promised_directory_is_there() -> None:
    process = await MemoryLane(directories=["/workspace"]).start(spec("pwd", working_dir="/workspace"), 0)
    assert (await finish(process))[1] == b"/workspace\n"


FULL = limits.MEMORY_WRITER_BYTES + 1


@contextmanager
def a_source() -> Iterator[tuple[PipeSource, int]]:
    """A source, and the end to write to; both may be closed already at the end."""
    theirs, ours = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    source = PipeSource(theirs)
    with os.fdopen(ours, "wb", buffering=0, closefd=False):
        yield source, ours
    source.close()
    source.close()


@contextmanager
def a_writer() -> Iterator[tuple[PipeWriter, int]]:
    """A writer, and the end to read from."""
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    writer = PipeWriter(theirs)
    yield writer, ours
    writer.close()
    writer.close()


def fill(writer: PipeWriter) -> None:
    """So much that the pipe is full and the writer holds all it may."""
    writer.write(bytes(limits.PIPE_BYTES))
    writer.write(bytes(FULL))


async def take(fd: int, count: int) -> bytes:
    """So many bytes, read as they come."""
    got = b""
    async with asyncio.timeout(10):
        while len(got) < count:
            try:
                got += os.read(fd, limits.PIPE_BYTES)
            except BlockingIOError:
                await asyncio.sleep(0)
    return got


async def test_a_source_that_nobody_reads_stops_and_goes_on() -> None:
    with a_source() as (source, theirs):
        data = bytes(range(256)) * 4096
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while sent < len(data):
                try:
                    sent += os.write(theirs, data[sent : sent + limits.PIPE_BYTES])
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            os.close(theirs)

        pouring = asyncio.create_task(pour())
        done, _ = await asyncio.wait([pouring], timeout=0.05)
        assert not done
        assert 0 < sent < len(data) // 2
        assert await source.reader.read() == data
        await pouring


async def test_a_closed_source_gives_its_descriptor_back_and_ignores_its_reader() -> None:
    with a_source() as (source, theirs):
        source.close()
        assert source.is_closing()
        source.pause_reading()
        source.resume_reading()
        with pytest.raises(BrokenPipeError):
            os.write(theirs, b"x")
        os.close(theirs)


async def test_small_writes_are_in_the_pipe_at_once() -> None:
    with a_writer() as (writer, theirs):
        writer.write(b"a")
        writer.write(b"")
        writer.write(b"b")
        assert os.read(theirs, 10) == b"ab"
        await writer.drain()
        await writer.flush()
        os.close(theirs)


async def test_beyond_its_bound_drain_is_due() -> None:
    with a_writer() as (writer, theirs):
        fill(writer)
        with pytest.raises(BufferError, match="drain"):
            writer.write(b"x")
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        await take(theirs, limits.PIPE_BYTES)
        await draining
        writer.write(b"x")
        flushing = asyncio.create_task(writer.flush())
        assert (await take(theirs, FULL + 1))[-1:] == b"x"
        await flushing
        os.close(theirs)


async def test_a_reader_that_has_left_shows_at_the_next_write() -> None:
    with a_writer() as (writer, theirs):
        os.close(theirs)
        await writer.flush()
        writer.write(b"lost")
        with pytest.raises(BrokenPipeError):
            writer.write(b"x")
        with pytest.raises(BrokenPipeError):
            await writer.drain()
        with pytest.raises(BrokenPipeError):
            await writer.flush()


@pytest.mark.parametrize("leaver", ["reader", "writer"])
async def test_whoever_leaves_wakes_those_who_wait(leaver: str) -> None:
    with a_writer() as (writer, theirs):
        fill(writer)
        waiting = [asyncio.create_task(writer.drain()), asyncio.create_task(writer.flush())]
        await asyncio.sleep(0)
        if leaver == "reader":
            os.close(theirs)
        else:
            writer.close()
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert [type(result) for result in results] == [BrokenPipeError] * 2
    if leaver == "writer":
        assert len(os.read(theirs, 2 * limits.PIPE_BYTES)) == limits.PIPE_BYTES
        assert os.read(theirs, 1) == b""
        os.close(theirs)
