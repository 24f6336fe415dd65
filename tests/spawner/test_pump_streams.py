"""Who may connect to a process, and what its pump says of clients; then the same over a real spawner."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.poller import Poller
from fastclaw.processes.lane import Grace
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.spawner import frames, pump_streams
from fastclaw.spawner.pump_streams import SpawnStreams
from fastclaw.spawner.spawn_process import SpawnProcess
from tests.balance import open_descriptors
from tests.spawner.fake_spawner import busy_reapers_of, pump_of
from tests.spawner.locks import HOLD_S
from tests.spawner.rig import PATIENCE_S, a_host, settled, spec
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastclaw.processes.listeners import Listener, ProcessSockets
    from fastclaw.runtime import OnDisconnect
    from fastclaw.spawner.spawn_lane import SpawnLane
    from fastclaw.spawner.spawner_host import LocalHost

STDIO, STDERR = pump_streams.STDIO, pump_streams.STDERR


class Owner:
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


class FakePump:
    """Takes clients' sockets, which stay open until it is told to close them, and remembers its orders."""

    def __init__(self) -> None:
        self.clients: list[tuple[int, socket.socket]] = []
        self.orders: list[tuple[int, int]] = []
        self.came = asyncio.Event()
        self.refuses = False

    def attach(self, which: int, fd: int) -> None:
        taken = socket.socket(fileno=fd)
        if self.refuses:
            taken.close()
            raise ExecFailed("full", "overloaded")
        self.clients.append((which, taken))
        self.came.set()

    def order(self, op: int, a: int = 0) -> None:
        self.orders.append((op, a))

    async def client(self, count: int) -> tuple[int, socket.socket]:
        """The last one, when there are so many."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.clients) < count:
                self.came.clear()
                await self.came.wait()
        return self.clients[-1]

    def close(self) -> None:
        for _, client in self.clients:
            client.close()


class Scene:
    """Streams of a process that a fake pump has."""

    def __init__(self, sockets: ProcessSockets, watcher: Poller, on_disconnect: OnDisconnect) -> None:
        self.sockets, self.watcher = sockets, watcher
        self.owner, self.pump = Owner(), FakePump()
        pump: Any = self.pump  # it has what is used
        self.streams = SpawnStreams(pump, self.owner, sockets, watcher, on_disconnect)
        self._clients: list[socket.socket] = []

    def connect(self, which: int) -> socket.socket:
        client = connect(self.sockets[which])
        self._clients.append(client)
        return client

    async def join(self, which: int) -> socket.socket:
        """A client whose socket its pump has."""
        client = self.connect(which)
        assert (await self.pump.client(len(self.pump.clients) + 1))[0] == which
        return client

    def close(self) -> None:
        self.streams.close()
        self.pump.close()
        for client in self._clients:
            client.close()


def connect(listener: Listener) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    client.connect(listener.path)
    return client


async def read(client: socket.socket) -> bytes:
    """What comes next; empty at the end."""
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.get_running_loop().sock_recv(client, limits.PIPE_BYTES)


@asynccontextmanager
async def a_scene(short_dir: Path, on_disconnect: OnDisconnect = "eof") -> AsyncIterator[Scene]:
    directory, watcher = SocketDirectory(short_dir), Poller()
    scene = Scene(directory.open("p"), watcher, on_disconnect)
    try:
        yield scene
    finally:
        scene.close()
        watcher.close()
        directory.remove()


async def turn() -> None:
    """What is due has been done."""
    await turns(5)


# --- clients that come ---


@pytest.mark.parametrize("which", [STDIO, STDERR])
async def test_a_client_is_handed_over_with_its_socket(which: int, short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        ours = await scene.join(which)
        _, theirs = scene.pump.clients[0]
        assert not theirs.get_inheritable()
        theirs.send(b"from the pump")
        assert await read(ours) == b"from the pump"
        ours.send(b"to it")
        assert theirs.recv(100) == b"to it"
        assert scene.owner.clients == 1


async def test_a_second_client_reads_an_end_and_the_first_one_stays(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        first = await scene.join(STDIO)
        second = scene.connect(STDIO)
        assert await read(second) == b""
        await scene.join(STDERR)
        assert [which for which, _ in scene.pump.clients] == [STDIO, STDERR]
        scene.pump.clients[0][1].send(b"still there")
        assert await read(first) == b"still there"


async def test_the_next_one_may_come_when_it_has_left(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        await scene.join(STDIO)
        scene.streams.on_event(frames.LEFT, STDIO, 0)
        await scene.join(STDIO)
        assert scene.owner.told == []


async def test_somebody_else_s_client_is_turned_away(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_scene(short_dir) as scene:
        monkeypatch.setattr(pump_streams, "is_trusted_peer", lambda client: False)
        assert await read(scene.connect(STDIO)) == b""
        monkeypatch.undo()
        await scene.join(STDIO)


async def test_one_that_the_spawner_does_not_take_reads_an_end_and_may_come_again(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        scene.pump.refuses = True
        assert await read(scene.connect(STDIO)) == b""
        scene.pump.refuses = False
        await scene.join(STDIO)


async def test_without_a_descriptor_it_waits_and_the_loop_does_not_spin(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_RETRY_MS", 20)
    async with a_scene(short_dir) as scene:
        tries = 0
        accept = type(scene.sockets.stdio).accept

        def fail(listener: Listener) -> socket.socket:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise OSError(errno.EMFILE, "none left")
            return accept(listener)

        monkeypatch.setattr(type(scene.sockets.stdio), "accept", fail)
        await scene.join(STDIO)
        assert tries == 3


async def test_one_that_waited_when_all_was_closed_is_forgotten(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_RETRY_MS", 5)
    async with a_scene(short_dir) as scene:

        def fail(listener: Listener) -> socket.socket:
            raise OSError(errno.EMFILE, "none left")

        monkeypatch.setattr(type(scene.sockets.stdio), "accept", fail)
        scene.connect(STDIO)
        await turn()
        scene.streams.close()
        await asyncio.sleep(0.02)  # its time has come: nothing happens


# --- what its pump says ---


async def test_both_ends_are_all_there_is(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        await scene.join(STDIO)
        await scene.join(STDERR)
        scene.streams.on_event(frames.ENDED, STDIO, 0)
        scene.streams.on_event(frames.ENDED, STDIO, 0)
        assert (scene.streams.drained, scene.owner.told) == (False, [])
        scene.streams.on_event(frames.ENDED, STDERR, 0)
        scene.streams.on_event(frames.ENDED, STDERR, 0)
        assert (scene.streams.drained, scene.owner.told) == (True, ["drained"])


@pytest.mark.parametrize("which", [STDIO, STDERR])
@pytest.mark.parametrize("gap", [0, 1])
@pytest.mark.parametrize("on_disconnect", ["eof", "hold", "kill"])
async def test_one_that_leaves(which: int, gap: int, on_disconnect: OnDisconnect, short_dir: Path) -> None:
    async with a_scene(short_dir, on_disconnect) as scene:
        await scene.join(which)
        scene.streams.on_event(frames.LEFT, which, gap)
        abandoned = ["abandoned"] if on_disconnect == "kill" and which == STDIO else []
        assert scene.owner.told == ["gap"] * gap + abandoned


async def test_one_that_leaves_after_the_end_has_abandoned_nobody(short_dir: Path) -> None:
    async with a_scene(short_dir, "kill") as scene:
        await scene.join(STDIO)
        scene.streams.on_event(frames.ENDED, STDIO, 0)
        scene.streams.on_event(frames.LEFT, STDIO, 0)
        assert scene.owner.told == []


@pytest.mark.parametrize("op", [frames.GAP, frames.STUCK])
async def test_a_gap_is_passed_on(op: int, short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        await scene.join(STDIO)
        scene.streams.on_event(op, STDIO, 0)
        assert scene.owner.told == ["gap"]


async def test_whoever_comes_when_its_pump_is_free_reads_an_end_that_counts(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        scene.streams.on_free()
        assert not scene.streams.has_pending_output()
        for which in (STDIO, STDERR):
            assert scene.owner.told == []
            client = scene.connect(which)
            client.send(b"for nobody")
            assert await read(client) == b"", "and no reset"
        assert scene.owner.told == ["drained"]
        assert scene.pump.clients == []


async def test_who_is_there_when_its_pump_is_free_has_been_told(short_dir: Path) -> None:
    async with a_scene(short_dir, "kill") as scene:
        await scene.join(STDIO)
        await scene.join(STDERR)
        scene.streams.on_free()
        assert scene.owner.told == ["drained"]
        scene.streams.on_event(frames.LEFT, STDIO, 0)
        assert scene.owner.told == ["drained"], "it has left after the end"


@pytest.mark.parametrize("how", ["unread", "read", "over"])
async def test_a_pump_that_is_lost_leaves_a_gap_where_not_all_was_read(how: str, short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        for which in (STDIO, STDERR):
            await scene.join(which)
            if how == "read":
                scene.streams.on_event(frames.ENDED, which, 0)
        if how == "over":
            scene.streams.on_free()
        scene.owner.told.clear()
        scene.streams.on_lost()
        assert scene.owner.told == (["gap"] if how == "unread" else [])
        scene.streams.on_event(frames.LEFT, STDIO, 0)
        scene.streams.on_event(frames.LEFT, STDERR, 0)
        assert await read(scene.connect(STDIO)) == b""


async def test_whether_output_waits_is_what_its_pump_has_said(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        assert scene.streams.has_pending_output(), "nobody knows yet"
        assert scene.streams.look()
        scene.streams.on_event(frames.WAITING, 0, 0)
        assert not scene.streams.has_pending_output()
        scene.streams.on_event(frames.WAITING, 1, 0)
        assert scene.streams.has_pending_output()


async def test_two_looks_are_a_while_apart(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pump that is in the same call at two of them sleeps in it."""
    async with a_scene(short_dir) as scene:
        assert scene.streams.look()
        assert not scene.streams.look()
        assert scene.pump.orders == [(frames.LOOK, 0)]
        monkeypatch.setattr(limits, "PUMP_LOOK_MS", 2)
        await asyncio.sleep(0.01)
        assert scene.streams.look()
        scene.streams.on_free()
        await asyncio.sleep(0.01)
        assert not scene.streams.look(), "there is nothing to be seen any more"
        assert scene.pump.orders == [(frames.LOOK, 0)] * 2


async def test_an_output_is_unread_without_a_client_or_with_one_that_reads_nothing(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        assert (scene.streams.is_unread(), scene.streams.is_served()) == (True, False)
        await scene.join(STDIO)
        assert (scene.streams.is_unread(), scene.streams.is_served()) == (True, True)
        await scene.join(STDERR)
        assert not scene.streams.is_unread()
        scene.streams.on_event(frames.WAITING, 1, 1 << STDERR)
        assert scene.streams.is_unread()
        scene.streams.on_event(frames.WAITING, 1, 0)
        assert not scene.streams.is_unread()
        scene.streams.on_event(frames.LEFT, STDERR, 0)
        assert scene.streams.is_unread()
        scene.streams.on_event(frames.ENDED, STDIO, 0)
        assert not scene.streams.is_served()
        assert scene.owner.clients >= 5


async def test_a_pump_is_looked_at_as_long_as_somebody_waits_for_it(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its tree is gone, nothing but a pump that sleeps keeps its clients: main ends them then."""
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", 5)
    async with a_scene(short_dir) as scene:
        await asyncio.sleep(0.03)
        assert scene.pump.orders == [], "its tree is there"
        scene.streams.on_gone()
        await asyncio.sleep(0.03)
        assert scene.pump.orders == [], "nobody waits"
        await scene.join(STDIO)
        await until(lambda: len(scene.pump.orders) >= 3)
        assert set(scene.pump.orders) == {(frames.LOOK, 0)}
        scene.streams.on_free()
        scene.pump.orders.clear()
        await asyncio.sleep(0.03)
        assert scene.pump.orders == []


# --- the end ---


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("stalled", [0, 1, 2, 3])
async def test_closed_nobody_may_connect_and_its_pump_throws_away(stalled: int, cut: bool, short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        await scene.join(STDIO)
        await scene.join(STDERR)
        scene.streams.on_event(frames.WAITING, 1, stalled)
        before = open_descriptors()
        scene.streams.close(cut=cut)
        scene.streams.close(cut=cut)
        ends = bool(cut and stalled)
        assert scene.pump.orders == [(frames.RELEASE, int(ends))]
        assert scene.owner.told == (["gap"] if ends else [])
        assert len(before) - len(open_descriptors()) == 2
        for which in (STDIO, STDERR):
            with socket.socket(socket.AF_UNIX) as late, pytest.raises(FileNotFoundError):
                late.connect(scene.sockets[which].path)


async def test_one_that_has_closed_may_still_be_cut(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        await scene.join(STDIO)
        scene.streams.close()
        scene.streams.close(cut=True)
        assert (scene.pump.orders, scene.owner.told) == ([(frames.RELEASE, 0)], [])
        scene.streams.on_event(frames.WAITING, 1, 1 << STDIO)
        scene.streams.close(cut=True)
        assert (scene.pump.orders, scene.owner.told) == ([(frames.RELEASE, 0), (frames.RELEASE, 1)], ["gap"])


async def test_who_was_cut_has_abandoned_nobody(short_dir: Path) -> None:
    async with a_scene(short_dir, "kill") as scene:
        await scene.join(STDIO)
        scene.streams.on_event(frames.WAITING, 1, 1 << STDIO)
        scene.streams.close(cut=True)
        scene.streams.on_event(frames.LEFT, STDIO, 0)
        assert scene.owner.told == ["gap"]


async def test_closed_without_clients_there_is_no_gap(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        scene.streams.close(cut=True)
        assert scene.owner.told == []


async def test_closed_who_is_there_reads_on_and_what_is_told_of_it_counts(short_dir: Path) -> None:
    async with a_scene(short_dir, "kill") as scene:
        await scene.join(STDIO)
        await scene.join(STDERR)
        scene.streams.close()
        scene.streams.on_event(frames.LEFT, STDERR, 1)
        assert scene.owner.told == ["gap"]
        scene.streams.on_event(frames.ENDED, STDIO, 0)
        scene.streams.on_event(frames.LEFT, STDIO, 0)
        assert scene.owner.told == ["gap"]


async def test_closed_when_its_pump_is_free_it_is_told_nothing(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        scene.streams.on_free()
        scene.streams.close()
        assert scene.pump.orders == []


# --- over a real spawner ---


class Served:
    """A process with streams as the pool gives it some."""

    def __init__(self, process: SpawnProcess, directory: SocketDirectory, watcher: Poller, how: OnDisconnect) -> None:
        self.process, self.owner = process, Owner()
        self.sockets = directory.open("p")
        served = process.serve(self.owner, self.sockets, watcher, how)
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
        self.streams.close()
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
        self._watcher = Poller()
        self._served: list[tuple[Served, SocketDirectory]] = []

    async def start(self, *cmd: str, on_disconnect: OnDisconnect = "eof", **more: object) -> Served:
        process = await self._lane.start(spec(*cmd, holds_stdin=on_disconnect == "hold", **more), 0)
        assert isinstance(process, SpawnProcess)
        directory = SocketDirectory(self._short_dir)
        served = Served(process, directory, self._watcher, on_disconnect)
        self._served.append((served, directory))
        await process.started
        return served

    async def close(self) -> None:
        for served, directory in self._served:
            with contextlib.suppress(ExecFailed):
                await served.process.end_tree(Grace(0.0))
            served.close()
            directory.remove()
        self._watcher.close()


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
        served.streams.close()
        assert await served.exited() == 5
        await settled(host)
        assert served.owner.told == []


@pytest.mark.parametrize("cut", [False, True])
async def test_who_is_there_and_reads_reads_on_after_close(cut: bool, short_dir: Path) -> None:
    async with a_stage(short_dir) as (_, stage):
        served = await stage.start("sh", "-c", "echo up; read go; head -c 3000000 /dev/zero; exit 6")
        client = served.connect(STDIO)
        assert await read(client) == b"up\n"
        served.streams.close(cut=cut)
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
        served.streams.close(cut=True)
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
