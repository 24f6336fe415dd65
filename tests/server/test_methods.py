"""What methods are answered with: pages of a list, a health that is no book, errors that fit their line."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed, InvalidParams
from fastclaw.runtime import ExecRequest, ExecResult, HealthStatus, InitializeParams, InitializeResult, ProcessInfo
from fastclaw.server.methods import METHODS
from tests.server.wire import ExtendedRuntime, Wire, WithoutTerminals, a_wire, health


async def test_resize_is_a_control_call_of_a_runtime_with_terminals() -> None:
    runtime = ExtendedRuntime()
    async with a_wire(runtime) as wire:
        assert (await wire.call("resize", process_id="p", rows=50, columns=132))["result"] == {}
        assert runtime.resized == ("p", 50, 132)
    assert METHODS["resize"].is_control


async def test_a_runtime_without_terminals_says_so() -> None:
    async with a_wire(WithoutTerminals()) as wire:
        error = (await wire.call("resize", process_id="p", rows=50, columns=132))["error"]
        assert (error["code"], error["data"]["reason"]) == (-32602, "no_tty")


# --- No answer is longer than its line ---


def processes(count: int, word: str) -> list[ProcessInfo]:
    return [
        ProcessInfo(process_id=f"p{number:06}", state="running", cmd=["x", word], started_at=1.0)
        for number in range(count)
    ]


async def pages(wire: Wire, **params: Any) -> list[list[str]]:
    """The ids on each page of `list`."""
    found, after = [], None
    while True:
        result = (await wire.call("list", **params, **({"after": after} if after else {})))["result"]
        found.append([row["process_id"] for row in result["processes"]])
        if "next" not in result:
            return found
        after = result["next"]


async def test_a_list_beyond_a_line_comes_in_pages(wire: Wire) -> None:
    """ColeMurray/background-agents PR 1968, openclaw/openclaw#71793: one long line ended the session."""
    wire.runtime.processes = processes(1_100, "\0" * 8_000)  # JSON makes 53 MB of it
    found = await pages(wire)
    assert len(found) == 2
    assert [*found[0], *found[1]] == [one.process_id for one in wire.runtime.processes]
    lengths = [len(line) for line in wire.lines]
    assert limits.MAX_LINE_BYTES - 50_000 < lengths[0] <= limits.MAX_LINE_BYTES


LONG = "\x01" * (limits.MAX_LINE_BYTES // 8)
"""What is quoted: JSON takes six bytes for each of it, and Python's repr four."""


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (LONG, {}),
        ("exec", {"cmd": ["x"], "env": {LONG + "=": "x"}, "user": 1}),
        ("exec", {"cmd": ["quote", LONG]}),
        ("initialize", {"namespace": LONG}),
        ("signal", {"process_id": "p", "signal": LONG}),
        ("list", {"after": LONG}),
        ("wait", {"process_id": LONG, "timeout_ms": "x"}),
        ("cancel", {"id": LONG}),
    ],
    ids=["method", "env", "cmd", "namespace", "signal", "after", "wait", "cancel"],
)
async def test_an_error_is_short_whatever_it_quotes(method: str, params: dict[str, Any]) -> None:
    class Quoting(ExtendedRuntime):
        async def exec(self, request: ExecRequest) -> ExecResult:
            raise ExecFailed(f"{request.cmd}", "not_found", path=f"$.cmd[{request.cmd}]", more=request.cmd)

        async def list_processes(self, after: str | None = None) -> list[ProcessInfo]:
            raise InvalidParams(f"$.after: no {after}", path=f"$.{after}", nearest=after)

    async with a_wire(Quoting()) as wire:
        answer = await wire.call(method, **params)
        assert len(wire.lines[0]) <= limits.MAX_ERROR_BYTES
        if "error" in answer:
            assert {"kind", "reason", "fault", "retryable"} <= set(answer["error"]["data"])


async def test_10_000_answers_to_a_batch_are_one_line(wire: Wire) -> None:
    """Every id as long as may be, every answer too long for its share."""
    wire.runtime.status = HealthStatus(status="degraded", message="\0" * 5_000, details={"x": "y" * 5_000})
    request_id = "é" * limits.MAX_ID_CHARS
    each = [health(request_id), orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": "m" * 2_000})]
    wire.feed(b"[" + b",".join(each * (limits.MAX_BATCH_ITEMS // 2)) + b"]\n")
    (answers,) = await wire.answers(1)
    assert len(wire.lines[0]) <= limits.MAX_LINE_BYTES
    assert len(answers) == limits.MAX_BATCH_ITEMS
    assert {answer["id"] for answer in answers} == {request_id}
    assert {answer["result"]["status"] for answer in answers if "result" in answer} == {"degraded"}
    assert {answer["error"]["code"] for answer in answers if "error" in answer} == {-32601}


async def test_health_is_no_book(wire: Wire) -> None:
    wire.runtime.status = HealthStatus(status="healthy", details={"x": "y" * limits.MAX_HEALTH_BYTES})
    result = (await wire.call("health"))["result"]
    assert (result["status"], list(result["details"])) == ("healthy", ["left_out"])


async def test_an_answer_beyond_its_line_is_an_error() -> None:
    class Verbose(ExtendedRuntime):
        async def start(self, params: InitializeParams) -> InitializeResult:
            return InitializeResult(env={"A": "x" * limits.MAX_LINE_BYTES})

    async with a_wire(Verbose(), initialized=False) as wire:
        error = (await wire.call("initialize", namespace="n"))["error"]
        assert error["data"]["reason"] == "line_too_long"
        assert (await wire.call("health"))["result"]["status"] == "healthy"
