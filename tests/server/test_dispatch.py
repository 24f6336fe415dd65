"""Bytes in, bytes out: every bad input of the contract, batches, floods, bugs and shutdown."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
import pytest

from fastclaw import limits
from fastclaw.lifecycle import RuntimeState
from fastclaw.runtime import InitializeParams, InitializeResult
from fastclaw.server.methods import METHODS
from tests.server.wire import ExtendedRuntime, ScriptedRuntime, Wire, a_wire, health, line
from tests.waiting import until


async def test_a_runtime_without_extensions() -> None:
    async with a_wire(ScriptedRuntime()) as wire:
        for method, params in (
            ("wait", {"process_id": "p"}),
            ("list", {}),
            ("signal", {"process_id": "p", "signal": 9}),
        ):
            assert (await wire.call(method, **params))["error"]["code"] == -32601


async def test_notifications_are_done_and_not_answered(wire: Wire) -> None:
    for cmd in ("nothing", "crash", "strange", "leak_cancel"):
        wire.post("exec", cmd=[cmd])
    wire.post("nonsense")
    wire.post("exec")
    await wire.call("health", "last")
    await wire.nothing_more()
    assert len(wire.lines) == 1
    assert wire.runtime.count == 4


async def test_a_batch_is_answered_as_one_line_when_all_is_done(wire: Wire) -> None:
    waiting = {"jsonrpc": "2.0", "id": "slow", "method": "exec", "params": {"cmd": ["wait"]}}
    notification = {"jsonrpc": "2.0", "method": "health"}
    wire.feed(orjson.dumps([waiting, notification, 1, orjson.loads(health("quick"))]) + b"\n")
    assert (await wire.call("health", "other"))["id"] == "other"
    wire.runtime.gate.set()
    batch = (await wire.answers(2))[1]
    assert sorted(str(answer["id"]) for answer in batch) == ["None", "quick", "slow"]


@pytest.mark.parametrize("cmd", ["crash", "leak_cancel", "strange", "surrogate"])
async def test_a_bug_is_internal_without_its_text_and_logged_with_its_traceback(
    wire: Wire, cmd: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await wire.call("exec", "bug", cmd=[cmd])
    assert answer["id"] == "bug"
    assert answer["error"]["code"] == -32603
    assert answer["error"]["message"] == "internal error"
    assert b"secret" not in wire.lines[-1]
    assert caplog.records[-1].exc_info is not None
    assert "result" in await wire.call("health")


async def test_slow_calls_do_not_hold_up_quick_ones(wire: Wire) -> None:
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
async def test_control_does_not_stand_in_the_queue_behind_a_thousand(
    wire: Wire, method: str, params: dict[str, Any]
) -> None:
    wire.feed(b"".join(line("exec", number, cmd=["nothing"]) for number in range(1_000)) + line(method, -1, **params))
    ids = [answer["id"] for answer in await wire.answers(1_001)]
    assert ids.index(-1) < 100
    ids.remove(-1)
    assert ids == list(range(1_000)), "the order of the others is what it was"


async def test_what_is_urgent_keeps_its_own_order(wire: Wire) -> None:
    lines = [line("exec", number, cmd=["nothing"]) for number in range(1_000)]
    for number in range(200):
        method, params = CONTROL[number % len(CONTROL)]
        lines.insert(number * 5, line(method, 10_000 + number, **params))
    wire.feed(b"".join(lines))
    ids = [answer["id"] for answer in await wire.answers(1_200)]
    assert [number for number in ids if number >= 10_000] == list(range(10_000, 10_200))
    assert [number for number in ids if number < 10_000] == list(range(1_000))


@pytest.mark.parametrize("method", ["exec", "list"])
async def test_a_flood_of_control_starves_nobody(wire: Wire, method: str) -> None:
    params = {"cmd": ["nothing"]} if method == "exec" else {}
    flood = b"".join(line("health", 10_000 + number) for number in range(10_000))
    wire.feed(flood + b"".join(line(method, number, **params) for number in range(100)))
    ids = [answer["id"] for answer in await wire.answers(10_100)]
    places = [ids.index(number) for number in range(100)]
    assert places == sorted(places)
    assert all(place <= (turn + 1) * (limits.URGENT_STREAK + 1) for turn, place in enumerate(places))


async def test_before_it_is_initialized_nothing_is_urgent() -> None:
    """A client that does not wait for the answer to `initialize` gets what it got when all stood in one queue."""
    async with a_wire(initialized=False) as wire:
        wire.feed(line("initialize", 0, namespace="n") + health(1) + b"\n" + line("kill", 2, process_id="p"))
        answers = await wire.answers(3)
        assert [answer["id"] for answer in answers] == [0, 1, 2]
        assert answers[1]["result"]["status"] == "healthy"
        assert answers[2]["result"] == {}


async def test_who_is_cancelled_in_the_same_write_never_begins(wire: Wire) -> None:
    execs = [line("exec", number, cmd=["wait"]) for number in range(500)]
    wire.feed(b"".join(execs) + line("cancel", -1, id=400) + health(-2) + b"\n")
    answers = {answer["id"]: answer for answer in await wire.answers(3)}
    assert answers[400]["error"]["code"] == -32800
    assert (answers[-1]["result"], answers[-2]["result"]["status"]) == ({}, "healthy")
    wire.runtime.gate.set()
    assert len(await wire.answers(502)) == 502
    assert wire.runtime.count == 499


async def test_an_output_that_nobody_reads_holds_up_what_is_urgent_too(wire: Wire) -> None:
    """Else its answers would pile up."""
    wire.dispatcher.hold(True)
    wire.feed(b"".join(line("exec", number, cmd=["nothing"]) for number in range(10)) + health(-1) + b"\n")
    for _ in range(5):
        await asyncio.sleep(0)
    assert wire.lines == []
    wire.dispatcher.hold(False)
    assert [answer["id"] for answer in await wire.answers(11)] == [-1, *range(10)]


def test_what_is_urgent_is_control_and_nothing_else() -> None:
    assert [name for name, method in METHODS.items() if method.is_urgent] == ["cancel", "health", "kill", "signal"]
    assert all(method.is_control for method in METHODS.values() if method.is_urgent)


async def test_more_in_flight_than_allowed_is_overloaded_but_control_is_served(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_IN_FLIGHT", 10)
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


async def test_control_has_a_ceiling_too(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_IN_FLIGHT", 2)
    monkeypatch.setattr(limits, "MAX_CONTROL_IN_FLIGHT", 3)
    wire.feed(b"".join(line("kill", number, process_id="p") for number in range(5)))
    answers = await wire.answers(5)
    refused = [answer["id"] for answer in answers if "error" in answer]
    assert refused == [3, 4]


async def test_shutdown_cancels_execs_and_answers_all(wire: Wire) -> None:
    for number in range(1_000):
        wire.post("exec", number, cmd=["wait"])
    await wire.call("health", "ready")
    wire.feed(b"".join(line("exec", 1000 + number, cmd=["wait"]) for number in range(500)))
    wire.post("shutdown", "down")
    wire.feed(b"".join(line("exec", 2000 + number, cmd=["nothing"]) for number in range(500)))
    answers = {answer["id"]: answer for answer in await wire.answers(2_002)}
    assert answers["down"]["result"] == {}
    refused = [answers[number]["error"]["data"]["reason"] for number in (*range(1_500), *range(2_000, 2_500))]
    assert set(refused) == {"shutting_down"}
    await wire.nothing_more()
    assert len(wire.lines) == 2_002


ENVIRONMENT_METHODS = {
    "environment_start",
    "environment_stop",
    "environment_reset",
    "environment_list",
    "pool_set",
}


async def test_a_runtime_of_one_environment_has_no_others(wire: Wire) -> None:
    for method in ENVIRONMENT_METHODS:
        params: dict[str, Any] = {"environment": "e", "pool": []}
        assert (await wire.call(method, **params))["error"]["data"]["reason"] == "method_not_found"
    for method in ("exec", "run"):
        answer = await wire.call(method, cmd=["x"], environment="e")
        assert answer["error"]["data"]["reason"] == "unknown_environment"
    assert "result" in await wire.call("exec", cmd=["x"], environment="main")
    for method in ("list", "health"):
        assert (await wire.call(method, environment="e"))["error"]["data"]["reason"] == "unknown_environment"
        assert "result" in await wire.call(method, environment="main")


async def test_only_health_is_answered_after_shutdown(wire: Wire) -> None:
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
        **{name: {"path": "f"} for name in ("read_file", "write_file", "stat", "list_dir", "make_dir", "remove")},
        **{name: {"path": "d"} for name in ("read_tar", "write_tar")},
        "move": {"path": "f", "to": "g"},
        "image_pull": {"image": "a"},
        "image_build": {"directory": "/d"},
        "image_load": {"archive": "/a"},
        "initialize": {"namespace": "n"},
        "shutdown": {},
        "stop": {},
    }
    assert {*calls, "health"} == set(METHODS) - ENVIRONMENT_METHODS
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


async def test_quick_execs_while_a_shutdown_settles(wire: Wire) -> None:
    """The last cancelled exec and a new one end in the same turn: both must be told the same."""
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
