"""Containers for tests, and what the engine has of them."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container import Container, SpawnerContainer
from fastclaw.engine.container_spec import LABEL_NAMESPACE, InitPlan, container_spec
from fastclaw.spawner.spawner_host import find_spawner
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.engine_fixtures import EngineService

_numbers = count()

PATIENCE_S = 20
"""For what takes milliseconds on a machine that is idle."""


class Engine(EngineLifecycle):
    """Says when a container is being created, and when it is being started."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.creating, self.starting = asyncio.Event(), asyncio.Event()

    async def create_container(self, spec: Mapping[str, Any]) -> str:
        self.creating.set()
        return await super().create_container(spec)

    async def start_container(self, container: str) -> None:
        self.starting.set()
        await super().start_container(container)


class Deaths:
    """Counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.first = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.first.set()


class Fleet:
    """Makes containers in a namespace of its own.

    Parameters:
        directory: where spawners are awaited.

    Attributes:
        deaths: of containers with a spawner, and of those that are told it.
        override: goes into the spec of every container made from now on.
    """

    def __init__(self, service: EngineService, directory: Path) -> None:
        self.engine = Engine(service.url)
        self.directory = directory
        self.deaths = Deaths()
        self.override: dict[str, Any] = {}
        self._image = service.image
        self._namespace = f"fleet-{next(_numbers)}"

    def _spec(self, number: int, init: InitPlan) -> dict[str, Any]:
        name, space = f"{self._namespace}-{next(_numbers)}", self._namespace
        spec = container_spec(image=self._image, name=name, namespace=space, owner="o", init=init, number=number)
        return spec | self.override

    def make(self, number: int = 0, on_death: Callable[[], None] | None = None) -> Container:
        """As `Containers` wants it."""
        init = InitPlan()
        return Container(self.engine, self._spec(number, init), init.processes, on_death or self.deaths)

    def make_spawner(self, user: str = "0", on_death: Callable[[], None] | None = None) -> SpawnerContainer:
        """One with a spawner."""
        path = str(self.directory / f"{next(_numbers)}.init")
        spec = self._spec(0, InitPlan(spawner=str(find_spawner()), socket=path))
        mappings = spec.get("idmappings")
        root = mappings["UIDMap"][0]["host_id"] if mappings else 0
        return SpawnerContainer(self.engine, spec, on_death or self.deaths, path=path, user=user, root=root)

    async def containers(self) -> set[str]:
        """Ids of all containers of this fleet, in any state."""
        return {found.id for found in await self.engine.list_containers({LABEL_NAMESPACE: self._namespace})}

    async def init_of(self, container: str) -> int:
        """Pid of its PID 1."""
        state = await self.engine.inspect_container(container)
        assert state is not None
        return state.pid

    async def only(self, *containers: str) -> None:
        """Return once the engine has these and no others."""

        async def has_these() -> bool:
            return await self.containers() == {*containers}

        await until(has_these, PATIENCE_S)
