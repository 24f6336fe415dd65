"""`run`: over a lane that does what the test says, and over the in-process runtime with its real pipes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import UNSET

from fastclaw.errors import ExecFailed, InvalidParams
from fastclaw.processes.lane import ExitStatus, StartSpec
from fastclaw.runtime import ExecRequest, InitializeParams, RunRequest, RunResult
from fastclaw.runtimes.host import EnvironmentHost
from tests.processes.lanes import ScriptedLane, ScriptedProcess, a_pool
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fastclaw.processes.pool import ProcessPool


def request(*cmd: str, **fields: Any) -> RunRequest:
    return RunRequest(cmd=[*cmd] or ["x"], **fields)


async def started(lane: ScriptedLane, number: int = 1) -> None:
    await turns()
    assert len(lane.processes) == number


async def begun(lane: ScriptedLane, run: Coroutine[Any, Any, RunResult]) -> asyncio.Task[RunResult]:
    """A run whose command the lane has started."""
    running = asyncio.create_task(run)
    await started(lane)
    return running


# --- over a scripted lane ---


async def test_what_the_lane_is_asked_for(lane: ScriptedLane) -> None:
    lane.capabilities = ["user"]
    async with a_pool(lane, user="nobody") as pool:
        fields = {"output_limit": 5, "keep": "tail", "on_limit": "kill", "drain_ms": 7}
        running = asyncio.ensure_future(
            pool.run(request("a", input="in", merge_stderr=True, orphans="kill", working_dir="./sub/../x", **fields))
        )
        await started(lane)
        spec, collection = lane.processes[0].spec, lane.processes[0].collection
        assert (spec.cmd, spec.stdin, spec.merge_stderr, spec.orphans) == (["a"], True, True, "kill")
        assert (spec.working_dir, spec.user) == ("/base/sub/../x", "nobody")
        assert collection is not None
        assert {name: getattr(collection, name) for name in fields} == fields
        assert collection.input == b"in"
        lane.processes[0].give()
        await running


@pytest.mark.parametrize("more", [{}, {"input": ""}, {"input_base64": ""}])
async def test_no_input_is_an_empty_stdin(lane: ScriptedLane, pool: ProcessPool, more: dict[str, str]) -> None:
    running = await begun(lane, pool.run(request(**more)))
    assert lane.processes[0].spec.stdin is False
    lane.processes[0].give()
    await running


async def test_while_it_runs_it_is_a_process_like_any_other(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = await begun(lane, pool.run(request("a", "b")))
    (info,) = [process.info() for process in pool.table]
    assert (info.state, info.cmd, pool.health()["live"]) == ("running", ["a", "b"], 1)
    waiting = asyncio.ensure_future(pool.wait(info.process_id, None))
    pool.signal(info.process_id, 10)
    await turns()
    lane.processes[0].give(b"said", 4)
    result, record = await running, await waiting
    assert lane.processes[0].signals == [10]
    assert (result.process_id, result.exit_code, result.stdout, result.stderr) == (info.process_id, 4, "said", "")
    assert (record.exit_code, record.timings) == (4, result.timings)
    assert list(result.timings) == ["admitted", "started", "exited"]
    assert await pool.wait(info.process_id, 0) == record
    assert pool.health()["live"] == 0
    assert lane.processes[0].closed == 1
    with pytest.raises(InvalidParams):
        pool.resize(info.process_id, 1, 1)


async def test_a_start_that_is_told_later(lane: ScriptedLane) -> None:
    lane.says_later = True
    async with a_pool(lane, max_starting=1) as pool:
        running = await begun(lane, pool.run(request()))
        assert (pool.health()["starting"], list(pool.table)) == (1, [])
        lane.processes[0].started.set_result(None)  # type: ignore[union-attr]
        await turns()
        assert (pool.health()["starting"], len(list(pool.table))) == (0, 1)
        lane.processes[0].give()
        await running


async def test_all_at_once(lane: ScriptedLane, pool: ProcessPool) -> None:
    """STARTED, the exit and the output, as they come in one batch."""
    lane.says_later = True
    running = await begun(lane, pool.run(request()))
    lane.processes[0].started.set_result(None)  # type: ignore[union-attr]
    lane.processes[0].give(b"x", 1)
    assert (await running).exit_code == 1
    assert pool.health()["live"] == 0


async def test_output_before_the_news_of_the_exit(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = await begun(lane, pool.run(request()))
    process = lane.processes[0]
    exited, process.exited = process.exited, asyncio.get_running_loop().create_future()
    process.give(b"x", 2)
    assert (await running).exit_code == 2
    exited.set_result(ExitStatus(reason="exited", exit_code=3))
    await turns()


async def test_a_kill_ends_it_and_its_answer_says_so(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = await begun(lane, pool.run(request()))
    await pool.kill(next(iter(pool.table)).id, 0)
    assert (await running).reason == "killed"


class HeldProcess(ScriptedProcess):
    """One whose tree does not end before the test says so."""

    def __init__(self, spec: StartSpec) -> None:
        super().__init__(spec)
        self.may_end.clear()


async def test_its_time_ends_the_tree_before_the_answer(lane: ScriptedLane, pool: ProcessPool) -> None:
    lane.make = HeldProcess
    running = await begun(lane, pool.run(request(timeout_ms=10)))
    process = lane.processes[0]
    await until(lambda: process.graces)
    process.give(exit_code=0)  # it obeys, and what it started does not
    await turns()
    assert not running.done()
    process.may_end.set()
    assert (await running).reason == "timeout"


async def test_a_time_that_was_not_used_up_ends_nothing(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = await begun(lane, pool.run(request(timeout_ms=20)))
    lane.processes[0].exited.set_result(ExitStatus(reason="exited", exit_code=0))
    await asyncio.sleep(0.05)  # the time itself is what is tested
    lane.processes[0].give()
    assert (await running).reason == "exited"
    assert lane.processes[0].graces == []


async def test_over_its_limit_it_was_killed_and_nothing_is_left(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = await begun(lane, pool.run(request(on_limit="kill")))
    lane.processes[0].give(b"x", limited=True)
    result = await running
    assert result.reason == "killed"
    assert len(lane.processes[0].graces) == 1
    assert (await pool.wait(result.process_id, 0)).reason == "killed"


async def test_too_much_of_all_runs_is_overloaded_and_frees_its_key(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = await begun(lane, pool.run(request(key="k")))
    lane.processes[0].give(overloaded=True)
    with pytest.raises(ExecFailed) as raised:
        await running
    assert (raised.value.reason, raised.value.retryable) == ("overloaded", True)
    assert len(lane.processes[0].graces) == 1
    again = asyncio.ensure_future(pool.run(request(key="k")))
    await started(lane, 2)
    lane.processes[1].give(b"now")
    assert (await again).stdout == "now"


async def test_the_output_is_not_kept_with_the_record(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = await begun(lane, pool.run(request(input="x" * 1000)))
    collected = lane.processes[0].collected
    lane.processes[0].give(b"said")
    result = await running
    assert collected is not None
    assert collected.result().stdout.head == b""
    assert not hasattr(pool.table.find(result.process_id), "request")


# --- keys ---


async def test_a_key_joins_what_is_in_flight_and_later_gets_the_record(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = [asyncio.ensure_future(pool.run(request("x", key="k"))) for _ in range(3)]
    await started(lane)
    running[0].cancel()
    await turns()
    lane.processes[0].give(b"once", 5)
    results = await asyncio.gather(*running[1:])
    assert [result.stdout for result in results] == ["once", "once"]
    later = await pool.run(request("x", key="k"))
    assert (later.process_id, later.exit_code) == (results[0].process_id, 5)
    assert (later.stdout, later.stderr, later.stdout_base64) == (None, None, UNSET)
    assert later.dropped == {"stdout": 4, "stderr": 0}
    assert len(lane.processes) == 1


async def test_a_key_of_another_request(lane: ScriptedLane, pool: ProcessPool) -> None:
    running = await begun(lane, pool.run(request("x", key="k", env={"A": "1", "B": "2"})))
    others: list[RunRequest | ExecRequest] = [
        request("y", key="k"),
        request("x", key="k", input="x"),
        ExecRequest(cmd=["x"], key="k"),
    ]
    for is_over in (False, True):
        for other in others:
            with pytest.raises(InvalidParams) as raised:
                await (pool.run(other) if isinstance(other, RunRequest) else pool.exec(other))
            assert raised.value.data["path"] == "$.key"
        if not is_over:
            lane.processes[0].give()
            await running
    await pool.run(request("x", key="k", env={"B": "2", "A": "1"}))
    assert len(lane.processes) == 1


async def test_the_last_one_who_leaves_a_key_takes_the_run_back(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_live=1) as pool:
        running = [asyncio.ensure_future(pool.run(request(key="k"))) for _ in range(2)]
        await started(lane)
        process = lane.processes[0]
        process.may_end.clear()
        for one in running:
            one.cancel()
        await turns()
        assert [one.done() for one in running] == [True, False]
        again = asyncio.ensure_future(pool.run(request(key="k")))
        await started(lane)  # nothing runs twice
        process.may_end.set()
        await asyncio.wait(running)
        assert all(one.cancelled() for one in running)
        await started(lane, 2)
        lane.processes[1].give(b"second")
        assert (await again).stdout == "second"


# --- cancellation ---


async def test_a_cancelled_run_is_ended_with_its_grace_and_with_proof(lane: ScriptedLane) -> None:
    async with a_pool(lane, kill_grace_ms=5_000) as pool:
        running = await begun(lane, pool.run(request()))
        process = lane.processes[0]
        process.may_end.clear()
        running.cancel()
        await turns()
        assert not running.done()
        assert process.graces[0].ends_at > asyncio.get_running_loop().time() + 1
        pool.hasten()
        assert process.graces[0].ends_at == 0
        process.may_end.set()
        await asyncio.wait((running,))
        assert running.cancelled()
        (info,) = [known.info() for known in pool.table]
        assert (info.state, info.reason) == ("exited", "killed")


async def test_an_end_in_the_middle_of_a_run() -> None:
    runtime = EnvironmentHost("memory")
    await runtime.start(InitializeParams(namespace="run", options={}))
    running = asyncio.ensure_future(runtime.run(request("sleep", "100")))
    await turns()
    await runtime.stop()
    assert (await running).reason == "killed"
