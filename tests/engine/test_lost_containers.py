"""How long, and how often, a container of unknown fate is looked for. With a real engine: test_api_trouble.py."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fastclaw import engine_limits
from fastclaw.engine.lost_containers import LostContainers
from fastclaw.errors import StartFailed
from tests.waiting import InstantLoop, until


class Engine:
    """Has containers, or does not answer; notes when each was looked for."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.being_made: set[str] = set()
        self.is_up = True
        self.looks: list[tuple[float, str]] = []

    async def remove(self, container: str) -> bool:
        """As `LostContainers` wants it."""
        self.looks.append((asyncio.get_running_loop().time(), container))
        if not self.is_up:
            raise StartFailed("no engine answers", "engine_unavailable")
        if container in self.being_made:  # it says that it has removed it, and goes on making it
            self.being_made.discard(container)
            self.there.add(container)
            return True
        was_there = container in self.there
        self.there.discard(container)
        return was_there


def on_a_clock_that_jumps(test: Callable[[Engine, LostContainers], Coroutine[Any, Any, None]]) -> None:
    """Run a test; afterwards nobody looks any more."""

    async def run() -> None:
        engine = Engine()
        lost = LostContainers(engine.remove)
        await test(engine, lost)
        await lost.aclose()
        await lost.aclose()
        assert len(lost) == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        runner.run(run())


def test_one_that_is_there_is_removed_at_the_first_look_and_looked_for_once_more() -> None:
    async def test(engine: Engine, lost: LostContainers) -> None:
        engine.there = {"a"}
        lost.add("a")
        await until(lambda: not len(lost))
        assert [container for _, container in engine.looks] == ["a", "a"]

    on_a_clock_that_jumps(test)


def test_one_that_the_engine_goes_on_making_though_it_says_that_it_is_removed() -> None:
    async def test(engine: Engine, lost: LostContainers) -> None:
        engine.being_made = {"a"}
        lost.add("a")
        await until(lambda: not len(lost))
        assert not engine.there

    on_a_clock_that_jumps(test)


def test_one_that_the_engine_makes_later_is_removed_then() -> None:
    async def test(engine: Engine, lost: LostContainers) -> None:
        lost.add("a")
        await until(lambda: len(engine.looks) == 3)
        engine.there = {"a"}
        await until(lambda: not len(lost))
        assert not engine.there
        assert [round(when) for when, _ in engine.looks] == [0, 1, 3, 7, 15]

    on_a_clock_that_jumps(test)


def test_one_that_never_comes_is_forgotten() -> None:
    async def test(engine: Engine, lost: LostContainers) -> None:
        lost.add("a")
        await until(lambda: not len(lost))
        assert len(engine.looks) == engine_limits.LOST_LOOKS

    on_a_clock_that_jumps(test)


def test_looks_at_an_engine_that_does_not_answer_count_for_nothing() -> None:
    async def test(engine: Engine, lost: LostContainers) -> None:
        engine.is_up, engine.there = False, {"a", "b"}
        lost.add("a")
        lost.add("b")
        await until(lambda: len(engine.looks) > 2 * engine_limits.LOST_LOOKS)
        assert len(lost) == 2
        pauses = [b - a for (a, _), (b, _) in zip(engine.looks, engine.looks[1:], strict=False)]
        assert max(pauses) == pytest.approx(engine_limits.LOST_LOOK_MOST_S, abs=0.1)
        engine.is_up = True
        await until(lambda: not engine.there)

    on_a_clock_that_jumps(test)


async def test_a_thread_may_say_so() -> None:
    engine = Engine()
    engine.there = {"a"}
    lost = LostContainers(engine.remove)
    await asyncio.to_thread(lost.add_from_thread, "a")
    await until(lambda: engine.looks and not len(lost))
    await lost.aclose()


def test_a_thread_that_says_so_when_the_loop_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def made() -> LostContainers:
        return LostContainers(Engine().remove)

    with asyncio.Runner() as runner:
        late = runner.run(made())
    with caplog.at_level("INFO"):
        late.add_from_thread("b")
    assert "next initialize" in caplog.text


def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_limits, "LOST_CONTAINERS", 2)

    async def test(engine: Engine, lost: LostContainers) -> None:
        for name in "abc":
            lost.add(name)
        assert len(lost) == 2

    on_a_clock_that_jumps(test)


def test_in_the_end_there_is_one_last_look() -> None:
    async def test(engine: Engine, lost: LostContainers) -> None:
        engine.there, engine.is_up = {"a", "b"}, False
        lost.add("a")
        lost.add("b")
        await until(lambda: engine.looks)
        engine.is_up = True
        await lost.aclose()
        assert engine.there == set()

    on_a_clock_that_jumps(test)
