"""A runtime from start to end: what it told, what it lacks, and what it lists at its end."""

from __future__ import annotations

import pytest

from fastclaw.bench.job import Plan
from fastclaw.bench.session import NotMeasured, up
from tests.bench.rig import MEMORY, evil, ignored, job


async def test_several_measurements_of_one_runtime() -> None:
    async with up(job(MEMORY)) as session:
        await session.begin()
        for count in (3, 5):
            _, measured = await session.measure(Plan(count=count), ignored)
            assert measured.right == measured.begun == count
    assert session.welcome["server"]["name"] == "fastclaw"
    assert session.farewell is not None
    assert (session.farewell.early, session.farewell.exit_code) == (None, 0)


async def test_an_environment_that_is_left_is_one_that_the_runtime_lists() -> None:
    async with up(job(MEMORY)) as session:
        await session.calls.result("environment_start", b"{}")
    assert session.farewell is not None
    assert session.farewell.leftovers.environments == 1


async def test_processes_that_cannot_be_held_are_said() -> None:
    with pytest.raises(NotMeasured, match="--load hold cannot begin: wrong_result"):
        async with up(job(evil("good"), "hold")) as session:
            await session.begin()


async def test_options_reach_initialize() -> None:
    with pytest.raises(NotMeasured, match=r"initialize failed: unknown option \$.options.nonsense"):
        async with up(job(MEMORY, options={"nonsense": 1})):
            pass


async def test_the_measured_numbers_fit_each_other() -> None:
    async with up(job(MEMORY)) as session:
        driver, measured = await session.measure(Plan(concurrency=2, duration_s=0.3, warm_up_s=0.1), ignored)
    assert measured.right == measured.begun == measured.latency.samples == driver.recorder.right
    assert measured.warm_up > 0
    assert abs(measured.per_s * measured.seconds - measured.right) < 1
    assert 0.25 < measured.seconds < 5
    assert (measured.late, measured.is_held) == (None, None)
    assert measured.cpu_us > 0
