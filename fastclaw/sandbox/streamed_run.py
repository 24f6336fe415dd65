"""A command whose input or output is too large for one line of the wire: by its sockets, with the outcome of `run`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from fastclaw.client import RemoteProcess
from fastclaw.client.remote_process import StreamEnds
from fastclaw.errors import FastclawError, IoError
from fastclaw.processes.run_output import OutputStore
from fastclaw.runtime import ExitRecord, Keep, OnLimit
from fastclaw.sandbox.done import Output

_PIECE_BYTES = 1 << 20
"""Of the input, sent at a time: between two the loop does other things."""


class OutputRule(NamedTuple):
    """What is kept of each stream.

    Attributes:
        limit: bytes.
        keep: which part of a longer one.
        on_limit: whether a longer one ends the command.
        drain_ms: milliseconds for which a stream is read after the exit that something else holds open.
    """

    limit: int
    keep: Keep
    on_limit: OnLimit
    drain_ms: int


async def run_by_streams(process: RemoteProcess, data: bytes, rule: OutputRule) -> tuple[ExitRecord, Output]:
    """Send the input, collect both outputs, and wait for the end; where this is cancelled, the tree is ended first.

    Raises:
        IoError: the runtime is gone.
    """
    try:
        await process.connect()
        return await _attended(process, data, rule)
    except BaseException:
        with suppress(FastclawError):
            await asyncio.shield(process.kill(0))
        raise
    finally:
        await process.aclose()


async def _attended(process: RemoteProcess, data: bytes, rule: OutputRule) -> tuple[ExitRecord, Output]:
    ends = StreamEnds(process.wait, rule.drain_ms)
    out, err = (OutputStore(rule.limit, rule.keep) for _ in range(2))
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(ends.watch())
            pouring = group.create_task(_pour(process, data))
            over = _Limit(process, rule) if rule.on_limit == "kill" else None
            await asyncio.gather(
                _collect(ends.of(process.stdout_read), out, over), _collect(ends.of(process.stderr_read), err, over)
            )
            await ends.first(pouring, watching)
            watching.cancel()
            pouring.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures  # one failure cancels the rest
    record = await process.wait()
    kept = {"stdout": out.output(), "stderr": err.output()}
    given = {name: one.head + one.tail for name, one in kept.items()}
    dropped = {name: one.total - len(given[name]) for name, one in kept.items()}
    gap_at = {name: len(one.head) for name, one in kept.items() if rule.keep == "ends" and dropped[name]}
    return record, Output(given["stdout"], given["stderr"], dropped, gap_at)


class _Limit:
    """Ends the command with the first stream that is over its limit."""

    def __init__(self, process: RemoteProcess, rule: OutputRule) -> None:
        self._process = process
        self._limit = rule.limit
        self._is_over = False

    async def look(self, total: int) -> None:
        """So many bytes have come of a stream."""
        if total > self._limit and not self._is_over:
            self._is_over = True
            await self._process.kill(0)


async def _collect(read: Callable[[], Awaitable[bytes]], store: OutputStore, over: _Limit | None) -> None:
    while piece := await read():
        store.add(piece)
        if over is not None:
            await over.look(store.total)


async def _pour(process: RemoteProcess, data: bytes) -> None:
    """What the command does not read is no error, as for any pipe."""
    try:
        for start in range(0, len(data), _PIECE_BYTES):
            await process.write(memoryview(data)[start : start + _PIECE_BYTES])
    except IoError:
        return
    try:
        await process.write_eof()
    except IoError:
        return
