"""The containers of an environment on a real Podman: rotation, revival, and nothing left at the end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.engine.container import Container
from fastclaw.engine.containers import Containers, SpawnerSlot
from fastclaw.engine.rest_lane.rest import RestLane
from fastclaw.engine.rest_lane.trees import end_tree
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.linux.helper import pause_s
from tests.engine.fleet import PATIENCE_S
from tests.engine.rest_lane.rest_rig import complete, grace, spec
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastclaw.engine.rest_lane.rest import RestProcess
    from tests.engine.fleet import Fleet

DAEMON = "setsid sleep 1000 </dev/null >/dev/null 2>&1 &"


class Yard:
    """Containers of the REST lane that are up, and a lane over them.

    Attributes:
        looks: what each look at a draining container found.
    """

    def __init__(self, fleet: Fleet, places: int) -> None:
        self.fleet = fleet
        self.containers = Containers(places, fleet.make, wears=True)
        self.lane = RestLane(fleet.engine.url, self.containers, local=True)
        self.looks: list[bool] = []

    def container(self, place: int = 0) -> str:
        """That takes the next exec."""
        container = self.containers.slots[place].container
        assert container is not None
        return container.id

    def usable(self) -> int:
        """How many take execs."""
        return self.containers.counts()["usable"]

    async def start(self, *cmd: str, place: int = 0) -> RestProcess:
        """A process whose streams nobody wants."""
        process = await self.lane.start(spec(*cmd), place)
        process.close_streams()
        return process

    async def run(self, *cmd: str, place: int = 0) -> bytes:
        """A command to its end; its stdout."""
        out, err, status = await complete(await self.lane.start(spec(*cmd), place))
        assert (err, status.exit_code) == (b"", 0)
        return out

    async def wear(self, place: int = 0, execs: int = 3) -> None:
        """Use a container up, as `EXECS_PER_CONTAINER` says here, and return once its successor has taken over."""
        old = self.container(place)
        for _ in range(execs):
            await self.run("true", place=place)
        await until(lambda: self.container(place) != old)

    async def kill_from_outside(self, place: int = 0) -> str:
        """Returns the container that is dead now."""
        container = self.container(place)
        os.kill(await self.fleet.init_of(container), signal.SIGKILL)
        return container


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few execs wear a container, and pauses are short."""
    monkeypatch.setattr(limits, "EXECS_PER_CONTAINER", 3)
    monkeypatch.setattr(limits, "DRAIN_LOOK_MS", 20)
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 20)


@pytest.fixture
def places() -> int:
    """To be overridden by parametrization."""
    return 1


@pytest.fixture
async def yard(fleet: Fleet, places: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Yard]:
    """Up; afterwards the engine must have no container of it."""
    one = Yard(fleet, places)
    look = Container.is_idle

    async def noted(container: Container) -> bool:
        one.looks.append(await look(container))
        return one.looks[-1]

    monkeypatch.setattr(Container, "is_idle", noted)
    await one.containers.start()
    yield one
    await one.lane.aclose()
    await one.containers.aclose()


@pytest.mark.parametrize("places", [2])
async def test_each_place_has_a_container_of_its_own(yard: Yard) -> None:
    assert len(yard.containers) == 2
    assert yard.containers.is_local
    assert yard.containers.counts() == {"places": 2, "usable": 2, "containers": 2}
    first, second, third = (yard.containers.take(index) for index in range(3))
    assert {first.id, second.id} == await yard.fleet.containers()
    assert third is first
    assert (first.live, second.live) == (2, 1)
    for taken in (first, second, third):
        taken.give_back()


async def test_a_worn_container_is_followed_and_removed(yard: Yard) -> None:
    old = yard.container()
    await yard.wear()
    await yard.fleet.only(yard.container())
    assert yard.container() != old
    await until(lambda: yard.containers.counts() == {"places": 1, "usable": 1, "containers": 1})
    assert await yard.run("echo", "on") == b"on\n"


async def test_execs_go_on_while_the_successor_comes_up(yard: Yard) -> None:
    words = [f"{number}\n".encode() for number in range(12)]
    assert [await yard.run("echo", word.decode().strip()) for word in words] == words


async def test_a_worn_container_stays_while_a_process_lives_in_it(yard: Yard) -> None:
    old = yard.container()
    live = await yard.start("sleep", "1000")
    await yard.wear(execs=2)
    assert yard.containers.counts()["containers"] == 2
    assert await yard.fleet.containers() == {old, yard.container()}
    assert not live.exited.done()
    await live.end_tree(grace())
    assert (await live.exited).exit_code == 128 + signal.SIGKILL
    assert old in await yard.fleet.containers(), "its process is not given back yet"
    await live.aclose()
    await yard.fleet.only(yard.container())


async def test_a_worn_container_stays_while_a_daemon_lives_in_it(yard: Yard) -> None:
    old = yard.container()
    leaving = spec("sh", "-c", DAEMON)
    await complete(await yard.lane.start(leaving, 0))
    await yard.wear(execs=2)
    await until(lambda: yard.looks.count(False) >= 3)
    assert await yard.fleet.containers() == {old, yard.container()}
    await end_tree(leaving.process_id, None, grace())
    await yard.fleet.only(yard.container())
    assert yard.looks[-1]


async def test_a_draining_container_that_dies_is_not_followed_again(yard: Yard) -> None:
    live = await yard.start("sleep", "1000")
    old = yard.container()
    await yard.wear(execs=2)
    successor = yard.container()
    os.kill(await yard.fleet.init_of(old), signal.SIGKILL)
    assert (await asyncio.wait_for(live.exited, PATIENCE_S)).reason == "container_gone"
    await live.aclose()
    await yard.fleet.only(successor)
    assert yard.container() == successor


async def test_a_container_killed_from_outside_is_noticed_and_replaced(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 300)
    live = await yard.start("sleep", "1000")
    began = time.monotonic()
    dead = await yard.kill_from_outside()
    await until(lambda: yard.usable() == 0)
    assert time.monotonic() - began < 2
    with pytest.raises(ExecFailed) as caught:
        await yard.run("true")
    assert (caught.value.reason, caught.value.retryable) == ("container_gone", True)
    status = await asyncio.wait_for(live.exited, PATIENCE_S)
    assert (status.reason, status.exit_code) == ("container_gone", None)
    await live.aclose()
    await until(lambda: yard.usable() == 1)
    assert yard.container() != dead
    assert await yard.run("echo", "again") == b"again\n"
    await yard.fleet.only(yard.container())


@pytest.mark.parametrize("places", [2])
async def test_the_other_places_go_on(yard: Yard) -> None:
    untouched = yard.container(1)
    await yard.kill_from_outside(0)
    assert await yard.run("echo", "here", place=1) == b"here\n"
    await until(lambda: yard.usable() == 2)
    assert yard.container(1) == untouched


async def test_many_processes_of_one_dead_container(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXECS_PER_CONTAINER", 100)
    processes = [await yard.start("sleep", "1000") for _ in range(6)]
    await yard.kill_from_outside()
    ends = await asyncio.wait_for(asyncio.gather(*(process.exited for process in processes)), PATIENCE_S)
    assert {end.reason for end in ends} == {"container_gone"}
    for process in processes:
        await process.aclose()


async def test_pauses_grow_while_successors_fail(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "REVIVE_LAST_MS", 160)

    def pauses() -> list[float]:
        found = [record.args for record in caplog.records if record.msg.startswith("no new container")]
        return [args[1] for args in found if isinstance(args, tuple) and isinstance(args[1], float)]

    yard.fleet.override = {"image": "localhost/none:latest"}
    with caplog.at_level(logging.WARNING):
        await yard.kill_from_outside()
        await until(lambda: len(pauses()) >= 4)
    assert pauses()[:4] == [0.08, 0.16, 0.16, 0.16]
    assert yard.usable() == 0
    yard.fleet.override = {}
    await until(lambda: yard.usable() == 1)
    await yard.fleet.only(yard.container())


async def test_the_first_failure_counts_from_the_last_that_lasted(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = yard.containers.slots[0]
    await yard.kill_from_outside()
    await until(lambda: slot.backoff.failures == 1 and yard.usable() == 1)
    await yard.kill_from_outside()
    await until(lambda: slot.backoff.failures == 2 and yard.usable() == 1)
    monkeypatch.setattr(limits, "REVIVE_PROVEN_MS", 0)
    await yard.kill_from_outside()
    await until(lambda: slot.backoff.failures == 0 and yard.usable() == 1)


async def test_the_pause_before_a_revival_is_the_one_announced(
    yard: Yard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead container's place once slept twice between attempts."""
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 250)
    yard.fleet.override = {"image": "localhost/none:latest"}
    await yard.kill_from_outside()
    await until(lambda: len(caplog.records) >= 3)
    one, two = [record for record in caplog.records if record.msg.startswith("no new container")][:2]
    assert pause_s(2) <= two.created - one.created < 2 * pause_s(2)


@pytest.mark.parametrize("stage", ["creating", "starting"])
async def test_closing_in_the_middle_of_a_replacement_leaves_nothing(yard: Yard, stage: str) -> None:
    reached = getattr(yard.fleet.engine, stage)
    reached.clear()
    await yard.kill_from_outside()
    await asyncio.wait_for(reached.wait(), PATIENCE_S)
    await yard.containers.aclose()
    assert await yard.fleet.containers() == set()
    assert yard.containers.slots[0]._tasks == set()


async def test_closing_while_a_replacement_waits_leaves_nothing(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 60_000)
    monkeypatch.setattr(limits, "REVIVE_LAST_MS", 60_000)
    await yard.kill_from_outside()
    await until(lambda: yard.containers.slots[0].replacing is not None)
    await asyncio.wait_for(yard.containers.aclose(), PATIENCE_S)
    assert await yard.fleet.containers() == set()


async def test_closing_while_a_worn_container_drains_leaves_nothing(yard: Yard) -> None:
    live = await yard.start("sleep", "1000")
    await yard.wear(execs=2)
    await yard.containers.aclose()
    assert await yard.fleet.containers() == set()
    assert (await asyncio.wait_for(live.exited, PATIENCE_S)).reason == "container_gone"
    await live.aclose()


@pytest.mark.parametrize("places", [2])
async def test_kill_ends_all_and_follows_none(yard: Yard) -> None:
    live = [await yard.start("sleep", "1000", place=place) for place in range(2)]
    await yard.containers.kill()
    for process in live:
        await asyncio.wait_for(process.exited, PATIENCE_S)
        await process.aclose()
    await until(lambda: yard.usable() == 0)
    assert all(slot.replacing is None for slot in yard.containers.slots)


async def test_one_place_that_cannot_be_filled_fails_the_start(fleet: Fleet) -> None:
    def make(number: int, on_death: Callable[[], None]) -> Container:
        fleet.override = {"image": "localhost/none:latest"} if number == 1 else {}
        return fleet.make(number, on_death)

    containers = Containers(2, make)
    with pytest.raises(StartFailed) as caught:
        await containers.start()
    assert caught.value.reason == "image_not_found"
    assert containers.counts()["usable"] == 1
    await containers.aclose()


async def test_the_one_of_a_spawn_lane_is_its_host_and_is_replaced(fleet: Fleet) -> None:
    slot = SpawnerSlot(lambda on_death: fleet.make_spawner(on_death=on_death))
    await slot.start()
    host = slot.host
    assert slot.take() is host is not None
    assert slot.health() == {"reapers": limits.SPAWN_SPARE_REAPERS, "kept": 0}
    assert slot.counts() == {"places": 1, "usable": 1, "containers": 1}
    assert repr(slot) == f"<SpawnerSlot {slot.container!r} of 1, 0 failures>"
    assert slot.container is not None
    os.kill(await fleet.init_of(slot.container.id), signal.SIGKILL)
    await until(lambda: slot.usable is None)
    assert (slot.host, slot.health()) == (None, {"reapers": 0, "kept": 0})
    with pytest.raises(ExecFailed, match="its successor is not up yet"):
        slot.take()
    await until(lambda: slot.usable is not None)
    assert slot.take() is not host
    await slot.aclose()
    await slot.aclose()
