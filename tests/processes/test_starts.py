"""Waiting for a start: in order, bounded in number and in time, and given up at any moment."""

import asyncio

import pytest

from fastclaw.errors import ExecFailed, InvalidState
from fastclaw.processes.admission import Admission, TicketState
from fastclaw.processes.starts import StartQueue
from tests.processes.lanes import turns


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
    queue.leave(ticket)
    queue.close()


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


async def test_a_cancelled_wait_gives_its_place_up() -> None:
    queue, admission = a_queue()
    ticket = await queue.admit()
    gone, stays = asyncio.create_task(queue.admit()), asyncio.create_task(queue.admit())
    await turns()
    gone.cancel()
    await asyncio.wait((gone,))
    queue.leave(ticket)
    queue.leave(await stays)
    assert admission.statistics()[:3] == (0, 0, 0)
    queue.close()


async def test_cancelled_in_the_turn_in_which_it_is_admitted() -> None:
    queue, admission = a_queue()
    ticket = await queue.admit()
    gone, next_one = asyncio.create_task(queue.admit()), asyncio.create_task(queue.admit())
    await turns()
    queue.leave(ticket)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    queue.leave(await next_one)
    assert admission.statistics()[:3] == (0, 0, 0)
    queue.close()


async def test_admitted_in_the_turn_in_which_it_was_cancelled() -> None:
    queue, admission = a_queue()
    ticket = await queue.admit()
    gone, next_one = asyncio.create_task(queue.admit()), asyncio.create_task(queue.admit())
    await turns()
    gone.cancel()
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
