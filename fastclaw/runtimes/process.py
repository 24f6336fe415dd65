"""One process as the runtime holds it: the lane's process, its two sockets, its state and its record.

Knows nothing of admission, of other processes, or of the wire.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING

from msgspec import structs

from fastclaw.decisions.lifecycle import ProcessState, process_machine
from fastclaw.lane import ExitStatus, Grace
from fastclaw.runtime import ExecRequest, ExecResult, ExitReason, ExitRecord, ProcessInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.decisions.admission import Ticket
    from fastclaw.lane import LaneProcess
    from fastclaw.relays.streams import Streams


class _Closed:
    """The streams of a process whose sockets are closed: so it does not keep them, nor they it."""

    drained = True

    def has_pending_output(self) -> bool:
        return False

    def close(self) -> None: ...


CLOSED = _Closed()


class Process:
    """Parameters:
    lane_process: what the lane starts.
    addresses: paths of its two sockets.

    Attributes:
    streams: set by whoever found a place for them, before anything else happens to it.

    on_exit: called once, when the command has ended and `record` is there.
    on_drained: called when both outputs have reached a client, or never.
    on_closed: called once, when its sockets and pipes are closed for good.
    on_abandoned: called when a client left a process whose `on_disconnect` is `kill`.
    """

    __slots__ = (
        "_loop",
        "_machine",
        "_on_abandoned",
        "_on_closed",
        "_on_drained",
        "_on_exit",
        "_running_since",
        "_timings",
        "end_reason",
        "exited",
        "expires_at",
        "gap",
        "id",
        "lane_process",
        "request",
        "result",
        "started_at",
        "streams",
        "ticket",
        "timeout",
    )

    def __init__(
        self,
        request: ExecRequest,
        process_id: str,
        ticket: Ticket,
        lane_process: LaneProcess,
        addresses: tuple[str, str],
        *,
        on_exit: Callable[[Process], None],
        on_drained: Callable[[Process], None],
        on_abandoned: Callable[[Process], None],
        on_closed: Callable[[Process], None],
    ) -> None:
        self.id = process_id
        self.request = request
        self.result = ExecResult(process_id=process_id, stdio_addr=addresses[0], stderr_addr=addresses[1])
        self.ticket = ticket
        self.lane_process = lane_process
        self.started_at = time.time()
        self.expires_at = 0.0
        self.gap = False
        self.streams: Streams
        self.timeout: asyncio.TimerHandle | None = None
        self.end_reason: ExitReason | None = None
        self._machine = process_machine()
        self._loop = asyncio.get_running_loop()
        self._running_since = self._loop.time()
        self._timings: dict[str, int] = {}
        self._on_exit = on_exit
        self._on_drained = on_drained
        self._on_abandoned = on_abandoned
        self._on_closed = on_closed
        self.exited: asyncio.Future[ExitRecord] = self._loop.create_future()
        lane_process.exited.add_done_callback(self._exited)

    def began(self, **timings: int) -> None:
        """The command runs: from here its run time counts. `timings`: microseconds of what came before, by phase."""
        self.started_at = time.time()
        self._running_since = self._loop.time()
        self._timings = {**timings, **self.lane_process.timings}

    @property
    def state(self) -> ProcessState:
        """Where it stands in `decisions.lifecycle.PROCESS_MOVES`."""
        return self._machine.state

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended, as far as is known."""
        return self._machine.state is ProcessState.RUNNING

    @property
    def is_drained(self) -> bool:
        """Whether clients have been given both streams to the end."""
        return self.streams.drained

    def has_pending_output(self) -> bool:
        """Whether output waits for a reader."""
        return self.streams.has_pending_output()

    def info(self) -> ProcessInfo:
        """Its line in `list`."""
        record = self.record()
        return ProcessInfo(
            process_id=self.id,
            state=record.state,
            cmd=self.request.cmd,
            started_at=self.started_at,
            exit_code=record.exit_code,
            signal=record.signal,
            reason=record.reason,
        )

    async def wait_exited(self, timeout_ms: int | None) -> None:
        """Return once `exited` is done, or when this many milliseconds have passed."""
        woken: asyncio.Future[None] = self._loop.create_future()
        timer = None if timeout_ms is None else self._loop.call_later(timeout_ms / 1000, _wake, woken)
        wake = functools.partial(_wake, woken)
        self.exited.add_done_callback(wake)
        try:
            await woken
        finally:
            self.exited.remove_done_callback(wake)
            if timer is not None:
                timer.cancel()

    def record(self) -> ExitRecord:
        """The exit record, or the record of a process that runs."""
        if not self.exited.done():
            return ExitRecord(process_id=self.id, state="running", timings=self._timings)
        record = self.exited.result()
        # A client may leave output unread after the exit, too.
        return structs.replace(record, gap=True) if self.gap else record

    def _exited(self, exited: asyncio.Future[ExitStatus]) -> None:
        if self.is_running:
            self._finish(ExitStatus(reason="unknown") if exited.cancelled() else exited.result())
            self._on_exit(self)

    def _finish(self, status: ExitStatus) -> None:
        if self.timeout is not None:
            self.timeout.cancel()
        self._timings["run_us"] = round((self._loop.time() - self._running_since) * 1e6)
        self._machine.move(ProcessState.LINGERING)
        self.exited.set_result(
            ExitRecord(
                process_id=self.id,
                state="exited",
                exit_code=status.exit_code,
                signal=status.signal,
                reason=self._reason(status),
                timings=self._timings,
                usage=status.usage,
            )
        )

    def _reason(self, status: ExitStatus) -> ExitReason:
        return status.reason if self.end_reason is None or status.reason == "unknown" else self.end_reason

    def on_abandoned(self) -> None:
        """A client left it for good, which kills it."""
        self._on_abandoned(self)

    def on_drained(self) -> None:
        """Clients have got both of its streams to the end."""
        self._on_drained(self)

    def on_gap(self) -> None:
        """A client left output unread, which is lost."""
        self.gap = True

    async def end_tree(self, grace: Grace, reason: ExitReason) -> None:
        """End it with all it started; `reason` goes into the record if it still runs."""
        if self.is_running and self.end_reason is None:
            self.end_reason = reason
        await self.lane_process.end_tree(grace)
        await asyncio.shield(self.exited)

    def close_sockets(self) -> None:
        """Unlink and close both sockets and the pipes behind them. Idempotent; only after the exit."""
        if self._machine.state is ProcessState.LINGERING:
            self._machine.move(ProcessState.CLOSED)
            self.streams.close()
            self.streams = CLOSED
            self._on_closed(self)

    def give_up(self) -> None:
        """The environment goes: an end that was not seen by now will never be known."""
        if self.is_running:
            self._finish(ExitStatus(reason="unknown"))
        self.close_sockets()


def _wake(woken: asyncio.Future[None], _done: object = None) -> None:
    if not woken.done():
        woken.set_result(None)
