"""The server of stdin helpers as a program: every order of its socket, spoken by hand, on real processes."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.engine.rest_lane.stdin_main import END, OPENED, ORDER, START, open_stdin
from fastclaw.linux import proc
from fastclaw.linux.packets import close_all
from tests.balance import open_descriptors
from tests.engine.rest_lane.test_stdin import a_process
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON_S = 5.0


class Server:
    """The program, with our end of its socket.

    Attributes:
        pid: its own.
    """

    def __init__(self) -> None:
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", "fastclaw.engine.rest_lane.stdin_main", str(theirs.fileno())]
        with theirs:
            self._child = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        self.pid = self._child.pid
        self._ours: list[int] = []

    def start(self, id: int, pid: int, says: bytes = OPENED) -> int:
        """START, with both pipes; nothing is said where there is no way in. The write end of the first."""
        source, write = os.pipe2(os.O_CLOEXEC)
        told, tell = os.pipe2(os.O_CLOEXEC)
        self._ours.append(write)
        socket.send_fds(self.orders, [ORDER.pack(START, id, pid)], [source, tell])
        close_all((source, tell))
        assert select.select([told], [], [], SOON_S)[0], "no answer"
        assert os.read(told, 10) == says
        os.close(told)
        return write

    def finish(self, fd: int) -> None:
        """No more input."""
        self._ours.remove(fd)
        os.close(fd)

    def end(self, id: int) -> None:
        self.orders.send(ORDER.pack(END, id, 0))

    def helpers(self) -> list[int]:
        """Pids of what it has made, zombies included."""
        return [pid for pid, _ in proc.children(self.pid)]

    def close(self) -> None:
        self.orders.close()
        try:
            assert self._child.wait(SOON_S + limits.STDIN_SERVER_EXIT_MS / 1000) == 0
        finally:
            self._child.kill()
            self._child.wait()
            close_all(self._ours)


@contextmanager
def a_server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


def shut(process: subprocess.Popen[bytes]) -> None:
    """Our own write end: by which the helper has found the pipe."""
    assert process.stdin is not None
    process.stdin.close()


def read(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.read()


def test_each_has_a_helper_of_its_own() -> None:
    with a_server() as server, a_process("cat") as one, a_process("cat") as other:
        ways = [server.start(number, process.pid) for number, process in enumerate((one, other))]
        assert len(server.helpers()) == 2
        for number, (way, process) in enumerate(zip(ways, (one, other), strict=True)):
            shut(process)
            os.write(way, b"%d" % number)
            server.finish(way)
            assert read(process) == b"%d" % number, "no end is held by the other's helper"


@pytest.mark.parametrize("pid", [2**22 + 1, 1])
def test_where_there_is_no_such_pipe_there_is_no_way_in(pid: int) -> None:
    with a_server() as server:
        server.start(1, pid, says=b"")
        wait_until(lambda: server.helpers() == [])
        server.end(1)
        server.end(77)  # nobody


def test_an_order_without_its_descriptors_is_none() -> None:
    """The kernel drops those for which the receiver has no number left (unix(7))."""
    with a_server() as server, a_process("cat") as process:
        server.orders.send(ORDER.pack(START, 1, process.pid))
        server.start(2, process.pid)
        assert len(server.helpers()) == 1


def test_an_id_is_free_again_when_its_helper_has_ended() -> None:
    with a_server() as server:
        for number in range(3):
            with a_process("cat") as process:
                way = server.start(1, process.pid)
                shut(process)
                os.write(way, b"%d" % number)
                server.finish(way)
                assert read(process) == b"%d" % number
                wait_until(lambda: server.helpers() == [])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_for_its_owner_is_not_for_it(signum: int) -> None:
    with a_server() as server, a_process("cat") as process:
        server.start(1, process.pid)  # so it is up
        os.kill(server.pid, signum)
        server.start(2, process.pid)


def test_a_helper_holds_nothing_that_is_the_server_s() -> None:
    """Else its owner would not see the server end, nor another's reader the end of its input."""
    with a_server() as server, a_process("cat") as process:
        server.start(1, process.pid)
        (helper,) = server.helpers()
        wait_until(lambda: not any(link.startswith("socket:") for link in open_descriptors(helper).values()))
        links = open_descriptors(helper).values()
        pipes = [link for link in links if link.startswith("pipe:")]
        assert os.readlink(f"/proc/{process.pid}/fd/0") in pipes
        wait_until(lambda: not set(open_descriptors(server.pid).values()) & set(pipes))  # it closes what it passed on


# --- Which pipe is taken: the one that the parent writes to, and no other --------------------------


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
