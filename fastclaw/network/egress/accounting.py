"""What the proxy keeps account of: numbers in memory that fastclaw and its proxy share, and a log of decisions.

The proxy counts, fastclaw reads whenever `health` asks, without a question to the proxy; and the numbers outlive it.
Each is a slot of eight bytes that one store fills, so a reader never sees half of one. There is one writer at a time:
the proxy while it lives, fastclaw after that.

The log has one JSON line for each decision, in a file that is rotated by size. A line is handed over and written by one
task in a thread of its own, so that neither a slow disk nor a slow name resolution holds up the other. Where the disk
does not keep up, handing over waits: the proxy slows down, and no line is lost. What the disk refuses is counted, and
said once.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fastclaw import limits, network_limits
from fastclaw.errors import StartFailed
from fastclaw.network.egress.policy import REASONS, Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from aiofiles.threadpool.binary import AsyncFileIO


_ALLOWED, _OPEN, _SENT, _RECEIVED, _LOST, _DENIED = range(6)
_FAILED = _DENIED + len(REASONS)
_SLOTS = _FAILED + len(REASONS)
_BYTES = _SLOTS * 8
_PLACE = {reason: place for place, reason in enumerate(REASONS)}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL  # a page that is gone would be a SIGBUS


class Counters:
    """The numbers of one sandbox's egress, in shared memory. Made by `create` or `attach`.

    Attributes:
        fd: the shared memory, to be passed on; owned.
    """

    __slots__ = ("_memory", "_slots", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _BYTES)
        self._slots = memoryview(self._memory).cast("@q")

    @classmethod
    def create(cls) -> Self:
        """All zero.

        Raises:
            OSError: no descriptor or no memory is left.
        """
        fd = os.memfd_create("fastclaw-egress-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(fd)
            raise
        return cls.attach(fd)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """The counters of an earlier `create`.

        Parameters:
            fd: taken over, also where it fails.

        Raises:
            OSError, ValueError: it is no such memory.
        """
        try:
            return cls(fd)
        except (OSError, ValueError):
            os.close(fd)
            raise

    def allowed(self) -> None:
        """A decision: yes."""
        self._slots[_ALLOWED] += 1

    def denied(self, reason: Reason) -> None:
        """A decision: no."""
        self._slots[_DENIED + _PLACE[reason]] += 1

    def failed(self, reason: Reason) -> None:
        """It was allowed, and could not be done."""
        self._slots[_FAILED + _PLACE[reason]] += 1

    def sent(self, count: int) -> None:
        """Bytes to the outside."""
        self._slots[_SENT] += count

    def received(self, count: int) -> None:
        """Bytes from the outside."""
        self._slots[_RECEIVED] += count

    def opened(self) -> None:
        """A connection of a client."""
        self._slots[_OPEN] += 1

    def closed(self) -> None:
        """A connection of a client is gone."""
        self._slots[_OPEN] -= 1

    def reset_open(self) -> None:
        """No connection is left: the proxy that had them is gone."""
        self._slots[_OPEN] = 0

    def logged_lost(self, count: int = 1) -> None:
        """Decisions that are missing from the log."""
        self._slots[_LOST] += count

    @property
    def moved(self) -> int:
        """Bytes in both directions, of all proxies that this sandbox has had."""
        return self._slots[_SENT] + self._slots[_RECEIVED]

    def snapshot(self) -> dict[str, Any]:
        """For `health`. Reasons that never came up are left out, as is `log_lost` where no decision is missing."""
        slots = self._slots.tolist()
        numbers: dict[str, Any] = {
            "allowed": slots[_ALLOWED],
            "denied": _named(slots[_DENIED:_FAILED]),
            "failed": _named(slots[_FAILED:]),
            "bytes": {"sent": slots[_SENT], "received": slots[_RECEIVED]},
            "open": slots[_OPEN],
        }
        if slots[_LOST]:
            numbers["log_lost"] = slots[_LOST]
        return numbers

    def close(self) -> None:
        """Give the memory back. Idempotent; nothing can be counted or read afterwards."""
        if self.fd >= 0:
            self._slots.release()
            self._memory.close()
            os.close(self.fd)
            self.fd = -1


def _named(slots: list[int]) -> dict[str, int]:
    return {reason: count for reason, count in zip(REASONS, slots, strict=True) if count}


_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def now() -> str:
    """The time as the log has it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One line.

    Parameters:
        reason: None where it was allowed and done.
        address: the one that was decided on or connected to, where one is known.
        rule: the deciding entry of `allow` or `deny`, as the user wrote it.
        text: for people.
    """

    time: str = msgspec.field(default_factory=now)
    decision: Literal["allowed", "denied", "failed"]
    reason: str | None = None
    how: Literal["connect", "http", "transparent", "dns"]
    host: str
    port: int
    address: str | None = None
    method: str | None = None
    rule: str | None = None
    text: str


class AuditLog:
    """The log of decisions: lines are handed over, and written by one task.

    Parameters:
        path: of the file; it is made when the first line comes, or appended to.
        max_bytes: no file becomes longer, but for a single line that is.
        counters: told how many decisions are missing.
        on_trouble: told once, in one line, that some are.
    """

    def __init__(self, path: str, max_bytes: int, counters: Counters, on_trouble: Callable[[str], None]) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._counters, self._on_trouble = counters, on_trouble
        self._has_said = False
        self._lines: asyncio.Queue[bytes] = asyncio.Queue(network_limits.EGRESS_LOG_QUEUE)
        self._unwritten = 0
        self._file: AsyncFileIO | None = None
        self._thread = ThreadPoolExecutor(1, "fastclaw-log")
        self._task: asyncio.Task[None] | None = None

    @staticmethod
    def check(path: str) -> None:
        """See whether a log can be written there. The file is made.

        Raises:
            StartFailed: `bad_log`: it cannot.
        """
        try:
            os.close(_open(path, 0))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise StartFailed(f"options.network.log: {path!r} cannot be written: {why}", "bad_log") from error
        directory = os.path.dirname(path) or "."
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise StartFailed(
                f"options.network.log: {directory!r} is not writable, so the log in it could not be rotated", "bad_log"
            )

    async def write(self, entry: Decision) -> None:
        """Hand a decision over. Waits where the disk does not keep up."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        line = _line(entry)
        await self._lines.put(line)
        self._unwritten += 1

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
            whole = data.rfind(b"\n", 0, done) + 1
            if whole < done:
                await file.truncate(size + whole)
            if not whole:
                raise
            return data.count(b"\n", 0, whole)
        return len(lines)

    async def _file_with_room(self, need: int) -> tuple[AsyncFileIO, int]:
        """A file that takes so many bytes more, and its size. An empty one takes any number."""
        import aiofiles  # 1 MB that a proxy without a log does not need

        while True:
            if self._file is None:
                self._file = await aiofiles.open(self._path, "ab", 0, opener=_open, executor=self._thread)
            known = os.fstat(self._file.fileno())
            if known.st_nlink and (known.st_size == 0 or known.st_size + need <= self._max_bytes):
                return self._file, known.st_size
            await self._close_file()
            if known.st_nlink:  # else it was removed, and a new one is made
                await self._rotate()

    async def _rotate(self) -> None:
        import aiofiles.os  # as above

        names = [self._path, *(f"{self._path}.{number}" for number in range(1, network_limits.EGRESS_LOG_FILES))]
        for newer, older in reversed(list(pairwise(names))):
            with suppress(FileNotFoundError):
                await aiofiles.os.replace(newer, older, executor=self._thread)

    async def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            await file.close()

    def _lose(self, count: int, error: OSError | None) -> None:
        self._counters.logged_lost(count)
        if not self._has_said:
            self._has_said = True
            why = "it was not written in time" if error is None else error.strerror
            self._on_trouble(f"the decision log {self._path!r} is incomplete: {why}")

    async def aclose(self, timeout_s: float = network_limits.EGRESS_LOG_FLUSH_MS / 1000) -> None:
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


def _line(entry: Decision) -> bytes:
    try:
        return msgspec.json.encode(entry) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate has no form in JSON
        fields = {
            name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for name, value in msgspec.structs.asdict(entry).items()
        }
        return msgspec.json.encode(fields) + b"\n"
