"""Ends of processes by pidfd, on real ones; what an older kernel does not tell is left out by hand."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw.linux import proc
from fastclaw.linux.proc import send_signal, wait_status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEEPS_STATUS = tuple(map(int, platform.release().split("-")[0].split(".")[:2])) >= (6, 15)
"""Whether this kernel tells the status after the reap."""

ENDS = [("exit 0", 0), ("exit 7", 7 << 8), ("exit 255", 255 << 8), ("kill -TERM $$", 15), ("kill -KILL $$", 9)]


ORDINARY = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from fastclaw.linux.proc import zombie_status
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
with subprocess.Popen(["true"]) as own:
    os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
    print(zombie_status(own.pid), zombie_status(int(sys.argv[2])))
"""


@contextmanager
def child(script: str) -> Iterator[tuple[int, int]]:
    """Its pid and pidfd; it waits for its stdin to end first."""
    with subprocess.Popen(["sh", "-c", f"read x; {script}"], stdin=subprocess.PIPE) as process:
        fd = os.pidfd_open(process.pid)
        try:
            yield process.pid, fd
        finally:
            os.close(fd)
            process.kill()


@contextmanager
def zombie(script: str) -> Iterator[tuple[int, int]]:
    """One that has ended and was not reaped."""
    with subprocess.Popen(["sh", "-c", script]) as process:
        fd = os.pidfd_open(process.pid)
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            yield process.pid, fd
        finally:
            os.close(fd)


@pytest.fixture
def older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps no status: the ioctl has another number, which no kernel knows."""
    monkeypatch.setattr(proc, "_PIDFD_GET_INFO", proc._PIDFD_GET_INFO ^ 0xF0)


@pytest.fixture(params=["this", "older"])
def kernel(request: pytest.FixtureRequest) -> None:
    """Both kinds."""
    if request.param == "older":
        request.getfixturevalue("older_kernel")


def test_what_runs_has_no_status() -> None:
    with child("exit 0") as (pid, fd):
        assert wait_status(fd, pid) is None


@pytest.mark.parametrize(("script", "status"), ENDS)
def test_a_zombies_status(script: str, status: int, kernel: None) -> None:
    with zombie(script) as (pid, fd):
        assert wait_status(fd, pid) == status


@pytest.mark.parametrize(("script", "status"), ENDS)
def test_after_the_reap_newer_kernels_still_tell(script: str, status: int) -> None:
    with zombie(script) as (pid, fd):
        os.waitpid(pid, 0)
        assert wait_status(fd, pid) == (status if KEEPS_STATUS else None)


def test_after_the_reap_older_kernels_do_not(older_kernel: None) -> None:
    with zombie("exit 7") as (pid, fd):
        os.waitpid(pid, 0)
        assert wait_status(fd, pid) is None


def test_a_stranger_with_the_number_is_not_taken_for_ours(older_kernel: None) -> None:
    """The pidfd of one that was reaped, with the number of another that is a zombie now."""
    with zombie("exit 7") as (pid, fd), zombie("exit 8") as (stranger, _):
        os.waitpid(pid, 0)
        assert wait_status(fd, stranger) is None


def test_what_is_no_pidfd_has_no_status() -> None:
    with open(os.devnull, "rb") as null:
        assert wait_status(null.fileno(), os.getpid()) is None


def test_a_name_with_blanks_and_parentheses_moves_no_field(older_kernel: None, tmp_path: Path) -> None:
    name = ") R 1 (x"  # comm holds 15 bytes
    os.symlink("/bin/sh", f"{tmp_path}/{name}")
    with subprocess.Popen([f"{tmp_path}/{name}", "-c", "exit 5"]) as process:
        fd = os.pidfd_open(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert wait_status(fd, process.pid) == 5 << 8
        os.close(fd)


def test_a_zero_that_may_be_made_up_is_no_status() -> None:
    """The kernel shows an ordinary user the exit code of his own process, and that of somebody else's as 0."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(proc.__file__)))
    with zombie("exit 7") as (pid, _):
        done = subprocess.run([sys.executable, "-c", ORDINARY, root, str(pid)], capture_output=True, check=True)
    assert done.stdout.split() == [b"0", b"None" if os.geteuid() == 0 else b"%d" % (7 << 8)]


def test_a_group_that_is_ours_too_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        pidfd = os.pidfd_open(child.pid)
        send_signal(pidfd, child.pid, signal.SIGINT, group=True)
        assert child.wait(10) == -signal.SIGINT
        os.close(pidfd)
