"""The runtime that is chosen when it starts."""

from __future__ import annotations

from typing import Any

import pytest

from fastclaw import limits
from fastclaw.errors import InvalidParams, InvalidState
from fastclaw.runtime import InitializeParams, ProcessRuntime
from fastclaw.runtimes import choose
from fastclaw.runtimes.choose import AutoRuntime


def params(**options: Any) -> InitializeParams:
    return InitializeParams(namespace="n", options=options)


@pytest.mark.parametrize(("default", "option", "expected"), [("memory", None, "memory"), ("memory", "local", "local")])
async def test_auto_becomes_what_was_asked_for(default: str, option: str | None, expected: str) -> None:
    runtime = AutoRuntime(default)
    with pytest.raises(InvalidState):
        _ = runtime.capabilities
    assert (await runtime.health()).message == "not initialized"
    await runtime.start(params(**({"runtime": option} if option else {})))
    assert (await runtime.health()).details["runtime"] == expected
    assert {"wait", "list", "signal"} <= set(runtime.capabilities)
    with pytest.raises(InvalidState) as unknown:
        await runtime.resize("nobody", 24, 80)
    assert unknown.value.reason == "unknown_process"
    runtime.hasten()
    await runtime.stop()


async def test_auto_refuses_a_runtime_that_does_not_exist() -> None:
    runtime: ProcessRuntime = AutoRuntime("memory")
    with pytest.raises(InvalidParams) as raised:
        await runtime.start(params(runtime="vm"))
    assert raised.value.data["path"] == "$.options.runtime"
    await runtime.stop()


def test_without_an_engine_auto_is_local_and_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "why_no_engine", lambda *_: "none is installed")
    assert choose.choose("auto", params()) == (
        "local",
        ["no usable engine (none is installed); taking the local runtime, which isolates nothing"],
    )
    assert "none is installed" in caplog.text
    assert "isolates nothing" in caplog.text


def test_with_an_engine_auto_is_podman(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "why_no_engine", lambda *_: None)
    assert choose.choose("auto", params()) == ("podman", [])
    assert choose.choose("memory", params()) == ("memory", [])


@pytest.mark.parametrize(("wanted", "nearest"), [("podmann", "podman"), ("Local", "local"), ("qqq", None)])
async def test_the_nearest_runtime_is_named(wanted: str, nearest: str | None) -> None:
    with pytest.raises(InvalidParams) as raised:
        await AutoRuntime().start(params(runtime=wanted))
    assert raised.value.data == {"path": "$.options.runtime", "nearest": nearest}
    assert (nearest or "memory") in str(raised.value)


async def test_how_long_its_stop_may_take_is_what_the_options_say() -> None:
    runtime = AutoRuntime("memory")
    assert runtime.stop_timeout_ms == limits.SHUTDOWN_TIMEOUT_MS
    with pytest.raises(InvalidParams):
        await runtime.start(params(shutdown_timeout_ms="7"))
    assert runtime.stop_timeout_ms == limits.SHUTDOWN_TIMEOUT_MS
    await runtime.start(params(shutdown_timeout_ms=7_000))
    assert runtime.stop_timeout_ms == 7_000
    await runtime.stop()


async def test_the_answer_says_that_nothing_is_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "why_no_engine", lambda *_: "none is installed")
    runtime = AutoRuntime()
    (warning,) = (await runtime.start(params())).warnings
    assert "none is installed" in warning
    await runtime.stop()
