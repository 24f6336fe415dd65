"""Takes the stream of a hijacked engine connection apart into the three pipes of a process.

Podman multiplexes stdout and stderr in frames `stream, 0, 0, 0, length (32 bits, big-endian), payload` that Docker
defined, for execs without a tty (libpod/oci_conmon_exec_common.go, moby's pkg/stdcopy). The format also names 0 (stdin)
and 3 (the daemon's own error); Podman sends neither, so both count as garbage here: passing them on would put bytes
into a stream that the command never wrote.

Owns the connection, the write ends of stdout and stderr and the read end of stdin, and closes each of them exactly
once. Output is read in big pieces into one buffer that all streams share, split, and gathered into the pipes with one
writev per stream and read. Splicing each payload would save the copy but takes two system calls per frame: measured 0.4
to 1.3 of the gather's throughput with frames of 8 KiB, 0.25 to 0.5 with smaller ones (bench/relay_frames.py).

Bounded: what a full pipe did not take is kept (at most one read), and the engine is not read until the pipe has
taken it. So a full stdout also holds stderr back: both share one connection, there is no way to read past.

A failed write to the engine never touches the reading side. Podman closes the connection as soon as the command ends,
whatever stdin is under way; what it had sent before is still read to its end.

Knows nothing of sessions, exit codes or the verdict on a start.
"""

from __future__ import annotations

import asyncio
import os
import socket
from struct import Struct
from typing import TYPE_CHECKING

from fastclaw.engine.rest_lane import engine_errors
from fastclaw.errors import ProtocolError
from fastclaw.limits import ATTACH_GATHER_SLICES, ATTACH_READ_BYTES, RELAY_BURST
from fastclaw.linux.splice import Move, mover

if TYPE_CHECKING:
    from collections.abc import Callable

STDOUT = 1
STDERR = 2
HEADER_BYTES = 8

_HEADER = Struct(">II")
_STREAMS = {STDOUT << 24: STDOUT, STDERR << 24: STDERR}

Slices = list[tuple[int, memoryview]]


class Demultiplexer:
    """Splits the stream as it arrives. Payloads are handed on as slices of the caller's buffer, never copied.

    Attributes:
        stream: of the frame under way.
        remaining: payload bytes of that frame which are still to come.
    """

    __slots__ = ("_header", "remaining", "stream")

    def __init__(self) -> None:
        self._header = b""
        self.remaining = 0
        self.stream = 0

    def feed(self, data: memoryview) -> Slices:
        """The payload slices in `data`, in order; a frame cut by its end goes on with the next call.

        Raises:
            ProtocolError: no frame header where one must be.
        """
        slices: Slices = []
        position, size = 0, len(data)
        while position < size:
            if self.remaining == 0:
                position = self._read_header(data, position, size)
                continue
            end = min(position + self.remaining, size)
            slices.append((self.stream, data[position:end]))
            self.remaining -= end - position
            position = end
        return slices

    def feed_eof(self) -> None:
        """The stream ended.

        Raises:
            ProtocolError: in the middle of a frame.
        """
        if self.remaining or self._header:
            raise ProtocolError("the engine's stream ended in the middle of a frame")

    def _read_header(self, data: memoryview, position: int, size: int) -> int:
        if not self._header and size - position >= HEADER_BYTES:
            self._enter(*_HEADER.unpack_from(data, position))
            return position + HEADER_BYTES
        end = min(position + HEADER_BYTES - len(self._header), size)
        self._header += bytes(data[position:end])
        if len(self._header) == HEADER_BYTES:
            self._enter(*_HEADER.unpack(self._header))
            self._header = b""
        return end

    def _enter(self, word: int, length: int) -> None:
        stream = _STREAMS.get(word)
        if stream is None:
            raise ProtocolError(f"not a frame header: {word:08x} {length:08x}")
        self.stream = stream
        self.remaining = length


_buffer = memoryview(bytearray(ATTACH_READ_BYTES))
"""Shared by all: what a read brings is in the pipes or copied before the loop goes on. One loop per process."""


class Outlet:
    """The write end of one output pipe and what it has not taken yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, on_drained: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_drained = on_drained
        self._pending = memoryview(b"")

    @property
    def full(self) -> bool:
        """Something is kept for later."""
        return len(self._pending) > 0

    def write(self, slices: list[memoryview]) -> None:
        """Into the pipe, or kept. Only while not `full`. A pipe whose reader is gone swallows everything."""
        if self._fd < 0:
            return
        total = sum(map(len, slices))
        written = self._put(slices if len(slices) <= ATTACH_GATHER_SLICES else [memoryview(b"".join(slices))])
        if written < total and self._fd >= 0:
            self._pending = memoryview(b"".join(slices))[written:]
            self._loop.add_writer(self._fd, self._drain)

    def close(self) -> None:
        """Close the pipe now; what is kept is lost. Idempotent."""
        self._pending = memoryview(b"")
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _put(self, slices: list[memoryview]) -> int:
        try:
            return os.writev(self._fd, slices)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            self.close()
            return 0

    def _drain(self) -> None:
        taken = self._put([self._pending])  # a pipe that broke is closed then, and has nothing pending
        self._pending = self._pending[taken:]
        if not self.full:
            if self._fd >= 0:
                self._loop.remove_writer(self._fd)
            self._on_drained()


class Inlet:
    """From the read end of the stdin pipe to the engine, without a copy where the kernel can."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, source: int) -> None:
        self._loop = loop
        self._sock = sock
        self._source = source
        self._move: Move = mover()
        self._watched = -1
        self._wait_for_source()

    def close(self) -> None:
        """Stop reading: the writer of the pipe sees EPIPE. The connection is left as it is. Idempotent."""
        if self._source >= 0:
            self._watch(-1)
            os.close(self._source)
            self._source = -1

    def _pump(self) -> None:
        try:
            for turn in range(RELAY_BURST):
                if not self._move_once(first=turn == 0):
                    return
        except OSError:
            # EPIPE, ECONNRESET: the engine takes no more. Output goes on.
            self.close()

    def _move_once(self, *, first: bool) -> bool:
        try:
            moved = self._move(self._source, self._sock.fileno())
        except BlockingIOError:
            # The source is known to have bytes only at the first try of a wake-up; later it may just be empty.
            self._watch(self._sock.fileno()) if first else self._wait_for_source()
            return False
        if moved == 0:
            self.close()
            self._sock.shutdown(socket.SHUT_WR)
        return moved > 0

    def _wait_for_source(self) -> None:
        self._watch(self._source)

    def _watch(self, fd: int) -> None:
        """Wait for bytes in the source, room in the connection, or nothing (-1)."""
        if fd == self._watched:
            return
        if self._watched == self._source:
            self._loop.remove_reader(self._watched)
        elif self._watched >= 0:
            self._loop.remove_writer(self._watched)
        self._watched = fd
        if fd == self._source:
            self._loop.add_reader(fd, self._pump)
        elif fd >= 0:
            self._loop.add_writer(fd, self._wait_for_source)


class Demux:
    """The relay between one hijacked connection and the pipes of its process. It takes over everything passed in.

    Parameters:
        sock: the hijacked connection, non-blocking.
        leftover: its first bytes, which came with the header.
        stdin, stdout, stderr: read end, write end, write end; non-blocking. stdin is None where there is none.
        merge_stderr: what comes as stderr goes to stdout too; stderr is at its end at once.
        on_eof: called once, when the engine's stream has ended or broken (with the error then). What is kept for full
            pipes still goes out afterwards.

    Attributes:
        reads: how often the engine has sent something.
    """

    def __init__(
        self,
        sock: socket.socket,
        leftover: bytes,
        stdin: int | None,
        stdout: int,
        stderr: int,
        on_eof: Callable[[Exception | None], None],
        *,
        merge_stderr: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_eof = on_eof
        self._demultiplexer = Demultiplexer()
        self._held = b""
        self._reading = False
        self.reads = 0
        self._stdout = Outlet(self._loop, stdout, self._go_on)
        self._stderr = self._stdout
        if merge_stderr:
            os.close(stderr)
        else:
            self._stderr = Outlet(self._loop, stderr, self._go_on)
        self._inlet = Inlet(self._loop, sock, stdin) if stdin is not None else None
        if not leftover or self._take(memoryview(leftover)):
            self._go_on()

    @property
    def awaits_engine(self) -> bool:
        """Whether all that the engine has sent is in the pipes, and its end has not come."""
        return self._reading

    def cut(self) -> None:
        """The engine has nothing more to say, though it does not say so: end the streams in its place."""
        self._end(None)

    def close(self) -> None:
        """Close everything now, whatever is under way. Idempotent."""
        self._end_connection()
        self._stdout.close()
        self._stderr.close()

    @property
    def _ended(self) -> bool:
        return self._sock.fileno() < 0

    def _go_on(self) -> None:
        """A pipe has room again, or it is the start: read on, or close what is through."""
        if self._ended:
            self._close_drained()
        elif not (self._reading or self._stdout.full or self._stderr.full):
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _readable(self) -> None:
        """Read until there is nothing: uvloop drops a poller after one call when the peer reset the connection
        (libuv stops a poll at POLLERR), so what is left would never be announced again."""
        for _ in range(RELAY_BURST):
            try:
                size = self._sock.recv_into(_buffer)
            except BlockingIOError:
                return
            except OSError:
                # The queue is delivered before a reset is reported, so this is the end of what there is.
                size = 0
            if size == 0:
                self._finish()
                return
            self.reads += 1
            if not self._take(_buffer[:size]):
                return
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._reading:
            self._readable()

    def _take(self, data: memoryview) -> bool:
        """Split and write; False when reading has to stop."""
        try:
            slices = self._demultiplexer.feed(data)
        except ProtocolError as error:
            self._end(error)
            return False
        self._write(slices)
        if self._stdout.full or self._stderr.full:
            self._pause()
            return False
        return True

    def _write(self, slices: Slices) -> None:
        if self._stderr is self._stdout:
            if slices:
                self._write_stderr([payload for _, payload in slices], last=slices[-1][0] == STDERR)
            return
        out = [payload for stream, payload in slices if stream == STDOUT]
        if out:
            self._stdout.write(out)
        if len(out) < len(slices):
            err = [payload for stream, payload in slices if stream == STDERR]
            self._write_stderr(err, last=slices[-1][0] == STDERR)

    def _write_stderr(self, err: list[memoryview], *, last: bool) -> None:
        """Keep back what may be the engine's own last line; it is let go as soon as anything follows."""
        tail = self._held + err.pop() if last else b""
        if self._held and not (last and not err and engine_errors.may_be_trailer(tail, self._mid_frame)):
            err.insert(0, memoryview(self._held))
            tail = tail[len(self._held) :]
        self._held = b""
        if tail and engine_errors.may_be_trailer(tail, self._mid_frame):
            self._held = tail
        elif tail:
            err.append(memoryview(tail))
        if err:
            self._stderr.write(err)

    @property
    def _mid_frame(self) -> bool:
        return self._demultiplexer.remaining > 0

    def _finish(self) -> None:
        try:
            self._demultiplexer.feed_eof()
        except ProtocolError as error:
            self._end(error)
            return
        if self._held and not engine_errors.is_trailer(self._held):
            self._stderr.write([memoryview(self._held)])
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        self._end_connection()
        self._close_drained()
        self._on_eof(error)

    def _end_connection(self) -> None:
        if self._ended:
            return
        self._pause()
        if self._inlet:
            self._inlet.close()
        self._sock.close()

    def _close_drained(self) -> None:
        for outlet in (self._stdout, self._stderr):
            if not outlet.full:
                outlet.close()
