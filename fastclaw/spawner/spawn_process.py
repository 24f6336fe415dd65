"""A process that a spawner's reaper keeps and whose streams its pump moves: how it starts, ends, and is ended.

Also a template and a template's worker, which are such processes. Knows its spawner and its id there; nothing of
records or containers. Errno becomes `ExecFailed` here and nowhere else; sources: execve(2), chdir(2), clone(2),
pipe(2), setrlimit(2), pty(7).
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.executable import why_refused
from fastclaw.processes.lane import KILLED_CODE, SIGKILLED, Collected, ExitStatus, Grace, LaneProcess, Output
from fastclaw.processes.run_output import cut
from fastclaw.spawner import frames
from fastclaw.spawner.pump_streams import SpawnStreams

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastclaw.linux.cgroups import OomKills
    from fastclaw.linux.command_groups import CommandGroup
    from fastclaw.linux.executable import Finding
    from fastclaw.linux.poller import Poller
    from fastclaw.processes.lane import Collection, StartSpec, Streams, StreamsOwner
    from fastclaw.processes.listeners import ProcessSockets
    from fastclaw.runtime import OnDisconnect
    from fastclaw.spawner.link import Spawner


class SpawnProcess(LaneProcess):
    """A process at a spawner: a command with a reaper and a pump.

    Parameters:
        id: of its request.
        spec: for the words of a refusal; dropped once it has started.
        collection: what a run wants of its streams.
        group: its own control group, which is removed once nothing of its tree is left; None: it has none.

    Attributes:
        place: the number of its slot at the spawner, once STARTED has said it.
        is_gone: nothing of its tree is left.
        is_free: its pump has nothing left to do for it.
    """

    __slots__ = (
        "_asked_level",
        "_gone",
        "_group",
        "_has_begun",
        "_mark",
        "_spec",
        "_store",
        "_streams",
        "collected",
        "collection",
        "exited",
        "flight",
        "id",
        "is_free",
        "is_gone",
        "place",
        "spawner",
        "started",
    )

    is_worker = False

    def __init__(
        self,
        spawner: Spawner,
        id: int,
        spec: StartSpec,
        collection: Collection | None = None,
        group: CommandGroup | None = None,
    ) -> None:
        self.id = id
        self.place = frames.NOWHERE
        self.flight = spec.flight
        loop = asyncio.get_running_loop()
        self.exited = loop.create_future()
        self.started: asyncio.Future[None] = loop.create_future()
        self.collected: asyncio.Future[Collected] | None = None if collection is None else loop.create_future()
        self.is_gone = self.is_free = False
        self._has_begun = False
        self.spawner = spawner
        self._spec: StartSpec | None = spec
        self.collection = collection
        self._store: Store | None = None
        self._streams: SpawnStreams | None = None
        self._gone: asyncio.Event | None = None
        self._group = group
        self._asked_level = 0
        self._mark = 0 if spawner.memory is None else spawner.memory.mark()

    def __repr__(self) -> str:
        has_begun = "started" if self._has_begun else "starting"
        state = "gone" if self.is_gone else "exited" if self.exited.done() else has_begun
        return f"<{type(self).__name__} {self.id} {state}>"

    def serve(
        self, owner: StreamsOwner, sockets: ProcessSockets, poller: Poller, on_disconnect: OnDisconnect
    ) -> Streams:
        self._streams = SpawnStreams(self, owner, sockets, poller, on_disconnect)
        return self._streams

    @property
    def whereabouts(self) -> tuple[int, int, int]:
        """For a MEASURE: its id and place, and the place of its template, if it is a worker."""
        return self.id, self.place, frames.NOWHERE

    # --- what the spawner says ---

    def on_started(self) -> None:
        """Its execve has succeeded."""
        if self._has_begun:
            return  # a short run's end implied it
        self._has_begun = True
        self._spec = None
        if self.started.done():  # given up
            self._end_unseen()
            return
        self.started.set_result(None)
        if self._asked_level:  # sent before a pump had the request, so it may have had no effect
            self._order_end(self._asked_level)

    def on_refused(self, step: int, errno: int, found: Finding | None = None) -> None:
        """Its start failed. `found`: what was seen of its file."""
        spec = self._spec
        if spec is not None:
            self.on_dropped(step_refused(step, errno, spec, found))
        else:
            self.is_free = True
            self.on_gone()

    def on_dropped(self, error: ExecFailed) -> None:
        """It will never start."""
        self._fail(error)
        self.is_free = True
        self.on_gone()

    def on_exited(self, wait_status: int, user_us: int, system_us: int, max_rss_kb: int) -> None:
        """The command itself has ended; so it had started."""
        self.on_started()
        usage = {"user_us": user_us, "system_us": system_us, "max_rss_kb": max_rss_kb}
        signum, code = wait_status & 0x7F, wait_status >> 8
        if self._group is not None:
            self._group.look()
        ooms = self._ooms(signum == SIGKILLED or code == KILLED_CODE)
        group = None if self._group is None else self._group.used()
        if signum:
            is_victim = ooms is not None and ooms.is_recent and signum == SIGKILLED
            reason: Literal["oom", "signaled"] = "oom" if is_victim else "signaled"
            self._exit(ExitStatus(reason=reason, signal=signum, usage=usage, ooms=ooms, group=group))
        else:
            self._exit(ExitStatus(reason="exited", exit_code=code, usage=usage, ooms=ooms, group=group))

    def _ooms(self, is_killed: bool) -> OomKills | None:
        if self._group is not None and self._group.has_memory:
            return self._group.ooms()
        memory = self.spawner.memory
        return None if memory is None else memory.since(self._mark, is_killed)

    def on_store(self, fd: int) -> None:
        """A run has more output than its end carries; `fd` is the file that has it, and is taken over."""
        if self.collection is None or self.collected is None or self._store is not None:
            os.close(fd)
        else:
            self._store = fd

    def on_stored(self, which: int, data: memoryview) -> None:
        """The next bytes of a stream that has more than its end carries, where no file can be sent."""
        if self.collection is None or isinstance(self._store, int) or which not in (0, 1):
            return
        if self._store is None:
            self._store = (bytearray(), bytearray())
        room = frames.kept_bytes(self.collection)[1] - len(self._store[which])
        self._store[which].extend(data[: max(room, 0)])

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
        """An event about a client, or its streams."""
        if self._streams is not None:
            self._streams.on_event(op, which, value)

    def on_said(self, data: bytes) -> None:
        """A frame of a template."""

    def on_gone(self) -> None:
        """Nothing that it started is left."""
        self.is_gone = True
        if self._group is not None:  # a turn later: what it used is told with the command's end, which may be next
            asyncio.get_running_loop().call_soon(self._group.release)
        if self._gone is not None:
            self._gone.set()
        if self._streams is not None:
            self._streams.on_gone()

    def on_free(self) -> None:
        """Its streams are over, and its clients have been told."""
        self.is_free = True
        if self._streams is not None:
            self._streams.on_free()

    def on_lost(self, why: str) -> None:
        """Its reaper or the whole environment is gone, and with it the process and its unread output."""
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
            self.started.exception()  # retrieved: a run's caller gets it from `collected`
        if self.collected is not None and not self.collected.done():
            self.collected.set_exception(error)
            self.collected.exception()
        self._forget_store()

    def _forget_store(self) -> None:
        if isinstance(self._store, int):
            os.close(self._store)
        self._store = None

    def _exit(self, status: ExitStatus) -> None:
        if not self.exited.done():
            self.exited.set_result(status)

    # --- what is done to it ---

    def attach(self, which: int, fd: int) -> None:
        """Give its pump a client's socket, which is taken over.

        Raises:
            ExecFailed: the spawner does not take it.
        """
        self.spawner.attach(self.id, self.place, which, fd)

    def order(self, op: int, a: int = 0) -> None:
        """Send its pump RELEASE, LOOK or RESIZE."""
        self.spawner.order(op, self.id, a, place=self.place)

    def give_up(self, error: ExecFailed) -> None:
        """Fail its start, which took too long; end it now, or as soon as it runs."""
        self._fail(error)
        self._order_end(frames.LEVEL_KILL)

    def drop(self) -> None:
        """End it now, or as soon as it runs, and report nothing: its caller is gone."""
        if not self.started.done():
            self.started.cancel()
        self._end_unseen()

    def _end_unseen(self) -> None:
        if not self.is_gone:
            self._order_end(frames.LEVEL_KILL)

    def _order_end(self, level: int) -> None:
        if self._group is not None and level == frames.LEVEL_KILL:
            self._group.kill()
        self.spawner.end(self.id, level, self.place)

    def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size, while it runs."""
        if not self.exited.done():
            self.order(frames.RESIZE, rows << 16 | columns)

    def signal(self, signum: int, *, group: bool = False) -> None:
        """Signal the command, or its process group, while it runs."""
        if not 1 <= signum <= 64:
            raise ExecFailed(f"there is no signal {signum}", "unsupported")
        if not self.exited.done():
            self.spawner.signal(self.id, signum, self.place, group=group)

    async def end_tree(self, grace: Grace) -> None:
        """As `LaneProcess.end_tree`; its reaper says when nothing is left."""
        if self.is_gone:
            return
        if not self.started.done() and self.collected is None:
            self.started.cancel()
        if self._gone is None:
            self._gone = asyncio.Event()
        await end_tree(self._ask_end, self._gone, grace)

    def _ask_end(self, level: int) -> None:
        self._asked_level = level
        self._order_end(level)


_SILENCE = Output()

Store = int | tuple[bytearray, bytearray]
"""Output that is more than a DONE carries: a file with stdout at 0 and stderr at the limit, or what came of each."""


def _outputs(said: memoryview, store: Store | None, collection: Collection) -> tuple[Output, Output]:
    """Both outputs, from a DONE and from what came before it."""
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
        elif isinstance(store, int):
            outputs.append(_unrolled(os.pread(store, kept, which * limit), total, head))
        elif len(store[which]) == kept:
            outputs.append(_unrolled(bytes(store[which]), total, head))
        else:  # the end came first
            outputs.append(Output(bytes(store[which][:head]), b"", total))
        at += given
    if limit > collection.output_limit:
        outputs = [cut(output, collection.output_limit, collection.keep) for output in outputs]
    return outputs[0], outputs[1]


def _unrolled(data: bytes, total: int, head: int) -> Output:
    """Put what is kept of a stream in order: its first `head` bytes, and behind them a ring of the last ones."""
    ring = len(data) - head
    if total <= len(data) or ring <= 0:
        return Output(data[:head] if total > len(data) else data, b"", total)
    turn = head + (total - head) % ring
    return Output(data[:head], data[turn:] + data[head:turn], total)


class ForkedProcess(SpawnProcess):
    """A worker that a template has forked.

    Its tree is kept by its template's reaper; the reaper of its own request has only the pump for its streams. It waits
    for a byte, which it gets once the template's reaper has adopted it.

    Parameters:
        go: the worker has the other end; taken over. Closed without a byte, the worker ends.
        template: the process that has forked it.
    """

    __slots__ = ("_go", "_template")

    is_worker = True

    def __init__(
        self, id: int, spec: StartSpec, collection: Collection | None, go: socket.socket, template: SpawnProcess
    ) -> None:
        super().__init__(template.spawner, id, spec, collection)
        self._go: socket.socket | None = go
        self._template = template

    @property
    def whereabouts(self) -> tuple[int, int, int]:
        """With the place of its template."""
        return self.id, self.place, self._template.place

    def on_started(self) -> None:
        """Its template's reaper has adopted it: it gets its byte."""
        if self._go is not None and not self.started.done():
            with suppress(OSError):  # it was killed; its exit follows
                self._go.send(frames.TEMPLATE_GO)
        self._close_go()
        super().on_started()

    def on_exited(self, wait_status: int, user_us: int, system_us: int, max_rss_kb: int) -> None:
        """The worker has ended, as its template's reaper says."""
        if self.exited.done():
            return  # this is the end of its streams, whose reaper does not know the worker's
        super().on_exited(wait_status, user_us, system_us, max_rss_kb)
        self._finish()

    def _finish(self) -> None:
        """Tell a run's pump that the worker has ended."""
        if self.collected is not None:
            self.order(frames.FINISH)

    def on_refused(self, step: int, errno: int, found: Finding | None = None) -> None:
        """Its fork or its adoption failed."""
        self._close_go()
        super().on_refused(step, errno, found)
        self._finish()

    def on_lost(self, why: str) -> None:
        """Its template's reaper, its own or the environment is gone."""
        self._close_go()
        super().on_lost(why)
        self._finish()

    def signal(self, signum: int, *, group: bool = False) -> None:
        """Signal the worker, or its process group, by its template's reaper."""
        if not self.exited.done():
            self.spawner.signal(self.id, signum, self._template.place, self._template.id, group=group)

    def _order_end(self, level: int) -> None:
        self._close_go()
        self.spawner.end(self.id, level, self._template.place, self._template.id)

    def _close_go(self) -> None:
        if self._go is not None:
            self._go.close()
            self._go = None


class TemplateProcess(SpawnProcess):
    """The process of a template. Its pump passes on the frames from its descriptor 3.

    Attributes:
        hear: called with each frame; an empty one is the end.
    """

    __slots__ = ("hear",)

    hear: Callable[[bytes], None]

    def on_said(self, data: bytes) -> None:
        """A frame of the template."""
        self.hear(data)


# --- ending a tree ---


async def end_tree(order: Callable[[int], None], gone: asyncio.Event, grace: Grace) -> None:
    """TERM, a grace, KILL, and proof of the end: for one tree, or for all that a spawner keeps.

    Parameters:
        order: has a spawner send TERM or KILL to all that is meant.
        gone: set when a spawner has said that nothing is left.

    Raises:
        ExecFailed: `engine_timeout`: something sits in an uninterruptible call.
    """
    loop = asyncio.get_running_loop()
    if loop.time() < grace.ends_at:
        order(frames.LEVEL_TERM)
        while not gone.is_set() and (left := grace.ends_at - loop.time()) > 0:
            await _set_within(gone, min(left, limits.GRACE_LOOK_MS / 1000))
    if not gone.is_set():
        order(frames.LEVEL_KILL)
        await _set_within(gone, limits.TREE_DEADLINE_MS / 1000)
    if not gone.is_set():
        raise ExecFailed(f"the process tree did not end within {limits.TREE_DEADLINE_MS} ms", "engine_timeout")


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


# --- what the kernel refuses, in the words of the contract ---

_OVERLOADED = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC}
_BY_ERRNO = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.ENOEXEC: "not_executable",
    errno.EINVAL: "not_executable",
    errno.ELIBBAD: "not_executable",
    errno.EISDIR: "not_executable",
    errno.ETXTBSY: "file_busy",
    errno.E2BIG: "too_long",
    errno.ENAMETOOLONG: "too_long",
    **dict.fromkeys(_OVERLOADED, "overloaded"),
}

_OF_THE_FILE = {"not_found", "permission_denied", "not_executable"}
"""Reasons for which its file is to blame, or one that it needs."""


def step_refused(step: int, number: int, spec: StartSpec, found: Finding | None = None) -> ExecFailed:
    """The error for a failed start.

    Parameters:
        step: the one that failed, of `frames`'s STEPs.
        number: its errno.
        spec: what was to be started.
        found: what was seen of its file.
    """
    words = os.strerror(number)
    if step == frames.STEP_EXEC:
        reason = _BY_ERRNO.get(number, "io_error")
        if reason in _OF_THE_FILE and found is not None:
            words = why_refused(found, is_format=reason == "not_executable") or words
        return ExecFailed(f"{spec.cmd[0]!r}: {words}", reason)
    if number in _OVERLOADED:
        return resources_refused(OSError(number, words))
    if step == frames.STEP_ADOPT:
        return ExecFailed(f"the worker ended before template {spec.template!r} had handed it over", "template_gone")
    if step == frames.STEP_DIRECTORY:
        return ExecFailed(f"working directory {spec.working_dir!r}: {words}", "bad_working_dir")
    if step == frames.STEP_USER and number == errno.EINVAL:  # setuid(2)
        return ExecFailed(f"user {spec.user!r}: the environment's user namespace has no such id", "unknown_user")
    if step == frames.STEP_USER and number == errno.EPERM:
        return ExecFailed(
            f"user {spec.user!r} is fastclaw's own in this environment; take another", "permission_denied"
        )
    what = {
        frames.STEP_TTY: "no pseudo-terminal",
        frames.STEP_LIMIT: f"limits {spec.limits}",
        frames.STEP_USER: f"user {spec.user!r}",
        frames.STEP_JOIN: f"a control group for limits {spec.limits}",
    }.get(step, "the process")
    if step == frames.STEP_LIMIT and number == errno.EPERM:
        words += "; a process here may lower its hard limits and not raise them"
    return ExecFailed(f"{what}: {words}", "permission_denied" if number == errno.EPERM else "io_error")


def resources_refused(error: OSError) -> ExecFailed:
    """The error for a lack of descriptors, memory or processes."""
    reason = "overloaded" if error.errno in _OVERLOADED else "io_error"
    words = os.strerror(error.errno) if error.errno else str(error)
    return ExecFailed(f"there is no room for one more process: {words}", reason)


def text_refused(command: str, error: ValueError) -> ExecFailed:
    """The error for an argument or variable that no process can be given: a NUL inside, or no valid text."""
    return ExecFailed(f"{command!r}: {error}", "invalid_params")
