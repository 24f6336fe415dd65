"""A log of lines that is written behind: handed over here, written by one task into files that are rotated by size.

A slow disk holds up no one but who waits for it (`put`). Lines of who does not wait (`offer`) may be lost, and so may
those that the disk refuses: how many is told, and said once.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from fastclaw import limits, telemetry_limits
from fastclaw.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiofiles.threadpool.binary import AsyncFileIO

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class RotatingLog:
    """Lines in files, of which the oldest goes.

    Parameters:
        path: of the file; it is made when the first line comes, or appended to.
        max_bytes: no file becomes longer, but for a single line that is.
        what: it is, in words.
        on_lost: told how many lines are missing.
        on_trouble: told once, in one line, that some are.
    """

    def __init__(
        self,
        path: str,
        max_bytes: int,
        what: str,
        on_lost: Callable[[int], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._path, self._max_bytes, self._what = path, max_bytes, what
        self._on_lost, self._on_trouble = on_lost, on_trouble
        self._has_said = False
        self._lines: asyncio.Queue[bytes] = asyncio.Queue(telemetry_limits.LOG_QUEUE)
        self._unwritten = 0
        self._file: AsyncFileIO | None = None
        self._thread = ThreadPoolExecutor(1, "fastclaw-log")
        self._task: asyncio.Task[None] | None = None

    @staticmethod
    def check(path: str, option: str) -> None:
        """See whether a log can be written there. The file is made.

        Parameters:
            option: that names it, for the error.

        Raises:
            StartFailed: `bad_log`: it cannot.
        """
        try:
            os.close(_open(path, 0))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise StartFailed(f"{option}: {path!r} cannot be written: {why}", "bad_log") from error
        directory = os.path.dirname(path) or "."
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise StartFailed(
                f"{option}: {directory!r} is not writable, so the log in it could not be rotated", "bad_log"
            )

    async def put(self, line: bytes) -> None:
        """Hand a line over, with its end. Waits where the disk does not keep up."""
        self._begin()
        await self._lines.put(line)
        self._unwritten += 1

    def offer(self, line: bytes) -> bool:
        """Hand a line over, with its end. Where the disk does not keep up it counts as lost, and this is False."""
        self._begin()
        if self._lines.full():
            self._lose(1, None)
            return False
        self._lines.put_nowait(line)
        self._unwritten += 1
        return True

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            lines = [await self._lines.get()]
            while not self._lines.empty():
                lines.append(self._lines.get_nowait())
            await self._append(lines)
            self._unwritten -= len(lines)
            for _ in lines:
                self._lines.task_done()

    async def _append(self, lines: list[bytes]) -> None:
        """Write lines, in as many files as they take. What cannot be written is counted."""
        first = 0
        while first < len(lines):
            try:
                file, size = await self._file_with_room(len(lines[first]))
                last = self._fitting(lines, first, size)
                written = await self._write(file, size, lines[first:last])
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:  # connections took them all, and are not to get rid of the log so
                    await asyncio.sleep(limits.ACCEPT_RETRY_MS / 1000)
                    continue
                self._lose(len(lines) - first, error)
                return
            first += written

    def _fitting(self, lines: list[bytes], first: int, size: int) -> int:
        """The end of those lines from `first` on that a file of this size takes: one at least."""
        last = first
        while last < len(lines) and (last == first or size + len(lines[last]) <= self._max_bytes):
            size += len(lines[last])
            last += 1
        return last

    async def _write(self, file: AsyncFileIO, size: int, lines: list[bytes]) -> int:
        """Write lines behind what is there, and return how many are; a torn one is taken back.

        Raises:
            OSError: none is.
        """
        data = b"".join(lines)
        done = 0
        try:
            while done < len(data):
                done += await file.write(data[done:])
        except OSError:
            ends = list(accumulate(map(len, lines)))  # one that is handed over may have several ends of lines in it
            count = bisect_right(ends, done)
            whole = ends[count - 1] if count else 0
            if whole < done:
                await file.truncate(size + whole)
            if not count:
                raise
            return count
        return len(lines)

    async def _file_with_room(self, need: int) -> tuple[AsyncFileIO, int]:
        """A file that takes so many bytes more, and its size. An empty one takes any number."""
        import aiofiles  # 1 MB that nobody needs who writes no log

        while True:
            if self._file is None:
                self._file = await aiofiles.open(self._path, "ab", 0, opener=_open_after_a_line, executor=self._thread)
            known = os.fstat(self._file.fileno())
            if known.st_nlink and (known.st_size == 0 or known.st_size + need <= self._max_bytes):
                return self._file, known.st_size
            await self._close_file()
            if known.st_nlink:  # else it was removed, and a new one is made
                await self._rotate()

    async def _rotate(self) -> None:
        import aiofiles.os  # as above

        names = [self._path, *(f"{self._path}.{number}" for number in range(1, telemetry_limits.LOG_FILES))]
        for newer, older in reversed(list(pairwise(names))):
            with suppress(FileNotFoundError):
                await aiofiles.os.replace(newer, older, executor=self._thread)

    async def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            await file.close()

    def _lose(self, count: int, error: OSError | None) -> None:
        self._on_lost(count)
        if not self._has_said:
            self._has_said = True
            why = "it was not written in time" if error is None else error.strerror
            self._on_trouble(f"{self._what} {self._path!r} is incomplete: {why}")

    async def aclose(self, timeout_s: float = telemetry_limits.LOG_FLUSH_MS / 1000) -> None:
        """Write what waits, and close the file. Idempotent; no `write` may be under way.

        Parameters:
            timeout_s: what the disk does not take within it counts as missing.
        """
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(timeout_s):
                await self._lines.join()
                await self._close_file()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._unwritten:
            self._lose(self._unwritten, None)
            self._unwritten = 0
        self._file = None  # where the disk hangs, the thread is the last to let go of it
        self._thread.shutdown(wait=False)


def _open(path: str, _: int) -> int:
    """Open the log to append to it; flags are our own.

    Raises:
        OSError: it cannot be opened, or is no plain file: what is renamed and cut must be ours alone.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a symbolic link")
    fd = os.open(path, _FLAGS, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no plain file")
    return fd


def _open_after_a_line(path: str, flags: int) -> int:
    """The same; where whoever wrote last was cut off in a line, that gets an end, or ours would be part of it.

    Raises:
        OSError: as `_open`, or the end cannot be written.
    """
    fd = _open(path, flags)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")
    except OSError:
        os.close(fd)
        raise
    return fd
