"""A climb on real runtimes: one that breaks at some load, one that dies, one that never holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastclaw.bench import cliff
from fastclaw.bench.climb import climb
from fastclaw.bench.job import Job, Plan
from tests.bench.rig import MEMORY, evil, ignored, job

if TYPE_CHECKING:
    import pytest

STEP_S = 0.3


def of(command: list[str], plan: Plan, **more: Any) -> Job:
    return job(command, plan=plan, **more)


async def test_a_bound_on_what_runs_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth one waits in the queue, which has room for one: the sixth is turned away."""
    monkeypatch.setattr(cliff, "_GAIN", -10)  # how much more there is in a second depends on who else is busy here
    options = {"max_processes": 4, "queue_limit": 1}
    one = of(MEMORY, Plan(concurrency=2, duration_s=STEP_S), options=options, cmd=["sleep", "0.02"])
    found = await climb(one, ignored)
    assert found.by == "concurrency"
    assert (found.highest, found.first) == (5, 6)
    assert any(bound.startswith("errors: ") and bound.endswith("overloaded") for bound in found.bounds), found.bounds
    assert found.ok
    assert found.leftovers.total == 0


async def test_a_rate_that_cannot_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cliff, "_NEAR", 1.5)
    one = of(evil("slow"), Plan(rate=100, duration_s=STEP_S * 2))
    found = await climb(one, ignored)
    assert found.by == "rate"
    assert found.highest is not None
    assert found.highest <= 500  # it takes 3 ms for each, one after the other
    assert found.first is not None
    assert {step.why for step in found.steps} == {"", "rate not held"}


async def test_a_runtime_that_dies_is_said_to() -> None:
    found = await climb(of(evil("dies"), Plan(concurrency=1, duration_s=STEP_S)), ignored)
    assert not found.ok
    assert found.ended_early == "runtime exited with code 7"
    assert found.bounds[0] == "the runtime ended: runtime exited with code 7"
    assert found.first == 1


async def test_a_runtime_that_holds_nothing() -> None:
    found = await climb(of(evil("errors"), Plan(concurrency=1, duration_s=0.05)), ignored)
    assert (found.highest, found.ok, found.first) == (None, False, 1.0)
    assert any("overloaded" in bound for bound in found.bounds)


async def test_an_interruption_gives_what_there_is() -> None:
    steps = 0

    def interrupting(driver: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            driver.interrupt()  # type: ignore[attr-defined] # it is one

    found = await climb(of(MEMORY, Plan(concurrency=1, duration_s=0.1)), interrupting)
    assert found.interrupted
    assert len(found.steps) == 1


async def test_no_more_is_held_than_there_is_to_hold() -> None:
    found = await climb(job(MEMORY, "hold", Plan(concurrency=1, duration_s=0.1), live=2), ignored)
    assert max(step.level for step in found.steps) <= 2
