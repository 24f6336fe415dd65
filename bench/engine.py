"""One private Podman service with four containers, for the benches that compare ways to use it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import InitPlan, container_spec
from fastclaw.engine.service.facts import host_facts, static_catatonit
from fastclaw.engine.service.plan import DEFAULT_IMAGE, plan_service, runtime_argv, tool_argv
from fastclaw.engine.service.service import ManagedService
from fastclaw.engine.service.storage import service_paths
from fastclaw.errors import StartFailed
from fastclaw.linux.proc import this_process
from tests.engine_fixtures import short_directory, unusable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from fastclaw.engine.service.plan import ServicePlan

NAMESPACE = "bench"

CONTAINERS = 4
"""As many as the REST lane gains by."""


class Engine(NamedTuple):
    """A running service. `containers` are the full ids of running ones, all alike; the image is the default one.

    Parameters:
        versions: of Podman and its OCI runtime.
        runtime: its OCI runtime as a program, and `podman` itself on the same storage, which asks no service; both are
            to be started behind `launcher`.
    """

    url: str
    containers: list[str]
    versions: dict[str, str]
    launcher: list[str]
    runtime: list[str]
    podman: list[str]

    @property
    def socket(self) -> str:
        """Path of the service's socket."""
        return self.url.removeprefix("unix://")


@contextlib.asynccontextmanager
async def running_engine() -> AsyncIterator[Engine]:
    """A service with storage of its own, which is gone afterwards.

    Raises:
        StartFailed: Podman cannot be used here.
    """
    with short_directory() as directory:
        plan = plan_service(host_facts(directory))
        service = ManagedService(plan, *_places(directory))
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(service.aclose)
            await service.start()
            lifecycle = EngineLifecycle(service.url)
            stack.push_async_callback(lifecycle.aclose)
            await lifecycle.ensure_image(DEFAULT_IMAGE)
            containers = [await idle_container(lifecycle, number, stack) for number in range(CONTAINERS)]
            version = await lifecycle.version()
            name, _, of_runtime = version.oci_runtime_version.partition(" version ")
            versions = {"Podman": version.podman, name: of_runtime}
            yield Engine(service.url, containers, versions, *_programs(plan, directory))


def _places(directory: Path) -> tuple[Path, Path]:
    """What lasts, and what does not."""
    return directory / "state", directory / "run"


def _programs(plan: ServicePlan, directory: Path) -> tuple[list[str], list[str], list[str]]:
    """`launcher`, `runtime` and `podman` of an Engine."""
    state, run = _places(directory)
    *launcher, runtime = runtime_argv(plan)
    podman = tool_argv(plan, service_paths(state, run, run / "cli", plan))[len(plan.tool_launcher) :]
    return launcher, [runtime], [*podman, "--cgroup-manager=cgroupfs", f"--runtime={runtime}"]


async def idle_container(lifecycle: EngineLifecycle, number: int, stack: contextlib.AsyncExitStack) -> str:
    """One that has nothing but its init, until the stack ends."""
    spec = container_spec(
        image=DEFAULT_IMAGE,
        name=f"fastclaw-{NAMESPACE}-{number}",
        namespace=NAMESPACE,
        owner=this_process().label,
        number=number,
        init=InitPlan(catatonit=static_catatonit()),
    )
    container = await lifecycle.create_container(spec)
    stack.push_async_callback(lifecycle.remove_container, container)
    await lifecycle.start_container(container)
    return container


def engine_or_skip(runner: asyncio.Runner, versions: dict[str, str]) -> Iterator[Engine]:
    """For a fixture: a developer without an engine still gets the other benches; in CI that is an error.

    Parameters:
        versions: get the engine's.
    """
    stack = contextlib.AsyncExitStack()
    try:
        engine = runner.run(stack.enter_async_context(running_engine()))
        versions.update(engine.versions)
        yield engine
    except StartFailed as error:
        unusable(str(error))
    finally:
        runner.run(stack.aclose())
