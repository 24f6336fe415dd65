"""The processes of one environment over one lane: exec, run, kill, wait, signal, and the end of all.

Owns ids, admission, deadlines, records and every task it starts. Knows no engine and no wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import operator
from typing import TYPE_CHECKING, Any, TypeVar

from fastclaw import environment_limits, limits, stages
from fastclaw.errors import ExecFailed, FastclawError, InvalidParams, RuntimeSdkError
from fastclaw.linux.poller import Poller
from fastclaw.params import (
    check_exec,
    check_run,
    fingerprint,
    has_input,
)
from fastclaw.processes.admission import Admission, HostRoom
from fastclaw.processes.blocked import BlockedOutputs
from fastclaw.processes.lane import SIGKILLED, Collection, Grace, Lane, LaneProcess, StartSpec
from fastclaw.processes.process import Process
from fastclaw.processes.run_output import result_without_output
from fastclaw.processes.start_specs import StartSpecs
from fastclaw.processes.starts import (
    Begun,
    KeyedCalls,
    StartQueue,
    Tell,
    explained,
    never_ran,
    require_same,
    tell_run,
)
from fastclaw.processes.table import ProcessTable
from fastclaw.runtime import ExecResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from fastclaw.options import Options
    from fastclaw.processes.admission import Ticket
    from fastclaw.processes.lane import Collected
    from fastclaw.processes.listeners import ProcessSockets, SocketDirectory
    from fastclaw.runtime import (
        ExecRequest,
        ExitReason,
        ExitRecord,
        OnDisconnect,
        ProcessInfo,
        RunRequest,
        RunResult,
    )
    from fastclaw.stages import Flight, Ledger

logger = logging.getLogger(__name__)

Told = TypeVar("Told")


class ProcessPool:
    """The processes of one environment: exec, run, kill, wait, list, signal, and the end of all.

    Parameters:
        prefix: what all ids of its processes begin with, up to the hyphen.
        environment: variables that every process gets before those of its request.
        working_dir: the directory of requests that name none; None leaves it to the lane.
        base_dir: where that is, for a request that names a relative one.
        sockets: where the sockets go.
        containers, max_starting: how starts are spread (`admission`).
        max_live: the most processes at a time.
        room: what is shared with other environments; None: nothing is.
        ledger: where flights count; None: nowhere.
        name: of the environment.
    """

    def __init__(
        self,
        lane: Lane,
        options: Options,
        sockets: SocketDirectory,
        *,
        prefix: str,
        environment: dict[str, str],
        working_dir: str | None,
        base_dir: str,
        containers: int,
        max_starting: int,
        max_live: int,
        room: HostRoom | None = None,
        ledger: Ledger | None = None,
        name: str = "",
    ) -> None:
        self._lane = lane
        self._options = options
        self._sockets = sockets
        self._specs = StartSpecs(
            options, prefix, environment, working_dir=working_dir, base_dir=base_dir, ledger=ledger, name=name
        )
        self._loop = asyncio.get_running_loop()
        self._poller = Poller()
        self.table = ProcessTable(options)
        self._admission = Admission(containers, max_starting, max_live, options.queue_limit, room, lane.files_each)
        self._starts = StartQueue(self._admission, options.queue_timeout_ms / 1000, room)
        self._keyed = KeyedCalls(self._own, self._take_back_key)
        self._draining: set[LaneProcess] = set()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._closings: set[asyncio.Future[None]] = set()
        self._graces: list[Grace] = []
        self._blocked = BlockedOutputs()
        self._is_ending = False

    def __repr__(self) -> str:
        return f"<ProcessPool {self._specs.prefix} lane={self._lane.name} {self.table}>"

    # --- exec ---

    def exec(self, request: ExecRequest) -> Coroutine[Any, Any, ExecResult]:
        """See `Runtime.exec`."""
        check_exec(request)
        spec = self._specs.make(
            self._lane,
            request,
            stdin=request.stdin,
            tty=request.tty_size if request.tty else None,
            holds_stdin=request.on_disconnect == "hold",
        )
        if request.key is None:
            return self._exec(request, spec)
        return self._once(request, request.key, lambda: self._exec(request, spec), lambda process: process.result)

    async def _exec(self, request: ExecRequest, spec: StartSpec) -> ExecResult:
        flight = spec.flight
        flight.method, flight.waits_for = "exec", stages.STARTED
        begun = Begun(await self._admitted(flight))
        try:
            begun.lane_process = await self._lane.start(spec, begun.ticket.container_index)
            self._go_on()
            process = self._process(request, spec, begun)
            result = self._attach(process, request.on_disconnect)
            if begun.lane_process.started is not None:
                await begun.lane_process.started
            self._begin(process, request.timeout_ms, begun)
        except BaseException as error:
            flight.end(stages.outcome_of(self._told(error)))
            await self._take_back(begun)
            if (told := self._told(error)) is not error:
                raise told from error
            raise
        return result

    async def _admitted(self, flight: Flight) -> Ticket:
        """Its turn has come."""
        try:
            ticket = await self._starts.admit()
        except BaseException as error:
            flight.end(stages.outcome_of(error))
            raise
        flight.reach(stages.ADMITTED)
        return ticket

    def _go_on(self) -> None:
        """A start that has come this far while all was ended is taken back: nobody else knows of it.

        Raises:
            FastclawError: what those are told that waited.
        """
        if self._is_ending:
            raise self._keyed.why

    def _told(self, error: BaseException) -> BaseException:
        """What the caller of a start is told that came to nothing."""
        if isinstance(error, OSError):
            return explained(error)
        caller = asyncio.current_task()
        by_lane = isinstance(error, asyncio.CancelledError) and caller is not None and not caller.cancelling()
        if by_lane or (self._is_ending and isinstance(error, ExecFailed) and error.reason == "container_gone"):
            return self._keyed.why
        return error

    async def _once(
        self,
        request: ExecRequest | RunRequest,
        key: str,
        begin: Callable[[], Coroutine[Any, Any, Told]],
        told_again: Callable[[Process], Told],
    ) -> Told:
        """A call with a key: what the first one with it brought, or will bring, where it was the same request."""
        mark = fingerprint(request)  # of another kind of request it is another one
        if not await self._keyed.has(key) and (process := self.table.with_key(key)) is not None:
            require_same(process.request_mark, mark)
            return told_again(process)
        told: Told = await self._keyed.join(key, mark, begin)
        return told

    def _process(self, request: ExecRequest | RunRequest, spec: StartSpec, begun: Begun) -> Process:
        assert begun.lane_process is not None
        begun.process = Process(
            request,
            spec.process_id,
            begun.ticket,
            begun.lane_process,
            spec.flight,
            on_exit=self._exited,
            on_drained=self.table.drained,
            on_clients=self.table.clients_changed,
            on_abandoned=self._end_later,
            on_closed=self._closed,
        )
        return begun.process

    def _attach(self, process: Process, on_disconnect: OnDisconnect) -> ExecResult:
        """Give an exec its sockets: they listen before it is answered.

        Raises:
            OSError: there is not enough of something. Then its streams are closed.
        """
        lane_process = process.lane_process
        sockets = None
        try:
            sockets = self._sockets.open(process.id)
            process.streams = lane_process.serve(process, sockets, self._poller, on_disconnect)
        except BaseException:
            lane_process.close_streams()
            if sockets is not None:
                self._close_sockets(sockets)
            raise
        process.result = ExecResult(
            process_id=process.id, stdio_addr=sockets.stdio.path, stderr_addr=sockets.stderr.path
        )
        return process.result

    def _close_sockets(self, sockets: ProcessSockets) -> None:
        """The kernel may have refused to watch one of them (fs.epoll.max_user_watches)."""
        for listener in sockets:
            with contextlib.suppress(OSError):  # the one that is not watched
                self._poller.unwatch(listener.fd)
        sockets.close()

    def _begin(self, process: Process, timeout_ms: int | None, begun: Begun) -> None:
        """The command runs: from here on it is known, and its time counts."""
        self._go_on()
        self._starts.started(begun.ticket)
        process.began()
        self.table.add(process)
        if timeout_ms is not None:
            process.timeout = self._loop.call_later(timeout_ms / 1000, self._end_later, process, "timeout")

    # --- run ---

    def run(self, request: RunRequest) -> Coroutine[Any, Any, RunResult]:
        """See `ProcessRuntime.run`."""
        data = check_run(request)
        spec = self._specs.make(self._lane, request, stdin=has_input(request), tty=None)
        if request.key is None:
            return self._run(request, spec, data)
        return self._once(
            request,
            request.key,
            lambda: self._run(request, spec, data),
            lambda process: result_without_output(process.record(), process.written),
        )

    def collect(self, request: RunRequest, data: bytes) -> Coroutine[Any, Any, tuple[ExitRecord, Collected]]:
        """Run a helper of our own: its record and output, of which nothing is kept. `data`: its input."""
        check_exec(request)
        spec = self._specs.make(self._lane, request, stdin=bool(data), tty=None, is_helper=True)
        return self._run(request, spec, data, self._helped)

    def _helped(self, process: Process, collected: Collected, _: RunRequest) -> tuple[ExitRecord, Collected]:
        self.table.forget(process)
        return process.record(), collected

    async def _run(self, request: RunRequest, spec: StartSpec, data: bytes, tell: Tell = tell_run) -> Any:
        begun = Begun(await self._admitted(spec.flight))
        wanted = Collection(
            input=data,
            output_limit=request.output_limit,
            keep=request.keep,
            on_limit=request.on_limit,
            drain_ms=request.drain_ms,
        )
        try:
            begun.lane_process = await self._lane.run(spec, wanted, begun.ticket.container_index)
            self._go_on()
            process = self._process(request, spec, begun)
            self._begin_run(process, request.timeout_ms, begun)
            assert begun.lane_process.collected is not None
            collected = await begun.lane_process.collected
            started = begun.lane_process.started
            if started is not None and started.cancelled() and not self.table.has(process):
                raise self._keyed.why  # the lane has ended it before it was known to run
            return await self._answer(process, collected, request, tell)
        except BaseException as error:
            spec.flight.end(stages.outcome_of(self._told(error)))
            await self._take_back(begun)
            if (told := self._told(error)) is not error:
                raise told from error
            raise

    def _begin_run(self, process: Process, timeout_ms: int | None, begun: Begun) -> None:
        """The task of a run does not wait for its start: it is woken once, by the result.

        Its time counts from here: the news that it runs may be late, where the command locks its pipes at once.
        """
        started = process.lane_process.started
        if timeout_ms is not None:
            process.timeout = self._loop.call_later(timeout_ms / 1000, self._run_timed_out, process, begun)
        if started is None:
            self._begin(process, None, begun)
        else:
            started.add_done_callback(lambda started: self._run_started(started, process, begun))

    def _run_timed_out(self, process: Process, begun: Begun) -> None:
        if not self._is_ending and not self.table.has(process):
            self._begin(process, None, begun)
        self._end_later(process, "timeout")

    def _run_started(self, started: asyncio.Future[None], process: Process, begun: Begun) -> None:
        if started.cancelled() or process.end_reason is not None or self.table.has(process):
            return  # it is being taken back, or was late
        error = started.exception()
        if error is None:
            try:
                self._begin(process, None, begun)
            except Exception as failure:  # a run that is in no table would never end
                error = failure
        collected = process.lane_process.collected
        if error is not None and collected is not None and not collected.done():
            collected.set_exception(error)

    async def _answer(self, process: Process, collected: Collected, request: RunRequest, tell: Tell) -> Any:
        process.has_ended(collected.status)
        if collected.overloaded:
            raise ExecFailed(
                f"all runs together have more than {self._options.run_output_bytes} bytes of output "
                "(options.run_output_bytes); try again later",
                "overloaded",
            )
        if collected.limited:
            process.was_limited = True
            await self._end(process, 0, "killed")
        if process.ending is not None:
            await asyncio.wait((process.ending,))
        process.written = (collected.stdout.total, collected.stderr.total)
        return tell(process, collected, request)

    # --- taking back ---

    async def _take_back(self, begun: Begun) -> None:
        """The one place where a start ends that came to nothing: refused, failed or cancelled, at whatever point.

        Returns when nothing of it is left: no process, descriptor, socket or place among the live ones.

        Raises:
            ExecFailed: `engine_timeout` or `unsupported`: its tree could not be ended.
        """
        process = begun.process
        if process is not None:
            process.end_reason = process.end_reason or "killed"
        if begun.lane_process is None or never_ran(begun.lane_process):
            self._forget(begun)
        else:
            ending = self._own(self._end_untold(begun, begun.lane_process))
            ending.add_done_callback(lambda _: self._forget(begun))  # it may be cancelled before its first step
            await _completed(ending)

    async def _end_untold(self, begun: Begun, lane_process: LaneProcess) -> None:
        """End a process whose start is not answered. Of a run that has begun the record stays."""
        process = begun.process
        if process is not None and self.table.has(process):
            await self._end(process, self._options.kill_grace_ms, "killed")
        else:
            await lane_process.end_tree(Grace(ends_at=0.0))

    def _forget(self, begun: Begun) -> None:
        lane_process, process = begun.lane_process, begun.process
        if process is not None and self.table.has(process):
            self.table.free_key(process)
            return
        if process is not None:
            process.close()
        elif lane_process is not None:
            if lane_process.collected is None:
                lane_process.close_streams()
            self._give_back(lane_process)
        self._starts.leave(begun.ticket)

    async def _take_back_key(self, key: str) -> None:
        """End a process whose start succeeded in the moment in which the last caller with its key was cancelled."""
        process = self.table.with_key(key)
        if process is not None:
            self.table.free_key(process)
            await _completed(self._own(self._end_told(process)))

    async def _end_told(self, process: Process) -> None:
        await self._end(process, 0, "killed")
        self.table.drained(process)  # its sockets were told to no client

    # --- the end of one ---

    def _exited(self, process: Process) -> None:
        if self.table.is_live(process):  # else it is being taken back
            self.table.exited(process)
            self._starts.leave(process.ticket)

    def _closed(self, process: Process) -> None:
        """Its streams are closed here. Those of a run may still have a writer: they are read on until it is gone."""
        lane_process = process.lane_process
        streams_ended = lane_process.streams_ended
        if streams_ended is None or streams_ended.done():
            self._give_back(lane_process)
        else:
            self._draining.add(lane_process)
            streams_ended.add_done_callback(lambda _: self._drained(lane_process))

    def _drained(self, lane_process: LaneProcess) -> None:
        if lane_process in self._draining:
            self._draining.remove(lane_process)
            self._give_back(lane_process)

    def _give_back(self, lane_process: LaneProcess) -> None:
        closing = lane_process.aclose()
        if closing is not None:
            task = asyncio.ensure_future(closing)
            self._closings.add(task)
            task.add_done_callback(self._closings.discard)

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

    async def listed(self, after: str | None) -> list[ProcessInfo]:
        """See `ProcessRuntime.list_processes`: in the order of their numbers."""
        first = 0 if after is None else self._specs.number(after) + 1
        numbered = [(self._specs.number(process.id), process) for process in self.table]
        numbered.sort(key=operator.itemgetter(0))  # nearly so already: a start may have overtaken another
        processes = [process for number, process in numbered if number >= first]
        blocked = await self._blocked.look(processes, limits.LIST_LOOKS, limits.LOOK_ANSWER_MS)
        return [process.info(blocked.get(process)) for process in processes]

    async def health_now(self) -> dict[str, Any]:
        """As `health`, with how many of the live processes are blocked: of the oldest ones, those first that have an
        output without a client."""
        live = self.table.live()
        oldest = itertools.chain((one for one in live if one.streams.is_unread()), live)
        blocked = await self._blocked.look(dict.fromkeys(oldest), limits.HEALTH_LOOKS, limits.HEALTH_LOOK_MS)
        return {**self.health(), "blocked": len(blocked)}

    def signal(self, process_id: str, signum: int, *, group: bool = False) -> None:
        """See `ProcessRuntime.signal`."""
        process = self.table.find(process_id)
        if process.is_running:
            process.lane_process.signal(signum, group=group)
            process.was_sent_kill = process.was_sent_kill or signum == SIGKILLED

    def resize(self, process_id: str, rows: int, columns: int) -> None:
        """See `ProcessRuntime.resize`."""
        process = self.table.find(process_id)
        if not process.is_tty:
            raise InvalidParams(f"process {process_id} has no terminal", "no_tty", path="$.process_id")
        if process.is_running:
            process.lane_process.resize(rows, columns)

    async def _end(self, process: Process, grace_ms: int, reason: ExitReason) -> None:
        with self._grace(grace_ms) as grace:
            await process.end_tree(grace, reason)

    def _end_later(self, process: Process, reason: ExitReason = "killed") -> None:
        if process.is_running and process.end_reason is None:
            process.end_reason = reason
        process.ending = self._own(self._end_logged(process, reason))

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

    async def end_all(self, why: FastclawError | None = None) -> None:
        """Turn away what waits, end every process; bounded by half of `shutdown_timeout_ms`.

        Parameters:
            why: what those that wait are told; None: that the runtime is shutting down.
        """
        self._keyed.why, self._is_ending = why or self._keyed.why, True
        self._starts.close(why)
        await self._cancel_tasks()
        budget_ms = self._options.shutdown_timeout_ms // 2  # the other half is for the environment
        await self._end_everything(min(self._options.kill_grace_ms, budget_ms), budget_ms)

    async def end_now(self, why: FastclawError) -> None:
        """End every process at once, and go on in a place of which it is told by `move`.

        Parameters:
            why: what those that wait for their start are told.
        """
        self._keyed.why, self._is_ending = why, True
        self._starts.turn_away(why)
        live = self.table.live()
        await self._end_everything(0, environment_limits.RESET_KILL_MS)
        if live:
            await asyncio.wait([process.exited for process in live], timeout=environment_limits.RESET_KILL_MS / 1000)

    def move(self, lane: Lane, environment: dict[str, str]) -> None:
        """Start processes there from now on. The old place is gone, and with it what was not read.

        Parameters:
            lane: of the same kind as before.
            environment: as for the class.
        """
        self._lane, self._specs.environment, self._is_ending = lane, environment, False
        self.table.cut()

    async def _end_everything(self, grace_ms: int, budget_ms: int) -> None:
        processes = self.table.live()
        for process in processes:
            process.end_reason = process.end_reason or "killed"
        with self._grace(grace_ms) as grace:
            try:
                async with asyncio.timeout(budget_ms / 1000):
                    await self._lane.end_all([process.lane_process for process in processes], grace)
            except (TimeoutError, RuntimeSdkError) as error:
                # The environment's own teardown follows, and ends the rest.
                logger.warning("not every process ended in time: %s", error or f"{budget_ms} ms passed")

    def hasten(self) -> None:
        """No more grace for anything that is being ended."""
        for grace in self._graces:
            grace.ends_at = 0.0

    async def aclose(self) -> None:
        """Close every socket. A process whose end was not seen by now gets the exit `unknown`."""
        await self._cancel_tasks()
        self.table.close()
        for lane_process in list(self._draining):
            self._drained(lane_process)
        await asyncio.gather(*self._tasks, *self._closings, return_exceptions=True)
        self._poller.close()
        self._keyed.close()

    def health(self) -> dict[str, Any]:
        """Counts and bounds."""
        statistics = self._admission.statistics()._asdict()
        return {
            **self.table.counts(),
            "draining": len(self._draining),
            **statistics,
            "queue_timeout_ms": self._options.queue_timeout_ms,
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


async def _completed(ending: asyncio.Future[Any]) -> None:
    """Wait for an end that goes on where its caller is cancelled. The pool's own end may cancel it, and ends more."""
    await asyncio.wait([ending])
    if not ending.cancelled():
        ending.result()
