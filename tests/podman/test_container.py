"""One container on a real Podman: up, watched, killed, removed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import FastclawError, StartFailed
from fastclaw.podman import container as shard_module
from fastclaw.podman.api import JSON
from tests.podman.fleet import Fleet
from tests.podman.test_sandbox import handles
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from podman.api.client import APIClient

    from fastclaw.podman.container import Shard
    from tests.engine_fixtures import EngineService

pytestmark = pytest.mark.podman


@pytest.fixture
async def fleet(engine_service: EngineService) -> AsyncIterator[Fleet]:
    """Afterwards the engine must have none of its containers left."""
    one = Fleet(engine_service)
    yield one
    assert await one.containers() == set()
    await one.engine.close()


class Deaths:
    """Counts."""

    def __init__(self) -> None:
        self.count = 0
        self.first = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.first.set()


async def command(shard: Shard, *words: str) -> None:
    """Start a command in it that nobody attends to."""

    def start(client: APIClient) -> None:
        created = client.post(f"/containers/{shard.container}/exec", data=json.dumps({"Cmd": [*words]}), headers=JSON)
        client.post(
            f"/exec/{created.json()['Id']}/start", data=json.dumps({"Detach": True}), headers=JSON
        ).raise_for_status()

    await shard._engine._run(start)


async def test_up_and_away(fleet: Fleet) -> None:
    deaths = Deaths()
    shard = fleet.make(0, deaths)
    assert (shard.container, shard.alive) == ("", False)
    await shard.start()
    assert (shard.alive, shard.is_local) == (True, True)
    assert await fleet.containers() == {shard.container}
    await shard.remove()
    assert not shard.alive
    assert await fleet.containers() == set()
    await shard.remove()
    assert deaths.count == 0


async def test_one_that_never_started_is_removed_without_a_word(fleet: Fleet) -> None:
    await fleet.make(0, Deaths()).remove()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_its_end_is_noticed_at_once_and_once(fleet: Fleet, signum: signal.Signals) -> None:
    deaths = Deaths()
    shard = fleet.make(0, deaths)
    await shard.start()
    while not shard_handles(await fleet.init_of(shard.container), signum):  # noqa: ASYNC110 - /proc sends no event
        await asyncio.sleep(0.01)
    os.kill(await fleet.init_of(shard.container), signum)
    await asyncio.wait_for(deaths.first.wait(), 2)
    assert not shard.alive
    shard.mark_dead()
    assert deaths.count == 1
    await shard.remove()


def shard_handles(pid: int, signum: int) -> bool:
    """PID 1 is not even sent a signal that it does not handle yet (pid_namespaces(7)), KILL from outside apart."""
    with open(f"/proc/{pid}/status") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    return signum == signal.SIGKILL or handles(status, signum)


async def test_idle_means_that_only_its_init_runs(fleet: Fleet) -> None:
    shard = fleet.make(0, Deaths())
    await shard.start()
    assert await shard.is_idle()
    await command(shard, "sleep", "1000")
    assert not await shard.is_idle()
    await shard.remove()
    assert not await shard.is_idle()


async def test_kill_ends_everything_in_it(fleet: Fleet) -> None:
    deaths = Deaths()
    shard = fleet.make(0, deaths)
    await shard.start()
    await command(shard, "sleep", "1000")
    await shard.kill()
    await asyncio.wait_for(deaths.first.wait(), 2)
    await shard.kill()
    await shard.remove()


async def test_an_engine_elsewhere_is_asked_to_kill(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the number of its init means nothing here, or somebody else."""
    monkeypatch.setattr(shard_module, "_PROC", tmp_path)
    shard = fleet.make(0, Deaths())
    await shard.start()
    assert (shard.alive, shard.is_local, shard._pidfd) == (True, False, None)
    await shard.kill()
    await shard.remove()


async def test_a_container_that_ends_at_once(fleet: Fleet) -> None:
    fleet.override = {"entrypoint": ["/bin/true"]}
    shard = fleet.make(0, Deaths())
    with pytest.raises(StartFailed):
        await shard.start()
    assert not shard.alive
    await shard.remove()


async def test_an_image_that_is_not_there(fleet: Fleet) -> None:
    fleet.override = {"image": "localhost/none:latest"}
    shard = fleet.make(0, Deaths())
    with pytest.raises(StartFailed) as caught:
        await shard.start()
    assert caught.value.reason == "image_not_found"
    await shard.remove()


async def test_no_descriptor_left_to_watch_with(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    shard = fleet.make(0, Deaths())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", none_left)
        with pytest.raises(FastclawError, match="Too many open files"):
            await shard.start()
    await shard.remove()


@pytest.mark.parametrize("stage", ["creating", "starting"])
async def test_a_cancelled_start_leaves_nothing_once_removed(fleet: Fleet, stage: str) -> None:
    shard = fleet.make(0, Deaths())
    starting = asyncio.create_task(shard.start())
    await getattr(fleet.engine, stage).wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await shard.remove()
    assert await fleet.containers() == set()


async def test_a_creation_that_hangs_is_given_up(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ABANDONED_START_MS", 50)
    cancelled = asyncio.Event()

    async def hang(spec: object) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    monkeypatch.setattr(fleet.engine, "create_container", hang)
    shard = fleet.make(0, Deaths())
    starting = asyncio.create_task(shard.start())
    await until(lambda: shard._creation is not None)
    starting.cancel()
    await asyncio.wait([starting])
    await asyncio.wait_for(shard.remove(), 2)
    assert cancelled.is_set()
