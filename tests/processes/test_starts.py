"""Waiting for a start: in order, bounded in number and in time, and given up at any moment."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.errors import ExecFailed, InvalidParams, InvalidState, IoError
from fastclaw.processes.admission import Admission, TicketState
from fastclaw.processes.lane import StartSpec
from fastclaw.processes.starts import Begun, KeyedCalls, StartQueue, explained, never_ran, require_same
from tests.processes.lanes import ScriptedProcess
from tests.waiting import turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable


def a_queue(timeout_s: float = 5, queue_limit: int = 10) -> tuple[StartQueue, Admission]:
    admission = Admission(1, 1, 1, queue_limit)
    return StartQueue(admission, timeout_s), admission


async def test_the_next_is_woken_in_order() -> None:
    queue, _ = a_queue()
    first = await queue.admit()
    waiting = [asyncio.create_task(queue.admit()) for _ in range(3)]
    await turns()
    order = []
    ticket = first
    for task in waiting:
        queue.started(ticket)
        queue.leave(ticket)
        ticket = await task
        order.append(task)
        assert [other.done() for other in waiting[len(order) :]] == [False] * (3 - len(order))
    assert repr(queue) == "<StartQueue <Admission live=1/1 starting=1 waiting=0>>"
    queue.leave(ticket)
    queue.close()
    assert repr(queue) == "<StartQueue closed <Admission live=0/1 starting=0 waiting=0>>"


async def test_waiting_too_long_is_overloaded() -> None:
    queue, admission = a_queue(timeout_s=0.02)
    ticket = await queue.admit()
    with pytest.raises(ExecFailed) as raised:
        await queue.admit()
    assert raised.value.reason == "overloaded"
    assert admission.statistics().waiting == 0
    queue.leave(ticket)
    assert (await queue.admit()).state is TicketState.STARTING
    queue.close()


async def test_each_waits_for_its_own_time() -> None:
    queue, _ = a_queue(timeout_s=0.05)
    await queue.admit()
    loop = asyncio.get_running_loop()
    began = loop.time()
    first = asyncio.create_task(queue.admit())
    await asyncio.sleep(0.03)
    second = asyncio.create_task(queue.admit())
    await asyncio.wait((first,))
    assert not second.done()
    await asyncio.wait((second,))
    assert loop.time() - began >= 0.075
    assert isinstance(first.exception(), ExecFailed)
    assert isinstance(second.exception(), ExecFailed)
    queue.close()


@pytest.mark.parametrize("when", ["long before", "just before", "just after"])
async def test_cancelled_before_or_after_it_is_admitted_it_gives_its_place_up(when: str) -> None:
    queue, admission = a_queue()
    ticket = await queue.admit()
    gone, next_one = asyncio.create_task(queue.admit()), asyncio.create_task(queue.admit())
    await turns()
    if when == "just after":
        queue.leave(ticket)
    gone.cancel()
    if when == "long before":
        await asyncio.wait((gone,))
    queue.leave(ticket)
    with pytest.raises(asyncio.CancelledError):
        await gone
    queue.leave(await next_one)
    assert admission.statistics()[:3] == (0, 0, 0)
    queue.close()


async def test_closing_turns_everybody_away() -> None:
    queue, _ = a_queue()
    await queue.admit()
    waiting = [asyncio.create_task(queue.admit()) for _ in range(3)]
    await turns()
    queue.close()
    await asyncio.wait(waiting)
    for task in waiting:
        error = task.exception()
        assert isinstance(error, InvalidState)
        assert error.reason == "shutting_down"
    with pytest.raises(InvalidState):
        await queue.admit()


async def test_closed_and_cancelled_in_one_turn() -> None:
    """As a shutdown does it: no exception may stay unread."""
    queue, _ = a_queue()
    await queue.admit()
    waiting = asyncio.create_task(queue.admit())
    await turns()
    queue.close()
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled() or isinstance(waiting.exception(), InvalidState)


async def test_a_place_that_nobody_of_thousands_takes_any_more_goes_to_none() -> None:
    """Each of them is passed over, and not within the one before it: Python's stack ends at a thousand."""
    queue, admission = a_queue(queue_limit=5_000)
    ticket = await queue.admit()
    waiting = [asyncio.create_task(queue.admit()) for _ in range(5_000)]
    await turns()
    queue.close()
    queue.leave(ticket)
    assert admission.statistics().live == 0
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, InvalidState) for result in results)


MARK, OTHER = b"mark", b"other"


class Calls:
    """Keyed calls that end when the test says so.

    Attributes:
        begun: how many calls were made.
        taken_back: keys whose results nobody was told of.
        heeds: whether a call ends when it is cancelled, or goes on to its result.
        failure: what a call that is cancelled raises instead.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.taken_back: list[str] = []
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.heeds = True
        self.failure: Exception | None = None
        self.tasks: set[asyncio.Future[Any]] = set()
        self.keyed = KeyedCalls(self._own, self._take_back)

    def _own(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        return task

    async def _take_back(self, key: str) -> None:
        self.taken_back.append(key)

    async def _begin(self) -> str:
        self.begun += 1
        try:
            return await asyncio.shield(self.result)
        except asyncio.CancelledError:
            await self.may_end.wait()
            if self.failure is not None:
                raise self.failure from None
            if self.heeds:
                raise
            return "too late"

    def come(self, key: str = "k", mark: bytes = MARK) -> asyncio.Task[Any]:
        """Somebody who wants it."""
        return asyncio.create_task(self.keyed.join(key, mark, self._begin))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.may_end.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.result.cancel()


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    made = Calls()
    yield made
    await made.close()
    assert made.keyed._calls == {}


def test_require_same() -> None:
    require_same(MARK, MARK)
    with pytest.raises(InvalidParams) as raised:
        require_same(MARK, OTHER)
    assert raised.value.data["path"] == "$.key"


async def test_all_who_come_get_the_one_result(calls: Calls) -> None:
    assert not await calls.keyed.has("k")
    waiting = [calls.come() for _ in range(3)]
    await turns()
    assert await calls.keyed.has("k")
    calls.result.set_result("x")
    assert await asyncio.gather(*waiting) == ["x"] * 3
    assert calls.begun == 1
    assert not await calls.keyed.has("k")


async def test_other_keys_are_other_calls(calls: Calls) -> None:
    waiting = [calls.come("a"), calls.come("b")]
    await turns()
    assert calls.begun == 2
    calls.result.set_result("x")
    await asyncio.gather(*waiting)


async def test_another_request_with_the_key_is_refused_and_the_call_goes_on(calls: Calls) -> None:
    first = calls.come()
    await turns()
    with pytest.raises(InvalidParams):
        await calls.come(mark=OTHER)
    calls.result.set_result("x")
    assert await first == "x"
    assert (calls.begun, calls.taken_back) == (1, [])


async def test_all_hear_of_its_failure(calls: Calls) -> None:
    waiting = [calls.come() for _ in range(2)]
    await turns()
    calls.result.set_exception(ExecFailed("no", "not_found"))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ExecFailed] * 2
    assert calls.taken_back == []


async def test_who_leaves_leaves_it_to_the_others(calls: Calls) -> None:
    waiting = [calls.come() for _ in range(3)]
    await turns()
    for leaving in waiting[:2]:
        leaving.cancel()
    await turns()
    assert [one.cancelled() for one in waiting[:2]] == [True, True]
    calls.result.set_result("x")
    assert await waiting[2] == "x"
    assert calls.taken_back == []


async def test_the_last_one_takes_it_along_and_is_gone_once_that_is_through(calls: Calls) -> None:
    last = calls.come()
    await turns()
    calls.may_end.clear()
    last.cancel()
    await turns()
    assert not last.done()
    looking = asyncio.create_task(calls.keyed.has("k"))
    await turns()
    assert not looking.done(), "the key is free only then"
    calls.may_end.set()
    await asyncio.wait((last,))
    assert last.cancelled()
    assert await looking is False
    assert calls.taken_back == [], "nothing came of it"
    again = calls.come()
    await turns()
    calls.result.set_result("x")
    assert await again == "x"
    assert calls.begun == 2


async def test_a_result_that_comes_as_the_last_one_leaves_is_taken_back(calls: Calls) -> None:
    calls.heeds = False
    last = calls.come()
    await turns()
    last.cancel()
    await asyncio.wait((last,))
    assert last.cancelled()
    assert calls.taken_back == ["k"]


async def test_what_cannot_be_taken_back_is_said(calls: Calls) -> None:
    calls.failure = ExecFailed("it sits in the kernel", "engine_timeout")
    last = calls.come()
    await turns()
    last.cancel()
    with pytest.raises(ExecFailed) as raised:
        await last
    assert raised.value.reason == "engine_timeout"
    assert calls.taken_back == []


async def test_the_end_of_the_call_itself_is_the_runtime_s(calls: Calls) -> None:
    waiting = [calls.come() for _ in range(2)]
    await turns()
    for task in calls.tasks:
        task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [result.reason for result in results if isinstance(result, InvalidState)] == ["shutting_down"] * 2


async def test_who_comes_while_it_is_taken_back_and_does_not_look_shares_its_end(calls: Calls) -> None:
    """`has` is asked before; whoever has asked in the same turn is told that it is over."""
    last = calls.come()
    await turns()
    calls.may_end.clear()
    last.cancel()
    await turns()
    late = calls.come()
    await turns()
    calls.may_end.set()
    with pytest.raises(InvalidState):
        await late
    await asyncio.wait((last,))
    assert last.cancelled()


@pytest.fixture
async def process() -> AsyncIterator[ScriptedProcess]:
    scripted = ScriptedProcess(StartSpec(process_id="p", cmd=["x"]))
    yield scripted
    scripted.close_theirs()
    scripted.close_streams()


def test_of_a_start_that_has_just_been_admitted_there_is_a_place() -> None:
    ticket = Admission(1, 1, 1, 1).request("who asks", 0.0)
    begun = Begun(ticket)
    assert (begun.ticket, begun.lane_process, begun.process) == (ticket, None, None)


async def test_only_what_the_lane_has_refused_never_ran(process: ScriptedProcess) -> None:
    assert not never_ran(process), "it runs already"
    started = process.started = asyncio.get_running_loop().create_future()
    assert not never_ran(process), "it may run at any moment"
    started.set_exception(ExecFailed("no", "not_found"))
    assert never_ran(process)
    for is_cancelled in (False, True):
        started = process.started = asyncio.get_running_loop().create_future()
        if is_cancelled:
            started.cancel()
        else:
            started.set_result(None)
        assert not never_ran(process), "it has run, or may have"


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EAGAIN]
)
def test_not_enough_now_may_be_tried_again(number: int) -> None:
    error = explained(OSError(number, os.strerror(number)))
    assert isinstance(error, ExecFailed)
    assert (error.reason, error.retryable) == ("overloaded", True)
    assert os.strerror(number) in str(error)
    assert "fastclaw doctor" in str(error)


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file or directory"), OSError("of no number")])
def test_anything_else_is_an_error_of_the_sockets(error: OSError) -> None:
    found = explained(error)
    assert isinstance(found, IoError)
    assert str(error.strerror or error) in str(found)
