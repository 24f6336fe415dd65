"""The warden itself: its orders, and what it does at the end."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from fastclaw import limits
from fastclaw.spawn import warden
from fastclaw.transport import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


def pipe_with(data: bytes) -> tuple[int, int]:
    theirs, ours = os.pipe()
    os.write(ours, data)
    return theirs, ours


def start(script: str, token: str | None = None) -> subprocess.Popen[bytes]:
    """A shell that has said "up"; it carries the token if there is one."""
    env = {"PATH": os.environ["PATH"], **({} if token is None else {warden.VARIABLE: token})}
    child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, env=env, start_new_session=True)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


def finish(child: subprocess.Popen[bytes]) -> int:
    """Its code; its stdout ends only when all who have inherited it are gone."""
    child.communicate(timeout=10)
    return child.returncode


def test_orders_arrive_in_any_pieces() -> None:
    orders = warden.Orders()
    for byte in b"+/a b\0+/c\0-/a b\0":
        orders.feed(bytes([byte]))
    assert (orders.directories, orders.quiet) == ({"/c"}, False)
    orders.feed(b"q")
    assert not orders.quiet
    orders.feed(b"\0")
    assert orders.quiet


def test_orders_that_make_no_sense_are_passed_over() -> None:
    orders = warden.Orders()
    orders.feed(b"\0?/a\0-/never named\0+/\xff\n\0")
    assert (orders.directories, orders.quiet) == ({os.fsdecode(b"/\xff\n")}, False)


def test_it_reads_until_told_to_go_though_the_pipe_stays_open() -> None:
    theirs, ours = pipe_with(b"+/a\0q\0")
    orders = warden.receive(theirs)
    assert (orders.directories, orders.quiet) == ({"/a"}, True)
    os.close(ours)
    os.close(theirs)


def test_it_reads_until_the_pipe_ends_and_half_an_order_is_none() -> None:
    theirs, ours = pipe_with(b"+/a\0+/half")
    os.close(ours)
    orders = warden.receive(theirs)
    assert (orders.directories, orders.quiet) == ({"/a"}, False)
    os.close(theirs)


def test_the_table_of_commands() -> None:
    assert warden.tracked(bytes(8) + (4711).to_bytes(4, sys.byteorder)) == [4711]
    assert warden.tracked(b"") == []


def test_it_ends_who_carries_the_token_and_who_is_in_the_table_and_nobody_else() -> None:
    token = uuid4().hex
    bearer = start("sleep 1000 & echo up; wait", token)
    command = start("setsid sleep 1000 & env -i sleep 1000 & echo up; wait")
    stubborn = start("trap '' TERM HUP INT; setsid env -i sleep 1000 & echo up; wait", token)
    stranger, other = start("echo up; exec sleep 1000"), start("echo up; exec sleep 1000", uuid4().hex)
    warden.end_owned(token, [command.pid])
    assert [finish(child) for child in (bearer, command, stubborn)] == [-signal.SIGKILL] * 3
    assert (stranger.poll(), other.poll()) == (None, None)
    for child in (stranger, other):
        child.kill()
        finish(child)


def test_with_nobody_to_end_it_is_soon_done() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    warden.end_owned(uuid4().hex, [gone.pid])


def test_who_cannot_be_ended_does_not_keep_it_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TREE_DEADLINE_MS", 50)
    rounds = []
    monkeypatch.setattr(warden, "end_all", lambda table, found: rounds.append(found))
    child = start("echo up; exec sleep 1000")
    warden.end_owned(uuid4().hex, [child.pid])
    assert rounds
    assert all(found == {child.pid} for found in rounds)
    child.kill()
    finish(child)


def test_a_number_that_is_somebody_elses_by_now_is_spared() -> None:
    child = start("echo up; exec sleep 1000")
    stat = procfs.read_stat(child.pid)
    assert stat is not None
    warden._end(child.pid, stat.starttime + 1)
    assert procfs.is_running(child.pid, stat.starttime)
    warden._end(child.pid, stat.starttime)
    assert finish(child) == -signal.SIGKILL


def test_directories_go_with_their_content_and_a_bad_one_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "one" / "inner").mkdir(parents=True)
    (tmp_path / "one" / "inner" / "file").touch()
    (tmp_path / "link").symlink_to("keep")
    for name in ("two", "keep"):
        (tmp_path / name).mkdir()
    warden.remove([str(tmp_path / name) for name in ("missing", "link", "one", "two")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep", "link"]


@contextmanager
def at_work(token: str, *commands: int) -> Iterator[subprocess.Popen[bytes]]:
    """The script itself, ready once it ignores what it must."""
    table = os.memfd_create("table")
    try:
        os.write(table, b"".join(pid.to_bytes(warden.SLOT_BYTES, sys.byteorder) for pid in (0, *commands, 0)))
        argv = [sys.executable, "-I", "-S", "-E", warden.__file__, token, str(table)]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=(table,), start_new_session=True)
    finally:
        os.close(table)
    with child:
        yield child


def order(child: subprocess.Popen[bytes], data: bytes) -> None:
    """Hand over orders and wait until they are taken: then it ignores the signals already."""
    assert child.stdin is not None
    child.stdin.write(data)
    child.stdin.flush()
    while _unread(child.stdin.fileno()):
        os.sched_yield()


def _unread(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def test_killed_it_ends_the_commands_and_removes_the_directories(tmp_path: Path) -> None:
    doomed, kept, token = tmp_path / "doomed", tmp_path / "kept", uuid4().hex
    doomed.mkdir()
    kept.mkdir()
    bearer, command = start("echo up; exec sleep 1000", token), start("echo up; exec sleep 1000")
    with at_work(token, command.pid) as child:
        order(child, b"+%b\0+%b\0-%b\0" % (bytes(doomed), bytes(kept), bytes(kept)))
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            child.send_signal(signum)
        assert child.poll() is None
        child.communicate(timeout=10)
    assert child.returncode == 0
    assert [finish(one) for one in (bearer, command)] == [-signal.SIGKILL] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_told_to_go_it_touches_nothing(tmp_path: Path) -> None:
    token = uuid4().hex
    bearer = start("echo up; exec sleep 1000", token)
    with at_work(token, bearer.pid) as child:
        child.communicate(b"+%b\0q\0" % bytes(tmp_path), timeout=10)
    assert child.returncode == 0
    assert bearer.poll() is None
    assert tmp_path.is_dir()
    bearer.kill()
    finish(bearer)
