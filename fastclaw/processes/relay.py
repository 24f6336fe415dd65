"""One direction of a stream: from a source to a target, with the kernel as the only buffer.

A relay watches one side at a time. While bytes flow it waits for the source; when the target is full it waits for that,
and takes nothing from the source meanwhile: that is the backpressure. Which side blocked, EAGAIN does not say; but if
the first move after "source is readable" blocks, it was the target, and the other way round.

A reader that closes while it is being sent something has left that unread, but the kernel returns what went out and
forgets the error (unix_stream_sendmsg); so whoever is gone right after a move that took less than there is counts as
one that has.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import select
from collections.abc import Callable

from fastclaw import limits
from fastclaw.linux.splice import Move, is_holding

OnEnd = Callable[[OSError | None], None]


def has_hung_up(fd: int) -> bool:
    """Whether a socket's peer has closed, both ways."""
    return _is(fd, 0, select.POLLHUP)


def _is(fd: int, asked: int, event: int) -> bool:
    poll = select.poll()
    poll.register(fd, asked)
    return any(events & event for _, events in poll.poll(0))


class Relay:
    """Moves bytes until the source ends, the target breaks, or `stop`. Owns no descriptor.

    Parameters:
        source, target: descriptors, both non-blocking; one of them a pipe.
        pipe: the one of the two that is a pipe: it is enlarged when the stream proves to be a bulk one.
        on_end: called once, unless stopped before: None at the source's end, the error when either side broke;
            ECONNRESET where a reader has left something unread, if nobody else was told of that.
    """

    __slots__ = ("_loop", "_move", "_on_end", "_pipe", "_source", "_source_is_pipe", "_target", "_waits_for", "moved")

    def __init__(self, source: int, target: int, pipe: int, move: Move, on_end: OnEnd) -> None:
        self._source = source
        self._target = target
        self._pipe: int | None = pipe
        self._source_is_pipe = pipe == source
        self._move = move
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._waits_for: int | None = None
        self.moved = 0

    @property
    def waits_for_room(self) -> bool:
        """Whether the target takes nothing now."""
        return self._waits_for == self._target

    def start(self) -> None:
        """Begin. `on_end` is never called from within this."""
        if is_holding(self._move):  # from an earlier relay of the same source
            self._wait_for_target()
        else:
            self._wait_for_source()

    def stop(self) -> None:
        """Leave both descriptors alone from now on. Idempotent; `on_end` will not be called."""
        if self._waits_for == self._source:
            self._loop.remove_reader(self._source)
        elif self._waits_for == self._target:
            self._loop.remove_writer(self._target)
        self._waits_for = None

    def _wait_for_source(self) -> None:
        self.stop()
        self._loop.add_reader(self._source, self._pump, self._wait_for_target)
        self._waits_for = self._source

    def _wait_for_target(self) -> None:
        self.stop()
        self._loop.add_writer(self._target, self._pump, self._wait_for_source)
        self._waits_for = self._target

    def _pump(self, other_side_blocked: Callable[[], None]) -> None:
        for turn in range(limits.RELAY_BURST):
            try:
                moved = self._move(self._source, self._target)
            except BlockingIOError:
                if is_holding(self._move):
                    self._wait_for_target()
                elif turn == 0:
                    other_side_blocked()
                return
            except OSError as error:
                if not (turn and self._end_if_left_unread()):
                    self._end(error)
                return
            if moved == 0:
                self._end(None)
                return
            self.moved += moved
            # A short move most likely emptied a pipe: asking again would cost a call for an EAGAIN. A socket is read on
            # until EAGAIN or its end: after a reset (POLLERR) uvloop calls once more and then drops the watcher.
            if moved >= limits.PIPE_BYTES:
                self._enlarge()
            elif self._source_is_pipe:
                if is_holding(self._move):
                    self._wait_for_target()
                break
        self._end_if_left_unread()

    def _end_if_left_unread(self) -> bool:
        """Right after a move."""
        if not self._source_is_pipe or not has_hung_up(self._target):
            return False
        took_less = is_holding(self._move) or _is(self._source, select.POLLIN, select.POLLIN)
        if took_less:
            self._end(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        return took_less

    def _enlarge(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # the user's pipe quota is used up (fs.pipe-user-pages-soft)
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, limits.BULK_PIPE_BYTES)
            self._pipe = None

    def _end(self, error: OSError | None) -> None:
        self.stop()
        self._on_end(error)
