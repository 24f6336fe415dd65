"""Start to exit code on the local runtime, as a supervisor has it, against bare posix_spawn and wait."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from bench.execs import over_client, posix_spawn
from bench.ratios import Ratios, compare
from fastclaw.client import RuntimeClient

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

COUNT = 200
ROUNDS = 7


@pytest.fixture
def client(runner: asyncio.Runner) -> Iterator[RuntimeClient]:
    command = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "local", "--log-level", "error"]
    client = RuntimeClient.spawn(command, namespace="bench")
    runner.run(client.__aenter__())
    yield client
    runner.run(client.aclose())
    assert client.exit_code == 0


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
    ratios.ratio(f"local exec, {at_once} at once / bare posix_spawn", found.ratios["floor"])
    ratios.fact(
        f"local exec, {at_once} at once", f"{COUNT / found.seconds:.0f}/s (floor {COUNT / found.rivals['floor']:.0f}/s)"
    )
