"""One service process: how it is made, ended and reaped."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from fastclaw.linux import proc
from fastclaw.linux.sockets import wait_readable
from fastclaw.podman.service.service_process import end_process, end_service, reap, spawn_service


def spawn(script: str, tmp_path: Path) -> tuple[int, int]:
    """A shell that runs a script; its pid and pidfd."""
    fd = os.open(tmp_path / "err", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    try:
        pid = spawn_service(["/bin/sh", "-c", script], dict(os.environ), fd)
    finally:
        os.close(fd)
    return pid, os.pidfd_open(pid)


def collect(pid: int) -> int:
    """The wait status of a child that has ended."""
    return os.waitpid(pid, os.WNOHANG)[1]


async def status_of(pid: int, pidfd: int) -> int:
    """Wait for its end and collect its wait status."""
    assert await wait_readable(pidfd, 5_000)
    os.close(pidfd)
    return collect(pid)


async def test_it_has_a_session_of_its_own_and_no_terminal(tmp_path: Path) -> None:
    pid, pidfd = spawn("ls -l /proc/self/fd >&2", tmp_path)
    assert os.getsid(pid) == pid
    assert await status_of(pid, pidfd) == 0
    listed = (tmp_path / "err").read_text()
    assert "0 -> /dev/null" in listed
    assert str(tmp_path / "err") in listed
    assert "socket:" not in listed


async def test_term_is_enough_for_most(tmp_path: Path) -> None:
    pid, pidfd = spawn("exec sleep 60", tmp_path)
    await end_process(pidfd, 5_000)
    assert os.WTERMSIG(await status_of(pid, pidfd)) == signal.SIGTERM


async def test_ignored_signals_are_not_handed_on(tmp_path: Path) -> None:
    pid, pidfd = spawn("grep SigIgn /proc/self/status >&2", tmp_path)
    await status_of(pid, pidfd)
    ignored = int((tmp_path / "err").read_text().split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))


async def test_one_that_ignores_term_is_killed(tmp_path: Path) -> None:
    pid, pidfd = spawn("trap '' TERM; echo ready >&2; while :; do sleep 60; done", tmp_path)
    async with asyncio.timeout(5):
        while not (tmp_path / "err").read_text():
            assert not await wait_readable(pidfd, 5)
    await end_process(pidfd, 50)
    assert os.WTERMSIG(await status_of(pid, pidfd)) == signal.SIGKILL


async def test_cancelled_it_still_kills(tmp_path: Path) -> None:
    pid, pidfd = spawn("trap '' TERM; echo ready >&2; while :; do sleep 60; done", tmp_path)
    async with asyncio.timeout(5):
        while not (tmp_path / "err").read_text():
            assert not await wait_readable(pidfd, 5)
    task = asyncio.create_task(end_process(pidfd, 60_000))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.WTERMSIG(await status_of(pid, pidfd)) == signal.SIGKILL


async def test_ending_one_that_has_ended_is_fine(tmp_path: Path) -> None:
    pid, pidfd = spawn("exit 3", tmp_path)
    assert await wait_readable(pidfd, 5_000)
    await end_process(pidfd, 5_000)
    assert os.WEXITSTATUS(await status_of(pid, pidfd)) == 3


@pytest.mark.parametrize("rest", ["sleep 60", "sh -c 'trap : TERM; while :; do sleep 60; done'"])
async def test_the_rest_of_a_service_ends_with_it_and_nobody_else(tmp_path: Path, rest: str) -> None:
    pid, pidfd = spawn(f"{rest} & setsid sleep 60 & echo $! >&2; exec sleep 60", tmp_path)
    async with asyncio.timeout(5):
        while len(in_session(pid)) < 2 or not (tmp_path / "err").read_text():
            assert not await wait_readable(pidfd, 5)
    await end_service(pid, pidfd, 200)
    assert in_session(pid) == []
    assert os.WTERMSIG(await status_of(pid, pidfd)) == signal.SIGTERM
    os.kill(int((tmp_path / "err").read_text().split()[0]), signal.SIGKILL)


def in_session(sid: int) -> list[int]:
    stats = ((pid, proc.read_stat(pid)) for pid in proc.pids())
    return [pid for pid, stat in stats if stat is not None and stat.session == sid and not stat.gone]


async def test_its_stdin_may_be_a_descriptor_of_ours(tmp_path: Path) -> None:
    read, write = os.pipe()
    with (tmp_path / "err").open("wb") as err:
        pid = spawn_service(["/bin/sh", "-c", "read x; echo $x >&2"], dict(os.environ), err.fileno(), read)
    pidfd = os.pidfd_open(pid)
    os.write(write, b"heard\n")
    os.close(read)
    os.close(write)
    assert await status_of(pid, pidfd) == 0
    assert (tmp_path / "err").read_text() == "heard\n"


async def test_reaping_what_is_not_a_child_is_fine() -> None:
    reap(1)
