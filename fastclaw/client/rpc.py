"""The connection with a runtime: its process, and calls with their answers: ids, pipelining, deadlines, the end.

Owns the child and the table of open calls. Knows no method.
"""

import asyncio
import contextlib
import logging
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any

import orjson

from fastclaw import limits
from fastclaw.client.answers import shaped
from fastclaw.errors import FastclawError, InvalidParams, InvalidRequest, IoError, ProtocolError
from fastclaw.progress import Progress, Tell
from fastclaw.server.jsonrpc import LineFramer, Oversized

log = logging.getLogger(__name__)

_CONTENTS = frozenset({"read_file", "write_file", "read_tar", "write_tar"})
_IMAGES = frozenset({"image_pull", "image_build", "image_load"})
_TAKEN_BACK = _CONTENTS | _IMAGES | {"exec", "run", "wait", "environment_start", "list_dir", "remove"}
"""Methods whose calls are cancelled at the runtime too where they are cancelled here: all that may take long."""

_STARTING = _CONTENTS | {"exec", "environment_start"}
"""Those of them whose answer names what goes on: of a content that is its stream, where one was asked for."""


class PendingCalls:
    """The table of open calls of one client.

    Parameters:
        write: takes the bytes of one or more requests.
        writable: cleared while the other side does not read fast enough.
    """

    def __init__(self, write: Callable[[bytes], None], writable: asyncio.Event) -> None:
        self._write = write
        self._writable = writable
        self._loop = asyncio.get_running_loop()
        self._framer = LineFramer()
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._hearers: dict[int, Tell] = {}
        self._taken_back: set[int] = set()
        self._late: dict[int, Any] = {}
        self._slots = asyncio.Semaphore(limits.CLIENT_PENDING)
        self._batch: list[bytes] = []
        self._last_id = 0
        self._lost: Callable[[], FastclawError] | None = None

    async def call(
        self, method: str, params: dict[str, Any] | None, timeout_s: float | None, tell: Tell | None = None
    ) -> Any:
        """Send one request and await its result.

        Parameters:
            tell: hears how it comes on, where the runtime tells; what it raises goes to the log.

        Raises:
            FastclawError: what the other side answered, in its own words.
            IoError: `no_answer` within `timeout_s` seconds, or `runtime_exited`.
            InvalidParams, InvalidRequest: the params are no JSON, or a line too long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answered(method, params, tell)
        except TimeoutError as error:
            raise IoError(f"no answer to {method} within {timeout_s} s", "no_answer") from error

    async def _answered(self, method: str, params: dict[str, Any] | None, tell: Tell | None) -> Any:
        async with self._slots:
            if not self._writable.is_set():
                await self._writable.wait()
            if self._lost is not None:
                raise self._lost()
            self._last_id += 1
            call_id = self._last_id
            self._queue(_encode(call_id, method, params))
            answer = self._open[call_id] = self._loop.create_future()
            if tell is not None:
                self._hearers[call_id] = tell
            try:
                return await answer
            except asyncio.CancelledError:
                self._take_back(call_id, method, answer)
                raise
            finally:
                self._open.pop(call_id, None)
                self._hearers.pop(call_id, None)

    def _take_back(self, call_id: int, method: str, answer: asyncio.Future[Any]) -> None:
        """The caller has given up: what an exec or a run has started is ended. A process that was waited for lives on;
        only the waiting ends."""
        was_late = call_id in self._late
        result = self._late.pop(call_id, None)
        if method not in _TAKEN_BACK or self._lost is not None:
            return
        if method in _STARTING:
            self._taken_back.add(call_id)
        if not answer.cancelled():  # it came in this very turn of the loop, before the cancellation
            self._end_untold(call_id, None if answer.exception() else answer.result())
        elif was_late:
            self._end_untold(call_id, result)
        else:
            self._queue(_encode(None, "cancel", {"id": call_id}))

    def _queue(self, line: bytes) -> None:
        """One write per turn of the loop, whatever number of calls it brought."""
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(line)

    def _flush(self) -> None:
        data = b"".join(self._batch)
        self._batch.clear()
        if self._lost is None:
            self._write(data)

    def feed(self, data: bytes) -> None:
        """Take what one read brought."""
        if self._lost is not None:
            return
        for line in self._framer.feed(data):
            try:
                self._take(line)
            except ProtocolError as error:
                self.lose(partial(ProtocolError, str(error).removeprefix(ProtocolError.prefix)))
                return

    def _take(self, line: bytes | Oversized) -> None:
        if isinstance(line, Oversized):
            raise ProtocolError(f"the runtime sent a line over {limits.MAX_LINE_BYTES} bytes")
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the runtime sent a line that is not JSON: {line[:80]!r}") from error
        for answer in message if isinstance(message, list) else (message,):
            if isinstance(answer, dict) and "method" in answer and "id" not in answer:
                self._hear(answer)
            else:
                self._settle(answer)

    def _hear(self, notice: dict[str, Any]) -> None:
        """A notification. Only of the progress of a call that somebody listens to is anything known here."""
        params = notice.get("params")
        call_id: Any = params.get("id") if isinstance(params, dict) else None
        tell = self._hearers.get(call_id) if type(call_id) is int else None
        if tell is None or notice["method"] != "progress":
            log.debug("dropped a notification %r", notice["method"])
            return
        told = shaped(params, Progress, "progress")
        try:
            tell(told)
        except Exception:
            log.exception("whoever listens to the progress of a call has failed")

    def _settle(self, answer: Any) -> None:
        if not isinstance(answer, dict) or ("result" in answer) == ("error" in answer):
            raise ProtocolError(f"the runtime sent no JSON-RPC answer: {str(answer)[:80]}")
        call_id: Any = answer.get("id")
        waiting = self._open.pop(call_id, None) if type(call_id) is int else None
        if self._taken_back and type(call_id) is int:
            self._end_untold(call_id, answer.get("result"))
        if waiting is not None and waiting.cancelled():
            self._late[call_id] = answer.get("result")  # its call is taken back in the next turn of the loop
        elif waiting is None or waiting.done():
            # Timed out or cancelled meanwhile; a null id is an error about a line that was not ours.
            log.debug("dropped an answer with id %r", call_id)
        elif "error" in answer:
            waiting.set_exception(FastclawError.from_wire(answer["error"]))
        else:
            waiting.set_result(answer["result"])

    def _end_untold(self, call_id: int, result: Any) -> None:
        """End what was answered before its cancel came: its caller does not know of it. An environment with a token is
        left alone: another caller may have it, or the same one may ask again."""
        if call_id not in self._taken_back:
            return
        self._taken_back.remove(call_id)
        if not isinstance(result, dict):
            return
        if "process_id" in result:
            self._queue(_encode(None, "kill", {"process_id": result["process_id"], "grace_ms": 0}))
        elif "environment" in result and "token" not in result:
            self._queue(_encode(None, "environment_stop", {"environment": result["environment"]}))

    def lose(self, reason: Callable[[], FastclawError]) -> None:
        """Nothing more will come: every open call and every later one fails with `reason()`. The first one stays."""
        if self._lost is not None:
            return
        self._lost = reason
        self._writable.set()
        waiting, self._open = self._open, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(reason())


def _encode(call_id: int | None, method: str, params: dict[str, Any] | None) -> bytes:
    """A request, or a notification where there is no id."""
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": call_id, "method": method}
    if call_id is None:
        del request["id"]
    if params is not None:
        request["params"] = params
    try:
        line = orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        path = next(_paths_of_other_text(params, "$"), "$")
        raise InvalidParams(f"the params of {method} are no JSON: {path}: {error}", path=path) from error
    if len(line) > limits.MAX_LINE_BYTES:
        raise InvalidRequest(f"{method} makes a line of {len(line)} bytes", "line_too_long")
    return line


def _paths_of_other_text(value: Any, path: str) -> Iterator[str]:
    """Where there is text that is no UTF-8, such as an argument or a file's name that Python could not decode."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield path
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _paths_of_other_text(name, f"{path}.{name!a}")
            yield from _paths_of_other_text(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _paths_of_other_text(inner, f"{path}[{index}]")


Stderr = int | IO[bytes] | None


class _Stdin(asyncio.Protocol):
    """The write end: `writable` says whether the child keeps up."""

    def __init__(self) -> None:
        self.writable = asyncio.Event()
        self.writable.set()
        self.closed = asyncio.Event()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()
        self.closed.set()


class _Stdout(asyncio.Protocol):
    """The read end."""

    def __init__(self, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self.data_received = on_data  # type: ignore[assignment,method-assign]  # one call less for each read
        self._on_end = on_end
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._on_end()


class Child:
    """One child process whose stdin and stdout carry the protocol.

    Parameters:
        on_data: called with each read of its stdout.
        on_lost: called once, when nothing more can come; told what callers should be told.
    """

    def __init__(
        self, on_data: Callable[[bytes], None], on_lost: Callable[[Callable[[], FastclawError]], None]
    ) -> None:
        self._on_lost: Callable[[Callable[[], FastclawError]], None] | None = on_lost
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._stdin = _Stdin()
        self._stdout = _Stdout(on_data, self._note_end)
        self._input: asyncio.WriteTransport | None = None
        self._output: asyncio.ReadTransport | None = None
        self._notice: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        self._code: int | None = None
        self.writable = self._stdin.writable

    async def start(self, command: Sequence[str], env: Mapping[str, str] | None = None, stderr: Stderr = None) -> None:
        """Start the child.

        Parameters:
            env: its whole environment; None is this process's own.
            stderr: a file or descriptor; None shares this process's own.

        Raises:
            IoError: it cannot be started.
        """
        try:
            # A session of its own: a terminal's Ctrl-C goes to us alone, and we end the runtime in good order.
            self._process = process = subprocess.Popen(  # noqa: ASYNC220 - a vfork; the loops' own do the same
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=env,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise IoError(f"the runtime {command[0]!r} cannot be started: {error.strerror}") from error
        try:
            self._hold(process)
            connecting = self._loop.create_task(self._connect(process))
            try:
                await asyncio.shield(connecting)
            finally:  # cancelled in the middle, uvloop would close a number that is the file's to close
                await asyncio.wait([connecting])
        except BaseException:
            await self.aclose()
            raise

    def _hold(self, process: "subprocess.Popen[bytes]") -> None:
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:  # over already, and reaped by the kernel: see `_reap`
            self._ended.set()
        else:
            self._loop.add_reader(self._pidfd, self._reap)
        process.returncode = 0  # from here the reaping is ours: Popen neither polls nor warns

    async def _connect(self, process: "subprocess.Popen[bytes]") -> None:
        self._input, _ = await self._loop.connect_write_pipe(lambda: self._stdin, process.stdin)
        self._output, _ = await self._loop.connect_read_pipe(lambda: self._stdout, process.stdout)

    # --- How it ends ---

    def _reap(self) -> None:
        """The pidfd is readable: it has ended. Where this process ignores SIGCHLD, the kernel has reaped it and its
        code is lost (wait(2)); Popen would make that a 0."""
        assert self._process is not None
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self._process.pid, os.WNOHANG)
            if not pid:
                return
            self._code = os.waitstatus_to_exitcode(status)
        self._forget_pidfd()
        self._ended.set()
        self._note_end()

    def _forget_pidfd(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _note_end(self) -> None:
        """Stdout or the process has ended. The other one usually follows at once, so the exit code is waited for."""
        if self._stdout.closed.is_set() and self._ended.is_set():
            self._tell_lost()
        elif self._notice is None:
            self._notice = self._loop.call_later(limits.CLIENT_EXIT_NOTICE_MS / 1000, self._tell_lost)

    def _tell_lost(self) -> None:
        if self._notice is not None:
            self._notice.cancel()
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(self._farewell)

    def _farewell(self) -> FastclawError:
        if self._ended.is_set():
            unknown = "; its code is not known, for SIGCHLD is ignored in this process"
            code = unknown if self.code is None else f" with code {self.code}"
            return IoError(f"runtime exited{code}", "runtime_exited", exit_code=self.code)
        return IoError("runtime closed its stdout", "runtime_exited", exit_code=None)

    # --- What the owner asks ---

    @property
    def pid(self) -> int:
        """Process id of the child."""
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is over, however it ended."""
        return self._ended.is_set()

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs, and where it is lost (`_reap`)."""
        return self._code

    def write(self, data: bytes) -> None:
        """Queue bytes for its stdin. What a dead child can no longer read is dropped; `on_lost` tells."""
        assert self._input is not None
        if not self._input.is_closing():
            self._input.write(data)

    def write_eof(self) -> None:
        """Close its stdin once everything queued has left."""
        if self._input is not None and not self._input.is_closing():
            self._input.close()

    def send_signal(self, signum: int) -> None:
        """Send a signal; nothing happens where it has ended."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    async def ended(self, timeout_ms: int) -> bool:
        """Whether it ends within `timeout_ms`."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> int | None:
        """End it, with EOF, then TERM, then KILL, and close every descriptor; idempotent.

        Returns:
            Its exit code, negative for a signal; None where it was never started, or as `code`.
        """
        if self._process is None:
            return None
        try:
            await self._escalate()
        finally:
            self._end_now(self._process)
        await self._released()
        return self.code

    async def _escalate(self) -> None:
        if self._input is None:
            # Not connected: nothing to be polite about.
            return
        for step in (
            self.write_eof,
            lambda: self.send_signal(signal.SIGTERM),
            lambda: self.send_signal(signal.SIGKILL),
        ):
            step()
            if await self.ended(limits.CLIENT_EXIT_MS):
                return

    def _end_now(self, process: "subprocess.Popen[bytes]") -> None:
        """The last step, without waiting for the loop: also where the escalation was cancelled."""
        if self._pidfd >= 0:
            self.send_signal(signal.SIGKILL)
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(limits.CLIENT_EXIT_MS)
            self._reap()
        elif process.returncode is None:  # there was no descriptor for it
            process.kill()
            process.wait()
        self._ended.set()
        self._forget_pidfd()
        if self._input is not None and (not self._input.is_closing() or self._input.get_write_buffer_size()):
            # Not close(): there is no reader left to flush for.
            self._input.abort()
        if self._output is not None:
            self._output.close()
        for pipe, transport in ((process.stdin, self._input), (process.stdout, self._output)):
            if pipe is not None and transport is None:
                pipe.close()

    async def _released(self) -> None:
        """The transports give their pipes back in a later turn of the loop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.CLIENT_EXIT_MS / 1000):
                if self._input is not None:
                    await self._stdin.closed.wait()
                if self._output is not None:
                    await self._stdout.closed.wait()
        self._tell_lost()
