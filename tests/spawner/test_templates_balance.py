"""Starts of workers that are given up, of templates whose host ends, and that the books balance afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Collection, Grace
from fastclaw.spawner.templates import TemplateInstance
from tests.balance import descriptors_left, open_descriptors
from tests.pids import descendants_of
from tests.spawner.fake_spawner import pump_of
from tests.spawner.test_templates import PYTHON, a_rig, spec
from tests.waiting import until


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancelled_start_leaves_nothing(turns: int) -> None:
    async with a_rig() as rig:
        reaper = rig.reaper
        before = open_descriptors()
        starting = asyncio.create_task(rig.start("import time; time.sleep(1000)"))
        for _ in range(turns):
            await asyncio.sleep(0 if turns < 4 else 0.002)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            process = await starting
            await process.end()
            process.close()
        assert (await rig.run("print(1)"))[1] == b"1\n"
        await until(lambda: len(descendants_of(reaper)) == 2)
        await until(lambda: rig.host.spawner.counts()["kept"] == 1)
        assert open_descriptors() == before


async def test_a_start_cancelled_just_as_it_succeeds_leaves_nothing() -> None:
    async with a_rig() as rig:
        before = open_descriptors()
        starting = asyncio.create_task(rig.lane.start(spec("import time; time.sleep(1000)"), 0))
        await until(lambda: rig.host.spawner.counts()["kept"] == 2)
        (process,) = [one for one in rig.host.spawner._kept.values() if one.is_worker]
        process.started.add_done_callback(lambda _: starting.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            await (await starting).end_tree(Grace(0.0))
        await until(lambda: rig.host.spawner.counts()["kept"] == 1)
        assert open_descriptors() == before


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancelled_run_leaves_nothing(turns: int) -> None:
    async with a_rig() as rig:
        reaper = rig.reaper
        before = open_descriptors()
        running = asyncio.create_task(rig.lane.run(spec("import time; time.sleep(1000)"), Collection(input=b"x"), 0))
        for _ in range(turns):
            await asyncio.sleep(0 if turns < 4 else 0.002)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await running).end_tree(Grace(0.0))
        await until(lambda: len(descendants_of(reaper)) == 2)
        await until(lambda: rig.host.spawner.counts()["kept"] == 1)
        assert (await rig.collect("print(1)")).stdout.head == b"1\n"
        assert open_descriptors() == before


async def test_500_forks_leave_descriptors_and_processes_balanced() -> None:
    async with a_rig() as rig:
        reaper = rig.reaper
        template = rig.template_pid
        assert (await rig.run("pass"))[0].exit_code == 0
        ours, theirs = open_descriptors(), os.listdir(f"/proc/{template}/fd")
        gate = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with gate:
                status, out, _ = await rig.run(
                    f"print({number}); raise SystemExit({number % 200})", stdin=number % 2 > 0
                )
            assert (status.exit_code, out) == (number % 200, f"{number}\n".encode())

        await asyncio.gather(*(one(number) for number in range(500)))
        await until(lambda: rig.host.spawner.counts()["kept"] == 1)
        assert (open_descriptors(), os.listdir(f"/proc/{template}/fd")) == (ours, theirs)
        assert descendants_of(reaper) == [pump_of(reaper), template]
        assert rig.health()["forks"] == 501


async def test_many_live_workers_and_their_end_at_once() -> None:
    async with a_rig() as rig:
        workers = await asyncio.gather(*(rig.start("import signal; signal.pause()") for _ in range(60)))
        assert rig.host.spawner.counts()["kept"] == 61
        await asyncio.gather(*(worker.end() for worker in workers))
        assert all(worker.is_gone for worker in workers)
        assert {(await worker.exited()).signal for worker in workers} == {9}
        for worker in workers:
            worker.close()


async def test_no_descriptors_left_is_overloaded_and_hurts_nobody_else() -> None:
    async with a_rig() as rig:
        before = open_descriptors()
        for room in range(1, 8, 2):
            with descriptors_left(room), contextlib.suppress(ExecFailed):
                process = await rig.lane.start(spec("pass"), 0)
                await process.end_tree(Grace(0.0))
        await until(lambda: rig.host.spawner.counts()["kept"] == 1)
        assert open_descriptors() == before
        assert (await rig.run("print(1)"))[1] == b"1\n"


async def test_a_template_for_which_no_descriptors_are_left_leaves_nothing() -> None:
    async with a_rig() as rig:
        before = open_descriptors()
        instance = TemplateInstance("template 'x'", rig.host.spawner, None)
        with descriptors_left(3), pytest.raises(ExecFailed) as refused:
            instance.begin(PYTHON, {}, None)
        assert refused.value.reason == "overloaded"
        assert repr(instance) == "<TemplateInstance template 'x' closed>"
        assert open_descriptors() == before
