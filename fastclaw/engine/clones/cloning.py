"""An engine that is asked for one container of each kind, and clones the others from it.

    kind ── its first container: the engine makes it ──> learned ──> every further one is a clone
      └─ it failed: the next one is the first     └─ there can be no clones: all are the engine's, and why

`CloningEngine` has the methods of `EngineLifecycle` by which containers and their volumes are made and removed; the
rest is asked of the engine itself. It owns the cloner, and the directory of all that clones have on the disk.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import mmap
import os
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from fastclaw import engine_limits
from fastclaw.engine.clones import remains
from fastclaw.engine.clones.bundles import Place, Unclonable, is_held, kind_of, shown_limits
from fastclaw.engine.clones.cloner import Cloner
from fastclaw.engine.clones.learning import Layer, Learned, learn
from fastclaw.engine.container_spec import INIT_TARGET, SOCKET_TARGET
from fastclaw.engine.gate import Gate
from fastclaw.engine.pace import Pace
from fastclaw.engine.podman_client import ContainerState
from fastclaw.engine.service.facts import CGROUP_ROOT, cgroup_mode, find_program
from fastclaw.engine.traits import MAPS_WORKSPACES
from fastclaw.errors import StartFailed
from fastclaw.linux.cgroups import group_of, words_in
from fastclaw.linux.directories import HeldDirectory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from fastclaw.engine.api import EngineLifecycle
    from fastclaw.engine.dialects import EngineVersion

logger = logging.getLogger(__name__)

FOLDER = "fastclaw-clones"
"""In the engine's storage, so that layers can be linked: a link leads to no other file system."""

_REMOVAL_TRIES = 3
"""A cloner that ends in the middle of one is followed by another."""


HIDDEN = CGROUP_ROOT / "unified"
"""crun 1.8 refuses to run where version 2 is mounted beside version 1 (as Podman's own: service/plan.py)."""


def why_no_clones(url: str, version: EngineVersion, crun: str | None) -> str | None:
    """Why an engine's containers cannot be cloned, in one line; None where they can, as far as can be told.

    Parameters:
        crun: its path on this host, where it is here.
    """
    if not url.startswith("unix:"):
        return f"the engine at {url} is not on this host"
    if version.docker:
        return "the engine is Docker, and clones are made after containers of Podman's"
    if os.geteuid() != 0 or version.rootless:
        return "fastclaw and the engine are not root's"
    if version.storage_driver != "overlay" or not os.path.isdir(version.storage):
        return f"the engine's storage is {version.storage_driver} in {version.storage}; overlay on this host is needed"
    if version.oci_runtime != MAPS_WORKSPACES or crun is None:
        return f"the engine's OCI runtime is {version.oci_runtime}; crun on this host is needed"
    return None


def _why_not_this(spec: Mapping[str, Any]) -> str | None:
    """Why a container is the engine's affair, by what is asked for."""
    if spec["netns"]["nsmode"] != "none":
        return "its network is the engine's (network.mode open)"
    if "storage_opts" in spec:
        return "options.disk_bytes is a quota of the engine's storage"
    if spec["entrypoint"] != [INIT_TARGET, SOCKET_TARGET]:
        return "its execs are the engine's (the REST lane)"
    runtime = spec.get("oci_runtime", MAPS_WORKSPACES)
    if runtime.rpartition("/")[2] != MAPS_WORKSPACES:
        return f"options.oci_runtime is {runtime}; clones are made by crun"
    return None


class _Kind:
    """Containers that can be cloned from each other.

    Attributes:
        learned: once there can be clones.
        layers: ids of its image's.
        lower: directories of what clones have, the uppermost first.
        filter: the compiled seccomp filter, where one is known; it is proven once a clone has come up with it.
        why: why there can be none.
        has_first: the first container is being made, and looked at.
        clones: how many there are.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.learned: Learned | None = None
        self.layers: set[str] = set()
        self.lower: list[str] = []
        self.filter: str | None = None
        self.is_proven = False
        self.why: str | None = None
        self.has_first = False
        self.clones = 0
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def turn(self) -> None:
        """Return once something can be done: `learned` or `why` is set, or the caller is the first."""
        while self.learned is None and self.why is None and self.has_first:
            await asyncio.shield(self._changed)

    def change(self) -> None:
        """Have those who wait look again."""
        self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()


class _Clone(Struct):
    """A clone. `maker` is the cloner that was told to start it."""

    spec: Mapping[str, Any]
    kind: _Kind
    learned: Learned
    maker: int | None = None
    pid: int = 0


class _Volume(Struct):
    """A volume that is made with the container that has it first. `home` says where it is.

    Who has the engine make it holds `making`: other containers wait until it is there.
    """

    labels: Mapping[str, str]
    owner: str | None
    home: Literal["clones", "engine"] | None = None
    making: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)


class CloningEngine:
    """Makes containers, and those that it can without the engine.

    Parameters:
        engine: stays the caller's.
        image_id: of an image's name: its id now.
        why_not: why there are no clones at all, as from `why_no_clones`; None where there are.
        storage: the engine's.
        crun: its path.
        hides: a mount that crun shall not see; None: nothing.

    Raises:
        OSError: there is no room for a directory.
    """

    def __init__(
        self,
        engine: EngineLifecycle,
        image_id: Callable[[str], Awaitable[str]],
        *,
        why_not: str | None,
        storage: Path,
        crun: str | None,
        hides: str | None = None,
    ) -> None:
        self._engine = engine
        self._image_id = image_id
        self._why_not = why_not
        self._cloner: Cloner | None = None
        self._kinds: OrderedDict[str, _Kind] = OrderedDict()
        self._firsts: dict[str, tuple[_Kind, Mapping[str, Any]]] = {}
        self._clones: dict[str, _Clone] = {}
        self._reasons: dict[str, str] = {}
        self._volumes: dict[str, _Volume] = {}
        self._layers: dict[str, asyncio.Task[str]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starts = Gate(Pace(), engine_limits.CLONE_START_MS / 1000)
        self._path = Path()
        if why_not is None and crun is not None:
            parent = storage / FOLDER
            parent.mkdir(mode=0o711, exist_ok=True)
            directory = HeldDirectory(parent, f"{os.getpid()}-")
            directory.path.chmod(0o711)  # who is root inside is another user of the host
            self._path = directory.path
            try:
                self._cloner = Cloner(directory, crun, hides)
            except OSError:
                directory.remove()
                raise

    def __repr__(self) -> str:
        return f"<CloningEngine of {self.url}, {len(self._kinds)} kinds, {len(self._clones)} clones>"

    @property
    def url(self) -> str:
        """The engine's."""
        return self._engine.url

    @classmethod
    async def open(
        cls, engine: EngineLifecycle, version: EngineVersion, image_id: Callable[[str], Awaitable[str]]
    ) -> CloningEngine:
        """One for an engine, after what clones of a fastclaw that was killed have left is removed.

        Parameters:
            engine, image_id: as for `CloningEngine`.
            version: the engine's.

        Raises:
            StartFailed: there is no room for a directory.
        """
        crun = find_program(MAPS_WORKSPACES)
        why_not = why_no_clones(engine.url, version, crun)
        storage = Path(version.storage)
        if why_not is None:
            for trouble in await asyncio.to_thread(remains.remove_abandoned, storage / FOLDER):
                logger.warning("what clones have left stays: %s", trouble)
        hides = str(HIDDEN) if cgroup_mode(CGROUP_ROOT) == "hybrid" else None
        try:
            return cls(engine, image_id, why_not=why_not, storage=storage, crun=crun, hides=hides)
        except OSError as error:
            raise StartFailed(f"cannot make a directory in {storage}: {error.strerror}") from error

    def made_by(self, container: str) -> tuple[Literal["clone", "engine"], str | None]:
        """Who has made a container, and why it is no clone, in one line."""
        if container in self._clones:
            return "clone", None
        return "engine", self._reasons.get(container)

    # --- containers ---

    async def create_container(self, spec: Mapping[str, Any]) -> str:
        """As `EngineLifecycle.create_container`; of a clone there is nothing but its id before it is started."""
        kind, why = await self._judge(spec)
        if kind is not None and kind.learned is not None:
            return self._new_clone(spec, kind, kind.learned)
        try:
            for name in _volumes_of(spec):
                await self._give_to_engine(name)
            id = await self._engine.create_container(spec)
        except BaseException:
            self._not_first(kind)
            raise
        self._reasons[id] = why
        if kind is not None:
            self._firsts[id] = kind, spec
        return id

    async def _judge(self, spec: Mapping[str, Any]) -> tuple[_Kind | None, str]:
        """The kind of which there can be clones, or of which this is the first; none where the engine has to make it.
        And why it is the engine that does."""
        why = self._why_not or _why_not_this(spec)
        if why is not None:
            return None, why
        if any(name not in self._volumes or self._volumes[name].home == "engine" for name in _volumes_of(spec)):
            return None, "its workspace is a volume of the engine's"
        kind = self._kind(kind_of(spec, await self._image_id(spec["image"])))
        try:
            async with asyncio.timeout(engine_limits.CLONE_LEARN_MS / 1000):
                await kind.turn()
        except TimeoutError:
            return None, "the first container of its kind took too long"
        if kind.why is not None:
            return None, kind.why
        if kind.learned is None:
            kind.has_first = True
        return kind, "it is the first of its kind"

    def _kind(self, name: str) -> _Kind:
        kind = self._kinds.get(name)
        if kind is None:
            self._make_room()
            kind = self._kinds[name] = _Kind(name)
        self._kinds.move_to_end(name)
        return kind

    def _make_room(self) -> None:
        """Forget the kind that was not used for longest, with the layers that no other has."""
        idle = [kind for kind in self._kinds.values() if not (kind.clones or kind.has_first)]
        if len(self._kinds) < engine_limits.CLONE_KINDS or not idle:
            return
        del self._kinds[idle[0].name]
        seed = idle[0].lower[:1]
        needed = {id for kind in self._kinds.values() for id in kind.layers}
        held = [self._layers.pop(id) for id in idle[0].layers - needed if id in self._layers]
        for name in [*seed, *(task.result() for task in held if _has_worked(task))]:
            self._own(self._drop(name))

    async def _drop(self, name: str) -> None:
        try:
            await self._ordered("drop", name=name)
        except StartFailed as error:
            logger.warning("layer %s is no longer needed and stays for now: %s", name, str(error))

    def _not_first(self, kind: _Kind | None) -> None:
        """Its first container has come to nothing: the next one is the first."""
        if kind is not None:
            kind.has_first = False
            kind.change()

    def _new_clone(self, spec: Mapping[str, Any], kind: _Kind, learned: Learned) -> str:
        for name in _volumes_of(spec):
            self._volumes[name].home = "clones"
        id = secrets.token_hex(32)
        self._clones[id] = _Clone(spec, kind, learned)
        kind.clones += 1
        return id

    async def start_container(self, container: str) -> None:
        """As `EngineLifecycle.start_container`. A clone's limits are in force then.

        Raises:
            StartFailed: besides the engine's reasons: crun's; or a limit is not in force.
        """
        clone = self._clones.get(container)
        if clone is not None:
            await self._start_clone(container, clone)
            return
        first = self._firsts.pop(container, None)
        try:
            await self._engine.start_container(container)
            if first is not None:
                await self._learn(container, *first)
        except BaseException:
            if first is not None:
                self._not_first(first[0])
            raise

    async def inspect_container(self, container: str) -> ContainerState | None:
        """As `EngineLifecycle.inspect_container`."""
        clone = self._clones.get(container)
        if clone is None:
            return await self._engine.inspect_container(container)
        return ContainerState(clone.pid, clone.pid != 0 and _is_in(clone.pid, container))

    async def remove_container(self, container: str) -> None:
        """As `EngineLifecycle.remove_container`."""
        clone = self._clones.get(container)
        if clone is None:
            first = self._firsts.pop(container, None)
            if first is not None:
                self._not_first(first[0])
            await self._engine.remove_container(container)
            self._reasons.pop(container, None)
            return
        if clone.maker is not None:
            await self._remove_clone(container, clone)
        if self._clones.pop(container, None) is not None:
            clone.kind.clones -= 1

    async def count_processes(self, container: str) -> int:
        """As `EngineLifecycle.count_processes`, of one that the engine has made."""
        return await self._engine.count_processes(container)

    def health(self) -> dict[str, Any]:
        """How many kinds and clones there are, and how fast starts go; why there are none, where that is so."""
        if self._why_not is not None:
            return {"why_none": self._why_not}
        return {"kinds": len(self._kinds), "clones": len(self._clones), **self._starts.health()}

    # --- volumes ---

    async def create_volume(self, name: str, labels: Mapping[str, str], owner: str | None = None) -> None:
        """As `EngineLifecycle.create_volume`, but it is made with the first container that has it."""
        self._volumes[name] = _Volume(labels, owner)

    async def remove_volume(self, name: str) -> None:
        """As `EngineLifecycle.remove_volume`."""
        volume = self._volumes.pop(name, None)
        if volume is None or volume.home == "engine":
            await self._engine.remove_volume(name)
        elif volume.home == "clones":
            await self._ordered("unvolume", name=name)

    async def _give_to_engine(self, name: str) -> None:
        """Have the engine make it. It would make one by itself, for nobody to find again; a clone that has failed may
        have left one."""
        volume = self._volumes.get(name)
        if volume is None:
            return
        async with volume.making:
            if volume.home == "engine":
                return
            if volume.home == "clones":
                await self._ordered("unvolume", name=name)
            volume.home = "engine"
            await self._engine.create_volume(name, volume.labels, volume.owner)

    # --- the first of a kind ---

    async def _learn(self, container: str, kind: _Kind, spec: Mapping[str, Any]) -> None:
        """Before anything but our spawner runs in it."""
        seed = f"{next(self._numbers)}"
        path = f"{self._path}/{remains.LAYERS}/{seed}"
        try:
            found = await self._engine.inspect_files(container)
            learned = await asyncio.to_thread(learn, container, spec, found, path)
            self._check_volumes(learned, spec)
        except (Unclonable, OSError, msgspec.MsgspecError, LookupError, ValueError) as error:
            kind.why = f"clones of it cannot be made: {error}"
            logger.info("containers of image %s are the engine's: %s", spec["image"], kind.why)
            kind.has_first = False
            kind.change()
            return
        kind.layers = {layer.name for layer in learned.layers}
        kind.filter = learned.filter
        self._own(self._hold_layers(kind, learned, seed))

    def _check_volumes(self, learned: Learned, spec: Mapping[str, Any]) -> None:
        """A clone's volume is given to whom it is asked to be given to; the engine must have done that too."""
        root, _ = _mapping(spec) or (0, 0)
        for name, (uid, gid, _) in learned.volumes.items():
            owner = f"{root + uid}:{root + gid}"
            if owner != (self._volumes[name].owner or owner):
                raise Unclonable(f"the engine gives the workspace to {owner}, not to {self._volumes[name].owner}")

    async def _hold_layers(self, kind: _Kind, learned: Learned, seed: str) -> None:
        """Have the image's layers for as long as there may be clones."""
        try:
            kind.lower = [seed, *await asyncio.gather(*(self._held(layer) for layer in learned.layers))]
            kind.learned = learned
        except StartFailed as error:
            kind.why = f"the layers of its image cannot be kept: {error}"
            logger.warning("%s", kind.why)
        finally:
            kind.has_first = False
            kind.change()

    def _held(self, layer: Layer) -> asyncio.Task[str]:
        """The directory that has it: one for each layer, also where several images have it."""
        task = self._layers.get(layer.name)
        if task is None or (task.done() and not _has_worked(task)):
            task = self._layers[layer.name] = asyncio.get_running_loop().create_task(self._hold(layer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    async def _hold(self, layer: Layer) -> str:
        name = f"{next(self._numbers)}"
        await self._ordered("hold", name=name, source=layer.path, witness=layer.witness)
        return name

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- clones ---

    async def _start_clone(self, id: str, clone: _Clone) -> None:
        kind = clone.kind
        async with self._turn():
            clone.pid = await self._made(id, clone)
            if not (kind.filter is None or kind.is_proven or self._is_filtered(id, kind.filter)):
                kind.filter = None  # this crun takes none
                await self._remove_clone(id, clone)
                clone.pid = await self._made(id, clone)
        kind.is_proven = True
        _check_limits(clone.pid, id, clone.spec["resource_limits"])

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One start more, of as many at a time as this host bears.

        Raises:
            StartFailed: `engine_timeout`: none of those that go on comes to an end.
        """
        try:
            place = await self._starts.enter("start")
        except (TimeoutError, RuntimeError) as error:
            raise StartFailed(f"no clone can be started: {error}", "engine_timeout") from error
        try:
            yield
        finally:
            place.leave()

    def _is_filtered(self, id: str, filter: str) -> bool:
        """Whether crun has taken the filter for what it was meant: it keeps a copy of what it has set."""
        with suppress(OSError):
            kept = self._path / remains.STATE / id / "seccomp.bpf"
            return kept.read_bytes() == base64.b64decode(filter)
        return False

    async def _made(self, id: str, clone: _Clone) -> int:
        """The pid of its init."""
        clone.maker = None if self._cloner is None else self._cloner.pid or 0
        answer = await self._ordered("start", **self._parts(id, clone))
        return int(answer["pid"])

    def _parts(self, id: str, clone: _Clone) -> dict[str, Any]:
        spec, learned = clone.spec, clone.learned
        own = f"{self._path}/{remains.CLONES}/{id}"
        mapping = _mapping(spec)
        root = 0 if mapping is None else mapping[0]
        place = Place(
            id=id,
            owner=self._path.name,
            root=f"{own}/merged",
            files=own,
            volumes={name: f"{self._path}/{remains.VOLUMES}/{name}/{remains.VOLUME}" for name in _volumes_of(spec)},
            created=datetime.now(UTC).isoformat(),
            filter=clone.kind.filter,
        )
        uid, gid, mode = learned.upper
        return {
            "clone": id,
            "config": msgspec.json.encode(learned.template.config(spec, place)).decode(),
            "files": [
                {"name": file.name, "text": text, "mode": file.mode, "uid": root + file.uid, "gid": root + file.gid}
                for file, text in learned.template.files(spec, id)
            ],
            "lower": clone.kind.lower,
            "upper": [root + uid, root + gid, mode],
            "ids": mapping,
            "volumes": [self._volume(name, learned, root) for name in _volumes_of(spec)],
        }

    def _volume(self, name: str, learned: Learned, root: int) -> dict[str, Any]:
        ((uid, gid, mode),) = learned.volumes.values()
        owner = self._volumes[name].owner or f"{root + uid}:{root + gid}"
        uid, gid = map(int, owner.split(":"))
        return {"name": name, "uid": uid, "gid": gid, "mode": mode}

    async def _remove_clone(self, id: str, clone: _Clone) -> None:
        for tries_left in reversed(range(_REMOVAL_TRIES)):
            cloner = self._cloner
            adopted = cloner is None or clone.maker != cloner.pid
            try:
                await self._ordered("remove", clone=id, adopted=adopted)
                return
            except StartFailed as error:
                if not tries_left or error.reason != "engine_unavailable":
                    raise

    async def _ordered(self, does: str, **details: Any) -> dict[str, Any]:
        if self._cloner is None:
            raise StartFailed(f"there are no clones: {self._why_not}", "unsupported")
        return await self._cloner.order(does, engine_limits.CLONE_START_MS, **details)

    async def aclose(self) -> None:
        """Remove every clone and all that they have. Idempotent. The engine is not closed."""
        self._starts.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._cloner is not None:
            await self._cloner.aclose()
            with suppress(OSError):  # another fastclaw's are there
                self._path.parent.rmdir()


def _has_worked(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _volumes_of(spec: Mapping[str, Any]) -> list[str]:
    return [volume["Name"] for volume in spec.get("volumes", ())]


def _mapping(spec: Mapping[str, Any]) -> tuple[int, int] | None:
    mappings = spec.get("idmappings")
    return None if mappings is None else (mappings["UIDMap"][0]["host_id"], mappings["UIDMap"][0]["size"])


def _is_in(pid: int, id: str) -> bool:
    with suppress(OSError):
        return id in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    return False


def _check_limits(pid: int, id: str, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """What is in force, as the kernel says it. Where there is no such controller nothing is, of the first neither.

    Raises:
        StartFailed: it is something else.
    """
    for held in shown_limits(wanted, mmap.PAGESIZE):
        group = group_of(pid, held.controller)
        if group is None or (group.is_unified and held.controller not in words_in(group.folder / "cgroup.controllers")):
            continue
        file, limit = held.unified if group.is_unified else held.legacy
        found = words_in(group.folder / file) if id in str(group.folder) else []
        if not is_held(found, limit):
            raise StartFailed(f"the {held.controller} limit of a clone is {' '.join(found)}, and not {limit}")
