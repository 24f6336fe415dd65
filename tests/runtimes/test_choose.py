"""Which runtime is chosen when an environment is asked for, and what is said of it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from fastclaw import limits
from fastclaw.errors import InvalidParams
from fastclaw.options import ENGINES, RUNTIMES, Options
from fastclaw.runtime import InitializeParams
from fastclaw.runtimes import choose
from fastclaw.runtimes.choose import Chooser
from fastclaw.runtimes.host import EnvironmentHost

NONE = "none is installed"


def params(**options: Any) -> InitializeParams:
    return InitializeParams(namespace="n", options=options)


@pytest.mark.parametrize(
    ("default", "option", "why_no_podman", "why_no_docker", "expected"),
    [
        ("memory", None, None, None, "memory"),
        ("memory", "auto", None, None, "memory"),
        ("memory", "local", None, None, "local"),
        ("podman", None, NONE, NONE, "podman"),
        ("docker", None, None, NONE, "docker"),
        ("auto", "memory", None, None, "memory"),
        ("auto", None, None, None, "podman"),
        ("auto", None, NONE, None, "docker"),
        ("auto", None, NONE, NONE, "local"),
    ],
)
def test_which_one_it_is(
    default: str,
    option: str | None,
    why_no_podman: str | None,
    why_no_docker: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "why_no_engine", lambda _: why_no_podman)
    monkeypatch.setattr(choose, "why_no_docker", lambda _: why_no_docker)
    given = {"runtime": option} if option else {}
    assert Chooser(default).choose(given)[0] == expected
    assert Chooser(default).engine(given) == (expected if expected in ENGINES else None)


def test_an_engine_that_was_found_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str | None] = []
    reasons = iter([NONE, None, None])

    def look(options: Options) -> str | None:
        looked.append(options.url)
        return next(reasons)

    monkeypatch.setattr(choose, "why_no_engine", look)
    monkeypatch.setattr(choose, "why_no_docker", lambda _: NONE)
    chooser = Chooser()
    assert [chooser.choose({})[0] for _ in range(3)] == ["local", "podman", "podman"]
    assert chooser.engine({"image": "another"}) == "podman"
    assert chooser.choose({"url": "unix:///another"})[0] == "podman"
    assert looked == [None, None, "unix:///another"]


def test_each_has_a_factory_of_its_name() -> None:
    assert [choose.factory_of(runtime).name for runtime in RUNTIMES] == list(RUNTIMES)


@pytest.mark.parametrize(("wanted", "nearest"), [("podmann", "podman"), ("Local", "local"), ("qqq", None)])
def test_the_nearest_runtime_is_named(wanted: str, nearest: str | None) -> None:
    with pytest.raises(InvalidParams) as raised:
        Chooser().choose({"runtime": wanted})
    assert raised.value.data == {"path": "$.options.runtime", "nearest": nearest}
    assert (nearest or "memory") in str(raised.value)


def test_a_wrong_option_is_refused_before_an_engine_is_looked_for() -> None:
    with pytest.raises(InvalidParams):
        Chooser().choose({"max_proceses": 1})


async def test_the_log_and_the_answer_say_that_nothing_is_isolated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "why_no_engine", lambda _: NONE)
    monkeypatch.setattr(choose, "why_no_docker", lambda _: NONE)
    runtime = EnvironmentHost()
    try:
        (warning,) = (await runtime.start(params())).warnings
    finally:
        await runtime.stop()
    assert "none is installed" in caplog.text
    assert warning == "no usable engine (none is installed); taking the local runtime, which isolates nothing"


async def test_how_long_its_stop_may_take_is_what_the_options_say() -> None:
    runtime = EnvironmentHost("memory")
    with pytest.raises(InvalidParams):
        await runtime.start(params(shutdown_timeout_ms="7"))
    assert runtime.stop_timeout_ms == limits.SHUTDOWN_TIMEOUT_MS
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runtime.stop)
        await runtime.start(params(shutdown_timeout_ms=7_000))
        assert runtime.stop_timeout_ms == 7_000
