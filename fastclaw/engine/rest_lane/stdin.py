"""Input for a command's own stdin pipe, through helper processes: fastclaw itself never touches such a pipe.

The caller writes into a pipe of ours; a helper, forked for this one pipe by `stdin_main.py` (which says why), copies it
into the command's. When the helper ends, since nothing reads there any more, ours breaks too: the writer sees EPIPE.
The server is started with the first helper that is needed, and replaced if it dies; helpers that it had go on until
their writers close.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.engine.rest_lane.stdin_main import END, OPENED, ORDER, START
from fastclaw.errors import ExecFailed
from fastclaw.linux.helper import Helper
from fastclaw.linux.packets import close_all
from fastclaw.linux.sockets import wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable


class Input(NamedTuple):
    """A way into a command's stdin.

    Parameters:
        fd: write end of a pipe, non-blocking and close-on-exec: the caller's to close. EOF goes through.
        close: to be called once `fd` is closed. What it was given gets a moment to arrive; a helper that still waits
            then is killed.
    """

    fd: int
    close: Callable[[], None]


class StdinHelpers:
    """Makes helpers. Nothing is started before the first is needed, or `prepare`."""

    def __init__(self) -> None:
        self._server: Helper | None = None
        self._last_id = 0
        self._not_before = 0.0

    def prepare(self) -> None:
        """One is going to be needed: it takes some 50 ms until the first can be had, and 1 ms for each other."""
        self._find_server()

    async def open(self, pid: int) -> Input | None:
        """A way into the stdin of a process; None where there is none, or none in time: then its parent has to do it.

        Parameters:
            pid: held by the caller, so that it cannot become another process meanwhile.

        Raises:
            OSError: no descriptor is left.
        """
        server = self._find_server()
        if server is None:
            return None
        source, fd, told, tell = _two_pipes()
        os.set_blocking(fd, False)  # the helper's end waits, ours does not
        self._last_id += 1
        entry = Input(fd, partial(_send_end, server, self._last_id))
        is_open = False
        try:
            with suppress(ExecFailed):  # it does not keep up, or no descriptor can be passed now
                server.send(ORDER.pack(START, self._last_id, pid), [source, tell])
                is_open = await _says_opened(told)
        finally:
            os.close(told)
            if not is_open:
                os.close(fd)
                entry.close()
        return entry if is_open else None

    def _find_server(self) -> Helper | None:
        if self._server is not None and self._server.has_ended:
            self._server.close()
            self._server = None
        loop = asyncio.get_running_loop()
        if self._server is None and loop.time() >= self._not_before:
            self._not_before = loop.time() + limits.STDIN_SERVER_PAUSE_MS / 1000
            with suppress(OSError):  # no process or descriptor to be had: stdin goes the long way
                self._server = Helper([sys.executable, "-m", "fastclaw.engine.rest_lane.stdin_main"])
        return self._server

    async def aclose(self) -> None:
        """End the server and all that it has made. Idempotent."""
        if self._server is not None:
            await self._server.aclose(limits.STDIN_SERVER_EXIT_MS)
            self._server = None  # at its end only: where this is cancelled, the next call goes on


def _send_end(server: Helper, id: int) -> None:
    """One for each START, so it needs no bound of its own. Nothing where the server is closed."""
    if server.is_open:
        server.send(ORDER.pack(END, id, 0), [], bounded=False)


def _two_pipes() -> tuple[int, int, int, int]:
    """Both ends of both, or none."""
    first = os.pipe2(os.O_CLOEXEC)
    try:
        return *first, *os.pipe2(os.O_CLOEXEC)
    except OSError:
        close_all(first)
        raise


async def _says_opened(told: int) -> bool:
    """Whether a helper has its pipe open; False where it ended instead, or takes too long."""
    return await wait_readable(told, limits.STDIN_OPEN_MS) and os.read(told, len(OPENED)) == OPENED
