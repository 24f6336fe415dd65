"""The production runtime: containers of a Podman engine, our own or one that a URL names.

Owns the order in which engine, image and containers come up, and what a dead owner left behind. How a process is
started is the lane's affair, how the engine is asked is `engine/`'s.
"""

import asyncio
import contextlib
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec

from fastclaw import limits
from fastclaw.decisions.container import (
    LABEL_NAMESPACE,
    LABEL_OWNER,
    InitPlan,
    Owner,
    OwnerFacts,
    container_spec,
    is_dead_owner,
    parse_owner,
)
from fastclaw.decisions.options import Options
from fastclaw.decisions.service import DEFAULT_IMAGE, ServicePlan, plan_service
from fastclaw.engine.dirs import default_run_dir, default_state_dir
from fastclaw.engine.host import host_facts, static_catatonit
from fastclaw.engine.lifecycle import EngineLifecycle
from fastclaw.engine.owner import boot_id, own_start_time, start_time
from fastclaw.engine.rest import RestLane
from fastclaw.engine.service import ManagedService
from fastclaw.engine.shard import Shard
from fastclaw.errors import StartFailed
from fastclaw.runtimes.managed import Environment, ManagedRuntime
from fastclaw.transport.listener import SocketDirectory
from fastclaw.transport.proctree import end_tree

logger = logging.getLogger(__name__)


def engine_url(options: Options) -> str | None:
    """The engine that the user named: `options.url`, else CONTAINER_HOST; None is one of our own."""
    return options.url or os.environ.get("CONTAINER_HOST") or None


def why_no_engine(options: Options) -> str | None:
    """Why Podman cannot be used here, in one line; None where it can, as far as can be told without starting it."""
    if engine_url(options) is not None:
        return None
    try:
        _plan(options)
    except StartFailed as error:
        return str(error)
    return None


def _state_dir(options: Options) -> Path:
    return Path(options.state_dir) if options.state_dir else default_state_dir()


def _plan(options: Options) -> ServicePlan:
    return plan_service(host_facts(_state_dir(options)), oci_runtime=options.oci_runtime, storage=options.storage)


class ContainerRuntime(ManagedRuntime):
    """Runs commands in containers, spread over `options.containers` of them."""

    name = "podman"

    def __init__(self) -> None:
        super().__init__()
        self._shards: list[Shard] = []
        self._engine: dict[str, Any] = {}

    async def _bring_up(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        try:
            async with asyncio.timeout(options.start_timeout_ms / 1000):
                return await self._bring_up_in_time(namespace, options, setup)
        except TimeoutError as error:
            raise StartFailed(
                f"the environment is not up after {options.start_timeout_ms} ms (options.start_timeout_ms)",
                "engine_timeout",
            ) from error

    async def _bring_up_in_time(
        self, namespace: str, options: Options, setup: contextlib.AsyncExitStack
    ) -> Environment:
        url = engine_url(options) or await self._own_engine(options, setup)
        init = InitPlan(catatonit=static_catatonit() if url.startswith("unix:") else None)
        engine = EngineLifecycle(url, options.engine_timeout_ms / 1000)
        setup.push_async_callback(engine.close)
        version = await engine.version()
        self._engine = {"managed": engine_url(options) is None, **msgspec.structs.asdict(version)}
        await remove_abandoned(engine, namespace)
        image = options.image or DEFAULT_IMAGE
        await engine.ensure_image(image, options.pull)
        self._shards = await self._create_shards(engine, namespace, options, image, init, setup)
        lane = RestLane(
            url,
            [shard.container for shard in self._shards],
            local=all(shard.is_local for shard in self._shards),
            end_tree=end_tree,
            timeout_ms=options.engine_timeout_ms,
        )
        setup.callback(lane.close)
        workspace = options.workspace.target if options.workspace else None
        return Environment(lane, {}, workspace, len(self._shards), options.max_starting or limits.MAX_STARTING_REST)

    async def _own_engine(self, options: Options, setup: contextlib.AsyncExitStack) -> str:
        service = ManagedService(_plan(options), _state_dir(options), default_run_dir())
        setup.push_async_callback(service.stop)
        await service.start()
        return service.url

    async def _create_shards(
        self,
        engine: EngineLifecycle,
        namespace: str,
        options: Options,
        image: str,
        init: InitPlan,
        setup: contextlib.AsyncExitStack,
    ) -> list[Shard]:
        """All at once; when one fails, those that came up go with the rest of the setup."""
        token = secrets.token_hex(4)
        shards = [Shard(engine) for _ in range(options.containers)]
        setup.push_async_callback(_remove_all, shards)
        starts = [
            shard.start(_spec(namespace, options, image, init, f"fastclaw-{namespace}-{token}-{index}", index))
            for index, shard in enumerate(shards)
        ]
        results = await asyncio.gather(*starts, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return shards

    async def _kill_shards(self) -> None:
        await asyncio.gather(*(shard.kill() for shard in self._shards))

    def _trouble(self) -> str | None:
        dead = sum(not shard.alive for shard in self._shards)
        if not dead:
            return None
        return f"{dead} of {len(self._shards)} containers are gone; shut down and initialize again"

    def _details(self) -> dict[str, Any]:
        return {"engine": self._engine}


def _spec(namespace: str, options: Options, image: str, init: InitPlan, name: str, shard: int) -> dict[str, Any]:
    workspace = options.workspace
    network = options.network.mode
    assert network in ("none", "open")  # read_options refuses the others
    return container_spec(
        image=image,
        name=name,
        namespace=namespace,
        owner=Owner(pid=os.getpid(), start_time=own_start_time(), boot_id=boot_id()).label,
        shard=shard,
        init=init,
        workspace=(workspace.source, workspace.target) if workspace else None,
        network=network,
        pids_limit=options.pids_limit,
        shm_bytes=options.shm_bytes,
        memory_bytes=options.memory_bytes,
        user=options.user,
        oci_runtime=options.oci_runtime,
    )


async def _remove_all(shards: list[Shard]) -> None:
    """Every container, even if one resists; the first error is raised then."""
    results = await asyncio.gather(*(shard.remove() for shard in shards), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def remove_abandoned(engine: EngineLifecycle, namespace: str) -> None:
    """Remove the containers that a dead fastclaw left in this namespace."""
    found = await engine.list_containers({LABEL_NAMESPACE: namespace})
    owners = {container.id: container.labels.get(LABEL_OWNER, "") for container in found}
    pids = {owner.pid for label in owners.values() if (owner := parse_owner(label)) is not None}
    facts = OwnerFacts(
        boot_id=boot_id(), start_times={pid: ticks for pid in pids if (ticks := start_time(pid)) is not None}
    )
    dead = [container for container, label in owners.items() if is_dead_owner(label, facts)]
    if dead:
        logger.info("removing %d containers that a dead owner left", len(dead))
    await asyncio.gather(*(engine.remove_container(container) for container in dead))
