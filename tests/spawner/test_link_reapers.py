"""The number of reapers of a spawner, with a fake: more are made ahead of need, and idle ones are ended."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.spawner import frames
from fastclaw.spawner.link import greet
from tests.balance import balanced
from tests.spawner.fake_spawner import FakeSpawner, nothing
from tests.spawner.test_link import occupy, request, settle, watched

if TYPE_CHECKING:
    from fastclaw.spawner.spawn_process import SpawnProcess


async def test_growth_that_is_refused_is_overloaded_and_may_be_tried_again() -> None:
    async with watched() as seen:
        processes = occupy(seen.spawner)
        asked = asyncio.ensure_future(seen.spawner.make_room())
        await seen.fake.grant_growth(0, errno.EAGAIN)
        with pytest.raises(ExecFailed) as refused:
            await asked
        assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)
        again = asyncio.ensure_future(seen.spawner.make_room())
        await seen.fake.grant_growth(1, errno.EAGAIN)
        await again
        seen.spawner.close()
        await settle(processes)


@pytest.mark.timeout(20)
async def test_who_asks_for_room_in_the_turn_in_which_growth_has_ended_in_vain_has_it_tried_again() -> None:
    """Waiting for what is over returns at once, for ever: the loop would never get to say that it is over."""
    async with watched() as seen:
        while seen.spawner.counts()["kept"] < seen.spawner.counts()["reapers"]:
            await seen.begin()

        async def asks_as_soon_as_it_is_over() -> None:
            while seen.spawner._growing is not None and not seen.spawner._growing.done():  # noqa: ASYNC110 - each turn counts
                await asyncio.sleep(0)
            await seen.spawner.make_room()

        assert not seen.spawner.has_room
        seen.spawner._keep_spare()
        asking = asyncio.ensure_future(asks_as_soon_as_it_is_over())
        await seen.fake.grant_growth(0)
        await seen.fake.grant_growth(1)
        await asking


async def test_growth_without_an_answer_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched() as seen:
        monkeypatch.setattr(limits, "SPAWN_ANSWER_MS", 20)
        processes = occupy(seen.spawner)
        with pytest.raises(ExecFailed) as refused:
            await seen.spawner.make_room()
        assert refused.value.reason == "engine_timeout"
        seen.spawner.close()
        await settle(processes)


async def test_growth_is_asked_for_once_and_ahead_of_need() -> None:
    async with watched() as seen:
        first = request(seen.spawner)
        await seen.spawner.make_room()
        await seen.spawner.make_room()
        op, id, wanted, *_ = await seen.fake.hear_order()
        assert (op, wanted) == (frames.GROW, limits.SPAWN_SPARE_REAPERS)
        with pytest.raises(BlockingIOError):
            seen.fake.control.recv(1)
        seen.fake.answer(id, value=wanted)
        await seen.heard()
        assert seen.spawner.counts() == {"reapers": 2 * wanted, "kept": 1}
        assert repr(seen.spawner) == f"<Spawner alive, {2 * wanted} reapers, 1 busy, 1 trees>"
        seen.spawner.close()
        assert repr(seen.spawner).startswith("<Spawner ended")
        await settle([first])


async def test_growth_is_announced_before_it_is_asked_for() -> None:
    """So that who bounds the environment's processes makes room for ours first."""
    async with balanced():
        fake, announced = FakeSpawner(), list[int]()
        fake.say_hello()
        greeting = asyncio.ensure_future(
            greet(
                fake.host,
                confine=False,
                reaper_uid=frames.NO_USER,
                collect_bytes=1,
                on_end=nothing,
                on_growth=announced.append,
            )
        )
        await fake.hear_welcome()
        op, id, wanted, *_ = await fake.hear_order()
        assert (op, announced) == (frames.GROW, [wanted])
        fake.answer(id, value=wanted)
        spawner = await greeting
        processes = occupy(spawner)
        asked = asyncio.ensure_future(spawner.make_room())
        op, id, more, *_ = await fake.hear_order()
        assert announced == [wanted, wanted + more]
        fake.answer(id, value=more)
        await asked
        spawner.close()
        await settle(processes)
        fake.close()


async def test_who_waits_for_room_does_not_take_more_than_there_is() -> None:
    async with watched() as seen:
        processes = occupy(seen.spawner)

        async def take() -> SpawnProcess:
            await seen.spawner.make_room()
            return request(seen.spawner)

        tasks = [asyncio.ensure_future(take()) for _ in range(5)]
        granted = 0
        while granted < 5:
            await seen.fake.grant_growth(2)
            granted += 2
            counts = seen.spawner.counts()
            assert counts["kept"] <= counts["reapers"]
        processes += await asyncio.gather(*tasks)
        seen.spawner.close()
        await settle(processes)


async def test_reapers_that_nobody_needs_are_sent_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_IDLE_REAPERS", limits.SPAWN_SPARE_REAPERS - 1)
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        seen.fake.tell(frames.EXITED, id, 0, frames.WITH_EMPTY | frames.WITH_FREE)
        await process.exited
        assert seen.fake.channel is not None
        assert await asyncio.get_running_loop().sock_recv(seen.fake.channel, 100) == frames.control(frames.RETIRE)
        assert seen.spawner.counts()["reapers"] == limits.SPAWN_SPARE_REAPERS - 1


async def test_numbers_start_over_and_are_never_0() -> None:
    async with watched() as seen:
        seen.spawner._last_id = frames.NO_USER - 1
        assert [seen.spawner.next_id() for _ in range(3)] == [frames.NO_USER, 1, 2]
