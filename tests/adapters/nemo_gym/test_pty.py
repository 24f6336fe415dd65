"""Processes that go on, with a terminal and with pipes, and NeMo Gym's own shell on one."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from typing import TYPE_CHECKING

import pytest
from nemo_gym.sandbox import SandboxPtyError, SandboxPtySession

if TYPE_CHECKING:
    from pathlib import Path

    from nemo_gym.sandbox import AsyncSandbox


async def test_a_session_is_one_as_the_tool_knows_it(sandbox: AsyncSandbox) -> None:
    async with await sandbox.pty.create() as session:
        assert isinstance(session, SandboxPtySession)
        assert (session.mode, session.closed) == ("pty", False)
    assert session.closed
    await session.close()
    with pytest.raises(SandboxPtyError, match="closed"):
        await session.read()
    with pytest.raises(SandboxPtyError, match="closed"):
        await session.write(b"x")


async def test_a_terminal_has_its_size_and_another_when_asked(sandbox: AsyncSandbox) -> None:
    told = "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.01; done"
    async with await sandbox.pty.create(told, rows=30, cols=90) as session:
        assert await until(session, b"ready") == b"30 90\r\nready\r\n"
        await session.resize(40, 100)
        assert b"".join([piece async for piece in session]) == b"40 100\r\n"
        assert await session.read_stderr() == b""
        assert await session.wait_exit(timeout_s=30) == 3


async def test_pipes_keep_the_streams_apart(sandbox: AsyncSandbox) -> None:
    async with await sandbox.pty.create("read -r a; echo out $a; echo err $a >&2", pty=False) as session:
        assert session.mode == "pipe"
        await session.write(b"1\n")
        assert await session.read(timeout_s=30) == b"out 1\n"
        assert await session.read_stderr(timeout_s=30) == b"err 1\n"
        assert (await session.read(), await session.read(), await session.read_stderr()) == (b"", b"", b"")
        assert await session.wait_exit() == 0
        with pytest.raises(SandboxPtyError):
            await session.resize(10, 10)
    done = await sandbox.pty.exec("echo out; echo err >&2; exit 4", pty=False)
    assert (done.stdout, done.stderr, done.return_code) == ("out\n", "err\n", 4)


async def test_a_read_that_ran_out_of_time_loses_nothing(sandbox: AsyncSandbox) -> None:
    async with await sandbox.pty.create("read -r a; echo $a; exec sleep 100", pty=False) as session:
        with pytest.raises(TimeoutError):
            await session.read(timeout_s=0.01)
        with pytest.raises(TimeoutError):
            await session.wait_exit(timeout_s=0.01)
        waiting = asyncio.create_task(session.read())
        await asyncio.sleep(0)
        waiting.cancel()
        await session.write(b"kept\n")
        assert await session.read(timeout_s=30) == b"kept\n"


async def test_a_signal_reaches_all_that_the_command_runs(sandbox: AsyncSandbox) -> None:
    async with await sandbox.pty.create("sleep 100; echo survived", pty=False) as session:
        with pytest.raises(SandboxPtyError):
            await session.send_signal("SIGNOTHING")
        await session.send_signal("SIGTERM")
        assert await session.wait_exit(timeout_s=30) == 143
        assert await session.read() == b""


async def test_commands_share_the_state_of_a_shell(sandbox: AsyncSandbox) -> None:
    async with await sandbox.pty.create() as session:
        await sandbox.pty.exec("cd /tmp; A=1", session=session)
        for how in ({}, {"detach": True}):
            done = await sandbox.pty.exec("pwd; echo $A; (exit 7)", session=session, **how)
            assert (done.stdout.split(), done.return_code) == (["/tmp", "1"], 7)


async def test_a_detached_command_has_all_of_its_output(sandbox: AsyncSandbox) -> None:
    done = await sandbox.pty.exec("seq 100000; echo err >&2; (exit 5)", pty=False, detach=True)
    assert (done.stdout.split()[:-1], done.stdout.split()[-1]) == ([str(one) for one in range(1, 100001)], "err")
    assert done.return_code == 5


async def test_a_shell_that_ends_before_its_command_is_an_error(sandbox: AsyncSandbox) -> None:
    with pytest.raises(SandboxPtyError, match="ended"):
        await sandbox.pty.exec("exit 5", detach=True)


async def test_what_does_not_start_is_an_error(sandbox: AsyncSandbox) -> None:
    with pytest.raises(SandboxPtyError, match="nowhere"):
        await sandbox.pty.create("true", cwd="/nowhere")


async def test_a_session_does_not_outlive_its_sandbox(sandbox: AsyncSandbox) -> None:
    session = await sandbox.pty.create("sleep 100")
    await sandbox.stop()
    with pytest.raises(SandboxPtyError):
        await session.wait_exit(timeout_s=30)
    await session.close()


@pytest.mark.timeout(60)
async def test_the_tools_own_shell_is_one_in_a_sandbox(sandbox: AsyncSandbox, tmp_path: Path) -> None:
    config = tmp_path / "sandbox.yaml"
    config.write_text("sandbox:\n  fastclaw: {}\n")
    image = sandbox._handle.raw.sandbox.image
    ours, theirs = pty.openpty()  # of no size, as some are
    command = [sys.executable, "-m", "nemo_gym.sandbox.shell", "--config", str(config), "--image", image]
    shell = await asyncio.create_subprocess_exec(*command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = await asyncio.to_thread(read_until, ours, b"# ")
    os.write(ours, b"echo $((6 * 7)); exit 5\r")
    shown += await asyncio.to_thread(read_until, ours)
    os.close(ours)
    assert await shell.wait() == 5, shown
    assert b"42\r\n" in shown


async def until(session: SandboxPtySession, mark: bytes) -> bytes:
    """What comes up to a line that has it."""
    seen = b""
    while mark not in seen or not seen.endswith(b"\n"):
        seen += await session.read(timeout_s=30)
    return seen


def read_until(terminal: int, mark: bytes | None = None) -> bytes:
    """What comes up to a mark, or to the end, which is EIO on this side of a terminal."""
    seen = b""
    while mark is None or mark not in seen:
        try:
            seen += os.read(terminal, 1 << 16)
        except OSError:
            break
    return seen
