"""Which runtime is chosen when `initialize` comes, and what is said of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.errors import InvalidParams
from fastclaw.runtime import InitializeParams
from fastclaw.runtimes import choose
from fastclaw.runtimes.choose import choose_runtime
from fastclaw.runtimes.local import LocalRuntime
from fastclaw.runtimes.memory import MemoryRuntime
from fastclaw.runtimes.podman import ContainerRuntime

if TYPE_CHECKING:
    from fastclaw.runtime import ProcessRuntime

NONE = "none is installed"


def params(**options: Any) -> InitializeParams:
    return InitializeParams(namespace="n", options=options)


@pytest.mark.parametrize(
    ("default", "option", "why_no_engine", "expected"),
    [
        ("memory", None, None, MemoryRuntime),
        ("memory", "auto", None, MemoryRuntime),
        ("memory", "local", None, LocalRuntime),
        ("podman", None, NONE, ContainerRuntime),
        ("auto", "memory", None, MemoryRuntime),
        ("auto", None, None, ContainerRuntime),
        ("auto", None, NONE, LocalRuntime),
    ],
)
def test_which_one_it_is(
    default: str,
    option: str | None,
    why_no_engine: str | None,
    expected: type[ProcessRuntime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "why_no_engine", lambda _: why_no_engine)
    assert type(choose_runtime(params(**({"runtime": option} if option else {})), default)) is expected


@pytest.mark.parametrize(("wanted", "nearest"), [("podmann", "podman"), ("Local", "local"), ("qqq", None)])
def test_the_nearest_runtime_is_named(wanted: str, nearest: str | None) -> None:
    with pytest.raises(InvalidParams) as raised:
        choose_runtime(params(runtime=wanted))
    assert raised.value.data == {"path": "$.options.runtime", "nearest": nearest}
    assert (nearest or "memory") in str(raised.value)


def test_a_wrong_option_is_refused_before_an_engine_is_looked_for() -> None:
    with pytest.raises(InvalidParams):
        choose_runtime(params(max_proceses=1))


async def test_the_log_and_the_answer_say_that_nothing_is_isolated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "why_no_engine", lambda _: NONE)
    runtime = choose_runtime(params())
    assert "none is installed" in caplog.text
    try:
        (warning,) = (await runtime.start(params())).warnings
    finally:
        await runtime.stop()
    assert warning == "no usable engine (none is installed); taking the local runtime, which isolates nothing"


async def test_how_long_its_stop_may_take_is_what_the_options_say() -> None:
    runtime = MemoryRuntime()
    with pytest.raises(InvalidParams):
        await runtime.start(params(shutdown_timeout_ms="7"))
    assert runtime.stop_timeout_ms == limits.SHUTDOWN_TIMEOUT_MS
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runtime.stop)
        await runtime.start(params(shutdown_timeout_ms=7_000))
        assert runtime.stop_timeout_ms == 7_000
