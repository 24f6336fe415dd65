"""`cancel` and `run` on the wire: what is taken back, when that is answered, and what is left alone."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.runtime import ExecRequest, ExecResult, RunRequest, RunResult
from tests.server.wire import ExtendedRuntime, Wire, a_wire
from tests.waiting import turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class SlowToEnd(ExtendedRuntime):
    """Its exec and run wait, and take back what they began only when they may.

    Attributes:
        may_end: taking back waits here while it is cleared.
        failure: what taking back raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.failure: Exception | None = None
        self.begun = 0
        self.taken_back = 0
        self.said = "x"

    async def exec(self, request: ExecRequest) -> ExecResult:
        await self._wait()
        return ExecResult(process_id="p", stdio_addr="/s", stderr_addr="/e")

    async def run(self, request: RunRequest) -> RunResult:
        if request.cmd != ["say"]:
            await self._wait()
        return RunResult(process_id="p", state="exited", exit_code=0, reason="exited", stdout=self.said, stderr="")

    async def _wait(self) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await asyncio.shield(self.may_end.wait())
            self.taken_back += 1
            if self.failure is not None:
                raise self.failure from None
            raise


@pytest.fixture
async def runtime() -> SlowToEnd:
    return SlowToEnd()


@pytest.fixture
async def wire(runtime: SlowToEnd) -> AsyncIterator[Wire]:
    async with a_wire(runtime) as made:
        yield made


def by_id(answers: list[Any]) -> dict[Any, Any]:
    return {answer["id"]: answer for answer in answers}


def cancelled(answer: Any) -> bool:
    error = answer["error"]
    return (error["code"], error["data"]["kind"], error["data"]["reason"]) == (-32800, "cancelled", "cancelled")


@pytest.mark.parametrize("method", ["exec", "run"])
async def test_it_is_answered_after_what_it_took_back_and_that_once_nothing_is_left(
    wire: Wire, runtime: SlowToEnd, method: str
) -> None:
    wire.post(method, "a", cmd=["x"])
    await turns()
    runtime.may_end.clear()
    wire.post("cancel", "c", id="a")
    await turns()
    assert wire.lines == []
    assert (await wire.call("health", "h"))["id"] == "h"
    runtime.may_end.set()
    answers = await wire.answers(3)
    assert [answer["id"] for answer in answers] == ["h", "a", "c"]
    assert cancelled(answers[1])
    assert answers[1]["error"]["data"]["retryable"] is False
    assert answers[2]["result"] == {}
    assert (runtime.begun, runtime.taken_back) == (1, 1)
    runtime.gate.set()
    assert "result" in await wire.call(method, "a", cmd=["x"])


async def test_other_methods_are_left_alone() -> None:
    async with a_wire(initialized=False) as wire:
        wire.runtime.start_gate = asyncio.Event()
        wire.post("initialize", 1, namespace="n")
        await turns()
        assert (await wire.call("cancel", 2, id=1))["error"]["data"]["reason"] == "not_initialized"
        wire.runtime.start_gate.set()
        await wire.answers(2)
        assert (await wire.call("cancel", 3, id=1))["result"] == {}


async def test_an_id_that_two_hold_is_refused_until_one_is_answered(wire: Wire, runtime: SlowToEnd) -> None:
    for method in ("run", "exec", "run"):
        wire.post(method, 7, cmd=["x"])
    await turns()
    error = (await wire.call("cancel", 8, id=7))["error"]
    assert (error["code"], error["data"]["path"]) == (-32602, "$.id")
    assert (await wire.call("cancel", 7, id=7))["error"]["code"] == -32602
    runtime.gate.set()
    await wire.answers(5)
    assert runtime.taken_back == 0
    runtime.gate.clear()
    wire.lines.clear()
    wire.post("run", 7, cmd=["x"])
    wire.post("run", 7, cmd=["say"])  # answered first
    await wire.answers(1)
    wire.post("cancel", 8, id=7)
    answers = await wire.answers(3)
    assert cancelled(answers[1])
    assert answers[2]["result"] == {}


async def test_it_may_name_itself(wire: Wire) -> None:
    assert (await wire.call("cancel", 5, id=5))["result"] == {}


async def test_twice_is_once(wire: Wire, runtime: SlowToEnd) -> None:
    wire.post("run", 1, cmd=["x"])
    await turns()
    runtime.may_end.clear()
    for number in (2, 3, 4):
        wire.post("cancel", number, id=1)
        await turns()
    runtime.may_end.set()
    answers = await wire.answers(4)
    assert cancelled(answers[0])
    assert all(answer["result"] == {} for answer in answers[1:])
    assert runtime.taken_back == 1


async def test_what_waits_for_its_turn_never_begins(wire: Wire, runtime: SlowToEnd) -> None:
    wire.dispatcher.hold(True)
    wire.post("run", 1, cmd=["x"])
    wire.post("cancel", 2, id=1)
    await turns()
    assert wire.lines == []
    (call,) = wire.dispatcher._by_id[1]
    call.cut_short(ExecFailed("taken back", "overloaded"))
    wire.dispatcher.hold(False)
    answers = by_id(await wire.answers(2))
    assert answers[1]["error"]["data"]["reason"] == "overloaded"
    assert answers[2]["result"] == {}
    assert runtime.begun == 0


async def test_an_id_in_a_batch_counts_as_well(wire: Wire, runtime: SlowToEnd) -> None:
    run = {"jsonrpc": "2.0", "method": "run", "params": {"cmd": ["x"]}}
    wire.feed(orjson.dumps([{**run, "id": 1}, {**run, "id": 2}, {**run, "id": 3}]) + b"\n")
    wire.post("run", 3, cmd=["x"])
    await turns()
    wire.post("cancel", "c", id=1)
    wire.post("cancel", "d", id=3)
    answers = by_id(await wire.answers(1))
    assert answers["d"]["error"]["code"] == -32602
    assert (await wire.answers(2))[1] == {"jsonrpc": "2.0", "id": "c", "result": {}}
    runtime.gate.set()
    batch = next(answer for answer in await wire.answers(4) if isinstance(answer, list))
    answers = by_id(batch)
    assert cancelled(answers[1])
    assert ("result" in answers[2], "result" in answers[3]) == (True, True)


async def test_what_cannot_be_taken_back_says_so(wire: Wire, runtime: SlowToEnd) -> None:
    runtime.failure = ExecFailed("it sits in the kernel", "engine_timeout")
    wire.post("run", 1, cmd=["x"])
    await turns()
    wire.post("cancel", 2, id=1)
    answers = by_id(await wire.answers(2))
    assert answers[1]["error"]["data"]["reason"] == "engine_timeout"
    assert answers[2]["result"] == {}
    runtime.gate.set()
    for number in range(100):  # whoever served it serves on
        assert "result" in await wire.call("run", number, cmd=["x"])


async def test_a_runtime_that_goes_on_all_the_same() -> None:
    class Deaf(ExtendedRuntime):
        async def exec(self, request: ExecRequest) -> ExecResult:
            with suppress(asyncio.CancelledError):
                await self.gate.wait()
            return ExecResult(process_id="p", stdio_addr="/s", stderr_addr="/e")

    async with a_wire(Deaf()) as wire:
        wire.post("exec", 1, cmd=["x"])
        await turns()
        wire.post("cancel", 2, id=1)
        answers = by_id(await wire.answers(2))
        assert answers[1]["result"]["process_id"] == "p"
        wire.post("exec", 3, cmd=["x"])
        await turns()
        assert not any(answer["id"] == 3 for answer in await wire.answers(2))
        wire.runtime.gate.set()
        assert by_id(await wire.answers(3))[3]["result"]["process_id"] == "p"


async def test_a_shutdown_while_something_is_taken_back_disturbs_nobody(wire: Wire, runtime: SlowToEnd) -> None:
    wire.post("run", 1, cmd=["x"])
    wire.post("run", 2, cmd=["x"])
    await turns()
    runtime.may_end.clear()
    wire.post("cancel", 3, id=1)
    await turns()
    wire.post("shutdown", 4)
    await turns()
    assert wire.lines == []
    runtime.may_end.set()
    answers = by_id(await wire.answers(4))
    assert cancelled(answers[1])
    assert answers[2]["error"]["data"]["reason"] == "shutting_down"
    assert (answers[3]["result"], answers[4]["result"]) == ({}, {})
    assert runtime.taken_back == 2


async def test_a_shutdown_waits_only_so_long_for_what_is_taken_back(
    wire: Wire, runtime: SlowToEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "YIELD_MS", 20)
    wire.post("run", 1, cmd=["x"])
    await turns()
    runtime.may_end.clear()
    assert (await wire.call("shutdown", 2))["id"] == 2
    runtime.may_end.set()
    assert by_id(await wire.answers(2))[1]["error"]["data"]["reason"] == "shutting_down"


# --- run ---


async def test_a_runtime_without_run() -> None:
    async with a_wire(ExtendedRuntime()) as wire:
        assert (await wire.call("run", cmd=["x"]))["error"]["code"] == -32601


@pytest.mark.parametrize("keep", ["head", "tail", "ends"])
async def test_an_answer_that_would_not_fit_its_line_is_cut(wire: Wire, runtime: SlowToEnd, keep: str) -> None:
    runtime.said = "\0" * (8 << 20)
    result = (await wire.call("run", "i" * 256, cmd=["say"], keep=keep))["result"]
    assert limits.MAX_LINE_BYTES * 0.99 < len(wire.lines[0]) - 1 <= limits.MAX_LINE_BYTES
    assert len(result["stdout"]) + result["dropped"]["stdout"] == 8 << 20
    assert ("gap_at" in result) is (keep == "ends")


async def test_a_batch_of_runs_fits_its_line_too(wire: Wire, runtime: SlowToEnd) -> None:
    runtime.said = "x" * (16 << 20)
    run = {"jsonrpc": "2.0", "method": "run", "params": {"cmd": ["say"]}}
    wire.feed(orjson.dumps([{**run, "id": number} for number in range(3)]) + b"\n")
    answers = (await wire.answers(1))[0]
    assert limits.MAX_LINE_BYTES * 0.99 < len(wire.lines[0]) - 1 <= limits.MAX_LINE_BYTES
    assert all(answer["result"]["dropped"]["stdout"] > 5 << 20 for answer in answers)


async def test_nothing_is_remembered_of_what_was_answered(wire: Wire, runtime: SlowToEnd) -> None:
    runtime.gate.set()
    for number in range(10):
        for method in ("exec", "run", "health", "list", "nonsense"):
            await wire.call(method, number % 3, cmd=["x"])
    await wire.nothing_more()
    left = (wire.dispatcher._by_id, wire.dispatcher._in_flight)
    assert left == ({}, set())
