"""One process as the runtime holds it: the lane's process, its two sockets if it has some, its state and its record.

Knows nothing of admission, of other processes, or of the wire.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING

from msgspec import UNSET, structs

from fastclaw import stages
from fastclaw.lifecycle import PROCESS_MOVES, Machine, ProcessState
from fastclaw.limits import SHOWN_COMMAND_BYTES, WORD_BYTES
from fastclaw.params import fingerprint, has_tty
from fastclaw.processes.lane import ExitStatus, Grace, Streams, StreamsOwner
from fastclaw.runtime import ExecRequest, ExecResult, ExitReason, ExitRecord, ProcessInfo, RunRequest, StreamName

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.processes.admission import Ticket
    from fastclaw.processes.lane import LaneProcess
    from fastclaw.stages import Flight


_NO_STREAMS = Streams()


class Process(StreamsOwner):
    """A process in the table: its id, streams, state and exit record.

    Parameters:
        request: what it was asked for. Not kept, since it may be long and the record lives for minutes: of the command
            line only what `list` shows.
        lane_process: what the lane starts.
        flight: of its start.
        on_exit: called once, when the command has ended and `record` is there.
        on_drained: called when both outputs have reached a client, or never.
        on_clients: called after the exit, when a client came or left: `streams.is_unread()` may differ.
        on_closed: called once, when its sockets and pipes are closed for good.
        on_abandoned: called when a client left a process whose `on_disconnect` is `kill`.

    Attributes:
        streams: of an exec, from the moment its sockets listen until they are closed.
        result: where its sockets are, once they listen; a run has none.
        request_mark: tells its request from another one with the same key.
        written: bytes of both outputs of a run that has been answered.
        ending: what ends it for its time or its limit: done once nothing is left of it.
        was_sent_kill: a caller has sent it SIGKILL: then the out-of-memory killer is not to blame.
        explain: says what an exit code other than 0 means, for its record; None: it is the command's own affair.
    """

    __slots__ = (
        "_loop",
        "_machine",
        "_on_abandoned",
        "_on_clients",
        "_on_closed",
        "_on_drained",
        "_on_exit",
        "cmd",
        "end_reason",
        "ending",
        "exited",
        "expires_at",
        "explain",
        "flight",
        "gap",
        "id",
        "is_cmd_cut",
        "is_run",
        "is_tty",
        "key",
        "lane_process",
        "request_mark",
        "result",
        "started_at",
        "streams",
        "ticket",
        "timeout",
        "was_limited",
        "was_sent_kill",
        "written",
    )

    def __init__(
        self,
        request: ExecRequest | RunRequest,
        process_id: str,
        ticket: Ticket,
        lane_process: LaneProcess,
        flight: Flight,
        *,
        on_exit: Callable[[Process], None],
        on_drained: Callable[[Process], None],
        on_clients: Callable[[Process], None],
        on_abandoned: Callable[[Process], None],
        on_closed: Callable[[Process], None],
    ) -> None:
        self.id = process_id
        self.cmd = shown_command(request.cmd)
        self.is_cmd_cut = self.cmd is not request.cmd
        self.key = request.key
        self.request_mark = b"" if request.key is None else fingerprint(request)
        self.is_run = isinstance(request, RunRequest)
        self.is_tty = has_tty(request)
        self.result: ExecResult
        self.ticket = ticket
        self.lane_process = lane_process
        self.flight = flight
        self.started_at = 0.0
        self.expires_at = 0.0
        self.gap = False
        self.was_limited = False
        self.was_sent_kill = False
        self.explain: Callable[[int], dict[str, str | int | None]] | None = None
        self.written = (0, 0)
        self.streams = _NO_STREAMS
        self.timeout: asyncio.TimerHandle | None = None
        self.ending: asyncio.Future[None] | None = None
        self.end_reason: ExitReason | None = None
        self._machine = Machine(PROCESS_MOVES, ProcessState.RUNNING)
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._on_drained = on_drained
        self._on_clients = on_clients
        self._on_abandoned = on_abandoned
        self._on_closed = on_closed
        self.exited: asyncio.Future[ExitRecord] = self._loop.create_future()
        lane_process.exited.add_done_callback(self._exited)

    def __repr__(self) -> str:
        return f"<Process {self.id} {self._machine.state.name.lower()} {self.cmd[0]!r}>"

    def began(self) -> None:
        """The command runs."""
        self.started_at = time.time()
        self.flight.reach(stages.STARTED)

    @property
    def state(self) -> ProcessState:
        """Where it stands in `lifecycle.PROCESS_MOVES`."""
        return self._machine.state

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended, as far as is known."""
        return self._machine.state is ProcessState.RUNNING

    def info(self, blocked: list[StreamName] | None = None) -> ProcessInfo:
        """Its line in `list`. `blocked`: outputs that are known to be."""
        record = self.record()
        return ProcessInfo(
            process_id=self.id,
            state=record.state,
            cmd=self.cmd,
            cmd_truncated=self.is_cmd_cut or UNSET,
            started_at=self.started_at,
            exit_code=record.exit_code,
            signal=record.signal,
            reason=record.reason,
            blocked=blocked or UNSET,
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
            return ExitRecord(process_id=self.id, state="running", timings=self.flight.timings())
        # What came after its end is known by now, as a rule.
        record = structs.replace(self.exited.result(), timings=self.flight.timings())
        # A client may leave output unread after the exit, and that a run was over its limit may be said after it.
        if self.was_limited:
            record = structs.replace(record, reason="killed")
        if self.explain is not None and record.exit_code:
            record = structs.replace(record, error=self.explain(record.exit_code))
        return structs.replace(record, gap=True) if self.gap else record

    def _exited(self, exited: asyncio.Future[ExitStatus]) -> None:
        self.has_ended(ExitStatus(reason="unknown") if exited.cancelled() else exited.result())

    def has_ended(self, status: ExitStatus) -> None:
        """The command has ended; of a run this is known with its output at the latest. Idempotent."""
        if self.is_running:
            self.flight.reach(stages.EXITED)
            self._finish(status)
            self._on_exit(self)

    def _finish(self, status: ExitStatus) -> None:
        if self.timeout is not None:
            self.timeout.cancel()
        self._machine.move(ProcessState.LINGERING)
        self.exited.set_result(
            ExitRecord(
                process_id=self.id,
                state="exited",
                exit_code=status.exit_code,
                signal=status.signal,
                reason=self._reason(status),
                usage=status.usage,
                oom_kills=UNSET if status.ooms is None else status.ooms.kills,
                memory=UNSET if status.ooms is None else status.ooms.memory,
                group=UNSET if status.group is None else status.group,
            )
        )
        self.flight.exit_code = status.exit_code
        self.flight.end(self.exited.result().reason or "unknown")

    def _reason(self, status: ExitStatus) -> ExitReason:
        if status.reason == "oom" and self.was_sent_kill:
            status = structs.replace(status, reason="exited" if status.signal is None else "signaled")
        return status.reason if self.end_reason is None or status.reason == "unknown" else self.end_reason

    def on_abandoned(self) -> None:
        self._on_abandoned(self)

    def on_drained(self) -> None:
        self._on_drained(self)

    def on_clients(self) -> None:
        if not self.is_running:
            self._on_clients(self)

    def on_gap(self) -> None:
        self.gap = True

    async def end_tree(self, grace: Grace, reason: ExitReason) -> None:
        """End it with all it started; `reason` goes into the record if it still runs."""
        if self.is_running and self.end_reason is None:
            self.end_reason = reason
        await self.lane_process.end_tree(grace)
        await asyncio.shield(self.exited)

    @property
    def is_closed(self) -> bool:
        """Whether its sockets are gone and no client is connected any more."""
        return self._machine.state is ProcessState.CLOSED

    def release(self, *, cut: bool = False) -> None:
        """Unlink both sockets; once no connected client reads on, close them and the pipes behind them. Idempotent;
        only after the exit.

        Parameters:
            cut: end clients that read nothing, too.
        """
        if self._machine.state is ProcessState.LINGERING:
            self.streams.release(cut=cut)
            if not self.streams.is_served():
                self._close_streams()

    def _close_streams(self) -> None:
        if self._machine.state is ProcessState.LINGERING:  # `release` may have called back, and so have ended here
            self._machine.move(ProcessState.CLOSED)
            self.streams = _NO_STREAMS
            self._on_closed(self)

    def close(self) -> None:
        """Close everything: the environment goes. A process that still runs gets the exit `unknown`. Idempotent."""
        if self.is_running:
            self._finish(ExitStatus(reason="unknown"))
        self.streams.close()
        self._close_streams()


def _wake(woken: asyncio.Future[None], _done: object = None) -> None:
    if not woken.done():
        woken.set_result(None)


def shown_command(cmd: list[str]) -> list[str]:
    """The beginning of a command line, for as long as its record is kept; the very same list where it is short."""
    room = SHOWN_COMMAND_BYTES
    for index, word in enumerate(cmd):
        length = len(word) if word.isascii() else len(word.encode("utf-8", "surrogatepass"))
        if WORD_BYTES + length > room:
            begun = _beginning(word, room - WORD_BYTES)
            return [*cmd[:index], begun] if begun or not index else cmd[:index]
        room -= WORD_BYTES + length
    return cmd


def _beginning(word: str, room: int) -> str:
    """As many whole characters as have room, as UTF-8."""
    return word[: max(room, 0)].encode("utf-8", "surrogatepass")[: max(room, 0)].decode("utf-8", "ignore")
