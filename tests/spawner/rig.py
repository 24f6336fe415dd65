"""This host as the lane's host, and one process of it from its start to its end, with a client on each stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import ExitStatus, Grace, LaneProcess, StartSpec, StreamsOwner
from fastclaw.processes.relayed_streams import PipedProcess
from fastclaw.spawner.spawn_lane import SpawnLane
from fastclaw.spawner.spawn_process import SpawnProcess
from fastclaw.spawner.spawner_host import LocalHost
from tests.balance import balanced
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.processes.listeners import Listener

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as somebody else")

PATIENCE_S = 20.0
"""For an event, on a machine under load."""
STDIO, STDERR = 0, 1


@asynccontextmanager
async def a_host(collect_bytes: int = limits.RUN_OUTPUT_BYTES) -> AsyncIterator[tuple[LocalHost, SpawnLane]]:
    """A spawner of this host and its lane, which leave nothing behind."""
    async with balanced():
        host = LocalHost(collect_bytes=collect_bytes)
        await host.start()
        try:
            yield host, SpawnLane(host, can_set_user=True)
        finally:
            await host.aclose()


@asynccontextmanager
async def a_lane() -> AsyncIterator[SpawnLane]:
    """The same for who needs the lane alone."""
    async with a_host() as (_, lane):
        yield lane


class Client:
    """One end of a stream of a process, whose pump has the other."""

    def __init__(self, process: SpawnProcess, which: int) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        with contextlib.suppress(ExecFailed):  # its spawner has ended: so has the stream
            process.attach(which, theirs.detach())

    async def read(self) -> bytes:
        """What comes next; empty at the end."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._loop.sock_recv(self.socket, limits.PIPE_BYTES)

    async def read_all(self) -> bytes:
        """Up to the end."""
        data = bytearray()
        while part := await self.read():
            data += part
        return bytes(data)

    async def read_until(self, wanted: bytes) -> bytes:
        """Up to these bytes, or the end, and what came along."""
        data = b""
        while wanted not in data and (part := await self.read()):
            data += part
        return data

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._loop.sock_sendall(self.socket, data)

    def send_eof(self) -> None:
        with contextlib.suppress(OSError):  # the other end is gone already
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Idempotent."""
        self.socket.close()


class Running:
    """A process that runs, and its clients."""

    def __init__(self, process: SpawnProcess) -> None:
        self.process = process
        self.stdio = Client(process, STDIO)
        self.stderr = Client(process, STDERR)

    @property
    def is_gone(self) -> bool:
        return self.process.is_gone

    async def exited(self) -> ExitStatus:
        """How the command has ended, as soon as it has."""
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.shield(self.process.exited)

    async def finish(self, stdin: bytes = b"") -> tuple[ExitStatus, bytes, bytes]:
        """Its input, all its output, and its end."""
        sending = asyncio.ensure_future(self._feed(stdin))
        try:
            out, err = await asyncio.gather(self.stdio.read_all(), self.stderr.read_all())
        finally:
            await sending
        status = await self.exited()
        self.close()
        return status, out, err

    async def _feed(self, stdin: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            await self.stdio.send(stdin)
        self.stdio.send_eof()

    async def line(self) -> bytes:
        """What it writes next."""
        return await self.stdio.read()

    async def end(self, grace_s: float = 0) -> None:
        """End its tree. The clients stay."""
        await self.process.end_tree(Grace(asyncio.get_running_loop().time() + grace_s))

    async def end_and_close(self) -> None:
        await self.end()
        self.close()

    def signal(self, signum: int, *, group: bool = False) -> None:
        self.process.signal(signum, group=group)

    def close(self) -> None:
        """Let go of its streams."""
        self.stdio.close()
        self.stderr.close()


# --- a process that is served, as the pool does it ---


class Owner(StreamsOwner):
    """Remembers what it is told. `clients`: how often that something has changed about them."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.clients = 0
        self.news = asyncio.Event()

    def on_abandoned(self) -> None:
        self._tell("abandoned")

    def on_gap(self) -> None:
        self._tell("gap")

    def on_drained(self) -> None:
        self._tell("drained")

    def on_clients(self) -> None:
        self.clients += 1
        self.news.set()

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self.news.set()

    async def changed(self, before: int) -> None:
        """Until more was told of clients than this."""
        async with asyncio.timeout(PATIENCE_S):
            while self.clients <= before:
                self.news.clear()
                await self.news.wait()

    async def heard(self, what: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while what not in self.told:
                self.news.clear()
                await self.news.wait()


def connect(listener: Listener) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    client.connect(listener.path)
    return client


async def read(client: socket.socket) -> bytes:
    """What comes next; empty at the end."""
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.get_running_loop().sock_recv(client, limits.PIPE_BYTES)


# --- starting ---


def spec(*cmd: str, **more: object) -> StartSpec:
    return StartSpec(process_id=uuid4().hex, cmd=list(cmd), **{"env": {}, **more})  # type: ignore[arg-type]  # shorthand


async def start(lane: SpawnLane, *cmd: str, **more: object) -> Running:
    return await start_spec(lane, spec(*cmd, **more))


async def start_spec(lane: SpawnLane, spec: StartSpec) -> Running:
    """Start a command and wait until it runs."""
    process = await lane.start(spec, 0)
    assert isinstance(process, SpawnProcess)
    await process.started
    return Running(process)


async def run(lane: SpawnLane, *cmd: str, stdin: bytes = b"", **more: object) -> tuple[ExitStatus, bytes, bytes]:
    return await (await start(lane, *cmd, **more)).finish(stdin)


async def settled(host: LocalHost, kept: int = 0) -> None:
    """Until no more than this is kept, of which nobody is told."""
    await until(lambda: host.spawner.counts()["kept"] <= kept)


# --- any lane's process ---


async def finish(process: LaneProcess, stdin: bytes = b"") -> tuple[ExitStatus, bytes, bytes]:
    """A process's input, all its output, and its end, whoever has its pipes."""
    if isinstance(process, SpawnProcess):
        return await Running(process).finish(stdin)
    assert isinstance(process, PipedProcess)
    if process.stdin_fd is not None:
        if stdin:
            os.write(process.stdin_fd, stdin)
        os.close(process.stdin_fd)
    out, err = await asyncio.gather(read_all(process.stdout_fd), read_all(process.stderr_fd))
    status = await asyncio.wait_for(asyncio.shield(process.exited), PATIENCE_S)
    closing = process.aclose()
    if closing is not None:
        await closing
    return status, out, err


async def read_all(fd: int) -> bytes:
    """Everything up to EOF, then close."""
    loop, data = asyncio.get_running_loop(), b""
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            with contextlib.suppress(BlockingIOError):
                part = os.read(fd, limits.PIPE_BYTES)
                if not part:
                    return data
                data += part
    finally:
        loop.remove_reader(fd)
        os.close(fd)
