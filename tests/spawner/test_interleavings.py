"""The real spawner where two things happen at once: no end is told twice or never, and nobody's event is another's.

tests/spawner/fuzz finds such orders by chance; those that were found, there or by reading the sources, are brought
about here.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.linux.packets import close_all
from fastclaw.processes.lane import Collection
from fastclaw.spawner import frames
from tests.pids import children_of, state_of
from tests.spawner.fake_spawner import (
    PATIENCE_S,
    BareHost,
    a_bare_host,
    busy_reapers_of,
    commands_of,
    end,
    hear_until,
    pump_of,
)
from tests.spawner.rig import needs_root
from tests.spawner.test_templates import a_rig
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STDIO, STDERR = 0, 1
PLENTY = 1_000_000
"""More than pipe and socket hold."""
BATCH = 24
"""See spawner.h."""
AT_ONCE_S = 1.0
"""Half of what main gives one reaper, READY_MS in main.c."""
ROUNDS = 2_000
"""Of something that goes wrong once in some hundred times."""
DEAF = 300
"""Sleeping pumps: one buffer has room for what 27 of them have not heard."""
MOST_UNHEARD = 10
"""See MAX_UNHEARD in spawner.h."""
MESSAGES = 1_000
"""More than two sockets' buffers hold: 212 992 bytes, at least 768 for each (socket(7), SO_SNDBUF)."""


def wait_unread(client: socket.socket, least: int) -> None:
    """Until so many bytes of output wait in a client's socket."""
    until = time.monotonic() + PATIENCE_S
    waiting = array.array("i", [0])
    while waiting[0] < least:
        assert time.monotonic() < until
        fcntl.ioctl(client, termios.FIONREAD, waiting)


def wait_stalled(host: BareHost, id: int) -> None:
    """Look until its client is one that reads nothing: to begin with something still moves."""
    until = time.monotonic() + PATIENCE_S
    stalled = 0
    while not stalled & 1 << STDIO:
        assert time.monotonic() < until
        host.order(frames.LOOK, id)
        op, _, _, stalled = host.event()[:4]
        assert op == frames.WAITING


def fill(client: socket.socket) -> int:
    """Send until nothing more goes: what the process does not read stays in the socket."""
    client.setblocking(False)
    sent = 0
    deadline = time.monotonic() + 0.05  # the pump takes what the process's pipe holds
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            sent += client.send(b"x" * 65536)
            deadline = time.monotonic() + 0.05
    return sent


def test_who_is_killed_before_it_has_its_pump_is_not_waited_for() -> None:
    """Main heeds no order while reapers come up, and root inside may have the right to kill them all the time."""
    with a_bare_host() as host:
        for _ in range(ROUNDS):
            begun = time.monotonic()
            host.control.send(frames.control(frames.GROW, 1, 2 * BATCH))
            while not select.select([host.control], [], [], 0)[0]:
                for pid in children_of(host.process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            op, _, error, added = frames.EVENT.unpack(host.control.recv(frames.EVENT.size))[:4]
            assert op == frames.ANSWER
            assert time.monotonic() < begun + AT_ONCE_S
            while host.has_news():
                assert host.event()[0] == frames.LOST
            if added < 2 * BATCH:
                assert error == errno.EAGAIN
                return
    pytest.fail("all of them had their pumps before they were killed")


# --- clients ---


def test_what_a_client_left_unread_is_told_whoever_sees_first_that_it_is_gone() -> None:
    with a_bare_host() as host:
        host.start(1, "sh", "-c", "exec cat /dev/zero >&2", flags=frames.FLAG_NULL_STDIN)
        for _ in range(ROUNDS):
            client = host.attach(1, STDERR)
            wait_unread(client, 1)
            client.close()
            after = host.attach(1, STDERR)  # served once what is to be said of the one before has been
            heard = hear_until(host, frames.LEFT)
            after.recv(1)
            while host.has_news():
                heard.append(host.event()[:4])
            assert (frames.GAP, 1, STDERR, 0) in heard or (frames.LEFT, 1, STDERR, 1) in heard
            after.shutdown(socket.SHUT_RDWR)
            after.close()
            hear_until(host, frames.LEFT)
        end(host, 1)


def test_a_client_that_takes_no_more_and_reads_what_it_has_leaves_the_rest_to_the_next() -> None:
    with a_bare_host() as host:
        host.start(1, "sh", "-c", f"head -c {PLENTY} /dev/zero; exec sleep 100")
        client = host.attach(1)
        wait_stalled(host, 1)
        client.shutdown(socket.SHUT_RD)
        read = 0
        while data := client.recv(limits.COPY_CHUNK_BYTES):
            read += len(data)
        wait_stalled(host, 1)
        client.close()
        assert hear_until(host, frames.LEFT) == [(frames.LEFT, 1, STDIO, 0)]
        after = host.attach(1)
        while read < PLENTY:
            read += len(after.recv(limits.COPY_CHUNK_BYTES))
        after.close()
        assert hear_until(host, frames.LEFT) == [(frames.LEFT, 1, STDIO, 0)]
        end(host, 1)


def test_the_last_input_of_a_client_that_left_says_nothing_of_the_next() -> None:
    command = "kill -STOP $$; exec 0<&-; exec sleep 100"
    with a_bare_host() as host:
        for id in range(1, 16):
            host.start(id, "sh", "-c", command, flags=frames.FLAG_HOLD)
            gone, here = host.attach(id), None
            assert fill(gone) > 65536
            gone.close()
            assert hear_until(host, frames.LEFT)[-1] == (frames.LEFT, id, STDIO, 0)
            here = host.attach(id)
            host.order(frames.LOOK, id)
            assert host.event()[:2] == (frames.WAITING, id)
            host.order(frames.SIGNAL, id, signal.SIGCONT)  # it closes its stdin, and the old client's input is dropped
            with contextlib.suppress(BrokenPipeError):
                while here.send(b"x"):
                    pass
            host.order(frames.LOOK, id)
            assert host.event()[:2] == (frames.WAITING, id)
            assert not host.has_news()
            host.order(frames.END, id, frames.LEVEL_KILL)
            host.over(id)
            here.close()
            while host.has_news():
                host.event()


def test_a_client_that_is_cut_off_reads_its_end_though_it_may_still_send() -> None:
    with a_bare_host() as host:
        host.start(1, "cat", "/dev/zero")
        client = host.attach(1)
        wait_stalled(host, 1)
        host.order(frames.RELEASE, 1, 1)
        while client.recv(limits.COPY_CHUNK_BYTES):
            pass
        assert host.event()[:4] == (frames.LEFT, 1, STDIO, 0)
        client.close()
        late = host.attach(1)
        assert late.recv(1) == b""
        assert host.event()[:4] == (frames.LEFT, 1, STDIO, 0)
        late.close()
        end(host, 1)


def test_a_client_that_comes_too_late_reads_an_end_and_no_reset() -> None:
    with a_bare_host() as host:
        host.start(1, "true", flags=frames.FLAG_NULL_STDIN)
        host.over(1)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.send(b"for nobody")
            host.order(frames.ATTACH, 1, STDIO, fds=[theirs.fileno()])
            theirs.close()
            assert ours.recv(1) == b""
        if (event := host.event()).op == frames.ENDED:  # its pump had not let go of the slot yet
            event = host.event()
        assert event[:4] == (frames.LEFT, 1, STDIO, 0)


SEND_MESSAGE = {"x86_64": 46, "aarch64": 211}
"""The number of sendmsg."""


@contextlib.contextmanager
def a_traced(pid: int) -> Iterator[Callable[[], None]]:
    """Holds it where it is; what is yielded lets it go on, until it is about to send a message (ptrace(2))."""
    seize, interrupt, to_next_call, call_info, detach = 0x4206, 0x4207, 24, 0x420E, 17
    tells_calls = 1  # PTRACE_O_TRACESYSGOOD: without it a stop is not known to be a call's
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    info = struct.Struct("=BxxxIQQQ")  # op: 1 on the way in; arch, ip, sp, number: struct ptrace_syscall_info
    room = ctypes.create_string_buffer(info.size)

    def ask(request: int, addr: int = 0, data: ctypes.Array[ctypes.c_char] | int = 0) -> None:
        assert libc.ptrace(request, pid, addr, data) >= 0, os.strerror(ctypes.get_errno())

    def go_on() -> None:
        while True:
            ask(to_next_call)
            os.waitpid(pid, 0)
            ask(call_info, info.size, room)
            op, _, _, _, number = info.unpack(room.raw)
            if op == 1 and number == SEND_MESSAGE[os.uname().machine]:
                return

    ask(seize, 0, tells_calls)
    ask(interrupt)
    os.waitpid(pid, 0)
    try:
        yield go_on
    finally:
        ask(detach)


@needs_root
def test_a_client_whose_slot_goes_to_another_while_it_is_handed_over_reads_an_end() -> None:
    """The next one there is refused, so that nobody looks for clients, and the streams are not over but never were."""
    with a_bare_host(1) as host:
        host.start(1, "sleep", "1000")
        (reaper,) = children_of(host.process.pid)
        (command,) = commands_of(reaper)
        with a_traced(host.process.pid) as to_its_message:
            client = host.attach(1)
            to_its_message()
            os.kill(command, signal.SIGKILL)
            host.over(1)
            host.send_start(2, "/no/such/program")
            assert host.event()[:2] == (frames.REFUSED, 2)
            host.read(3, b"/no/such/file")  # by the same pump: it has given the slot back
        assert client.recv(1) == b""
        assert host.events(frames.LEFT) == [(frames.ENDED, 1, STDIO, 0), (frames.LEFT, 1, STDIO, 0)]
        client.close()


def test_pumps_that_hear_nothing_keep_nobody_from_another() -> None:
    """What they have not heard lies in buffers (socket(7), SO_SNDBUF), which must have room for all of them."""
    with a_bare_host(DEAF + 1) as host:
        clients = []
        for id in range(1, DEAF + 1):
            host.start(id, "sleep", "100")
        for reaper in busy_reapers_of(host.process.pid):
            os.kill(pump_of(reaper), signal.SIGSTOP)
        for id in range(1, DEAF + 1):
            clients += [host.attach(id) for _ in range(MOST_UNHEARD)]
        too_many = host.attach(DEAF)
        assert too_many.recv(1) == b""
        host.start(DEAF + 1, "cat")
        with host.attach(DEAF + 1, given=b"heard") as client:
            assert client.recv(5) == b"heard"
        for reaper in busy_reapers_of(host.process.pid):
            os.kill(pump_of(reaper), signal.SIGCONT)
        assert {client.recv(1) for client in clients[1:MOST_UNHEARD]} == {b""}, "one is there already"
        close_all(client.detach() for client in [*clients, too_many])


# --- orders to a pump that does not keep up ---


@contextlib.contextmanager
def a_silenced_pump(host: BareHost, id: int) -> Iterator[set[int]]:
    """It waits to say something that nobody hears, and what it is sent stays unread. Yields what is heard later."""
    heard: set[int] = set()
    for _ in range(MESSAGES):
        host.order(frames.LOOK, id)
        host.ask(frames.control(frames.PING, 1))  # so that each is one message
    yield heard
    while host.has_news():
        heard.add(host.event().op)


def test_what_is_ordered_is_not_lost_where_a_pump_does_not_keep_up() -> None:
    with a_bare_host() as host:
        host.start(1, "sh", "-c", "echo unread; sleep 100 <&- >/dev/null 2>&1 &")
        hear_until(host, frames.EXITED)
        with a_silenced_pump(host, 1) as heard:
            host.order(frames.RELEASE, 1, 0)
        if frames.FREE not in heard:
            hear_until(host, frames.FREE)
        end(host, 1, frames.EMPTY)


def test_the_last_size_of_a_terminal_is_its_size_where_a_pump_does_not_keep_up() -> None:
    with a_bare_host() as host:
        host.send_start(1, "sh", "-c", "read line; stty size", tty=(24, 80))
        started = host.event()
        assert started[:2] == (frames.STARTED, 1)
        host.places[1] = started.b
        with a_silenced_pump(host, 1):
            for rows in range(1, MESSAGES + 1):
                host.order(frames.RESIZE, 1, rows << 16 | 10)
        client = host.attach(1)
        client.sendall(b"\n")
        said = b""
        while part := client.recv(1000):
            said += part
        assert b"%d 10" % MESSAGES in said
        client.close()


# --- runs ---


def collect_start(host: BareHost, id: int, *cmd: str, flags: int = 0, **more: object) -> None:
    host.send_start(id, *cmd, flags=flags, collection=Collection(**more))  # type: ignore[arg-type]  # passed on


def test_a_run_that_never_pauses_is_told_to_have_started() -> None:
    with a_bare_host() as host:
        collect_start(host, 1, "cat", "/dev/zero", output_limit=1000)
        assert host.event()[:2] == (frames.STARTED, 1)
        end(host, 1, frames.DONE)


def test_what_an_orphan_writes_after_the_answer_counts_for_nothing() -> None:
    """It is not over the limit, and not in the bytes that all runs may collect."""
    orphan = "(kill -STOP $BASHPID; head -c 4000000; exec sleep 100) </dev/zero & head -c 20000 /dev/zero"
    with a_bare_host(collect_bytes=100_000) as host:
        collect_start(host, 1, "bash", "-c", orphan, output_limit=1 << 20, on_limit="kill", drain_ms=50)
        heard = hear_until(host, frames.DONE)
        assert heard[-1][3] & (frames.LIMITED | frames.OVERLOADED) == 0
        stopped = one_below(host)
        os.kill(stopped, signal.SIGCONT)
        deadline = time.monotonic() + PATIENCE_S
        while "sleep" not in name_of(stopped):
            assert time.monotonic() < deadline, "it was ended"
            time.sleep(0.01)
        collect_start(host, 2, "head", "-c", "50000", "/dev/zero", output_limit=1 << 20)
        done = hear_until(host, frames.DONE)[-1]
        assert done[:3] == (frames.DONE, 2, 0)
        assert done[3] & frames.OVERLOADED == 0
        end(host, 1, frames.EMPTY)


def one_below(host: BareHost) -> int:
    """The process that a run has left, which has stopped itself."""
    for reaper in children_of(host.process.pid):
        for pid in children_of(reaper):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "T":
                    return pid
    raise AssertionError("nobody has stopped")


def name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as name:
        return name.read()


def test_all_that_a_command_wrote_is_collected_though_its_pump_is_late() -> None:
    """The time to drain is over at once; the pump, which stood still meanwhile, takes what is there all the same."""
    command = "kill -STOP $$; head -c 60000 /dev/zero; sleep 100 >&2 &"
    with a_bare_host() as host:
        collect_start(host, 1, "sh", "-c", command, output_limit=1 << 20, drain_ms=0)
        assert host.event()[:2] == (frames.STARTED, 1)
        pump, shell = sorted(
            pid for reaper in children_of(host.process.pid) if len(pids := children_of(reaper)) > 1 for pid in pids
        )
        wait_state(shell, "T")
        os.kill(pump, signal.SIGSTOP)
        wait_state(pump, "T")
        os.kill(shell, signal.SIGCONT)
        assert host.event()[:2] == (frames.EXITED, 1)
        os.kill(pump, signal.SIGCONT)
        event = host.event()
        while event.op != frames.DONE:
            close_all(event.fds)
            event = host.event()
        is_late = bool(event.b & frames.INCOMPLETE)  # this test, on a machine under load
        assert is_late or frames.TOTALS.unpack_from(event.tail)[0] == 60000
        end(host, 1, frames.EMPTY)


async def test_a_worker_over_its_limit_is_ended() -> None:
    async with a_rig() as rig:
        code = "import sys, time; print('x' * 100_000, flush=True); time.sleep(100)"
        collected = await rig.collect(code, output_limit=1000, on_limit="kill")
        assert collected.limited
        assert collected.status.signal == signal.SIGKILL


# --- main ---

LOCKS = """
import ctypes, os, socket, sys
idle, _ = socket.socketpair()
pipe = os.open(f"/proc/{sys.argv[1]}/fd/1", os.O_WRONLY)
print("has it", flush=True)
sys.stdin.read(1)
ctypes.CDLL(None).splice(idle.fileno(), None, pipe, None, 1, 0)
"""


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        user, system = map(int, stat.read().rpartition(")")[2].split()[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what the command itself cannot be")
def test_main_waits_for_what_cannot_be_ended_now_without_going_round() -> None:
    """A pump that sleeps in a pipe that a neighbour has locked, and whose reaper was killed."""
    with a_bare_host(3) as host:
        host.start(1, "sh", "-c", "echo unread; kill -STOP $$; exec >&-; exec sleep 100")
        pump, command = sorted(children_of(reaper_of(host, 1)))
        wait_state(command, "T")
        host.start(2, sys.executable, "-c", LOCKS, str(command))
        locker = host.attach(2)
        assert locker.recv(100) == b"has it\n"
        host.order(frames.SIGNAL, 1, signal.SIGCONT)
        while "sleep" not in name_of(command):
            time.sleep(0.01)
        locker.send(b"x")
        time.sleep(0.3)  # until it is in its splice: there is no event for that
        client = host.attach(1)
        wait_state(pump, "D")
        os.kill(reaper_of(host, 1), signal.SIGKILL)
        time.sleep(0.1)
        before = cpu_s(host.process.pid)
        time.sleep(1)
        assert cpu_s(host.process.pid) - before < 0.15
        host.order(frames.END, 2, frames.LEVEL_KILL)
        assert (frames.LOST, 1, 0, 0) in hear_until(host, frames.EXITED, frames.LOST)
        assert client.recv(1) == b""
        client.close()
        locker.close()


def wait_state(pid: int, state: str) -> None:
    """As /proc/PID/stat has it."""
    wait_until(lambda: state_of(pid) == state)


def reaper_of(host: BareHost, id: int) -> int:
    return children_of(host.process.pid)[host.places[id]]
