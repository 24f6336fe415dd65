"""The order in which everything comes up and goes down, over the in-process and the host's own runtime."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shutil
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.errors import InvalidParams, InvalidState, StartFailed
from fastclaw.runtime import ExecRequest, InitializeParams
from fastclaw.runtimes.local import LocalRuntime
from fastclaw.runtimes.managed import Environment, ManagedRuntime
from fastclaw.runtimes.memory import MemoryRuntime
from fastclaw.server.dispatch import Dispatcher
from tests.processes.lanes import ScriptedLane
from tests.waiting import until

if TYPE_CHECKING:
    import contextlib

    from fastclaw.options import Options
    from fastclaw.processes.listeners import SocketDirectory


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
        self.lane = ScriptedLane()

    async def _bring_up(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        setup.callback(self._undo)
        if self.hangs is not None:
            await self.hangs.wait()
        if not self.works:
            raise StartFailed("no engine", "engine_unavailable")
        return Environment(self.lane, {"E": "1"}, "/w", 1, 4)

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
    assert (await runtime.health()).message == "not running"
    with pytest.raises(InvalidState):
        await runtime.exec(ExecRequest(cmd=["true"]))
    await runtime.start(params())
    health = await runtime.health()
    assert health.status == "healthy"
    assert health.details["relay"] == "splice"
    assert health.details["processes"]["live"] == 0
    empty = "<ProcessTable live=0 lingering=0 kept=0>"
    assert re.fullmatch(rf"<{make.__name__} <ProcessPool \w+ lane=\w+ {empty}>>", repr(runtime))
    result = await runtime.exec(ExecRequest(cmd=["true"]))
    async with asyncio.timeout(10):
        record = await runtime.wait(result.process_id)
    assert (record.exit_code, record.reason) == (0, "exited")
    assert [info.process_id for info in await runtime.list_processes()] == [result.process_id]
    await runtime.stop()
    await runtime.stop()
    assert (await runtime.health()).message == "not running"
    assert repr(runtime) == f"<{make.__name__} not running>"
    assert not os.path.exists(os.path.dirname(result.stdio_addr))  # noqa: ASYNC240 - one stat


async def test_stop_before_start() -> None:
    for runtime in (MemoryRuntime(), LocalRuntime()):
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


def awaited(task: asyncio.Task[None] | None) -> list[str]:
    """The coroutines of a task that waits, from the outermost on."""
    found, coroutine = [], None if task is None else task.get_coro()
    while inspect.iscoroutine(coroutine):
        found.append(coroutine.__qualname__)
        coroutine = coroutine.cr_await
    return found


@pytest.mark.parametrize("method", ["exec", "run"])
async def test_no_coroutine_is_between_the_dispatcher_and_the_pool(method: str) -> None:
    runtime = FailingRuntime()
    runtime.works = True
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    dispatcher = Dispatcher(lambda _: runtime, answers.put_nowait, runtime.stop)
    dispatcher.receive(b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"namespace":"n"}}\n')
    assert b'"result"' in await answers.get()
    runtime.lane.gate.clear()
    dispatcher.receive(b'{"jsonrpc":"2.0","id":2,"method":"%b","params":{"cmd":["x"]}}\n' % method.encode())
    await until(lambda: runtime.lane.starting == 1)
    (call,) = dispatcher._in_flight
    waiting = awaited(call.task)
    assert waiting[:2] == ["Dispatcher._answer", f"ProcessPool._{method}"]
    assert all(name.startswith(("ScriptedLane.", "Event.")) for name in waiting[2:])
    await dispatcher.aclose()
    await runtime.stop()
