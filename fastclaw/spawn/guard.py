"""Fastclaw's side of the warden: starts it, tells it what to clean up, and sends it home at the end.

Owns the write end of the warden's pipe, on which the whole promise rests: nobody else may have it, so it is
close-on-exec and never handed on; the kernel closes it when this process ends, however it ends.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import secrets
import struct
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed, IoError, StartFailed
from fastclaw.spawn import warden

if TYPE_CHECKING:
    from pathlib import Path

_SLOT = struct.Struct("=i")


class Guard:
    """A warden at work.

    Attributes:
        token: names this fastclaw.
        variable: the environment entry that each process must be started with to be found by it.
        pid: the warden's own.

    Raises:
        StartFailed: no Python to run it, or no process or descriptors to be had.
    """

    def __init__(self) -> None:
        self.token = secrets.token_hex(limits.OWNER_TOKEN_BYTES)
        self.variable = {warden.VARIABLE: self.token}
        try:
            self._start()
        except OSError as error:
            raise StartFailed(f"cannot start the warden: {error}", "io_error") from error
        self._free = list(range(limits.WARDEN_TRACKED - 1, -1, -1))

    def _start(self) -> None:
        table = os.memfd_create("fastclaw-commands", os.MFD_CLOEXEC)
        try:
            os.ftruncate(table, limits.WARDEN_TRACKED * warden.SLOT_BYTES)
            self._table = mmap.mmap(table, 0)
            self._start_with(table)
        finally:
            os.close(table)

    def _start_with(self, table: int) -> None:
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = _spawn(self.token, theirs, table)
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._pipe: int | None = ours

    def track(self, pid: int) -> int:
        """Put a live command on the list of what dies with us, whatever it makes of its environment.

        Returns:
            The slot, for `untrack`.

        Raises:
            ExecFailed: `overloaded`, the list is full.
        """
        if not self._free:
            raise ExecFailed(f"{limits.WARDEN_TRACKED} processes are live already", "overloaded")
        slot = self._free.pop()
        _SLOT.pack_into(self._table, slot * warden.SLOT_BYTES, pid)
        return slot

    def untrack(self, slot: int) -> None:
        """The command was reaped: its number may be somebody else's from now on."""
        if self._pipe is not None:
            _SLOT.pack_into(self._table, slot * warden.SLOT_BYTES, 0)
            self._free.append(slot)

    def add_directory(self, path: str | Path) -> None:
        """Have this directory, an absolute path, removed with all its content should we be killed.

        Raises:
            IoError: the warden is gone.
        """
        self._tell(b"+", path)

    def drop_directory(self, path: str | Path) -> None:
        """The directory was removed, or is to stay.

        Raises:
            IoError: the warden is gone.
        """
        self._tell(b"-", path)

    def _tell(self, word: bytes, path: str | Path) -> None:
        """One write of less than PIPE_BUF, to a reader that always reads: it does not block (pipe(7))."""
        if self._pipe is None:
            raise IoError("the warden was sent home already")
        try:
            os.write(self._pipe, word + os.fsencode(path) + b"\0")
        except OSError as error:
            raise IoError(f"the warden is gone: {error}") from error

    async def aclose(self) -> None:
        """Send the warden home and reap it; it removes and ends nothing. A second call does nothing."""
        if self._pipe is None:
            return
        with suppress(BrokenPipeError):
            os.write(self._pipe, b"q\0")
        os.close(self._pipe)
        self._pipe = None
        self._table.close()
        try:
            await _readable(self._pidfd, limits.WARDEN_EXIT_MS / 1000)
        finally:
            self._reap()

    def _reap(self) -> None:
        """It has ended or ends now: KILL does nothing to a zombie, and its number is ours until it is reaped."""
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self._pidfd)


def _spawn(token: str, pipe: int, table: int) -> int:
    """Started isolated (-I -S -E): nothing in the environment or in site-packages can keep it from its work."""
    with open(os.devnull, "r+b") as null:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-E", warden.__file__, token, str(table)],
            stdin=pipe,
            stdout=null,
            stderr=null,
            cwd="/",
            start_new_session=True,
            pass_fds=(table,),
        )
    child.returncode = 0
    return child.pid


async def _readable(fd: int, seconds: float) -> None:
    """Wait until a descriptor is readable, or for so many seconds."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await ready.wait()
    finally:
        loop.remove_reader(fd)
