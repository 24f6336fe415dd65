"""Who comes with the same key while a call is in flight, who leaves it, and what the last one takes along."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.errors import ExecFailed, InvalidParams, InvalidState
from fastclaw.processes.keyed import KeyedCalls, require_same
from tests.processes.lanes import turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

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


@asynccontextmanager
async def some_calls() -> AsyncIterator[Calls]:
    calls = Calls()
    yield calls
    await calls.close()
    assert calls.keyed._calls == {}


def test_require_same() -> None:
    require_same(MARK, MARK)
    with pytest.raises(InvalidParams) as raised:
        require_same(MARK, OTHER)
    assert raised.value.data["path"] == "$.key"


async def test_all_who_come_get_the_one_result() -> None:
    async with some_calls() as calls:
        assert not await calls.keyed.has("k")
        waiting = [calls.come() for _ in range(3)]
        await turns()
        assert await calls.keyed.has("k")
        calls.result.set_result("x")
        assert await asyncio.gather(*waiting) == ["x"] * 3
        assert calls.begun == 1
        assert not await calls.keyed.has("k")


async def test_other_keys_are_other_calls() -> None:
    async with some_calls() as calls:
        waiting = [calls.come("a"), calls.come("b")]
        await turns()
        assert calls.begun == 2
        calls.result.set_result("x")
        await asyncio.gather(*waiting)


async def test_another_request_with_the_key_is_refused_and_the_call_goes_on() -> None:
    async with some_calls() as calls:
        first = calls.come()
        await turns()
        with pytest.raises(InvalidParams):
            await calls.come(mark=OTHER)
        calls.result.set_result("x")
        assert await first == "x"
        assert (calls.begun, calls.taken_back) == (1, [])


async def test_all_hear_of_its_failure() -> None:
    async with some_calls() as calls:
        waiting = [calls.come() for _ in range(2)]
        await turns()
        calls.result.set_exception(ExecFailed("no", "not_found"))
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [ExecFailed] * 2
        assert calls.taken_back == []


async def test_who_leaves_leaves_it_to_the_others() -> None:
    async with some_calls() as calls:
        waiting = [calls.come() for _ in range(3)]
        await turns()
        for leaving in waiting[:2]:
            leaving.cancel()
        await turns()
        assert [one.cancelled() for one in waiting[:2]] == [True, True]
        calls.result.set_result("x")
        assert await waiting[2] == "x"
        assert calls.taken_back == []


async def test_the_last_one_takes_it_along_and_is_gone_once_that_is_through() -> None:
    async with some_calls() as calls:
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


async def test_a_result_that_comes_as_the_last_one_leaves_is_taken_back() -> None:
    async with some_calls() as calls:
        calls.heeds = False
        last = calls.come()
        await turns()
        last.cancel()
        await asyncio.wait((last,))
        assert last.cancelled()
        assert calls.taken_back == ["k"]


async def test_what_cannot_be_taken_back_is_said() -> None:
    async with some_calls() as calls:
        calls.failure = ExecFailed("it sits in the kernel", "engine_timeout")
        last = calls.come()
        await turns()
        last.cancel()
        with pytest.raises(ExecFailed) as raised:
            await last
        assert raised.value.reason == "engine_timeout"
        assert calls.taken_back == []


async def test_the_end_of_the_call_itself_is_the_runtime_s() -> None:
    async with some_calls() as calls:
        waiting = [calls.come() for _ in range(2)]
        await turns()
        for task in calls.tasks:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [result.reason for result in results if isinstance(result, InvalidState)] == ["shutting_down"] * 2


async def test_who_comes_while_it_is_taken_back_and_does_not_look_shares_its_end() -> None:
    """`has` is asked before; whoever has asked in the same turn is told that it is over."""
    async with some_calls() as calls:
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
