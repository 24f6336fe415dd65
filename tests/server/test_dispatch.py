"""Bytes in, bytes out: every bad input of the contract, batches, floods, bugs and shutdown."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastclaw import limits
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
from fastclaw.server.methods import METHODS
from tests.waiting import until

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


async def test_initialize_tells_what_the_contract_says() -> None:
    async with a_wire(initialized=False) as wire:
        result = (await wire.call("initialize", namespace="n"))["result"]
        assert result["env"] == {"A": "1"}
        assert "workspace_root" not in result
        assert set(result["server"]) == {"name", "version"}
        assert result["capabilities"] == []


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[1,", -32700),
        (b'"' + b"x" * 1000, -32700),
        (b"1", -32600),
        (b'"x"', -32600),
        (b"null", -32600),
        (b"[]", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"2.0","method":"health","id":null}', -32600),
        (b'{"jsonrpc":"2.0","method":"health","id":1.5}', -32600),
        (b'{"jsonrpc":"2.0","method":"health","id":true}', -32600),
        (b'{"jsonrpc":"2.0","method":"health","id":[1]}', -32600),
        (b'{"jsonrpc":"2.0","method":"health","id":{}}', -32600),
        (b'{"jsonrpc":"1.0","method":"health"}', -32600),
        (b"x" * (limits.MAX_LINE_BYTES + 1), -32600),
    ],
)
async def test_what_is_no_request_gets_one_error_without_id_and_the_next_is_served(line: bytes, code: int) -> None:
    async with a_wire() as wire:
        wire.feed(line + b"\n" + health("next") + b"\n")
        first, second = await wire.answers(2)
        assert (first["id"], first["error"]["code"]) == (None, code)
        assert (second["id"], second["result"]["status"]) == ("next", "healthy")
        await wire.nothing_more()
        assert len(wire.lines) == 2


@pytest.mark.parametrize(
    ("method", "params", "code", "path"),
    [
        ("nonsense", {}, -32601, None),
        ("", {}, -32601, None),
        ("exec", {}, -32602, "$.cmd"),
        ("exec", {"cmd": []}, -32602, "$.cmd"),
        ("exec", {"cmd": [1]}, -32602, "$.cmd[0]"),
        ("exec", {"cmd": ["x"], "env": {"A": 1}}, -32602, "$.env[...]"),
        ("kill", {}, -32602, "$.process_id"),
        ("signal", {"process_id": "p", "signal": "NOPE"}, -32602, "$.signal"),
        ("wait", {"process_id": "p", "timeout_ms": -1}, -32602, "$.timeout_ms"),
    ],
)
async def test_what_is_no_call_names_the_field(method: str, params: Any, code: int, path: str | None) -> None:
    async with a_wire() as wire:
        error = (await wire.call(method, **params))["error"]
        assert error["code"] == code
        assert error["data"].get("path") == path


@pytest.mark.parametrize("params", [b"null", b"[]", b"1", b'"x"'])
async def test_params_of_another_shape(params: bytes) -> None:
    async with a_wire() as wire:
        wire.feed(b'{"jsonrpc":"2.0","id":1,"method":"exec","params":' + params + b"}\n")
        assert (await wire.answers(1))[0]["error"]["code"] == -32602


async def test_before_initialize() -> None:
    async with a_wire(initialized=False) as wire:
        assert (await wire.call("health"))["result"] == {"status": "unhealthy", "message": "not initialized"}
        for method, params in (("exec", {"cmd": ["x"]}), ("kill", {"process_id": "p"}), ("list", {})):
            error = (await wire.call(method, **params))["error"]
            assert (error["code"], error["data"]["reason"]) == (-32002, "not_initialized")
            assert error["message"].startswith("invalid state: ")
        assert (await wire.call("shutdown"))["result"] == {}


async def test_twice_initialize() -> None:
    async with a_wire() as wire:
        assert (await wire.call("initialize", namespace="n"))["error"]["data"]["reason"] == "already_initialized"


async def test_initialize_that_fails_may_be_tried_again() -> None:
    async with a_wire(initialized=False) as wire:
        assert (await wire.call("initialize", namespace="?"))["error"]["data"]["path"] == "$.namespace"
        assert "result" in await wire.call("initialize", namespace="n")


async def test_a_runtime_without_extensions() -> None:
    async with a_wire(ScriptedRuntime()) as wire:
        for method, params in (
            ("wait", {"process_id": "p"}),
            ("list", {}),
            ("signal", {"process_id": "p", "signal": 9}),
        ):
            assert (await wire.call(method, **params))["error"]["code"] == -32601


async def test_duplicate_ids_are_each_answered() -> None:
    async with a_wire() as wire:
        wire.feed((health(7) + b"\n") * 3)
        assert [answer["id"] for answer in await wire.answers(3)] == [7, 7, 7]


async def test_notifications_are_done_and_not_answered() -> None:
    async with a_wire() as wire:
        for cmd in ("nothing", "crash", "strange", "leak_cancel"):
            wire.post("exec", cmd=[cmd])
        wire.post("nonsense")
        wire.post("exec")
        await wire.call("health", "last")
        await wire.nothing_more()
        assert len(wire.lines) == 1
        assert wire.runtime.count == 4


async def test_10_000_requests_in_one_feed() -> None:
    async with a_wire() as wire:
        wire.feed(b"".join(health(number) + b"\n" for number in range(10_000)))
        answers = await wire.answers(10_000)
        assert sorted(answer["id"] for answer in answers) == list(range(10_000))
        assert all(answer["result"]["status"] == "healthy" for answer in answers)


async def test_one_byte_at_a_time() -> None:
    async with a_wire() as wire:
        for byte in b"\r\n" + health(1) + b"\r\n{\n" + health(2) + b"\n":
            wire.feed(bytes((byte,)))
        answers = await wire.answers(3)
        assert sorted(str(answer["id"]) for answer in answers) == ["1", "2", "None"]


async def test_a_batch_is_answered_as_one_line_when_all_is_done() -> None:
    async with a_wire() as wire:
        waiting = {"jsonrpc": "2.0", "id": "slow", "method": "exec", "params": {"cmd": ["wait"]}}
        notification = {"jsonrpc": "2.0", "method": "health"}
        wire.feed(orjson.dumps([waiting, notification, 1, orjson.loads(health("quick"))]) + b"\n")
        assert (await wire.call("health", "other"))["id"] == "other"
        wire.runtime.gate.set()
        batch = (await wire.answers(2))[1]
        assert sorted(str(answer["id"]) for answer in batch) == ["None", "quick", "slow"]


async def test_a_batch_of_notifications_is_not_answered() -> None:
    async with a_wire() as wire:
        wire.feed(b'[{"jsonrpc":"2.0","method":"health"},{"jsonrpc":"2.0","method":"nope"}]\n')
        await wire.nothing_more()
        assert wire.lines == []


@pytest.mark.parametrize("cmd", ["crash", "leak_cancel", "strange", "surrogate"])
async def test_a_bug_is_internal_without_its_text_and_logged_with_its_traceback(
    cmd: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_wire() as wire:
        with caplog.at_level(logging.ERROR):
            answer = await wire.call("exec", "bug", cmd=[cmd])
        assert answer["id"] == "bug"
        assert answer["error"]["code"] == -32603
        assert answer["error"]["message"] == "internal error"
        assert b"secret" not in wire.lines[-1]
        assert caplog.records[-1].exc_info is not None
        assert "result" in await wire.call("health")


async def test_slow_calls_do_not_hold_up_quick_ones() -> None:
    async with a_wire() as wire:
        for number in range(100):
            wire.post("exec", number, cmd=["wait"])
        assert (await wire.call("health", "quick"))["id"] == "quick"
        assert repr(wire.dispatcher) == "<Dispatcher in_flight=100 running>"
        wire.runtime.gate.set()
        assert len(await wire.answers(101)) == 101


CONTROL: list[tuple[str, dict[str, Any]]] = [
    ("health", {}),
    ("kill", {"process_id": "p"}),
    ("signal", {"process_id": "p", "signal": 9}),
    ("cancel", {"id": "nothing"}),
]
"""What does not stand in the queue."""


@pytest.mark.parametrize(("method", "params"), CONTROL)
async def test_control_does_not_stand_in_the_queue_behind_a_thousand(method: str, params: dict[str, Any]) -> None:
    async with a_wire() as wire:
        wire.feed(
            b"".join(_line("exec", number, cmd=["nothing"]) for number in range(1_000)) + _line(method, -1, **params)
        )
        ids = [answer["id"] for answer in await wire.answers(1_001)]
        assert ids.index(-1) < 100
        ids.remove(-1)
        assert ids == list(range(1_000)), "the order of the others is what it was"


async def test_what_is_urgent_keeps_its_own_order() -> None:
    async with a_wire() as wire:
        lines = [_line("exec", number, cmd=["nothing"]) for number in range(1_000)]
        for number in range(200):
            method, params = CONTROL[number % len(CONTROL)]
            lines.insert(number * 5, _line(method, 10_000 + number, **params))
        wire.feed(b"".join(lines))
        ids = [answer["id"] for answer in await wire.answers(1_200)]
        assert [number for number in ids if number >= 10_000] == list(range(10_000, 10_200))
        assert [number for number in ids if number < 10_000] == list(range(1_000))


@pytest.mark.parametrize("method", ["exec", "list"])
async def test_a_flood_of_control_starves_nobody(method: str) -> None:
    params = {"cmd": ["nothing"]} if method == "exec" else {}
    async with a_wire() as wire:
        flood = b"".join(_line("health", 10_000 + number) for number in range(10_000))
        wire.feed(flood + b"".join(_line(method, number, **params) for number in range(100)))
        ids = [answer["id"] for answer in await wire.answers(10_100)]
        places = [ids.index(number) for number in range(100)]
        assert places == sorted(places)
        assert all(place <= (turn + 1) * (limits.URGENT_STREAK + 1) for turn, place in enumerate(places))


async def test_before_it_is_initialized_nothing_is_urgent() -> None:
    """A client that does not wait for the answer to `initialize` gets what it got when all stood in one queue."""
    async with a_wire(initialized=False) as wire:
        wire.feed(_line("initialize", 0, namespace="n") + health(1) + b"\n" + _line("kill", 2, process_id="p"))
        answers = await wire.answers(3)
        assert [answer["id"] for answer in answers] == [0, 1, 2]
        assert answers[1]["result"]["status"] == "healthy"
        assert answers[2]["result"] == {}


async def test_who_is_cancelled_in_the_same_write_never_begins() -> None:
    async with a_wire() as wire:
        execs = [_line("exec", number, cmd=["wait"]) for number in range(500)]
        wire.feed(b"".join(execs) + _line("cancel", -1, id=400) + health(-2) + b"\n")
        answers = {answer["id"]: answer for answer in await wire.answers(3)}
        assert answers[400]["error"]["code"] == -32800
        assert (answers[-1]["result"], answers[-2]["result"]["status"]) == ({}, "healthy")
        wire.runtime.gate.set()
        assert len(await wire.answers(502)) == 502
        assert wire.runtime.count == 499


async def test_an_output_that_nobody_reads_holds_up_what_is_urgent_too() -> None:
    """Else its answers would pile up."""
    async with a_wire() as wire:
        wire.dispatcher.hold(True)
        wire.feed(b"".join(_line("exec", number, cmd=["nothing"]) for number in range(10)) + health(-1) + b"\n")
        for _ in range(5):
            await asyncio.sleep(0)
        assert wire.lines == []
        wire.dispatcher.hold(False)
        assert [answer["id"] for answer in await wire.answers(11)] == [-1, *range(10)]


def test_what_is_urgent_is_control_and_nothing_else() -> None:
    assert [name for name, method in METHODS.items() if method.is_urgent] == ["cancel", "health", "kill", "signal"]
    assert all(method.is_control for method in METHODS.values() if method.is_urgent)


async def test_more_in_flight_than_allowed_is_overloaded_but_control_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_IN_FLIGHT", 10)
    async with a_wire() as wire:
        for number in range(10):
            wire.post("exec", number, cmd=["wait"])
        await until(lambda: wire.runtime.count == 10)
        error = (await wire.call("exec", "eleventh", cmd=["nothing"]))["error"]
        assert (error["data"]["reason"], error["data"]["retryable"]) == ("overloaded", True)
        assert "result" in await wire.call("health")
        assert "result" in await wire.call("kill", process_id="p")
        wire.runtime.gate.set()
        await wire.answers(13)
        assert "result" in await wire.call("exec", cmd=["nothing"])


async def test_control_has_a_ceiling_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_IN_FLIGHT", 2)
    monkeypatch.setattr(limits, "MAX_CONTROL_IN_FLIGHT", 3)
    async with a_wire() as wire:
        wire.feed(b"".join(_line("kill", number, process_id="p") for number in range(5)))
        answers = await wire.answers(5)
        refused = [answer["id"] for answer in answers if "error" in answer]
        assert refused == [3, 4]


async def test_shutdown_cancels_execs_and_answers_all() -> None:
    async with a_wire() as wire:
        for number in range(1_000):
            wire.post("exec", number, cmd=["wait"])
        await wire.call("health", "ready")
        wire.feed(b"".join(_line("exec", 1000 + number, cmd=["wait"]) for number in range(500)))
        wire.post("shutdown", "down")
        wire.feed(b"".join(_line("exec", 2000 + number, cmd=["nothing"]) for number in range(500)))
        answers = {answer["id"]: answer for answer in await wire.answers(2_002)}
        assert answers["down"]["result"] == {}
        refused = [answers[number]["error"]["data"]["reason"] for number in (*range(1_500), *range(2_000, 2_500))]
        assert set(refused) == {"shutting_down"}
        await wire.nothing_more()
        assert len(wire.lines) == 2_002


def _line(method: str, request_id: int, **params: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}) + b"\n"


async def test_only_health_is_answered_after_shutdown() -> None:
    async with a_wire() as wire:
        assert (await wire.call("shutdown"))["result"] == {}
        assert (await wire.call("health"))["result"]["status"] == "unhealthy"
        calls: dict[str, dict[str, Any]] = {
            "exec": {"cmd": ["x"]},
            "run": {"cmd": ["x"]},
            "cancel": {"id": 1},
            "kill": {"process_id": "p"},
            "list": {},
            "wait": {"process_id": "p"},
            "signal": {"process_id": "p", "signal": 9},
            "resize": {"process_id": "p", "rows": 24, "columns": 80},
            "initialize": {"namespace": "n"},
            "shutdown": {},
            "stop": {},
        }
        assert {*calls, "health"} == set(METHODS)
        for method, params in calls.items():
            assert (await wire.call(method, **params))["error"]["data"]["reason"] == "shutting_down"


async def test_shutdown_during_initialize() -> None:
    runtime = ExtendedRuntime()
    runtime.start_gate = asyncio.Event()
    async with a_wire(runtime, initialized=False) as wire:
        wire.post("initialize", "up", namespace="n")
        assert (await wire.call("health"))["result"]["message"] == "initializing"
        wire.post("shutdown", "down")
        answers = {answer["id"]: answer for answer in (await wire.answers(3))[1:]}
        assert answers["up"]["error"]["data"]["reason"] == "shutting_down"
        assert answers["down"]["result"] == {}


async def test_a_start_that_does_not_heed_its_cancellation() -> None:
    class Deaf(ExtendedRuntime):
        async def start(self, params: InitializeParams) -> InitializeResult:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
            return InitializeResult()

    async with a_wire(Deaf(), initialized=False) as wire:
        wire.post("initialize", "up", namespace="n")
        await wire.call("health")
        wire.post("shutdown", "down")
        answers = {answer["id"]: answer for answer in (await wire.answers(3))[1:]}
        assert answers["up"]["error"]["data"]["reason"] == "shutting_down"
        assert answers["down"]["result"] == {}


async def test_quick_execs_while_a_shutdown_settles() -> None:
    """The last cancelled exec and a new one end in the same turn: both must be told the same."""
    async with a_wire() as wire:
        settled = asyncio.create_task(_settle_with_latecomer(wire))
        async with asyncio.timeout(5):
            await settled
        answers = await wire.answers(2)
        assert {answer["error"]["data"]["reason"] for answer in answers} == {"shutting_down"}


async def _settle_with_latecomer(wire: Wire) -> None:
    wire.post("exec", 1, cmd=["wait"])
    await until(lambda: wire.runtime.count == 1)
    wire.dispatcher.calls.machine.move(RuntimeState.STOPPING)
    cancelling = asyncio.create_task(wire.dispatcher.cancel_yielding())
    await asyncio.sleep(0)
    wire.post("exec", 2, cmd=["nothing"])
    await cancelling
