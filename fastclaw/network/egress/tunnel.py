"""A tunnel: two connected sockets, and the bytes of each go to the other.

Little is copied through one buffer that all tunnels share; what proves to be bulk is spliced through a borrowed pipe,
without coming to this process at all (splice(2)). Bytes are taken from a socket only when the other one has taken all
that was taken before: that is the backpressure, and the bound of what a tunnel holds. An idle tunnel has no pipe; where
all are lent, bytes are copied, which always works.

A half-close is passed on once everything before it has been. What breaks off is not made to look like an end: the
other side is reset then (RFC 9293, 3.5), after it got what was still readable.

Streams wake this process for half a megabyte, and not for each segment, since each wake-up costs the sender, in whose
system call it happens, as much as this process. But of less than a batch the kernel says nothing then (SO_RCVLOWAT,
socket(7)), so a timer looks at every stream; where nothing has moved since it looked before, what came is told at once,
and so is every byte until it has proved to be a stream again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from typing import TYPE_CHECKING, Protocol

from fastclaw import network_limits
from fastclaw.linux import splice
from fastclaw.linux.poller import BROKEN, EDGES, EDGES_BOTH_WAYS, ENDED, READABLE, WRITABLE
from fastclaw.linux.sockets import reset_on_close
from fastclaw.network.egress.shares import Pool, Share

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.linux.poller import Poller


_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_NOTHING = memoryview(b"")


class Meter(Protocol):
    """Counts the bytes of tunnels. False: the budget is used up, and the tunnel is cut."""

    def sent(self, count: int, /) -> bool:
        """So many bytes went from near to far."""

    def received(self, count: int, /) -> bool:
        """So many bytes went from far to near."""


class _End:
    """One of the two sockets, and what is known of it: true until a read or a write says otherwise.

    Parameters:
        has_hung_up: no further event will say that it is readable.
        has_ended: everything was read, to its end.
        is_gone: nothing can be written any more.
        is_cut: it broke off: what was read of it is not all there was to be.
    """

    __slots__ = (
        "_poller", "_watches_writing", "fd", "has_ended", "has_hung_up", "is_cut", "is_gone", "is_readable",
        "is_writable", "socket",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, poller: Poller) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self._poller = poller
        self._watches_writing = False
        self.is_readable = False
        self.is_writable = True
        self.has_hung_up = self.has_ended = self.is_gone = self.is_cut = False

    def learn(self, events: int) -> None:
        """What the kernel says."""
        if events & READABLE:
            self.is_readable = True
        if events & WRITABLE:
            self.is_writable = True
        if events & ENDED:
            self.has_hung_up = True
        if events & BROKEN and self.has_ended:  # it was reset after its end: no read will tell
            self.is_gone = True

    def note_full(self) -> None:
        """A write would have blocked."""
        self.is_writable = False
        if not self._watches_writing:
            self._watches_writing = True
            self._poller.change(self.fd, EDGES_BOTH_WAYS)

    def refused_write(self) -> None:
        """A write failed; what can still be read of it is worth reading, and an event says so."""
        self.is_gone = True
        self.is_cut = self.is_cut or not self.has_ended

    def refused_read(self) -> None:
        """A read failed: it was reset."""
        self.is_gone = self.has_ended = self.is_cut = True

    def close(self) -> None:
        """Close it."""
        self._poller.forget(self.fd)
        self.socket.close()


class _Direction:
    """One direction: from `source` to `target`.

    Parameters:
        count: told of each written piece; False ends the tunnel.

    Attributes:
        streak: bytes spliced without a pause.
    """

    __slots__ = (
        "_count", "_held", "_is_bulk", "_pipe", "_pipes", "_source", "_target", "is_over", "is_spent", "socket",
        "streak",
    )  # fmt: skip

    def __init__(self, source: _End, target: _End, pipes: PipeShare, count: Callable[[int], bool]) -> None:
        self._source = source
        self._target = target
        self._pipes = pipes
        self._count = count
        self._held = _NOTHING
        self._pipe: Pipe | None = None
        self._is_bulk = False
        self.socket = source.socket
        self.streak = 0
        self.is_over = False
        self.is_spent = False

    def hold(self, head: bytes) -> None:
        """These bytes go first."""
        self._held = memoryview(head)

    def pump(self) -> bool:
        """Move what can be moved, at most a burst of it. Whether there may be more to do at once."""
        steps = network_limits.TUNNEL_BURST
        while steps and not self.is_over and self._step():
            steps -= 1
        return not steps

    def _step(self) -> bool:
        """One read, one write or both; whether another makes sense."""
        if not self._target.is_writable:
            return False
        if self._held:
            return self._write_held()
        pipe = self._pipe
        if pipe is not None and pipe.held:
            return self._drain(pipe)
        if self._source.has_ended:
            return self._pass_end_on()
        if not self._source.is_readable:
            self._let_pipe_go()
            return False
        if self._is_bulk:
            pipe = pipe or self._pipes.borrow()
            if pipe is not None:
                self._pipe = pipe
                return self._fill(pipe)
        return self._copy()

    def _copy(self) -> bool:
        buffer = self._pipes.buffer
        try:
            count = self._source.socket.recv_into(buffer)
        except OSError as error:
            return self._not_read(error)
        if not count:
            self._source.has_ended = True
            return True
        if count == len(buffer):
            self._is_bulk = True
        elif not self._source.has_hung_up:
            self._source.is_readable = False  # all was taken: the next byte is an event
        try:
            written = self._target.socket.send(buffer[:count])
        except BlockingIOError:
            written = 0  # the next step finds out
        except OSError as error:
            return self._not_written(error)
        if written < count:
            self._held = memoryview(bytes(buffer[written:count]))
        return self._counted(written)

    def _write_held(self) -> bool:
        try:
            written = self._target.socket.send(self._held)
        except OSError as error:
            return self._not_written(error)
        self._held = self._held[written:] if written < len(self._held) else _NOTHING
        return self._counted(written)

    def _fill(self, pipe: Pipe) -> bool:
        try:
            count = os.splice(self._source.fd, pipe.write_end, network_limits.TUNNEL_PIPE_BYTES, flags=_SPLICE_FLAGS)
        except OSError as error:
            return self._not_read(error)
        pipe.held = count
        if not count:
            self._source.has_ended = True
        elif count < len(self._pipes.buffer):
            self._is_bulk = False
            self.streak = 0
        else:
            self.streak += count
            if self.streak >= network_limits.TUNNEL_STREAM_BYTES:
                self._pipes.batching.join(self)
        return True

    def _drain(self, pipe: Pipe) -> bool:
        try:
            written = os.splice(pipe.read_end, self._target.fd, pipe.held, flags=_SPLICE_FLAGS)
        except OSError as error:
            return self._not_written(error)
        pipe.held -= written
        return self._counted(written)

    def _not_read(self, error: OSError) -> bool:
        if isinstance(error, BlockingIOError):
            self._source.is_readable = False
        else:
            self._source.refused_read()
        return True

    def _not_written(self, error: OSError) -> bool:
        if isinstance(error, BlockingIOError):
            self._target.note_full()
            return False
        self._target.refused_write()
        return False

    def _counted(self, count: int) -> bool:
        """Last of a step: the meter may close the tunnel."""
        if not self._count(count):
            self.is_spent = True
        return not self.is_spent

    def _pass_end_on(self) -> bool:
        if not self._source.is_cut:
            with contextlib.suppress(OSError):  # it is gone itself
                self._target.socket.shutdown(socket.SHUT_WR)
        self.close()
        return False

    def _let_pipe_go(self) -> None:
        if self._pipe is not None:
            self._pipes.give_back(self._pipe)
            self._pipe = None

    def close(self) -> None:
        """Nothing moves any more; what waited is thrown away. Idempotent."""
        self.is_over = True
        self._held = _NOTHING
        self._let_pipe_go()


class Tunnel:
    """Joins two sockets until both directions have ended, one side breaks off, the meter says stop, or `close`.

    Parameters:
        near, far: connected stream sockets, non-blocking, and not watched; closed by the tunnel.
        pipes: the environment's.
        meter: told of all bytes, heads included, when they have been written.
        on_end: called exactly once, when both are closed; never from within `start`.
    """

    __slots__ = ("_far", "_near", "_on_end", "_poller", "_to_far", "_to_near", "last_moved")

    def __init__(
        self,
        near: socket.socket,
        far: socket.socket,
        pipes: PipeShare,
        meter: Meter,
        on_end: Callable[[Tunnel], None],
    ) -> None:
        self._poller = pipes.poller
        self._near = _End(near, self._poller)
        self._far = _End(far, self._poller)
        self._to_far = _Direction(self._near, self._far, pipes, meter.sent)
        self._to_near = _Direction(self._far, self._near, pipes, meter.received)
        self._on_end: Callable[[Tunnel], None] | None = on_end
        self.last_moved = self._poller.loop.time()
        """When something last happened, in seconds of the loop's clock."""

    def start(self, *, to_far: bytes = b"", to_near: bytes = b"") -> None:
        """Begin.

        Parameters:
            to_far, to_near: bytes read before; they go first.
        """
        self._to_far.hold(to_far)
        self._to_near.hold(to_near)
        try:
            self._poller.watch(self._near.fd, EDGES, self._on_near)
            self._poller.watch(self._far.fd, EDGES, self._on_far)
        except OSError:  # no memory for it
            self._poller.again(self.close)
            return
        if to_far or to_near:
            self._poller.again(self._run)

    def close(self) -> None:
        """Cut both directions, if they have not ended yet. Idempotent."""
        self._end(is_cut=True)

    def _on_near(self, events: int) -> None:
        self._near.learn(events)
        self._run()

    def _on_far(self, events: int) -> None:
        self._far.learn(events)
        self._run()

    def _run(self) -> None:
        self.last_moved = self._poller.loop.time()
        has_more = self._to_far.pump()
        has_more = self._to_near.pump() or has_more
        if self._near.is_gone:
            self._to_near.close()
        if self._far.is_gone:
            self._to_far.close()
        if self._to_far.is_spent or self._to_near.is_spent:
            self.close()
        elif self._to_far.is_over and self._to_near.is_over:
            self._end(is_cut=self._near.is_cut or self._far.is_cut)
        elif has_more:
            self._poller.again(self._run)

    def _end(self, *, is_cut: bool) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        self._to_far.close()
        self._to_near.close()
        for end in (self._near, self._far):
            if is_cut:
                reset_on_close(end.socket)
            end.close()
        on_end(self)


class Pipe:
    """Both ends of a pipe, and how many bytes wait in it: its borrower keeps `held` right."""

    __slots__ = ("held", "read_end", "write_end")

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        with contextlib.suppress(OSError):  # the user's pipe quota is used up (fs.pipe-user-pages-soft)
            fcntl.fcntl(self.read_end, fcntl.F_SETPIPE_SZ, network_limits.TUNNEL_PIPE_BYTES)

    def close(self) -> None:
        """Close both ends, with what is in them."""
        os.close(self.read_end)
        os.close(self.write_end)


class PipePool:
    """The pipes of a process, and what else all its tunnels share.

    Parameters:
        most: pipes lent at a time; further borrowers get none.
    """

    def __init__(self, most: int = network_limits.TUNNEL_PIPES) -> None:
        self.batching = Batching(asyncio.get_running_loop())
        self.buffer = memoryview(bytearray(network_limits.TUNNEL_BUFFER_BYTES))
        self.units = Pool(most if splice.kind() == "splice" else 0)
        self._spare: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe; None when no descriptor is left for one."""
        if self._spare:
            return self._spare.pop()
        try:
            return Pipe()
        except OSError:  # EMFILE, ENFILE, ENOMEM
            return None

    def put_back(self, pipe: Pipe) -> None:
        """Keep a pipe for the next, or close it. What is in it is thrown away."""
        if pipe.held or len(self._spare) >= network_limits.TUNNEL_SPARE_PIPES:
            pipe.close()
        else:
            self._spare.append(pipe)

    def close(self) -> None:
        """Close what is not lent: tunnels end before."""
        self.batching.close()
        while self._spare:
            self._spare.pop().close()


class PipeShare:
    """What one environment's tunnels may use of the process's pipes.

    Parameters:
        poller: the environment's.
    """

    def __init__(self, pool: PipePool, poller: Poller) -> None:
        self.poller, self.batching, self.buffer = poller, pool.batching, pool.buffer
        self._pool = pool
        self._share = Share(pool.units)

    @property
    def lent(self) -> int:
        """How many of them are in use."""
        return self._share.held

    def borrow(self) -> Pipe | None:
        """An empty pipe; None when this environment has its share, no descriptor is left, or splice is refused."""
        if not self._share.take():
            return None
        pipe = self._pool.take()
        if pipe is None:
            self._share.give_back()
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Return a pipe that was borrowed. What is in it is thrown away."""
        self._share.give_back()
        self._pool.put_back(pipe)


class Stream(Protocol):
    """A direction that has moved much without a pause.

    Attributes:
        socket: where it comes from.
        streak: bytes since its last pause; halved when nothing moves for a moment.
    """

    socket: socket.socket
    streak: int


class Batching:
    """Has the bytes of streams come in batches, until a stream pauses.

    Parameters:
        loop: of the timer, which only runs while there are streams.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streaks: dict[Stream, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, stream: Stream) -> None:
        """Have a stream's bytes come in batches, until it pauses. Idempotent."""
        if stream not in self._streaks:
            self._streaks[stream] = stream.streak = min(stream.streak, network_limits.TUNNEL_STREAM_BYTES)
            _wake_for(stream, network_limits.TUNNEL_BATCH_BYTES)
            if self._timer is None:
                self._set_timer()

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(network_limits.TUNNEL_BATCH_MS / 1000, self._look)

    def _look(self) -> None:
        self._timer = None
        for stream, before in list(self._streaks.items()):
            if stream.streak == before:
                del self._streaks[stream]
                stream.streak //= 2
                _wake_for(stream, 1)
            else:
                self._streaks[stream] = stream.streak
        if self._streaks:
            self._set_timer()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._streaks.clear()


def _wake_for(stream: Stream, count: int) -> None:
    with contextlib.suppress(OSError):  # it is closed
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
