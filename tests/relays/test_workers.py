"""Relay workers come up ahead of need, hold what is given to them, and may die without taking anybody else along."""

from __future__ import annotations

import os
import signal

import pytest

from fastclaw.errors import ExecFailed
from fastclaw.relays.workers import RemoteStreams, Worker
from tests.balance import balanced, children, open_descriptors
from tests.relays.rig import Owned, Yard, a_yard
from tests.transport.rig import until


def the_worker(yard: Yard) -> Worker:
    (worker,) = yard.relays._workers.values()
    return worker


async def test_nobody_is_started_as_long_as_there_is_room_here() -> None:
    async with balanced(), a_yard(here=100) as yard:
        before = children()
        for _ in range(10):
            await yard.place()
        assert children() == before
        assert yard.relays.health() == {"here": 10, "workers": [], "most_here": 100, "most_each": 100}


async def test_a_worker_holds_the_descriptors_and_we_do_not() -> None:
    async with balanced(), a_yard(here=0) as yard:
        await yard.place()
        before = set(open_descriptors())
        owned = await yard.place()
        assert isinstance(owned.streams, RemoteStreams)
        ours = {owned.stdin.fd, owned.stdout.fd, owned.stderr.fd}
        assert set(open_descriptors()) - before == ours
        assert yard.relays.health()["workers"] == [2]


async def test_here_first_then_one_worker_after_the_other_then_overloaded() -> None:
    async with balanced(), a_yard(here=1, each=2, workers=2) as yard:
        owned = [await yard.place() for _ in range(5)]
        assert yard.relays.health()["workers"] == [2, 2]
        with pytest.raises(ExecFailed) as raised:
            await yard.place()
        assert (raised.value.reason, raised.value.retryable) == ("overloaded", True)
        owned[1].streams.close()
        await yard.place()


async def test_what_finds_no_place_at_the_last_moment_is_closed() -> None:
    async with balanced(), a_yard(here=0, workers=0) as yard:
        owned = Owned()
        pipes = owned.set_up(yard.directory, "p")
        with pytest.raises(ExecFailed):
            yard.relays.place(owned, owned.sockets, pipes, "eof")
        assert not os.path.exists(owned.sockets.stdio.path)  # noqa: ASYNC240 - one stat
        owned.end()


async def test_a_worker_that_is_killed_ends_its_own_processes_and_another_comes() -> None:
    async with balanced(), a_yard(here=1, each=10, workers=1) as yard:
        kept, lost = await yard.place(), await yard.place()
        worker = the_worker(yard)
        os.kill(worker._child.pid, signal.SIGKILL)
        await lost.hears("abandoned")
        assert "gap" in lost.said
        assert kept.said == []
        with pytest.raises(BrokenPipeError):
            await lost.stdout.write(b"x" * 100_000)
        again = await yard.place()
        assert the_worker(yard) is not worker
        client = again.connect(again.sockets.stdio.path)
        await again.stdout.write(b"held")
        assert await client.read() == b"held"


async def test_a_worker_that_ends_before_it_is_ready_is_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclaw.relays.workers.sys.executable", "/bin/false")
    async with balanced(), a_yard(here=0) as yard:
        with pytest.raises(ExecFailed) as raised:
            await yard.place()
        assert raised.value.reason == "overloaded"


async def test_it_ignores_what_is_not_meant_for_it_and_ends_with_us() -> None:
    async with balanced(), a_yard(here=0) as yard:
        owned = await yard.place()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(the_worker(yard)._child.pid, signum)
        client = owned.connect(owned.sockets.stdio.path)
        await owned.stdout.write(b"alive")
        assert await client.read() == b"alive"


async def test_hundreds_at_once() -> None:
    async with balanced(), a_yard(here=100, each=400, workers=1) as yard:
        owned = [await yard.place() for _ in range(400)]
        clients = [one.connect(one.sockets.stdio.path) for one in owned]
        for number, one in enumerate(owned):
            await one.stdout.write(b"%d" % number)
        for number, client in enumerate(clients):
            assert await client.read() == b"%d" % number
        for one in owned:
            one.streams.close()
        await until(lambda: not list(yard.directory.path.iterdir()))
