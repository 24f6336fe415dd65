"""A command over the wire against posix_spawn and wait, both ends in C: `run` with its output, and `exec` + `wait`.

The floor of a row at 16 at once is one thread, as a supervisor with an event loop has it; what the machine gives at all
(16 threads, see run_floor.c) is measured too.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from bench.lean_client import LeanClient
from bench.ratios import Ratios, compare_told
from bench.wire import LOOP, THREADS, Command, Times, Wire, floor, text
from fastclaw.engine.base_image import static_busybox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.engine import Engine
    from bench.programs import Programs

COUNTS = {1: 400, 16: 1_200}
"""Commands a round, by how many at once: about half a second each."""

ROUNDS = 9
BYTES = 4_096
TRUE = Command(["/bin/true"], ["/bin/true", "true"])
at_once_and_count = pytest.mark.parametrize(("at_once", "count"), COUNTS.items(), ids=map(str, COUNTS))


@pytest.fixture
def local(programs: Programs) -> Iterator[Wire]:
    with contextlib.closing(LeanClient("local", {})) as client:
        yield Wire(programs, client)


@pytest.fixture
def podman(programs: Programs, engine: Engine) -> Iterator[Wire]:
    with contextlib.closing(LeanClient("podman", {"url": engine.url, "lane": "spawn"})) as client:
        yield Wire(programs, client)


def work(programs: Programs, *words: str, input: str = "") -> Command:
    """Our own program, which prints BYTES."""
    path = programs.path("work")
    return Command([path, *words], [path, "work", *words], input, text(BYTES))


@at_once_and_count
@pytest.mark.parametrize("kind", ["", " with 4 KiB of output", " with 4 KiB of input"], ids=["true", "out", "in"])
def test_run(
    benchmark: BenchmarkFixture, ratios: Ratios, programs: Programs, local: Wire, kind: str, at_once: int, count: int
) -> None:
    command = {
        "": TRUE,
        " with 4 KiB of output": work(programs, "out", str(BYTES)),
        " with 4 KiB of input": work(programs, "cat", input=text(BYTES)),
    }[kind]
    row = Row(benchmark, ratios, programs, command, count, at_once)
    row.measure(f"run over the wire{kind}", "posix_spawn with pipes", lambda: local.run(command, count, at_once))


@at_once_and_count
def test_exec(
    benchmark: BenchmarkFixture, ratios: Ratios, programs: Programs, local: Wire, at_once: int, count: int
) -> None:
    row = Row(benchmark, ratios, programs, TRUE, count, at_once)
    row.measure("exec + wait over the wire", "bare posix_spawn", lambda: local.exec(TRUE, count, at_once))


@at_once_and_count
@pytest.mark.parametrize("method", ["run", "exec"])
def test_in_podman(
    benchmark: BenchmarkFixture, ratios: Ratios, programs: Programs, podman: Wire, method: str, at_once: int, count: int
) -> None:
    """/bin/true inside is busybox, the host's own."""
    command = TRUE._replace(floor=[str(static_busybox()), "true"])
    row = Row(benchmark, ratios, programs, command, count, at_once)
    if method == "run":
        row.measure("run in Podman", "posix_spawn with pipes", lambda: podman.run(command, count, at_once))
    else:
        row.measure("exec + wait in Podman", "bare posix_spawn", lambda: podman.exec(command, count, at_once))


class Row:
    """One way to run a command, measured in turn with its floors."""

    def __init__(
        self,
        benchmark: BenchmarkFixture,
        ratios: Ratios,
        programs: Programs,
        command: Command,
        count: int,
        at_once: int,
    ) -> None:
        self._benchmark, self._ratios, self._programs = benchmark, ratios, programs
        self._command, self._count, self._at_once = command, count, at_once

    def measure(self, what: str, rival: str, ours: Callable[[], Times]) -> None:
        """Keep the ratios to each floor, and what it was in numbers."""
        took: list[Times] = []
        pipes = rival != "bare posix_spawn"

        def run_ours() -> float:
            took.append(ours())
            return took[-1].seconds

        def run_floor(way: str) -> float:
            return floor(self._programs, way, self._command, self._count, self._at_once, pipes=pipes).seconds

        ways = {LOOP: lambda: run_floor(LOOP)}
        if self._at_once > 1:
            ways[THREADS] = lambda: run_floor(THREADS)
        found = compare_told(self._benchmark, run_ours, ways, ROUNDS)
        name = f"{what}, {self._at_once} at once"
        self._ratios.compared(name, rival, found.rates(LOOP, self._count))
        if self._at_once > 1:
            self._ratios.compared(name, f"{rival} in {self._at_once} threads", found.rates(THREADS, self._count))
        self._ratios.figure(f"{name}, p50", [one.p50_us / 1e6 for one in took[1:]], "s")
        self._ratios.figure(f"{name}, p99", [one.p99_us / 1e6 for one in took[1:]], "s")
