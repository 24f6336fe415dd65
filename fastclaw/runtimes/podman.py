"""The production runtime: containers of a Podman engine, our own or one that a URL names.

Owns the order in which engine, image and containers come up, and what a dead owner left behind. How a process is
started is the lane's affair, how the engine is asked is `podman/`'s.
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
from fastclaw.errors import StartFailed
from fastclaw.linux.own_limits import dumps_after_setuid
from fastclaw.linux.owner import is_dead, parse_label, this_process
from fastclaw.network.bridge.bridge import BridgeNetwork, remove_abandoned_networks
from fastclaw.network.modes import Network, beside, open_network, overruled
from fastclaw.options import Options, no_templates
from fastclaw.podman.api import EngineLifecycle, EngineVersion
from fastclaw.podman.container import Shard, SpawnShard, SpawnShards, end_monitors
from fastclaw.podman.container_spec import (
    HOSTS,
    LABEL_NAMESPACE,
    LABEL_OWNER,
    PYTHON_TARGET,
    ContainerNetwork,
    InitPlan,
    Workspace,
    container_spec,
    spawner_pids,
)
from fastclaw.podman.containers import Shards
from fastclaw.podman.rest_lane.local_tree import end_tree
from fastclaw.podman.rest_lane.rest import RestLane
from fastclaw.podman.rights import USER_FILES, Rights, settle_rights
from fastclaw.podman.service.facts import engine_url, own_plan, own_state_dir, static_catatonit
from fastclaw.podman.service.plan import DEFAULT_IMAGE
from fastclaw.podman.service.service import ManagedService
from fastclaw.podman.service.storage import default_run_dir, disk_of, why_full
from fastclaw.processes.lane import Lane
from fastclaw.processes.sockets import SocketDirectory
from fastclaw.runtimes.managed import Environment, ManagedRuntime, plans
from fastclaw.spawner.binary import find_spawner, why_no_spawner
from fastclaw.spawner.spawn_lane import SpawnLane

logger = logging.getLogger(__name__)

MONITORS_STAY = (
    "for each exec the engine keeps two processes (conmon) for its exit_command_delay, 300 s by default; "
    "set exit_command_delay = 10 in [engine] of its containers.conf"
)
"""Those of an engine of our own go at once (podman/service/plan.py)."""

TEMPLATE_MODULE = Path(__file__).parent.parent / "template.py"
"""Found without importing it: it is for other interpreters."""


def why_not_spawn(url: str) -> str | None:
    """Why an engine's containers cannot have a spawner, in one line; None where they can, as far as can be told."""
    if not url.startswith("unix:"):
        return f"the engine at {url} is not on this host"
    if dumps_after_setuid():
        return "fs.suid_dumpable is 1, with which commands could read the spawner's memory; sysctl fs.suid_dumpable=0"
    return why_no_spawner()


class ContainerRuntime(ManagedRuntime):
    """Runs commands in containers, spread over `options.containers` of them."""

    name = "podman"

    def __init__(self) -> None:
        super().__init__()
        self._shards: Shards | None = None
        self._engine: dict[str, Any] = {}
        self._service: ManagedService | None = None
        self._network: Network | None = None
        self._why_not_spawn: str | None = None
        self._rights = Rights()

    async def _bring_up(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        try:
            async with asyncio.timeout(options.start_timeout_ms / 1000):
                return await self._bring_up_in_time(namespace, options, sockets, setup)
        except TimeoutError as error:
            raise StartFailed(
                f"the environment is not up after {options.start_timeout_ms} ms (options.start_timeout_ms)",
                "engine_timeout",
            ) from error

    async def _bring_up_in_time(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        url = engine_url(options) or await self._own_engine(options, setup)
        reserve = None if self._service is None else self._service.reserve
        engine = EngineLifecycle(url, options.engine_timeout_ms / 1000, reserve)
        setup.push_async_callback(engine.close)
        version = await engine.version()
        self._engine = {"managed": engine_url(options) is None, **msgspec.structs.asdict(version)}
        await asyncio.gather(remove_abandoned(engine, namespace), remove_abandoned_networks())
        image = options.image or DEFAULT_IMAGE
        await engine.ensure_image(image, options.pull)
        token = secrets.token_hex(4)
        template = Template(namespace, options, image, token)
        await self._settle_rights(url, engine, version, template, setup)
        if url.startswith("unix:"):
            template.hosts = _write_hosts(sockets, self._rights)
        await _make_volume(engine, template, setup)
        lane = await self._lane(url, engine, template, sockets, setup)
        assert self._shards is not None
        assert self._network is not None
        most = limits.MAX_STARTING_SPAWN if lane.name == "spawn" else limits.MAX_STARTING_REST
        starting = options.max_starting or most
        directory = await engine.image_directory(image)
        warnings = [*self._warnings(lane), *overruled(options.network)]
        for warning in warnings:
            logger.warning("%s", warning)
        variables = beside(self._network.env, options.env)
        return Environment(lane, variables, template.working_dir, len(self._shards), starting, directory, warnings)

    def _warnings(self, lane: Lane) -> list[str]:
        found = [] if self._rights.note is None else [self._rights.note]
        if lane.name == "spawn":
            return found
        if self._why_not_spawn is not None:
            found.append(f"the REST lane, which is far slower: {self._why_not_spawn}")
        if not self._engine["managed"]:
            found.append(MONITORS_STAY)
        return found

    async def _settle_rights(
        self,
        url: str,
        engine: EngineLifecycle,
        version: EngineVersion,
        template: "Template",
        setup: contextlib.AsyncExitStack,
    ) -> None:
        options = template.options
        template.user = options.user or await engine.image_user(template.image) or "0"
        self._rights = template.rights = await settle_rights(
            options,
            is_here=url.startswith("unix:"),
            has_spawner=options.lane != "rest" and why_not_spawn(url) is None,
            version=version,
            user=template.user,
            read_files=lambda: engine.image_files(template.probe(), USER_FILES),
            setup=setup,
        )

    async def _lane(
        self,
        url: str,
        engine: EngineLifecycle,
        template: "Template",
        sockets: SocketDirectory,
        setup: contextlib.AsyncExitStack,
    ) -> Lane:
        """The lane that the options name; `auto` is spawn, and REST where that cannot be had."""
        wanted = "spawn" if template.options.templates else template.options.lane
        self._why_not_spawn = None if wanted == "rest" else why_not_spawn(url)
        if self._why_not_spawn is not None and template.options.templates:
            raise no_templates(f"the REST lane ({self._why_not_spawn})")
        if self._why_not_spawn is not None and wanted == "spawn":
            raise StartFailed(f"no spawn lane: {self._why_not_spawn}", "unsupported")
        if wanted != "rest" and self._why_not_spawn is None:
            async with contextlib.AsyncExitStack() as attempt:
                network = await self._connect(url, template, sockets, attempt, has_spawner=True)
                try:
                    lane = await self._spawn_lane(engine, template, sockets, network, attempt)
                except StartFailed as error:
                    if wanted == "spawn":
                        raise
                    self._why_not_spawn = str(error)
                else:
                    setup.push_async_callback(attempt.pop_all().aclose)
                    return lane
        network = await self._connect(url, template, sockets, setup, has_spawner=False)
        return await self._rest_lane(url, engine, template, network, setup)

    async def _spawn_lane(
        self,
        engine: EngineLifecycle,
        template: "Template",
        sockets: SocketDirectory,
        network: Network,
        setup: contextlib.AsyncExitStack,
    ) -> Lane:
        binary = find_spawner()
        if binary is None:
            raise StartFailed(why_no_spawner() or "no spawner", "unsupported")
        warm = plans(template.options, template.working_dir, python_path=PYTHON_TARGET)
        module = str(TEMPLATE_MODULE) if warm is not None else None

        def make(place: int, on_death: Callable[[], None]) -> Shard:
            name = template.next_name()
            path = f"{sockets.path}/{name[-8:]}.init"
            init = InitPlan(spawner=str(binary), socket=path, template_module=module)
            spec = template.spec(name, place, init, network.spec)
            return SpawnShard(
                engine,
                spec,
                on_death,
                path=path,
                user=template.user,
                plans=warm,
                network=network,
                collect_bytes=template.options.run_output_bytes,
                pids_limit=template.options.pids_limit,
                capabilities=template.rights.capabilities,
                root=template.rights.ids or 0,
            )

        shards = await self._start_shards(Shards(1, make), setup)
        home = SpawnShards(shards)
        return SpawnLane(home, can_set_user=all(one.spawner.hello.can_set_user for one in home.all()))

    async def _rest_lane(
        self,
        url: str,
        engine: EngineLifecycle,
        template: "Template",
        network: Network,
        setup: contextlib.AsyncExitStack,
    ) -> Lane:
        init = InitPlan(catatonit=static_catatonit() if url.startswith("unix:") else None)

        def make(place: int, on_death: Callable[[], None]) -> Shard:
            spec = template.spec(template.next_name(), place, init, network.spec)
            return Shard(engine, spec, init.processes, on_death, network)

        options = template.options
        shards = await self._start_shards(Shards(options.containers, make, wears=options.containers > 1), setup)
        lane = RestLane(
            url,
            shards,
            local=shards.is_local,
            end_tree=end_tree,
            timeout_ms=options.engine_timeout_ms,
            run_output_bytes=options.run_output_bytes,
            reopens=template.rights.ids is None,
        )
        setup.push_async_callback(lane.aclose)
        return lane

    async def _connect(
        self,
        url: str,
        template: "Template",
        sockets: SocketDirectory,
        setup: contextlib.AsyncExitStack,
        *,
        has_spawner: bool,
    ) -> Network:
        """What the containers are connected to; it is there before the first of them, and goes after the last."""
        self._network = await open_network(
            template.options.network,
            has_spawner=has_spawner,
            bridge=lambda: BridgeNetwork(sockets.path),
            setup=setup,
            engine=url,
        )
        return self._network

    async def _start_shards(self, shards: Shards, setup: contextlib.AsyncExitStack) -> Shards:
        try:
            await shards.start()
        except BaseException:
            await asyncio.shield(shards.aclose())
            raise
        setup.push_async_callback(shards.aclose)
        self._shards = shards
        return shards

    async def _own_engine(self, options: Options, setup: contextlib.AsyncExitStack) -> str:
        self._service = service = ManagedService(own_plan(options), own_state_dir(options), default_run_dir())
        setup.push_async_callback(service.stop)
        await service.start()
        return service.url

    def _trouble(self) -> str | None:
        counts = self._shards.counts() if self._shards else {"places": 0, "usable": 0}
        missing = counts["places"] - counts["usable"]
        if missing:
            return f"{missing} of {counts['places']} containers are gone; they are being replaced"
        if self._service is not None and self._service.trouble is not None:
            return self._service.trouble
        return why_full(self._disk()) or (self._network.trouble if self._network else None)

    def _disk(self) -> dict[str, Any] | None:
        """Of the storage, where that is on this host."""
        here = self._shards is not None and self._shards.is_local
        return disk_of(Path(self._engine["storage"])) if here and self._engine["storage"] else None

    def _details(self) -> dict[str, Any]:
        reason = {"why_not_spawn": self._why_not_spawn} if self._why_not_spawn else {}
        return {
            **reason,
            "engine": self._engine,
            "rights": self._rights.health(),
            "containers": self._shards.counts() if self._shards else {},
            "limits": self._shards.limits() if self._shards else {},
            "network": self._network.health() if self._network else {},
            **({"disk": disk} if (disk := self._disk()) is not None else {}),
        }


async def _make_volume(engine: EngineLifecycle, template: "Template", setup: contextlib.AsyncExitStack) -> None:
    """The workspace, where it is no directory of the user's: it goes with the environment."""
    if template.workspace is None or template.workspace[0].startswith("/"):
        return
    name, _ = template.workspace
    setup.push_async_callback(engine.remove_volume, name)
    labels = {LABEL_NAMESPACE: template.namespace, LABEL_OWNER: this_process().label}
    await engine.create_volume(name, labels, template.rights.volume_owner)


def _write_hosts(sockets: SocketDirectory, rights: Rights) -> str:
    """The containers' hosts(5), for their root to write to, as an environment is one file system."""
    path = Path(sockets.path, "hosts")
    path.write_text(HOSTS, encoding="ascii")
    path.chmod(0o644)
    if rights.ids is not None:
        os.chown(path, rights.ids, rights.ids)
    return str(path)


class Template:
    """What all containers of an environment have in common; each gets a name of its own."""

    def __init__(self, namespace: str, options: Options, image: str, token: str) -> None:
        self.options, self.image, self.namespace = options, image, namespace
        self.user, self.rights = "0", Rights()
        self.hosts: str | None = None
        self._token = token
        self._numbers = itertools.count()

    @property
    def workspace(self) -> Workspace | None:
        """The user's directory, else a volume, and where it is inside."""
        place = self.options.workspace
        return None if place is None else (place.source or f"fastclaw-{self.namespace}-{self._token}", place.target)

    @property
    def working_dir(self) -> str | None:
        """The workspace as the processes see it."""
        return self.workspace[1] if self.workspace else None

    def next_name(self) -> str:
        return f"fastclaw-{self.namespace}-{self._token}-{next(self._numbers)}"

    def probe(self) -> dict[str, Any]:
        """Of a container that never runs."""
        return container_spec(
            image=self.image,
            name=self.next_name(),
            namespace=self.namespace,
            owner=this_process().label,
            shard=0,
            init=InitPlan(),
        )

    def spec(self, name: str, place: int, init: InitPlan, network: ContainerNetwork) -> dict[str, Any]:
        """The body of the create call."""
        options = self.options
        return container_spec(
            image=self.image,
            name=name,
            namespace=self.namespace,
            owner=this_process().label,
            shard=place,
            init=init,
            workspace=self.workspace,
            workspace_option=self.rights.workspace_option,
            network=network,
            hosts=self.hosts,
            pids_limit=options.pids_limit,
            own_pids=spawner_pids(limits.SPAWN_SPARE_REAPERS) if init.spawner else 0,
            shm_bytes=options.shm_bytes,
            memory_bytes=options.memory_bytes,
            disk_bytes=options.disk_bytes,
            user=options.user,
            capabilities=self.rights.capabilities,
            ids=self.rights.ids,
            oci_runtime=options.oci_runtime,
        )


async def remove_abandoned(engine: EngineLifecycle, namespace: str) -> None:
    """Remove the containers and volumes that a dead fastclaw left in this namespace."""
    mine = {LABEL_NAMESPACE: namespace}
    containers, volumes = await asyncio.gather(engine.list_containers(mine), engine.list_volumes(mine))
    dead = [found.id for found in containers if is_dead(parse_label(found.labels.get(LABEL_OWNER, "")))]
    if dead:
        logger.info("removing %d containers that a dead owner left", len(dead))
    await asyncio.gather(*(engine.remove_container(container) for container in dead))
    if dead and engine.url.startswith("unix:"):
        await asyncio.to_thread(end_monitors, dead)
    unused = [found.name for found in volumes if is_dead(parse_label(found.labels.get(LABEL_OWNER, "")))]
    await asyncio.gather(*(engine.remove_volume(volume) for volume in unused))
