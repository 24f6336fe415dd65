"""The streams of one run, in this process's loop: input goes in, output is collected, and what comes later is read too.

For lanes whose pipes this process holds. Owns the three descriptors from the beginning to the end of both streams: a
stream that something else than the command still holds is read and thrown away after the answer, so that no writer
has a SIGPIPE of it or waits for a reader. Knows no record and no answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import FastclawError
from fastclaw.processes.lane import Collected, ExitStatus, Grace, Output
from fastclaw.processes.run_output import OutputStore

if TYPE_CHECKING:
    from fastclaw.processes.lane import Collection
    from fastclaw.processes.relayed_streams import PipedProcess

logger = logging.getLogger(__name__)

_NOW = 0.0
"""A grace that is over: the tree is killed at once."""


class OutputBudget:
    """How many bytes all runs of an environment may hold together."""

    __slots__ = ("_left",)

    def __init__(self, limit: int) -> None:
        self._left = limit

    def change(self, by: int) -> bool:
        """Take so many more bytes, or give them back where it is less than nothing. False: too many are held now."""
        self._left -= by
        return self._left >= 0


class _Outlet:
    """The read end of one output; owned. It is read whether or not somebody still wants what comes."""

    __slots__ = ("_collector", "_fd", "_loop", "store")

    def __init__(self, collector: Collector, loop: asyncio.AbstractEventLoop, fd: int, store: OutputStore) -> None:
        self._collector = collector
        self._loop = loop
        self._fd = fd
        self.store: OutputStore | None = store

    @property
    def ended(self) -> bool:
        """Nobody can write to it any more, or it was closed."""
        return self._fd < 0

    def start(self) -> None:
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        """What there is, within a bound: a writer without a pause must not keep the loop."""
        for _ in range(limits.RELAY_BURST):
            if self._read() < limits.PIPE_BYTES:
                return

    def read_what_is_there(self) -> None:
        """At the exit: what the command wrote is in the pipe, before all that others write. No pipe of ours holds more
        than is read here."""
        for _ in range(limits.RELAY_BURST):
            if self.ended or not self._read():
                return

    def _read(self) -> int:
        """Read once; how many bytes that gave."""
        try:
            data = os.read(self._fd, limits.PIPE_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self.close()
            self._collector.on_end()
        elif self.store is not None:
            self._collector.on_data(self.store, data)
        return len(data)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._loop.remove_reader(fd)
            os.close(fd)


class _Inlet:
    """The write end of stdin; owned. It is closed behind the last byte, or when nobody reads."""

    __slots__ = ("_fd", "_loop", "_rest", "_waits")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, data: bytes) -> None:
        self._loop = loop
        self._fd = fd
        self._rest = memoryview(data)
        self._waits = False

    def push(self) -> None:
        """Write what there is room for."""
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._fd, self._rest) :]
        except BlockingIOError:
            self._wait()
            return
        except OSError:
            pass  # EPIPE: the command reads no more, which is its own affair
        self.close()

    def _wait(self) -> None:
        if not self._waits:
            self._waits = True
            self._loop.add_writer(self._fd, self.push)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if self._waits:
                self._loop.remove_writer(fd)
            self._rest = memoryview(b"")
            os.close(fd)


class Collector:
    """Parameters:
    process: the lane's, whose descriptors are taken over.
    budget: of all runs; what is held counts until the result is there.
    least_drain_ms: where a lane's last output comes later than the news of the exit.

    Attributes:
        collected, streams_ended: the process's futures of that name.
        ending: ends a run that has too much output; whoever closes this waits for it.

    Raises:
        OSError: the loop cannot watch them. Everything is closed then.
    """

    __slots__ = (
        "_budget",
        "_collection",
        "_drain_s",
        "_in",
        "_is_limited",
        "_is_overloaded",
        "_loop",
        "_outlets",
        "_process",
        "_status",
        "_timer",
        "collected",
        "ending",
        "streams_ended",
    )

    def __init__(
        self, process: PipedProcess, collection: Collection, budget: OutputBudget, *, least_drain_ms: int = 0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._collection = collection
        self._budget = budget
        self._drain_s = max(collection.drain_ms, least_drain_ms) / 1000
        self._is_limited = self._is_overloaded = False
        self._status: ExitStatus | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.ending: asyncio.Task[None] | None = None
        self.collected: asyncio.Future[Collected] = self._loop.create_future()
        self.streams_ended: asyncio.Future[None] = self._loop.create_future()
        limit, keep = collection.output_limit, collection.keep
        self._outlets = [
            _Outlet(self, self._loop, fd, OutputStore(limit, keep)) for fd in (process.stdout_fd, process.stderr_fd)
        ]
        self._in = None if process.stdin_fd is None else _Inlet(self._loop, process.stdin_fd, collection.input)
        try:
            self._start()
        except BaseException:
            self._close_all()
            raise

    def _start(self) -> None:
        for outlet in self._outlets:
            outlet.start()
        if self._in is not None:
            self._in.push()
        self._process.exited.add_done_callback(self._on_exit)

    # --- while it runs ---

    def on_data(self, store: OutputStore, data: bytes) -> None:
        """From an outlet."""
        held = store.held
        store.add(data)
        if not self._budget.change(store.held - held):
            self._is_overloaded = True
            self._take_all()
            self._end()
        elif store.total > self._collection.output_limit and self._collection.on_limit == "kill":
            self._is_limited = True
            self._end()

    def _end(self) -> None:
        if self.ending is None:
            self.ending = self._loop.create_task(self._end_tree())

    async def _end_tree(self) -> None:
        try:
            await self._process.end_tree(Grace(_NOW))
        except FastclawError as error:
            logger.warning("a run with too much output could not be ended: %s", error)

    # --- its end ---

    def _on_exit(self, exited: asyncio.Future[ExitStatus]) -> None:
        self._status = ExitStatus(reason="unknown") if exited.cancelled() else exited.result()
        if self._in is not None:
            self._in.close()
        for outlet in self._outlets:
            outlet.read_what_is_there()
        if self.streams_ended.done() or not self._drain_s or self.collected.done():
            self._finish()
        else:
            self._timer = self._loop.call_later(self._drain_s, self._finish)

    def on_end(self) -> None:
        """From an outlet: its stream is at its end."""
        if not all(outlet.ended for outlet in self._outlets):
            return
        if self._status is not None:
            self._finish()
        if not self.streams_ended.done():
            self.streams_ended.set_result(None)

    def _finish(self, *, incomplete: bool = False) -> None:
        """Tell what was collected; what comes from now on is thrown away."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        outputs = self._take_all()
        if self.collected.done():  # told already, or nobody wants to know any more
            return
        self.collected.set_result(
            Collected(
                status=self._status or ExitStatus(reason="unknown"),
                stdout=outputs[0],
                stderr=outputs[1],
                incomplete=incomplete,
                limited=self._is_limited,
                overloaded=self._is_overloaded,
            )
        )

    def _take_all(self) -> list[Output]:
        return [self._take(outlet) for outlet in self._outlets]

    def _take(self, outlet: _Outlet) -> Output:
        store, outlet.store = outlet.store, None
        if store is None:
            return Output()
        self._budget.change(-store.held)
        return store.output()

    def close(self) -> None:
        """The environment goes, or the process was given up: close everything, whoever still writes. Idempotent."""
        self._finish(incomplete=True)
        self._close_all()
        if not self.streams_ended.done():
            self.streams_ended.set_result(None)

    def _close_all(self) -> None:
        for end in (*self._outlets, self._in):
            if end is not None:
                end.close()
