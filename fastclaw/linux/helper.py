"""A helper process of our own (a spawner on this host, a relay worker): started, watched, reaped by nobody else.

Knows nothing of what it does, only how it is asked to end: whoever owns the socket it lives on closes that first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)


class Child:
    """Parameters:
    argv: command line; the process leads a session of its own, so that signals to our terminal are not its.
    pass_fd: a descriptor that it inherits under the same number.
    env: its environment; None is ours.
    quiet: give it no stdin and no stdout; stderr is ours in any case.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, argv: Sequence[str], pass_fd: int, *, quiet: bool, env: dict[str, str] | None = None) -> None:
        silence = subprocess.DEVNULL if quiet else None
        child = subprocess.Popen(
            argv, pass_fds=(pass_fd,), stdin=silence, stdout=silence, env=env, start_new_session=True
        )
        self.pid = child.pid
        try:
            self._pidfd = os.pidfd_open(child.pid)
        except OSError:
            child.kill()
            child.wait()
            raise
        child.returncode = 0  # from here the reaping is ours: Popen neither polls nor warns
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def has_ended(self) -> bool:
        """It is gone, and reaped."""
        return self._ended.is_set()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        with suppress(ChildProcessError):  # SIGCHLD is ignored in here, so the kernel has reaped it (wait(2))
            os.waitpid(self.pid, 0)
        self._ended.set()

    async def wait_ended(self, seconds: float) -> None:
        """Return when it has ended and is reaped; one that takes longer than `seconds` is killed.

        One that sleeps where no signal is heard (state D) is let go after `limits.CHILD_KILLED_MS` more: it ends as
        soon as it wakes up, and is reaped then if this loop still runs.
        """
        await self._wait(seconds)
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await self._wait(limits.CHILD_KILLED_MS / 1000)
        if self._pidfd >= 0:
            logger.warning("process %d was killed and does not end; it is left behind", self.pid)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
