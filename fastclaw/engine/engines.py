"""The engines that the environments of one connection use: each connected once, however many environments it has."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.clones.cloning import CloningEngine
from fastclaw.engine.container_spec import LABEL_NAMESPACE, LABEL_OWNER
from fastclaw.engine.dialects import PODMAN, Dialect, find_docker
from fastclaw.engine.monitors import end_monitors
from fastclaw.engine.service.facts import docker_url, engine_url, own_plan, own_state_dir
from fastclaw.engine.service.service import ManagedService
from fastclaw.engine.service.storage import default_run_dir
from fastclaw.errors import InvalidParams
from fastclaw.linux.proc import is_dead, parse_label
from fastclaw.options import ENGINE_OPTIONS

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.engine.dialects import EngineVersion
    from fastclaw.options import Options

logger = logging.getLogger(__name__)

EngineKind = Literal["podman", "docker"]

_DECIDING = (*ENGINE_OPTIONS, "engine_timeout_ms")
"""Options that make it another engine, or another way of asking it."""


class Engine:
    """An engine that the user named, or one of our own.

    Parameters:
        kind: whose.

    Attributes:
        lifecycle: asks it.
        clones: makes containers, most of them without asking it.
        version: what it is.
        service: it, where it is our own.
    """

    lifecycle: EngineLifecycle
    clones: CloningEngine
    version: EngineVersion

    def __init__(self, kind: EngineKind) -> None:
        self._kind = kind
        self.service: ManagedService | None = None
        self._setup = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Engine {self.service or self.lifecycle.url}>"

    async def start(self, options: Options, namespace: str, sockets: Path | None) -> None:
        """Connect, and remove what a dead fastclaw has left in this namespace.

        Parameters:
            sockets: as for `ManagedService`.

        Raises:
            StartFailed, InvalidParams: nothing is left then.
        """
        try:
            last = await self._setup.enter_async_context(AsyncExitStack())
            timeout_s = options.engine_timeout_ms / 1000
            url, dialect = await self._find(options, timeout_s, sockets)
            self.lifecycle = EngineLifecycle(url, timeout_s, self.service, dialect)
            self._setup.push_async_callback(self.lifecycle.aclose)
            last.push_async_callback(self.lifecycle.join)
            self.version, _ = await asyncio.gather(
                self.lifecycle.version(), remove_abandoned(self.lifecycle, namespace)
            )
            self.clones = await CloningEngine.open(self.lifecycle, self.version, self.lifecycle.image_id)
            self._setup.push_async_callback(self.clones.aclose)
        except BaseException:
            await self.aclose()
            raise

    async def _find(self, options: Options, timeout_s: float, sockets: Path | None) -> tuple[str, Dialect]:
        """Where it is, and how it is asked; one of our own is started."""
        if self._kind == "docker":
            url = docker_url(options)
            _check_flags(options, url)
            return url, await asyncio.to_thread(find_docker, url, timeout_s)
        named = engine_url(options)
        if named is not None:
            _check_flags(options, named)
            return named, PODMAN
        plan = own_plan(options)
        self.service = service = ManagedService(plan, own_state_dir(options), default_run_dir(), sockets)
        self._setup.push_async_callback(service.aclose)
        await service.start()
        return service.url, PODMAN

    @property
    def trouble(self) -> str | None:
        """What is wrong with it now, in one line."""
        return None if self.service is None else self.service.trouble

    def health(self) -> dict[str, Any]:
        """What `health.details.engine` says."""
        facts = msgspec.structs.asdict(self.version)
        return {"managed": self.service is not None, **{name: fact for name, fact in facts.items() if fact != ""}}

    def pace(self) -> dict[str, Any]:
        """What `health` says of the calls to it."""
        return {"url": self.lifecycle.url, **self.lifecycle.health(), "clones": self.clones.health()}

    async def aclose(self) -> None:
        """Close the connection, and end an engine of our own. Idempotent."""
        await asyncio.shield(self._setup.aclose())


def _check_flags(options: Options, url: str) -> None:
    if options.oci_runtime_flags:
        path = "$.options.oci_runtime_flags"
        text = f"the engine at {url} is not ours; its own settings say how it calls its runtimes"
        raise InvalidParams(f"{path}: {text}", "unsupported", path=path)


class Engines:
    """The engines in use.

    Parameters:
        namespace: of their containers.
        kind: whose they are.
        sockets: the directory of their owner's sockets.
    """

    def __init__(self, namespace: str, kind: EngineKind = "podman", sockets: Path | None = None) -> None:
        self._namespace, self._kind, self._sockets = namespace, kind, sockets
        self._starts: dict[bytes, asyncio.Task[Engine]] = {}

    def __repr__(self) -> str:
        return f"<Engines {len(self._starts)}>"

    async def get(self, options: Options) -> Engine:
        """The engine that the options mean: connected by the first that asks. A cancelled caller ends no other's wait.

        Raises:
            StartFailed, InvalidParams: it cannot be had; the next one tries again.
        """
        key = msgspec.json.encode([getattr(options, name) for name in _DECIDING])
        start = self._starts.get(key)
        if start is None:
            start = self._starts[key] = asyncio.get_running_loop().create_task(self._start(options))
            start.add_done_callback(lambda start: self._forget_failed(key, start))
        return await asyncio.shield(start)

    def connected(self) -> list[Engine]:
        """Those that are up."""
        return [start.result() for start in self._starts.values() if start.done()]

    async def _start(self, options: Options) -> Engine:
        engine = Engine(self._kind)
        await engine.start(options, self._namespace, self._sockets)
        return engine

    def _forget_failed(self, key: bytes, start: asyncio.Task[Engine]) -> None:
        if start.cancelled() or start.exception() is not None:
            del self._starts[key]

    async def aclose(self) -> None:
        """Close all of them; nobody asks any more. Idempotent."""
        starts = list(self._starts.values())
        for start in starts:
            start.cancel()  # nothing happens to one that is through
        ended = await asyncio.gather(*starts, return_exceptions=True)
        self._starts.clear()
        engines = [engine for engine in ended if isinstance(engine, Engine)]
        for result in await asyncio.gather(*(engine.aclose() for engine in engines), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result


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
