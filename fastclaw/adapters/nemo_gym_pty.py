"""The part of `nemo_gym` for processes that go on: with a terminal, or with pipes (`pty=False`)."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Self

from nemo_gym import sandbox as gym

from fastclaw import FastclawError
from fastclaw.sandbox import Process
from fastclaw.sandbox.loop_thread import loop_thread

_PIECE_BYTES = 1 << 16
_STATUS_BYTES = 64
"""Enough for the line with the mark and the exit code that follows the output of a command."""


class PtySession:
    """A process and its streams; left, it is killed with its tree."""

    def __init__(self, process: Process, mode: str) -> None:
        self.session_id, self.mode, self.closed = process.id, mode, False
        self._process = process
        self._reads: dict[str, asyncio.Task[bytes]] = {}

    async def read(self, *, timeout_s: float | None = None) -> bytes:
        return await self._read("stdout", timeout_s)

    async def read_stderr(self, *, timeout_s: float | None = None) -> bytes:
        return await self._read("stderr", timeout_s)

    async def _read(self, name: str, timeout_s: float | None) -> bytes:
        """A read that is not waited for to its end goes on, and the next one has what it brings."""
        if name not in self._reads:
            self._open()
            self._reads[name] = asyncio.create_task(
                loop_thread().bring(getattr(self._process, name).read(_PIECE_BYTES))
            )
        reading = self._reads[name]
        done, _ = await asyncio.wait((reading,), timeout=timeout_s)
        if not done:
            raise TimeoutError(f"no output within {timeout_s} s")
        with _failing():
            if reading.result():  # else it is at its end, and stays there
                self._reads.pop(name, None)
            return reading.result()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    async def write(self, data: bytes) -> None:
        self._open()
        with _failing():
            await loop_thread().bring(self._process.stdin.write(data))

    async def resize(self, rows: int, cols: int) -> None:
        with _failing():
            await loop_thread().bring(self._process.resize(rows, cols))

    async def send_signal(self, signal: str) -> None:
        with _failing():
            await loop_thread().bring(self._process.signal(signal, group=True))

    async def wait_exit(self, *, timeout_s: float | None = None) -> int:
        with _failing():
            return (await loop_thread().bring(self._process.wait(timeout_s))).exit_code

    async def run_detached(self, command: str, *, poll_interval_s: float = 15.0) -> tuple[bytes, int | None]:
        """Run one command in the shell that this session is; its output is awaited, so there is nothing to poll.

        The quotes in the middle of the mark keep the terminal's echo of the command from looking like its output.
        """
        half = secrets.token_hex(6)
        mark = f"{half}''{half}"
        told = f"{{ echo {mark}\n{command}\necho {mark} $?\n}} </dev/null 2>&1\n"
        await self.write(told.encode())
        seen, first = bytearray(), f"{half}{half}".encode()
        ending = re.compile(first + rb" (\d+)\r?\n")
        while (end := ending.search(seen, max(0, len(seen) - _PIECE_BYTES - _STATUS_BYTES))) is None:
            if not (piece := await self.read()):
                raise gym.SandboxPtyError("the shell has ended before the command did")
            seen += piece
        start = seen.index(b"\n", seen.index(first)) + 1
        return bytes(seen[start : end.start()]), int(end[1])

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            with _failing():
                await loop_thread().bring(self._process.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self) -> None:
        if self.closed:
            raise gym.SandboxPtyError("the session is closed")


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except TimeoutError:  # the caller's, and an OSError too
        raise
    except (OSError, FastclawError) as error:
        raise gym.SandboxPtyError(str(error)) from error
