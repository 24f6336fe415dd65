"""The production runtime: containers of a Podman engine, our own or one that a URL names.

Owns the order in which engine, image and containers come up, and what a dead owner left behind. How a process is
started is the lane's affair, how the engine is asked is `engine/`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastclaw import engine_limits, limits, stages
from fastclaw.engine.container import Container, ContainerEngine, SpawnerContainer
from fastclaw.engine.container_spec import (
    HOSTS,
    LABEL_NAMESPACE,
    LABEL_OWNER,
    PYTHON_TARGET,
    ContainerNetwork,
    InitPlan,
    Workspace,
    container_labels,
    container_spec,
    spawner_pids,
)
from fastclaw.engine.containers import Containers, SpawnerSlot
from fastclaw.engine.engines import Engines
from fastclaw.engine.gvisor import is_gvisor, why_no_network, why_too_old
from fastclaw.engine.rest_lane.rest import RestLane
from fastclaw.engine.rights import USER_FILES, IdRanges, Rights, settle_rights
from fastclaw.engine.service.facts import static_catatonit
from fastclaw.engine.service.plan import DEFAULT_IMAGE
from fastclaw.engine.service.storage import disk_of, why_full
from fastclaw.errors import StartFailed
from fastclaw.images import ImageResult, LoadedImages
from fastclaw.linux.meter import Takes, together
from fastclaw.linux.own_process import dumps_after_setuid
from fastclaw.linux.proc import this_process
from fastclaw.network.bridge.bridge import FirewalledBridge, remove_abandoned_networks
from fastclaw.network.egress.proxy import EgressProcess
from fastclaw.network.modes import EnvironmentNetwork, beside, open_network, overruled
from fastclaw.options import Options, no_templates
from fastclaw.runtimes.sandbox import Sandbox, SandboxFactory, SandboxFacts, plans
from fastclaw.spawner.spawn_lane import SpawnLane
from fastclaw.spawner.spawner_host import find_spawner, why_no_spawner

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Collection

    from fastclaw.engine.api import EngineLifecycle
    from fastclaw.engine.dialects import EngineVersion
    from fastclaw.engine.engines import Engine, EngineKind
    from fastclaw.engine.images import ImageFacts
    from fastclaw.images import BuildImage, LoadImages, PullImage
    from fastclaw.processes.lane import Lane
    from fastclaw.processes.listeners import SocketDirectory
    from fastclaw.progress import Tell
    from fastclaw.stages import Flight

logger = logging.getLogger(__name__)

MONITORS_STAY = (
    "for each exec the engine keeps two processes (conmon) for its exit_command_delay, 300 s by default; "
    "set exit_command_delay = 10 in [engine] of its containers.conf"
)
"""Those of an engine of our own go at once (engine/service/plan.py)."""

NO_SPAWNER = "the REST lane has no spawner that could listen inside"

TEMPLATE_MODULE = Path(__file__).parent.parent / "template.py"
"""Found without importing it: it is for other interpreters."""


def limits_not_in_force(options: Options, held: Collection[str]) -> list[str]:
    """The options whose limits the kernel does not hold.

    Parameters:
        held: the controllers of cgroups that hold one.
    """
    options_of = {"memory": "memory_bytes", "pids": "pids_limit", "cpu": "cpus", "cpuset": "cpuset"}
    return [
        name for controller, name in options_of.items() if controller not in held and getattr(options, name) is not None
    ]


def _not_in_force(name: str) -> str:
    return f"options.{name} is not in force: its cgroup controller is not there; fastclaw doctor says what it takes"


def _is_chosen(options: Options, name: str) -> bool:
    return bool(getattr(options, name) != getattr(Options(), name))


def why_not_spawn(url: str) -> str | None:
    """Why an engine's containers cannot have a spawner, in one line; None where they can, as far as can be told."""
    if not url.startswith("unix:"):
        return f"the engine at {url} is not on this host"
    if dumps_after_setuid():
        return "fs.suid_dumpable is 1, with which commands could read the spawner's memory; sysctl fs.suid_dumpable=0"
    return why_no_spawner()


class _Up(NamedTuple):
    """What has been brought up, as `health` tells of it."""

    lane: Lane
    containers: SpawnerSlot | Containers
    network: EnvironmentNetwork


class PodmanSandboxes(SandboxFactory):
    """Containers of engines that are each connected once."""

    name = "podman"
    kind: EngineKind = "podman"

    def __init__(self, namespace: str, sockets: SocketDirectory) -> None:
        super().__init__(namespace, sockets)
        self.engines = Engines(namespace, self.kind, sockets.path)
        self.egress = EgressProcess()
        self.id_ranges = IdRanges()
        self._networks: asyncio.Task[None] | None = None

    def make(self, options: Options) -> PodmanSandbox:
        return PodmanSandbox(options, self)

    async def images(self, options: Options) -> EngineImages:
        return EngineImages((await self.engines.get(options)).lifecycle)

    def health(self) -> dict[str, Any]:
        """How fast each engine is, and how many calls it has at a time."""
        return {"engines": [engine.pace() for engine in self.engines.connected()]}

    def decisions(self) -> Counter[tuple[str, str]]:
        return self.egress.decisions()

    async def remove_abandoned_networks(self) -> None:
        """Once: those of every fastclaw that was killed on this host."""
        if self._networks is None:
            self._networks = asyncio.get_running_loop().create_task(remove_abandoned_networks())
        await asyncio.shield(self._networks)

    async def aclose(self) -> None:
        if self._networks is not None:
            await asyncio.wait((self._networks,))
        try:
            await self.egress.aclose()
        finally:
            await self.engines.aclose()


class DockerSandboxes(PodmanSandboxes):
    """The same of Docker."""

    name = "docker"
    kind = "docker"


class EngineImages:
    """The images of an engine (`sandbox.ImageStore`)."""

    def __init__(self, engine: EngineLifecycle) -> None:
        self._engine = engine

    async def pull(self, request: PullImage, tell: Tell | None) -> ImageResult:
        found = await self._engine.ensure_image(request.image, request.pull, tell, engine_limits.IMAGE_TIMEOUT_MS)
        return ImageResult(image=request.image, id=found.id)

    async def build(self, request: BuildImage, tell: Tell | None) -> ImageResult:
        built = await self._engine.build_image(request, tell)
        return ImageResult(image=request.tag or built, id=built)

    async def load(self, request: LoadImages, tell: Tell | None) -> LoadedImages:
        return LoadedImages(images=await self._engine.load_images(request.archive, tell))


class PodmanSandbox(Sandbox):
    """A container, or on the REST lane `options.containers` of them, with its network, its ids and its volume."""

    def __init__(self, options: Options, factory: PodmanSandboxes) -> None:
        super().__init__(options)
        self._factory = factory
        self._rights = Rights()
        self._why_not_spawn: str | None = None
        self._engine: Engine | None = None
        self._image: ImageFacts | None = None
        self._up: _Up | None = None

    async def _bring_up(self, setup: contextlib.AsyncExitStack) -> SandboxFacts:
        timeout_ms = self.options.start_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._bring_up_as_asked(setup)
        except TimeoutError as error:
            raise StartFailed(
                f"the environment is not up after {timeout_ms} ms (options.start_timeout_ms)", "engine_timeout"
            ) from error

    async def _bring_up_as_asked(self, setup: contextlib.AsyncExitStack) -> SandboxFacts:
        """Where only a clone will do, the first of its kind is made to be cloned, and goes again."""
        self.facts = await self._bring_up_once(setup)
        if self.options.clone == "always" and self.described().made_by != "clone":
            await asyncio.shield(setup.aclose())
            self.facts = await self._bring_up_once(setup)
            made = self.described()
            if made.made_by != "clone":
                raise StartFailed(f"no clone: {made.why_no_clone}; set options.clone to auto", "unsupported")
        return self.facts

    async def _bring_up_once(self, setup: contextlib.AsyncExitStack) -> SandboxFacts:
        options, sockets = self.options, self._factory.sockets
        engine, _ = await asyncio.gather(self._factory.engines.get(options), self._factory.remove_abandoned_networks())
        self._engine = engine
        plan = ContainerPlan(self._factory.namespace, options, engine, self._flight)
        _check_gvisor(plan, engine)
        self._image = image = await plan.engine.ensure_image(plan.image, options.pull, self._tell)
        await self._settle_rights(plan, image, engine.version, setup)
        if plan.is_here:
            plan.hosts = _write_hosts(sockets, plan, setup)
        await _make_volume(plan, setup)
        self._flight.reach(stages.PREPARED)
        self._up = up = await self._lane(plan, sockets, setup)
        warnings = [*self._warnings(up.lane), *overruled(options.network)]
        for warning in warnings:
            logger.warning("%s", warning)
        # Said, but not logged anew by every command in a terminal: a default that this host does not have.
        warnings += [_not_in_force(name) for name in self._unheld() if not _is_chosen(options, name)]
        most = limits.MAX_STARTING_SPAWN if up.lane.name == "spawn" else limits.MAX_STARTING_REST
        who = up.containers.identity
        directory = plan.working_dir or image.working_dir
        return SandboxFacts(
            lane=up.lane,
            files=up.lane.files(directory) if isinstance(up.lane, RestLane) else None,
            env=beside(up.network.env, options.env),
            workspace=plan.working_dir,
            directory=directory,
            containers=len(up.containers),
            max_starting=options.max_starting or most,
            user=plan.user if who is None else f"{who.uid}:{who.gid}",
            home=None if who is None else who.home,
            image=plan.image,
            warnings=warnings,
            labels=container_labels(plan.namespace, this_process().label, 0),
        )

    def described(self) -> SandboxFacts:
        """With the container that is in use now: one that has died is followed by another."""
        container = None if self._up is None else self._up.containers.first
        if container is None or self._engine is None:
            return self.facts
        made_by, why = self._engine.clones.made_by(container.id)
        if self.options.clone == "never":
            why = "options.clone is never"
        elif self.options.oci_runtime_flags:
            why = "options.oci_runtime_flags are for containers of the engine"
        return self.facts._replace(container=container.name, made_by=made_by, why_no_clone=why)

    def _warnings(self, lane: Lane) -> list[str]:
        found = [] if self._rights.note is None else [self._rights.note]
        found += [_not_in_force(name) for name in self._unheld() if _is_chosen(self.options, name)]
        if lane.name == "spawn":
            return found
        if self._why_not_spawn is not None:
            found.append(f"the REST lane, which is far slower: {self._why_not_spawn}")
        if self._engine is not None and self._engine.service is None and self._factory.kind == "podman":
            found.append(MONITORS_STAY)
        return found

    def _unheld(self) -> list[str]:
        """The options whose limits are not in force: as is seen where the container is this host's, else as the engine
        says."""
        container = None if self._up is None else self._up.containers.first
        if container is None or self._engine is None:
            return []
        held = self._engine.version.controllers if container.held is None else container.held
        return limits_not_in_force(self.options, held)

    async def _settle_rights(
        self, plan: ContainerPlan, image: ImageFacts, version: EngineVersion, setup: contextlib.AsyncExitStack
    ) -> None:
        options, engine = plan.options, plan.engine
        plan.user = options.user or image.user or "0"
        self._rights = plan.rights = await settle_rights(
            options,
            is_here=plan.is_here,
            has_spawner=options.lane != "rest" and why_not_spawn(engine.url) is None,
            version=version,
            user=plan.user,
            read_files=lambda: engine.image_files(image, plan.probe(), USER_FILES),
            ranges=self._factory.id_ranges,
            setup=setup,
        )

    async def _lane(self, plan: ContainerPlan, sockets: SocketDirectory, setup: contextlib.AsyncExitStack) -> _Up:
        """The lane that the options name; `auto` is spawn, and REST where that cannot be had."""
        wanted = "spawn" if plan.options.templates else plan.options.lane
        self._why_not_spawn = None if wanted == "rest" else why_not_spawn(plan.engine.url)
        if self._why_not_spawn is not None and plan.options.templates:
            raise no_templates(f"the REST lane ({self._why_not_spawn})")
        if self._why_not_spawn is not None and wanted == "spawn":
            raise StartFailed(f"no spawn lane: {self._why_not_spawn}", "unsupported")
        if wanted != "rest" and self._why_not_spawn is None:
            async with contextlib.AsyncExitStack() as attempt:
                why_no_listener = "no descriptor leaves gVisor" if plan.is_gvisor else None
                network = await self._connect(plan, attempt, why_no_listener)
                try:
                    up = await _spawn_lane(plan, network, sockets, attempt)
                except StartFailed as error:
                    if wanted == "spawn" or error.reason in {"engine_unavailable", "engine_timeout"}:
                        raise
                    self._why_not_spawn = str(error)
                else:
                    setup.push_async_callback(attempt.pop_all().aclose)
                    return up
        return await _rest_lane(plan, await self._connect(plan, setup, NO_SPAWNER), setup)

    async def _connect(
        self, plan: ContainerPlan, setup: contextlib.AsyncExitStack, why_no_listener: str | None
    ) -> EnvironmentNetwork:
        """What the containers are connected to; it is there before the first of them, and goes after the last."""
        return await open_network(
            plan.options.network,
            why_no_listener=why_no_listener,
            bridge=lambda: FirewalledBridge(self._factory.sockets.path),
            egress=self._factory.egress,
            setup=setup,
            engine=plan.engine.url,
        )

    @property
    def is_alive(self) -> bool:
        return self._up is not None and self._up.containers.counts()["usable"] > 0

    async def is_fresh(self) -> bool:
        """Whether its image is still what is meant by that name."""
        if self._engine is None:
            return False
        return await self._engine.lifecycle.image(self.options.image or DEFAULT_IMAGE) == self._image

    async def kill(self) -> None:
        if self._up is not None:
            await self._up.containers.kill()

    @property
    def trouble(self) -> str | None:
        if self._up is None:
            return None
        counts = self._up.containers.counts()
        missing = counts["places"] - counts["usable"]
        if missing:
            return f"{missing} of {counts['places']} containers are gone; they are being replaced"
        assert self._engine is not None
        return self._engine.trouble or why_full(self._disk()) or self._up.network.trouble

    def _disk(self) -> dict[str, Any] | None:
        """Of the storage, where that is on this host."""
        here = self._up is not None and self._up.containers.is_local
        storage = "" if self._engine is None else self._engine.version.storage
        return disk_of(Path(storage)) if here and storage else None

    def takes(self) -> Takes:
        if self._up is None:
            return Takes()
        read = [container.meter.read() for container in self._up.containers.in_use if container.meter is not None]
        takes = together(read) if read else Takes()
        moved = self._up.network.health().get("bytes")
        if takes.network_in_bytes is None and moved is not None:
            takes = takes._replace(network_in_bytes=moved["received"], network_out_bytes=moved["sent"])
        return takes

    def decisions(self) -> dict[str, int] | None:
        counted = {} if self._up is None else self._up.network.health()
        if "allowed" not in counted:
            return None
        refused = {name: sum(counted[name].values()) for name in ("denied", "failed")}
        return {"allowed": counted["allowed"], **refused}

    def details(self) -> dict[str, Any]:
        if self._up is None or self._engine is None:
            return {}
        reason = {"why_not_spawn": self._why_not_spawn} if self._why_not_spawn else {}
        disk = self._disk()
        return {
            **reason,
            "engine": self._engine.health(),
            "rights": self._rights.health(),
            "containers": self._up.containers.counts(),
            "limits": self._up.containers.limits(),
            **({"limits_not_in_force": unheld} if (unheld := self._unheld()) else {}),
            "network": self._up.network.health(),
            **({} if disk is None else {"disk": disk}),
        }


def _check_gvisor(plan: ContainerPlan, engine: Engine) -> None:
    if not plan.is_gvisor:
        return
    network, flags = plan.options.network, plan.options.oci_runtime_flags
    why = why_too_old(engine.version.oci_runtime_version) if is_gvisor(engine.version.oci_runtime) else None
    if why is None and (network.allow or network.mode != "proxy"):
        why = why_no_network(network.mode, flags if engine.service is not None else None)
    if why is not None:
        raise StartFailed(why, "unsupported")


async def _spawn_lane(
    plan: ContainerPlan, network: EnvironmentNetwork, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
) -> _Up:
    binary = find_spawner()
    if binary is None:
        raise StartFailed(why_no_spawner() or "no spawner", "unsupported")
    options = plan.options
    warm = plans(options, plan.working_dir, python_path=PYTHON_TARGET)
    module = str(TEMPLATE_MODULE) if warm is not None else None

    def make(on_death: Callable[[], None]) -> SpawnerContainer:
        name = plan.next_name()
        path = f"{sockets.path}/{name.removeprefix(f'fastclaw-{plan.namespace}-')}.init"
        secret = secrets.token_hex() if plan.is_gvisor else None
        init = InitPlan(spawner=str(binary), socket=path, template_module=module, secret=secret)
        return SpawnerContainer(
            plan.maker,
            plan.spec(name, 0, init, network.spec),
            on_death,
            path=path,
            user=plan.user,
            plans=warm,
            network=network,
            flight=plan.flight,
            collect_bytes=options.run_output_bytes,
            pids_limit=options.pids_limit,
            capabilities=plan.rights.capabilities,
            root=plan.root,
            secret=secret,
        )

    slot = SpawnerSlot(make)
    await _start(slot, setup)
    host = slot.host
    lane = SpawnLane(slot, can_set_user=host is None or host.spawner.hello.can_set_user)
    return _Up(lane, slot, network)


async def _rest_lane(plan: ContainerPlan, network: EnvironmentNetwork, setup: contextlib.AsyncExitStack) -> _Up:
    options = plan.options
    init = InitPlan(catatonit=static_catatonit() if plan.is_here else None)

    def make(number: int, on_death: Callable[[], None]) -> Container:
        spec = plan.spec(plan.next_name(), number, init, network.spec)
        return Container(plan.maker, spec, init.processes, on_death, network, plan.flight)

    containers = Containers(options.containers, make, wears=options.containers > 1)
    await _start(containers, setup)
    lane = RestLane(
        plan.engine.url,
        containers,
        local=containers.is_local,
        timeout_ms=options.engine_timeout_ms,
        run_output_bytes=options.run_output_bytes,
        reopens=plan.rights.ids is None,
        dialect=plan.engine.dialect,
    )
    setup.push_async_callback(lane.aclose)
    return _Up(lane, containers, network)


async def _start(containers: SpawnerSlot | Containers, setup: contextlib.AsyncExitStack) -> None:
    try:
        await containers.start()
    except BaseException:
        await asyncio.shield(containers.aclose())
        raise
    setup.push_async_callback(containers.aclose)


async def _make_volume(plan: ContainerPlan, setup: contextlib.AsyncExitStack) -> None:
    """The workspace, where it is no directory of the user's: it goes with the environment."""
    if plan.workspace is None or plan.workspace[0].startswith("/"):
        return
    name, _ = plan.workspace
    setup.push_async_callback(plan.maker.remove_volume, name)
    labels = {LABEL_NAMESPACE: plan.namespace, LABEL_OWNER: this_process().label}
    await plan.maker.create_volume(name, labels, plan.rights.volume_owner)


def _write_hosts(sockets: SocketDirectory, plan: ContainerPlan, setup: contextlib.AsyncExitStack) -> str:
    """The containers' hosts(5), for their root to write to, as an environment is one file system."""
    path, ids = Path(sockets.path, f"{plan.token}.hosts"), plan.rights.ids
    setup.callback(path.unlink, missing_ok=True)
    path.write_text(HOSTS, encoding="ascii")
    path.chmod(0o644)
    if ids is not None:
        os.chown(path, ids, ids)
    return str(path)


class ContainerPlan:
    """What all containers of an environment have in common; each gets a name of its own.

    Attributes:
        flight: of the environment's start.
        token: tells its containers from those of all others.
        user: the default user, by name or number.
        controllers: of cgroups, that its containers can have: to ask for a limit of another one would fail the start.
        hosts: a file of this host in the place of their hosts(5); None leaves that to the engine.
        is_gvisor: their OCI runtime is gVisor's.
    """

    def __init__(self, namespace: str, options: Options, engine: Engine, flight: Flight) -> None:
        self.namespace, self.options, self.engine, self.flight = namespace, options, engine.lifecycle, flight
        self.controllers = engine.version.controllers
        by_engine = options.clone == "never" or options.oci_runtime_flags
        self.maker: ContainerEngine = engine.lifecycle if by_engine else engine.clones
        self._is_rootless = engine.version.rootless
        self.is_gvisor = is_gvisor(options.oci_runtime or engine.version.oci_runtime)
        self.image = options.image or DEFAULT_IMAGE
        self.user, self.rights = "0", Rights()
        self.hosts: str | None = None
        self.token = secrets.token_hex(4)
        self._numbers = itertools.count()

    @property
    def root(self) -> int | None:
        """Who root inside is on this host, by number, 0 for us; None: the host's root, who we are not."""
        return None if os.geteuid() != 0 and not self._is_rootless else self.rights.ids or 0

    @property
    def is_here(self) -> bool:
        """Whether the engine is on this host, as far as its URL tells."""
        return self.engine.url.startswith("unix:")

    @property
    def workspace(self) -> Workspace | None:
        """The user's directory, else a volume, and where it is inside."""
        place = self.options.workspace
        return None if place is None else (place.source or f"fastclaw-{self.namespace}-{self.token}", place.target)

    @property
    def working_dir(self) -> str | None:
        """The workspace as the processes see it."""
        return self.workspace[1] if self.workspace else None

    def next_name(self) -> str:
        """A name for one more container."""
        return f"fastclaw-{self.namespace}-{self.token}-{next(self._numbers)}"

    def probe(self) -> dict[str, Any]:
        """The body of the create call for a container that never runs."""
        label = this_process().label
        return container_spec(
            image=self.image, name=self.next_name(), namespace=self.namespace, owner=label, init=InitPlan()
        )

    def spec(self, name: str, number: int, init: InitPlan, network: ContainerNetwork) -> dict[str, Any]:
        """The body of the create call."""
        options = self.options
        return container_spec(
            image=self.image,
            name=name,
            namespace=self.namespace,
            owner=this_process().label,
            init=init,
            number=number,
            workspace=self.workspace,
            workspace_option=self.rights.workspace_option,
            network=network,
            hosts=self.hosts,
            pids_limit=options.pids_limit if "pids" in self.controllers else None,
            own_pids=spawner_pids(limits.SPAWN_SPARE_REAPERS) if init.spawner else 0,
            shm_bytes=options.shm_bytes,
            memory_bytes=options.memory_bytes if "memory" in self.controllers else None,
            cpus=options.cpus if "cpu" in self.controllers else None,
            cpuset=options.cpuset if "cpuset" in self.controllers else None,
            disk_bytes=options.disk_bytes,
            user=options.user,
            capabilities=self.rights.capabilities,
            ids=self.rights.ids,
            oci_runtime=options.oci_runtime,
        )
