"""A command that does nothing, started and awaited with its output: ours beside what others offer for it.

Each in a process of its own, in turn, the same static program. What isolates nothing is held against the local runtime,
what runs in a container against a container of ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from bench.engine import CONTAINERS, Engine, idle_container
from bench.lean_client import LeanClient
from bench.programs import Programs, told, why_not
from bench.ratios import Pairs, Ratios, compare_told
from bench.results import P50, P99, ROOT
from bench.wire import LOOP, Command, Times, Wire, floor
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.base_image import static_busybox

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

    from tests.docker_fixtures import DockerService

ROUNDS = 7
AT_ONCE = [1, 16]
FAST, MIDDLING, SLOW = {1: 300, 16: 800}, {1: 120, 16: 320}, {1: 10, 16: 32}
"""Commands a round, by how many at once: what makes a thousand a second, some hundreds, some tens."""

ENOUGH_FOR_P99 = 100
GET = "run: scripts/get-rivals .venv/bin/python .rivals"
RIVALS = ROOT / ".rivals"
SWE_REX = RIVALS / "swe-rex" / "bin" / "python"
BWRAP = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--die-with-parent"]
PATH = os.pathsep.join([os.environ["PATH"], str(RIVALS / "bubblewrap" / "usr" / "bin")])


class Way(NamedTuple):
    """One way to run a command.

    Parameters:
        counts: commands a round, by how many at once.
        measure: count and at once; what they took, and the version where the program tells it.
        version: where it does not.
    """

    name: str
    counts: dict[int, int]
    measure: Callable[[int, int], dict[str, Any]]
    version: str = ""


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is started everywhere: in our image it is the host's static busybox, and here as well."""
    path: Path = tmp_path_factory.mktemp("true") / "true"
    path.symlink_to(static_busybox() or "/bin/true")
    return str(path)


@pytest.fixture(scope="module")
def docker(request: pytest.FixtureRequest, ratios: Ratios) -> DockerService | None:
    """None, and a line in the report, where there is none."""
    try:
        found: DockerService = request.getfixturevalue("docker_service")
    except pytest.skip.Exception as reason:  # the other rivals are measured without it, and the page says so
        ratios.header.missing["Docker's API"] = str(reason)
        return None
    return found


@pytest.mark.parametrize("at_once", AT_ONCE)
def test_on_the_host(benchmark: BenchmarkFixture, ratios: Ratios, programs: Programs, true: str, at_once: int) -> None:
    command = Command([true], [true, "true"])
    with contextlib.closing(LeanClient("local", {})) as client:
        wire = Wire(programs, client)
        ours = Way("fastclaw, run", FAST, lambda *job: wire.run(command, *job)._asdict())
        others = [Way("fastclaw, exec and wait", FAST, lambda *job: wire.exec(command, *job)._asdict())]
        others += [*spawned(programs, true), *python_ways(true), *optional_ways(programs, true, ratios)]
        Table(benchmark, ratios, at_once).measure(f"on this host, {at_once} at once", ours, others)


@pytest.mark.parametrize("at_once", AT_ONCE)
def test_in_a_container(
    benchmark: BenchmarkFixture,
    ratios: Ratios,
    runner: asyncio.Runner,
    programs: Programs,
    engine: Engine,
    docker: DockerService | None,
    at_once: int,
) -> None:
    with contextlib.ExitStack() as stack:
        spawn, rest = (Wire(programs, stack.enter_context(lane(engine, name))) for name in ("spawn", "rest"))
        ours = Way("fastclaw, run", FAST, lambda *job: spawn.run(TRUE_INSIDE, *job)._asdict())
        others = [
            Way("fastclaw, exec and wait", FAST, lambda *job: spawn.exec(TRUE_INSIDE, *job)._asdict()),
            Way("fastclaw, REST lane", SLOW, lambda *job: rest.exec(TRUE_INSIDE, *job)._asdict()),
            *engine_ways(programs, engine),
        ]
        if docker is not None:
            others.append(docker_way(docker, stack.enter_context(docker_container(runner, docker))))
        Table(benchmark, ratios, at_once).measure(f"in a container, {at_once} at once", ours, others)


TRUE_INSIDE = Command(["true"], [])


def lane(engine: Engine, name: str) -> contextlib.closing[LeanClient]:
    """A runtime on the same engine."""
    return contextlib.closing(LeanClient("podman", {"url": engine.url, "lane": name, "containers": CONTAINERS}))


def spawned(programs: Programs, true: str) -> list[Way]:
    """The kernel's own cost."""
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    command = Command([], [true, "true"])

    def way(name: str, *, pipes: bool) -> Way:
        return Way(name, FAST, lambda *job: floor(programs, LOOP, command, *job, pipes=pipes)._asdict(), libc)

    return [way("posix_spawn", pipes=False), way("posix_spawn with pipes", pipes=True)]


def python_ways(true: str) -> list[Way]:
    """What a program in Python has."""
    return [
        Way(f"subprocess of {loop}", MIDDLING, python_rival(sys.executable, "asyncio_subprocess", loop, true))
        for loop in ("asyncio", "uvloop")
    ]


def optional_ways(programs: Programs, true: str, ratios: Ratios) -> Iterator[Way]:
    """What need not be there; what is not is said in the report."""
    if SWE_REX.exists():
        yield Way("SWE-ReX, local runtime", MIDDLING, python_rival(str(SWE_REX), "swe_rex", true))
    else:
        ratios.header.missing["SWE-ReX"] = GET
    bwrap = shutil.which("bwrap", path=PATH)
    if bwrap is None:
        ratios.header.missing["bubblewrap"] = GET
    elif why := why_not([bwrap, *BWRAP, true]):
        ratios.header.missing["bubblewrap"] = why
    else:
        version = told_version([bwrap, "--version"])
        yield Way("bubblewrap", MIDDLING, started(programs, [], [bwrap, *BWRAP, true]), version)


def engine_ways(programs: Programs, engine: Engine) -> list[Way]:
    """Podman's own, and its OCI runtime without it, in a container each."""
    first, second, third, _ = engine.containers
    runtime = os.path.basename(engine.runtime[0])
    commands = {
        f"{runtime} exec": ([*engine.runtime, "exec", first, "true"], engine.versions[runtime]),
        "podman exec": ([*engine.podman, "exec", second, "true"], engine.versions["Podman"]),
    }
    ways = [
        Way(name, SLOW, started(programs, engine.launcher, command), version)
        for name, (command, version) in commands.items()
    ]
    return [*ways, Way("podman-py", SLOW, python_rival(sys.executable, "podman_py", engine.url, third))]


def docker_way(docker: DockerService, container: str) -> Way:
    """Its daemon, by the least client."""
    rival = python_rival(sys.executable, "docker_api", docker.url.removeprefix("unix://"), container)
    return Way("Docker's API", SLOW, rival)


@contextlib.contextmanager
def docker_container(runner: asyncio.Runner, docker: DockerService) -> Iterator[str]:
    """An idle one."""
    stack = contextlib.AsyncExitStack()

    async def make() -> str:
        lifecycle = EngineLifecycle(docker.url, dialect=docker.dialect)
        stack.push_async_callback(lifecycle.aclose)
        return await idle_container(lifecycle, 0, stack)

    try:
        yield runner.run(make())
    finally:
        runner.run(stack.aclose())


def python_rival(python: str, name: str, *words: str) -> Callable[[int, int], dict[str, Any]]:
    """A module of bench.rivals."""

    def measure(count: int, at_once: int) -> dict[str, Any]:
        (line,) = told([python, "-m", f"bench.rivals.{name}", str(count), str(at_once), *words])
        return line

    return measure


def started(programs: Programs, launcher: list[str], command: list[str]) -> Callable[[int, int], dict[str, Any]]:
    """A command line that runs a command, started with pipes by run_floor.c."""
    path = shutil.which(command[0]) or command[0]

    def measure(count: int, at_once: int) -> dict[str, Any]:
        job = [programs.path("run_floor"), LOOP, str(count), str(at_once), "pipes", "0", "0", path, *command]
        (line,) = told([*launcher, *job])
        return line

    return measure


def told_version(command: list[str]) -> str:
    """The last word of what a program says of its version."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


class Table:
    """Ways beside each other, in turn."""

    def __init__(self, benchmark: BenchmarkFixture, ratios: Ratios, at_once: int) -> None:
        self._benchmark, self._ratios, self._at_once = benchmark, ratios, at_once
        self._took: dict[str, list[Times]] = {}

    def measure(self, what: str, ours: Way, others: list[Way]) -> None:
        """Keep rates and latencies of all of them."""
        rivals = {way.name: self._runs(way) for way in others}
        found = compare_told(self._benchmark, self._runs(ours), rivals, ROUNDS)
        count = ours.counts[self._at_once]
        for way in others:
            their_count = way.counts[self._at_once]
            self._ratios.compared(what, way.name, found.rates(way.name, count, their_count))
            self._keep(what, P50, ours, way, found.at, lambda took: took.p50_us)
            if their_count >= ENOUGH_FOR_P99:
                self._keep(what, P99, ours, way, found.at, lambda took: took.p99_us)

    def _runs(self, way: Way) -> Callable[[], float]:
        took = self._took[way.name] = []

        def run() -> float:
            told = way.measure(way.counts[self._at_once], self._at_once)
            self._ratios.header.ways[way.name] = str(told.pop("version", way.version))
            took.append(Times(**told))
            return took[-1].seconds

        return run

    def _keep(self, what: str, unit: str, ours: Way, way: Way, at: list[float], of: Callable[[Times], float]) -> None:
        mine, theirs = ([of(took) / 1e6 for took in self._took[side.name][1:]] for side in (ours, way))
        self._ratios.compared(what, way.name, Pairs(unit, mine, theirs, at))
