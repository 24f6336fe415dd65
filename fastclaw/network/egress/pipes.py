"""What all tunnels of a process share: pipes to splice through, a buffer to copy through, and how they are woken.

A pipe is lent to one direction of a tunnel while bulk data is under way in it, and only then: an idle tunnel has none.
There are so many and no more; whoever gets none copies, which always works.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.linux import splice
from fastclaw.network.egress.batching import Batching

if TYPE_CHECKING:
    from fastclaw.linux.poller import Poller


class Pipe:
    """Both ends of a pipe, and how many bytes wait in it: its borrower keeps `held` right."""

    __slots__ = ("held", "read_end", "write_end")

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        with contextlib.suppress(OSError):  # the user's pipe quota is used up (fs.pipe-user-pages-soft)
            fcntl.fcntl(self.read_end, fcntl.F_SETPIPE_SZ, limits.TUNNEL_PIPE_BYTES)

    def close(self) -> None:
        """Close both ends, with what is in them."""
        os.close(self.read_end)
        os.close(self.write_end)


class PipePool:
    """Lends pipes.

    Parameters:
        poller: stays its owner's.
        most: pipes lent at a time; further borrowers get none.
    """

    def __init__(self, poller: Poller, most: int = limits.TUNNEL_PIPES) -> None:
        self.poller = poller
        self.batching = Batching(poller.loop)
        self.buffer = memoryview(bytearray(limits.TUNNEL_BUFFER_BYTES))
        self.lent = 0
        self._most = most if splice.kind() == "splice" else 0
        self._spare: list[Pipe] = []

    def borrow(self) -> Pipe | None:
        """An empty pipe; None when all are lent, no descriptor is left for one, or splice is refused."""
        if self.lent >= self._most:
            return None
        if self._spare:
            pipe = self._spare.pop()
        else:
            try:
                pipe = Pipe()
            except OSError:  # EMFILE, ENFILE, ENOMEM
                return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Whoever borrowed it has no more use for it. What is in it is thrown away."""
        self.lent -= 1
        if pipe.held or len(self._spare) >= limits.TUNNEL_SPARE_PIPES:
            pipe.close()
        else:
            self._spare.append(pipe)

    def close(self) -> None:
        """Close what is not lent: tunnels end before."""
        self.batching.close()
        while self._spare:
            self._spare.pop().close()
