"""What a spawner says of a process becomes its status; what is asked of it becomes orders."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed
from fastclaw.lane import ExitStatus, Grace, StartSpec
from fastclaw.protocol import spawner as frames
from fastclaw.spawn.process import SpawnProcess
from fastclaw.spawn.stdio import Stdio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

USAGE = {"user_us": 1, "system_us": 2, "max_rss_kb": 3}


class Recorder:
    """In a spawner's place: remembers what it is told to do."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, int, int]] = []

    def end(self, id: int, level: int) -> None:
        self.orders.append(("end", id, level))

    def signal(self, id: int, signum: int) -> None:
        self.orders.append(("signal", id, signum))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def process(recorder: Recorder) -> AsyncIterator[SpawnProcess]:
    stdio = Stdio(stdin=True)
    spec = StartSpec(process_id="p", cmd=["x"], working_dir="/d")
    loop = asyncio.get_running_loop()
    yield SpawnProcess(recorder, 7, spec, stdio, loop)  # type: ignore[arg-type]  # it has what is used
    stdio.close_ours()
    for fd in stdio.theirs:
        os.close(fd)


@pytest.mark.parametrize(
    ("wait_status", "status"),
    [
        (0, ExitStatus(reason="exited", exit_code=0, usage=USAGE)),
        (255 << 8, ExitStatus(reason="exited", exit_code=255, usage=USAGE)),
        (9, ExitStatus(reason="signaled", signal=9, usage=USAGE)),
        (11 | 0x80, ExitStatus(reason="signaled", signal=11, usage=USAGE)),
        (64, ExitStatus(reason="signaled", signal=64, usage=USAGE)),
    ],
)
async def test_a_wait_status_is_a_code_or_a_signal(process: SpawnProcess, wait_status: int, status: ExitStatus) -> None:
    process.on_started(None)
    process.on_exited(wait_status, 1, 2, 3)
    assert await process.exited == status
    assert not process.is_gone
    process.on_gone()
    assert process.is_gone


async def test_a_refusal_is_the_start_s(process: SpawnProcess) -> None:
    process.on_refused(frames.STEP_DIRECTORY, errno.ENOENT)
    with pytest.raises(ExecFailed, match="/d") as raised:
        await process.started
    assert raised.value.reason == "bad_working_dir"
    assert process.is_gone


async def test_signals_go_out_until_it_has_ended(process: SpawnProcess, recorder: Recorder) -> None:
    process.on_started(None)
    process.signal(10)
    process.on_exited(0, 1, 2, 3)
    process.signal(12)
    assert recorder.orders == [("signal", 7, 10)]


@pytest.mark.parametrize("signum", [-1, 0, 65, 4711])
async def test_what_is_no_signal_is_not_sent(process: SpawnProcess, recorder: Recorder, signum: int) -> None:
    process.on_started(None)
    with pytest.raises(ExecFailed):
        process.signal(signum)
    assert recorder.orders == []


async def test_a_tree_that_is_gone_costs_no_order(process: SpawnProcess, recorder: Recorder) -> None:
    process.on_started(None)
    process.on_exited(0, 1, 2, 3)
    process.on_gone()
    await process.end_tree(Grace(0.0))
    assert recorder.orders == []


async def test_ended_before_its_start_is_known_it_is_killed_when_it_is(
    process: SpawnProcess, recorder: Recorder
) -> None:
    ending = asyncio.create_task(process.end_tree(Grace(0.0)))
    await asyncio.sleep(0)
    assert process.started.cancelled()
    process.on_started(None)
    process.on_exited(9, 1, 2, 3)
    process.on_gone()
    await ending
    assert recorder.orders == [("end", 7, frames.LEVEL_KILL)] * 2


async def test_lost_with_its_environment(process: SpawnProcess) -> None:
    process.on_lost("why")
    with pytest.raises(ExecFailed) as raised:
        await process.started
    assert (raised.value.reason, raised.value.retryable) == ("container_gone", True)
    assert (await process.exited).reason == "container_gone"
    assert process.is_gone


async def test_lost_after_its_end_changes_nothing(process: SpawnProcess) -> None:
    process.on_started(None)
    process.on_exited(3 << 8, 1, 2, 3)
    process.on_lost("why")
    assert (await process.exited).exit_code == 3
