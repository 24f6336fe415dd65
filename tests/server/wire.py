"""A dispatcher between two ends that the test holds, over a runtime that does what a command says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson

from fastclaw.errors import ExecFailed
from fastclaw.lifecycle import RuntimeState
from fastclaw.runtime import (
    ExecRequest,
    ExecResult,
    ExitRecord,
    HealthStatus,
    InitializeParams,
    InitializeResult,
    ProcessInfo,
    ProcessRuntime,
    Runtime,
)
from fastclaw.server.dispatch import Dispatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class ScriptedRuntime(Runtime):
    """Does what `cmd[0]` says."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = asyncio.Event()
        self.cancelled = 0
        self.start_gate: asyncio.Event | None = None
        self.processes: list[ProcessInfo] = []
        self.status = HealthStatus(status="healthy")

    async def start(self, params: InitializeParams) -> InitializeResult:
        if self.start_gate is not None:
            await self.start_gate.wait()
        return InitializeResult(env={"A": "1"})

    async def exec(self, request: ExecRequest) -> ExecResult:
        self.count += 1
        await getattr(self, f"do_{request.cmd[0]}", self.do_nothing)()
        return ExecResult(process_id=f"p{self.count}", stdio_addr="/s", stderr_addr="/e")

    async def do_nothing(self) -> None:
        pass

    async def do_wait(self) -> None:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def do_crash(self) -> None:
        raise ZeroDivisionError("secret text")

    async def do_leak_cancel(self) -> None:
        raise asyncio.CancelledError

    async def do_strange(self) -> None:
        raise ExecFailed("x", "not_found", thing=object())

    async def do_surrogate(self) -> None:
        raise ExecFailed("no file \udc80", "not_found")

    async def health(self) -> HealthStatus:
        return self.status

    async def stop(self) -> None:
        pass

    async def kill(self, process_id: str, grace_ms: int | None = None) -> None:
        pass


class ExtendedRuntime(ScriptedRuntime, ProcessRuntime):
    """With the extensions."""

    async def wait(self, process_id: str, timeout_ms: int | None = None) -> ExitRecord:
        await self.gate.wait()
        return ExitRecord(process_id=process_id, state="exited", exit_code=0, reason="exited")

    async def list_processes(self, after: str | None = None) -> list[ProcessInfo]:
        return [one for one in self.processes if after is None or one.process_id > after]

    async def signal(self, process_id: str, signal: int, *, group: bool = False) -> None:
        pass

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        self.resized = (process_id, rows, columns)


class WithoutTerminals(ExtendedRuntime):
    """With the extensions, but for resize."""

    resize = ProcessRuntime.resize


class Wire:
    """A dispatcher between two ends that we hold."""

    def __init__(self, runtime: ScriptedRuntime) -> None:
        self.runtime = runtime
        self.lines: list[bytes] = []
        self.dispatcher = Dispatcher(lambda _: runtime, self._send, self._shut_down)
        self._came = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    def _send(self, line: bytes) -> None:
        self.lines.append(line)
        self._came.set()

    async def _shut_down(self) -> None:
        if self._stopping is None:
            self.dispatcher.calls.machine.move(RuntimeState.STOPPING)
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        await self.dispatcher.cancel_yielding()
        await self.runtime.stop()
        self.dispatcher.calls.machine.move(RuntimeState.STOPPED)

    def feed(self, data: bytes) -> None:
        self.dispatcher.receive(data)

    def post(self, method: str, request_id: Any = None, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        self.feed(orjson.dumps({**message, "id": request_id} if request_id is not None else message) + b"\n")

    async def answers(self, count: int) -> list[Any]:
        async with asyncio.timeout(20):
            while len(self.lines) < count:
                self._came.clear()
                await self._came.wait()
        return [orjson.loads(line) for line in self.lines]

    async def call(self, method: str, request_id: Any = 1, **params: Any) -> Any:
        seen = len(self.lines)
        self.post(method, request_id, **params)
        return (await self.answers(seen + 1))[seen]

    async def initialize(self) -> Any:
        answer = await self.call("initialize", 0, namespace="n")
        self.lines.clear()
        return answer

    async def nothing_more(self) -> None:
        await self.dispatcher.wait_idle()
        for _ in range(5):
            await asyncio.sleep(0)


@asynccontextmanager
async def a_wire(runtime: ScriptedRuntime | None = None, *, initialized: bool = True) -> AsyncIterator[Wire]:
    wire = Wire(runtime or ExtendedRuntime())
    if initialized:
        await wire.initialize()
    try:
        yield wire
    finally:
        await wire.dispatcher.aclose()


def health(request_id: Any = 1) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": "health"})


def line(method: str, request_id: int, **params: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}) + b"\n"
