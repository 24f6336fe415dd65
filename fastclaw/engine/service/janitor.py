"""The process that cleans up after us if we are killed (`janitor_main.py`), from its owner's side.

Unlike the service it may be started from any thread: it watches the whole process.
"""

import socket
from subprocess import DEVNULL

from fastclaw import engine_limits
from fastclaw.engine.service.janitor_main import ARMED
from fastclaw.errors import StartFailed
from fastclaw.linux.helper import Child
from fastclaw.linux.sockets import wait_readable


class Janitor:
    """A janitor of ours: it is told of our end by a socket, or does nothing.

    Parameters:
        argv: from `plan.janitor_argv`.
        env: of the janitor and of the Podman commands that it starts.

    Raises:
        StartFailed: `engine_unavailable`: it cannot be started.
    """

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._life, theirs = socket.socketpair()
        self._life.setblocking(False)
        with theirs:
            try:
                self._child = Child(argv, env, {0: theirs.fileno(), 2: DEVNULL})
            except OSError as error:
                self._life.close()
                raise StartFailed(f"cannot start {argv[0]}: {error.strerror}", "engine_unavailable") from error

    def __repr__(self) -> str:
        return f"<Janitor {self._child}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def ready(self) -> None:
        """Return once we may die.

        Raises:
            StartFailed: `engine_unavailable`: it ended; `engine_timeout`.
        """
        if not await wait_readable(self._life.fileno(), engine_limits.ENGINE_READY_MS):
            raise StartFailed(f"the janitor is not ready after {engine_limits.ENGINE_READY_MS} ms", "engine_timeout")
        if self._life.recv(len(ARMED)) != ARMED:
            raise StartFailed("the janitor ended at once", "engine_unavailable")

    async def take_over(self) -> None:
        """Have it remove everything now, as it does where we are killed. It goes on where that takes longer."""
        self._life.close()
        try:
            await self._child.ends(engine_limits.ENGINE_STOP_MS)
        finally:
            self._child.close()

    async def aclose(self) -> None:
        """End it: everything is removed. Idempotent."""
        self._child.kill()
        self._life.close()
        await self._child.aclose(engine_limits.ENGINE_STOP_MS)
