"""The real spawner, frame by frame: what it says, and that what it does not understand ends it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.spawner import frames
from fastclaw.spawner.spawner_host import find_spawner
from tests.pids import children_of, descendants_of, has_not_ended, is_there, state_of
from tests.spawner.fake_spawner import BareHost, a_bare_host, busy_reapers_of, commands_of, pump_of
from tests.spawner.locks import a_locked_fifo
from tests.spawner.start_frames import HEAD
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_it_wants_one_argument_and_a_socket() -> None:
    binary = find_spawner()
    assert binary is not None
    for arguments, code in (([], 1), (["1", "2"], 1), (["/no/such/socket"], 2), (["/" + "x" * 200], 2), (["99"], 1)):
        assert subprocess.run([binary, *arguments], check=False, timeout=10).returncode == code


def test_its_greeting_tells_the_environment_and_what_it_may() -> None:
    host = BareHost()
    hello = host.greet()
    assert hello.env == {"A": "b"}
    assert hello.lists_children
    assert hello.can_set_user == (os.geteuid() == 0)
    host.close()


def test_an_environment_too_large_for_its_greeting_ends_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    binary = find_spawner()
    assert binary is not None
    with ours, theirs:
        env = {"BIG": "x" * limits.SPAWN_HELLO_BYTES}
        done = subprocess.run([binary, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=env, check=False)
    assert done.returncode == 3


A_WELCOME = frames.welcome(confine=False, reaper_uid=frames.NO_USER, collect_bytes=1)
A_START = frames.start(2, frames.strings(["true"]), frames.strings([])).frame


@pytest.mark.parametrize(
    "frame",
    [
        A_START,
        frames.control(frames.GROW, 1, 1),
        struct.pack("=4IQ", frames.WELCOME, frames.VERSION + 1, 0, 0, 0),
        A_WELCOME,
        A_WELCOME[:-1],
        A_WELCOME + b"x",
        b"x",
    ],
    ids=["START", "GROW", "another version", "without a channel", "cut short", "too long", "garbage"],
)
def test_anything_but_the_welcome_ends_the_handshake(frame: bytes) -> None:
    host = BareHost()
    host.greet()
    fds = [] if frame == A_WELCOME else [host.channel.fileno()]
    socket.send_fds(host.control, [frame], fds)
    assert host.control.recv(100) == b""
    assert host.exit_code() == 3
    host.close()


def test_a_closed_socket_before_the_welcome_ends_it() -> None:
    host = BareHost()
    host.close()
    assert host.exit_code() == 3


# --- what it does not understand ---


@contextlib.contextmanager
def ends_with_all_it_keeps() -> Iterator[BareHost]:
    """A host that keeps a tree, which a malformed frame is to end."""
    with a_bare_host() as host:
        host.start(1, "sh", "-c", "setsid sleep 1000 & (env -i setsid sleep 1000 &); exec sleep 1000")
        wait_until(lambda: len(descendants_of(host.process.pid)) == 2 + 2 + 3)
        everybody = descendants_of(host.process.pid)
        yield host
        assert host.exit_code() == 0
        assert not any(map(has_not_ended, everybody))


MALFORMED_ORDERS = {
    "short": (b"x" * 19, 0),
    "long": (frames.control(frames.PING, 2) + b"x", 0),
    "unknown": (frames.control(99, 2), 0),
    "between pumps": (frames.control(frames.FINISH + 1, 2), 0),
    "a second welcome": (A_WELCOME, 0),
    "a greeting": (frames.control(frames.HELLO, frames.MAGIC, frames.VERSION), 0),
    "an answer": (frames.EVENT.pack(frames.ANSWER, 1, *bytes(10)), 0),
    "START": (A_START, 0),
    "RETIRE": (frames.control(frames.RETIRE), 0),
    "READ": (frames.control(frames.READ, 2, tail=b"/etc/passwd\0"), 1),
    "MEASURE": (frames.control(frames.MEASURE, 2), 1),
    "signal 0": (frames.control(frames.SIGNAL, 1, 0), 0),
    "signal 65": (frames.control(frames.SIGNAL, 1, 65), 0),
    "level 0": (frames.control(frames.END, 1, 0), 0),
    "level 3": (frames.control(frames.END, 1, 3), 0),
    "level 4": (frames.control(frames.END, 1, 4), 0),
    "port 65536": (frames.control(frames.LISTEN, 2, 65_536), 0),
    "more reapers than there may be": (frames.control(frames.GROW, 2, 16_385), 0),
    "ATTACH without a client": (frames.control(frames.ATTACH, 1, 0), 0),
    "ATTACH with two": (frames.control(frames.ATTACH, 1, 0), 2),
    "ATTACH to a third stream": (frames.control(frames.ATTACH, 1, 2), 1),
    "more descriptors than a frame may have": (frames.control(frames.PING, 2), 6),
    "too long": (frames.control(frames.PING, 2) + bytes(limits.SPAWN_FRAME_BYTES), 0),
}
"""Orders to main, and how many descriptors go along."""


@pytest.mark.parametrize(("frame", "count"), MALFORMED_ORDERS.values(), ids=MALFORMED_ORDERS)
def test_a_malformed_order_ends_it_with_everything_it_keeps(frame: bytes, count: int) -> None:
    with ends_with_all_it_keeps() as host:
        socket.send_fds(host.control, [frame], [0] * count)


def packed(
    op: int = frames.START,
    id: int = 2,
    flags: int = 0,
    argc: int = 1,
    envc: int = 0,
    groups: int = 0,
    limits: int = 0,
    size: int = 5,
    head: int = 0,
    limit: int = 0,
    input: int = 0,
    place: int = 0,
    data: bytes = b"true\0",
) -> bytes:
    """A START frame with anything in it."""
    run = (head, limit, 0, input)
    return HEAD.pack(op, id, flags, argc, envc, 0, 0, groups, limits, size, *run, place, 0) + data


TTY, TEMPLATE, WORKER, RUN = frames.FLAG_TTY, frames.FLAG_TEMPLATE, frames.FLAG_WORKER, frames.FLAG_RUN
WINDOW = bytes(8)

MALFORMED_REQUESTS = {
    "nothing": (b"", 1),
    "short": (packed()[:63], 0),
    "another op": (packed(op=frames.GROW), 0),
    "without an id": (packed(id=0), 0),
    "an unknown flag": (packed(flags=8192), 0),
    "without a command": (packed(argc=0), 0),
    "more strings than there are": (packed(argc=2), 0),
    "more variables than there are": (packed(envc=1), 0),
    "fewer strings than there are": (packed(size=7, data=b"true\0x\0"), 0),
    "arguments without bound": (packed(argc=2**32 - 1), 0),
    "variables without bound": (packed(envc=2**32 - 1), 0),
    "strings for more pointers than there is room": (packed(argc=3_000, size=3_000, data=bytes(3_000)), 0),
    "groups without bound": (packed(groups=257, data=bytes(1_028) + b"true\0"), 0),
    "limits without bound": (packed(limits=17, data=bytes(17 * 24) + b"true\0"), 0),
    "groups that are not there": (packed(groups=1), 0),
    "bytes without bound": (packed(size=2**32 - 1), 0),
    "more bytes than there are": (packed(size=6), 0),
    "fewer bytes than there are": (packed(size=4), 0),
    "without its last NUL": (packed(size=4, data=b"true"), 0),
    "without the directory that its flag promises": (packed(flags=frames.FLAG_DIRECTORY), 0),
    "a descriptor that is not wanted": (packed(), 1),
    "a file that is not there": (packed(flags=frames.FLAG_SPILLED, data=b""), 0),
    "a file and strings": (packed(flags=frames.FLAG_SPILLED), 1),
    "a terminal without its size": (packed(flags=TTY), 0),
    "a terminal and half a size": (packed(flags=TTY, data=b"true\0" + bytes(7)), 0),
    "a template on a terminal": (packed(flags=TTY | TEMPLATE, data=b"true\0" + WINDOW), 0),
    "a run on a terminal": (packed(flags=TTY | RUN, data=b"true\0" + WINDOW), 0),
    "a terminal's stderr": (packed(flags=TTY | frames.FLAG_MERGE, data=b"true\0" + WINDOW), 0),
    "a run that is a template": (packed(flags=RUN | TEMPLATE), 0),
    "a worker that is a template": (packed(flags=WORKER | TEMPLATE), 1),
    "a worker without its byte": (packed(flags=WORKER, argc=0), 0),
    "a worker with more": (packed(flags=WORKER, argc=0), 2),
    "a worker without a request": (packed(flags=WORKER, argc=0, size=0, data=b""), 1),
    "a worker of a place that there is not": (packed(flags=WORKER, argc=0, place=16_384), 1),
    "a worker's request without bound": (packed(flags=WORKER | frames.FLAG_SPILLED, argc=0, size=2**25, data=b""), 2),
    "more of the beginning than of all": (packed(flags=RUN, head=2, limit=1), 0),
    "output without bound": (packed(flags=RUN, limit=limits.MAX_RUN_OUTPUT_BYTES + 1), 0),
    "input that is not there": (packed(flags=RUN, input=1), 0),
    "more input than there is": (packed(flags=RUN, input=3, data=b"true\0in"), 0),
    "less input than there is": (packed(flags=RUN, input=1, data=b"true\0in"), 0),
    "input without bound": (packed(flags=RUN, input=2**32 - 1), 0),
    "an input file that is not there": (packed(flags=RUN | frames.FLAG_INPUT_FILE), 0),
    "too many descriptors": (packed(), 5),
    "more descriptors than a frame may have": (packed(), 6),
    "too long": (packed(size=16_384, data=b"x" * 16_383 + b"\0"), 0),
    "READ into nothing": (frames.control(frames.READ, 2, tail=b"/etc/passwd\0"), 0),
    "READ of nothing": (frames.control(frames.READ, 2), 1),
    "READ of a path without its end": (frames.control(frames.READ, 2, tail=b"/etc/passwd"), 1),
    "MEASURE into nothing": (frames.control(frames.MEASURE, 2, 1, tail=b"\0" * 12), 0),
    "MEASURE of less than it says": (frames.control(frames.MEASURE, 2, 2, tail=b"\0" * 12), 1),
    "MEASURE of too many": (frames.control(frames.MEASURE, 2, 513, tail=b"\0" * 12 * 513), 1),
    "READ into two": (frames.control(frames.READ, 2, tail=b"/etc/passwd\0"), 2),
    "RETIRE and more": (frames.control(frames.RETIRE, tail=b"x"), 0),
}
"""Frames to the pumps, and how many descriptors go along."""


@pytest.mark.parametrize(("frame", "count"), MALFORMED_REQUESTS.values(), ids=MALFORMED_REQUESTS)
def test_a_malformed_request_ends_it_with_everything_it_keeps(frame: bytes, count: int) -> None:
    with ends_with_all_it_keeps() as host:
        null = os.open("/dev/null", os.O_RDWR)
        host.request(frame, [null] * count)
        os.close(null)


@pytest.mark.parametrize("size", [0, 9_999, 10_001])
def test_a_file_with_another_size_than_was_promised_ends_it(size: int) -> None:
    with ends_with_all_it_keeps() as host:
        file = os.memfd_create("other")
        os.ftruncate(file, size)
        host.request(packed(flags=frames.FLAG_SPILLED, size=10_000, data=b""), [file])
        os.close(file)


def test_strings_in_a_file_are_as_sound_as_those_in_a_frame() -> None:
    with ends_with_all_it_keeps() as host:
        file = os.memfd_create("strings")
        os.write(file, b"x" * 10_000)
        host.request(packed(flags=frames.FLAG_SPILLED, size=10_000, data=b""), [file])
        os.close(file)


# --- reapers and pumps ---


def reapers(host: BareHost) -> int:
    return host.ask(frames.control(frames.PING, 5))[3]


def test_a_reaper_that_is_sent_home_goes() -> None:
    with a_bare_host(reapers=3) as host:
        host.channel.send(frames.control(frames.RETIRE))
        wait_until(lambda: reapers(host) == 2)
        assert len(children_of(host.process.pid)) == 2
        host.start(1, "true")
        host.over(1)
        assert not host.has_news(), "it is not missed"


@pytest.mark.parametrize("who", ["reaper", "pump"])
def test_an_idle_one_that_dies_is_told_and_starts_go_on(who: str) -> None:
    """Nobody would ever take its requests: a reaper goes with its pump, and the other way round."""
    with a_bare_host(reapers=4) as host:
        for killed in range(1, 4):
            reaper = children_of(host.process.pid)[0]
            pump = pump_of(reaper)
            os.kill(reaper if who == "reaper" else pump, signal.SIGKILL)
            lost = host.event()
            assert (lost.op, lost.a, lost.b) == (frames.LOST, 0, 0)
            assert lost.id in (0, killed - 1), "what was over may not have been forgotten yet"
            wait_until(lambda: not is_there(reaper) and not is_there(pump))  # noqa: B023 - called at once
            assert reapers(host) == 4 - killed
            host.start(killed, "true")
            host.over(killed)
        host.grow(5)
        assert reapers(host) == 6
        assert len(children_of(host.process.pid)) == 6


@pytest.mark.parametrize("is_run", [False, True])
@pytest.mark.parametrize("who", ["reaper", "pump"])
def test_one_that_dies_at_work_takes_its_tree_along(who: str, is_run: bool) -> None:
    script = "setsid sleep 1000 & (env -i setsid sleep 1000 &) ; echo out; exec sleep 1000"
    with a_bare_host(reapers=3) as host:
        flags = frames.FLAG_RUN | frames.FLAG_NULL_STDIN if is_run else 0
        host.start(7, "sleep", "1000")
        other = commands_of(busy_reapers_of(host.process.pid)[0])[0]
        host.start(1, "sh", "-c", script, flags=flags)
        wait_until(lambda: len(descendants_of(host.process.pid)) == 3 + 3 + 1 + 3)
        (reaper,) = [one for one in busy_reapers_of(host.process.pid) if other not in commands_of(one)]
        pump, *tree = descendants_of(reaper)
        client = None if is_run else host.attach(1, 1)
        os.kill(reaper if who == "reaper" else pump, signal.SIGKILL)
        heard = host.events(frames.LOST)
        assert heard[-1] == (frames.LOST, 1, 0, 0)
        assert not any(map(is_there, (reaper, pump, *tree)))
        if client is not None:
            assert client.recv(1) == b""
            client.close()
        assert is_there(other)
        assert reapers(host) == 2
        host.start(9, "true")
        host.events(frames.EXITED)


def test_what_lost_reapers_kept_can_be_started_again_in_their_places() -> None:
    with a_bare_host(reapers=2) as host:
        for id in range(1, 20):
            host.start(id, "sh", "-c", "echo $0; exec sleep 1000", str(id))
            client = host.attach(id)
            assert client.recv(100) == b"%d\n" % id
            (reaper,) = busy_reapers_of(host.process.pid)
            os.kill(reaper if id % 2 else pump_of(reaper), signal.SIGKILL)
            assert host.events(frames.LOST)[-1][:2] == (frames.LOST, id)
            assert client.recv(1) == b""
            client.close()
            host.grow(1)
        assert reapers(host) == 2


@pytest.mark.parametrize("how", ["killed", "ended", "stopped and ended"])
def test_one_that_is_killed_before_its_execve(how: str, tmp_path: Path) -> None:
    """It shares the spawner's memory, its pump waits for it, and wait4 counts it as no child of its reaper."""
    (tmp_path / "late").symlink_to("/bin/true")
    path = "PATH=" + "/x:" * 30_000 + str(tmp_path)
    with a_bare_host() as host:
        for id in range(1, 6):
            host.send_start(id, "late", env=path)
            wait_until(lambda: bool(busy_reapers_of(host.process.pid)))
            ((child, *_),) = map(commands_of, busy_reapers_of(host.process.pid))
            if how == "killed":
                os.kill(child, signal.SIGKILL)
            elif how == "stopped and ended":
                os.kill(child, signal.SIGSTOP)
                wait_until(lambda: state_of(child) == "T")  # noqa: B023 - called at once
            if how != "killed":
                assert not host.has_news()
                host.order(frames.END, id, frames.LEVEL_KILL)
            assert host.over(id)[0][:3] == (frames.EXITED, id, signal.SIGKILL)
            assert not is_there(child)
        host.start(9, "true")


@pytest.mark.parametrize("level", [frames.LEVEL_TERM, frames.LEVEL_KILL])
def test_an_end_of_number_0_is_for_everything_that_is_kept(level: int) -> None:
    with a_bare_host(reapers=3) as host:
        for id in (1, 2, 3):
            host.start(id, "sleep", "1000")
        host.order(frames.END, 0, level)
        signum = signal.SIGTERM if level == frames.LEVEL_TERM else signal.SIGKILL
        heard = host.events(frames.EXITED, frames.EXITED, frames.EXITED)
        exited = {one[:3] for one in heard if one[0] == frames.EXITED}
        assert exited == {(frames.EXITED, id, signum) for id in (1, 2, 3)}
        host.send_start(4, "true")
        while (event := host.event()).id != 4 or event.op != frames.EXITED:
            pass


def test_orders_for_one_that_has_ended_do_not_hit_the_next() -> None:
    with a_bare_host(reapers=1) as host:
        host.start(1, "true")
        assert host.over(1)[0][:3] == (frames.EXITED, 1, 0)
        host.start(2, "sleep", "1000")
        host.places[1] = host.places[2]
        for place in (host.places[2], frames.NOWHERE, 0, 4_000, 2**31):
            host.places[1] = place
            host.order(frames.SIGNAL, 1, signal.SIGKILL)
            host.order(frames.END, 1, frames.LEVEL_KILL)
            host.order(frames.RELEASE, 1, 1)
            host.order(frames.FINISH, 1)
        host.order(frames.SIGNAL, 2, signal.SIGUSR1)
        assert host.over(2)[0][:3] == (frames.EXITED, 2, signal.SIGUSR1)


def test_a_place_that_is_wrong_hits_nobody_and_none_is_looked_for() -> None:
    with a_bare_host(reapers=2) as host:
        host.start(1, "sleep", "1000")
        host.control.send(frames.control(frames.SIGNAL, 1, signal.SIGKILL, place=1 - host.places[1]))
        assert not host.has_news(), host.event()
        host.control.send(frames.control(frames.SIGNAL, 1, signal.SIGUSR1, place=frames.NOWHERE))
        assert host.event()[:3] == (frames.EXITED, 1, signal.SIGUSR1)


# --- files as a pump sees them ---


def test_files_are_read_and_errors_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "big").write_bytes(b"x" * (limits.SPAWN_FILE_BYTES + 1))
    (tmp_path / "link").symlink_to("file")
    with a_bare_host() as host:
        assert host.read(1, bytes(tmp_path / "file")) == (0, b"content")
        assert host.read(2, bytes(tmp_path / "link")) == (0, b"content")
        assert host.read(3, bytes(tmp_path / "big")) == (0, b"x" * limits.SPAWN_FILE_BYTES)
        assert host.read(4, bytes(tmp_path / "missing")) == (errno.ENOENT, b"")
        assert host.read(5, b"/" + b"x" * 300) == (errno.ENAMETOOLONG, b"")


@pytest.mark.parametrize("kind", ["fifo", "locked fifo", "socket", "directory", "device", "block device", "itself"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """Opening it might wait for whoever owns it, and for as long as he likes."""
    os.mkfifo(tmp_path / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    paths: dict[str, str | Path] = {
        "fifo": tmp_path / "fifo",
        "locked fifo": tmp_path / "fifo",
        "socket": tmp_path / "socket",
        "directory": tmp_path,
        "device": "/dev/zero",
        "block device": "/dev/ptmx",
        "itself": "/proc/self/fd/0",
    }
    lock = a_locked_fifo(str(tmp_path / "fifo")) if kind == "locked fifo" else contextlib.nullcontext()
    with listening, lock, a_bare_host() as host:
        began = time.monotonic()
        assert host.read(1, os.fsencode(paths[kind])) == (errno.ENXIO, b"")
        assert time.monotonic() - began < 5
        host.start(2, "true")


# --- clients ---


def test_what_a_client_sent_before_it_left_still_arrives_and_its_successor_is_not_taken_for_it() -> None:
    """Its last input keeps its socket alive in the pump: when that is through, nobody else has left."""
    with a_bare_host() as host:
        host.start(1, "sh", "-c", "echo up; sleep 0.2; head -c 300000 | wc -c; exec sleep 1000", flags=frames.FLAG_HOLD)
        first = host.attach(1)
        assert first.recv(100) == b"up\n"
        first.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 150_000:
                sent += first.send(b"x" * 1_000)
        first.close()
        assert host.events(frames.LEFT)[-1] == (frames.LEFT, 1, 0, 0)
        second = host.attach(1)
        second.sendall(b"x" * (300_000 - sent))
        assert b"300000" in second.recv(100)
        assert not host.has_news(), "the second is still there"
        second.send(b"more")
        second.close()
        assert host.events(frames.LEFT)[-1] == (frames.LEFT, 1, 0, 0)


def test_a_client_that_comes_just_as_it_ends_reads_an_end() -> None:
    """Whoever is with it when: its streams are over, its place has the next one, or nobody knows it any more."""
    with a_bare_host(reapers=2) as host:
        clients = []
        for id in range(1, 400):
            host.start(id, "true")
            host.send_start(1_000 + id, "true")
            clients += [host.attach(id, 0, b"for nobody" * (id % 2)), host.attach(id, 1, b"for nobody")]
            heard: set[tuple[int, int]] = set()
            while not {(frames.EXITED, id), (frames.EXITED, 1_000 + id), (frames.STARTED, 1_000 + id)} <= heard:
                heard.add(host.event()[:2])
            for client in clients:
                assert client.recv(1) == b""
                client.close()
            clients.clear()
            host.drain()


def test_a_client_of_nobody_reads_an_end_and_is_told_to_have_left() -> None:
    with a_bare_host() as host:
        for id in (99, 100):
            client = host.attach(id, id % 2, b"for nobody")
            assert client.recv(1) == b"", "and no reset, whatever it had sent"
            assert host.event()[:4] == (frames.LEFT, id, id % 2, 0)
            client.close()


def test_messages_that_nobody_takes_keep_no_other_s_client_away() -> None:
    """Pumps that sleep in a pipe that was locked read none of theirs; each may have some waiting."""
    with a_bare_host(reapers=101) as host:
        for id in range(1, 101):
            host.start(id, "sleep", "1000")
        pumps = [pump_of(reaper) for reaper in busy_reapers_of(host.process.pid)]
        for pump in pumps:
            os.kill(pump, signal.SIGSTOP)
        clients = [host.attach(id, which) for id in range(1, 101) for which in (0, 1)]
        for id in range(1, 101):
            for _ in range(10):
                host.order(frames.RESIZE, id, 1)
            host.order(frames.LOOK, id)
            host.order(frames.RELEASE, id)
        host.start(200, "sh", "-c", "echo out; exec sleep 1000")
        client = host.attach(200)
        assert client.recv(100) == b"out\n"
        for one in (client, *clients):
            one.close()
        for pump in pumps:
            os.kill(pump, signal.SIGCONT)


@pytest.mark.parametrize("which", [0, 1])
def test_who_is_handed_over_when_the_streams_are_over_is_told_to_have_read_their_end(which: int) -> None:
    """fastclaw may have accepted it before it knows: else it would count as one that has left before the end."""
    with a_bare_host() as host:
        host.start(1, "sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 &")
        event = host.event()
        while event.op != frames.FREE and not (event.op == frames.EXITED and event.b & frames.WITH_FREE):
            event = host.event()
        host.drain()
        client = host.attach(1, which)
        assert client.recv(1) == b""
        client.close()
        assert host.events(frames.LEFT) == [(frames.ENDED, 1, which, 0), (frames.LEFT, 1, which, 0)]
