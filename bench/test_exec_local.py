"""Start to exit code on the local runtime, as a supervisor has it, against bare posix_spawn and wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.execs import over_client, posix_spawn, served
from bench.ratios import Ratios, compare

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from fastclaw.client import RuntimeClient

COUNT = 200
ROUNDS = 7


@pytest.fixture
def client(runner: asyncio.Runner) -> Iterator[RuntimeClient]:
    with served(runner, "local") as client:
        yield client


@pytest.mark.parametrize("at_once", [1, 4, 16])
def test_exec(
    benchmark: BenchmarkFixture, ratios: Ratios, runner: asyncio.Runner, client: RuntimeClient, at_once: int
) -> None:
    found = compare(
        benchmark,
        lambda: runner.run(over_client(client, COUNT, at_once)),
        {"floor": lambda: posix_spawn(COUNT, at_once)},
        ROUNDS,
    )
    ratios.compared(f"local exec, {at_once} at once", "bare posix_spawn", found.rates("floor", COUNT))
