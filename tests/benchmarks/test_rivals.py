"""Rivals: how each measures itself, and how they are shown beside ours."""

from __future__ import annotations

import sys

import pytest
from msgspec import structs

from bench.programs import told, why_not
from bench.ratios import Budgets, Pairs, Ratios
from bench.report import page
from bench.results import P50, P99, Results
from tests.benchmarks.test_results import HEADER, line_of


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_rival_measures_itself(loop: str) -> None:
    """A program of its own, which tells its version."""
    (line,) = told([sys.executable, "-m", "bench.rivals.asyncio_subprocess", "9", "4", loop, "/bin/true"])
    assert line["version"]
    assert line["calls"] == 9
    assert 0 < line["p50_us"] <= line["p99_us"] <= line["max_us"] <= line["seconds"] * 1e6


def test_a_rival_whose_command_fails_measures_nothing() -> None:
    with pytest.raises(AssertionError, match="asyncio_subprocess"):
        told([sys.executable, "-m", "bench.rivals.asyncio_subprocess", "2", "1", "asyncio", "/bin/false"])


@pytest.mark.parametrize(
    ("script", "why"),
    [("true", ""), ("echo first >&2; echo not permitted >&2; exit 1", "not permitted"), ("exit 3", "exit code 3")],
)
def test_a_rival_that_is_there_and_does_not_work_is_said(script: str, why: str) -> None:
    assert why_not(["sh", "-c", script]) == why


def test_the_quickest_comes_first() -> None:
    """Ours among the others, each with its version, and p99 where it was measured."""
    ratios = Ratios()
    for rival, rate in (("posix_spawn", 2000.0), ("podman exec", 10.0)):
        ratios.compared("on this host", rival, Pairs("/s", [1000.0, 1001, 999], [rate, rate, rate], [1, 1, 1]))
        ratios.compared("on this host", rival, Pairs(P50, [0.001] * 3, [1 / rate] * 3, [1, 1, 1]))
    ratios.compared("on this host", "posix_spawn", Pairs(P99, [0.002] * 3, [0.0015] * 3, [1, 1, 1]))
    header = structs.replace(HEADER, ways={"posix_spawn": "glibc 2.36", "podman exec": "4.3.1"})
    text = page(Results(header, ratios.rows), Budgets({}, {}))
    assert "### On this host" in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][-3:] == (
        ["posix_spawn", "**fastclaw, run**", "podman exec"]
    )
    assert line_of(text, "posix_spawn")[1:6] == ["glibc 2.36", "2,000", "500 µs", "1.5 ms", "0.5"]
    assert line_of(text, "**fastclaw, run**") == [
        "**fastclaw, run**",
        "6e7fe66",
        "1,000",
        "1 ms",
        "2 ms",
        "1",
        "",
        "3",
        "",
    ]
    assert line_of(text, "podman exec")[1:6] == ["4.3.1", "10", "100 ms", "", "100"]
