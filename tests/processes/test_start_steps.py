"""A start that fails or is cancelled, at each of its steps: nothing of it is left, and the next one has its place."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from fastclaw.errors import ExecFailed, FastclawError, InvalidState
from fastclaw.linux.poller import Poller
from fastclaw.processes import listeners
from fastclaw.processes import pool as pool_module
from fastclaw.processes.admission import Admission
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.processes.table import ProcessTable
from fastclaw.runtime import ExecRequest, RunRequest
from tests.processes.lanes import ScriptedLane, ScriptedProcess, a_pool
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastclaw.processes.pool import ProcessPool

    Patch = Callable[[pytest.MonkeyPatch, ScriptedLane], None]


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_args: object, **_more: object) -> Any:
        raise error

    return fail


# --- failures ---


def in_admission(patch: pytest.MonkeyPatch, lane: ScriptedLane) -> None:
    patch.setattr(Admission, "request", raising(ExecFailed("full", "overloaded")))


def in_the_lane(error: BaseException) -> Patch:
    def apply(patch: pytest.MonkeyPatch, lane: ScriptedLane) -> None:
        patch.setattr(lane, "failure", error)

    return apply


def in_the_process(patch: pytest.MonkeyPatch, lane: ScriptedLane) -> None:
    patch.setattr(pool_module, "Process", raising(MemoryError()))


def at_the_sockets(patch: pytest.MonkeyPatch, lane: ScriptedLane) -> None:
    patch.setattr(SocketDirectory, "open", raising(full()))


def at_the_second_socket(patch: pytest.MonkeyPatch, lane: ScriptedLane) -> None:
    real = listeners._listen

    def listen(path: str) -> listeners.Listener:
        return raising(full())() if path.endswith(".err") else real(path)

    patch.setattr(listeners, "_listen", listen)


def at_the_serving(error: BaseException) -> Patch:
    def apply(patch: pytest.MonkeyPatch, lane: ScriptedLane) -> None:
        patch.setattr(ScriptedProcess, "serve", raising(error))

    return apply


def at_the_watching(number: int) -> Patch:
    """The kernel refuses to watch the first or second listener (fs.epoll.max_user_watches)."""
    real = Poller.watch_listener

    def apply(patch: pytest.MonkeyPatch, lane: ScriptedLane) -> None:
        seen = itertools.count()

        def watch(self: Poller, fd: int, callback: Callable[[], None]) -> None:
            if next(seen) == number:
                raise full()
            real(self, fd, callback)

        patch.setattr(Poller, "watch_listener", watch)

    return apply


def in_the_table(patch: pytest.MonkeyPatch, lane: ScriptedLane) -> None:
    patch.setattr(ProcessTable, "add", raising(MemoryError()))


class Step(NamedTuple):
    """Where a start fails, which error that gives, and whether a command may have run by then."""

    fails: Patch
    error: type[BaseException]
    runs: bool = True


BOTH = {
    "admission": Step(in_admission, ExecFailed, runs=False),
    "the lane refuses": Step(in_the_lane(ExecFailed("no", "not_found")), ExecFailed, runs=False),
    "the lane has no descriptor": Step(in_the_lane(full()), ExecFailed, runs=False),
    "the lane has a bug": Step(in_the_lane(ZeroDivisionError()), ZeroDivisionError, runs=False),
    "the process": Step(in_the_process, MemoryError),
    "the table": Step(in_the_table, MemoryError),
}
EXEC = BOTH | {
    "sockets": Step(at_the_sockets, ExecFailed),
    "second socket": Step(at_the_second_socket, ExecFailed),
    "the serving": Step(at_the_serving(ExecFailed("full", "overloaded")), ExecFailed),
    "a bug in the serving": Step(at_the_serving(ZeroDivisionError()), ZeroDivisionError),
    "first listener": Step(at_the_watching(0), ExecFailed),
    "second listener": Step(at_the_watching(1), ExecFailed),
}


def an_exec(pool: ProcessPool, **fields: Any) -> Awaitable[object]:
    return pool.exec(ExecRequest(cmd=["x"], **fields))


def a_run(pool: ProcessPool, **fields: Any) -> Awaitable[object]:
    return pool.run(RunRequest(cmd=["x"], **fields))


CASES = [(an_exec, name) for name in EXEC] + [(a_run, name) for name in BOTH]


def nothing_is_left(pool: ProcessPool, lane: ScriptedLane) -> None:
    """But the descriptors, which every test is weighed for."""
    health = pool.health()
    assert (health["live"], health["starting"], health["waiting"], health["draining"]) == (0, 0, 0, 0)
    assert list(pool._sockets.path.iterdir()) == []
    assert [process.exited.done() and process.closed for process in lane.processes] == [1] * len(lane.processes)
    assert not pool._draining
    assert not pool._graces


@pytest.mark.parametrize("says_later", [False, True])
@pytest.mark.parametrize(("start", "name"), CASES, ids=[f"{start.__name__}: {name}" for start, name in CASES])
async def test_a_failure(start: Any, name: str, says_later: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    step, lane = EXEC[name], ScriptedLane()
    lane.says_later = says_later
    async with a_pool(lane, max_live=1, max_starting=1) as pool:
        for _ in range(3):
            with monkeypatch.context() as patch:
                step.fails(patch, lane)
                starting = asyncio.ensure_future(start(pool))
                await turns()
                for process in lane.processes:
                    if process.started is not None and not process.started.done():
                        process.started.set_result(None)
                with pytest.raises(step.error):
                    await starting
            await turns()
            nothing_is_left(pool, lane)
        assert len(lane.processes) == (3 if step.runs else 0)
        lane.says_later = False
        await an_exec(pool)


@pytest.mark.parametrize("start", [an_exec, a_run])
async def test_a_command_that_never_ran(lane: ScriptedLane, start: Any) -> None:
    lane.says_later = True
    async with a_pool(lane, max_live=1) as pool:
        starting = asyncio.ensure_future(start(pool))
        await turns()
        process = lane.processes[0]
        assert process.started is not None
        process.started.set_exception(ExecFailed("no", "not_found"))
        with pytest.raises(ExecFailed) as raised:
            await starting
        assert raised.value.reason == "not_found"
        assert process.graces == []  # the lane has seen to it
        process.end()
        nothing_is_left(pool, lane)


# --- cancellations ---


@pytest.mark.parametrize("start", [an_exec, a_run])
async def test_a_cancellation_while_it_waits_for_its_turn(lane: ScriptedLane, start: Any) -> None:
    async with a_pool(lane, max_live=1) as pool:
        await an_exec(pool)
        waiting = asyncio.ensure_future(start(pool))
        await turns()
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert waiting.cancelled()
        lane.processes[0].end()
        await turns()
        await an_exec(pool)
        assert len(lane.processes) == 2


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("start", [an_exec, a_run])
async def test_a_cancellation_in_the_lane(lane: ScriptedLane, start: Any, key: str | None) -> None:
    lane.gate.clear()
    async with a_pool(lane, max_live=1) as pool:
        starting = asyncio.ensure_future(start(pool, key=key))
        await turns()
        starting.cancel()
        await asyncio.wait((starting,))
        assert starting.cancelled()
        nothing_is_left(pool, lane)


@pytest.mark.parametrize("in_that_turn", [False, True])
@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("start", [an_exec, a_run])
async def test_a_cancellation_before_or_as_the_command_runs(
    lane: ScriptedLane, start: Any, key: str | None, in_that_turn: bool
) -> None:
    lane.says_later = True
    async with a_pool(lane, max_live=1) as pool:
        starting = asyncio.ensure_future(start(pool, key=key))
        await turns()
        process = lane.processes[0]
        process.may_end.clear()
        assert process.started is not None
        if in_that_turn:
            process.started.set_result(None)
        starting.cancel()
        await turns()
        assert not starting.done()  # not before its tree is gone
        process.may_end.set()
        await asyncio.wait((starting,))
        assert starting.cancelled()
        await turns()
        nothing_is_left(pool, lane)
        lane.says_later = False
        assert pool.table.with_key("k") is None
        await an_exec(pool, key=key)


async def test_a_second_cancellation_does_not_stop_the_first(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_live=1) as pool:
        running = asyncio.ensure_future(a_run(pool))
        await turns()
        lane.processes[0].may_end.clear()
        for _ in range(2):
            running.cancel()
            await turns()
        assert running.cancelled()
        assert pool.health()["live"] == 1
        lane.processes[0].may_end.set()
        await turns()
        nothing_is_left(pool, lane)


@pytest.mark.parametrize("start", [an_exec, a_run])
async def test_what_cannot_be_ended_is_said(lane: ScriptedLane, pool: ProcessPool, start: Any) -> None:
    lane.says_later = start is an_exec
    starting = asyncio.ensure_future(start(pool))
    await turns()
    lane.processes[0].failure = ExecFailed("it sits in the kernel", "engine_timeout")
    starting.cancel()
    with pytest.raises(ExecFailed) as raised:
        await starting
    assert raised.value.reason == "engine_timeout"
    lane.processes[0].failure = None


async def test_the_end_of_all_while_a_start_is_taken_back(lane: ScriptedLane) -> None:
    async with a_pool(lane) as pool:
        running = asyncio.ensure_future(a_run(pool))
        await turns()
        lane.processes[0].may_end.clear()
        running.cancel()
        await turns()
        ending = asyncio.ensure_future(pool.end_all())
        await turns()
        lane.processes[0].may_end.set()
        await ending
        with suppress(asyncio.CancelledError, FastclawError):
            await running
    assert lane.processes[0].closed == 1


async def test_one_that_is_taken_back_as_all_ends_gives_its_place_back(lane: ScriptedLane, pool: ProcessPool) -> None:
    """The task that takes it back may be cancelled before its first step; the host's room had a place less then."""
    lane.says_later = True
    starting = asyncio.ensure_future(pool.exec(ExecRequest(cmd=["x"])))
    await until(lambda: lane.processes)
    await turns()
    starting.cancel()
    await asyncio.sleep(0)
    await pool.aclose()
    await asyncio.wait((starting,))
    assert pool.health()["starting"] == pool.health()["live"] == 0
    assert pool._admission.statistics().live == 0


async def test_a_run_that_its_lane_ends_before_it_has_begun_gives_its_place_back(
    lane: ScriptedLane, pool: ProcessPool
) -> None:
    """A spawner that ends everything cancels what has not begun; its pump may have taken the run all the same."""
    lane.says_later = True
    running = asyncio.ensure_future(pool.run(RunRequest(cmd=["x"])))
    await until(lambda: lane.processes)
    await turns()
    (process,) = lane.processes
    assert process.started is not None
    process.started.cancel()
    process.give(exit_code=9)
    with pytest.raises(InvalidState):
        await running
    assert pool._admission.statistics()[1:3] == (0, 0)


@pytest.mark.parametrize("call", ["exec", "run"])
async def test_one_that_begins_after_all_was_ended_is_taken_back(
    call: str, lane: ScriptedLane, pool: ProcessPool
) -> None:
    lane.gate.clear()
    request = ExecRequest(cmd=["x"]) if call == "exec" else RunRequest(cmd=["x"])
    starting = asyncio.ensure_future(getattr(pool, call)(request))
    await until(lambda: lane.starting)
    await pool.end_all(InvalidState("stopped", "environment_stopped"))
    lane.gate.set()
    with pytest.raises(InvalidState, match="stopped"):
        await starting
    assert pool._admission.statistics()[1:3] == (0, 0)
