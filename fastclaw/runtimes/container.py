"""The production runtime: containers of a Podman engine, our own or one that a URL names.

Owns the order in which engine, image and containers come up, and what a dead owner left behind. How a process is
started is the lane's affair, how the engine is asked is `engine/`'s.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
from collections.abc import Callable
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
from fastclaw.engine.shards import Shards
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
        self._shards: Shards | None = None
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
        self._shards = shards = Shards(options.containers, _shard_maker(engine, namespace, options, image, init))
        setup.push_async_callback(shards.aclose)
        await shards.start()
        lane = RestLane(url, shards, local=shards.is_local, end_tree=end_tree, timeout_ms=options.engine_timeout_ms)
        setup.callback(lane.close)
        workspace = options.workspace.target if options.workspace else None
        return Environment(lane, {}, workspace, len(shards), options.max_starting or limits.MAX_STARTING_REST)

    async def _own_engine(self, options: Options, setup: contextlib.AsyncExitStack) -> str:
        service = ManagedService(_plan(options), _state_dir(options), default_run_dir())
        setup.push_async_callback(service.stop)
        await service.start()
        return service.url

    def _trouble(self) -> str | None:
        counts = self._shards.counts() if self._shards else {"places": 0, "usable": 0}
        missing = counts["places"] - counts["usable"]
        return f"{missing} of {counts['places']} containers are gone; they are being replaced" if missing else None

    def _details(self) -> dict[str, Any]:
        return {"engine": self._engine, "containers": self._shards.counts() if self._shards else {}}


def _shard_maker(
    engine: EngineLifecycle, namespace: str, options: Options, image: str, init: InitPlan
) -> Callable[[int, Callable[[], None]], Shard]:
    """How a container for a place comes about; each gets a name of its own."""
    token, numbers = secrets.token_hex(4), itertools.count()

    def make(place: int, on_death: Callable[[], None]) -> Shard:
        name = f"fastclaw-{namespace}-{token}-{next(numbers)}"
        return Shard(engine, _spec(namespace, options, image, init, name, place), init.processes, on_death)

    return make


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
