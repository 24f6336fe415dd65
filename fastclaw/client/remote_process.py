"""A process in the served runtime, as a supervisor holds it: the connections to its two sockets, made when first used.

Knows the calls of the runtime, not their wire. A connection is a `Channel`: a loop's transport gives up reading once a
write fails, and what is still unread is lost; in a channel a failed write leaves reading alone.
"""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self

from fastclaw import environment_limits, limits
from fastclaw.errors import InvalidState, IoError, MethodNotFound
from fastclaw.runtime import ExecResult, ExitRecord

if TYPE_CHECKING:
    from fastclaw.client.runtime_client import RuntimeClient


class Channel:
    """A connected stream socket."""

    __slots__ = ("_closed", "_loop", "_socket", "_waiters")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._closed = False

    @classmethod
    async def connect(cls, path: str) -> "Channel":
        """Connect to a listening Unix socket.

        Raises:
            IoError: nobody listens there, or not within `limits.CLIENT_CONNECT_MS`.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(limits.CLIENT_CONNECT_MS / 1000):
                await _connect(connected, path)
        except (OSError, TimeoutError) as error:
            connected.close()
            raise IoError(f"cannot connect to the process's socket {path}: {error}") from error
        except BaseException:
            connected.close()
            raise
        return cls(connected)

    async def read(self, size: int = limits.CLIENT_READ_BYTES) -> bytes:
        """Up to `size` bytes as soon as there are any; empty at the end of the stream.

        Raises:
            IoError: the channel is closed, also while this waits.
        """
        while True:
            self._check()
            try:
                return self._socket.recv(size)
            except BlockingIOError:
                await self._wait("reads", self._loop.add_reader, self._loop.remove_reader)
            except ConnectionResetError:
                # The kernel reports this after the last byte: the other side left input unread. The next read is EOF.
                continue
            except OSError as error:
                raise IoError(f"reading from the process failed: {error}") from error

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, waiting while the process does not read.

        Raises:
            IoError: the process no longer reads (`data["errno"]` says how that showed), or the channel is closed.
        """
        rest = memoryview(data)
        while rest:
            self._check()
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await self._wait("writes to", self._loop.add_writer, self._loop.remove_writer)
            except OSError as error:
                raise IoError(f"the process no longer reads its stdin: {error}", errno=error.errno) from error

    async def read_all(self, size: int) -> bytes:
        """All that comes, to the end of the stream. For megabytes: a thread waits in the kernel, which fills one piece
        of memory, in a third of the time.

        Parameters:
            size: how many bytes are expected.

        Raises:
            IoError: the channel is closed.
        """
        try:
            received: bytes = await self._in_thread(functools.partial(_receive_all, self._socket, size))
            return received
        except OSError as error:
            raise IoError(f"reading from the process failed: {error}") from error

    async def write_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `write`, for megabytes."""
        try:
            await self._in_thread(functools.partial(self._socket.sendall, data))
        except OSError as error:
            raise IoError(f"the process no longer reads its stdin: {error}", errno=error.errno) from error

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """What a blocking call brings. Where this is cancelled, the connection is ended, and with it the call."""
        self._check()
        self._socket.setblocking(True)
        work = self._loop.run_in_executor(None, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            await asyncio.wait((work,))
            raise
        finally:
            self._socket.setblocking(False)

    def write_eof(self) -> None:
        """Half-close: the process reads EOF, its output flows on.

        Raises:
            IoError: the channel is closed.
        """
        self._check()
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise IoError(f"the process's stdin cannot be closed: {error}") from error

    def close(self) -> None:
        """Leave. A task that waits in `read` or `write` gets an `IoError`."""
        if self._closed:
            return
        self._closed = True
        for waiter in self._waiters.values():
            _wake(waiter)
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()

    def _check(self) -> None:
        if self._closed:
            raise IoError("the connection to the process is closed")

    async def _wait(self, does: str, watch: Callable[..., object], unwatch: Callable[[int], object]) -> None:
        """Until the socket is ready for what the task does."""
        if does in self._waiters:
            raise InvalidState(f"another task {does} this stream already", "unsupported")
        waiter = self._waiters[does] = self._loop.create_future()
        watch(self._socket.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            del self._waiters[does]
            if not self._closed:
                unwatch(self._socket.fileno())


def _receive_all(connected: socket.socket, size: int) -> bytes:
    pieces: list[bytes] = []
    while True:
        try:
            piece = connected.recv(size, socket.MSG_WAITALL)
        except ConnectionResetError:
            continue  # as in `Channel.read`
        if not piece:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.append(piece)
        size = environment_limits.CLIENT_FILE_BYTES


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _connect(unconnected: socket.socket, path: str) -> None:
    while True:
        try:
            unconnected.connect(path)
            return
        except BlockingIOError:
            # A Unix socket connects at once or says EAGAIN for a full backlog (connect(2)); it is never "in progress".
            await asyncio.sleep(limits.CLIENT_CONNECT_RETRY_MS / 1000)


Read = Callable[[], Awaitable[bytes]]


class DrainedStream:
    """A stream that ends at its EOF, or when its command has ended and the drain time is over.

    From the exit on, only time spent waiting for output counts towards the drain time, so what a command wrote before
    its end reaches a slow reader too. No more is read after the exit than a pipe and two sockets hold.

    Parameters:
        read: brings the next bytes, none at the end. May be cancelled, and loses nothing by it.
        drain_s: seconds.
    """

    def __init__(self, read: Read, drain_s: float) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._left_s = drain_s
        self._left_bytes = limits.CLIENT_DRAIN_BYTES
        self._has_exited = False
        self._waiting: asyncio.Timeout | None = None
        self._since = 0.0

    def on_exit(self) -> None:
        """The command has ended."""
        self._has_exited = True
        self._since = self._loop.time()
        if self._waiting is not None:
            self._waiting.reschedule(self._since + self._left_s)

    async def read(self) -> bytes:
        """The next bytes; empty at the end, or when nothing more is waited for."""
        if self._left_bytes <= 0:
            return b""
        self._since = self._loop.time()
        try:
            async with asyncio.timeout(self._left_s if self._has_exited else None) as self._waiting:
                data = await self._read()
        except TimeoutError:
            self._left_bytes = 0
            return b""
        finally:
            self._waiting = None
        if self._has_exited:
            self._left_s = max(0.0, self._left_s - (self._loop.time() - self._since))
            self._left_bytes -= len(data)
        return data


class StreamEnds:
    """Decides when reading a process's streams is over: at their ends, or some time after the exit.

    Parameters:
        wait: asks the runtime for the exit; with 0, whether it has come.
        drain_ms: milliseconds.
    """

    def __init__(self, wait: Callable[[int | None], Awaitable[object]], drain_ms: int = limits.DRAIN_MS) -> None:
        self._wait = wait
        self._drain_s = drain_ms / 1000
        self._streams: list[DrainedStream] = []
        self._is_known = False

    def of(self, read: Read) -> Read:
        """The stream with these limits."""
        stream = DrainedStream(read, self._drain_s)
        self._streams.append(stream)
        return stream.read

    async def watch(self) -> None:
        """Wait for the exit and tell the streams, unless the runtime offers no `wait`; cancel it when they have ended.

        Raises:
            IoError: the runtime is gone.
        """
        with contextlib.suppress(MethodNotFound, InvalidState):
            await self._wait(None)
            self._is_known = True
            for stream in self._streams:
                stream.on_exit()

    async def first(self, pouring: asyncio.Task[None], watching: asyncio.Task[None]) -> None:
        """Return when all input is written or the command has ended."""
        await asyncio.wait((pouring, watching), return_when=asyncio.FIRST_COMPLETED)
        if not self._is_known:
            await asyncio.wait((pouring,))

    async def confirm(self) -> None:
        """Ask the runtime for a sign of life once the streams have ended: its own end would have ended them too.

        Raises:
            IoError: the runtime is gone: there may have been more output.
        """
        if not self._is_known:
            with contextlib.suppress(MethodNotFound, InvalidState):
                await self._wait(0)


class RemoteProcess:
    """One process: iterate over it for its stdout, write to it for its stdin.

    One task may read a stream at a time, and one may write.

    Attributes:
        id: the runtime's name for it.
        stdio_addr, stderr_addr: paths of its two sockets.
    """

    def __init__(self, client: "RuntimeClient", started: ExecResult) -> None:
        self.id = started.process_id
        self.stdio_addr = started.stdio_addr
        self.stderr_addr = started.stderr_addr
        self._client = client
        self._stdio: Channel | None = None
        self._stderr: Channel | None = None

    def __repr__(self) -> str:
        return f"<RemoteProcess {self.id}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def connect(self) -> None:
        """Connect both sockets; done by the first read or write where it was not done before. After `aclose`, again.

        Raises:
            IoError: a socket is gone.
        """
        if self._stdio is None:
            self._stdio = await Channel.connect(self.stdio_addr)
        if self._stderr is None:
            self._stderr = await Channel.connect(self.stderr_addr)

    async def _connected(self) -> tuple[Channel, Channel]:
        await self.connect()
        assert self._stdio is not None
        assert self._stderr is not None
        return self._stdio, self._stderr

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data` to its stdin, waiting while the process does not read.

        Raises:
            IoError: it no longer reads.
        """
        stdio, _ = await self._connected()
        await stdio.write(data)

    async def write_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `write`, for megabytes."""
        stdio, _ = await self._connected()
        await stdio.write_all(data)

    async def write_eof(self) -> None:
        """End its stdin; its output flows on.

        Raises:
            IoError: the connection is closed.
        """
        stdio, _ = await self._connected()
        stdio.write_eof()

    async def stdout_read(self, size: int = limits.CLIENT_READ_BYTES) -> bytes:
        """Up to `size` bytes of stdout as soon as there are any; empty at its end.

        Raises:
            IoError: the connection is closed, or the runtime is gone: what came is not all, then.
        """
        stdio, _ = await self._connected()
        return await self._read(stdio, size)

    async def stdout_read_all(self, size: int) -> bytes:
        """All of its stdout, to its end; for megabytes. `size`: how many bytes are expected.

        Raises:
            IoError: as `stdout_read`.
        """
        stdio, _ = await self._connected()
        data = await stdio.read_all(size)
        await StreamEnds(self.wait).confirm()
        return data

    async def stderr_read(self, size: int = limits.CLIENT_READ_BYTES) -> bytes:
        """Up to `size` bytes of stderr as soon as there are any; empty at its end.

        Raises:
            IoError: as `stdout_read`.
        """
        _, stderr = await self._connected()
        return await self._read(stderr, size)

    async def _read(self, channel: Channel, size: int) -> bytes:
        data = await channel.read(size)
        if not data and size:
            await StreamEnds(self.wait).confirm()
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks of stdout until its end. Raises as `stdout_read`."""
        while chunk := await self.stdout_read():
            yield chunk

    async def communicate(self, input: bytes | None = None, drain_ms: int = limits.DRAIN_MS) -> tuple[bytes, bytes]:
        """Send `input`, end its stdin, and read both outputs to their ends, all at the same time.

        A process that does not read all of its input is no error. Where the command has ended and something that it
        left behind holds a stream, that is read for `drain_ms` more.

        Raises:
            IoError: a socket is gone, or the runtime is: what came is not all, then.
        """
        stdio, stderr = await self._connected()
        ends = StreamEnds(self.wait, drain_ms)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(ends.watch())
                pouring = group.create_task(_pour(stdio, input or b""))
                errors = group.create_task(_drain(ends.of(stderr.read)))
                output = await _drain(ends.of(stdio.read))
                await errors
                await ends.confirm()
                await ends.first(pouring, watching)
                watching.cancel()
                pouring.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # one failure cancels the rest
        return output, errors.result()

    async def wait(self, timeout_ms: int | None = None) -> ExitRecord:
        """How it ended, as `RuntimeClient.wait`."""
        return await self._client.wait(self.id, timeout_ms)

    async def kill(self, grace_ms: int | None = None) -> None:
        """End its whole tree, as `RuntimeClient.kill`."""
        await self._client.kill(self.id, grace_ms)

    async def signal(self, signal: int | str, *, group: bool = False) -> None:
        """Send it a signal, as `RuntimeClient.signal`."""
        await self._client.signal(self.id, signal, group=group)

    async def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size, as `RuntimeClient.resize`."""
        await self._client.resize(self.id, rows, columns)

    async def aclose(self) -> None:
        """Leave its sockets. What that means for the process is its `on_disconnect`."""
        for channel in (self._stdio, self._stderr):
            if channel is not None:
                channel.close()
        self._stdio = self._stderr = None


async def _drain(read: Callable[[], Awaitable[bytes]]) -> bytes:
    chunks: list[Any] = []
    while chunk := await read():
        chunks.append(chunk)
    return b"".join(chunks)


async def _pour(channel: Channel, data: bytes) -> None:
    with contextlib.suppress(IoError):
        await channel.write(data)
    with contextlib.suppress(IoError):
        channel.write_eof()
