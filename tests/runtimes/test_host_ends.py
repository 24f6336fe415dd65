"""What ends in the middle of something else: a stop during a reset, a call in flight when its environment goes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import FastclawError, InvalidState
from fastclaw.runtime import EnvironmentRequest, ExecRequest, RunRequest
from tests.runtimes.scripted import ScriptedSandboxes, names, ready, running, start
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import Awaitable


async def reason(call: Awaitable[object]) -> str:
    """Why it is refused; `ok` where it is not."""
    try:
        await call
    except FastclawError as error:
        return error.reason
    return "ok"


async def test_a_stop_during_a_reset_leaves_nothing_that_comes_up_later(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running() as runtime:
        name = await start(runtime)
        scripted.hangs = asyncio.Event()
        resetting = asyncio.ensure_future(runtime.environment_reset(name))
        await turns()
        await runtime.environment_stop(name)
        assert (names(runtime), scripted.undone) == ({}, 2)
        assert await reason(resetting) == "environment_stopped"


async def test_a_stop_while_a_reset_ends_the_old_one_finishes_that_first(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running() as runtime:
        name = await start(runtime)
        scripted.kill_gate.clear()
        resetting = asyncio.ensure_future(runtime.environment_reset(name))
        await turns()
        stopping = asyncio.ensure_future(runtime.environment_stop(name))
        await turns()
        assert (stopping.done(), scripted.undone) == (False, 0)
        scripted.kill_gate.set()
        await stopping
        assert (names(runtime), scripted.undone) == ({}, 2)
        assert await reason(resetting) == "environment_stopped"


async def test_a_reset_whose_caller_has_gone_is_finished(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running() as runtime:
        environment = runtime._environments[await start(runtime)]
        old = environment.sandbox()
        scripted.hangs = asyncio.Event()
        resetting = asyncio.ensure_future(runtime.environment_reset(environment.name))
        await turns()
        resetting.cancel()
        await asyncio.wait((resetting,))
        scripted.hangs.set()
        await until(lambda: scripted.undone == 1 and names(runtime) == {environment.name: "running"})
        assert environment.sandbox() is not old


async def test_a_ready_one_is_not_lost_where_the_start_that_looks_at_it_is_cancelled(
    scripted: ScriptedSandboxes,
) -> None:
    scripted.works = True
    async with running(pool=[{"size": 1}]) as runtime:
        await until(lambda: ready(runtime) == [(1, 0)])
        scripted.looks = asyncio.Event()
        starting = asyncio.ensure_future(start(runtime))
        await turns()
        starting.cancel()
        await asyncio.wait((starting,))
        await until(lambda: scripted.undone == 1)
        await until(lambda: ready(runtime) == [(1, 0)])
    assert scripted.undone == 2


@pytest.mark.parametrize("given", [{}, {"runtime": "memory"}])
async def test_a_ready_one_fits_however_its_runtime_was_chosen(
    scripted: ScriptedSandboxes, given: dict[str, str]
) -> None:
    scripted.works = True
    async with running(pool=[{"size": 1, "runtime": "memory"}]) as runtime:
        await until(lambda: ready(runtime) == [(1, 0)])
        scripted.works = False
        await runtime.environment_start(EnvironmentRequest(options=given))


async def test_an_empty_name_is_not_main(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running() as runtime:
        await start(runtime, "main")
        for call in (
            lambda: runtime.exec(ExecRequest(cmd=["x"], environment="")),
            lambda: runtime.environment_stop(""),
        ):
            with pytest.raises(InvalidState, match="there is no environment ''") as raised:
                await call()
            assert raised.value.reason == "unknown_environment"
        assert names(runtime) == {"main": "running"}


async def test_a_start_that_is_stopped_in_the_turn_in_which_it_succeeds(scripted: ScriptedSandboxes) -> None:
    scripted.works, scripted.hangs = True, asyncio.Event()
    async with running() as runtime:
        starting = asyncio.ensure_future(start(runtime, "e", lifetime_ms=60_000))
        await turns()
        environment = runtime._environments["e"]
        assert environment.starting is not None
        environment.starting.add_done_callback(lambda _: stops.append(runtime._end(environment, None)))
        stops: list[asyncio.Task[None]] = []
        scripted.hangs.set()
        assert await reason(starting) == "environment_stopped"
        assert (names(runtime), scripted.undone, environment.ends_at) == ({}, 1, None)


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("kind", ["memory", "local"])
async def test_a_run_in_flight_is_answered_when_its_environment_is_stopped(kind: str, key: str | None) -> None:
    async with running(kind) as runtime:
        name = await start(runtime)
        running_ = asyncio.ensure_future(runtime.run(RunRequest(cmd=["sleep", "1000"], environment=name, key=key)))
        await until(lambda: runtime.pool(name).table.live())
        await runtime.environment_stop(name)
        assert await reason(running_) == ("ok" if key is None else "environment_stopped")


@pytest.mark.parametrize("end", ["environment_stop", "environment_reset"])
async def test_starts_in_flight_over_a_spawner_are_told_what_became_of_it(end: str) -> None:
    """They were -32603: the spawner cancels what has not begun, and nobody had cancelled their calls."""
    async with running("local") as runtime:
        told = set[str]()
        for turn in range(1, 30):
            name = await start(runtime)
            requests = [ExecRequest(cmd=["sleep", "1000"], environment=name) for _ in range(20)]
            starts = [asyncio.ensure_future(reason(runtime.exec(request))) for request in requests]
            await turns(turn % 6)
            await getattr(runtime, end)(name)
            told |= set(await asyncio.gather(*starts))
            if len(told) == 2:
                break
        assert told <= {"ok", "environment_stopped" if end == "environment_stop" else "environment_busy"}
        assert len(told) == 2


async def test_a_second_start_with_the_token_of_one_that_is_being_taken_back(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running() as runtime:
        name = await start(runtime, token="t")
        ending = runtime._end(runtime._environments[name], None)
        again = await reason(runtime.environment_start(EnvironmentRequest(token="t")))
        await ending
        assert again == "environment_stopped"
