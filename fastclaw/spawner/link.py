"""The link to one spawner: sends starts and orders, dispatches its events to processes, notices its end.

Owns both sockets, the ids, and the number of reapers: one is always idle, so that a request is taken at once. Knows
nothing of containers: `on_end` says what the spawner's end means.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.errors import ExecFailed, ProtocolError, StartFailed
from fastclaw.linux.packets import Outbox, close_all, receive, with_files
from fastclaw.spawner import frames
from fastclaw.spawner.spawn_process import end_tree, resources_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastclaw.linux.cgroups import MemoryWatch
    from fastclaw.processes.lane import Grace
    from fastclaw.spawner.spawn_process import SpawnProcess

_ALL = 0
"""The id in an END of everything."""

_STAGE_EVENTS = frozenset({frames.STARTED, frames.EXITED, frames.DONE, frames.EMPTY})
"""With the times of the stages that were reached."""

_CLIENT_EVENTS = frozenset({frames.ENDED, frames.LEFT, frames.GAP, frames.WAITING, frames.STUCK, frames.BLOCKED})


class Answer(NamedTuple):
    """The answer to an order: an errno (0: done), a number, and a descriptor where one came along."""

    errno: int
    value: int
    fd: int | None


async def greet(
    control: socket.socket,
    *,
    confine: bool,
    reaper_uid: int,
    collect_bytes: int,
    capabilities: int = 0,
    secret: str | None = None,
    on_end: Callable[[], None],
    on_growth: Callable[[int], None] | None = None,
) -> Spawner:
    """The link to a spawner that has connected, after the handshake; `control` is taken over, and closed on failure.

    Parameters:
        confine: take every capability from commands, but those of `capabilities` from root's.
        reaper_uid: the user of its reapers, so that commands cannot signal them; only where it may change users.
        collect_bytes: what all runs together may collect (`options.run_output_bytes`).
        secret: of one in gVisor, what it must have in its environment as `frames.SECRET_VARIABLE`: another process
            connects for it there. None: it is not in gVisor.
        on_end: called once, when it ends without having been told to.
        on_growth: called before it makes more reapers, with how many there will be.

    Raises:
        StartFailed: it ended, sent nothing in time, or no valid greeting of this version; no descriptors are left.
    """
    channel, theirs = None, None
    try:
        control.setblocking(False)
        first = await _first_frame(control)
        heard_at = monotonic_ns()
        hello = frames.parse_hello(first)
        if secret is not None and hello.env.pop(frames.SECRET_VARIABLE, "") != secret:
            raise StartFailed("what connected does not know the spawner's secret", "protocol_error")
        if not hello.lists_children:
            raise StartFailed("this kernel does not list a process's children (CONFIG_PROC_CHILDREN)", "unsupported")
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        theirs.setblocking(True)
        uid = reaper_uid if hello.can_set_user else frames.NO_USER
        welcome = frames.welcome(
            confine=confine,
            reaper_uid=uid,
            collect_bytes=collect_bytes,
            capabilities=capabilities,
            is_gvisor=secret is not None,
        )
        socket.send_fds(control, [welcome], [theirs.fileno()])
        spawner = Spawner(control, channel, hello, on_end, on_growth)
        spawner.is_gvisor = secret is not None
        if secret is not None:  # gVisor's clocks are its own
            spawner.clock_ahead = hello.now_ns - heard_at
    except BaseException as error:
        control.close()
        if channel is not None:
            channel.close()
        if isinstance(error, OSError):
            raise StartFailed(f"the spawner cannot be reached: {error.strerror}", "io_error") from error
        if isinstance(error, ProtocolError):
            raise StartFailed(str(error), "protocol_error") from error
        raise
    finally:
        if theirs is not None:
            theirs.close()
    try:
        await spawner.make_room()
    except BaseException as error:
        spawner.close()
        if isinstance(error, ExecFailed):
            raise StartFailed(f"the spawner made no reapers: {error}", error.reason) from error
        raise
    return spawner


async def _first_frame(control: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.SPAWN_HELLO_MS / 1000):
            frame = await loop.sock_recv(control, limits.SPAWN_HELLO_BYTES)
    except TimeoutError as error:
        raise StartFailed(f"the spawner said nothing for {limits.SPAWN_HELLO_MS} ms", "engine_timeout") from error
    if not frame:
        raise StartFailed("the spawner ended at once")
    return frame


class Spawner:
    """The link to a spawner; made by `greet`.

    Attributes:
        hello: its greeting.
        alive: whether it takes requests.
        is_gvisor: its kernel is gVisor.
        unmeasured: how many MEASUREs in a row were not answered in time.
        memory: of its environment, for how its processes end; None where that is not known.
        clock_ahead: nanoseconds by which its CLOCK_MONOTONIC is ahead of ours.
    """

    def __init__(
        self,
        control: socket.socket,
        channel: socket.socket,
        hello: frames.Hello,
        on_end: Callable[[], None],
        on_growth: Callable[[int], None] | None = None,
    ) -> None:
        self.hello = hello
        self.alive = True
        self.is_gvisor = False
        self.unmeasured = 0
        self.memory: MemoryWatch | None = None
        self.clock_ahead = 0
        self._control, self._channel, self._on_end, self._on_growth = control, channel, on_end, on_growth
        self._loop = asyncio.get_running_loop()
        self._orders, self._requests = Outbox(control, self._loop), Outbox(channel, self._loop)
        self._kept: dict[int, SpawnProcess] = {}
        self._trees: set[int] = set()
        self._busy: set[int] = set()
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._starting: dict[int, float] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._reapers = 0
        self._growing: asyncio.Task[None] | None = None
        self._workers = 0
        self._last_id = 0
        self._frame = memoryview(bytearray(frames.EVENT_BYTES))
        self._empty: asyncio.Event | None = None
        self._loop.add_reader(control.fileno(), self._on_control)
        self._loop.add_reader(channel.fileno(), self._on_channel)

    def __repr__(self) -> str:
        state = "alive" if self.alive else "ended"
        return f"<Spawner {state}, {self._reapers} reapers, {len(self._busy)} busy, {len(self._trees)} trees>"

    def next_id(self) -> int:
        """The id of the next request. Ids start over at 1 after 2**32 - 1, when the first ones are long over."""
        self._last_id = self._last_id % frames.NO_USER + 1
        return self._last_id

    def counts(self) -> dict[str, int]:
        """Numbers for `health`: reapers, and processes that they keep."""
        return {"reapers": self._reapers, "kept": len(self._trees)}

    # --- reapers ---

    @property
    def has_room(self) -> bool:
        """Whether a reaper is idle."""
        return self._idle_reapers > 0

    @property
    def _idle_reapers(self) -> int:
        """Reapers with idle pumps: a pump with a client or unread output is not idle."""
        return self._reapers - len(self._busy)

    async def make_room(self) -> None:
        """Wait for an idle reaper, and have more made ahead of need.

        Raises:
            ExecFailed: `overloaded`, no more processes fit; `container_gone`.
        """
        self._keep_spare()
        while not self.has_room:
            if self._growing is None:
                raise _ended()
            await asyncio.shield(self._growing)
            self._keep_spare()

    def _keep_spare(self) -> None:
        if self._idle_reapers < limits.SPAWN_SPARE_REAPERS and self._growing is None and self.alive:
            self._grow()

    def _grow(self) -> None:
        self._growing = self._loop.create_task(self._add_reapers())
        self._growing.add_done_callback(self._grown)

    def _grown(self, task: asyncio.Task[None]) -> None:
        if self._growing is task:  # cancelled before it began
            self._growing = None
        if not task.cancelled():
            task.exception()  # retrieved: `make_room` tries again and raises it

    async def _add_reapers(self) -> None:
        try:
            await self._ask_for_reapers()
        finally:
            # Not in `_grown`, which is called a turn later: awaiting a task that is over does not yield to it.
            self._growing = None

    async def _ask_for_reapers(self) -> None:
        wanted = limits.SPAWN_SPARE_REAPERS + len(self._busy) // limits.SPAWN_GROWTH_SHARE
        if self._on_growth is not None:
            self._on_growth(self._reapers + wanted)
        answer = await self.ask(frames.GROW, wanted)
        self._reapers += answer.value
        if answer.errno == errno.EUSERS:
            raise ExecFailed(
                "the environment maps no id but root's: the engine's user has none in /etc/subuid and /etc/subgid, "
                "or had none when its Podman began (podman system migrate ends that); fastclaw doctor has the command "
                "that adds some, or set options.lane to rest",
                "unsupported",
            )
        if answer.errno and not answer.value:
            raise resources_refused(OSError(answer.errno, os.strerror(answer.errno)))

    def _retire(self) -> None:
        """End a reaper where too many are idle; enough for a burst stay."""
        if self._idle_reapers > limits.SPAWN_IDLE_REAPERS and self.alive and self._empty is None:
            with suppress(ExecFailed):  # the outbox is full: tried again when the next reaper becomes idle
                self._requests.send(frames.control(frames.RETIRE), [])
                self._reapers -= 1

    # --- requests ---

    def start(self, process: SpawnProcess, request: frames.Start, fds: Sequence[int] = ()) -> None:
        """Send a request, which an idle pump takes; `fds` are closed in any case.

        Raises:
            ExecFailed: `overloaded`, `container_gone`.
        """
        self._check_alive(fds)
        try:
            with_all = with_files(fds, request.files)
        except OSError as error:
            raise resources_refused(error) from error
        self._requests.send(request.frame, with_all, on_dropped=lambda error: self._drop(process, error))
        self._busy.add(process.id)
        self._trees.add(process.id)
        self._await_start(process)

    def _check_alive(self, fds: Sequence[int] = ()) -> None:
        if not self.alive:
            close_all(fds)
            raise _ended()

    def _drop(self, process: SpawnProcess, error: ExecFailed) -> None:
        """A request had to wait, and cannot be sent."""
        if process.id in self._kept:
            self._forget(process)
            process.on_dropped(error)

    def adopt(self, process: SpawnProcess, pid: int, template: SpawnProcess) -> None:
        """Order a template's reaper to take over a worker that the template has forked.

        Parameters:
            pid: as the worker sees it.

        Raises:
            ExecFailed: `overloaded`, `container_gone`.
        """
        self._check_alive()
        self._orders.send(frames.control(frames.ADOPT, process.id, pid, template.id, template.place), [])

    def disown(self, worker: SpawnProcess) -> None:
        """Forget a worker that was dropped before its adoption: it ends by itself, and no reaper reports that."""
        if worker.id in self._kept:
            self._let_go(worker, is_gone=True, is_free=False)

    def attach(self, id: int, place: int, which: int, fd: int) -> None:
        """Hand a client's socket to a process's pump; `fd` is closed in any case.

        Parameters:
            which: 0 for stdio, 1 for stderr.

        Raises:
            ExecFailed: `overloaded`, `container_gone`.
        """
        self._check_alive([fd])
        self._orders.send(frames.control(frames.ATTACH, id, which, 0, place), [fd])

    def order(self, op: int, id: int, a: int = 0, b: int = 0, place: int = frames.NOWHERE) -> None:
        """Send an order about one process that has no answer: RELEASE, LOOK, RESIZE, FINISH."""
        self._order(frames.control(op, id, a, b, place))

    def _await_start(self, process: SpawnProcess) -> None:
        self._kept[process.id] = process
        self._starting[process.id] = self._loop.time() + limits.SPAWN_START_MS / 1000
        if self._watch is None:
            self._watch = self._loop.call_later(limits.SPAWN_START_MS / 1000, self._look_at_starts)

    def _look_at_starts(self) -> None:
        """Give up commands whose execve is not over in time: a dead file system, a stopped child."""
        self._watch = None
        now = self._loop.time()
        for id, deadline in list(self._starting.items()):
            if deadline > now:
                self._watch = self._loop.call_at(deadline, self._look_at_starts)
                return
            del self._starting[id]
            text = f"the command was not started within {limits.SPAWN_START_MS} ms"
            self._kept[id].give_up(ExecFailed(text, "engine_timeout"))

    def signal(self, id: int, signum: int, place: int, template: int = 0, *, group: bool = False) -> None:
        """Signal the command itself, or its process group, if it still runs. `template`: a worker's template."""
        self._order(frames.control(frames.SIGNAL, id, signum | frames.SIGNAL_GROUP * group, template, place))

    def end(self, id: int, level: int, place: int = frames.NOWHERE, template: int = 0) -> None:
        """Send TERM or KILL to its whole tree, if there is any; a template's includes all its workers."""
        self._order(frames.control(frames.END, id, level, template, place))

    async def end_everything(self, grace: Grace) -> None:
        """End all that is kept; the caller starts nothing meanwhile.

        Raises:
            ExecFailed: `engine_timeout`.
        """
        for id in self._starting:  # a pump may take it yet: then it is ended at once
            self._kept[id].started.cancel()
        if self._trees:
            self._empty = asyncio.Event()
            await end_tree(lambda level: self.end(_ALL, level), self._empty, grace)

    def _order(self, frame: bytes) -> None:
        """Not bounded, since the end of a process may depend on it; the number of live processes bounds it."""
        if self.alive:
            self._orders.send(frame, [], bounded=False)

    async def ask(self, op: int, a: int = 0, b: int = 0) -> Answer:
        """An order to main that is answered.

        Raises:
            ExecFailed: `container_gone`; `engine_timeout`.
        """
        return await self._ask(self._orders, lambda id: frames.control(op, id, a, b), [])

    async def _ask(self, box: Outbox, frame: Callable[[int], bytes], fds: list[int]) -> Answer:
        """`fds` are closed in any case."""
        self._check_alive(fds)
        id = self.next_id()
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answers[id] = answer
        try:
            box.send(frame(id), fds)
            async with asyncio.timeout(limits.SPAWN_ANSWER_MS / 1000):
                return await answer
        except TimeoutError as error:
            text = f"the spawner did not answer within {limits.SPAWN_ANSWER_MS} ms"
            raise ExecFailed(text, "engine_timeout") from error
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:  # in this very turn
                _drop(answer.result().fd)
            raise
        finally:
            self._answers.pop(id, None)

    async def read_file(self, path: str) -> bytes:
        """The content of a file inside, at most `limits.SPAWN_FILE_BYTES` of it; empty where there is none.

        Raises:
            ExecFailed: as `written`.
        """
        return await self.written(frames.READ, 0, os.fsencode(path) + b"\0", limits.SPAWN_FILE_BYTES)

    async def written(self, op: int, a: int, tail: bytes, most: int) -> bytes:
        """What an idle pump writes into a file for READ or MEASURE: what it looks at could make its calls block.

        Raises:
            ExecFailed: `container_gone`; `engine_timeout`; `overloaded`, no descriptor is left.
        """
        await self.make_room()
        try:
            fd = os.memfd_create("fastclaw-file", os.MFD_CLOEXEC)
        except OSError as error:
            raise resources_refused(error) from error
        try:
            await self._ask(self._requests, lambda id: frames.control(op, id, a, tail=tail), [os.dup(fd)])
            return os.pread(fd, most, 0)
        finally:
            os.close(fd)

    async def listen_inside(self, port: int = 0) -> tuple[socket.socket, int]:
        """Listen on 127.0.0.1 in its network namespace: a non-blocking socket, and its port.

        Parameters:
            port: 0 takes a free one.

        Raises:
            ExecFailed: as `ask`; `io_error`, the port is taken.
        """
        answer = await self.ask(frames.LISTEN, port, limits.SPAWN_LISTEN_BACKLOG)
        if answer.fd is None:
            words = os.strerror(answer.errno or errno.EMFILE)  # without an errno, the descriptor was lost on the way
            raise ExecFailed(f"cannot listen on port {port} inside: {words}", "io_error")
        return socket.socket(fileno=answer.fd), answer.value

    # --- what it says ---

    def _on_channel(self) -> None:
        # As many reads as processes may have sent events: one that finds nothing costs as much as one that does.
        for _ in range(min(len(self._kept), limits.SPAWN_EVENT_BURST) or 1):
            try:
                size, fds = receive(self._channel, self._frame)
            except BlockingIOError:
                return
            if size < frames.EVENT.size:
                self._end()
                return
            self._on_event(size, fds)

    def _on_event(self, size: int, fds: Sequence[int]) -> None:
        """One frame, which is in `_frame`."""
        fd = fds[0] if fds else None
        op, id, a, b, user_us, system_us, max_rss_kb, *reached = frames.EVENT.unpack_from(self._frame)
        process = self._kept.get(id)
        if process is None:
            self._on_unknown(op, id, a, b, fd)
            return
        if op in _STAGE_EVENTS:
            process.flight.merge(reached if not self.clock_ahead else [at and at - self.clock_ahead for at in reached])
        if op == frames.STARTED:
            self._on_started(process, b)
        elif op in (frames.DONE, frames.EXITED):
            self._starting.pop(id, None)
            self._let_go(process, is_gone=b & frames.WITH_EMPTY, is_free=b & frames.WITH_FREE)
            process.on_exited(a, user_us, system_us, max_rss_kb)  # last: it may call back
            if op == frames.DONE:
                process.on_collected(self._frame[frames.EVENT.size : size], b)
        elif op == frames.EMPTY:
            self._let_go(process, is_gone=True, is_free=False)
        elif op == frames.FREE:
            self._let_go(process, is_gone=False, is_free=True)
        elif op in _CLIENT_EVENTS:
            process.on_client(op, a, b)
        elif op == frames.SAID:
            process.on_said(bytes(self._frame[frames.EVENT.size : size]))
        elif op == frames.STORE and fd is not None:
            process.on_store(fd)
            return
        elif op == frames.STORE:
            process.on_stored(a, self._frame[frames.EVENT.size : size])
        elif op == frames.REFUSED:
            self._forget(process)
            process.on_refused(b, a, frames.finding(self._frame[frames.EVENT.size : size]))
        elif op == frames.LOST:
            self._reapers -= 0 if b else 1
            self._forget(process)
            process.on_lost("the process's reaper was killed")
        if fd is not None:
            os.close(fd)

    def _on_unknown(self, op: int, id: int, a: int, b: int, fd: int | None) -> None:
        """The answer to a READ; the loss of an idle reaper; or a process that was forgotten long ago."""
        if op == frames.ANSWER:
            self._on_answer(id, a, b, fd)
        elif fd is not None:
            os.close(fd)
        elif op == frames.LOST and not b:
            self._reapers -= 1
            self._keep_spare()

    def _on_answer(self, id: int, errno: int, value: int, fd: int | None) -> None:
        answer = self._answers.get(id)
        if answer is not None and not answer.done():
            answer.set_result(Answer(errno, value, fd))
        else:
            _drop(fd)

    def _on_started(self, process: SpawnProcess, place: int) -> None:
        if place >= 0:
            process.place = place
            if process.is_worker:
                return  # its streams are there; its template's reaper says when it runs
        self._starting.pop(process.id, None)
        process.on_started()

    def _let_go(self, process: SpawnProcess, *, is_gone: int, is_free: int) -> None:
        """A reaper and its pump are idle again once the tree is gone and the streams are over."""
        if is_gone and not process.is_gone:
            self._trees.discard(process.id)
            process.on_gone()
        if is_free and not process.is_free:
            process.on_free()
        if process.is_free and (process.is_gone or process.is_worker):
            self._busy.discard(process.id)
        if process.is_free and process.is_gone:
            self._forget(process)
            self._retire()
        elif self._empty is not None and not self._trees:
            self._empty.set()

    def _forget(self, process: SpawnProcess) -> None:
        id = process.id
        del self._kept[id]
        self._trees.discard(id)
        self._busy.discard(id)
        self._starting.pop(id, None)
        if self._empty is not None and not self._trees:
            self._empty.set()

    def _on_control(self) -> None:
        frame = memoryview(bytearray(frames.EVENT.size))
        try:
            size, fds = receive(self._control, frame)
        except BlockingIOError:
            return
        if size != frames.EVENT.size:
            self._end()
            return
        op, id, errno, value, *_ = frames.EVENT.unpack(frame)
        self._on_answer(id if op == frames.ANSWER else 0, errno, value, fds[0] if fds else None)

    # --- the end ---

    def _end(self) -> None:
        """It has ended, or broken the protocol. Its last events are handled first."""
        if not self.alive:
            return
        with suppress(OSError):
            while (said := receive(self._channel, self._frame))[0] >= frames.EVENT.size:
                self._on_event(*said)
        on_end = self._on_end
        self.close()
        on_end()

    def close(self) -> None:
        """Close its sockets: it ends everything it keeps and itself. Idempotent.

        Here and elsewhere, what has ended lets go of who is told of it: of each environment that has ended some 17 KB
        would stay in cycles, which the collector, seldom as it looks (`limits.GC_THRESHOLDS`), would not find for long.
        """
        if not self.alive:
            return
        self.alive = False
        for box, packets in ((self._orders, self._control), (self._requests, self._channel)):
            box.close()
            self._loop.remove_reader(packets.fileno())
            packets.close()
        if self._watch is not None:
            self._watch.cancel()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(_ended())
        kept, self._kept = self._kept, {}
        if self._empty is not None:
            self._empty.set()
        for those in (self._starting, self._trees, self._busy):
            those.clear()
        for process in kept.values():
            process.on_lost("the environment has ended")
        self._on_end, self._on_growth, self._growing, self._watch = _nothing, None, None, None


def _ended() -> ExecFailed:
    return ExecFailed("the spawner has ended", "container_gone")


def _nothing() -> None:
    """For one that has ended, and has nobody to tell."""


def _drop(fd: int | None) -> None:
    """What has come for nobody."""
    if fd is not None:
        os.close(fd)
