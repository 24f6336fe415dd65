"""Requests by id, and the end of one by somebody who is not its own task."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed, InvalidParams, InvalidState
from fastclaw.server.in_flight import Call, InFlight
from fastclaw.server.jsonrpc import Request, RequestId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CANCELLED = ExecFailed("taken back", "cancelled")


def a_call(request_id: RequestId | None = 1) -> Call[str]:
    return Call(Request(request_id, "exec", {}), "exec", lambda answer: None, 100)


def in_flight(*calls: Call[str]) -> InFlight[str]:
    all_of_them: InFlight[str] = InFlight()
    for call in calls:
        all_of_them.add(call)
    return all_of_them


# --- by id ---


def test_one_is_found_until_it_is_answered() -> None:
    call = a_call("a")
    calls = in_flight(call)
    assert calls.find("a") is call
    calls.remove(call)
    assert calls.find("a") is None


def test_ids_of_different_types_are_different() -> None:
    number, text = a_call(1), a_call("1")
    calls = in_flight(number, text)
    assert (calls.find(1), calls.find("1")) == (number, text)
    calls.remove(number)
    assert (calls.find(1), calls.find("1")) == (None, text)


def test_without_an_id_nothing_is_kept() -> None:
    call = a_call(None)
    calls = in_flight(call)
    calls.remove(call)
    assert (calls._first, calls._shared) == ({}, {})


@pytest.mark.parametrize("leaves", [0, 1, 2])
def test_an_id_that_several_hold_is_refused_until_one_is_left(leaves: int) -> None:
    held = [a_call(7) for _ in range(3)]
    calls = in_flight(*held)
    for left in (3, 2):
        with pytest.raises(InvalidParams, match=f"{left} requests in flight have the id 7") as raised:
            calls.find(7)
        assert raised.value.data["path"] == "$.id"
        calls.remove(held.pop(leaves % len(held)))
    assert calls.find(7) is held[0]
    calls.remove(held[0])
    assert calls.find(7) is None
    assert (calls._first, calls._shared) == ({}, {})


def test_one_that_comes_after_others_have_gone_is_alone() -> None:
    first, second = a_call(7), a_call(7)
    calls = in_flight(first, second)
    calls.remove(first)
    third = a_call(7)
    calls.add(third)
    with pytest.raises(InvalidParams):
        calls.find(7)
    calls.remove(second)
    assert calls.find(7) is third


# --- cutting short ---


async def serving(call: Call[str], work: Callable[[], Awaitable[None]]) -> asyncio.Task[str]:
    """A task that does as the dispatcher's: the cancellation ends in it, where nobody else has cancelled it."""

    async def serve() -> str:
        call.task = asyncio.current_task()
        try:
            await work()
        except asyncio.CancelledError:
            if not call.is_cut_short():
                raise
            await asyncio.sleep(0)  # it can wait again
            return "cut short"
        return "done"

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    return task


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_it_ends_with_the_reason_and_its_task_goes_on() -> None:
    call = a_call()
    task = await serving(call, for_ever)
    call.cut_short(CANCELLED)
    assert await task == "cut short"
    assert call.why is CANCELLED
    assert task.cancelling() == 0


async def test_only_the_first_one_counts() -> None:
    call = a_call()
    ended = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await for_ever()
        finally:
            await ended.wait()

    task = await serving(call, slow_to_end)
    call.cut_short(CANCELLED)
    await asyncio.sleep(0)
    call.cut_short(InvalidState("the runtime is shutting down", "shutting_down"))
    await asyncio.sleep(0)
    assert not task.done(), "whoever takes something back is not disturbed in it"
    ended.set()
    assert await task == "cut short"
    assert call.why is CANCELLED


async def test_before_its_turn_there_is_nobody_to_cancel() -> None:
    call = a_call()
    call.cut_short(CANCELLED)
    assert call.why is CANCELLED
    assert not call.is_cut_short()


async def test_an_end_of_the_task_itself_goes_through() -> None:
    for is_cut_short in (False, True):
        call = a_call()
        task = await serving(call, for_ever)
        if is_cut_short:
            call.cut_short(CANCELLED)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_who_was_not_cut_short_does_not_end_a_cancellation() -> None:
    call = a_call()
    assert await (await serving(call, _nothing)) == "done"
    assert not call.is_cut_short()


async def _nothing() -> None:
    await asyncio.sleep(0)


# --- the answer ---


async def test_the_answer_is_waited_for_by_all_who_want_it() -> None:
    call = a_call()
    waiting = [asyncio.create_task(call.wait_answered()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    call.has_been_answered()
    await asyncio.gather(*waiting[1:])
    await call.wait_answered()


async def test_an_answer_that_nobody_waits_for() -> None:
    a_call().has_been_answered()
