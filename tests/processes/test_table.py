"""Every bound on what has ended: sockets that linger, records that are kept."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.errors import InvalidState
from fastclaw.lifecycle import ProcessState
from fastclaw.linux.packets import close_all
from fastclaw.processes.lane import ExitStatus, StartSpec, Streams
from fastclaw.runtime import ExecRequest
from fastclaw.spawner import frames
from fastclaw.spawner.pump_streams import SpawnStreams
from tests.processes.lanes import ScriptedLane, ScriptedProcess, a_pool
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.linux.poller import Poller
    from fastclaw.processes.lane import StreamsOwner
    from fastclaw.processes.listeners import ProcessSockets
    from fastclaw.processes.pool import ProcessPool
    from fastclaw.processes.process import Process
    from fastclaw.runtime import OnDisconnect


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


async def read_to_end(path: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    data = await reader.read()
    writer.close()
    with suppress(BrokenPipeError, ConnectionResetError):
        await writer.wait_closed()
    return data


async def test_an_ended_process_lingers_until_both_streams_were_read(lane: ScriptedLane, pool: ProcessPool) -> None:
    process = await ended(pool, lane, b"output")
    assert process.state is ProcessState.LINGERING
    assert await read_to_end(process.result.stdio_addr) == b"output"
    await turns()
    assert is_listening(process)
    assert await read_to_end(process.result.stderr_addr) == b""
    await until(lambda: process.state is ProcessState.CLOSED)
    assert not is_listening(process)
    assert is_known(pool, process)


async def test_a_running_process_whose_streams_were_read_closes_at_its_exit(
    lane: ScriptedLane, pool: ProcessPool
) -> None:
    result = await pool.exec(ExecRequest(cmd=["x"]))
    process = pool.table.find(result.process_id)
    lane.processes[-1].close_theirs()
    assert await read_to_end(result.stdio_addr) == b""
    assert await read_to_end(result.stderr_addr) == b""
    assert is_listening(process)
    lane.processes[-1].end()
    await until(lambda: process.state is ProcessState.CLOSED)


async def test_lingering_ends_in_time_though_an_older_record_is_kept_for_longer(lane: ScriptedLane) -> None:
    """The one timer stands at the older record's end; the younger's sockets fall due before that."""
    async with a_pool(lane, linger_ms=30, keep_exited_ms=600_000) as pool:
        older = await ended(pool, lane)
        await read_to_end(older.result.stdio_addr)
        await read_to_end(older.result.stderr_addr)
        await until(lambda: older.state is ProcessState.CLOSED)
        began = asyncio.get_running_loop().time()
        younger = await ended(pool, lane, b"unread")
        assert is_listening(younger)
        await until(lambda: younger.state is ProcessState.CLOSED)
        assert asyncio.get_running_loop().time() - began < 0.1
        assert not is_listening(younger)
        assert is_known(pool, younger)


@pytest.mark.parametrize("option", ["linger_ms", "max_lingering"])
async def test_no_time_or_no_room_to_linger(lane: ScriptedLane, option: str) -> None:
    async with a_pool(lane, **{option: 0}) as pool:
        assert (await ended(pool, lane, b"unread")).state is ProcessState.CLOSED


async def test_over_max_lingering_the_empty_go_first_then_the_oldest(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_lingering=2) as pool:
        first = await ended(pool, lane, b"output")
        empty = await ended(pool, lane)
        third = await ended(pool, lane, b"output")
        assert [is_listening(process) for process in (first, empty, third)] == [True, False, True]
        fourth = await ended(pool, lane, b"output")
        assert [is_listening(process) for process in (first, third, fourth)] == [False, True, True]
        assert pool.table.counts() == {"live": 0, "lingering": 2, "kept": 4}


# --- clients that are connected when the command has ended ---


@asynccontextmanager
async def connected(process: Process, *, stderr: bool = True) -> AsyncIterator[asyncio.StreamReader]:
    """A client of one or both of its streams, served; its stdout. Nothing is read unless the test does."""
    out, writer = await asyncio.open_unix_connection(process.result.stdio_addr, limit=1)
    writers = [writer]
    if stderr:
        writers.append((await asyncio.open_unix_connection(process.result.stderr_addr, limit=1))[1])
    await until(lambda: process.streams.is_served() and process.streams.is_unread() is not stderr)
    yield out
    for writer in writers:
        writer.close()
    await turns()


async def begun(pool: ProcessPool) -> Process:
    return pool.table.find((await pool.exec(ExecRequest(cmd=["x"]))).process_id)


def leave_running(lane: ScriptedLane) -> ScriptedProcess:
    """The last command ends; something that it left holds its streams."""
    left = lane.processes[-1]
    left.exited.set_result(ExitStatus(reason="exited", exit_code=0))
    return left


async def settled(pool: ProcessPool) -> None:
    await turns()
    await until(lambda: pool.table._soon is None)
    await turns()


async def test_a_client_that_reads_does_not_count(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_lingering=1) as pool:
        process = await begun(pool)
        async with connected(process) as out:
            left = leave_running(lane)
            others = [await ended(pool, lane, b"unread") for _ in range(3)]
            assert [is_listening(other) for other in others] == [False, False, True]
            assert is_listening(process)
            os.write(left.their_stdout, b"goes on")
            assert await out.readexactly(7) == b"goes on"
            left.close_theirs()
            assert await out.read() == b""
            await until(lambda: process.is_closed)
        assert process.record().gap is not True


async def test_one_of_whom_one_stream_is_read_counts_and_loses_the_other_only(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_lingering=0) as pool:
        process = await begun(pool)
        async with connected(process, stderr=False) as out:
            left = leave_running(lane)
            await settled(pool)
            assert not is_listening(process)
            assert pool.table.counts()["lingering"] == 1
            os.write(left.their_stdout, b"goes on")
            assert await out.readexactly(7) == b"goes on"
            with pytest.raises(BrokenPipeError):
                os.write(left.their_stderr, b"x")
            assert not process.is_closed
        await until(lambda: process.is_closed)
        assert pool.table.counts()["lingering"] == 0
        assert process.record().gap is not True


async def test_a_client_that_leaves_makes_it_count_from_then_on(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_lingering=1) as pool:
        first = await begun(pool)
        async with connected(first):
            leave_running(lane)
            await settled(pool)
            second = await ended(pool, lane, b"unread")
            assert [is_listening(process) for process in (first, second)] == [True, True]
        await settled(pool)
        assert [is_listening(process) for process in (first, second)] == [False, True]  # nobody waits for its output


async def test_a_client_that_comes_in_time_saves_it(lane: ScriptedLane) -> None:
    async with a_pool(lane, max_lingering=1) as pool:
        await begun(pool)
        first = next(iter(pool.table))
        leave_running(lane)
        await settled(pool)
        async with connected(first):
            second = await ended(pool, lane, b"unread")
            assert [is_listening(process) for process in (first, second)] == [True, True]


async def test_after_its_time_a_reader_reads_on_and_nobody_else_may_come(
    lane: ScriptedLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_pool(lane, linger_ms=30, keep_exited_ms=60) as pool:
        process = await begun(pool)
        async with connected(process) as out:
            left = leave_running(lane)
            await until(lambda: not is_listening(process))
            await until(lambda: not is_known(pool, process))
            os.write(left.their_stdout, b"goes on")
            assert await out.readexactly(7) == b"goes on"
            assert pool.table.counts() == {"live": 0, "lingering": 1, "kept": 0}
            assert lane.processes[0].closed == 0
        await until(lambda: process.is_closed)
        await turns()
        assert lane.processes[0].closed == 1
        assert pool.table.counts() == {"live": 0, "lingering": 0, "kept": 0}


@pytest.mark.parametrize("linger_ms", [10, 60_000])
async def test_one_that_is_connected_and_reads_nothing_counts_and_is_cut_off_with_a_gap(
    lane: ScriptedLane, linger_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", 40)
    async with a_pool(lane, max_lingering=0, linger_ms=linger_ms) as pool:
        reading, stalled = await begun(pool), await begun(pool)
        async with connected(reading) as out, connected(stalled) as deaf:
            for scripted in lane.processes:
                scripted.exited.set_result(ExitStatus(reason="exited", exit_code=0))
            first, second = lane.processes
            await fill(second.their_stdout)
            while stalled.record().gap is not True:
                os.write(first.their_stdout, b"read")
                assert await out.readexactly(4) == b"read"
                await asyncio.sleep(0.005)
            assert reading.record().gap is not True
            with pytest.raises(BrokenPipeError):
                os.write(second.their_stdout, b"x")
            assert len(await deaf.read(-1)) > 0
            os.write(first.their_stdout, b"still")
            assert await out.readexactly(5) == b"still"
            assert not stalled.is_closed, "its stderr has a client who has missed nothing"
        await until(lambda: stalled.is_closed)


async def test_one_that_reads_slowly_is_not_one_that_reads_nothing(
    lane: ScriptedLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", 20)
    async with a_pool(lane, max_lingering=0) as pool:
        process = await begun(pool)
        with socket.socket(socket.AF_UNIX) as out, socket.socket(socket.AF_UNIX) as err:
            for client, path in ((out, process.result.stdio_addr), (err, process.result.stderr_addr)):
                client.connect(path)
                client.setblocking(False)
            await until(lambda: process.streams.is_served() and not process.streams.is_unread())
            left = leave_running(lane)
            await fill(left.their_stdout)
            for _ in range(40):  # of which each is longer than a look
                assert out.recv(16_384)
                await asyncio.sleep(0.025)
                await fill(left.their_stdout)
            assert not process.is_closed


async def fill(fd: int) -> None:
    """Until nobody takes any more."""
    rounds_without = 0
    while rounds_without < 5:
        try:
            os.write(fd, bytes(65_536))
            rounds_without = 0
        except BlockingIOError:
            rounds_without += 1
            await asyncio.sleep(0)


async def test_the_end_of_all_ends_who_reads_on(lane: ScriptedLane) -> None:
    async with AsyncExitStack() as stack:
        async with a_pool(lane, linger_ms=10, keep_exited_ms=20) as pool:
            process = await begun(pool)
            out = await stack.enter_async_context(connected(process))
            leave_running(lane)
            await until(lambda: not is_known(pool, process))
            assert pool.table.counts()["lingering"] == 1
        assert process.is_closed
        assert await out.read() == b""


# --- where what waits is known a moment later only ---


class Answering(ScriptedProcess):
    """Its streams are a spawner's; the test is the pump.

    Attributes:
        looks: how often it was asked what waits.
        waits: what it says; None: nothing.
        released: how often it was told to throw away what nobody reads.
    """

    def __init__(self, spec: StartSpec) -> None:
        super().__init__(spec)
        self.looks = self.released = 0
        self.waits: bool | None = None
        close_all((self.stdout_fd, self.stderr_fd))
        if self.stdin_fd is not None:
            os.close(self.stdin_fd)

    def serve(
        self, owner: StreamsOwner, sockets: ProcessSockets, poller: Poller, on_disconnect: OnDisconnect
    ) -> Streams:
        self.streams = SpawnStreams(self, owner, sockets, poller, on_disconnect)  # type: ignore[arg-type]  # has enough
        return self.streams

    def attach(self, which: int, fd: int) -> None:
        os.close(fd)

    def order(self, op: int, a: int = 0) -> None:
        self.looks += op == frames.LOOK
        self.released += op == frames.RELEASE
        if op == frames.LOOK and self.waits is not None:
            asyncio.get_running_loop().call_soon(self.streams.on_event, frames.WAITING, int(self.waits), 0)


class AnsweringLane(ScriptedLane):
    """Attributes:
    pumps: one for each process.
    """

    make = Answering

    @property
    def pumps(self) -> list[Answering]:
        return [process for process in self.processes if isinstance(process, Answering)]


async def over(pool: ProcessPool, lane: AnsweringLane, *waits: bool | None) -> list[bool]:
    """Have one end after the other with this in its streams; whose sockets are there after all of it."""
    processes = []
    for each in waits:
        process = await begun(pool)
        lane.pumps[-1].waits = each
        lane.processes[-1].exited.set_result(ExitStatus(reason="exited", exit_code=0))
        await settled(pool)
        processes.append(process)
    return [is_listening(process) for process in processes]


@pytest.mark.parametrize(
    ("waits", "listening"),
    [
        ((True, False, True), (True, False, True)),
        ((True, True, False), (True, True, False)),
        ((False, True, False), (False, True, True)),
        ((True, True, True), (False, True, True)),
        ((None, True, True), (False, True, True)),
        ((None, True, False), (True, True, False)),
        ((None, None, None), (False, True, True)),
    ],
)
async def test_the_answers_are_waited_for(waits: tuple[bool | None, ...], listening: tuple[bool, ...]) -> None:
    lane = AnsweringLane()
    async with a_pool(lane, max_lingering=2) as pool:
        assert tuple(await over(pool, lane, *waits)) == listening
        assert [pump.looks for pump in lane.pumps] == [1, 1, 1], "once each, and none before there are too many"
        assert [pump.released for pump in lane.pumps] == [not one for one in listening]


async def test_an_answer_that_never_comes_is_not_waited_for() -> None:
    lane = AnsweringLane()
    loop = asyncio.get_running_loop()
    async with a_pool(lane, max_lingering=0) as pool:
        process = await begun(pool)
        lane.processes[-1].exited.set_result(ExitStatus(reason="exited", exit_code=0))
        began = loop.time()
        await until(lambda: process.is_closed)
        assert loop.time() - began < 1


async def test_many_at_once_are_dealt_with_a_few_at_a_time() -> None:
    lane = AnsweringLane()
    count = 3 * limits.DISPENSABLE_SCAN
    async with a_pool(lane, max_lingering=1, max_live=count) as pool:
        processes = [await begun(pool) for _ in range(count)]
        for pump in lane.pumps:
            pump.waits = True
            pump.exited.set_result(ExitStatus(reason="exited", exit_code=0))
        await until(lambda: pool.table.counts()["lingering"] == 1)
        assert [is_listening(process) for process in processes] == [False] * (count - 1) + [True]
        assert sum(pump.looks for pump in lane.pumps) <= count


# --- records ---


async def test_records_are_kept_up_to_their_number(lane: ScriptedLane) -> None:
    async with a_pool(lane, keep_exited=2) as pool:
        processes = [await ended(pool, lane, b"x") for _ in range(4)]
        assert [is_known(pool, process) for process in processes] == [False, False, True, True]
        assert [is_listening(process) for process in processes] == [False, False, True, True]
        with pytest.raises(InvalidState) as raised:
            pool.table.find(processes[0].id)
        assert raised.value.reason == "unknown_process"


async def test_records_are_kept_for_their_time(lane: ScriptedLane) -> None:
    async with a_pool(lane, keep_exited_ms=30) as pool:
        process = await ended(pool, lane, b"x")
        assert is_known(pool, process)
        await until(lambda: not is_known(pool, process))
        assert not is_listening(process)
        assert pool.table.counts() == {"live": 0, "lingering": 0, "kept": 0}


async def test_a_live_process_is_never_forgotten(lane: ScriptedLane) -> None:
    async with a_pool(lane, keep_exited=0, keep_exited_ms=0, linger_ms=0, max_lingering=0) as pool:
        result = await pool.exec(ExecRequest(cmd=["x"]))
        for _ in range(3):
            await ended(pool, lane)
        assert pool.table.find(result.process_id).is_running
        assert pool.table.counts() == {"live": 1, "lingering": 0, "kept": 0}


@pytest.mark.parametrize("options", [{}, {"keep_exited": 0}, {"keep_exited_ms": 30}])
async def test_a_key_is_free_once_its_record_is_gone(lane: ScriptedLane, options: dict[str, Any]) -> None:
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
