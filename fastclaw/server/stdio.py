"""The protocol's own two descriptors: claimed from fd 0 and 1, read without rescanning, written in batches.

Rules:
1. While a claim is held, fd 0 is /dev/null and fd 1 is stderr, so a stray print or a child cannot touch the wire.
2. An inherited pipe or terminal is opened again, so that making it non-blocking does not change it for the others that
   share it. What cannot be opened again (a socket, a pipe of another user) is set non-blocking and set back at the end.
3. A regular file or /dev/null cannot be polled: as stdin it is read by a thread, as stdout it is written directly.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable
from typing import Self

from fastclaw import limits
from fastclaw.errors import IoError

_claimed = False


class OwnedDescriptor:
    """A non-blocking descriptor of an inherited file, which is not changed for the others that share it (rule 2).

    Attributes:
        fd: use this one.
    """

    def __init__(self, fd: int, mode: int) -> None:
        self._inherited = fd
        self._was_blocking = os.get_blocking(fd)
        self.fd = _open_again(fd, mode)
        if self.fd == fd:
            os.set_blocking(fd, False)

    @classmethod
    def input(cls, fd: int) -> Self:
        """To read from."""
        return cls(fd, os.O_RDONLY)

    @classmethod
    def output(cls, fd: int) -> Self:
        """To write to."""
        return cls(fd, os.O_WRONLY)

    def close(self) -> None:
        """Close what was opened, undo what was changed."""
        if self.fd == self._inherited:
            os.set_blocking(self.fd, self._was_blocking)
        else:
            os.close(self.fd)


def _open_again(fd: int, mode: int) -> int:
    """A descriptor with flags of its own, or `fd` where there can be none."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
        with contextlib.suppress(OSError):  # another user's pipe, or no /proc
            return os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    return fd


def require_standard_descriptors() -> None:
    """To be called before anything else takes a descriptor: an event loop's would become stdin, stdout or stderr.

    Raises:
        IoError: stdin or stdout is closed.
    """
    if not (_is_open(0) and _is_open(1)):
        raise IoError("stdin or stdout is closed; start fastclaw serve with both connected")
    if not _is_open(2):
        os.open(os.devnull, os.O_WRONLY)  # takes 2, the lowest that is free


class StdioClaim:
    """Takes fd 0 and 1 for the protocol; `close` puts them back as they were.

    Attributes:
        input_fd, output_fd: the protocol's descriptors.

    Raises:
        IoError: a second claim while one is held, or a standard descriptor that is closed.
    """

    def __init__(self) -> None:
        global _claimed
        if _claimed:
            raise IoError("stdin and stdout are claimed already; serve one runtime per process")
        require_standard_descriptors()
        self._saved = (os.dup(0), os.dup(1))
        _claimed = True
        self._input = OwnedDescriptor.input(self._saved[0])
        self._output = OwnedDescriptor.output(self._saved[1])
        self.input_fd, self.output_fd = self._input.fd, self._output.fd
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)

    def close(self) -> None:
        """Undo the claim."""
        global _claimed
        # In reverse: where both are one socket, only the input's claim saw its flag untouched.
        self._output.close()
        self._input.close()
        for target, saved in enumerate(self._saved):
            os.dup2(saved, target)
            os.close(saved)
        _claimed = False


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _is_pollable(fd: int) -> bool:
    kind = os.fstat(fd).st_mode
    return stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(fd)


class ByteSource:
    """Reads a descriptor chunk by chunk.

    Parameters:
        on_data: called with each chunk.
        on_eof: called once, at the end or when reading fails.
    """

    def __init__(self, fd: int, on_data: Callable[[bytes], None], on_eof: Callable[[], None]) -> None:
        self._fd = fd
        self._on_data = on_data
        self._on_eof = on_eof
        self._loop = asyncio.get_running_loop()
        self._paused = True
        self._closed = False
        self._thread_read: asyncio.Future[bytes] | None = None
        self._pollable = _is_pollable(fd)

    def resume(self) -> None:
        """Read on. Also how reading begins."""
        if self._closed or not self._paused:
            return
        self._paused = False
        if self._pollable:
            self._loop.add_reader(self._fd, self._on_readable)
        elif self._thread_read is None:
            self._read_in_thread()

    def pause(self) -> None:
        """Stop reading until `resume`: what the other side writes waits in the kernel."""
        if self._closed or self._paused:
            return
        self._paused = True
        if self._pollable:
            self._loop.remove_reader(self._fd)

    def close(self) -> None:
        """Stop for good. The descriptor stays the owner's."""
        self.pause()
        self._closed = True

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, limits.READ_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        if data:
            self._on_data(data)
        else:
            self.close()
            self._on_eof()

    def _read_in_thread(self) -> None:
        self._thread_read = self._loop.run_in_executor(None, os.read, self._fd, limits.READ_CHUNK_BYTES)
        self._thread_read.add_done_callback(self._on_thread_read)

    def _on_thread_read(self, read: asyncio.Future[bytes]) -> None:
        self._thread_read = None
        if self._closed or read.cancelled():
            return
        self._deliver(b"" if read.exception() else read.result())
        if not self._paused and not self._closed:
            self._read_in_thread()


class ByteSink:
    """Writes to a descriptor: one system call for all that was written in one turn of the loop.

    Parameters:
        on_pressure: called with True above the high-water mark, with False below the low one.
        on_broken: called once when nothing can be written any more, with why: the reader is gone, or a disk is full;
            what is written afterwards is dropped.
    """

    def __init__(self, fd: int, on_pressure: Callable[[bool], None], on_broken: Callable[[OSError], None]) -> None:
        self._fd = fd
        self._on_pressure = on_pressure
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._ready: list[bytes] = []
        self._pending = memoryview(b"")
        self._size = 0
        self._scheduled = False
        self._watching = False
        self._pressed = False
        self._broken = False
        self._drained: asyncio.Future[None] | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes that were written here and not yet taken by the kernel."""
        return self._size

    def write(self, data: bytes) -> None:
        """Queue `data`; never blocks."""
        if self._broken:
            return
        self._ready.append(data)
        self._size += len(data)
        if not self._scheduled and not self._watching:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        if self._size > limits.OUTPUT_HIGH_WATER_BYTES and not self._pressed:
            self._pressed = True
            self._on_pressure(True)

    async def drain(self) -> None:
        """Return once all is in the kernel or the reader is gone. One caller at a time, which sets the deadline."""
        self._flush()
        if self._size and not self._broken:
            self._drained = self._loop.create_future()
            await self._drained

    def close(self) -> None:
        """Drop what was not written. The descriptor stays the owner's."""
        self._discard()

    def _flush(self) -> None:
        self._scheduled = False
        try:
            while self._size:
                if not self._pending:
                    self._pending = memoryview(b"".join(self._ready))
                    self._ready.clear()
                written = os.write(self._fd, self._pending)
                self._pending = self._pending[written:]
                self._size -= written
        except BlockingIOError:
            self._watch()
        except OSError as error:
            self._discard()
            self._on_broken(error)
        else:
            self._unwatch()
            self._finish_drain()
        self._relieve()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.add_writer(self._fd, self._flush)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self._fd)

    def _relieve(self) -> None:
        if self._pressed and self._size < limits.OUTPUT_LOW_WATER_BYTES:
            self._pressed = False
            self._on_pressure(False)

    def _discard(self) -> None:
        self._unwatch()
        self._broken = True
        self._ready.clear()
        self._pending = memoryview(b"")
        self._size = 0
        self._finish_drain()

    def _finish_drain(self) -> None:
        if self._drained and not self._drained.done():
            self._drained.set_result(None)
