"""Calls that are shared while they go on."""

import asyncio

import pytest

from fastclaw.engine.flights import Flights
from tests.waiting import turns


class Calls:
    """Counts those that begin and those that are cancelled; each ends with what is given to `end`."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.begun += 1
        try:
            return await asyncio.shield(self.end)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_all_who_ask_at_the_same_time_share_one_call() -> None:
    flights, calls = Flights[int](), Calls()
    asking = [asyncio.create_task(flights.share("k", calls)) for _ in range(5)]
    await turns()
    assert repr(flights) == "<Flights 1 under way>"
    calls.end.set_result(7)
    assert await asyncio.gather(*asking) == [7] * 5
    assert calls.begun == 1
    assert await flights.share("k", calls) == 7
    assert calls.begun == 2  # nothing is remembered
    assert repr(flights) == "<Flights 0 under way>"


async def test_one_key_has_nothing_to_do_with_another() -> None:
    flights, slow, quick = Flights[int](), Calls(), Calls()
    waiting = asyncio.create_task(flights.share("slow", slow))
    quick.end.set_result(1)
    async with asyncio.timeout(5):
        assert await flights.share("quick", quick) == 1
    assert not waiting.done()
    slow.end.set_result(2)
    assert await waiting == 2


async def test_a_failure_is_for_those_who_shared_it() -> None:
    flights, calls = Flights[int](), Calls()
    asking = [asyncio.create_task(flights.share("k", calls)) for _ in range(3)]
    await turns()
    calls.end.set_exception(OSError("no"))
    assert [type(one) for one in await asyncio.gather(*asking, return_exceptions=True)] == [OSError] * 3
    calls.end = asyncio.get_running_loop().create_future()
    calls.end.set_result(1)
    assert await flights.share("k", calls) == 1


async def test_who_leaves_takes_nobody_along_and_the_last_one_ends_it() -> None:
    flights, calls = Flights[int](), Calls()
    first, second = (asyncio.create_task(flights.share("k", calls)) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert (first.cancelled(), calls.cancelled) == (True, 0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await flights.share("k", calls)
    assert calls.cancelled == 0
    second.cancel()
    await turns()
    assert (calls.begun, calls.cancelled) == (1, 1)
    calls.end.set_result(3)
    assert await flights.share("k", calls) == 3


async def test_share_next_does_not_join_what_began_before() -> None:
    flights, calls = Flights[int](), Calls()
    first = asyncio.create_task(flights.share_next("k", calls))
    await turns()
    later = [asyncio.create_task(flights.share_next("k", calls)) for _ in range(5)]
    await turns()
    assert calls.begun == 1
    calls.end.set_result(1)
    assert await asyncio.gather(first, *later) == [1] * 6
    assert calls.begun == 2
