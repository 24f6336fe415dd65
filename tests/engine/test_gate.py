"""Who goes through a gate, when, and what becomes of those who wait in vain. Time is a loop's own."""

import asyncio
from collections.abc import Iterator

import pytest

from fastclaw.engine.gate import Gate
from fastclaw.engine.pace import Pace
from tests.waiting import InstantLoop, turns


@pytest.fixture
def instant() -> Iterator[asyncio.Runner]:
    """Runs coroutines on a clock that jumps."""
    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        yield runner


def gate(places: int, stall_s: float = 30) -> Gate:
    """With a fixed number of places."""
    return Gate(Pace((places,)), stall_s)


class Visitors:
    """Go through a gate, each for as long as it is told, and note who does."""

    def __init__(self, one: Gate) -> None:
        self.gate = one
        self.inside: list[str] = []
        self.order: list[str] = []

    async def visit(self, name: str, seconds: float = 1, *, carries_on: bool = False) -> None:
        place = await self.gate.enter("visit", carries_on=carries_on)
        self.inside.append(name)
        self.order.append(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.inside.remove(name)
            place.leave()
            place.leave()


def told(one: Gate) -> tuple[int, int, int]:
    """In flight, waiting, bound."""
    health = one.health()
    return health["in_flight"], health["waiting"], health["bound"]


def test_in_order_of_arrival_and_never_more_than_the_bound(instant: asyncio.Runner) -> None:
    async def run() -> None:
        visitors = Visitors(gate(3))
        tasks = [asyncio.create_task(visitors.visit(str(number))) for number in range(10)]
        await turns()
        assert visitors.inside == ["0", "1", "2"]
        assert told(visitors.gate) == (3, 7, 3)
        assert repr(visitors.gate) == "<Gate 3 of 3, 7 wait>"
        await asyncio.gather(*tasks)
        assert visitors.order == [str(number) for number in range(10)]
        assert told(visitors.gate) == (0, 0, 3)
        assert asyncio.get_running_loop().time() == pytest.approx(4)

    instant.run(run())


def test_what_has_begun_goes_before_what_begins(instant: asyncio.Runner) -> None:
    async def run() -> None:
        visitors = Visitors(gate(1))
        async with asyncio.TaskGroup() as group:
            for name, carries_on in (("a", False), ("b", False), ("A", True), ("c", False), ("B", True)):
                group.create_task(visitors.visit(name, carries_on=carries_on))
        assert visitors.order == ["a", "A", "B", "b", "c"]

    instant.run(run())


def test_one_that_is_cancelled_holds_up_nobody(instant: asyncio.Runner) -> None:
    """While it waits, in the turn in which it is let in, and inside."""

    async def run() -> None:
        visitors = Visitors(gate(1))
        first, second, third = (asyncio.create_task(visitors.visit(name)) for name in "abc")
        await turns()
        second.cancel()
        await turns()
        assert told(visitors.gate) == (1, 1, 1)
        fourth = asyncio.create_task(visitors.visit("d"))
        await turns()
        first.cancel()
        await asyncio.sleep(0)  # its place goes to the third, which does not know yet
        third.cancel()
        await asyncio.gather(first, second, third, fourth, return_exceptions=True)
        assert visitors.order[-1] == "d"
        assert told(visitors.gate) == (0, 0, 1)

    instant.run(run())


def test_who_waits_gives_up_when_nothing_comes_to_an_end(instant: asyncio.Runner) -> None:
    async def run() -> None:
        loop, one = asyncio.get_running_loop(), gate(1, stall_s=5)
        place = await one.enter("x")
        waiting = [asyncio.create_task(one.enter("x")) for _ in range(3)]
        await asyncio.sleep(4)
        place.leave()  # progress: the others have five more seconds
        await asyncio.wait(waiting, timeout=4.9)
        assert [task.done() for task in waiting] == [True, False, False]
        await asyncio.wait(waiting)
        assert loop.time() == pytest.approx(9)
        assert [type(task.exception()) for task in waiting[1:]] == [TimeoutError] * 2
        waiting[0].result().leave(done=False)  # given up: that is no progress
        assert told(one) == (0, 0, 1)

    instant.run(run())


def test_a_closed_gate_lets_nobody_in(instant: asyncio.Runner) -> None:
    async def run() -> None:
        one = gate(1)
        place = await one.enter("x")
        waiting = asyncio.create_task(one.enter("x"))
        await turns()
        one.close()
        one.close()
        for attempt in (waiting, one.enter("x")):
            with pytest.raises(RuntimeError, match="closed"):
                await attempt
        place.leave()
        assert told(one) == (0, 0, 1)

    instant.run(run())


def test_a_place_for_a_block(instant: asyncio.Runner) -> None:
    async def run() -> None:
        one = gate(1)
        async with one.passing("x"):
            assert told(one) == (1, 0, 1)
        assert told(one) == (0, 0, 1)

    instant.run(run())


def test_it_widens_while_that_gains(instant: asyncio.Runner) -> None:
    """Whoever is let in takes as long as ever, however many there are."""

    async def run() -> None:
        one = Gate(Pace(), 30)
        visitors = Visitors(one)
        await asyncio.gather(*(visitors.visit("v", 0.1) for _ in range(2_000)))
        assert one.health()["bound"] >= 16
        assert one.health()["per_second"] > 100

    instant.run(run())
