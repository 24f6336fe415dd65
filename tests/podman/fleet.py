"""Containers for tests of shards, and what the engine has of them."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

from fastclaw import limits
from fastclaw.podman.api import EngineLifecycle
from fastclaw.podman.container import Shard
from fastclaw.podman.container_spec import LABEL_NAMESPACE, InitPlan, container_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


class Fleet:
    """Makes shards in a namespace of its own.

    Attributes:
        override: goes into the spec of every shard made from now on.
    """

    def __init__(self, service: EngineService) -> None:
        self.engine = Engine(service.url)
        self.override: dict[str, Any] = {}
        self._image = service.image
        self._namespace = f"fleet-{next(_numbers)}"

    def make(self, place: int, on_death: Callable[[], None]) -> Shard:
        """As `Shards` wants it."""
        spec = container_spec(
            image=self._image,
            name=f"{self._namespace}-{next(_numbers)}",
            namespace=self._namespace,
            owner="o",
            shard=place,
            init=InitPlan(),
        )
        return Shard(self.engine, spec | self.override, InitPlan().processes, on_death)

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
        async with asyncio.timeout(PATIENCE_S):
            while await self.containers() != {*containers}:  # noqa: ASYNC110 - the engine sends no event
                await asyncio.sleep(limits.ENGINE_READY_POLL_MS / 1000)
