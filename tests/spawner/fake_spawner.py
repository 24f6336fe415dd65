"""Both ends of a spawner's sockets by hand: a fake spawner for our side, a bare host for the real one, and /proc."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.linux.packets import close_all
from fastclaw.spawner import frames
from fastclaw.spawner.link import Spawner, greet
from fastclaw.spawner.spawner_host import find_spawner
from tests.pids import children_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_HELLO = struct.Struct("=4IQ")
_CONTROL = struct.Struct("=5I")
_MAX_FDS = 8
PATIENCE_S = 10.0
"""What an event may take on a machine under load."""
ROOM_BYTES = 1024 * limits.MIB
"""For what all runs of a bare host collect."""


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


class Welcome(NamedTuple):
    """The numbers of a WELCOME."""

    op: int
    version: int
    flags: int
    uid: int
    collect_bytes: int
    capabilities: int = 0
    unused: int = 0


class FakeSpawner:
    """Says and hears frames in a spawner's place.

    Attributes:
        host: the end that `greet` takes over.
        control, channel: our ends; the channel comes with the welcome.
    """

    def __init__(self) -> None:
        self.host, self.control = pair()
        self.channel: socket.socket | None = None

    def say_hello(
        self, tail: bytes = b"", *, magic: int = frames.MAGIC, version: int = frames.VERSION, facts: int = 3
    ) -> None:
        self.control.send(_HELLO.pack(frames.HELLO, magic, version, facts, 0) + tail)

    async def hear_welcome(self) -> Welcome:
        """From then on there is a channel."""
        frame, (fd,) = await _hear(self.control)
        self.channel = socket.socket(fileno=fd)
        self.channel.setblocking(False)
        return Welcome._make(struct.unpack("=4IQ2I", frame))

    async def hear_order(self) -> tuple[int, ...]:
        """op, id, a, b, place. Descriptors that come along are closed."""
        frame, fds = await _hear(self.control)
        close_all(fds)
        return _CONTROL.unpack_from(frame)

    async def hear_client(self) -> tuple[tuple[int, ...], socket.socket]:
        """An ATTACH, and the socket that came along."""
        frame, (fd,) = await _hear(self.control)
        numbers: tuple[int, ...] = _CONTROL.unpack(frame)
        assert numbers[0] == frames.ATTACH
        return numbers, socket.socket(fileno=fd)

    async def hear_request(self) -> int:
        """The id of what is to be started."""
        assert self.channel is not None
        frame, fds = await _hear(self.channel)
        close_all(fds)
        op, id = struct.unpack_from("=2I", frame)
        assert op == frames.START
        return int(id)

    async def hear_read(self) -> tuple[int, bytes, int]:
        """A READ: its id, its path, and the file that is to be filled."""
        assert self.channel is not None
        frame, (fd,) = await _hear(self.channel)
        op, id, *_ = _CONTROL.unpack_from(frame)
        assert op == frames.READ
        return id, frame[_CONTROL.size :], fd

    async def grant_growth(self, number: int | None = None, errno: int = 0) -> None:
        """Answer the next order, which must be GROW."""
        op, id, wanted, *_ = await self.hear_order()
        assert op == frames.GROW
        self.answer(id, errno, wanted if number is None else number)

    def answer(self, id: int, errno: int = 0, value: int = 0, fd: int | None = None) -> None:
        event = frames.EVENT.pack(frames.ANSWER, id, errno, value, *bytes(8))
        socket.send_fds(self.control, [event], [] if fd is None else [fd])

    def tell(
        self,
        op: int,
        id: int,
        a: int = 0,
        b: int = 0,
        tail: bytes = b"",
        fds: Sequence[int] = (),
        reached: Sequence[int] = (0,) * 5,
    ) -> None:
        """`reached`: when each stage was, from `stages.TAKEN` on."""
        assert self.channel is not None
        socket.send_fds(self.channel, [frames.EVENT.pack(op, id, a, b, 1, 2, 3, *reached) + tail], list(fds))

    def close(self) -> None:
        """The spawner's end. Idempotent."""
        self.control.close()
        if self.channel is not None:
            self.channel.close()


def outputs(stdout: bytes = b"", stderr: bytes = b"", totals: tuple[int, int] | None = None) -> bytes:
    """What follows the event in a DONE. `totals`: of what there was more of."""
    total = totals or (len(stdout), len(stderr))
    return frames.TOTALS.pack(*total, len(stdout), len(stderr)) + stdout + stderr


async def _hear(packets: socket.socket) -> tuple[bytes, list[int]]:
    await _readable(packets)
    frame, fds, _, _ = socket.recv_fds(packets, limits.SPAWN_FRAME_BYTES, _MAX_FDS)
    return frame, list(fds)


async def _readable(packets: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(packets.fileno(), ready.set)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
    finally:
        loop.remove_reader(packets.fileno())


def nothing() -> None:
    """For who does not care about the end."""


async def greeted(fake: FakeSpawner, on_end: Callable[[], None] = nothing) -> Spawner:
    """Shake hands with a fake that does all it should."""
    fake.say_hello()
    task = asyncio.ensure_future(
        greet(fake.host, confine=False, reaper_uid=frames.NO_USER, collect_bytes=limits.MIB, on_end=on_end)
    )
    await fake.hear_welcome()
    await fake.grant_growth()
    return await task


class Event(NamedTuple):
    """What a spawner says, and what came along."""

    op: int
    id: int
    a: int
    b: int
    user_us: int
    system_us: int
    max_rss_kb: int
    reached: list[int]
    tail: bytes
    fds: list[int]


class BareHost:
    """A real spawner of one's own, frame by frame. Everything here blocks, for `PATIENCE_S` at most.

    Parameters:
        before: words of a command that executes the spawner in the end: `unshare`, say.
    """

    def __init__(self, *before: str) -> None:
        binary = find_spawner()
        assert binary is not None
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [*before, str(binary), str(theirs.fileno())]
            self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env={"A": "b"}, stdin=subprocess.PIPE)
        self.control.settimeout(PATIENCE_S)
        self.channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(PATIENCE_S)
        self.places: dict[int, int] = {}
        self._early: deque[Event] = deque()

    def greet(self) -> frames.Hello:
        """Hear its greeting."""
        return frames.parse_hello(self.control.recv(limits.SPAWN_HELLO_BYTES))

    def send_welcome(
        self, *, confine: bool = False, uid: int = frames.NO_USER, collect_bytes: int = ROOM_BYTES
    ) -> None:
        """Give it the channel."""
        welcome = frames.welcome(confine=confine, reaper_uid=uid, collect_bytes=collect_bytes)
        socket.send_fds(self.control, [welcome], [self._theirs.fileno()])
        self._theirs.close()

    def grow(self, reapers: int) -> None:
        """Let it make reapers."""
        assert self.ask(frames.control(frames.GROW, 1, reapers))[:4] == (frames.ANSWER, 1, 0, reapers)

    def ask(self, frame: bytes) -> tuple[int, ...]:
        self.control.send(frame)
        return frames.EVENT.unpack(self.control.recv(frames.EVENT.size))

    def order(self, op: int, id: int = 0, a: int = 0, b: int = 0, *, fds: Sequence[int] = ()) -> None:
        """One that is not answered, with the place of the process it is about."""
        frame = frames.control(op, id, a, b, self.places.get(id, frames.NOWHERE))
        socket.send_fds(self.control, [frame], list(fds))

    def request(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        """To whichever pump is idle."""
        socket.send_fds(self.channel, [frame], list(fds))

    def send_start(self, id: int, *cmd: str, flags: int = 0, env: str = "PATH=/usr/bin:/bin", **more: object) -> None:
        """Ask for a command; nothing is waited for."""
        made = frames.start(id, frames.strings(cmd), frames.strings([env]), flags=flags, **more)  # type: ignore[arg-type]  # passed on
        self.request(made.frame, fds := [_file(data) for data in made.files])
        close_all(fds)

    def start(self, id: int, *cmd: str, flags: int = 0, **more: object) -> None:
        """Start a command, which runs when this returns, or has ended. What is told before that comes next."""
        self.send_start(id, *cmd, flags=flags, **more)  # type: ignore[arg-type]  # passed on
        while (event := self._receive())[:2] != (frames.STARTED, id):
            assert event[:2] != (frames.REFUSED, id), event
            self._early.append(event)
        self.places[id] = event.b

    def attach(self, id: int, which: int = 0, given: bytes = b"") -> socket.socket:
        """A client on one of its streams, which has sent something already."""
        ours, theirs = socket.socketpair()
        ours.send(given)
        with theirs:
            self.order(frames.ATTACH, id, which, fds=[theirs.fileno()])
        ours.settimeout(PATIENCE_S)
        return ours

    def read(self, id: int, path: bytes) -> tuple[int, bytes]:
        """A file as a pump sees it: errno and content."""
        file = os.memfd_create("read")
        try:
            self.request(frames.control(frames.READ, id, tail=path + b"\0"), [file])
            event = self.event()
            assert event[:2] == (frames.ANSWER, id)
            assert event.b == os.fstat(file).st_size
            return event.a, os.pread(file, limits.SPAWN_FILE_BYTES + 1, 0)
        finally:
            os.close(file)

    def event(self) -> Event:
        """What it says next. Descriptors that come along are the caller's."""
        return self._early.popleft() if self._early else self._receive()

    def _receive(self) -> Event:
        frame, fds, _, _ = socket.recv_fds(self.channel, frames.EVENT_BYTES, _MAX_FDS)
        assert frame, "it has ended"
        values = frames.EVENT.unpack_from(frame)
        return Event._make((*values[:7], list(values[7:]), frame[frames.EVENT.size :], list(fds)))

    def events(self, *ends: int) -> list[tuple[int, ...]]:
        """op, id, a, b of all that it says, until the last of `ends`, one after the other, has come."""
        heard: list[tuple[int, ...]] = []
        for end in ends:
            while True:
                heard.append(self.event()[:4])
                if heard[-1][0] == end:
                    break
        return heard

    def over(self, id: int) -> list[Event]:
        """All that it says until nothing of a process is left, of its tree or its streams; its end comes first."""
        heard: list[Event] = []
        left = {frames.EXITED, frames.EMPTY, frames.FREE}
        while left:
            event = self.event()
            heard.append(event)
            if event.id == id:
                left.discard(frames.EXITED if event.op == frames.DONE else event.op)
                if event.op in (frames.EXITED, frames.DONE):
                    left -= {frames.EMPTY} if event.b & frames.WITH_EMPTY else set()
                    left -= {frames.FREE} if event.b & frames.WITH_FREE else set()
        return sorted(heard, key=lambda event: event.op not in (frames.EXITED, frames.DONE) or event.id != id)

    def has_news(self) -> bool:
        """Whether it has said something that was not heard yet. What was asked of main before this has been done."""
        if self._early:
            return True
        self.ask(frames.control(frames.PING, 1))
        self.channel.setblocking(False)
        try:
            return bool(self.channel.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self.channel.settimeout(PATIENCE_S)

    def drain(self) -> None:
        """Pass over what was said until now."""
        while self.has_news():
            close_all(self.event().fds)

    def exit_code(self) -> int:
        """Wait for its end."""
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Let go of it. It ends by itself then."""
        for packets in (self.control, self.channel, self._theirs):
            packets.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.exit_code()


def _file(data: bytes) -> int:
    file = os.memfd_create("start")
    with open(file, "wb", closefd=False) as writable:
        writable.write(data)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def hear_until(host: BareHost, *ops: int) -> list[tuple[int, ...]]:
    """All that is said until each of `ops` has been."""
    heard: list[tuple[int, ...]] = []
    while not set(ops) <= {op for op, *_ in heard}:
        event = host.event()
        close_all(event.fds)
        heard.append(event[:4])
    return heard


def end(host: BareHost, id: int, op: int = frames.EXITED) -> list[tuple[int, ...]]:
    """KILL it; what is said until it has ended."""
    host.order(frames.END, id, frames.LEVEL_KILL)
    return hear_until(host, op)


@contextmanager
def a_bare_host(reapers: int = 2, *, collect_bytes: int = ROOM_BYTES) -> Iterator[BareHost]:
    host = BareHost()
    try:
        host.greet()
        host.send_welcome(collect_bytes=collect_bytes)
        host.grow(reapers)
        yield host
    finally:
        host.close()


# --- /proc ---


def pump_of(reaper: int) -> int:
    """Its first child: it is there before any command."""
    return children_of(reaper)[0]


def pumps_of(spawner: int) -> list[int]:
    """All of them. A reaper that is just being made has none yet."""
    return [pump for reaper in children_of(spawner) for pump in children_of(reaper)[:1]]


def commands_of(reaper: int) -> list[int]:
    """What a reaper keeps, without its pump."""
    return children_of(reaper)[1:]


def busy_reapers_of(spawner: int) -> list[int]:
    """Those that keep something."""
    return [reaper for reaper in children_of(spawner) if commands_of(reaper)]


def reaper_of(spawner: int, command: int) -> int:
    """Which child of a spawner keeps a command."""
    return next(reaper for reaper in children_of(spawner) if command in children_of(reaper))
