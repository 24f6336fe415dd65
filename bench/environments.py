"""Environments of a served runtime, on an engine of its own, and Podman's own command line on the same storage.

What is measured ends with the first byte of a `run`: an environment that is up and of no use counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bench.processes import descendants, have_one_memory, proportional_kb
from fastclaw.client import RuntimeClient
from fastclaw.engine.service.facts import host_facts
from fastclaw.engine.service.plan import DEFAULT_IMAGE, plan_service, tool_argv
from fastclaw.engine.service.storage import service_paths
from tests.acceptance.homes import Home
from tests.engine_fixtures import short_directory
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from fastclaw.client import Environment

TRUE = ["true"]
MARKER = b"x" * 200
"""What `SAYS` prints."""
SAYS = ["echo", "-n", MARKER.decode()]


@contextlib.contextmanager
def served(runner: asyncio.Runner, runtime: str, home: Home, **options: Any) -> Iterator[RuntimeClient]:
    """A runtime without `main`, in directories of its own; it ends in order."""
    command = [sys.executable, "-m", "fastclaw", "serve", "--runtime", runtime, "--log-level", "error"]
    given = {"environment": False, **options}
    client = RuntimeClient.spawn(command, namespace="bench", options=given, env=home.env)
    runner.run(client.__aenter__())
    yield client
    runner.run(client.aclose())
    assert client.exit_code == 0


@contextlib.contextmanager
def a_home() -> Iterator[Home]:
    """Directories for an engine, gone afterwards."""
    with short_directory() as directory:
        yield Home(directory)


async def ready(client: RuntimeClient, **options: Any) -> tuple[float, Environment]:
    """Seconds until an environment is of use, and it."""
    began = time.perf_counter()
    environment = await client.environment_start(**options)
    await first_byte(environment)
    return time.perf_counter() - began, environment


async def first_byte(environment: Environment) -> None:
    """Have it run something that says something."""
    done = await environment.run(SAYS)
    assert (done.exit_code, done.stdout) == (0, MARKER), done


async def ready_once(client: RuntimeClient, **options: Any) -> float:
    """Seconds until an environment is of use; it is stopped, which does not count."""
    seconds, environment = await ready(client, **options)
    await environment.aclose()
    return seconds


async def ready_together(client: RuntimeClient, count: int, **options: Any) -> tuple[float, list[Environment]]:
    """Seconds until so many, asked for at once, are all of use, and they."""
    began = time.perf_counter()
    found = await asyncio.gather(*(ready(client, **options) for _ in range(count)))
    return time.perf_counter() - began, [environment for _, environment in found]


async def stop_all(environments: list[Environment]) -> None:
    """End them, all at once."""
    await asyncio.gather(*(environment.aclose() for environment in environments))


async def filled(client: RuntimeClient) -> None:
    """Wait until the pool has all that it shall have."""

    async def is_filled() -> bool:
        return all(kind["ready"] == kind["size"] for kind in (await client.health()).details["pool"]["kinds"])

    await until(is_filled)


async def clocked(does: Callable[[], Awaitable[Any]]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    await does()
    return time.perf_counter() - began


class PodmanCli:
    """`podman` as a program on a private engine's storage, asking no service: as a script would use it.

    It has Podman's own settings and this host's conmon, no user namespace, no network, and the limits that fastclaw's
    containers have.

    Parameters:
        home: of the engine, which has the image already.
    """

    def __init__(self, home: Home) -> None:
        state, run = home.base / "s" / "fastclaw", home.run / "fastclaw"
        plan = plan_service(host_facts(state))
        paths = service_paths(state, run, run / "cli", plan)
        ulimits = [f"--ulimit=nofile={plan.facts.nofile}:{plan.facts.nofile}"]
        ulimits += [f"--ulimit=nproc={plan.facts.nproc}:{plan.facts.nproc}"]
        runtime = ["--cgroup-manager=cgroupfs", f"--runtime={plan.oci_runtime}"]
        self._podman = [*tool_argv(plan, paths), *runtime]
        self._flags = ["--network=none", *ulimits]

    def _podman_does(self, *words: str) -> str:
        done = subprocess.run([*self._podman, *words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def run(self) -> float:
        """Seconds of `podman run --rm IMAGE true`."""
        began = time.perf_counter()
        self._podman_does("run", "--rm", *self._flags, DEFAULT_IMAGE, *TRUE)
        return time.perf_counter() - began

    def run_detached(self, count: int, at_once: int) -> float:
        """Seconds of as many `podman run -d`, some at a time; their removal does not count."""

        def run_one(_: int) -> str:
            return self._podman_does("run", "-d", *self._flags, DEFAULT_IMAGE, "sleep", "1000").strip()

        began = time.perf_counter()
        with ThreadPoolExecutor(at_once) as threads:
            containers = list(threads.map(run_one, range(count)))
        seconds = time.perf_counter() - began
        self._podman_does("rm", "--force", "--time=0", *containers)
        return seconds


def everything_kb(client: RuntimeClient, home: Home) -> int:
    """Proportional memory (PSS) of all that a runtime has: itself, its service and helpers, what is in its containers,
    and their monitors. Processes that share one address space count once.
    """
    found = {client.pid, *descendants(client.pid), *(int(line.split()[0]) for line in home.processes())}
    apart: dict[str, list[int]] = {}
    for pid in found:
        beside = apart.setdefault(_namespace(pid), [])
        if not any(have_one_memory(pid, other) for other in beside):
            beside.append(pid)
    return sum(proportional_kb(pid) for pids in apart.values() for pid in pids)


def _namespace(pid: int) -> str:
    """Who shares an address space is in one PID namespace."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""
