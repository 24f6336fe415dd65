"""The real spawner, frame by frame: what it says, and that what it does not understand ends it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess

import pytest

from fastclaw import limits
from fastclaw.protocol import spawner as frames
from fastclaw.spawn.binary import find_spawner
from fastclaw.transport.outbox import close_all
from tests.spawn.fake_spawner import BareHost, a_bare_host, children_of, is_there


def test_it_wants_one_argument_and_a_socket() -> None:
    binary = find_spawner()
    assert binary is not None
    for arguments, code in (([], 1), (["1", "2"], 1), (["/no/such/socket"], 2), (["/" + "x" * 200], 2), (["99"], 3)):
        assert subprocess.run([binary, *arguments], check=False, timeout=10).returncode == code


def test_its_greeting_tells_the_environment_and_what_it_may() -> None:
    with a_bare_host() as host:
        assert host.hello.env == {"A": "b"}
        assert host.hello.lists_children
        assert host.hello.can_set_user == (os.geteuid() == 0)


def test_an_environment_too_large_for_its_greeting_ends_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    binary = find_spawner()
    assert binary is not None
    with ours, theirs:
        env = {"BIG": "x" * limits.SPAWN_HELLO_BYTES}
        done = subprocess.run([binary, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=env, check=False)
    assert done.returncode == 3


@pytest.mark.parametrize(
    "frame",
    [
        frames.start(1, frames.strings(["true"]), frames.strings([])).frame,
        frames.control(frames.GROW, 1, 1),
        frames.control(frames.WELCOME, frames.VERSION + 1),
        frames.welcome(confine=False),
        b"x",
    ],
    ids=["START", "GROW", "another version", "without a channel", "garbage"],
)
def test_anything_but_the_welcome_ends_the_handshake(frame: bytes) -> None:
    host = BareHost()
    host.control.send(frame)
    assert host.control.recv(100) == b""
    assert host.exit_code() == 3
    host.close()


def test_a_closed_socket_before_the_welcome_ends_it() -> None:
    host = BareHost()
    host.close()
    assert host.exit_code() == 3


MALFORMED_ORDERS = {
    "short": b"x" * 15,
    "unknown": frames.control(99, 2),
    "a second welcome": frames.welcome(confine=False),
    "a greeting": frames.control(frames.HELLO, frames.MAGIC, frames.VERSION),
    "an answer": frames.EVENT.pack(frames.ANSWER, 1, 0, 0, 0, 0, 0),
    "START": frames.start(2, frames.strings(["true"]), frames.strings([])).frame,
    "RETIRE": frames.control(frames.RETIRE),
    "signal 0": frames.control(frames.SIGNAL, 1, 0),
    "signal 65": frames.control(frames.SIGNAL, 1, 65),
    "level 0": frames.control(frames.END, 1, 0),
    "level 3": frames.control(frames.END, 1, 3),
    "port 65536": frames.control(frames.LISTEN, 2, 65_536),
    "READ into nothing": frames.control(frames.READ, 2, tail=b"/etc/passwd\0"),
    "too long": frames.control(frames.READ, 2, tail=b"/" * limits.SPAWN_FRAME_BYTES + b"\0"),
    "SHUTDOWN": frames.control(frames.SHUTDOWN),
}
"""Orders to main, and one that is none of these but the wish to end."""


@pytest.mark.parametrize("frame", MALFORMED_ORDERS.values(), ids=MALFORMED_ORDERS)
def test_a_malformed_order_ends_it_with_everything_it_keeps(frame: bytes) -> None:
    with a_bare_host() as host:
        stream = host.start(1, "sleep", "1000")
        keepers = children_of(host.process.pid)
        host.control.send(frame)
        assert host.exit_code() == 0
        assert os.read(stream, 1) == b""
        os.close(stream)
        assert not any(map(is_there, keepers))


@pytest.mark.parametrize("tail", [b"", b"/etc/passwd"])
def test_a_path_without_its_end_ends_it(tail: bytes) -> None:
    with a_bare_host() as host:
        socket.send_fds(host.control, [frames.control(frames.READ, 2, tail=tail)], [0])
        assert host.exit_code() == 0


def test_more_descriptors_than_a_frame_may_have_end_it() -> None:
    with a_bare_host() as host:
        socket.send_fds(host.control, [frames.control(frames.PING, 2)], [0] * 6)
        assert host.exit_code() == 0


def packed(
    op: int = frames.START,
    id: int = 2,
    flags: int = 0,
    argc: int = 1,
    envc: int = 0,
    groups: int = 0,
    limits: int = 0,
    size: int = 5,
    data: bytes = b"true\0",
) -> bytes:
    """A START frame with anything in it."""
    return struct.pack("=10I", op, id, flags, argc, envc, 0, 0, groups, limits, size) + data


MALFORMED_REQUESTS = {
    "short": (packed()[:39], 3),
    "another op": (packed(op=frames.GROW), 3),
    "without an id": (packed(id=0), 3),
    "an unknown flag": (packed(flags=32), 3),
    "without a command": (packed(argc=0), 3),
    "more strings than there are": (packed(argc=2), 3),
    "more variables than there are": (packed(envc=1), 3),
    "fewer strings than there are": (packed(size=7, data=b"true\0x\0"), 3),
    "arguments without bound": (packed(argc=2**32 - 1), 3),
    "variables without bound": (packed(envc=2**32 - 1), 3),
    "strings for more pointers than there is room": (packed(argc=3_000, size=3_000, data=bytes(3_000)), 3),
    "groups without bound": (packed(groups=257, data=bytes(1_028) + b"true\0"), 3),
    "limits without bound": (packed(limits=17, data=bytes(17 * 24) + b"true\0"), 3),
    "groups that are not there": (packed(groups=1), 3),
    "bytes without bound": (packed(size=2**32 - 1), 3),
    "more bytes than there are": (packed(size=6), 3),
    "fewer bytes than there are": (packed(size=4), 3),
    "without its last NUL": (packed(size=4, data=b"true"), 3),
    "without the directory that its flag promises": (packed(flags=frames.FLAG_DIRECTORY), 3),
    "two streams": (packed(), 2),
    "four streams": (packed(), 4),
    "no streams": (packed(), 0),
    "a stdin that is not wanted": (packed(flags=frames.FLAG_NULL_STDIN), 3),
    "streams and a terminal": (packed(flags=frames.FLAG_TTY), 3),
    "a file that is not there": (packed(flags=frames.FLAG_SPILLED, data=b""), 3),
    "a file and strings": (packed(flags=frames.FLAG_SPILLED), 4),
    "too many descriptors": (packed(), 5),
    "too long": (packed(size=16_384, data=b"x" * 16_383 + b"\0"), 3),
}
"""Frames to the keepers, and how many descriptors go along."""


@pytest.mark.parametrize(("frame", "count"), MALFORMED_REQUESTS.values(), ids=MALFORMED_REQUESTS)
def test_a_malformed_request_ends_it_with_everything_it_keeps(frame: bytes, count: int) -> None:
    with a_bare_host() as host:
        stream = host.start(1, "sleep", "1000")
        null = os.open("/dev/null", os.O_RDWR)
        socket.send_fds(host.channel, [frame], [null] * count)
        os.close(null)
        assert host.exit_code() == 0
        assert os.read(stream, 1) == b""
        os.close(stream)


def test_a_file_with_less_than_was_promised_ends_it() -> None:
    with a_bare_host() as host:
        null, file = os.open("/dev/null", os.O_RDWR), os.memfd_create("short")
        socket.send_fds(
            host.channel, [packed(flags=frames.FLAG_SPILLED, size=10_000, data=b"")], [null, null, null, file]
        )
        close_all([null, file])
        assert host.process.wait(0.3) == 0


def test_a_keeper_that_is_sent_home_goes() -> None:
    with a_bare_host(keepers=3) as host:
        host.channel.send(frames.control(frames.RETIRE))
        while host.ask(frames.control(frames.PING, 5))[3] != 2:
            pass
        assert len(children_of(host.process.pid)) == 2
        stream = host.start(1, "true")
        assert host.event()[:2] == (frames.EXITED, 1)
        os.close(stream)


@pytest.mark.parametrize("level", [frames.LEVEL_TERM, frames.LEVEL_KILL])
def test_an_end_of_number_0_is_for_everything_that_is_kept(level: int) -> None:
    with a_bare_host(keepers=3) as host:
        streams = [host.start(id, "sleep", "1000") for id in (1, 2, 3)]
        host.control.send(frames.control(frames.END, 0, level))
        signum = signal.SIGTERM if level == frames.LEVEL_TERM else signal.SIGKILL
        assert {host.event()[:4] for _ in streams} == {(frames.EXITED, id, signum, 1) for id in (1, 2, 3)}
        streams.append(host.start(4, "true"))
        assert host.event()[:4] == (frames.EXITED, 4, 0, 1)
        close_all(streams)


def test_orders_for_one_that_has_ended_do_not_hit_the_next() -> None:
    with a_bare_host(keepers=1) as host:
        first = host.start(1, "true")
        assert host.event()[:4] == (frames.EXITED, 1, 0, 1)
        second = host.start(2, "sleep", "1000")
        host.control.send(frames.control(frames.SIGNAL, 1, signal.SIGKILL))
        host.control.send(frames.control(frames.END, 1, frames.LEVEL_KILL))
        host.control.send(frames.control(frames.SIGNAL, 2, signal.SIGUSR1))
        assert host.event()[:3] == (frames.EXITED, 2, signal.SIGUSR1)
        close_all([first, second])
