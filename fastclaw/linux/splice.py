"""Moving bytes between a pipe and a socket: in the kernel where that works, else by copying.

Which of the two is found out once (`kind`), and shown by `health`. A mover never loses what it has taken from the
source: the copying one holds what the target did not take for its next call.
"""

import functools
import os
import socket
from collections.abc import Callable
from typing import Literal

from fastclaw import limits

Move = Callable[[int, int], int]
"""`move(source_fd, target_fd)`: move at most one chunk; 0 is the end of the source.

Raises:
    BlockingIOError: the source is empty or the target full; which one is not known.
    OSError: the target is gone (EPIPE, ECONNRESET) or the source is broken.
"""

_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


def splice(source: int, target: int) -> int:
    """Zero-copy `Move`: splice(2); one of the two must be a pipe, both non-blocking."""
    return os.splice(source, target, limits.RELAY_CHUNK_BYTES, flags=_SPLICE_FLAGS)


class Copy:
    """Copying `Move`, for kernels and sandboxes that refuse splice. Belongs to one source for its whole life."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = memoryview(b"")

    @property
    def is_holding(self) -> bool:
        """Whether bytes of the source wait in here for the target."""
        return len(self._held) > 0

    def __call__(self, source: int, target: int) -> int:
        """Write what was held back, else read and write."""
        if not self._held:
            self._held = memoryview(os.read(source, limits.COPY_CHUNK_BYTES))
            if not self._held:
                return 0
        written = os.write(target, self._held)
        self._held = self._held[written:]
        return written


def is_holding(move: Move) -> bool:
    """Whether `move` holds bytes that the target has not taken: then only the target is worth waiting for."""
    return isinstance(move, Copy) and move.is_holding


@functools.cache
def kind() -> Literal["splice", "copy"]:
    """What works on this host, found out once by moving a byte from a pipe to a socket and one back."""
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with ours, theirs:
            ours.setblocking(False)
            os.write(write_end, b"x")
            moved = splice(read_end, ours.fileno()) == 1 and theirs.recv(1) == b"x"
            theirs.send(b"y")
            moved = moved and splice(ours.fileno(), write_end) == 1 and os.read(read_end, 1) == b"y"
    except OSError:
        return "copy"
    finally:
        os.close(read_end)
        os.close(write_end)
    return "splice" if moved else "copy"


def mover() -> Move:
    """A mover for one source, of the kind that works here."""
    return splice if kind() == "splice" else Copy()
