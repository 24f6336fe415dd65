"""What it costs that a command's pipes and a client's socket are joined by the runtime, against nobody in between.

Both ends are in C, and processes of their own as in production.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING

import pytest

from bench.lean_client import LeanClient
from bench.ratios import Ratios, compare_told
from bench.streams import Bulk, Streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.programs import Programs

BULK_BYTES = 1 << 30
GB = 1e9
CHECKED_BYTES = 128 << 20
PINGS = 5_000
ROUNDS = 9
ALLOWED_CPU = 0.12
"""Seconds of processor time for a GB, of everything beside the runtime's own process."""

ALLOWED_PYTHON_CPU = 0.005
"""The same of the runtime's own process: nothing, but for what it does anyway, such as its timers."""

LEAST_CPU = 0.01
"""Nobody moves a GB for less, splice(2) included."""


@pytest.fixture(scope="module")
def streams(programs: Programs) -> Iterator[Streams]:
    with contextlib.closing(LeanClient("local", {})) as client:
        yield Streams(programs, client)


def test_bulk(benchmark: BenchmarkFixture, ratios: Ratios, streams: Streams) -> None:
    for way in (streams.bulk_direct, streams.bulk_relayed):
        assert way(CHECKED_BYTES, check=True).right
    relayed: list[Bulk] = []

    def ours() -> float:
        relayed.append(streams.bulk_relayed(BULK_BYTES))
        return relayed[-1].seconds

    rivals = {"pipe": lambda: streams.bulk_direct(BULK_BYTES).seconds}
    found = compare_told(benchmark, ours, rivals, ROUNDS)
    beside, python = (
        [seconds / BULK_BYTES * GB for seconds in used]
        for used in ([one.beside_cpu for one in relayed[1:]], [one.runtime_cpu for one in relayed[1:]])
    )
    both = statistics.median(map(sum, zip(beside, python, strict=True)))
    assert both > LEAST_CPU, "who moves the bytes is not below the runtime: the rows of the CPU say nothing"
    ratios.compared("bulk from a command", "direct pipe", found.rates("pipe", BULK_BYTES / GB, unit="GB/s"))
    ratios.allowed(
        f"bulk, allowed CPU beside the runtime ({ALLOWED_CPU} s/GB) / used",
        [ALLOWED_CPU / max(seconds, 1e-6) for seconds in beside],
    )
    ratios.allowed(
        f"bulk, CPU of the runtime: share of {ALLOWED_PYTHON_CPU} s/GB left",
        [1 - seconds / ALLOWED_PYTHON_CPU for seconds in python],
    )
    ratios.figure("bulk from a command, processor beside the runtime", beside, "s/GB")
    ratios.figure("bulk from a command, processor of the runtime", python, "s/GB")


def test_round_trip(benchmark: BenchmarkFixture, ratios: Ratios, streams: Streams) -> None:
    relayed: list[dict[str, float]] = []

    def ours() -> float:
        relayed.append(streams.ping_relayed(PINGS))
        return relayed[-1]["p50_us"] / 1e6

    rivals = {"socket": lambda: streams.ping_direct(PINGS)["p50_us"] / 1e6}
    found = compare_told(benchmark, ours, rivals, ROUNDS)
    ratios.compared("round trip of 200 bytes, p50", "direct socketpair", found.times("socket"))
    ratios.figure("round trip of 200 bytes, p99", [one["p99_us"] / 1e6 for one in relayed[1:]], "s")
