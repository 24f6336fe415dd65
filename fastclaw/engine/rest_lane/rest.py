"""The REST lane: starts processes through the API socket of Podman or Docker, with create, start and inspect.

Works with any service; what needs the engine on this host (signals, ends of trees in milliseconds, exits while
nothing is read) says so. How many starts a container gets at once is the runtime's decision.

`_Launch` is the sequence of one start, and takes everything back when it fails or is cancelled. `RestProcess` owns a
process's demultiplexer, its pidfd and the task that asks for the exit code. There are three sources for the end, the
first one wins:

1. The pidfd, where the engine is on this host: the kernel's wait status, also while the output is not read (conmon
   then hangs in a write and the engine still says running). Signals become 128+n, as the engine itself would say.
2. The end of the stream, then inspect: the engine saves the exit before it closes the stream.
3. Neither: `unknown`, or `container_gone` where the container no longer runs.

One gap: a command that ended and was reaped before its pidfd could be opened, with more output than the buffers on
the way hold (about 200 KB). The engine itself hangs in a write then, and the exit is known only once that is read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from fastclaw import limits, stages
from fastclaw.engine.dialects import PODMAN
from fastclaw.engine.rest_lane.archive_files import ArchiveFiles
from fastclaw.engine.rest_lane.demux import Demux
from fastclaw.engine.rest_lane.exec_calls import (
    ExecCalls,
    SessionGone,
    Started,
    confirm,
    create_body,
    explained,
    refuse_impossible,
)
from fastclaw.engine.rest_lane.stdin import StdinHelpers
from fastclaw.engine.rest_lane.trees import EndTree, end_remote_tree, end_tree
from fastclaw.errors import ExecFailed
from fastclaw.linux.packets import close_all
from fastclaw.linux.proc import send_signal, wait_status
from fastclaw.linux.sockets import is_readable
from fastclaw.processes.lane import KILLED_CODE, ExitStatus, Grace, Lane, LaneProcess, ooms_from_now
from fastclaw.processes.relayed_streams import Collector, OutputBudget, PipedProcess
from fastclaw.spawner import users

if TYPE_CHECKING:
    from fastclaw.engine.container import Container
    from fastclaw.engine.containers import Containers
    from fastclaw.engine.dialects import Dialect
    from fastclaw.engine.rest_lane.http_client import Upgraded
    from fastclaw.engine.rest_lane.stdin import Input
    from fastclaw.linux.poller import Poller
    from fastclaw.processes.lane import Collected, Collection, Ooms, StartSpec, Streams, StreamsOwner
    from fastclaw.processes.listeners import ProcessSockets
    from fastclaw.runtime import OnDisconnect

logger = logging.getLogger(__name__)


class RestLane(Lane):
    """Starts processes in running containers.

    Parameters:
        url: `unix:///path` or `tcp://host:port` of the engine's API.
        containers: where execs go.
        local: the engine's processes are this host's, and this process may signal them. Elsewhere a second exec ends
            trees.
        timeout_ms: deadline of each engine call.
        run_output_bytes: what all runs may hold together.
        reopens: a process may open /dev/stdout again.
        dialect: how the engine is asked.

    Raises:
        ValueError: the URL has another form.
    """

    name = "rest"

    def __init__(
        self,
        url: str,
        containers: Containers,
        *,
        local: bool,
        timeout_ms: int = limits.ENGINE_TIMEOUT_MS,
        run_output_bytes: int = limits.RUN_OUTPUT_BYTES,
        reopens: bool = True,
        dialect: Dialect = PODMAN,
    ) -> None:
        offered = {
            "files": len(containers) == 1,
            "user": True,
            "kill_tree": True,
            "reopen_stdio": reopens,
            "signal": local,
        }
        self.capabilities = [name for name, is_offered in offered.items() if is_offered]
        self._calls = ExecCalls(url, timeout_ms, dialect)
        self._containers = containers
        self._local = local
        self._budget = OutputBudget(run_output_bytes)
        self._stdin_helpers = StdinHelpers()

    def files(self, directory: str) -> ArchiveFiles:
        """The files of its container. `directory`: where a relative path starts."""
        return ArchiveFiles(self._calls, self._containers, directory)

    def __repr__(self) -> str:
        return f"<RestLane {'local' if self._local else 'remote'} {self._calls!r}>"

    async def start(self, spec: StartSpec, container_index: int) -> RestProcess:
        """As `Lane.start`. A cancelled start goes on for a moment in the background of its own cancellation: the engine
        cannot be told to stop, so what it starts is ended as soon as it is known."""
        refuse_impossible(spec)
        container = self._containers.take(container_index)
        try:
            process = await self._start_in(container, await self._with_home(container.id, spec))
        except BaseException as error:
            container.give_back()
            if isinstance(error, ExecFailed) and error.reason == "container_gone":
                container.mark_dead()
            raise
        process.at_end.callback(container.give_back)
        return process

    async def run(self, spec: StartSpec, collection: Collection, container_index: int) -> RestProcess:
        """As `Lane.run`: the output is collected from the engine's stream."""
        process = await self.start(spec, container_index)
        try:
            process.collect(collection, self._budget)
        except OSError:
            await asyncio.shield(_discard_run(process))
            raise
        return process

    async def _with_home(self, container: str, spec: StartSpec) -> StartSpec:
        """With the HOME of a user that is a number, as on the spawn lane: the engine sets none without an entry."""
        name = "" if spec.user is None else spec.user.partition(":")[0]
        if not name.isdecimal():
            return spec
        passwd = (await self._calls.look_at(container, "/etc/passwd")).head
        with suppress(ExecFailed):
            home = users.resolve(name, passwd.decode("utf-8", "replace"), "").home
            return structs.replace(spec, base_env={"HOME": home, **spec.base_env})
        return spec

    async def _start_in(self, container: Container, spec: StartSpec) -> RestProcess:
        end = end_tree if self._local else partial(end_remote_tree, self._calls, container.id)
        launch = _Launch(self._calls, self._stdin_helpers if self._local else None, spec, container, end)
        task = asyncio.get_running_loop().create_task(launch.run(), name=f"start of {spec.process_id}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await launch.take_back(task)
            raise

    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        """As `Lane.end_all`. On another host one exec per tree would take too long: there the containers are ended."""
        if self._local:
            await asyncio.gather(*(_end_quietly(process, grace) for process in processes))
        await self._containers.kill()
        if processes:
            await asyncio.wait([process.exited for process in processes])

    def health(self) -> dict[str, object]:
        """As `Lane.health`."""
        return {"name": self.name, "idle_connections": self._calls.idle(), "local": self._local}

    async def aclose(self) -> None:
        """Close the kept connections, end the helpers. Processes keep theirs until their own `aclose`, which comes
        before."""
        self._calls.close()
        await self._stdin_helpers.aclose()


class _Launch:
    """One start under way.

    Parameters:
        helpers: for input without the engine in between; None where the engine is not on this host.
    """

    def __init__(
        self, calls: ExecCalls, helpers: StdinHelpers | None, spec: StartSpec, container: Container, end_tree: EndTree
    ) -> None:
        self._calls = calls
        self._helpers = helpers
        self._end_tree = end_tree
        self._spec = spec
        self._container = container.id
        self._ooms = ooms_from_now(container.memory)
        self._abandoned = self._may_run = False

    async def run(self) -> RestProcess:
        """The whole start."""
        try:
            return await self._run()
        except SessionGone as error:
            raise ExecFailed("the container stopped during the start", "container_gone") from error
        except BaseException as error:
            if self._may_run:
                await self._end_leftovers()
            if isinstance(error, ExecFailed) and not self._abandoned:
                raise await explained(error, self._calls, self._container, self._spec) from error
            raise

    async def take_back(self, task: asyncio.Task[RestProcess]) -> None:
        """After a cancellation: let the engine finish, then end what it started."""
        self._abandoned = True
        try:
            await asyncio.wait((task,), timeout=limits.ABANDONED_START_MS / 1000)
        finally:
            if not task.done():
                task.cancel()
        await asyncio.wait((task,))
        if task.cancelled() or task.exception() is not None:
            return
        task.result().close_streams()
        try:
            await self._end_leftovers()
        finally:
            await task.result().aclose()

    async def _run(self) -> RestProcess:
        calls, spec = self._calls, self._spec
        if spec.stdin and self._helpers is not None:
            self._helpers.prepare()
        spec.flight.reach(stages.SENT)
        session = await calls.create(self._container, create_body(spec))
        if self._abandoned:
            raise asyncio.CancelledError
        spec.flight.reach(stages.TAKEN)
        self._may_run = True
        hijacked = await self._attach(session)
        try:
            is_local = self._helpers is not None
            started = await confirm(calls, session, hijacked.sock, hijacked.leftover, spec, local=is_local)
            process = await self._assemble(session, hijacked, started)
        except BaseException:
            hijacked.sock.close()
            raise
        spec.flight.reach(stages.STARTED)
        return process

    async def _attach(self, session: str) -> Upgraded:
        try:
            return await self._calls.start(session)
        except ExecFailed as error:
            # An answer, even a refusal, means that nothing runs; silence or a broken connection do not.
            self._may_run = error.retryable and error.reason != "container_gone"
            raise

    async def _assemble(self, session: str, hijacked: Upgraded, started: Started) -> RestProcess:
        """Pipes, relay and process; on failure (no descriptors left) nothing stays open but the connection."""
        direct = None
        try:
            direct = await self._direct_input(started)
            pipes = _pipes(3 if self._spec.stdin and direct is None else 2)
        except BaseException as error:
            if started.pidfd is not None:
                os.close(started.pidfd)
            if direct is not None:
                os.close(direct.fd)
                direct.close()
            if isinstance(error, OSError):
                raise ExecFailed(f"no pipes for the process: {error.strerror}", "io_error") from error
            raise
        marker = self._spec.process_id
        process = RestProcess(self._calls, self._container, session, marker, started, self._end_tree, self._ooms)
        process.stdout_fd, stdout, process.stderr_fd, stderr = pipes[:4]
        stdin, process.stdin_fd = pipes[4:] or (None, None)
        if stdin is not None and (started.ended or (started.pidfd is not None and is_readable(started.pidfd))):
            # No reader is left. The engine would throw away what it has not passed on yet, when input comes for a
            # command that has ended (attachExecHTTP in libpod/oci_conmon_exec_common.go, 4.3.1).
            os.close(stdin)
            stdin = None
        if direct is not None:
            process.stdin_fd = direct.fd
            process.at_end.callback(direct.close)
            with suppress(OSError):  # the command has ended and the engine with it
                hijacked.sock.shutdown(socket.SHUT_WR)  # the engine closes its own end, so that ours is the last one
        merged = self._spec.merge_stderr
        demux = Demux(hijacked.sock, started.head, stdin, stdout, stderr, process.on_stream_end, merge_stderr=merged)
        if self._spec.orphans == "kill":
            process.end_orphans()
        process.attach(demux, ended=started.ended)
        return process

    async def _direct_input(self, started: Started) -> Input | None:
        """A way into stdin with nothing of the engine's in between, where there is one."""
        if self._helpers is None or not self._spec.stdin or started.pidfd is None or started.ended:
            return None
        return await self._helpers.open(started.pid)

    async def _end_leftovers(self) -> None:
        """End whatever the engine started for this spec. A failure here must not hide the reason for it; what is left
        carries the marker and ends with its container."""
        now = Grace(ends_at=asyncio.get_running_loop().time())
        with suppress(ExecFailed):
            await self._end_tree(self._spec.process_id, None, now, limits.ABANDONED_KILL_MS / 1000)


def _pipes(count: int) -> list[int]:
    """Read and write end, `count` times; all or none."""
    made: list[int] = []
    try:
        for _ in range(count):
            made += os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        close_all(made)
        raise
    return made


async def _discard_run(process: RestProcess) -> None:
    """One whose streams could not be watched, and are closed."""
    await _end_quietly(process, Grace(ends_at=0.0))
    await process.aclose()


async def _end_quietly(process: LaneProcess, grace: Grace) -> None:
    with suppress(ExecFailed):
        await process.end_tree(grace)


class RestProcess(PipedProcess):
    """A process that the engine started, with how its end is learnt. Made by `RestLane.start` only.

    Attributes:
        at_end: what `aclose` calls last.
    """

    def __init__(
        self, calls: ExecCalls, container: str, session: str, marker: str, started: Started, end: EndTree, ooms: Ooms
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls, self._container, self._session = calls, container, session
        self._marker = marker
        self._end_tree = end
        self._pid = started.pid
        self._pidfd = -1 if started.pidfd is None else started.pidfd
        self._ended_by_us = self._was_killed = False
        self._ooms = ooms
        self._eof = asyncio.Event()
        self._learning: asyncio.Task[None] | None = None
        self._orphans: asyncio.Task[None] | None = None
        self._demux: Demux | None = None
        self._look: asyncio.TimerHandle | None = None
        self._owner: StreamsOwner | None = None
        self._collector: Collector | None = None
        self._is_closed = False
        self.collected: asyncio.Future[Collected] | None = None
        self.streams_ended: asyncio.Future[None] | None = None
        self.exited = self._loop.create_future()
        self.at_end = ExitStack()
        self.stdin_fd = None
        self.stdout_fd = self.stderr_fd = -1
        if started.exit_code is not None:
            self._settle_code(started.exit_code)
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._on_process_end)

    def __repr__(self) -> str:
        state = str(self.exited.result()) if self.exited.done() else "running"
        return f"<RestProcess {self._marker} pid={self._pid} {state}>"

    def attach(self, demux: Demux, *, ended: bool) -> None:
        """Take over the relay, whose callback is `on_stream_end`. `ended`: the command is over already."""
        self._demux = demux
        if ended and self._pidfd < 0:
            self._learn()

    def serve(
        self, owner: StreamsOwner, sockets: ProcessSockets, poller: Poller, on_disconnect: OnDisconnect
    ) -> Streams:
        """As `LaneProcess`."""
        self._owner = owner
        return super().serve(owner, sockets, poller, on_disconnect)

    def collect(self, collection: Collection, budget: OutputBudget) -> None:
        """Have its streams fed and collected here.

        Raises:
            OSError: they cannot be watched; they are closed then.
        """
        self._collector = Collector(self, collection, budget, least_drain_ms=limits.ENGINE_DRAIN_MS)
        self.collected, self.streams_ended = self._collector.collected, self._collector.streams_ended

    def end_orphans(self) -> None:
        """Have what it leaves running ended, once it has ended itself."""
        self.exited.add_done_callback(self._on_exit_with_orphans)

    def _on_exit_with_orphans(self, _exited: asyncio.Future[ExitStatus]) -> None:
        if not (self._ended_by_us or self._is_closed):
            self._orphans = self._loop.create_task(self._end_orphans(), name=f"orphans of {self._marker}")

    async def _end_orphans(self) -> None:
        try:
            await self._end_tree(self._marker, None, Grace(ends_at=0.0), limits.TREE_DEADLINE_MS / 1000)
        except ExecFailed as error:
            logger.warning("what process %s left running could not be ended: %s", self._marker, error)

    def on_stream_end(self, error: Exception | None) -> None:
        """The relay has read everything the engine sends. An engine that died may have left the command alive: then the
        pidfd tells when it ends."""
        self._eof.set()
        if not self._is_alive():
            self._learn()

    def signal(self, signum: int, *, group: bool = False) -> None:
        """As `LaneProcess`; by pidfd, so never to another process that has the number by now."""
        if self._pidfd >= 0:
            send_signal(self._pidfd, self._pid, signum, group=group)
        elif not self.exited.done():
            raise ExecFailed("this lane reaches its processes only where the engine is on this host", "unsupported")

    async def end_tree(self, grace: Grace) -> None:
        """As `LaneProcess`."""
        self._ended_by_us = True
        root = self._pid if self._is_alive() else None
        await self._end_tree(self._marker, root, grace, limits.TREE_DEADLINE_MS / 1000)
        self._look_later(-1)

    def _look_later(self, reads: int) -> None:
        if self._look is None and not (self._is_closed or self._eof.is_set()):
            self._look = self._loop.call_later(limits.PUMP_LOOK_MS / 1000, self._look_at_engine, reads)

    def _look_at_engine(self, reads_before: int) -> None:
        """Nothing of the tree is left, so the end of its streams is due. The engine's own reader, conmon, sleeps where
        a neighbour of the same user has locked the pipe, and then nothing else can say it."""
        self._look = None
        assert self._demux is not None
        if not self._demux.awaits_engine or self._demux.reads != reads_before:
            self._look_later(self._demux.reads)
            return
        if self._owner is not None:
            self._owner.on_gap()
        self._demux.cut()

    async def aclose(self) -> None:
        """As `LaneProcess`."""
        self._is_closed = True
        self._forget_pidfd_reader()
        if self._look is not None:
            self._look.cancel()
        ending = None
        if self._collector is not None:
            self._collector.close()
            ending, self._collector = self._collector.ending, None
        if self._demux is not None:
            self._demux.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait((self._learning,))
        for task in (self._orphans, ending):
            if task is not None:
                await asyncio.wait((task,))
        self._settle(ExitStatus(reason="unknown"))
        self.at_end.close()

    def _is_alive(self) -> bool:
        """Runs, or is a zombie: the pidfd has not been readable yet, or is just now."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except OSError:
            return False
        return True

    def _on_process_end(self) -> None:
        """The pidfd became readable: a zombie, or reaped already."""
        self._forget_pidfd_reader()
        status = wait_status(self._pidfd, self._pid)
        if status is None:
            if self._eof.is_set() or self._calls.exit_look_s is not None:
                self._learn()  # else the end of the stream will tell
            return
        signum = status & 0x7F
        self._was_killed = signum == signal.SIGKILL
        if self._was_killed and not self._ended_by_us:
            self._learn()
        else:
            self._settle_code(128 + signum if signum else status >> 8)

    def _forget_pidfd_reader(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)

    def _learn(self) -> None:
        if self._learning is None and not self.exited.done():
            self._learning = self._loop.create_task(self._learn_end(), name=f"exit of {self._marker}")

    async def _learn_end(self) -> None:
        """Ask the engine. Bounded, once the stream has ended: each call has its deadline, and there is a last pause.

        While output is unread, Podman may not know of the end (conmon or the engine hang in a write).
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._eof.wait(), limits.EXIT_SETTLE_MS / 1000)
        while not self._eof.is_set() and await self._says_running():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._eof.wait(), self._calls.exit_look_s)
        code = None
        with suppress(ExecFailed, SessionGone):
            code = await self._ask_code()
        if code in (None, KILLED_CODE) and not self._ended_by_us and await self._container_gone():
            self._settle(ExitStatus(reason="container_gone", ooms=self._ooms(True)))
        elif code is None and self._killed_for_sure():
            self._settle_code(KILLED_CODE)
        elif code is None:
            self._settle(ExitStatus(reason="unknown"))
        else:
            self._settle_code(code)

    async def _says_running(self) -> bool:
        if self._killed_for_sure():
            return False
        with suppress(ExecFailed, SessionGone):
            return (await self._calls.inspect(self._session)).running
        return False

    async def _ask_code(self) -> int | None:
        """The engine's exit code; None where it does not know, or still says running."""
        for pause_ms in (0, *limits.EXIT_POLL_MS):
            await asyncio.sleep(pause_ms / 1000)
            state = await self._calls.inspect(self._session)
            if not state.running:
                return state.exit_code if state.exit_code is None or state.exit_code >= 0 else None
            if self._killed_for_sure():
                return KILLED_CODE
        return None

    def _killed_for_sure(self) -> bool:
        """The kernel says SIGKILL: no need to wait until the engine has noticed."""
        if not self._was_killed and self._pidfd >= 0:
            status = wait_status(self._pidfd, self._pid)
            self._was_killed = status is not None and status & 0x7F == signal.SIGKILL
        return self._was_killed

    async def _container_gone(self) -> bool:
        """Asked more than once: a container's processes are gone a moment before the engine says that it is."""
        for pause_ms in limits.GONE_LOOKS_MS:
            await asyncio.sleep(pause_ms / 1000)
            try:
                if not await self._calls.is_running(self._container):
                    return True
            except ExecFailed as error:
                return error.reason == "container_gone"
        return False

    def _settle_code(self, code: int) -> None:
        ooms = self._ooms(code == KILLED_CODE)
        is_victim = ooms is not None and ooms.is_recent and code == KILLED_CODE and self._killed_for_sure()
        self._settle(ExitStatus(reason="oom" if is_victim else "exited", exit_code=code, ooms=ooms))

    def _settle(self, status: ExitStatus) -> None:
        if not self.exited.done():
            self.exited.set_result(status)
