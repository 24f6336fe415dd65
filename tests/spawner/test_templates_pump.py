"""A template's pump, frame by frame: what a template says, what it is asked, and two things at once."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.linux.packets import close_all
from fastclaw.spawner import frames
from tests.pids import children_of, is_there
from tests.spawner.fake_spawner import BareHost, a_bare_host, busy_reapers_of, commands_of, end, hear_until, pump_of
from tests.spawner.test_templates import a_rig

if TYPE_CHECKING:
    from pathlib import Path


def test_an_adoption_of_nobody_is_refused() -> None:
    with a_bare_host() as host:
        host.start(7, "sleep", "1000")
        (reaper,) = busy_reapers_of(host.process.pid)
        (template,) = commands_of(reaper)
        for template_id, pid in ((99, template), (7, template), (7, 1), (7, 2**31 - 1)):
            host.control.send(frames.control(frames.ADOPT, 8, pid, template_id))
            event = host.event()
            assert (event.op, event.id, event.b) == (frames.REFUSED, 8, frames.STEP_ADOPT)
        host.control.send(frames.control(frames.SIGNAL, 8, 9, 7))
        host.control.send(frames.control(frames.END, 8, frames.LEVEL_KILL, 7))
        assert host.ask(frames.control(frames.PING, 2))[0] == frames.ANSWER
        assert is_there(template)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_an_adoption_without_numbers_is_the_end(numbers: tuple[int, int, int]) -> None:
    with a_bare_host() as host:
        host.control.send(frames.control(frames.ADOPT, *numbers))
        assert host.exit_code() == 0


def begin_template(host: BareHost, *cmd: str) -> None:
    """The template of number 7."""
    host.start(7, *cmd, flags=frames.FLAG_TEMPLATE | frames.FLAG_NULL_STDIN)


def ask_worker(host: BareHost, id: int, request: bytes = b"{}", place: int | None = None) -> socket.socket:
    """Ask for a worker of it; returns our end of its `go`."""
    ours, theirs = socket.socketpair()
    made = frames.worker(id, host.places[7] if place is None else place, request)
    with theirs:
        host.request(made.frame, fds := [theirs.fileno(), *map(file_of, made.files)])
        close_all(fds[1:])
    ours.settimeout(10)
    return ours


def file_of(data: bytes) -> int:
    file = os.memfd_create("request")
    assert os.write(file, data) == len(data)
    return file


def test_what_a_template_says_comes_word_for_word_and_its_end_is_an_empty_one() -> None:
    with a_bare_host() as host:
        begin_template(host, "sh", "-c", "printf one >&3; printf two >&3; exec 3>&-; sleep 1000")
        said = [host.event() for _ in range(3)]
        assert [(one.op, one.id, one.a, one.tail) for one in said] == [
            (frames.SAID, 7, 3, b"one"),
            (frames.SAID, 7, 3, b"two"),
            (frames.SAID, 7, 0, b""),
        ]


SENDS_DESCRIPTORS = """
import array, contextlib, os, signal, socket
control = socket.socket(fileno=3)
fds = [os.dup(1) for _ in range(200)]
for count in (1, 5, 6, 200):
    control.sendmsg([b"x" * count], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds[:count]))])
control.send(b"x" * 4096)
control.send(b"x" * 4097)
with contextlib.suppress(OSError):  # nobody may be listening any more
    control.send(b"end")
signal.pause()
"""


def test_descriptors_that_a_template_sends_are_closed_and_what_is_too_long_ends_nothing_else() -> None:
    with a_bare_host() as host:
        begin_template(host, sys.executable, "-S", "-c", SENDS_DESCRIPTORS)
        pump = pump_of(busy_reapers_of(host.process.pid)[0])
        said = []
        while True:
            event = host.event()
            assert (event.op, event.id, event.fds) == (frames.SAID, 7, [])
            if not event.a:
                break
            said.append(event.tail)
        assert said[:2] == [b"x", b"x" * 5]
        assert len(os.listdir(f"/proc/{pump}/fd")) < 50
        host.start(8, "true")
        assert host.over(8)[0][:2] == (frames.EXITED, 8)


@pytest.mark.parametrize("size", [10, limits.SPAWN_FRAME_BYTES, limits.TEMPLATE_REQUEST_BYTES])
def test_a_request_reaches_the_template_whole(size: int, tmp_path: Path) -> None:
    """With `go`, the worker's pipes and, where it is long, a file."""
    with a_bare_host() as host:
        program = RECEIVES.format(path=str(tmp_path / "got"))
        begin_template(host, sys.executable, "-S", "-c", program)
        go = ask_worker(host, 8, b"r" * size)
        client = None
        heard: list[tuple[int, int]] = []
        while sorted(heard) != [(frames.STARTED, 8), (frames.SAID, 7)]:
            event = host.event()
            heard.append((event.op, event.id))
            if event.op == frames.STARTED:
                host.places[8] = event.b
            else:
                count, length = map(int, event.tail.split())
        is_long = size > limits.SPAWN_FRAME_BYTES - 64
        assert (count, length) == (5 if is_long else 4, size)
        client = host.attach(8)
        assert client.recv(100) == b"out"
        assert client.recv(100) == b"", "its template has closed it again"
        client.close()
        go.close()


RECEIVES = """
import array, contextlib, os, signal, socket
control = socket.socket(fileno=3)
frame, extras, _, _ = control.recvmsg(65536, 1000)
fds = array.array("i")
fds.frombytes(extras[0][2])
length = len(frame)
if len(fds) == 5:
    import json
    length = os.fstat(fds[4]).st_size
    assert json.loads(frame) == {{"spilled": length}}
os.write(fds[2], b"out")
count = len(fds)
for fd in fds: os.close(fd)
control.send(b"%d %d" % (count, length))
signal.pause()
"""


@pytest.mark.parametrize("place", [0, 1, 4_000])
def test_a_worker_of_no_template_is_refused(place: int) -> None:
    with a_bare_host() as host:
        go = ask_worker(host, 8, place=place)
        assert host.event()[:4] == (frames.REFUSED, 8, errno.ESRCH, frames.STEP_PROCESS)
        assert go.recv(1) == b""
        go.close()
        host.start(9, "true")


def test_a_worker_of_a_command_that_is_no_template_is_refused() -> None:
    with a_bare_host(reapers=3) as host:
        host.start(7, "sleep", "1000")
        go = ask_worker(host, 8)
        assert host.event()[:4] == (frames.REFUSED, 8, errno.ESRCH, frames.STEP_PROCESS)
        assert go.recv(1) == b""
        go.close()


def test_a_template_that_never_takes_its_descriptors_harms_nobody() -> None:
    """Its socket holds some requests, and its pump some; whoever asks for more waits or is refused, and nobody else."""
    with a_bare_host(reapers=50) as host:
        begin_template(host, "sh", "-c", "exec sleep 1000")
        asked = {id: ask_worker(host, id, b"r" * 15_000) for id in range(8, 40)}
        host.send_start(50, "true")
        left = set(asked)
        while (event := host.event()).id != 50 or event.op != frames.EXITED:
            if event.op == frames.REFUSED:
                left.remove(event.id)
                assert event.a == errno.EAGAIN
        client = host.attach(7, 1)
        host.order(frames.END, 7, frames.LEVEL_KILL)
        while left:
            event = host.event()
            if event.op in (frames.REFUSED, frames.FREE):  # or it had them, and its pump sees their end
                left.discard(event.id)
        for go in asked.values():
            assert go.recv(1) == b""
            go.close()
        assert client.recv(1) == b""
        client.close()


def test_a_worker_that_its_template_s_pump_never_sees_is_refused() -> None:
    """Its streams are over, its tree is not: the pump waits for that, and what comes meanwhile is not to be lost."""
    with a_bare_host(reapers=4) as host:
        begin_template(host, "sh", "-c", "exec 1>&- 2>&- 3>&-; exec sleep 1000")
        assert host.event()[:3] == (frames.SAID, 7, 0)
        assert host.event()[:2] == (frames.FREE, 7)
        go = ask_worker(host, 8)
        first = host.event()
        host.order(frames.END, 7, frames.LEVEL_KILL)
        if first.op != frames.REFUSED:
            assert first[:2] == (frames.STARTED, 8)
            assert host.events(frames.REFUSED)[-1][1] == 8
        assert go.recv(1) == b""
        go.close()


# --- two things at once ---

SENDS_ITS_OUTPUT = """
import array, os, socket, time
control = socket.socket(fileno=3)
control.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))])
time.sleep(100)
"""


def test_descriptors_that_come_with_an_empty_frame_are_kept_by_nobody() -> None:
    """Else a template's pump would wait for the end of a pipe that it holds itself."""
    with a_bare_host() as host:
        begin_template(host, sys.executable, "-c", SENDS_ITS_OUTPUT)
        assert host.event()[:3] == (frames.SAID, 7, 0)
        host.order(frames.END, 7, frames.LEVEL_KILL)
        host.over(7)


FORKS_ONE = """
import os, socket, time
control = socket.socket(fileno=3)
if not os.fork():
    middle = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == middle:  # until it has fallen to the reaper
        time.sleep(0.001)
    control.send(b"%d" % os.getpid())
    control.close()
    os.closerange(1, 3)
os.wait() if control.fileno() >= 0 else None
time.sleep(100)
"""


def test_a_template_that_ended_refuses_requests_though_its_workers_live_on() -> None:
    with a_bare_host(3) as host:
        begin_template(host, sys.executable, "-c", FORKS_ONE)
        said = host.event()
        assert said.op == frames.SAID
        host.control.send(frames.control(frames.ADOPT, 2, int(said.tail), 7, host.places[7]))
        hear_until(host, frames.STARTED)
        host.order(frames.SIGNAL, 7, signal.SIGKILL)
        is_free = 0
        while not is_free:
            event = host.event()
            is_free = event.op == frames.FREE or (event.op == frames.EXITED and event.b & frames.WITH_FREE)
        ours = ask_worker(host, 3)
        assert hear_until(host, frames.REFUSED)[-1][:2] == (frames.REFUSED, 3)
        assert ours.recv(1) == b""
        ours.close()
        end(host, 7, frames.EMPTY)


async def test_many_workers_at_once_wait_for_their_template() -> None:
    """More than the socket by which pumps are reached holds messages."""
    async with a_rig() as rig:
        codes = [f"print({number})" for number in range(150)]
        for number, collected in enumerate(await asyncio.gather(*map(rig.collect, codes))):
            assert collected.stdout.head == b"%d\n" % number


HOLDS = (
    "import array, socket, time; c = socket.socket(fileno=3); keep = c.recvmsg(99, 99); c.send(b'has'); time.sleep(100)"
)


def test_a_pump_that_is_killed_with_a_workers_streams_is_told_and_its_client_reads_an_end() -> None:
    with a_bare_host(3) as host:
        begin_template(host, sys.executable, "-c", HOLDS)
        ours = ask_worker(host, 2)
        heard = hear_until(host, frames.STARTED, frames.SAID)
        host.places[2] = next(one[3] for one in heard if one[:2] == (frames.STARTED, 2))
        client = host.attach(2)
        host.order(frames.LOOK, 2)
        hear_until(host, frames.WAITING)
        reaper = children_of(host.process.pid)[host.places[2]]
        os.kill(children_of(reaper)[0], signal.SIGKILL)
        assert (frames.LOST, 2, 0, 0) in hear_until(host, frames.LOST)
        assert client.recv(1) == b""
        client.close()
        ours.close()
        end(host, 7)
