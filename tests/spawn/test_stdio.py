"""The pipes of one process: which end blocks, who may open them again, and that none is leaked."""

from __future__ import annotations

import fcntl
import os
import resource
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed
from fastclaw.spawn.stdio import Stdio
from fastclaw.transport.outbox import close_all
from tests.balance import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
NOBODY = 65_534


@contextmanager
def a_stdio(stdin: bool = True) -> Iterator[Stdio]:
    stdio = Stdio(stdin)
    yield stdio
    stdio.close_ours()
    close_all(stdio.theirs)


def test_each_end_is_joined_with_its_other() -> None:
    with a_stdio() as stdio:
        assert stdio.stdin is not None
        their_in, their_out, their_err = stdio.theirs
        for number, (write, read) in enumerate(
            ((stdio.stdin, their_in), (their_out, stdio.stdout), (their_err, stdio.stderr))
        ):
            os.write(write, b"%d" % number)
            assert os.read(read, 10) == b"%d" % number


def test_ours_do_not_block_and_theirs_do_and_none_is_inherited() -> None:
    with a_stdio() as stdio:
        ours = [fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr) if fd is not None]
        assert [os.get_blocking(fd) for fd in ours + stdio.theirs] == [False] * 3 + [True] * 3
        assert not any(os.get_inheritable(fd) for fd in ours + stdio.theirs)
        modes = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in ours + stdio.theirs]
        assert modes == [os.O_WRONLY, os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_WRONLY]


def test_without_stdin_there_are_two() -> None:
    with a_stdio(stdin=False) as stdio:
        assert stdio.stdin is None
        their_out, _ = stdio.theirs
        os.write(their_out, b"out")
        assert os.read(stdio.stdout, 10) == b"out"


def test_closing_ours_ends_the_streams() -> None:
    stdio = Stdio(True)
    stdio.close_ours()
    assert os.read(stdio.theirs[0], 1) == b""
    with pytest.raises(BrokenPipeError):
        os.write(stdio.theirs[1], b"x")
    close_all(stdio.theirs)


@pytest.mark.parametrize("room", range(6))
def test_without_descriptors_it_is_overloaded_and_leaks_none(room: int) -> None:
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    taken = [os.dup(0) for _ in range(max(before) - free)]  # no gaps below the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 1 + room, hard))
    try:
        with pytest.raises(ExecFailed) as refused:
            Stdio(True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_all(fd for fd in open_descriptors() if fd not in before)
    assert taken is not None
    assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)


@needs_root
def test_they_can_be_given_to_their_user() -> None:
    with a_stdio() as stdio:
        stdio.give_to(NOBODY, NOBODY)
        for fd in stdio.theirs:
            status = os.fstat(fd)
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, NOBODY, 0o600)


@needs_root
def test_who_may_not_give_them_away_keeps_them() -> None:
    with a_stdio() as stdio:
        os.seteuid(NOBODY)
        try:
            stdio.give_to(NOBODY - 1, NOBODY)
        finally:
            os.seteuid(0)
        assert {os.fstat(fd).st_uid for fd in stdio.theirs} == {0}
