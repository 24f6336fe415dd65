"""Stdin of the REST lane, which goes into the engine's pipe: whatever a command does with it, it stops nobody else."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw.linux import proc
from fastclaw.linux.sockets import wait_readable
from tests.engine.rest_lane.rest_rig import complete, grace, spec
from tests.pids import marked, sleeps_in, state_of
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.engine.rest_lane.rest import RestLane, RestProcess
    from fastclaw.engine.rest_lane.stdin import Input

pytestmark = pytest.mark.podman

HOLD_S = 8
"""How long a pipe is held if nobody ends the holder."""

SOON_S = 3.0
"""Well below: starts, ends and turns of the loop that wait for nobody."""

_LOCKS = ("unix_stream", "sock_alloc")
"""What a splice sleeps in that holds the lock: for bytes of a socket, or for room in one."""


@pytest.fixture(scope="session")
def stdin_lock(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program of stdin_lock.c."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("stdin-lock") / "stdin_lock"
    source = Path(__file__).with_name("stdin_lock.c")
    subprocess.run(["cc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program.read_bytes()


async def bring(lane: RestLane, program: bytes) -> str:
    """Put a program into the container, by stdin; its path there."""
    path = f"/stdin_lock-{os.getpid()}"
    process = await lane.start(
        spec("sh", "-c", f"cat >{path}.new && chmod 755 {path}.new && mv {path}.new {path}", stdin=True), 0
    )
    assert (await complete(process, program))[2].exit_code == 0
    return path


@asynccontextmanager
async def a_live_loop() -> AsyncIterator[None]:
    """Fails where the loop stood still within the block."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    ticking = asyncio.create_task(tick())
    try:
        yield
        await asyncio.sleep(0.02)
    finally:
        ticking.cancel()
    assert longest < SOON_S, f"the loop stood still for {longest:.1f} s"


async def locked(process: RestProcess) -> None:
    """Have it lock its stdin, and wait until it does: proc_pid_wchan(5) is the only one to say so.

    With one byte: a helper that has filled the pipe sleeps until there is room, and does not ask for the lock.
    """
    assert process.stdin_fd is not None
    os.write(process.stdin_fd, b"x")
    await until(lambda: any(sleeps_in(pid).startswith(_LOCKS) for pid in marked(process._marker)))


def feed(process: RestProcess) -> None:
    """Write until there is no room."""
    assert process.stdin_fd is not None
    with suppress(BlockingIOError):
        while os.write(process.stdin_fd, bytes(65_536)):
            pass


@pytest.mark.parametrize("way", ["reading", "writing"])
async def test_a_command_that_locks_its_stdin_stops_nobody_else(lane: RestLane, stdin_lock: bytes, way: str) -> None:
    program = await bring(lane, stdin_lock)
    began = time.monotonic()
    async with a_live_loop():
        process = await lane.start(spec(program, way, str(HOLD_S), stdin=True), 0)
        assert await wait_readable(process.stdout_fd, 5_000)
        await locked(process)
        feed(process)
        await until(lambda: "D" in helper_states(lane))
        feed(process)
        other = await lane.start(spec("cat", stdin=True), 0)
        assert (await complete(other, b"fine"))[0] == b"fine"
        await process.end_tree(grace())
        assert (await asyncio.wait_for(process.exited, 10)).exit_code == 128 + signal.SIGKILL
        assert not marked(process._marker)
        process.close_streams()
        await process.aclose()
        await until(lambda: not helper_states(lane))
    assert time.monotonic() - began < HOLD_S


async def test_what_a_command_left_locks_its_stdin(lane: RestLane, stdin_lock: bytes) -> None:
    """The command has ended, its streams are closed; what it left holds the pipe until it is ended."""
    program = await bring(lane, stdin_lock)
    script = f"exec 3<&0; {program} reading {HOLD_S} <&3 & sleep 0.5; exit 3"  # to read would be to wait for the lock
    began = time.monotonic()
    async with a_live_loop():
        process = await lane.start(spec("sh", "-c", script, stdin=True), 0)
        assert await wait_readable(process.stdout_fd, 5_000)
        await locked(process)
        assert (await asyncio.wait_for(process.exited, 5)).exit_code == 3
        feed(process)
        await until(lambda: "D" in helper_states(lane))
        process.close_streams()
        await process.aclose()
        other = await lane.start(spec("cat", stdin=True), 0)
        assert (await complete(other, b"fine"))[0] == b"fine"
        assert marked(process._marker)
        await process.end_tree(grace())
        assert not marked(process._marker)
        await until(lambda: not helper_states(lane))
    assert time.monotonic() - began < HOLD_S


async def test_input_for_a_command_that_ends_meanwhile_costs_none_of_its_output(
    lane: RestLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine throws away what it has not passed on when somebody sends input for a command that has ended: once, of
    thousands of runs on a busy machine."""
    open_input = lane._stdin_helpers.open

    async def open_late(pid: int) -> Input | None:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                assert await wait_readable(pidfd, 5_000)
            finally:
                os.close(pidfd)
        return await open_input(pid)

    monkeypatch.setattr(lane._stdin_helpers, "open", open_late)
    for script in ("sleep 0.05; echo said", "echo said"):  # the latter may have ended before it is seen at all
        process = await lane.start(spec("sh", "-c", script, stdin=True), 0)
        assert process.stdin_fd is not None
        with pytest.raises(BrokenPipeError):
            os.write(process.stdin_fd, b"x")
        out, err, status = await complete(process, b"x")
        assert (out, err, status.exit_code) == (b"said\n", b"", 0)


def helper_states(lane: RestLane) -> list[str]:
    """One letter for each helper, by proc_pid_stat(5)."""
    server = lane._stdin_helpers._server
    assert server is not None
    return [state for pid, _ in proc.children(server.pid) if (state := state_of(pid))]
