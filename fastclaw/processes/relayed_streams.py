"""Streams whose pipes this process holds: those of the lanes without a spawner.

The other ends of the pipes belong to this process too; pipes of a hostile command are touched by helper processes only.
Knows nothing of how a process was started.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.errors import FastclawError
from fastclaw.linux.packets import close_all
from fastclaw.processes.endpoint import Endpoint
from fastclaw.processes.lane import Collected, ExitStatus, Grace, LaneProcess, Output, Streams
from fastclaw.processes.run_output import OutputStore

if TYPE_CHECKING:
    from fastclaw.linux.poller import Poller
    from fastclaw.processes.lane import Collection, StreamsOwner
    from fastclaw.processes.listeners import ProcessSockets
    from fastclaw.runtime import OnDisconnect


class Pipes(NamedTuple):
    """Our ends of a process's pipes; stdin is None for one that has none."""

    stdin: int | None
    stdout: int
    stderr: int


class _Outlet:
    """One output with its endpoint, and whether its client reads."""

    __slots__ = ("_looks", "_seen", "endpoint")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._seen: tuple[int, int] | None = None
        self._looks = 0

    @property
    def is_stalled(self) -> bool:
        """Whether output has waited for the client at several looks, and it has taken none."""
        return self._looks >= limits.STALLED_LOOKS and self.is_served()

    def is_served(self) -> bool:
        return self.endpoint.connected and not self.endpoint.drained

    def forget_who_left(self) -> None:
        if not self.is_served():
            self._looks = 0
            self._seen = None

    def look(self) -> None:
        if not self.is_served():
            return
        progress = self.endpoint.progress()
        is_idle = progress == self._seen and self.endpoint.has_pending_output()
        self._looks = self._looks + 1 if is_idle else 0
        self._seen = progress

    def release(self, *, cut: bool) -> bool:
        """Whether a client was cut off."""
        was_cut = cut and self.is_stalled
        if was_cut:
            self.endpoint.close()
        else:
            self.endpoint.release()
        return was_cut


class LocalStreams(Streams):
    """Streams that this process relays. `sockets` and `pipes` are taken over."""

    __slots__ = ("_is_open", "_looked_at", "_loop", "_outlets", "_owner")

    def __init__(
        self, owner: StreamsOwner, sockets: ProcessSockets, pipes: Pipes, poller: Poller, on_disconnect: OnDisconnect
    ) -> None:
        self._owner = owner
        self._loop = poller.loop
        self._looked_at = -math.inf
        self._is_open = True
        self.drained = False
        stdio, stderr = sockets
        self._outlets = (
            _Outlet(Endpoint(owner, stdio, pipes.stdout, pipes.stdin, poller, on_disconnect, self._on_change)),
            _Outlet(Endpoint(owner, stderr, pipes.stderr, None, poller, "hold", self._on_change)),
        )

    def _on_change(self) -> None:
        if not self.drained and all(outlet.endpoint.drained for outlet in self._outlets):
            self.drained = True
            self._owner.on_drained()
            return
        for outlet in self._outlets:
            outlet.forget_who_left()
        self._owner.on_clients()

    def is_unread(self) -> bool:
        return any(
            outlet.is_stalled or not (outlet.endpoint.connected or outlet.endpoint.drained)
            for outlet in self._outlets
            if self._is_open or outlet.is_served()
        )

    def is_served(self) -> bool:
        return any(outlet.is_served() for outlet in self._outlets)

    def has_pending_output(self) -> bool:
        return any(outlet.endpoint.has_pending_output() for outlet in self._outlets)

    def look(self) -> bool:
        now = self._loop.time()
        if now < self._looked_at + limits.PUMP_LOOK_MS / 2000:
            return False
        self._looked_at = now
        before = self.is_unread()
        for outlet in self._outlets:
            outlet.look()
        if self.is_unread() is not before:
            self._owner.on_clients()
        return False

    def blocked(self) -> asyncio.Future[int]:
        """Known at once: both ends of the pipes are in this process."""
        asked: asyncio.Future[int] = self._loop.create_future()
        asked.set_result(sum(1 << which for which, outlet in enumerate(self._outlets) if outlet.endpoint.is_blocked()))
        return asked

    def release(self, *, cut: bool = False) -> None:
        self._is_open = False
        were_cut = [outlet.release(cut=cut) for outlet in self._outlets]
        if any(were_cut):
            self._owner.on_gap()

    def close(self) -> None:
        self._is_open = False
        for outlet in self._outlets:
            outlet.endpoint.close()


class PipedProcess(LaneProcess):
    """A process whose output arrives on the read ends of two pipes, and whose input leaves on the write end of one.

    Attributes:
        stdin_fd, stdout_fd, stderr_fd: non-blocking; the caller's from the moment in which the lane has returned.
    """

    __slots__ = ()

    stdin_fd: int | None
    stdout_fd: int
    stderr_fd: int

    def _pipes(self) -> Pipes:
        return Pipes(self.stdin_fd, self.stdout_fd, self.stderr_fd)

    def serve(
        self, owner: StreamsOwner, sockets: ProcessSockets, poller: Poller, on_disconnect: OnDisconnect
    ) -> Streams:
        return LocalStreams(owner, sockets, self._pipes(), poller, on_disconnect)

    def close_streams(self) -> None:
        close_all(fd for fd in self._pipes() if fd is not None)


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


class _CollectedStream:
    """The read end of one output; owned. It is read on when its bytes are not wanted any more."""

    __slots__ = ("_collector", "_fd", "_loop", "store")

    def __init__(self, collector: Collector, loop: asyncio.AbstractEventLoop, fd: int, store: OutputStore) -> None:
        self._collector = collector
        self._loop = loop
        self._fd = fd
        self.store: OutputStore | None = store

    @property
    def ended(self) -> bool:
        """It has no writer any more, or was closed."""
        return self._fd < 0

    def start(self) -> None:
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        """Read what is there, within a bound: an endless writer must not keep the loop."""
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
    """The write end of stdin; owned. It is closed behind the last byte, or when it has no reader."""

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
    """Feeds a run its input and collects both of its outputs.

    Parameters:
        process: the lane's, whose descriptors are taken over.
        budget: of all runs; what is held counts until the result is there.
        least_drain_ms: where a lane's last output comes later than the news of the exit.

    Attributes:
        collected, streams_ended: the process's futures of that name.
        ending: ends a run that has too much output; the owner that closes this waits for it.

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
            _CollectedStream(self, self._loop, fd, OutputStore(limit, keep))
            for fd in (process.stdout_fd, process.stderr_fd)
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
        if self.collected.done():  # told already, or cancelled
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

    def _take(self, outlet: _CollectedStream) -> Output:
        store, outlet.store = outlet.store, None
        if store is None:
            return Output()
        self._budget.change(-store.held)
        return store.output()

    def close(self) -> None:
        """Close everything, writers or not: the environment goes, or the process was given up. Idempotent."""
        self._finish(incomplete=True)
        self._close_all()
        if not self.streams_ended.done():
            self.streams_ended.set_result(None)

    def _close_all(self) -> None:
        for end in (*self._outlets, self._in):
            if end is not None:
                end.close()
