"""A process that a spawner's reaper keeps and whose streams its pump moves: what becomes of it, and how it is ended.

Knows its spawner and its own id there; nothing of records or containers.
"""

from __future__ import annotations

import asyncio
import os
from time import perf_counter_ns
from typing import TYPE_CHECKING, Literal, Protocol

from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import KILLED_CODE, SIGKILLED, Collected, ExitStatus, Grace, LaneProcess, Output
from fastclaw.processes.run_output import cut
from fastclaw.spawner import ending, frames, refusals
from fastclaw.spawner.pump_streams import SpawnStreams

if TYPE_CHECKING:
    from fastclaw.linux.cgroups import OomKills
    from fastclaw.linux.executable import Finding
    from fastclaw.linux.poller import Poller
    from fastclaw.processes.lane import Collection, Memory, Owner, StartSpec, Streams
    from fastclaw.processes.sockets import ProcessSockets
    from fastclaw.runtime import OnDisconnect


class Orders(Protocol):
    """What a spawner can be told about a process. `template`: whose worker it is, if it is one.

    Attributes:
        memory: of the environment, where its limit is to be seen.
    """

    memory: Memory | None

    def signal(self, id: int, signum: int, place: int, template: int = 0, *, group: bool = False) -> None:
        """To the command itself, or to its process group."""

    def end(self, id: int, level: int, place: int = frames.NOWHERE, template: int = 0) -> None:
        """TERM or KILL to its tree."""

    def attach(self, id: int, place: int, which: int, fd: int) -> None:
        """A client's socket, for its pump."""

    def order(self, op: int, id: int, a: int = 0, b: int = 0, place: int = frames.NOWHERE) -> None:
        """Anything else."""


class SpawnProcess(LaneProcess):
    """Parameters:
    id: the request's number at its spawner.
    spec: what it is, for the words of a refusal; not kept longer than that.
    collection: what a run wants of its streams.

    Attributes:
        place: where its slot is at the spawner, once it has said so.
        is_gone: nothing of its tree is left.
        is_free: its pump has nothing left to do for it.
    """

    __slots__ = (
        "_asked_level",
        "_began",
        "_gone",
        "_has_begun",
        "_mark",
        "_spec",
        "_store",
        "_streams",
        "collected",
        "collection",
        "exited",
        "id",
        "is_free",
        "is_gone",
        "place",
        "spawner",
        "started",
        "timings",
    )

    is_worker = False

    def __init__(
        self,
        spawner: Orders,
        id: int,
        spec: StartSpec,
        collection: Collection | None = None,
    ) -> None:
        self.id = id
        self.place = frames.NOWHERE
        self.timings = {}
        loop = asyncio.get_running_loop()
        self.exited = loop.create_future()
        self.started: asyncio.Future[None] = loop.create_future()
        self.collected: asyncio.Future[Collected] | None = None if collection is None else loop.create_future()
        self.is_gone = self.is_free = False
        self._began = perf_counter_ns()
        self._has_begun = False
        self.spawner = spawner
        self._spec: StartSpec | None = spec
        self.collection = collection
        self._store: int | None = None
        self._streams: SpawnStreams | None = None
        self._gone: asyncio.Event | None = None
        self._asked_level = 0
        self._mark = 0 if spawner.memory is None else spawner.memory.mark()

    def serve(self, owner: Owner, sockets: ProcessSockets, watcher: Poller, on_disconnect: OnDisconnect) -> Streams:
        self._streams = SpawnStreams(self, owner, sockets, watcher, on_disconnect)
        return self._streams

    # --- what the spawner says ---

    def on_started(self) -> None:
        """execve has succeeded."""
        if self._has_begun:
            return  # a short run has said so with its end
        self._has_begun = True
        self.timings["spawn"] = (perf_counter_ns() - self._began) // 1000
        self._spec = None
        if self.started.done():  # given up
            self._end_unseen()
            return
        self.started.set_result(None)
        if self._asked_level:  # before anybody had taken the request up, so it may not have been heard
            self._order_end(self._asked_level)

    def on_refused(self, step: int, errno: int, found: Finding | None = None) -> None:
        """It never ran. `found`: what was seen of its file."""
        spec = self._spec
        if spec is not None:
            self.on_dropped(refusals.step_refused(step, errno, spec, found))
        else:
            self.is_free = True
            self.on_gone()

    def on_dropped(self, error: ExecFailed) -> None:
        """Nobody will ever start it."""
        self._fail(error)
        self.is_free = True
        self.on_gone()

    def on_exited(self, wait_status: int, user_us: int, system_us: int, max_rss_kb: int) -> None:
        """The command itself has ended. So it had begun, whatever was said of that."""
        self.on_started()
        usage = {"user_us": user_us, "system_us": system_us, "max_rss_kb": max_rss_kb}
        signum, code = wait_status & 0x7F, wait_status >> 8
        ooms = self._ooms(signum == SIGKILLED or code == KILLED_CODE)
        if signum:
            is_victim = ooms is not None and ooms.is_recent and signum == SIGKILLED
            reason: Literal["oom", "signaled"] = "oom" if is_victim else "signaled"
            self._exit(ExitStatus(reason=reason, signal=signum, usage=usage, ooms=ooms))
        else:
            self._exit(ExitStatus(reason="exited", exit_code=code, usage=usage, ooms=ooms))

    def _ooms(self, is_killed: bool) -> OomKills | None:
        memory = self.spawner.memory
        return None if memory is None else memory.since(self._mark, is_killed)

    def on_store(self, fd: int) -> None:
        """A run has more output than goes along with its end; `fd` is taken over."""
        if self.collection is None or self.collected is None or self._store is not None:
            os.close(fd)
        else:
            self._store = fd

    def on_collected(self, said: memoryview, flags: int) -> None:
        """A run has ended, and its output is there."""
        collection, collected = self.collection, self.collected
        self.collection = None
        if collection is not None and collected is not None and not collected.done():
            stdout, stderr = _outputs(said, self._store, collection)
            collected.set_result(
                Collected(
                    status=self.exited.result(),
                    stdout=stdout,
                    stderr=stderr,
                    incomplete=bool(flags & frames.INCOMPLETE),
                    limited=bool(flags & frames.LIMITED),
                    overloaded=bool(flags & frames.OVERLOADED),
                )
            )
        self._forget_store()

    def on_client(self, op: int, which: int, value: int) -> None:
        """Something of a client, or of its streams."""
        if self._streams is not None:
            self._streams.on_event(op, which, value)

    def on_said(self, data: bytes) -> None:
        """A template's word."""

    def on_gone(self) -> None:
        """Nothing that it started is left."""
        self.is_gone = True
        if self._gone is not None:
            self._gone.set()
        if self._streams is not None:
            self._streams.on_gone()

    def on_free(self) -> None:
        """Its streams are over, and whatever clients it had have been told."""
        self.is_free = True
        if self._streams is not None:
            self._streams.on_free()

    def on_lost(self, why: str) -> None:
        """Its reaper or the whole environment is gone, and so is it, with the output that nobody has read."""
        error = ExecFailed(why, "container_gone")
        self._fail(error)
        if self._streams is not None:
            self._streams.on_lost()
        self._exit(ExitStatus(reason="container_gone", ooms=self._ooms(True)))
        self.is_free = True
        self.on_gone()

    def _fail(self, error: ExecFailed) -> None:
        self._spec = None
        if not self.started.done():
            self.started.set_exception(error)
            self.started.exception()  # whoever waits for `collected` hears it there
        if self.collected is not None and not self.collected.done():
            self.collected.set_exception(error)
            self.collected.exception()
        self._forget_store()

    def _forget_store(self) -> None:
        if self._store is not None:
            os.close(self._store)
            self._store = None

    def _exit(self, status: ExitStatus) -> None:
        if not self.exited.done():
            self.exited.set_result(status)

    # --- what is done to it ---

    def attach(self, which: int, fd: int) -> None:
        """Give its pump a client's socket; taken over.

        Raises:
            ExecFailed: the spawner does not take it.
        """
        self.spawner.attach(self.id, self.place, which, fd)

    def order(self, op: int, a: int = 0) -> None:
        """RELEASE, LOOK or RESIZE, for its pump."""
        self.spawner.order(op, self.id, a, place=self.place)

    def give_up(self, error: ExecFailed) -> None:
        """Its start took too long: it is ended, now or as soon as it runs."""
        self._fail(error)
        self._order_end(frames.LEVEL_KILL)

    def drop(self) -> None:
        """For one of which nobody will ever be told: ended, now or as soon as it runs."""
        if not self.started.done():
            self.started.cancel()
        self._end_unseen()

    def _end_unseen(self) -> None:
        if not self.is_gone:
            self._order_end(frames.LEVEL_KILL)

    def _order_end(self, level: int) -> None:
        self.spawner.end(self.id, level, self.place)

    def resize(self, rows: int, columns: int) -> None:
        if not self.exited.done():
            self.order(frames.RESIZE, rows << 16 | columns)

    def signal(self, signum: int, *, group: bool = False) -> None:
        if not 1 <= signum <= 64:
            raise ExecFailed(f"there is no signal {signum}", "unsupported")
        if not self.exited.done():
            self.spawner.signal(self.id, signum, self.place, group=group)

    async def end_tree(self, grace: Grace) -> None:
        if self.is_gone:
            return
        if not self.started.done() and self.collected is None:
            self.started.cancel()
        if self._gone is None:
            self._gone = asyncio.Event()
        await ending.end(self._ask_end, self._gone, grace)

    def _ask_end(self, level: int) -> None:
        self._asked_level = level
        self._order_end(level)


_SILENCE = Output()


def _outputs(said: memoryview, store: int | None, collection: Collection) -> tuple[Output, Output]:
    """What a DONE brought, and what lies in the file that came before it: stdout at 0, stderr at the limit."""
    *totals, first, second = frames.TOTALS.unpack_from(said)
    if totals == [0, 0]:
        return _SILENCE, _SILENCE
    head, limit = frames.kept_bytes(collection)
    outputs = []
    at = frames.TOTALS.size
    for which, (total, given) in enumerate(zip(totals, (first, second), strict=True)):
        kept = min(total, limit)
        if given == total and total <= limit:
            outputs.append(Output(bytes(said[at : at + given]), b"", total))
        elif limit <= frames.INLINE_BYTES or store is None:
            outputs.append(_unrolled(bytes(said[at : at + min(given, kept)]), total, head))
        else:
            outputs.append(_unrolled(os.pread(store, kept, which * limit), total, head))
        at += given
    if limit > collection.output_limit:
        outputs = [cut(output, collection.output_limit, collection.keep) for output in outputs]
    return outputs[0], outputs[1]


def _unrolled(data: bytes, total: int, head: int) -> Output:
    """What is kept of a stream: its first `head` bytes, and behind them a ring of the last ones."""
    ring = len(data) - head
    if total <= len(data) or ring <= 0:
        return Output(data[:head] if total > len(data) else data, b"", total)
    turn = head + (total - head) % ring
    return Output(data[:head], data[turn:] + data[head:turn], total)
