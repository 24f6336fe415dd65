"""The spawn lane without JSON-RPC against bare posix_spawn and wait, and with it against the REST lane; in Docker's
container against Podman's.

Over the wire against posix_spawn: test_wire.py.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.engine import CONTAINERS, Engine
from bench.execs import posix_spawn
from bench.lean_client import LeanClient
from bench.ratios import Ratios, compare
from bench.spawn_lane import TRUE, Latencies, latencies, run, spawn_lane
from fastclaw.engine.base_image import static_busybox
from fastclaw.limits import MIB

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from fastclaw.spawner.spawn_lane import SpawnLane
    from tests.docker_fixtures import DockerService

COUNTS = {1: 600, 16: 1_600}
"""Execs a round, by how many run at once: about half a second each."""

ROUNDS = 9
REST_COUNTS = {1: 16, 16: 64}
"""On the lane that is so much slower."""


@pytest.fixture(scope="module")
def lane(runner: asyncio.Runner, engine: Engine) -> Iterator[SpawnLane]:
    stack = contextlib.AsyncExitStack()
    with tempfile.TemporaryDirectory(prefix="fcl", dir="/tmp") as directory:
        yield runner.run(stack.enter_async_context(spawn_lane(engine.url, Path(directory))))
        runner.run(stack.aclose())


@pytest.fixture(scope="module")
def docker_lane(runner: asyncio.Runner, docker_service: DockerService) -> Iterator[SpawnLane]:
    stack = contextlib.AsyncExitStack()
    with tempfile.TemporaryDirectory(prefix="fcl", dir="/tmp") as directory:
        lane = spawn_lane(docker_service.url, Path(directory), docker_service.dialect)
        yield runner.run(stack.enter_async_context(lane))
        runner.run(stack.aclose())


def clients(engine: Engine, lane: str) -> Iterator[LeanClient]:
    with contextlib.closing(
        LeanClient("podman", {"url": engine.url, "lane": lane, "containers": CONTAINERS})
    ) as client:
        yield client


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[LeanClient]:
    yield from clients(engine, "spawn")


@pytest.fixture
def rest_client(engine: Engine) -> Iterator[LeanClient]:
    yield from clients(engine, "rest")


@pytest.mark.parametrize("at_once", COUNTS)
def test_without_json_rpc(
    benchmark: BenchmarkFixture, ratios: Ratios, runner: asyncio.Runner, lane: SpawnLane, at_once: int
) -> None:
    count = COUNTS[at_once]
    busybox = str(static_busybox())
    ours: list[Latencies] = []
    theirs: list[Latencies] = []
    found = compare(
        benchmark,
        lambda: ours.append(latencies(runner.run(run(lane, count, at_once)))),
        {"floor": lambda: theirs.append(latencies(posix_spawn(count, at_once, busybox, TRUE, 0)))},
        ROUNDS,
    )
    ratios.compared(f"spawn lane, {at_once} at once", "bare posix_spawn", found.rates("floor", count))
    if at_once == 1:
        _added("spawn lane, added p50", 0.10, ratios, [one.p50 for one in ours], [one.p50 for one in theirs])
        _added("spawn lane, added p99", 0.50, ratios, [one.p99 for one in ours], [one.p99 for one in theirs])


@pytest.mark.parametrize("at_once", COUNTS)
def test_in_docker(
    benchmark: BenchmarkFixture,
    ratios: Ratios,
    runner: asyncio.Runner,
    lane: SpawnLane,
    docker_lane: SpawnLane,
    at_once: int,
) -> None:
    count = COUNTS[at_once]
    found = compare(
        benchmark,
        lambda: runner.run(run(docker_lane, count, at_once)),
        {"podman": lambda: runner.run(run(lane, count, at_once))},
        ROUNDS,
    )
    ratios.compared(f"spawn lane in Docker, {at_once} at once", "in Podman", found.rates("podman", count))


def _added(name: str, allowed_ms: float, ratios: Ratios, ours: list[float], theirs: list[float]) -> None:
    """What we add to the floor, as the share of what is allowed that is left over: 1 is nothing added, 0 all of it."""
    added_ms = [1000 * (our - their) for our, their in zip(ours[1:], theirs[1:], strict=True)]
    ratios.allowed(f"{name}: share of {allowed_ms} ms left", [1 - added / allowed_ms for added in added_ms])
    ratios.figure(name, added_ms, "ms")


LIMITS: dict[str, dict[str, int | float]] = {
    "pids": {"pids": 64},
    "memory_bytes": {"memory_bytes": 64 * MIB},
    "all three limits": {"pids": 64, "memory_bytes": 64 * MIB, "cpus": 1.5},
}


@pytest.mark.parametrize("name", LIMITS)
def test_with_limits_of_its_own(
    benchmark: BenchmarkFixture, ratios: Ratios, runner: asyncio.Runner, lane: SpawnLane, name: str
) -> None:
    """Beside the same start without."""
    with_limits: list[Latencies] = []
    without: list[Latencies] = []
    compare(
        benchmark,
        lambda: with_limits.append(latencies(runner.run(run(lane, COUNTS[1], 1, LIMITS[name])))),
        {"without": lambda: without.append(latencies(runner.run(run(lane, COUNTS[1], 1))))},
        ROUNDS,
    )
    _added(
        f"start with {name}, added p50", 0.15, ratios, [one.p50 for one in with_limits], [one.p50 for one in without]
    )


@pytest.mark.parametrize("at_once", COUNTS)
def test_against_the_rest_lane(
    benchmark: BenchmarkFixture, ratios: Ratios, client: LeanClient, rest_client: LeanClient, at_once: int
) -> None:
    """Rates, for the lane that asks the engine for each gets fewer commands."""
    ours, theirs = COUNTS[at_once], REST_COUNTS[at_once]
    found = compare(
        benchmark,
        lambda: client.run(TRUE, ours, at_once, 0),
        {"rest": lambda: rest_client.run(TRUE, theirs, at_once, 0)},
        3,
    )
    ratios.compared(f"spawn lane, {at_once} at once", "REST lane", found.rates("rest", ours, theirs))
