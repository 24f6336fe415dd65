"""The streams of a run over real pipes: what is collected, when that is told, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.processes.collector import Collector, OutputBudget
from fastclaw.processes.lane import Collected, Collection, ExitStatus, Grace
from fastclaw.processes.relayed_streams import PipedProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_MS = 20_000


class Command(PipedProcess):
    """A process that does what the test says, at the other ends of three pipes.

    Attributes:
        ended: how often its tree was ended.
    """

    def __init__(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.reads, self.stdin_fd = os.pipe2(flags)
        self.stdout_fd, self.out = os.pipe2(flags)
        self.stderr_fd, self.err = os.pipe2(flags)
        self.exited = asyncio.get_running_loop().create_future()
        self.timings = {}
        self.ended = asyncio.Event()

    def signal(self, signum: int, *, group: bool = False) -> None: ...

    async def end_tree(self, grace: Grace) -> None:
        self.ended.set()

    def close(self, *names: str) -> None:
        """Its own ends, once each."""
        for name in names or ("reads", "out", "err"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    def exit(self, exit_code: int = 0) -> None:
        self.exited.set_result(ExitStatus(reason="exited", exit_code=exit_code))


@contextmanager
def collecting(
    data: bytes = b"", budget: OutputBudget | None = None, **more: Any
) -> Iterator[tuple[Command, Collector]]:
    command = Command()
    collector = Collector(command, Collection(input=data, **more), budget or OutputBudget(limits.MIB))
    try:
        yield command, collector
    finally:
        command.close()
        collector.close()
        for future in (collector.collected, collector.streams_ended):
            future.cancel()


async def told(collector: Collector) -> Collected:
    async with asyncio.timeout(5):
        return await asyncio.shield(collector.collected)


async def read_to_end(fd: int, rest: bytes = b"") -> bytes:
    while True:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0.001)
            continue
        if not data:
            return rest
        rest += data


async def write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            await asyncio.sleep(0.001)


async def test_what_was_in_the_pipes_at_the_exit_is_told_at_once() -> None:
    with collecting(drain_ms=PATIENCE_MS) as (command, collector):
        os.write(command.out, b"out")
        os.write(command.err, b"err")
        command.close()
        command.exit(3)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert collector.collected.done()
        result = collector.collected.result()
        assert (result.status.exit_code, result.stdout.head, result.stderr.head) == (3, b"out", b"err")
        assert (result.limited, result.overloaded, result.incomplete) == (False, False, False)
        assert collector.streams_ended.done()


async def test_input_goes_in_whole_and_ends() -> None:
    data = os.urandom(1 << 20)
    with collecting(data) as (command, _):
        async with asyncio.timeout(10):
            assert await read_to_end(command.reads) == data


async def test_input_that_is_not_read_is_given_up() -> None:
    for is_closed in (True, False):
        with collecting(bytes(1 << 20)) as (command, collector):
            if is_closed:
                command.close("reads")
                await asyncio.sleep(0.01)
            command.close("out", "err")
            command.exit()
            assert (await told(collector)).status.exit_code == 0


async def test_nothing_is_told_before_the_exit() -> None:
    with collecting() as (command, collector):
        command.close("out", "err")
        async with asyncio.timeout(5):
            await collector.streams_ended
        assert not collector.collected.done()
        command.exit()
        await told(collector)


@pytest.mark.parametrize("drain_ms", [0, 50])
async def test_a_stream_that_somebody_holds_is_waited_for_no_longer_than_that(drain_ms: int) -> None:
    loop = asyncio.get_running_loop()
    with collecting(drain_ms=drain_ms) as (command, collector):
        os.write(command.out, b"x" * limits.PIPE_BYTES)  # all of it is there at the exit
        began = loop.time()
        command.exit()
        assert (await told(collector)).stdout.total == limits.PIPE_BYTES
        assert loop.time() - began >= drain_ms / 1000 - 0.01
        assert not collector.streams_ended.done()


async def test_what_comes_within_the_drain_counts_and_what_comes_later_is_thrown_away() -> None:
    with collecting(drain_ms=PATIENCE_MS) as (command, collector):
        command.exit()
        await asyncio.sleep(0)
        os.write(command.out, b"late")
        command.close("out", "err")
        assert (await told(collector)).stdout.head == b"late"
    with collecting(drain_ms=0) as (command, collector):
        command.exit()
        assert (await told(collector)).stdout.total == 0
        async with asyncio.timeout(10):
            await write_all(command.out, bytes(8 << 20))  # neither EPIPE nor a full pipe
        command.close("out", "err")
        async with asyncio.timeout(5):
            await collector.streams_ended


async def test_a_flood_is_read_and_kept_within_its_limit() -> None:
    with collecting(output_limit=1000, keep="head", drain_ms=0) as (command, collector):
        async with asyncio.timeout(10):
            await write_all(command.out, b"ab" * (1 << 20))
        command.close("out", "err")
        command.exit()
        output = (await told(collector)).stdout
        assert (output.head, output.total) == (b"ab" * 500, 2 << 20)
        assert not command.ended.is_set()


async def test_over_its_limit_it_is_ended_where_that_is_wanted() -> None:
    with collecting(output_limit=10, on_limit="kill") as (command, collector):
        os.write(command.err, b"x" * 10)
        await asyncio.sleep(0.02)
        assert not command.ended.is_set()
        os.write(command.err, b"x")
        async with asyncio.timeout(5):
            await command.ended.wait()
        command.close("out", "err")
        command.exit()
        result = await told(collector)
        assert (result.limited, result.stderr.total) == (True, 11)


async def test_a_budget_is_for_all_of_them_and_is_given_back() -> None:
    budget = OutputBudget(100)
    with collecting(budget=budget) as (first, one), collecting(budget=budget) as (second, other):
        os.write(first.out, b"x" * 60)
        await asyncio.sleep(0.02)
        os.write(second.out, b"x" * 60)
        async with asyncio.timeout(5):
            await second.ended.wait()
        assert not first.ended.is_set()
        for command in (first, second):
            command.close("out", "err")
            command.exit()
        assert [(await told(each)).overloaded for each in (one, other)] == [False, True]
    assert budget.change(100)
    assert not budget.change(1)


async def test_nobody_who_wants_the_result_any_more() -> None:
    budget = OutputBudget(100)
    with collecting(budget=budget) as (command, collector):
        os.write(command.out, b"x" * 60)
        await asyncio.sleep(0.02)
        collector.collected.cancel()
        command.exit()
        await asyncio.sleep(0.02)
        assert budget.change(100)
        await write_all(command.out, bytes(1 << 20))


async def test_closing_tells_what_there_is_and_that_it_may_not_be_all() -> None:
    with collecting() as (command, collector):
        os.write(command.out, b"begun")
        await asyncio.sleep(0.02)
        collector.close()
        result = await told(collector)
        assert (result.incomplete, result.status.reason, result.stdout.head) == (True, "unknown", b"begun")
        assert collector.streams_ended.done()
        with pytest.raises(BrokenPipeError):
            os.write(command.out, b"x")


async def test_a_loop_that_cannot_watch_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Collector) -> None:
        raise OSError(28, "No space left on device")

    command = Command()
    monkeypatch.setattr(Collector, "_start", refuse)
    with pytest.raises(OSError, match="No space"):
        Collector(command, Collection(), OutputBudget(1))
    command.close()
