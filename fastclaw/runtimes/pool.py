"""The processes of one environment over one lane: exec, kill, wait, signal, and the end of all.

Owns ids, admission, deadlines, records and every task it starts. Knows no engine and no wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from fastclaw.decisions.admission import Admission, Ticket
from fastclaw.decisions.params import check_exec, check_template
from fastclaw.errors import ExecFailed, FastclawError, InvalidParams, IoError, RuntimeSdkError
from fastclaw.lane import Grace, Lane, LaneProcess, StartSpec
from fastclaw.relays.streams import Pipes
from fastclaw.relays.workers import Relays
from fastclaw.runtimes.process import Process
from fastclaw.runtimes.starts import StartQueue
from fastclaw.runtimes.table import ProcessTable
from fastclaw.transport.outbox import close_all
from fastclaw.transport.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from fastclaw.decisions.options import Options
    from fastclaw.decisions.placement import Placement
    from fastclaw.runtime import ExecRequest, ExecResult, ExitReason, ExitRecord
    from fastclaw.transport.listener import SocketDirectory

logger = logging.getLogger(__name__)

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EAGAIN})
"""What the kernel says when there is not enough of something now: trying later may help."""


class ProcessPool:
    """Parameters:
    environment: variables that every process gets before those of its request.
    working_dir: where a process starts whose request names no directory.
    sockets: where the sockets go.
    shards, max_starting: how starts are spread (`decisions.admission`).
    max_live: the most processes at a time.
    placement: how many of their streams are held where.
    """

    def __init__(
        self,
        lane: Lane,
        options: Options,
        sockets: SocketDirectory,
        *,
        environment: dict[str, str],
        working_dir: str | None,
        shards: int,
        max_starting: int,
        max_live: int,
        placement: Placement,
    ) -> None:
        self._lane = lane
        self._options = options
        self._sockets = sockets
        self._environment = environment
        self._working_dir = working_dir
        self._loop = asyncio.get_running_loop()
        self._watcher = Watcher()
        self._relays = Relays(self._watcher, placement)
        self.table = ProcessTable(options)
        self._admission = Admission(shards, max_starting, max_live, options.queue_limit)
        self._starts = StartQueue(self._admission, options.queue_timeout_ms / 1000)
        self._keyed: dict[str, tuple[ExecRequest, asyncio.Future[ExecResult]]] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._graces: list[Grace] = []
        self._prefix = secrets.token_hex(4)
        self._count = 0

    # --- exec ---

    async def exec(self, request: ExecRequest) -> ExecResult:
        """See `Runtime.exec`."""
        check_exec(request)
        self._check_offered(request)
        if request.key is None:
            return await self._exec(request)
        return await self._exec_once(request.key, request)

    def _check_offered(self, request: ExecRequest) -> None:
        asked = (
            ("tty", request.tty),
            ("limits", bool(request.limits)),
            ("user", request.user is not None),
            ("template", request.template is not None),
        )
        for name, is_asked in asked:
            if is_asked and name not in self._lane.capabilities:
                raise InvalidParams(
                    f"$.{name} is not offered by the {self._lane.name} lane; leave it out",
                    "unsupported",
                    path=f"$.{name}",
                )
        if request.template is not None:
            check_template(request.template, self._options.templates)

    async def _exec_once(self, key: str, request: ExecRequest) -> ExecResult:
        """The same key never runs twice. A start that failed frees it."""
        if (process := self.table.with_key(key)) is not None:
            return _same(process.request, request, process.result)
        if key not in self._keyed:
            starting = self._own(self._exec(request))
            self._keyed[key] = (request, starting)
            starting.add_done_callback(lambda _: self._keyed.pop(key))
        first, starting = self._keyed[key]
        return _same(first, request, await asyncio.shield(starting))

    async def _exec(self, request: ExecRequest) -> ExecResult:
        asked_at = time.monotonic_ns()
        ticket = await self._starts.admit()
        admitted_at = time.monotonic_ns()
        process_id = self._next_id()
        try:
            if not self._relays.has_room:
                await self._relays.make_room()
            lane_process = await self._lane.start(self._spec(process_id, request), ticket.shard)
            process = self._receive(request, process_id, ticket, lane_process)
        except BaseException:
            self._starts.leave(ticket)
            raise
        if lane_process.started is not None:
            await self._see_started(process)
        self._starts.started(ticket)
        process.began(queued_us=(admitted_at - asked_at) // 1000, start_us=(time.monotonic_ns() - admitted_at) // 1000)
        self.table.add(process)
        if request.timeout_ms is not None:
            process.timeout = self._loop.call_later(request.timeout_ms / 1000, self._end_later, process, "timeout")
        return process.result

    def _receive(self, request: ExecRequest, process_id: str, ticket: Ticket, lane_process: LaneProcess) -> Process:
        """Put sockets before the streams of what the lane has begun to start: they listen before it is answered."""
        pipes = Pipes(lane_process.stdin_fd, lane_process.stdout_fd, lane_process.stderr_fd)
        try:
            sockets = self._sockets.open(process_id)
        except OSError as error:
            close_all(fd for fd in pipes if fd is not None)
            self._own(self._take_back(lane_process))
            raise _explain(error) from error
        process = Process(
            request,
            process_id,
            ticket,
            lane_process,
            (sockets.stdio.path, sockets.stderr.path),
            on_exit=self._exited,
            on_drained=self.table.drained,
            on_abandoned=self._abandoned,
            on_closed=self._closed,
        )
        try:
            process.streams = self._relays.place(process, sockets, pipes, request.on_disconnect)
        except ExecFailed:
            self._own(self._take_back(lane_process))
            raise
        return process

    async def _see_started(self, process: Process) -> None:
        """Wait until the command runs. Where it does not, nothing of it stays."""
        started = process.lane_process.started
        assert started is not None
        try:
            await started
        except BaseException:
            process.give_up()
            self._starts.leave(process.ticket)
            if started.cancelled():
                self._own(self._take_back(process.lane_process))
            raise

    async def _take_back(self, lane_process: LaneProcess) -> None:
        """End what nobody will ever be told of."""
        try:
            await lane_process.end_tree(Grace(ends_at=0.0))
        except FastclawError as error:
            logger.warning("a start that was given up could not be ended: %s", error)

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count}"

    def _spec(self, process_id: str, request: ExecRequest) -> StartSpec:
        return StartSpec(
            process_id=process_id,
            cmd=request.cmd,
            base_env=self._environment,
            env=request.env,
            working_dir=request.working_dir or self._working_dir,
            user=request.user or self._options.user,
            stdin=request.stdin,
            limits=request.limits,
            tty=request.tty_size if request.tty else None,
            template=request.template,
        )

    def _exited(self, process: Process) -> None:
        self.table.exited(process)
        self._starts.leave(process.ticket)

    def _abandoned(self, process: Process) -> None:
        self._end_later(process, "killed")

    def _closed(self, process: Process) -> None:
        closing = process.lane_process.aclose()
        if closing is not None:
            self._own(closing)

    # --- what else can be done to a process ---

    async def kill(self, process_id: str, grace_ms: int | None) -> None:
        """See `Runtime.kill`."""
        process = self.table.find(process_id)
        await self._end(process, self._options.kill_grace_ms if grace_ms is None else grace_ms, "killed")

    async def wait(self, process_id: str, timeout_ms: int | None) -> ExitRecord:
        """See `ProcessRuntime.wait`."""
        process = self.table.find(process_id)
        if not process.exited.done():
            await process.wait_exited(timeout_ms)
        return process.record()

    def signal(self, process_id: str, signum: int) -> None:
        """See `ProcessRuntime.signal`."""
        process = self.table.find(process_id)
        if process.is_running:
            process.lane_process.signal(signum)

    def resize(self, process_id: str, rows: int, columns: int) -> None:
        """See `ProcessRuntime.resize`."""
        process = self.table.find(process_id)
        if not process.request.tty:
            raise InvalidParams(f"process {process_id} has no terminal", "no_tty", path="$.process_id")
        if process.is_running:
            process.lane_process.resize(rows, columns)

    async def _end(self, process: Process, grace_ms: int, reason: ExitReason) -> None:
        with self._grace(grace_ms) as grace:
            await process.end_tree(grace, reason)

    def _end_later(self, process: Process, reason: ExitReason) -> None:
        self._own(self._end_logged(process, reason))

    async def _end_logged(self, process: Process, reason: ExitReason) -> None:
        try:
            await self._end(process, self._options.kill_grace_ms, reason)
        except FastclawError as error:
            logger.warning("process %s could not be ended: %s", process.id, error)

    @contextlib.contextmanager
    def _grace(self, milliseconds: int) -> Iterator[Grace]:
        grace = Grace(self._loop.time() + milliseconds / 1000)
        self._graces.append(grace)
        try:
            yield grace
        finally:
            self._graces.remove(grace)

    # --- the end of all ---

    async def end_all(self) -> None:
        """Turn away what waits, end every process; bounded by half of `shutdown_timeout_ms`."""
        self._starts.close()
        await self._cancel_tasks()
        processes = self.table.live()
        for process in processes:
            process.end_reason = process.end_reason or "killed"
        budget_ms = self._options.shutdown_timeout_ms // 2  # the other half is for the environment
        with self._grace(min(self._options.kill_grace_ms, budget_ms)) as grace:
            try:
                async with asyncio.timeout(budget_ms / 1000):
                    await self._lane.end_all([process.lane_process for process in processes], grace)
            except (TimeoutError, RuntimeSdkError) as error:
                # The environment's own teardown, which follows, takes what is left.
                logger.warning("not every process ended in time: %s", error or f"{budget_ms} ms passed")

    def hasten(self) -> None:
        """No more grace for anything that is being ended."""
        for grace in self._graces:
            grace.ends_at = 0.0

    async def aclose(self) -> None:
        """Close every socket. A process whose end was not seen by now gets the exit `unknown`."""
        await self._cancel_tasks()
        self.table.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._relays.aclose()
        self._watcher.close()

    def health(self) -> dict[str, Any]:
        """Counts and bounds."""
        statistics = self._admission.statistics()._asdict()
        return {
            **self.table.counts(),
            **statistics,
            "queue_timeout_ms": self._options.queue_timeout_ms,
            "streams": self._relays.health(),
        }

    def _own(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _same(first: ExecRequest, again: ExecRequest, result: ExecResult) -> ExecResult:
    if first != again:
        raise InvalidParams("$.key was used for another request; take a new key", path="$.key")
    return result


def _explain(error: OSError) -> RuntimeSdkError:
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _EXHAUSTED:
        return ExecFailed(f"{text}; fewer processes at a time, or a higher limit (fastclaw doctor)", "overloaded")
    return IoError(f"the process's sockets: {text}")
