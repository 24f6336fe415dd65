"""Frames leave in order or not at all, and the descriptors with them are closed in any case."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.packets import Outbox, close_all, receive
from tests.balance import descriptors_left, open_descriptors
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


@contextmanager
def a_box() -> Iterator[tuple[Outbox, socket.socket]]:
    """An outbox, and the end that its frames arrive at."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    box = Outbox(ours, asyncio.get_running_loop())
    with ours, theirs:
        yield box, theirs
        box.close()


def received(theirs: socket.socket) -> list[bytes]:
    """What has arrived; descriptors that came along are closed."""
    found: list[bytes] = []
    while True:
        try:
            frame, fds, _, _ = socket.recv_fds(theirs, limits.SPAWN_FRAME_BYTES, 8)
        except BlockingIOError:
            return found
        close_all(fds)
        if not frame:
            return found
        found.append(frame)


def fill(box: Outbox, fds_each: int = 0) -> int:
    """Send numbered frames until some wait; returns how many there are."""
    count = 0
    while not box._waiting:
        box.send(numbered(count), [os.dup(0) for _ in range(fds_each)])
        count += 1
    return count


def numbered(number: int) -> bytes:
    return number.to_bytes(4, "little") + bytes(1_000)


async def arrive(theirs: socket.socket, count: int) -> list[bytes]:
    """The next `count` frames."""
    found: list[bytes] = []
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(theirs.fileno(), ready.set)
    try:
        async with asyncio.timeout(10):
            while len(found) < count:
                await ready.wait()
                ready.clear()
                found += received(theirs)
    finally:
        loop.remove_reader(theirs.fileno())
    return found


async def test_a_frame_leaves_at_once_with_its_descriptors() -> None:
    with a_box() as (box, theirs):
        read, write = os.pipe()
        box.send(b"frame", [write])
        frame, (passed,), _, _ = socket.recv_fds(theirs, 100, 1)
        assert frame == b"frame"
        os.write(passed, b"same pipe")
        os.close(passed)
        assert os.read(read, 100) == b"same pipe"
        assert os.read(read, 100) == b"", "our copy of the write end is closed"
        os.close(read)


async def test_what_does_not_fit_waits_and_leaves_in_order() -> None:
    with a_box() as (box, theirs):
        count = fill(box)
        for number in range(count, count + 50):
            box.send(numbered(number), [])
        frames = await arrive(theirs, count + 50)
        assert frames == [numbered(number) for number in range(count + 50)]
        box.send(b"after", [])
        assert received(theirs) == [b"after"]


async def test_descriptors_of_what_waits_are_closed_once_it_has_left() -> None:
    before = open_descriptors()
    with a_box() as (box, theirs):
        count = fill(box, fds_each=2)
        assert len(open_descriptors()) == len(before) + 4
        assert len(await arrive(theirs, count)) == count
        assert len(open_descriptors()) == len(before) + 2


async def test_too_much_that_waits_is_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTBOX_FRAMES", 3)
    with a_box() as (box, theirs):
        count = fill(box)
        for number in (count, count + 1):
            box.send(numbered(number), [])
        with pytest.raises(ExecFailed) as refused:
            box.send(b"too much", [os.dup(0)])
        assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)
        assert await arrive(theirs, count + 2) == [numbered(number) for number in range(count + 2)]


async def test_a_dead_end_is_told_nothing_and_nothing_is_leaked() -> None:
    with a_box() as (box, theirs):
        theirs.close()
        box.send(b"frame", [])
        box.send(b"frame", [os.dup(0)])


async def test_what_waits_for_an_end_that_dies_is_dropped() -> None:
    with a_box() as (box, theirs):
        fill(box, fds_each=1)
        for number in range(20):
            box.send(numbered(number), [os.dup(0)])
        theirs.close()
        await until(lambda: not box._waiting)


async def test_closing_drops_what_waits_and_its_descriptors() -> None:
    before = open_descriptors()
    with a_box() as (box, theirs):
        fill(box, fds_each=1)
        box.send(b"waits", [os.dup(0), os.dup(0)])
        box.close()
        box.close()
        received(theirs)
        assert len(open_descriptors()) == len(before) + 2


@needs_root
async def test_too_many_descriptors_on_their_way_are_overloaded_and_recover() -> None:
    """ETOOMANYREFS (unix(7)) befalls who has neither CAP_SYS_RESOURCE nor CAP_SYS_ADMIN."""
    with a_box() as (box, theirs), as_nobody_with_few_descriptors():
        sent: list[bytes] = []

        def send_for_ever() -> None:
            for _ in range(limits.OUTBOX_FRAMES):
                box.send(b"frame", [os.dup(0) for _ in range(3)])
                sent.append(b"frame")

        with pytest.raises(ExecFailed, match="Too many references") as refused:
            send_for_ever()
        assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)
        assert received(theirs) == sent
        box.send(b"again", [os.dup(0)])
        assert received(theirs) == [b"again"]


@contextmanager
def as_nobody_with_few_descriptors() -> Iterator[None]:
    with descriptors_left(20):
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
        try:
            yield
        finally:
            os.seteuid(0)


TOO_LONG = bytes(8 << 20)
"""More than any socket's buffer: sendmsg(2) answers EMSGSIZE, today and for ever."""


async def test_a_frame_that_can_never_be_sent_is_refused_and_the_next_one_leaves() -> None:
    before = open_descriptors()
    with a_box() as (box, theirs):
        with pytest.raises(ExecFailed, match="Message too long") as refused:
            box.send(TOO_LONG, [os.dup(0)])
        assert (refused.value.reason, refused.value.retryable) == ("io_error", False)
        assert len(open_descriptors()) == len(before) + 2
        box.send(b"next", [])
        assert received(theirs) == [b"next"]


async def test_one_that_waited_is_dropped_alone_and_its_sender_told() -> None:
    before = open_descriptors()
    told: list[ExecFailed] = []
    with a_box() as (box, theirs):
        count = fill(box)
        box.send(TOO_LONG, [os.dup(0), os.dup(0)], on_dropped=told.append)
        box.send(numbered(count), [])
        assert told == []
        assert await arrive(theirs, count + 1) == [numbered(number) for number in range(count + 1)]
        assert [(error.reason, "Message too long" in str(error)) for error in told] == [("io_error", True)]
        assert len(open_descriptors()) == len(before) + 2


async def test_whoever_is_told_may_close_it() -> None:
    told: list[ExecFailed] = []

    def give_up(error: ExecFailed) -> None:
        told.append(error)
        box.close()

    with a_box() as (box, theirs):
        count = fill(box)
        box.send(TOO_LONG, [], on_dropped=give_up)
        assert await arrive(theirs, count) == [numbered(number) for number in range(count)]
        await asyncio.sleep(0)
        assert len(told) == 1


async def test_a_descriptor_that_is_none_costs_its_own_frame_only(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody who asked is told by the log."""
    before = open_descriptors()
    none = 1 << 20
    with a_box() as (box, theirs):
        with pytest.raises(ExecFailed, match="Bad file descriptor"):
            box.send(b"frame", [none, os.dup(0)])
        count = fill(box)
        box.send(b"frame", [none, os.dup(0)])
        box.send(numbered(count), [])
        assert await arrive(theirs, count + 1) == [numbered(number) for number in range(count + 1)]
        assert len(open_descriptors()) == len(before) + 2
    assert "Bad file descriptor" in caplog.text


@contextmanager
def a_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a packet socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with ours, theirs:
        yield ours, theirs


def test_a_packet_arrives_with_its_descriptors_and_no_child_inherits_them() -> None:
    frame = memoryview(bytearray(8))
    with a_pair() as (ours, theirs):
        with pytest.raises(BlockingIOError):
            receive(ours, frame)
        socket.send_fds(theirs, [b"two"], [0, 1])
        size, fds = receive(ours, frame, 2)
        assert (bytes(frame[:size]), [os.get_inheritable(fd) for fd in fds]) == (b"two", [False, False])
        assert [os.path.sameopenfile(fd, number) for number, fd in enumerate(fds)] == [True, True]
        close_all(fds)
        theirs.send(b"none")
        assert receive(ours, frame) == (4, ())
        theirs.close()
        assert receive(ours, frame) == (0, ())


@pytest.mark.parametrize(("sent", "count", "most"), [(9, 0, 2), (9, 1, 1), (3, 2, 1), (3, 3, 2), (3, 1, 0)])
def test_a_packet_that_is_too_much_is_the_end_and_leaves_nothing_open(sent: int, count: int, most: int) -> None:
    before = open_descriptors()
    with a_pair() as (ours, theirs):
        socket.send_fds(theirs, [bytes(sent)], [0] * count)
        assert receive(ours, memoryview(bytearray(8)), most) == (0, ())
        assert len(open_descriptors()) == len(before) + 2


def test_a_descriptor_that_finds_no_free_number_is_lost_alone() -> None:
    before = open_descriptors()
    with a_pair() as (ours, theirs):
        socket.send_fds(theirs, [b"no room"], [0])
        with descriptors_left(0):
            assert receive(ours, memoryview(bytearray(8))) == (7, ())
        assert len(open_descriptors()) == len(before) + 2


def test_an_end_that_was_reset_is_an_end() -> None:
    """A peer that leaves something unread has the next read fail (ECONNRESET)."""
    with a_pair() as (ours, theirs):
        ours.send(b"unread")
        theirs.close()
        assert receive(ours, memoryview(bytearray(8))) == (0, ())
