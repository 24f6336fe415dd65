"""The process that cleans up after us if we are killed (`janitor.py`), from its owner's side: made, armed, ended.

Unlike the service it may be started from any thread: it watches the whole process.
"""

import os
import signal
import socket
from contextlib import suppress

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.linux.sockets import wait_readable
from fastclaw.podman.service.janitor_main import ARMED
from fastclaw.podman.service.service_process import reap, spawn_service


class Standby:
    """Parameters:
    argv: from `plan.janitor_argv`.
    env: of the janitor and of the Podman commands that it starts.

    Raises:
        StartFailed: `engine_unavailable`: it cannot be started.
    """

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._life, theirs = socket.socketpair()
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._life.setblocking(False)
            self.pid = spawn_service(argv, env, nowhere, theirs.fileno())
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            self._life.close()
            raise StartFailed(f"cannot start {argv[0]}: {error.strerror}", "engine_unavailable") from error
        finally:
            theirs.close()
            os.close(nowhere)

    async def ready(self) -> None:
        """Return once we may die.

        Raises:
            StartFailed: `engine_unavailable`: it ended; `engine_timeout`.
        """
        if not await wait_readable(self._life.fileno(), limits.ENGINE_READY_MS):
            raise StartFailed(f"the janitor is not ready after {limits.ENGINE_READY_MS} ms", "engine_timeout")
        if self._life.recv(len(ARMED)) != ARMED:
            raise StartFailed("the janitor ended at once", "engine_unavailable")

    async def take_over(self) -> None:
        """Have it remove everything now, as it does where we are killed. It goes on where that takes longer."""
        self._life.close()
        try:
            await wait_readable(self._pidfd, limits.ENGINE_STOP_MS)
        finally:
            os.close(self._pidfd)
            reap(self.pid)

    async def end(self) -> None:
        """Do without it: everything is removed. Gives its descriptors back and reaps it."""
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await wait_readable(self._pidfd, limits.ENGINE_STOP_MS)
        finally:
            self._life.close()
            os.close(self._pidfd)
            reap(self.pid)
