"""Every bound on what has ended: sockets that linger, records that are kept."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.decisions.lifecycle import ProcessState
from fastclaw.errors import InvalidState
from fastclaw.runtime import ExecRequest
from tests.runtimes.lanes import ScriptedLane, a_pool, turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.runtimes.pool import ProcessPool
    from fastclaw.runtimes.process import Process


async def ended(pool: ProcessPool, lane: ScriptedLane, output: bytes = b"") -> Process:
    """A process that has exited, its output unread."""
    result = await pool.exec(ExecRequest(cmd=["x"]))
    lane.processes[-1].end(output=output)
    process = pool.table.find(result.process_id)
    await asyncio.shield(process.exited)
    await until(lambda: pool.table._soon is None)  # it counts a moment after the exit
    await turns()
    return process


def is_listening(process: Process) -> bool:
    return os.path.exists(process.result.stdio_addr)


def is_known(pool: ProcessPool, process: Process) -> bool:
    with suppress(InvalidState):
        return pool.table.find(process.id) is process
    return False


async def until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the table's timer tells nobody else
            await asyncio.sleep(0.001)


async def read_to_end(path: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    data = await reader.read()
    writer.close()
    with suppress(BrokenPipeError, ConnectionResetError):
        await writer.wait_closed()
    return data


async def test_an_ended_process_lingers_until_both_streams_were_read() -> None:
    lane = ScriptedLane()
    async with a_pool(lane) as pool:
        process = await ended(pool, lane, b"output")
        assert process.state is ProcessState.LINGERING
        assert await read_to_end(process.result.stdio_addr) == b"output"
        await turns()
        assert is_listening(process)
        assert await read_to_end(process.result.stderr_addr) == b""
        await until(lambda: process.state is ProcessState.CLOSED)
        assert not is_listening(process)
        assert is_known(pool, process)


async def test_a_running_process_whose_streams_were_read_closes_at_its_exit() -> None:
    lane = ScriptedLane()
    async with a_pool(lane) as pool:
        result = await pool.exec(ExecRequest(cmd=["x"]))
        process = pool.table.find(result.process_id)
        lane.processes[-1].close_streams()
        assert await read_to_end(result.stdio_addr) == b""
        assert await read_to_end(result.stderr_addr) == b""
        assert is_listening(process)
        lane.processes[-1].end()
        await until(lambda: process.state is ProcessState.CLOSED)


async def test_lingering_ends_after_its_time() -> None:
    lane = ScriptedLane()
    async with a_pool(lane, linger_ms=30) as pool:
        process = await ended(pool, lane, b"unread")
        assert is_listening(process)
        await until(lambda: process.state is ProcessState.CLOSED)
        assert not is_listening(process)
        assert is_known(pool, process)


async def test_lingering_ends_in_time_though_an_older_record_is_kept_for_longer() -> None:
    """The one timer stands at the older record's end; the younger's sockets fall due before that."""
    lane = ScriptedLane()
    async with a_pool(lane, linger_ms=30, keep_exited_ms=600_000) as pool:
        older = await ended(pool, lane)
        await read_to_end(older.result.stdio_addr)
        await read_to_end(older.result.stderr_addr)
        await until(lambda: older.state is ProcessState.CLOSED)
        younger = await ended(pool, lane)
        await until(lambda: younger.state is ProcessState.CLOSED, timeout_s=2)


async def test_no_time_to_linger() -> None:
    lane = ScriptedLane()
    async with a_pool(lane, linger_ms=0) as pool:
        assert (await ended(pool, lane, b"unread")).state is ProcessState.CLOSED


async def test_over_max_lingering_the_empty_go_first_then_the_oldest() -> None:
    lane = ScriptedLane()
    async with a_pool(lane, max_lingering=2) as pool:
        first = await ended(pool, lane, b"output")
        empty = await ended(pool, lane)
        third = await ended(pool, lane, b"output")
        assert [is_listening(process) for process in (first, empty, third)] == [True, False, True]
        fourth = await ended(pool, lane, b"output")
        assert [is_listening(process) for process in (first, third, fourth)] == [False, True, True]
        assert pool.table.counts() == {"live": 0, "lingering": 2, "kept": 4}


async def test_no_room_to_linger() -> None:
    lane = ScriptedLane()
    async with a_pool(lane, max_lingering=0) as pool:
        assert not is_listening(await ended(pool, lane, b"output"))


async def test_records_are_kept_up_to_their_number() -> None:
    lane = ScriptedLane()
    async with a_pool(lane, keep_exited=2) as pool:
        processes = [await ended(pool, lane, b"x") for _ in range(4)]
        assert [is_known(pool, process) for process in processes] == [False, False, True, True]
        assert [is_listening(process) for process in processes] == [False, False, True, True]
        with pytest.raises(InvalidState) as raised:
            pool.table.find(processes[0].id)
        assert raised.value.reason == "unknown_process"


async def test_records_are_kept_for_their_time() -> None:
    lane = ScriptedLane()
    async with a_pool(lane, keep_exited_ms=30) as pool:
        process = await ended(pool, lane, b"x")
        assert is_known(pool, process)
        await until(lambda: not is_known(pool, process))
        assert not is_listening(process)
        assert pool.table.counts() == {"live": 0, "lingering": 0, "kept": 0}


async def test_a_live_process_is_never_forgotten() -> None:
    lane = ScriptedLane()
    async with a_pool(lane, keep_exited=0, keep_exited_ms=0, linger_ms=0, max_lingering=0) as pool:
        result = await pool.exec(ExecRequest(cmd=["x"]))
        for _ in range(3):
            await ended(pool, lane)
        assert pool.table.find(result.process_id).is_running
        assert pool.table.counts() == {"live": 1, "lingering": 0, "kept": 0}


@pytest.mark.parametrize("options", [{}, {"keep_exited": 0}, {"keep_exited_ms": 30}])
async def test_a_key_is_free_once_its_record_is_gone(options: dict[str, Any]) -> None:
    lane = ScriptedLane()
    async with a_pool(lane, **options) as pool:
        first = await pool.exec(ExecRequest(cmd=["x"], key="k"))
        assert await pool.exec(ExecRequest(cmd=["x"], key="k")) == first
        lane.processes[-1].end()
        await turns()
        if not options:
            assert await pool.exec(ExecRequest(cmd=["x"], key="k")) == first
            return
        await until(lambda: pool.table.with_key("k") is None)
        assert await pool.exec(ExecRequest(cmd=["x"], key="k")) != first
