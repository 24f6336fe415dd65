"""The order in which everything comes up and goes down, over the in-process and the host's own runtime."""

from __future__ import annotations

import asyncio
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.errors import InvalidParams, InvalidState, StartFailed
from fastclaw.runtime import ExecRequest, InitializeParams
from fastclaw.runtimes.choose import AutoRuntime
from fastclaw.runtimes.local import LocalRuntime
from fastclaw.runtimes.managed import Environment, ManagedRuntime
from fastclaw.runtimes.memory import MemoryRuntime
from tests.processes.lanes import ScriptedLane

if TYPE_CHECKING:
    import contextlib

    from fastclaw.options import Options
    from fastclaw.processes.sockets import SocketDirectory


def params(**options: Any) -> InitializeParams:
    return InitializeParams(namespace="n", options=options)


class FailingRuntime(ManagedRuntime):
    """Its environment cannot be had before `works`."""

    name = "failing"

    def __init__(self) -> None:
        super().__init__()
        self.works = False
        self.undone = 0
        self.hangs: asyncio.Event | None = None

    async def _bring_up(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        setup.callback(self._undo)
        if self.hangs is not None:
            await self.hangs.wait()
        if not self.works:
            raise StartFailed("no engine", "engine_unavailable")
        return Environment(ScriptedLane(), {"E": "1"}, "/w", 1, 4)

    def _undo(self) -> None:
        self.undone += 1


async def test_a_start_that_fails_undoes_what_was_done_and_may_be_tried_again() -> None:
    runtime = FailingRuntime()
    with pytest.raises(StartFailed):
        await runtime.start(params())
    assert runtime.undone == 1
    assert (await runtime.health()).status == "unhealthy"
    runtime.works = True
    result = await runtime.start(params())
    assert (result.env, result.workspace_root) == ({"E": "1"}, "/w")
    await runtime.stop()
    assert runtime.undone == 2


async def test_a_cancelled_start_undoes_what_was_done() -> None:
    runtime = FailingRuntime()
    runtime.hangs = asyncio.Event()
    starting = asyncio.create_task(runtime.start(params()))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait((starting,))
    assert runtime.undone == 1
    await runtime.stop()


async def test_bad_options_change_nothing() -> None:
    runtime = MemoryRuntime()
    with pytest.raises(InvalidParams):
        await runtime.start(params(max_proceses=1))
    await runtime.start(params())
    await runtime.stop()


@pytest.mark.parametrize("make", [MemoryRuntime, LocalRuntime])
async def test_up_and_down(make: type[ManagedRuntime]) -> None:
    runtime = make()
    assert (await runtime.health()).message == "not initialized"
    with pytest.raises(InvalidState):
        await runtime.exec(ExecRequest(cmd=["true"]))
    await runtime.start(params())
    with pytest.raises(InvalidState):
        await runtime.start(params())
    health = await runtime.health()
    assert health.status == "healthy"
    assert health.details["relay"] == "splice"
    assert health.details["processes"]["live"] == 0
    result = await runtime.exec(ExecRequest(cmd=["true"]))
    async with asyncio.timeout(10):
        record = await runtime.wait(result.process_id)
    assert (record.exit_code, record.reason) == (0, "exited")
    assert [info.process_id for info in await runtime.list_processes()] == [result.process_id]
    await runtime.stop()
    await runtime.stop()
    assert (await runtime.health()).message == "stopped"
    assert not os.path.exists(os.path.dirname(result.stdio_addr))  # noqa: ASYNC240 - one stat


async def test_stop_before_start() -> None:
    for runtime in (MemoryRuntime(), LocalRuntime(), AutoRuntime()):
        await runtime.stop()


@pytest.mark.parametrize("make", [MemoryRuntime, LocalRuntime])
async def test_400_ended_processes_do_not_keep_what_they_were_asked_for(make: type[ManagedRuntime]) -> None:
    """ColeMurray/background-agents PR 1968; 400 records of long requests took 386 MiB."""
    runtime = make()
    await runtime.start(params())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(400):
            env = {f"V{part}": f"{number % 10}" * 25_000 for part in range(5)}
            key = str(number)
            started = await runtime.exec(ExecRequest(cmd=["true", *env.values()], env=env, stdin=False, key=key))
            assert (await runtime.wait(started.process_id)).exit_code == 0
        assert (await runtime.health()).details["processes"]["kept"] == 400
        kept = (tracemalloc.get_traced_memory()[0] - before) / 400
    finally:
        tracemalloc.stop()
        await runtime.stop()
    assert kept < 16 * limits.KIB, f"{kept:.0f} bytes for each"


async def test_health_says_that_its_sockets_are_gone() -> None:
    runtime = MemoryRuntime()
    await runtime.start(params())
    process = await runtime.exec(ExecRequest(cmd=["sleep", "1000"]))
    shutil.rmtree(Path(process.stdio_addr).parent)
    health = await runtime.health()
    assert (health.status, health.message) == (
        "unhealthy",
        f"{Path(process.stdio_addr).parent} with the sockets is gone: start fastclaw anew",
    )
    await runtime.stop()
