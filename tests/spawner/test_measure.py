"""What processes take, as this host's spawner says of real ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastclaw import telemetry_limits
from fastclaw.spawner import frames
from tests.spawner.rig import PATIENCE_S, a_host, a_lane, start
from tests.spawner.test_templates import a_rig, line
from tests.waiting import until

if TYPE_CHECKING:
    import pytest

TREE = "sleep 1000 & (sleep 1000 &); head -c 70000 /dev/zero; head -c 30 >&2; while :; do :; done"


async def test_what_a_tree_takes_is_told_with_its_orphans_and_what_went_through_its_streams() -> None:
    async with a_lane() as lane:
        busy, idle = await start(lane, "sh", "-c", TREE), await start(lane, "sleep", "1000")
        await busy.stdio.send(b"x" * 30)
        assert len(await busy.stderr.read_until(b"x" * 30)) == 30
        said = 0
        while said < 70_000:
            said += len(await busy.stdio.read())
        async with asyncio.timeout(PATIENCE_S):
            while (used := await lane.usage([busy.process, idle.process]))[0] is None or used[0].cpu_us < 200_000:
                pass
        first, second = used
        assert first is not None
        assert second is not None
        assert (first.processes, first.in_bytes, first.out_bytes) == (3, 30, 70_030)
        assert first.memory_bytes > second.memory_bytes > 100_000
        assert (second.processes, second.in_bytes, second.out_bytes) == (1, 0, 0)
        assert second.cpu_us < 100_000
        await busy.end_and_close()
        await until(lambda: busy.process.is_free)
        assert await lane.usage([busy.process, idle.process]) == [None, second]
        await idle.end_and_close()


async def test_more_are_measured_than_fit_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_limits, "USAGE_ROWS", 3)
    async with a_lane() as lane:
        processes = [await start(lane, "sleep", "1000") for _ in range(7)]
        used = await lane.usage([process.process for process in processes])
        assert [one is not None and one.processes for one in used] == [1] * 7
        for process in processes:
            await process.end_and_close()


async def test_a_tree_of_more_than_is_looked_at_is_told_in_part_and_takes_nothing_from_the_others() -> None:
    """4 096 processes are looked at in one question (MAX_LOOKED_AT in spawner.h), whoever has them."""
    async with a_host() as (host, lane):
        large = await start(lane, "sh", "-c", "i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); done; echo; wait")
        await large.line()
        other = await start(lane, "sleep", "1000")
        tail = b"".join(frames.ASKED_USAGE.pack(*one.process.whereabouts) for one in (*[large] * 20, other))
        used = frames.used(await host.spawner.written(frames.MEASURE, 21, tail, telemetry_limits.USAGE_BYTES))
        counts = [one and one.processes for one in used]
        assert counts[:13] == [301] * 13
        assert 0 < (counts[13] or 0) < 301
        assert counts[14:] == [None] * 7
        assert (await lane.usage([other.process]))[0] is not None
        for process in (large, other):
            await process.end_and_close()


async def test_a_spawner_that_does_not_answer_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question may cost it a pump."""
    monkeypatch.setattr(telemetry_limits, "USAGE_MS", 20)
    async with a_host() as (host, lane):
        process = await start(lane, "sleep", "1000")
        answered = host.spawner.written
        asked = 0

        async def never(*_: object) -> bytes:
            nonlocal asked
            asked += 1
            await asyncio.Event().wait()
            raise AssertionError

        for written, times in ((never, 2), (answered, 1), (never, 5)):
            monkeypatch.setattr(host.spawner, "written", written)
            for _ in range(times):
                used = await lane.usage([process.process])
                assert (used == [None]) is (written is never)
        assert asked == 2 + telemetry_limits.USAGE_TRIES
        await process.end_and_close()


async def test_of_a_spawner_that_has_ended_nothing_is_known() -> None:
    async with a_host() as (host, lane):
        process = await start(lane, "sleep", "1000")
        host.spawner.close()
        assert await lane.usage([process.process]) == [None]
        process.close()


async def test_what_a_worker_takes_is_its_own_and_not_its_template_s_or_its_sibling_s() -> None:
    async with a_rig() as rig:
        busy = await rig.start(
            "import subprocess as s; c = s.Popen(['sleep', '9']); print('up', flush=True); s.os.read(0, 1)"
        )
        idle = await rig.start("print('up', flush=True); import os; os.read(0, 1)")
        for process in (busy, idle):
            assert await line(process) == b"up\n"

        async def has_settled() -> bool:
            """Bytes are counted when they have gone out."""
            used = await rig.lane.usage([busy.process, idle.process])
            return [(one.processes, one.out_bytes) for one in used if one is not None] == [(2, 3), (1, 3)]

        await until(has_settled)
        for process in (busy, idle):
            await process.end_and_close()
