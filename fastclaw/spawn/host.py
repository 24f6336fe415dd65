"""The spawner on this host itself, without any isolation: what the `local` runtime starts processes with.

Owns the spawner's process. Its commands have our environment, directory, umask and resource limits; each leads a
session of its own. If we are killed, the spawner sees its socket close and ends every tree it keeps, then itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.protocol import spawner as frames
from fastclaw.spawn import users
from fastclaw.spawn.binary import find_spawner, why_no_spawner
from fastclaw.spawn.lane import Home, Homes
from fastclaw.spawn.spawner import greet

if TYPE_CHECKING:
    from collections.abc import Sequence


class HostHome(Home, Homes):
    """This host. Parameters and errors of bringing it up are those of `start`.

    Attributes:
        pid: the spawner's own.
    """

    def __init__(self) -> None:
        self.env = dict(os.environ)
        self.identity = None
        self.pid = 0
        self._pidfd = -1
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Bring the spawner up.

        Raises:
            StartFailed: there is none for this machine, it cannot be started, or it does not answer.
        """
        binary = find_spawner()
        if binary is None:
            raise StartFailed(why_no_spawner() or "no spawner", "unsupported")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._spawn(str(binary), theirs.fileno())
            except OSError as error:
                ours.close()
                raise StartFailed(f"cannot start the spawner: {error}", "io_error") from error
        try:
            self.spawner = await greet(ours, confine=False, keeper_uid=frames.NO_USER, on_end=lambda: None)
        except BaseException:
            await self.aclose()
            raise

    def _spawn(self, binary: str, fd: int) -> None:
        child = subprocess.Popen([binary, str(fd)], pass_fds=(fd,), start_new_session=True)
        child.returncode = 0  # the reaping is ours: Popen neither polls nor warns
        self.pid = child.pid
        self._pidfd = os.pidfd_open(child.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        os.waitpid(self.pid, 0)
        self._ended.set()

    async def identify(self, user: str) -> frames.Identity | None:
        return users.resolve(user)

    def take(self, shard: int) -> Home:
        return self

    def all(self) -> Sequence[Home]:
        return [self]

    def health(self) -> dict[str, object]:
        return {"isolation": "none", **self.spawner.counts()}

    async def aclose(self) -> None:
        """Close the spawner's socket; return when it has ended, and with it everything it kept. Idempotent."""
        if hasattr(self, "spawner"):
            self.spawner.close()
        if self._pidfd < 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.SPAWN_EXIT_MS / 1000):
                await self._ended.wait()
                return
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self._ended.wait()
