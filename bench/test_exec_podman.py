"""Start to exit code in a container, through fastclaw and around it, all on one service."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from bench.engine import CONTAINERS, Engine, engine_or_skip
from bench.execs import PodmanPy, RawClient, over_client, over_lane, posix_spawn, served
from bench.ratios import Ratios, compare
from fastclaw.engine.rest_lane.rest import RestLane
from tests.engine.rest_lane.rest_rig import FixedContainers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from fastclaw.client import RuntimeClient

COUNTS = {1: 16, 4: 48, 16: 64}
"""Execs per round, by how many run at once: about a second each."""

ROUNDS = 5
ROUNDS_AT_THE_CEILING = 9
"""A goal of 0.95 needs more pairs than one of 2."""

SUSTAINED = 200
"""Execs a round: as many rounds as there are make over a thousand, as a pool of workers does within the hour."""

PODMAN_PY_THREADS = 8


@pytest.fixture
def engine(runner: asyncio.Runner, ratios: Ratios) -> Iterator[Engine]:
    """A fresh one for each bench: the engine remembers every exec, and gets slower with them."""
    yield from engine_or_skip(runner, ratios.header.versions)


@pytest.fixture
def client(runner: asyncio.Runner, engine: Engine) -> Iterator[RuntimeClient]:
    with served(runner, "podman", url=engine.url, lane="rest", containers=CONTAINERS) as client:
        yield client


@pytest.fixture
def lane(runner: asyncio.Runner, engine: Engine) -> Iterator[RestLane]:
    async def make() -> RestLane:
        return RestLane(engine.url, FixedContainers(engine.containers), local=True)

    lane = runner.run(make())
    yield lane
    runner.run(lane.aclose())


@pytest.mark.parametrize("at_once", COUNTS)
def test_exec(
    benchmark: BenchmarkFixture,
    ratios: Ratios,
    runner: asyncio.Runner,
    engine: Engine,
    client: RuntimeClient,
    lane: RestLane,
    at_once: int,
) -> None:
    count = COUNTS[at_once]
    raw = RawClient(engine.socket, engine.containers)
    found = compare(
        benchmark,
        lambda: runner.run(over_client(client, count, at_once)),
        {
            "raw": lambda: runner.run(raw.run(count, at_once)),
            "lane": lambda: runner.run(over_lane(lane, count, at_once)),
            "floor": lambda: posix_spawn(count, at_once),
        },
        ROUNDS_AT_THE_CEILING,
    )
    what = f"podman REST lane, {at_once} at once"
    ratios.compared(what, "minimal raw client", found.rates("raw", count))
    ratios.compared(what, "the same without JSON-RPC", found.rates("lane", count))
    ratios.compared(what, "bare posix_spawn, no sandbox", found.rates("floor", count))


@pytest.mark.parametrize("containers", [1, CONTAINERS])
def test_against_podman_py(
    benchmark: BenchmarkFixture,
    ratios: Ratios,
    runner: asyncio.Runner,
    engine: Engine,
    client: RuntimeClient,
    containers: int,
) -> None:
    """A user of podman-py has one container; the second case lends it the lane's four.

    Sustained: Podman slows down with every exec that a container has had, and the lane goes on with a fresh one.
    """
    count = SUSTAINED
    rival = PodmanPy(engine.url, engine.containers[:containers], PODMAN_PY_THREADS)
    with contextlib.closing(rival):
        found = compare(
            benchmark,
            lambda: runner.run(over_client(client, count, 16)),
            {"podman-py": lambda: rival.run(count)},
            ROUNDS,
        )
    name = f"podman-py in {PODMAN_PY_THREADS} threads, {containers} container{'s' * (containers > 1)}"
    ratios.compared("podman REST lane, 16 at once", name, found.rates("podman-py", count))
