"""What the spawner does in gVisor, on this host's own kernel: output in frames, and a command that is a grandchild.

The kernel that these are for is tests/engine/test_gvisor.py's.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.processes.lane import Collection, Grace
from fastclaw.spawner import frames
from tests.pids import children_of
from tests.spawner.fake_spawner import busy_reapers_of
from tests.spawner.rig import a_host, a_lane, settled, spec
from tests.spawner.test_runs import INLINE, MIB, begin, check_kept, collected, pattern, program, run, whole
from tests.waiting import until

if TYPE_CHECKING:
    from fastclaw.runtime import Keep

FRAME = 2 * INLINE


@pytest.fixture(autouse=True)
def in_gvisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each spawner is told that this is gVisor."""
    usual = frames.welcome
    monkeypatch.setattr(frames, "welcome", lambda **words: usual(**{**words, "is_gvisor": True}))


@pytest.mark.parametrize("size", [0, 1, INLINE, INLINE + 1, FRAME - 1, FRAME, FRAME + 1, MIB, 16 * MIB])
async def test_output_of_every_size_is_whole(size: int) -> None:
    code = f"write(1, pattern({size}, 1)); write(2, pattern({size // 2}, 2))"
    async with a_host() as (host, lane):
        found = await run(lane, *program(code), output_limit=16 * MIB)
        assert (whole(found.stdout), whole(found.stderr)) == (pattern(size, 1), pattern(size // 2, 2))
        assert not found.incomplete
        await settled(host)


@pytest.mark.parametrize("keep", ["head", "tail", "ends"])
@pytest.mark.parametrize("limit", [0, 100, INLINE + 1, 100_000])
async def test_what_is_over_the_limit_is_counted_and_the_right_part_is_kept(limit: int, keep: Keep) -> None:
    async with a_lane() as lane:
        for size in (limit, limit + 1, 300_001):
            found = await run(lane, *program(f"write(1, pattern({size}, 1))"), output_limit=limit, keep=keep)
            check_kept(found.stdout, pattern(size, 1), limit, keep)


async def test_what_was_written_before_an_orphan_that_holds_the_streams_is_whole() -> None:
    async with a_host() as (host, lane):
        script = "head -c 100000 /dev/zero; sleep 1000 & exit 3"
        process = await begin(lane, "sh", "-c", script)
        found = await collected(process)
        assert (found.status.exit_code, found.stdout.total, len(whole(found.stdout))) == (3, 100_000, 100_000)
        await process.end_tree(Grace(0))
        await settled(host)


async def test_what_all_runs_together_may_have_is_kept_to() -> None:
    async with a_host(collect_bytes=MIB) as (_, lane):
        found = await run(lane, "head", "-c", str(3 * MIB), "/dev/zero", output_limit=4 * MIB)
        assert found.overloaded


async def test_a_command_is_its_reapers_child_and_nothing_is_between_them() -> None:
    async with a_host() as (host, lane):
        process = await lane.start(spec("sleep", "1000"), 0)
        await until(lambda: busy_reapers_of(host.pid))
        (reaper,) = busy_reapers_of(host.pid)
        assert len(children_of(reaper)) == 2  # and the pump
        process.signal(signal.SIGTERM)
        assert (await process.exited).signal == signal.SIGTERM
        await settled(host)


async def test_a_command_that_cannot_be_started_is_refused_and_its_reaper_goes_on() -> None:
    async with a_host() as (host, lane):
        for _ in range(2 * limits.SPAWN_SPARE_REAPERS):
            process = await lane.run(spec("/no/such/program"), Collection(), 0)
            with pytest.raises(Exception, match="No such file"):
                await collected(process)
        await settled(host)
