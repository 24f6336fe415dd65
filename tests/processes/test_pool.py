"""exec, kill, wait and the end of all, over a lane that does what the test says."""

import asyncio
import os
import signal
from typing import Any

import pytest

from fastclaw.errors import ExecFailed, InvalidParams, InvalidState
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, ExitStatus, Grace
from fastclaw.processes.pool import ProcessPool
from fastclaw.runtime import ExecRequest, RunRequest
from tests.processes.lanes import ScriptedLane, ScriptedProcess, a_pool
from tests.waiting import turns, until


def request(*cmd: str, **fields: Any) -> ExecRequest:
    return ExecRequest(cmd=[*cmd] or ["x"], **fields)


async def test_what_the_lane_is_asked_for(lane: ScriptedLane, pool: ProcessPool) -> None:
    result = await pool.exec(request("a", "b", env={"BOTH": "request"}, stdin=False))
    spec = lane.processes[0].spec
    assert (spec.cmd, spec.working_dir, spec.stdin) == (["a", "b"], "/base", False)
    assert spec.variables == {"BASE": "1", "BOTH": "request", PROCESS_ID_VARIABLE: result.process_id}
    await pool.exec(request(working_dir="/own"))
    assert lane.processes[1].spec.working_dir == "/own"


async def test_a_terminal_and_its_size(lane: ScriptedLane, pool: ProcessPool) -> None:
    lane.capabilities = ["tty"]
    await pool.exec(request(tty_size=(50, 132)))
    result = await pool.exec(request(tty=True, tty_size=(50, 132)))
    assert [process.spec.tty for process in lane.processes] == [None, (50, 132)]
    pool.resize(result.process_id, 7, 9)
    assert lane.processes[1].sizes == [(7, 9)]
    lane.processes[1].end()
    await pool.wait(result.process_id, None)
    pool.resize(result.process_id, 1, 1)
    assert lane.processes[1].sizes == [(7, 9)]


async def test_what_cannot_be_resized(pool: ProcessPool) -> None:
    result = await pool.exec(request())
    with pytest.raises(InvalidParams) as raised:
        pool.resize(result.process_id, 7, 9)
    assert (raised.value.reason, raised.value.data["path"]) == ("no_tty", "$.process_id")
    with pytest.raises(InvalidState):
        pool.resize("unknown", 7, 9)


@pytest.mark.parametrize("fields", [{"tty": True}, {"user": "root"}, {"limits": {"nofile": 10}}])
async def test_what_the_lane_does_not_offer_is_refused(
    lane: ScriptedLane, pool: ProcessPool, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidParams) as raised:
        await pool.exec(request(**fields))
    assert raised.value.reason == "unsupported"
    lane.capabilities = list(fields)
    await pool.exec(request(**fields))


async def test_starts_in_flight_are_bounded_and_the_queue_too(lane: ScriptedLane) -> None:
    lane.gate.clear()
    async with a_pool(lane, max_starting=3, queue_limit=2) as pool:
        calls = [asyncio.create_task(pool.exec(request())) for _ in range(5)]
        await turns()
        with pytest.raises(ExecFailed) as raised:
            await pool.exec(request())
        assert raised.value.reason == "overloaded"
        assert pool.health()["waiting"] == 2
        lane.gate.set()
        assert len({result.process_id for result in await asyncio.gather(*calls)}) == 5
        assert lane.most_starting == 3


async def test_a_full_pool_starts_the_next_when_one_ends(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_live=1) as pool:
        await pool.exec(request())
        waiting = asyncio.create_task(pool.exec(request()))
        await turns()
        assert not waiting.done()
        lane.processes[0].end()
        await waiting


@pytest.mark.parametrize("linger_ms", [0, 60_000])
async def test_the_lane_gets_its_process_back_once_with_its_sockets(lane: ScriptedLane, linger_ms: int) -> None:
    async with a_pool(lane, linger_ms=linger_ms) as pool:
        await pool.exec(request())
        lane.processes[0].end()
        await turns()
        await until(lambda: pool.table._soon is None)
        await turns()
        assert lane.processes[0].closed == (0 if linger_ms else 1)
    assert lane.processes[0].closed == 1


@pytest.mark.parametrize("reason", ["unknown", "container_gone"])
async def test_an_end_that_is_not_known_is_not_made_up(lane: ScriptedLane, pool: ProcessPool, reason: Any) -> None:
    result = await pool.exec(request())
    lane.processes[0].exited.set_result(ExitStatus(reason=reason))
    record = await pool.wait(result.process_id, None)
    assert (record.exit_code, record.signal, record.reason) == (None, None, reason)


async def test_kill_is_killed_whatever_the_exit_was_and_again_is_fine(lane: ScriptedLane) -> None:
    async with a_pool(lane, kill_grace_ms=1234) as pool:
        result = await pool.exec(request())
        began = asyncio.get_running_loop().time()
        await pool.kill(result.process_id, None)
        record = await pool.wait(result.process_id, None)
        assert (record.reason, record.exit_code) == ("killed", 9)
        assert lane.processes[0].graces[0].ends_at == pytest.approx(began + 1.234, abs=0.5)
        await pool.kill(result.process_id, 0)
        assert (await pool.wait(result.process_id, None)).reason == "killed"


async def test_killing_what_ended_by_itself_does_not_change_its_record(lane: ScriptedLane, pool: ProcessPool) -> None:
    result = await pool.exec(request())
    lane.processes[0].end(exit_code=5)
    record = await pool.wait(result.process_id, None)
    await pool.kill(result.process_id, 0)
    assert len(lane.processes[0].graces) == 1  # for the orphans that it left
    assert await pool.wait(result.process_id, None) == record


async def test_one_that_ends_itself_at_its_time_limit_keeps_its_exit_code(
    lane: ScriptedLane, pool: ProcessPool
) -> None:
    """mastra-ai/mastra#24406: who sees 0 must not take it for a success. TERM came, and it tidied up."""
    result = await pool.exec(request(timeout_ms=10))
    lane.processes[0].may_end.clear()
    await until(lambda: lane.processes[0].graces)
    lane.processes[0].end(exit_code=0)
    record = await pool.wait(result.process_id, None)
    assert (record.exit_code, record.reason) == (0, "timeout")
    lane.processes[0].may_end.set()


async def test_signals_go_to_live_processes_only(lane: ScriptedLane, pool: ProcessPool) -> None:
    result = await pool.exec(request())
    pool.signal(result.process_id, signal.SIGUSR1)
    lane.processes[0].end()
    await pool.wait(result.process_id, None)
    pool.signal(result.process_id, signal.SIGUSR2)
    assert lane.processes[0].signals == [signal.SIGUSR1]


async def test_the_end_of_all(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_starting=4) as pool:
        live = [await pool.exec(request()) for _ in range(3)]
        lane.gate.clear()
        keyed = [asyncio.create_task(pool.exec(request(key=str(number)))) for number in range(10)]
        plain = asyncio.create_task(pool.exec(request()))
        waits = [asyncio.create_task(pool.wait(result.process_id, None)) for result in live]
        await turns()
        plain.cancel()  # as the dispatcher does first
        await pool.end_all()
        assert [(await wait).reason for wait in waits] == ["killed"] * 3
        await asyncio.wait([plain])
        refused = await asyncio.gather(*keyed, return_exceptions=True)
        assert [str(error) for error in refused] == ["invalid state: the runtime is shutting down"] * 10
        assert len(lane.processes) == 3
        with pytest.raises(InvalidState):
            await pool.exec(request())


@pytest.mark.parametrize("call", ["exec", "run"])
@pytest.mark.parametrize("says_later", [False, True])
async def test_a_start_that_comes_through_after_the_end_of_all_is_taken_back(
    lane: ScriptedLane, call: str, says_later: bool
) -> None:
    """A full spawner has room again as soon as processes are ended."""
    lane.says_later = says_later
    async with a_pool(lane) as pool:
        asked = request() if call == "exec" else RunRequest(cmd=["true"])
        if not says_later:
            lane.gate.clear()
        start = asyncio.create_task(getattr(pool, call)(asked))
        await turns()
        await pool.end_all(InvalidState("it was stopped", "environment_stopped"))
        await pool.aclose()
        lane.gate.set()
        if says_later:
            lane.processes[0].started.set_result(None)  # type: ignore[union-attr]
        with pytest.raises(InvalidState, match="it was stopped"):
            await start
        assert len(lane.processes[0].graces) == 1
        assert os.listdir(pool._sockets.path) == []
        assert pool.table.live() == []


class Lasting(ScriptedProcess):
    """One whose end takes until the lane goes."""

    async def end_tree(self, grace: Grace) -> None:
        self.graces.append(grace)
        await asyncio.Event().wait()


async def test_a_start_whose_taking_back_is_cut_off_by_the_end_of_the_pool_is_told_why(lane: ScriptedLane) -> None:
    """It was told of a cancellation that nobody had asked for."""
    lane.make = Lasting
    lane.gate.clear()
    async with a_pool(lane) as pool:
        start = asyncio.create_task(pool.exec(request()))
        await turns()
        await pool.end_all(InvalidState("it was stopped", "environment_stopped"))
        lane.gate.set()
        await turns()
        assert not start.done()
        assert len(lane.processes[0].graces) == 1
        await pool.aclose()
        with pytest.raises(InvalidState, match="it was stopped"):
            await start


async def test_hasten_ends_every_grace(lane: ScriptedLane, pool: ProcessPool) -> None:
    with pool._grace(60_000) as grace:
        pool.hasten()
        assert grace.ends_at == 0.0
    assert pool._graces == []


async def test_what_was_not_seen_to_end_is_unknown_when_the_environment_goes(
    lane: ScriptedLane, pool: ProcessPool
) -> None:
    result = await pool.exec(request())
    waiting = asyncio.create_task(pool.wait(result.process_id, None))
    await turns()
    await pool.aclose()
    assert (await waiting).reason == "unknown"
    assert not os.path.exists(result.stdio_addr)  # noqa: ASYNC240 - one stat
    pool._poller = type(pool._poller)()  # for the second aclose of the fixture


async def test_the_list_goes_on_after_what_is_forgotten_by_now(lane: ScriptedLane) -> None:
    async with a_pool(lane, keep_exited=0) as pool:
        ids = [(await pool.exec(request(str(number)))).process_id for number in range(12)]
        assert [one.process_id for one in await pool.listed(None)] == ids
        assert [one.process_id for one in await pool.listed(ids[9])] == ids[10:]
        lane.processes[9].end()
        await until(lambda: len(list(pool.table)) == 11)
        assert [one.process_id for one in await pool.listed(ids[9])] == ids[10:]
        assert await pool.listed(ids[-1]) == []


@pytest.mark.parametrize("after", ["", "1", "x-1", "-", "{prefix}-", "{prefix}-x", "{prefix}-1000", "{prefix}-\u0661"])
async def test_the_list_goes_on_after_nothing_unknown(pool: ProcessPool, after: str) -> None:
    prefix = (await pool.exec(request())).process_id.partition("-")[0]
    with pytest.raises(InvalidParams) as raised:
        await pool.listed(after.format(prefix=prefix))
    assert raised.value.data["path"] == "$.after"
