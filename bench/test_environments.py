"""Environments: until one is of use, many at once, from a pool, after a reset; what each takes of memory.

One runtime with an engine of its own, in turn with Podman's own command line on the same storage. What the design asks
for in milliseconds is measured with a client in Python, whose own part (0.2 ms a call) is in it.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import pytest

from bench.environments import (
    PodmanCli,
    a_home,
    clocked,
    everything_kb,
    filled,
    first_byte,
    ready,
    ready_once,
    ready_together,
    served,
    stop_all,
)
from bench.ratios import Ratios, compare_told
from fastclaw.errors import StartFailed
from tests.engine_fixtures import unusable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from fastclaw.client import Environment, RuntimeClient
    from tests.acceptance.homes import Home

ROUNDS = 15
MANY, MANY_ROUNDS = 100, 3
CLI_COUNT, CLI_AT_ONCE = 24, 8
"""Of the rival, which takes a fifth of a second for each."""

LIVE, ALLOWED_MB = 50, 3
POOL = 2
TAKEN_S, RESET_S, OVER_A_CLONE_S, LOCAL_S = 0.008, 0.025, 0.010, 0.006


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with a_home() as home:
        yield home


@pytest.fixture(scope="module")
def client(runner: asyncio.Runner, home: Home) -> Iterator[RuntimeClient]:
    """Its engine has the image, and it knows the kind."""
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(served(runner, "podman", home))
            runner.run(ready_once(client))
        except StartFailed as error:
            unusable(str(error))
        runner.run(ready_once(client, clone="always"))
        yield client


@pytest.fixture(scope="module")
def podman(client: RuntimeClient, home: Home) -> PodmanCli:
    """Once the image is there."""
    return PodmanCli(home)


@pytest.fixture
def box(runner: asyncio.Runner, client: RuntimeClient) -> Iterator[Environment]:
    _, box = runner.run(ready(client, clone="always"))
    yield box
    runner.run(box.aclose())


@pytest.mark.parametrize(("clone", "way"), [("always", "a clone"), ("never", "the engine")], ids=["clone", "engine"])
def test_ready(
    benchmark: BenchmarkFixture,
    ratios: Ratios,
    runner: asyncio.Runner,
    client: RuntimeClient,
    podman: PodmanCli,
    clone: str,
    way: str,
) -> None:
    found = compare_told(benchmark, lambda: runner.run(ready_once(client, clone=clone)), {"podman": podman.run}, ROUNDS)
    ratios.compared(f"environment ready by {way}", "`podman run --rm`", found.times("podman"))


def test_a_hundred_at_once(
    benchmark: BenchmarkFixture, ratios: Ratios, runner: asyncio.Runner, client: RuntimeClient, podman: PodmanCli
) -> None:
    """Rates, for the rival has fewer to start. One that fails ends the bench."""

    def ours() -> float:
        seconds, made = runner.run(ready_together(client, MANY, clone="always"))
        runner.run(stop_all(made))
        return seconds

    rivals = {"podman": lambda: podman.run_detached(CLI_COUNT, CLI_AT_ONCE)}
    found = compare_told(benchmark, ours, rivals, MANY_ROUNDS)
    rival = f"`podman run -d`, {CLI_AT_ONCE} at once"
    ratios.compared(f"{MANY} environments at once", rival, found.rates("podman", MANY, CLI_COUNT))


def test_memory(ratios: Ratios, runner: asyncio.Runner, home: Home, client: RuntimeClient) -> None:
    """Everything there is, shared parts too, for each of those that live."""
    _, made = runner.run(ready_together(client, LIVE, clone="always"))
    each = everything_kb(client, home) / 1024 / LIVE
    runner.run(stop_all(made))
    ratios.allowed(f"allowed memory of each of {LIVE} environments ({ALLOWED_MB} MB) / used", [ALLOWED_MB / each])
    ratios.figure(f"memory of each of {LIVE} environments, service and helpers included", [each], "MB")


def test_from_a_pool(ratios: Ratios, runner: asyncio.Runner, client: RuntimeClient) -> None:
    taken: list[float] = []
    reset: list[float] = []

    async def measure() -> None:
        await client.pool_set([{"size": POOL}])
        for _ in range(ROUNDS):
            await filled(client)
            seconds, environment = await ready(client)
            taken.append(seconds)
            await filled(client)
            reset.append(await clocked(partial(_reset, environment)))
            await environment.aclose()
        await client.pool_set([])

    runner.run(measure())
    _allowed(ratios, "a pool's environment ready", TAKEN_S, taken)
    _allowed(ratios, "a reset with a pool", RESET_S, reset)


async def _reset(environment: Environment) -> None:
    await environment.reset()
    await first_byte(environment)


def _allowed(ratios: Ratios, what: str, allowed_s: float, taken: list[float]) -> None:
    """A time that the design names."""
    ratios.allowed(f"allowed time of {what} ({1e3 * allowed_s:.0f} ms) / taken", [allowed_s / one for one in taken])
    ratios.figure(what, taken, "s")


def test_reset_without_a_pool(
    benchmark: BenchmarkFixture, ratios: Ratios, runner: asyncio.Runner, client: RuntimeClient, box: Environment
) -> None:
    def allowed() -> float:
        return runner.run(ready_once(client, clone="always")) + OVER_A_CLONE_S

    found = compare_told(benchmark, lambda: runner.run(clocked(lambda: _reset(box))), {"clone": allowed}, ROUNDS)
    pairs = zip(found.rivals["clone"], found.ours, strict=True)
    ratios.allowed(
        "allowed time of a reset without a pool (a clone and 10 ms) / taken", [most / took for most, took in pairs]
    )
    ratios.figure("a reset without a pool", found.ours, "s")


def test_local(ratios: Ratios, runner: asyncio.Runner, home: Home) -> None:
    with served(runner, "local", home) as client:
        taken = [runner.run(ready_once(client)) for _ in range(ROUNDS)]
    _allowed(ratios, "an environment of `local` ready", LOCAL_S, taken)
