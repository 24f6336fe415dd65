"""Containers for tests, cloned where they can be, and what there is of clones on this host."""

from __future__ import annotations

import itertools
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastclaw import limits
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.clones.cloning import FOLDER, CloningEngine
from fastclaw.engine.container import SpawnerContainer
from fastclaw.engine.container_spec import HOSTS, ContainerNetwork, InitPlan, container_spec
from fastclaw.linux import proc
from fastclaw.spawner.spawner_host import find_spawner
from tests.engine.fleet import Deaths
from tests.pids import command_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_numbers = itertools.count()

FIRST_ID = 1 << 30
"""Ranges of ids for tests; those of environments begin elsewhere."""


class CloneFleet:
    """Makes containers by a cloning engine.

    Parameters:
        url, image: of an engine.
        directory: for sockets and files that are bind-mounted.

    Attributes:
        cloning: the engine under test.
        override: goes into the spec of every container made from now on.
    """

    def __init__(self, url: str, image: str, directory: Path) -> None:
        self.engine = EngineLifecycle(url)
        self.directory = directory
        self.image = image
        self.deaths = Deaths()
        self.override: dict[str, Any] = {}
        self.cloning: CloningEngine
        self.storage = Path()

    async def open(self) -> None:
        """Have the cloning engine."""
        version = await self.engine.version()
        self.storage = Path(version.storage)
        self.cloning = await CloningEngine.open(self.engine, version, self.engine.image_id)

    async def aclose(self) -> None:
        """Nothing of clones may be left then."""
        await self.cloning.aclose()
        await self.engine.aclose()

    def spec(self, **options: Any) -> dict[str, Any]:
        """Of one more container, with files of its own.

        Parameters:
            options: of `container_spec`; of a mapped one `ids=True` is enough.
        """
        number = next(_numbers)
        ids = FIRST_ID + number * limits.IDS if options.pop("ids", False) else None
        hosts = self.directory / f"{number}.hosts"
        if options.pop("has_hosts", True):
            hosts.write_text(HOSTS)
            os.chown(hosts, ids or 0, ids or 0)
            options["hosts"] = str(hosts)
        if options.pop("has_resolv", False):
            resolv = self.directory / f"{number}.resolv"
            resolv.write_text("nameserver 127.0.0.1\n")
            options["network"] = ContainerNetwork(resolv_conf=str(resolv))
        spec = container_spec(
            image=self.image,
            name=f"clones-{os.getpid()}-{number}",
            namespace="clones",
            owner="o",
            init=InitPlan(spawner=str(find_spawner()), socket=str(self.directory / f"{number}.init")),
            own_pids=9,
            ids=ids,
            **options,
        )
        return spec | self.override

    def make(self, **options: Any) -> SpawnerContainer:
        """A container, not started yet."""
        return self.over(self.spec(**options))

    def over(self, spec: Mapping[str, Any]) -> SpawnerContainer:
        """The same, by its spec."""
        sockets = [mount["source"] for mount in spec["mounts"] if mount["source"].endswith(".init")]
        mappings = spec.get("idmappings")
        root = mappings["UIDMap"][0]["host_id"] if mappings else 0
        return SpawnerContainer(self.cloning, spec, self.deaths, path=sockets[0], user="0", root=root)

    @asynccontextmanager
    async def up(self, container: SpawnerContainer | None = None, **options: Any) -> AsyncIterator[SpawnerContainer]:
        """One that runs; the first of its kind is the engine's."""
        container = container or self.make(**options)
        try:
            await container.start()
            yield container
        finally:
            await container.remove()

    @asynccontextmanager
    async def clone(self, **options: Any) -> AsyncIterator[SpawnerContainer]:
        """A clone, whose first of the kind has gone."""
        async with self.up(**options) as first:
            del first
        async with self.up(**options) as clone:
            assert self.cloning.made_by(clone.id) == ("clone", None)
            yield clone

    def remains(self, pid: int | None = None) -> list[str]:
        """What there is of clones of this process, or another one: directories, control groups, processes."""
        pid = pid or os.getpid()
        return [*directories(self.storage, f"{pid}-*"), *groups(pid), *processes(self.storage, pid)]


def directories(storage: Path, pattern: str = "*") -> list[str]:
    """Of clones, of all fastclaws with this storage."""
    return [str(path) for path in storage.glob(f"{FOLDER}/{pattern}")]


def groups(pid: int | None = None) -> list[str]:
    """Control groups of clones of this process, or another one."""
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/libpod_parent/fastclaw-{pid or os.getpid()}-*")]


def processes(storage: Path, pid: int) -> list[str]:
    """Cloners and OCI runtimes that have to do with a process's clones in this storage."""
    folder = f"{storage}/{FOLDER}/{pid}-".encode()
    return [str(found) for found in proc.pids() if folder in command_line(found)]
