"""Who may connect to a process, and what its pump says of clients, with a fake pump."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.poller import Poller
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.spawner import frames, pump_streams
from fastclaw.spawner.pump_streams import SpawnStreams
from tests.balance import open_descriptors
from tests.spawner.rig import PATIENCE_S, STDERR, STDIO, Owner, connect, read
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastclaw.processes.listeners import Listener, ProcessSockets
    from fastclaw.runtime import OnDisconnect


class FakePump:
    """Takes clients' sockets, which stay open until it is told to close them, and remembers its orders."""

    def __init__(self) -> None:
        self.clients: list[tuple[int, socket.socket]] = []
        self.orders: list[tuple[int, int]] = []
        self.came = asyncio.Event()
        self.refuses = False
        self.spawner = SimpleNamespace(is_gvisor=False)

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

    def __init__(self, sockets: ProcessSockets, poller: Poller, on_disconnect: OnDisconnect) -> None:
        self.sockets, self.poller = sockets, poller
        self.owner, self.pump = Owner(), FakePump()
        pump: Any = self.pump  # it has what is used
        self.streams = SpawnStreams(pump, self.owner, sockets, poller, on_disconnect)
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
        self.streams.release()
        self.pump.close()
        for client in self._clients:
            client.close()


@asynccontextmanager
async def a_scene(short_dir: Path, on_disconnect: OnDisconnect = "eof") -> AsyncIterator[Scene]:
    directory, poller = SocketDirectory(short_dir), Poller()
    scene = Scene(directory.open("p"), poller, on_disconnect)
    try:
        yield scene
    finally:
        scene.close()
        poller.close()
        directory.close()


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
        scene.streams.release()
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
        scene.streams.release(cut=cut)
        scene.streams.release(cut=cut)
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
        scene.streams.release()
        scene.streams.release(cut=True)
        assert (scene.pump.orders, scene.owner.told) == ([(frames.RELEASE, 0)], [])
        scene.streams.on_event(frames.WAITING, 1, 1 << STDIO)
        scene.streams.release(cut=True)
        assert (scene.pump.orders, scene.owner.told) == ([(frames.RELEASE, 0), (frames.RELEASE, 1)], ["gap"])


async def test_who_was_cut_has_abandoned_nobody(short_dir: Path) -> None:
    async with a_scene(short_dir, "kill") as scene:
        await scene.join(STDIO)
        scene.streams.on_event(frames.WAITING, 1, 1 << STDIO)
        scene.streams.release(cut=True)
        scene.streams.on_event(frames.LEFT, STDIO, 0)
        assert scene.owner.told == ["gap"]


async def test_closed_without_clients_there_is_no_gap(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        scene.streams.release(cut=True)
        assert scene.owner.told == []


async def test_closed_who_is_there_reads_on_and_what_is_told_of_it_counts(short_dir: Path) -> None:
    async with a_scene(short_dir, "kill") as scene:
        await scene.join(STDIO)
        await scene.join(STDERR)
        scene.streams.release()
        scene.streams.on_event(frames.LEFT, STDERR, 1)
        assert scene.owner.told == ["gap"]
        scene.streams.on_event(frames.ENDED, STDIO, 0)
        scene.streams.on_event(frames.LEFT, STDIO, 0)
        assert scene.owner.told == ["gap"]


async def test_closed_when_its_pump_is_free_it_is_told_nothing(short_dir: Path) -> None:
    async with a_scene(short_dir) as scene:
        scene.streams.on_free()
        scene.streams.release()
        assert scene.pump.orders == []
