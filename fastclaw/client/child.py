"""The served runtime as a child process: its pipes and its end.

Owns the child from its start to its last escalation (EOF, TERM, KILL). Knows bytes, not lines. Not the loop's own
subprocesses: uvloop's leave copies of the pipes open in the child, so that a closed stdout is never seen.
"""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from fastclaw import limits
from fastclaw.errors import FastclawError, IoError

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
