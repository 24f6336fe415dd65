"""The spawn lane in a container, without JSON-RPC around it, and the floor that it is held against."""

from __future__ import annotations

import contextlib
import os
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from bench.execs import spread
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container import SpawnerContainer
from fastclaw.engine.container_spec import InitPlan, container_spec
from fastclaw.engine.containers import SpawnerSlot
from fastclaw.engine.dialects import PODMAN
from fastclaw.engine.service.plan import DEFAULT_IMAGE
from fastclaw.linux.proc import this_process
from fastclaw.processes.lane import StartSpec
from fastclaw.spawner.spawn_lane import SpawnLane
from fastclaw.spawner.spawner_host import find_spawner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from fastclaw.engine.dialects import Dialect

TRUE = ["true"]
"""Inside, by PATH: busybox, which is static."""

PIDS = 20_000
NO_LIMITS: Mapping[str, int | float] = MappingProxyType({})


class Latencies(NamedTuple):
    """Seconds."""

    p50: float
    p99: float


@contextlib.asynccontextmanager
async def spawn_lane(url: str, directory: Path, dialect: Dialect = PODMAN) -> AsyncIterator[SpawnLane]:
    """A lane over one container of a running engine."""
    engine = EngineLifecycle(url, dialect=dialect)
    path = str(directory / "bench.init")

    def make(on_death: Callable[[], None]) -> SpawnerContainer:
        spec = container_spec(
            image=DEFAULT_IMAGE,
            name=f"fastclaw-bench-spawn-{os.getpid()}",
            namespace="bench-spawn",
            owner=this_process().label,
            init=InitPlan(spawner=str(find_spawner()), socket=path),
            pids_limit=PIDS,
        )
        return SpawnerContainer(engine, spec, on_death, path=path, user="0")

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(engine.aclose)
        slot = SpawnerSlot(make)
        stack.push_async_callback(slot.aclose)
        await slot.start()
        yield SpawnLane(slot, can_set_user=True)


async def run(lane: SpawnLane, count: int, at_once: int, limits: Mapping[str, int | float] = NO_LIMITS) -> list[float]:
    """`true`, so many times, so many at once, from the start to its exit code; the seconds that each took."""
    took: list[float] = []

    async def run_one(number: int) -> None:
        began = time.perf_counter()
        process = await lane.start(StartSpec(process_id=f"bench-{number}", cmd=TRUE, stdin=False, limits=limits), 0)
        assert process.started is not None
        await process.started
        assert (await process.exited).exit_code == 0
        took.append(time.perf_counter() - began)

    await spread(count, at_once, run_one)
    return took


def latencies(took: list[float]) -> Latencies:
    """Of serial runs."""
    ordered = sorted(took)
    return Latencies(ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100])
