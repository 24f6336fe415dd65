"""Sandboxes that a test holds up or lets fail, hosts over them, and what such a test asks a host."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastclaw.errors import StartFailed
from fastclaw.runtime import EnvironmentRequest, InitializeParams
from fastclaw.runtimes.host import EnvironmentHost
from fastclaw.runtimes.sandbox import Sandbox, SandboxFactory, SandboxFacts
from tests.processes.lanes import ScriptedLane

if TYPE_CHECKING:
    import contextlib
    from collections.abc import AsyncIterator

    from fastclaw.options import Options


def params(**options: Any) -> InitializeParams:
    return InitializeParams(namespace="n", options=options)


class ScriptedSandbox(Sandbox):
    """Cannot be had before its factory `works`."""

    is_alive = True

    def __init__(self, options: Options, factory: ScriptedSandboxes) -> None:
        super().__init__(options)
        self._factory = factory

    async def is_fresh(self) -> bool:
        if self._factory.looks is not None:
            await self._factory.looks.wait()
        return True

    async def kill(self) -> None:
        await self._factory.kill_gate.wait()
        await super().kill()

    async def _bring_up(self, setup: contextlib.AsyncExitStack) -> SandboxFacts:
        factory = self._factory
        setup.callback(factory.undo)
        if factory.hangs is not None:
            await factory.hangs.wait()
        if not factory.works:
            raise StartFailed("no engine", "engine_unavailable")
        return SandboxFacts(factory.lane, "/w", "0:0", 4, {"E": "1"}, "/w")


class ScriptedSandboxes(SandboxFactory):
    """Sandboxes that a test holds up or lets fail.

    Attributes:
        works: whether one comes up.
        undone: how many have been removed.
        hangs: one that comes up waits for it; None: for nothing.
        looks: who looks whether a ready one is fresh waits for it; None: for nothing.
        kill_gate: who ends everything in one waits here while it is cleared.
        lane: of all of them.
    """

    name = "scripted"

    def __init__(self) -> None:
        self.works = False
        self.undone = 0
        self.hangs: asyncio.Event | None = None
        self.looks: asyncio.Event | None = None
        self.kill_gate = asyncio.Event()
        self.kill_gate.set()
        self.lane = ScriptedLane()

    def make(self, options: Options) -> ScriptedSandbox:
        return ScriptedSandbox(options, self)

    def undo(self) -> None:
        self.undone += 1


@asynccontextmanager
async def running(kind: str = "memory", **options: Any) -> AsyncIterator[EnvironmentHost]:
    """A host without `main`, stopped at the end."""
    runtime = EnvironmentHost(kind)
    await runtime.start(params(environment=False, **options))
    try:
        yield runtime
    finally:
        await runtime.stop()


async def start(runtime: EnvironmentHost, name: str | None = None, token: str | None = None, **options: Any) -> str:
    request = EnvironmentRequest(environment=name, token=token, options=options)
    return (await runtime.environment_start(request)).environment


def names(runtime: EnvironmentHost) -> dict[str, str]:
    """The environments that there are, with their states."""
    return {row.environment: row.state for row in runtime.environment_list()}


def ready(runtime: EnvironmentHost) -> list[tuple[int, int]]:
    """Of each kind, how many are ready and how many are on their way."""
    assert runtime._ready is not None
    return [(kind["ready"], kind["starting"]) for kind in runtime._ready.health()["kinds"]]
