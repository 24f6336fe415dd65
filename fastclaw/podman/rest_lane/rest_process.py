"""One process of the REST lane: its relay, how its end is learnt, and how it is signalled and ended.

Owns the relay, the pidfd and the task that asks for the exit code. Three sources for the end, the first one wins:

1. The pidfd, where the engine is on this host: the kernel's wait status, also while nobody reads the output (conmon
   then hangs in a write and the engine still says running). Signals become 128+n, as the engine itself would say.
2. The end of the stream, then inspect: the engine saves the exit before it closes the stream.
3. Neither: `unknown`, or `container_gone` where the container no longer runs.

One gap: a command that ended and was reaped before its pidfd could be opened, with more output than the buffers on
the way hold (about 200 KB). The engine itself hangs in a write then, and the exit is known only once that is read.

It does not know how a process is started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw.errors import ExecFailed
from fastclaw.limits import ENGINE_DRAIN_MS, EXIT_POLL_MS, EXIT_SETTLE_MS, GONE_LOOKS_MS, PUMP_LOOK_MS, TREE_DEADLINE_MS
from fastclaw.linux.pidfd import send_signal, wait_status
from fastclaw.podman.rest_lane.exec_calls import ExecCalls, SessionGone
from fastclaw.processes.lane import KILLED_CODE, ExitStatus, Grace
from fastclaw.processes.relayed_streams import Collector, PipedProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.linux.poller import Poller
    from fastclaw.podman.rest_lane.demux import Attached
    from fastclaw.podman.rest_lane.exec_calls import Started
    from fastclaw.podman.rest_lane.trees import EndTree
    from fastclaw.processes.lane import Collected, Collection, Ooms, Owner, Streams
    from fastclaw.processes.listeners import ProcessSockets
    from fastclaw.processes.relayed_streams import OutputBudget
    from fastclaw.runtime import OnDisconnect


logger = logging.getLogger(__name__)


def _nothing() -> None:
    """Nobody wants to know."""


class RestProcess(PipedProcess):
    """See the module. Built by `RestLane.start` only."""

    __slots__ = (
        "_attached",
        "_calls",
        "_collector",
        "_container",
        "_end_tree",
        "_ended_by_us",
        "_eof",
        "_is_closed",
        "_learning",
        "_look",
        "_loop",
        "_marker",
        "_ooms",
        "_orphans",
        "_owner",
        "_pid",
        "_pidfd",
        "_session",
        "_was_killed",
        "collected",
        "exited",
        "on_closed",
        "on_input_over",
        "stderr_fd",
        "stdin_fd",
        "stdout_fd",
        "streams_ended",
        "timings",
    )

    def __init__(
        self,
        calls: ExecCalls,
        container: str,
        session: str,
        marker: str,
        started: Started,
        end_tree: EndTree,
        ooms: Ooms,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls = calls
        self._container = container
        self._session = session
        self._marker = marker
        self._end_tree = end_tree
        self._pid = started.pid
        self._pidfd = -1 if started.pidfd is None else started.pidfd
        self._ended_by_us = self._was_killed = False
        self._ooms = ooms
        self._eof = asyncio.Event()
        self._learning: asyncio.Task[None] | None = None
        self._orphans: asyncio.Task[None] | None = None
        self._attached: Attached | None = None
        self._look: asyncio.TimerHandle | None = None
        self._owner: Owner | None = None
        self._collector: Collector | None = None
        self._is_closed = False
        self.collected: asyncio.Future[Collected] | None = None
        self.streams_ended: asyncio.Future[None] | None = None
        self.exited = self._loop.create_future()
        self.on_closed: Callable[[], None] = _nothing
        self.on_input_over: Callable[[], None] = _nothing
        self.timings = {}
        self.stdin_fd = None
        self.stdout_fd = self.stderr_fd = -1
        if started.exit_code is not None:
            self._settle_code(started.exit_code)
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._on_process_end)

    def attach(self, attached: Attached, *, ended: bool) -> None:
        """Take over the relay, whose callback is `on_stream_end`. `ended`: the command is over already."""
        self._attached = attached
        if ended and self._pidfd < 0:
            self._learn()

    def serve(self, owner: Owner, sockets: ProcessSockets, watcher: Poller, on_disconnect: OnDisconnect) -> Streams:
        """As `LaneProcess`."""
        self._owner = owner
        return super().serve(owner, sockets, watcher, on_disconnect)

    def collect(self, collection: Collection, budget: OutputBudget) -> None:
        """Have its streams fed and collected here.

        Raises:
            OSError: they cannot be watched; they are closed then.
        """
        self._collector = Collector(self, collection, budget, least_drain_ms=ENGINE_DRAIN_MS)
        self.collected, self.streams_ended = self._collector.collected, self._collector.streams_ended

    def end_orphans(self) -> None:
        """Have what it leaves running ended, once it has ended itself."""
        self.exited.add_done_callback(self._on_exit_with_orphans)

    def _on_exit_with_orphans(self, _exited: asyncio.Future[ExitStatus]) -> None:
        if not (self._ended_by_us or self._is_closed):
            self._orphans = self._loop.create_task(self._end_orphans(), name=f"orphans of {self._marker}")

    async def _end_orphans(self) -> None:
        now = Grace(ends_at=0.0)
        try:
            await self._end_tree(self._marker, None, now, TREE_DEADLINE_MS / 1000)
        except ExecFailed as error:
            logger.warning("what process %s left running could not be ended: %s", self._marker, error)

    def on_stream_end(self, error: Exception | None) -> None:
        """The relay has read everything the engine sends. An engine that died may have left the command alive: then the
        pidfd tells when it ends."""
        self._eof.set()
        if not self._is_alive():
            self._learn()

    def signal(self, signum: int, *, group: bool = False) -> None:
        """As `LaneProcess`; by pidfd, so never to a stranger that has the number by now."""
        if self._pidfd >= 0:
            send_signal(self._pidfd, self._pid, signum, group=group)
        elif not self.exited.done():
            raise ExecFailed("this lane reaches its processes only where the engine is on this host", "unsupported")

    async def end_tree(self, grace: Grace) -> None:
        """As `LaneProcess`."""
        self._ended_by_us = True
        root = self._pid if self._is_alive() else None
        await self._end_tree(self._marker, root, grace, TREE_DEADLINE_MS / 1000)
        self._look_later(-1)

    def _look_later(self, reads: int) -> None:
        if self._look is None and not (self._is_closed or self._eof.is_set()):
            self._look = self._loop.call_later(PUMP_LOOK_MS / 1000, self._look_at_engine, reads)

    def _look_at_engine(self, reads_before: int) -> None:
        """Nothing of the tree is left, so the end of its streams is due. The engine's own reader, conmon, sleeps where
        a neighbour of the same user has locked the pipe, and then nobody else can say it."""
        self._look = None
        assert self._attached is not None
        if not self._attached.awaits_engine or self._attached.reads != reads_before:
            self._look_later(self._attached.reads)
            return
        if self._owner is not None:
            self._owner.on_gap()
        self._attached.cut()

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
        if self._attached is not None:
            self._attached.close()
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
        self.on_input_over()
        self.on_closed()

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
            if self._eof.is_set():
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

        While output is unread, the engine may not know of the end (conmon or the engine hang in a write).
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._eof.wait(), EXIT_SETTLE_MS / 1000)
        if not self._eof.is_set() and await self._says_running():
            await self._eof.wait()
        code = None
        with suppress(ExecFailed, SessionGone):
            code = await self._ask_code()
        if code in (None, 128 + signal.SIGKILL) and not self._ended_by_us and await self._container_gone():
            self._settle(ExitStatus(reason="container_gone", ooms=self._ooms(True)))
        elif code is None and self._killed_for_sure():
            self._settle_code(128 + signal.SIGKILL)
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
        for pause_ms in EXIT_POLL_MS:
            state = await self._calls.inspect(self._session)
            if not state.running:
                return state.exit_code if state.exit_code >= 0 else None
            if self._killed_for_sure():
                return 128 + signal.SIGKILL
            await asyncio.sleep(pause_ms / 1000)
        return None

    def _killed_for_sure(self) -> bool:
        """The kernel says SIGKILL: no need to wait until the engine has noticed."""
        if not self._was_killed and self._pidfd >= 0:
            status = wait_status(self._pidfd, self._pid)
            self._was_killed = status is not None and status & 0x7F == signal.SIGKILL
        return self._was_killed

    async def _container_gone(self) -> bool:
        """Asked more than once: a container's processes are gone a moment before the engine says that it is."""
        for pause_ms in GONE_LOOKS_MS:
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
