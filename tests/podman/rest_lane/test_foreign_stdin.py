"""Another process's stdin, on real processes: only the pipe that its parent writes to is taken."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw.podman.rest_lane.foreign_stdin import open_stdin

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def cat(stdin: int) -> Iterator[subprocess.Popen[bytes]]:
    """A child of ours that copies this."""
    with subprocess.Popen(["cat"], stdin=stdin, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def taken(pid: int) -> Iterator[int]:
    """The write end, which must be had."""
    fd = open_stdin(pid)
    assert fd is not None
    try:
        yield fd
    finally:
        os.close(fd)


def test_what_is_written_arrives_until_both_writers_are_gone() -> None:
    with cat(subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with taken(process.pid) as fd:
            os.write(fd, b"hello")
            process.stdin.close()
            assert process.stdout.read(5) == b"hello"
            os.write(fd, b" again")
        assert process.stdout.read() == b" again"
        assert process.wait(5) == 0


def test_the_descriptor_neither_blocks_nor_is_inherited() -> None:
    with cat(subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)  # it reads no more
        with taken(process.pid) as fd:
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            assert not os.get_inheritable(fd)
            assert not os.get_blocking(fd)


def test_the_parents_own_end_stays_as_it_was() -> None:
    """O_NONBLOCK belongs to an open file, and this is another one."""
    with cat(subprocess.PIPE) as process:
        assert process.stdin is not None
        with taken(process.pid):
            assert os.get_blocking(process.stdin.fileno())


@pytest.mark.parametrize("what", ["null", "file", "socket", "closed"])
def test_what_is_no_pipe(what: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("stdin") / "file"
    path.touch()
    ours, theirs = socket.socketpair()
    with ours, theirs, path.open("r+b") as file:
        stdin = {"null": subprocess.DEVNULL, "file": file.fileno(), "socket": theirs.fileno()}.get(what)
        command = (
            ["sh", "-c", "exec 0<&-; echo; exec sleep 60"] if stdin is None else ["sh", "-c", "echo; exec sleep 60"]
        )
        with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert open_stdin(process.pid) is None
            process.kill()


def test_a_pipe_that_the_parent_does_not_write_to() -> None:
    """We hold the reading end only: its writer is a stranger."""
    with subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        with cat(stranger.stdout.fileno()) as process:
            assert open_stdin(process.pid) is None
        stranger.kill()


def test_a_pipe_that_the_command_put_in_its_place(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("stdin") / "fifo"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)  # else the shell waits for a writer
    try:
        script = ["sh", "-c", 'exec 0<"$1"; echo; exec sleep 60', "sh", str(path)]
        with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert open_stdin(process.pid) is None
            process.kill()
    finally:
        os.close(both)


def test_a_named_pipe_that_the_parent_writes_to(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("stdin") / "fifo"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)  # for reading and writing is not what a parent's write end looks like
    try:
        with cat(both) as process:
            assert open_stdin(process.pid) is None
            writer = os.open(path, os.O_WRONLY)
            try:
                with taken(process.pid):
                    pass
            finally:
                os.close(writer)
    finally:
        os.close(both)


def test_one_that_has_ended() -> None:
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert open_stdin(process.pid) is None
    assert open_stdin(process.pid) is None


def test_a_process_without_a_parent_to_look_at() -> None:
    """PID 1's parent is 0, which has no entry."""
    assert open_stdin(1) is None
