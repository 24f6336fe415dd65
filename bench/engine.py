"""One private Podman service with four containers, for the benches that compare ways to use it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import InitPlan, container_spec
from fastclaw.engine.service.facts import host_facts, static_catatonit
from fastclaw.engine.service.plan import DEFAULT_IMAGE, plan_service
from fastclaw.engine.service.service import ManagedService
from fastclaw.errors import StartFailed
from fastclaw.linux.proc import this_process
from tests.engine_fixtures import short_directory, unusable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Iterator

    from fastclaw.engine.service.plan import ServicePlan

NAMESPACE = "bench"

CONTAINERS = 4
"""As many as the REST lane gains by."""


class Engine(NamedTuple):
    """A running service. `containers` are the full ids of running ones, all alike; the image is the default one.

    Parameters:
        versions: of Podman and its OCI runtime.
        plan: how it was started.
    """

    url: str
    containers: list[str]
    versions: dict[str, str]
    plan: ServicePlan

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
        service = ManagedService(plan, directory / "state", directory / "run")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(service.aclose)
            await service.start()
            lifecycle = EngineLifecycle(service.url)
            stack.push_async_callback(lifecycle.aclose)
            await lifecycle.ensure_image(DEFAULT_IMAGE)
            containers = [await _container(lifecycle, number, stack) for number in range(CONTAINERS)]
            version = await lifecycle.version()
            name, _, of_runtime = version.oci_runtime_version.partition(" version ")
            yield Engine(service.url, containers, {"Podman": version.podman, name: of_runtime}, plan)


async def _container(lifecycle: EngineLifecycle, number: int, stack: contextlib.AsyncExitStack) -> str:
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
