"""Both ends of a spawner's sockets by hand: a fake spawner for our side, a bare host for the real one, and /proc."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.protocol import spawner as frames
from fastclaw.spawn.binary import find_spawner
from fastclaw.spawn.spawner import Spawner, greet
from fastclaw.transport.outbox import close_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CONTROL = struct.Struct("=4I")
_MAX_FDS = 8
PATIENCE_S = 10.0
"""What an event may take on a machine under load."""


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


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
        self.control.send(_CONTROL.pack(frames.HELLO, magic, version, facts) + tail)

    async def hear_welcome(self) -> tuple[int, ...]:
        """Its numbers; from then on there is a channel."""
        frame, (fd,) = await _hear(self.control)
        self.channel = socket.socket(fileno=fd)
        self.channel.setblocking(False)
        return _CONTROL.unpack(frame)

    async def hear_order(self) -> tuple[int, ...]:
        """op, id, a, b."""
        frame, fds = await _hear(self.control)
        close_all(fds)
        return _CONTROL.unpack_from(frame)

    async def hear_request(self) -> int:
        """The id of what is to be started."""
        assert self.channel is not None
        frame, fds = await _hear(self.channel)
        close_all(fds)
        numbers: tuple[int, ...] = _CONTROL.unpack_from(frame)
        assert numbers[0] == frames.START
        return numbers[1]

    async def grant_growth(self, number: int | None = None, errno: int = 0) -> None:
        """Answer the next order, which must be GROW."""
        op, id, wanted, _ = await self.hear_order()
        assert op == frames.GROW
        self.answer(id, errno, wanted if number is None else number)

    def answer(self, id: int, errno: int = 0, value: int = 0, fd: int | None = None) -> None:
        event = frames.EVENT.pack(frames.ANSWER, id, errno, value, 0, 0, 0)
        socket.send_fds(self.control, [event], [] if fd is None else [fd])

    def tell(self, op: int, id: int, a: int = 0, b: int = 0) -> None:
        assert self.channel is not None
        self.channel.send(frames.EVENT.pack(op, id, a, b, 1, 2, 3))

    def close(self) -> None:
        """The spawner's end. Idempotent."""
        self.control.close()
        if self.channel is not None:
            self.channel.close()


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
    task = asyncio.ensure_future(greet(fake.host, confine=False, keeper_uid=frames.NO_USER, on_end=on_end))
    await fake.hear_welcome()
    await fake.grant_growth()
    return await task


class BareHost:
    """A real spawner of one's own, frame by frame. Everything here blocks, for `PATIENCE_S` at most."""

    def __init__(self) -> None:
        binary = find_spawner()
        assert binary is not None
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen([binary, str(theirs.fileno())], pass_fds=[theirs.fileno()], env={"A": "b"})
        self.control.settimeout(PATIENCE_S)
        self.hello = frames.parse_hello(self.control.recv(limits.SPAWN_HELLO_BYTES))
        self.channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(PATIENCE_S)

    def welcome(self, keepers: int = 2) -> None:
        """Give it the channel, and let it make keepers."""
        socket.send_fds(
            self.control, [frames.welcome(confine=False, keeper_uid=frames.NO_USER)], [self._theirs.fileno()]
        )
        self._theirs.close()
        assert self.ask(frames.control(frames.GROW, 1, keepers))[:4] == (frames.ANSWER, 1, 0, keepers)

    def ask(self, frame: bytes) -> tuple[int, ...]:
        self.control.send(frame)
        return frames.EVENT.unpack(self.control.recv(frames.EVENT.size))

    def start(self, id: int, *cmd: str) -> int:
        """Start a command; returns the read end of a pipe that is closed when nobody of its tree is left."""
        read, write = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        frame = frames.start(id, frames.strings(cmd), frames.strings(["PATH=/usr/bin:/bin"])).frame
        socket.send_fds(self.channel, [frame], [null, write, write])
        close_all([null, write])
        assert self.event()[:2] == (frames.STARTED, id)
        return read

    def event(self) -> tuple[int, ...]:
        return frames.EVENT.unpack(self.channel.recv(frames.EVENT.size))

    def exit_code(self) -> int:
        """Wait for its end."""
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Let go of it. It ends by itself then."""
        for packets in (self.control, self.channel, self._theirs):
            packets.close()
        self.exit_code()


@contextmanager
def a_bare_host(keepers: int = 2) -> Iterator[BareHost]:
    host = BareHost()
    try:
        host.welcome(keepers)
        yield host
    finally:
        host.close()


def children_of(pid: int) -> list[int]:
    """By proc_pid_task(5); empty where there is no such process."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as listed:
                found += map(int, listed.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def descendants_of(pid: int) -> list[int]:
    """Everybody below, parents first."""
    found = children_of(pid)
    for one in found:
        found += children_of(one)
    return found


def keeper_of(spawner: int, command: int) -> int:
    """Which child of a spawner keeps a command."""
    return next(keeper for keeper in children_of(spawner) if command in children_of(keeper))


def state_of(pid: int) -> str:
    """Its letter by proc_pid_stat(5); empty where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_there(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    return state_of(pid) != ""


def has_not_ended(pid: int) -> bool:
    """The same without zombies: those of a dead spawner are init's to reap, whenever it pleases."""
    return state_of(pid) not in {"", "Z"}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what sends no event: /proc."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the kernel has no event for the end of a grandchild
            await asyncio.sleep(0.005)
