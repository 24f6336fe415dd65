"""One spawner, seen from fastclaw: starts go out, what becomes of them comes in, and its end is noticed.

Owns both sockets, the ids, and the number of keepers: there is always one that is idle, so that a request that was
sent is taken at once. Knows nothing of containers: whoever brought the spawner up says what its end means.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed, ProtocolError, StartFailed
from fastclaw.protocol import spawner as frames
from fastclaw.spawn import ending, refusals
from fastclaw.transport.outbox import Outbox, close_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.lane import Grace
    from fastclaw.spawn.process import SpawnProcess

_ALL = 0
"""In an END: everything."""

_TERMINAL = socket.CMSG_SPACE(array("i").itemsize)


class Answer:
    """What main answered: an errno (0: done), a number, and a descriptor where one came along."""

    __slots__ = ("errno", "fd", "value")

    def __init__(self, errno: int, value: int, fd: int | None) -> None:
        self.errno, self.value, self.fd = errno, value, fd


async def greet(control: socket.socket, *, confine: bool, keeper_uid: int, on_end: Callable[[], None]) -> Spawner:
    """Shake hands with a spawner that has connected; `control` is taken over, and closed where that fails.

    Parameters:
        confine: take every capability from what it starts.
        keeper_uid: who its keepers become, so that nothing they keep can signal them; only where it may.
        on_end: called once, when it ends without having been told to.

    Raises:
        StartFailed: it ended, said nothing in time, or something else, or another version's words; no descriptors are
            left.
    """
    channel, theirs = None, None
    try:
        control.setblocking(False)
        hello = frames.parse_hello(await _first_frame(control))
        if not hello.lists_children:
            raise StartFailed("this kernel does not list a process's children (CONFIG_PROC_CHILDREN)", "unsupported")
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        theirs.setblocking(True)
        uid = keeper_uid if hello.can_set_user else frames.NO_USER
        socket.send_fds(control, [frames.welcome(confine=confine, keeper_uid=uid)], [theirs.fileno()])
        spawner = Spawner(control, channel, hello, on_end)
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
            raise StartFailed(f"the spawner made no keepers: {error}", error.reason) from error
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
    """Made by `greet`.

    Attributes:
        hello: what it said of itself.
        alive: whether it takes requests.
    """

    def __init__(
        self, control: socket.socket, channel: socket.socket, hello: frames.Hello, on_end: Callable[[], None]
    ) -> None:
        self.hello = hello
        self.alive = True
        self._control, self._channel, self._on_end = control, channel, on_end
        self._loop = asyncio.get_running_loop()
        self._orders, self._requests = Outbox(control, self._loop), Outbox(channel, self._loop)
        self._kept: dict[int, SpawnProcess] = {}
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._starting: dict[int, float] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._keepers = 0
        self._growing: asyncio.Task[None] | None = None
        self._terminals: set[int] = set()
        self._adopted: set[int] = set()
        self._last_id = 0
        self._empty: asyncio.Event | None = None
        self._loop.add_reader(control.fileno(), self._on_control)
        self._loop.add_reader(channel.fileno(), self._on_channel)

    def next_id(self) -> int:
        """A number for a request; 0 is none, and by the time they start over the first ones are long over."""
        self._last_id = self._last_id % frames.NO_USER + 1
        return self._last_id

    def counts(self) -> dict[str, int]:
        """For `health`."""
        return {"keepers": self._keepers, "kept": len(self._kept)}

    # --- keepers ---

    @property
    def has_room(self) -> bool:
        """Whether a keeper is idle. More are made ahead of need."""
        spare = self._idle_keepers
        if spare < limits.SPAWN_SPARE_KEEPERS and self._growing is None and self.alive:
            self._grow()
        return spare > 0

    @property
    def _idle_keepers(self) -> int:
        """A template's workers have its keeper, and none of their own."""
        return self._keepers - len(self._kept) + len(self._adopted)

    async def make_room(self) -> None:
        """Wait for an idle keeper.

        Raises:
            ExecFailed: `overloaded`, no more processes fit; `container_gone`.
        """
        while not self.has_room:
            if self._growing is None:
                raise ExecFailed("the spawner has ended", "container_gone")
            await asyncio.shield(self._growing)

    def _grow(self) -> None:
        self._growing = self._loop.create_task(self._add_keepers())
        self._growing.add_done_callback(self._grown)

    def _grown(self, task: asyncio.Task[None]) -> None:
        self._growing = None
        if not task.cancelled():
            task.exception()  # whoever needs room asks again and gets it first hand

    async def _add_keepers(self) -> None:
        wanted = limits.SPAWN_SPARE_KEEPERS + len(self._kept) // limits.SPAWN_GROWTH_SHARE
        answer = await self.ask(frames.GROW, wanted)
        self._keepers += answer.value
        if answer.errno and not answer.value:
            raise refusals.resources_refused(OSError(answer.errno, os.strerror(answer.errno)))

    def _retire(self) -> None:
        """One that nobody has needed for long is sent home; a burst's worth stays."""
        if self._idle_keepers > limits.SPAWN_IDLE_KEEPERS and self.alive and self._empty is None:
            with suppress(ExecFailed):  # no room for it now: the next one that is let go tries again
                self._requests.send(frames.control(frames.RETIRE), [])
                self._keepers -= 1

    # --- requests ---

    def start(self, process: SpawnProcess, request: frames.Start, fds: list[int], *, terminal: bool = False) -> None:
        """Send a request to whichever keeper is idle; `fds` are closed in any case.

        Raises:
            ExecFailed: `overloaded`, `container_gone`.
        """
        if not self.alive:
            close_all(fds)
            raise ExecFailed("the spawner has ended", "container_gone")
        if request.spilled is not None:
            fds = with_file(fds, request.spilled)
        self._requests.send(request.frame, fds)
        if terminal:
            self._terminals.add(process.id)
        self._await_start(process)

    def adopt(self, process: SpawnProcess, pid: int, template: int) -> None:
        """Have a template's keeper answer for a worker that it has forked.

        Parameters:
            pid: as the worker sees it.
            template: the template's number.

        Raises:
            ExecFailed: `overloaded`, `container_gone`.
        """
        if not self.alive:
            raise ExecFailed("the spawner has ended", "container_gone")
        if len(self._adopted) >= limits.SPAWN_BROOD:
            raise ExecFailed(f"there are {limits.SPAWN_BROOD} workers already; try again later", "overloaded")
        self._orders.send(frames.control(frames.ADOPT, process.id, pid, template), [])
        self._adopted.add(process.id)
        self._await_start(process)

    def _await_start(self, process: SpawnProcess) -> None:
        self._kept[process.id] = process
        self._starting[process.id] = self._loop.time() + limits.SPAWN_START_MS / 1000
        if self._watch is None:
            self._watch = self._loop.call_later(limits.SPAWN_START_MS / 1000, self._look_at_starts)

    def _look_at_starts(self) -> None:
        """A command that is not through its execve in time (a dead file system, a stopped child) is given up."""
        self._watch = None
        now = self._loop.time()
        for id, deadline in list(self._starting.items()):
            if deadline > now:
                self._watch = self._loop.call_at(deadline, self._look_at_starts)
                return
            del self._starting[id]
            text = f"the command was not started within {limits.SPAWN_START_MS} ms"
            self._kept[id].give_up(ExecFailed(text, "engine_timeout"))

    def signal(self, id: int, signum: int, template: int = 0) -> None:
        """A signal to the command itself, if it still runs. `template`: whose worker it is, if it is one."""
        self._order(frames.control(frames.SIGNAL, id, signum, template))

    def end(self, id: int, level: int, template: int = 0) -> None:
        """TERM or KILL to its whole tree, if there is any; a template's is all its workers too."""
        self._order(frames.control(frames.END, id, level, template))

    async def end_everything(self, grace: Grace) -> None:
        """End all that is kept; the caller starts nothing meanwhile.

        Raises:
            ExecFailed: `engine_timeout`.
        """
        for id in self._starting:  # a keeper may yet take it up: then it is ended at once
            self._kept[id].started.cancel()
        if self._kept:
            self._empty = asyncio.Event()
            await ending.end(lambda level: self.end(_ALL, level), self._empty, grace)

    def _order(self, frame: bytes) -> None:
        """Every end of a process may depend on it, so it has no bound of its own but that of the live processes."""
        if self.alive:
            self._orders.send(frame, [], bounded=False)

    async def ask(self, op: int, a: int = 0, b: int = 0, tail: bytes = b"", fds: list[int] | None = None) -> Answer:
        """An order that is answered. `fds` are closed in any case.

        Raises:
            ExecFailed: `container_gone`; `engine_timeout`.
        """
        if not self.alive:
            close_all(fds or [])
            raise ExecFailed("the spawner has ended", "container_gone")
        id = self.next_id()
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answers[id] = answer
        try:
            self._orders.send(frames.control(op, id, a, b, tail), fds or [])
            async with asyncio.timeout(limits.SPAWN_ANSWER_MS / 1000):
                return await answer
        except TimeoutError as error:
            text = f"the spawner did not answer within {limits.SPAWN_ANSWER_MS} ms"
            raise ExecFailed(text, "engine_timeout") from error
        finally:
            self._answers.pop(id, None)

    async def read_file(self, path: str) -> str:
        """A file as it is inside, at most `limits.SPAWN_FILE_BYTES` of it; empty where there is none.

        Raises:
            ExecFailed: as `ask`; `overloaded`, no descriptor is left.
        """
        try:
            fd = os.memfd_create("fastclaw-file", os.MFD_CLOEXEC)
        except OSError as error:
            raise refusals.resources_refused(error) from error
        try:
            await self.ask(frames.READ, tail=os.fsencode(path) + b"\0", fds=[os.dup(fd)])
            return os.pread(fd, limits.SPAWN_FILE_BYTES, 0).decode("utf-8", "replace")
        finally:
            os.close(fd)

    async def listen_inside(self, port: int = 0) -> tuple[socket.socket, int]:
        """A listening socket on 127.0.0.1 in its network namespace, non-blocking, and its port.

        Parameters:
            port: 0 takes one that is free.

        Raises:
            ExecFailed: as `ask`; `io_error`, the port is taken.
        """
        answer = await self.ask(frames.LISTEN, port, limits.SPAWN_LISTEN_BACKLOG)
        if answer.fd is None:
            words = os.strerror(answer.errno or errno.EMFILE)  # without one, it was lost on the way
            raise ExecFailed(f"cannot listen on port {port} inside: {words}", "io_error")
        return socket.socket(fileno=answer.fd), answer.value

    # --- what it says ---

    def _on_channel(self) -> None:
        # As many reads as may have something: one that finds nothing costs as much as one that does.
        for _ in range(min(len(self._kept), limits.SPAWN_EVENT_BURST) or 1):
            try:
                frame, terminal = self._event()
            except BlockingIOError:
                return
            if len(frame) != frames.EVENT.size:
                self._end()
                return
            self._heed(frames.EVENT.unpack(frame), terminal)

    def _event(self) -> tuple[bytes, int | None]:
        """One frame; empty at the end."""
        try:
            if not self._terminals:
                return self._channel.recv(frames.EVENT.size + 1), None
            return _receive_with_fd(self._channel)
        except ConnectionResetError:
            return b"", None

    def _heed(self, event: tuple[int, ...], terminal: int | None) -> None:
        op, id, a, b, user_us, system_us, max_rss_kb = event
        process = self._kept.get(id)
        if process is None:
            if terminal is not None:
                os.close(terminal)
            return  # given up long ago
        if op == frames.EXITED and id in self._starting:
            self._end()  # an end without a beginning: what it says cannot be relied on
        elif op == frames.STARTED:
            self._starting.pop(id, None)
            self._terminals.discard(id)
            process.on_started(terminal)
        elif op == frames.EXITED:
            process.on_exited(a, user_us, system_us, max_rss_kb)
            if b:
                self._let_go(process)
        elif op == frames.EMPTY:
            self._let_go(process)
        elif op == frames.REFUSED:
            self._forget(id)
            process.on_refused(b, a)
        elif op == frames.LOST:
            self._keepers -= 0 if b else 1
            self._forget(id)
            process.on_lost("the process's keeper was killed")

    def _let_go(self, process: SpawnProcess) -> None:
        self._forget(process.id)
        process.on_gone()
        self._retire()

    def _forget(self, id: int) -> None:
        del self._kept[id]
        self._adopted.discard(id)
        self._starting.pop(id, None)
        self._terminals.discard(id)
        if self._empty is not None and not self._kept:
            self._empty.set()

    def _on_control(self) -> None:
        try:
            frame, fd = _receive_with_fd(self._control)
        except BlockingIOError:
            return
        except ConnectionResetError:
            frame, fd = b"", None
        if len(frame) != frames.EVENT.size:
            self._end()
            return
        op, id, errno, value, *_ = frames.EVENT.unpack(frame)
        answer = self._answers.get(id)
        if op == frames.ANSWER and answer is not None and not answer.done():
            answer.set_result(Answer(errno, value, fd))
        elif fd is not None:
            os.close(fd)

    # --- the end ---

    def _end(self) -> None:
        """It is gone, or broke the protocol and has to go. First comes what it had still said."""
        if not self.alive:
            return
        with suppress(OSError):
            while len((event := self._event())[0]) == frames.EVENT.size:
                self._heed(frames.EVENT.unpack(event[0]), event[1])
        self.close()
        self._on_end()

    def close(self) -> None:
        """Let go of it: it ends everything it keeps and itself. Idempotent."""
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
                answer.set_exception(ExecFailed("the spawner has ended", "container_gone"))
        kept, self._kept = self._kept, {}
        if self._empty is not None:
            self._empty.set()
        self._starting.clear()
        for process in kept.values():
            process.on_lost("the environment has ended")


def with_file(fds: list[int], data: bytes) -> list[int]:
    """The descriptors and, last, a file with these bytes; closes them all where there is none to be had."""
    try:
        file = os.memfd_create("fastclaw-start", os.MFD_CLOEXEC)
    except OSError as error:
        close_all(fds)
        raise refusals.resources_refused(error) from error
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    except OSError as error:
        close_all([*fds, file])
        raise refusals.resources_refused(error) from error
    return [*fds, file]


def _receive_with_fd(packets: socket.socket) -> tuple[bytes, int | None]:
    """One event and the descriptor that came along, if there was room for it here (recvmsg(2), MSG_CTRUNC).

    A frame that is too long, or has more, is returned empty.
    """
    frame, extras, flags, _ = packets.recvmsg(frames.EVENT.size, _TERMINAL, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, data in extras:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & socket.MSG_TRUNC or len(fds) > 1:
        close_all(fds)
        return b"", None
    return frame, fds[0] if fds else None
