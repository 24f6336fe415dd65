"""Clients of a process over a real spawner, with the process served as the pool does it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.poller import Poller
from fastclaw.processes.lane import Grace
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.spawner.pump_streams import SpawnStreams
from fastclaw.spawner.spawn_process import SpawnProcess
from tests.balance import open_descriptors
from tests.spawner.fake_spawner import busy_reapers_of, pump_of
from tests.spawner.locks import HOLD_S
from tests.spawner.rig import PATIENCE_S, STDERR, STDIO, Owner, a_host, connect, read, settled, spec
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastclaw.runtime import OnDisconnect
    from fastclaw.spawner.spawn_lane import SpawnLane
    from fastclaw.spawner.spawner_host import LocalHost


class Served:
    """A process with streams as the pool gives it some."""

    def __init__(self, process: SpawnProcess, directory: SocketDirectory, poller: Poller, how: OnDisconnect) -> None:
        self.process, self.owner = process, Owner()
        self.sockets = directory.open("p")
        served = process.serve(self.owner, self.sockets, poller, how)
        assert isinstance(served, SpawnStreams)
        self.streams = served
        self._clients: list[socket.socket] = []

    def connect(self, which: int) -> socket.socket:
        client = connect(self.sockets[which])
        self._clients.append(client)
        return client

    async def exited(self) -> int | None:
        async with asyncio.timeout(PATIENCE_S):
            return (await asyncio.shield(self.process.exited)).exit_code

    def close(self) -> None:
        self.streams.release()
        for client in self._clients:
            client.close()


@asynccontextmanager
async def a_stage(short_dir: Path) -> AsyncIterator[tuple[LocalHost, Stage]]:
    async with a_host() as (host, lane):
        stage = Stage(lane, short_dir)
        try:
            yield host, stage
        finally:
            await stage.close()


class Stage:
    """Starts processes that are served."""

    def __init__(self, lane: SpawnLane, short_dir: Path) -> None:
        self._lane, self._short_dir = lane, short_dir
        self._poller = Poller()
        self._served: list[tuple[Served, SocketDirectory]] = []

    async def start(self, *cmd: str, on_disconnect: OnDisconnect = "eof", **more: object) -> Served:
        process = await self._lane.start(spec(*cmd, holds_stdin=on_disconnect == "hold", **more), 0)
        assert isinstance(process, SpawnProcess)
        directory = SocketDirectory(self._short_dir)
        served = Served(process, directory, self._poller, on_disconnect)
        self._served.append((served, directory))
        await process.started
        return served

    async def close(self) -> None:
        for served, directory in self._served:
            with contextlib.suppress(ExecFailed):
                await served.process.end_tree(Grace(0.0))
            served.close()
            directory.close()
        self._poller.close()


async def test_a_conversation_to_its_end(short_dir: Path) -> None:
    async with a_stage(short_dir) as (host, stage):
        served = await stage.start("sh", "-c", "echo bad >&2; cat; exit 7")
        out, err = served.connect(STDIO), served.connect(STDERR)
        assert await read(err) == b"bad\n"
        out.send(b"in")
        assert await read(out) == b"in"
        out.shutdown(socket.SHUT_WR)
        assert (await read(out), await read(err)) == (b"", b"")
        assert await served.exited() == 7
        await served.owner.heard("drained")
        assert served.owner.told == ["drained"]
        await settled(host)


async def test_output_waits_for_a_client_and_is_there_after_the_end(short_dir: Path) -> None:
    async with a_stage(short_dir) as (_, stage):
        served = await stage.start("sh", "-c", "echo one; echo two >&2; exit 3")
        assert await served.exited() == 3
        assert served.streams.has_pending_output()
        out = served.connect(STDIO)
        assert (await read(out), await read(out)) == (b"one\n", b"")
        assert served.owner.told == []
        err = served.connect(STDERR)
        assert (await read(err), await read(err)) == (b"two\n", b"")
        await served.owner.heard("drained")


async def test_a_second_client_is_refused_and_the_next_one_gets_the_rest(short_dir: Path) -> None:
    async with a_stage(short_dir) as (_, stage):
        served = await stage.start("sh", "-c", "echo one; read x; echo two", on_disconnect="hold")
        first = served.connect(STDIO)
        assert await read(first) == b"one\n"
        assert await read(served.connect(STDIO)) == b""
        before = served.owner.clients
        first.close()
        await served.owner.changed(before)
        third = served.connect(STDIO)
        third.send(b"\n")
        assert await read(third) == b"two\n"
        assert served.owner.told == []


@pytest.mark.parametrize("on_disconnect", ["eof", "hold", "kill"])
async def test_what_a_client_that_leaves_means(on_disconnect: OnDisconnect, short_dir: Path) -> None:
    async with a_stage(short_dir) as (_, stage):
        served = await stage.start("sh", "-c", "echo up; cat; echo end >&2; exit 4", on_disconnect=on_disconnect)
        client = served.connect(STDIO)
        assert await read(client) == b"up\n"
        before = served.owner.clients
        client.close()
        if on_disconnect == "kill":
            await served.owner.heard("abandoned")
        elif on_disconnect == "eof":
            assert await served.exited() == 4
        else:
            await served.owner.changed(before)
            err, second = served.connect(STDERR), served.connect(STDIO)
            second.send(b"more")
            assert await read(second) == b"more"
            second.shutdown(socket.SHUT_WR)
            assert await read(err) == b"end\n"
        told = [word for word in served.owner.told if word != "drained"]  # which may be told by now
        assert told == (["abandoned"] if on_disconnect == "kill" else [])


async def test_output_that_a_client_left_in_its_socket_is_a_gap(short_dir: Path) -> None:
    async with a_stage(short_dir) as (_, stage):
        served = await stage.start("sh", "-c", "echo one; exec sleep 1000")
        client = served.connect(STDIO)
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.get_running_loop().sock_recv(client, 1) != b"o":
                pass
        client.close()
        await served.owner.heard("gap")


async def test_what_nobody_reads_is_thrown_away_after_close(short_dir: Path) -> None:
    async with a_stage(short_dir) as (host, stage):
        served = await stage.start("sh", "-c", "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 5")
        served.streams.release()
        assert await served.exited() == 5
        await settled(host)
        assert served.owner.told == []


@pytest.mark.parametrize("cut", [False, True])
async def test_who_is_there_and_reads_reads_on_after_close(cut: bool, short_dir: Path) -> None:
    async with a_stage(short_dir) as (_, stage):
        served = await stage.start("sh", "-c", "echo up; read go; head -c 3000000 /dev/zero; exit 6")
        client = served.connect(STDIO)
        assert await read(client) == b"up\n"
        served.streams.release(cut=cut)
        client.send(b"go\n")
        data = bytearray()
        while part := await read(client):
            data += part
        assert data == bytes(3_000_000)
        assert await served.exited() == 6
        assert served.owner.told == []


async def test_a_client_that_reads_nothing_is_seen_and_ended_by_a_cut(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", 40)
    async with a_stage(short_dir) as (host, stage):
        served = await stage.start("sh", "-c", "head -c 3000000 /dev/zero; exit 6")
        client, other = served.connect(STDIO), served.connect(STDERR)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_recv(client, 1)
            while not served.streams.is_unread():
                served.streams.look()
                await asyncio.sleep(0.01)
        assert not served.process.exited.done()
        served.streams.release(cut=True)
        assert await served.exited() == 6
        assert await read(other) == b""
        await settled(host)
        assert served.owner.told == ["gap"]
        data = 1
        while part := await read(client):
            data += len(part)
        assert data < 3_000_000


async def test_a_client_that_reads_slowly_is_none_that_reads_nothing(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", 40)
    async with a_stage(short_dir) as (_, stage):
        served = await stage.start("sh", "-c", "head -c 3000000 /dev/zero; exit 6")
        client, _other = served.connect(STDIO), served.connect(STDERR)
        for _ in range(10):
            await read(client)
            served.streams.look()
            await asyncio.sleep(0.025)
            await read(client)
            assert not served.streams.is_unread()


async def test_killed_in_the_middle_its_pump_leaves_a_gap(short_dir: Path) -> None:
    async with a_stage(short_dir) as (host, stage):
        served = await stage.start("sh", "-c", "echo out; exec sleep 1000")
        client = served.connect(STDIO)
        assert await read(client) == b"out\n"
        (reaper,) = busy_reapers_of(host.pid)
        os.kill(pump_of(reaper), signal.SIGKILL)
        assert await read(client) == b""
        await served.owner.heard("gap")
        async with asyncio.timeout(PATIENCE_S):
            assert (await asyncio.shield(served.process.exited)).signal == signal.SIGKILL
        await settled(host)
        assert await read(served.connect(STDERR)) == b""


NEIGHBOUR = f"""
import os, signal, socket, sys
ours, theirs = socket.socketpair()
fd = os.open(f"/proc/{{sys.argv[1]}}/fd/1", os.O_WRONLY)
signal.alarm({HOLD_S})
os.write(1, b"open\\n")
sys.stdin.readline()
os.write(fd, b"x")
os.splice(theirs.fileno(), fd, 1)
"""
"""Holds another's stdout, and locks it when it is told to."""


async def test_a_pump_that_sleeps_keeps_no_client_when_its_tree_is_gone(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour of the same user has its pipe, by name, and locks it: nobody but main can end the client then."""
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", 20)
    async with a_stage(short_dir) as (host, stage):
        victim = await stage.start("sh", "-c", "echo $$; exec sleep 1000")
        client = victim.connect(STDIO)
        pid = int(await read(client))
        neighbour = await stage.start(sys.executable, "-S", "-c", NEIGHBOUR, str(pid))
        other = neighbour.connect(STDIO)
        assert await read(other) == b"open\n"
        async with asyncio.timeout(PATIENCE_S):
            await victim.process.end_tree(Grace(0.0))
            await asyncio.shield(victim.process.exited)
        other.send(b"go\n")
        assert await read(client) in (b"", b"x")
        async with asyncio.timeout(PATIENCE_S):
            while await read(client):
                pass
        await victim.owner.heard("gap")
        second = await stage.start("echo", "on")
        assert await read(second.connect(STDIO)) == b"on\n"
        await neighbour.process.end_tree(Grace(0.0))
        await settled(host)


async def test_bulk_goes_both_ways_at_once_and_is_whole(short_dir: Path) -> None:
    size = 20 * limits.MIB
    async with a_stage(short_dir) as (_, stage):
        served = await stage.start("sh", "-c", "tee /dev/stderr")
        out, err = served.connect(STDIO), served.connect(STDERR)
        block = os.urandom(limits.MIB)
        loop = asyncio.get_running_loop()

        async def feed() -> None:
            for _ in range(size // len(block)):
                await loop.sock_sendall(out, block)
            out.shutdown(socket.SHUT_WR)

        async def drain(client: socket.socket) -> bytes:
            data = bytearray()
            while part := await read(client):
                data += part
            return bytes(data)

        _, one, two = await asyncio.gather(feed(), drain(out), drain(err))
        assert one == two == block * (size // len(block))


async def test_hundreds_of_clients_come_and_go_and_nothing_is_left(short_dir: Path) -> None:
    async with a_stage(short_dir) as (host, stage):
        served = await stage.start("cat", on_disconnect="hold")
        before = open_descriptors()
        (reaper,) = busy_reapers_of(host.pid)
        for _ in range(300):
            client = served.connect(STDIO)
            with contextlib.suppress(OSError):
                client.send(b"x")
            client.close()
            await asyncio.sleep(0)
        await until(lambda: len(os.listdir(f"/proc/{pump_of(reaper)}/fd")) < 50)
        await until(lambda: open_descriptors() == before)
        assert served.owner.told in ([], ["gap"]) or set(served.owner.told) == {"gap"}
