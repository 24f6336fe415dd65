"""Proof that a command really runs, or the reason why it never did.

Owns what happens between the header of a hijacked start and the moment when `start` of the lane may answer. Podman's
header proves nothing; what does:

- inspect names a pid: the OCI runtime's checks have passed. Inspect waits for the container's lock, so it answers once
  the start is through.
- on this host, the pid carries the exec's marker in its environment: execve has happened.
- stdout came, or stderr that is no engine text.

Where the command has ended before any of this was seen, its whole output is read (it has ended: the bytes are there)
and judged by `engine_errors`. What was read is handed on, so nothing is lost.

It does not know of pipes, relays or exit records.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING, NamedTuple

from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.limits import EXECVE_POLL_MS, EXECVE_PROOF_MS, HTTP_READ_BYTES, OCI_ERROR_BYTES
from fastclaw.linux.pidfd import open_pidfd, wait_status
from fastclaw.linux.proc import has_variable
from fastclaw.podman.rest_lane import engine_errors
from fastclaw.podman.rest_lane.attach_frames import STDERR, STDOUT, Demultiplexer
from fastclaw.processes.lane import PROCESS_ID_VARIABLE

if TYPE_CHECKING:
    import socket

    from fastclaw.podman.rest_lane.exec_calls import ExecCalls
    from fastclaw.processes.lane import StartSpec


class Started(NamedTuple):
    """A command that ran.

    Parameters:
        pid, pidfd: the command on this host, as long as it can be held; pidfd is None elsewhere.
        head: raw bytes of the stream read so far.
        exit_code: where it is known already.
        ended: it is over, as far as can be told.
    """

    pid: int
    pidfd: int | None
    head: bytes
    exit_code: int | None
    ended: bool


class _Head:
    """The beginning of a stream, read until it says enough."""

    __slots__ = ("_demultiplexer", "ended", "raw", "stderr", "stdout_seen")

    def __init__(self) -> None:
        self._demultiplexer = Demultiplexer()
        self.raw = b""
        self.stderr = b""
        self.stdout_seen = False
        self.ended = False

    def feed(self, data: bytes) -> None:
        self.raw += data
        for stream, payload in self._demultiplexer.feed(memoryview(data)):
            self.stdout_seen = self.stdout_seen or stream == STDOUT
            if stream == STDERR:
                self.stderr += payload

    @property
    def says_enough(self) -> bool:
        """No engine text can come of this any more."""
        return self.ended or self.stdout_seen or not engine_errors.may_be_failure(self.stderr)


async def prove(
    calls: ExecCalls, session: str, sock: socket.socket, head: bytes, spec: StartSpec, *, local: bool, timeout_ms: int
) -> Started:
    """Wait until the command is known to run or to have run.

    Parameters:
        sock, head: the hijacked connection and what was read of it; stays the caller's.
        local: the engine's pids are this host's.
        timeout_ms: for the wait on the stream of a command that has ended.

    Raises:
        ExecFailed: it never ran, with the reason; or the engine failed; or `io_error`, where there is no descriptor for
            a pidfd. No pidfd is left open.
        SessionGone: as `ExecCalls.inspect`.
    """
    state = await calls.inspect(session)
    had_pid = state.running and state.pid > 0
    if had_pid and not local:
        return Started(0, None, head, None, ended=False)
    pidfd = _hold(state.pid) if had_pid else None
    try:
        if pidfd is not None and await _became_command(state.pid, pidfd, spec):
            return Started(state.pid, pidfd, head, None, ended=False)
        exit_code, raw = await _judge_ended(calls, session, sock, head, spec, had_pid=had_pid, timeout_ms=timeout_ms)
    except BaseException:
        if pidfd is not None:
            os.close(pidfd)
        raise
    return Started(state.pid, pidfd, raw, exit_code, ended=True)


def _hold(pid: int) -> int | None:
    try:
        return open_pidfd(pid)
    except OSError as error:
        raise ExecFailed(f"no pidfd for the process: {error.strerror}", "io_error") from error


async def _became_command(pid: int, pidfd: int, spec: StartSpec) -> bool:
    """Whether execve has happened; False where the process ended before that was seen."""
    loop = asyncio.get_running_loop()
    entry = f"{PROCESS_ID_VARIABLE}={spec.process_id}".encode()
    give_up = loop.time() + EXECVE_PROOF_MS / 1000
    while not has_variable(pid, entry):
        if _is_over(pidfd):
            status = wait_status(pidfd, pid)
            return status is not None and not engine_errors.may_be_failed_execve(status)
        if loop.time() > give_up:
            return True
        await asyncio.sleep(EXECVE_POLL_MS / 1000)
    return True


async def _judge_ended(
    calls: ExecCalls,
    session: str,
    sock: socket.socket,
    leftover: bytes,
    spec: StartSpec,
    *,
    had_pid: bool,
    timeout_ms: int,
) -> tuple[int | None, bytes]:
    """The exit code, where it was asked for, and the stream so far."""
    head = await _read_head(sock, leftover, timeout_ms)
    if head.stdout_seen or not head.stderr or not engine_errors.may_be_failure(head.stderr):
        return None, head.raw
    exit_code = (await calls.inspect(session)).exit_code
    failure = engine_errors.start_failure(spec.cmd[0], exit_code, head.stdout_seen, head.stderr, had_pid=had_pid)
    if failure is not None:
        raise ExecFailed(failure.message, failure.reason)
    return exit_code if head.ended else None, head.raw


async def _read_head(sock: socket.socket, leftover: bytes, timeout_ms: int) -> _Head:
    loop = asyncio.get_running_loop()
    head = _Head()
    try:
        head.feed(leftover)
        async with asyncio.timeout(timeout_ms / 1000):
            while not head.says_enough and len(head.raw) < OCI_ERROR_BYTES:
                data = await loop.sock_recv(sock, HTTP_READ_BYTES)
                head.ended = not data
                head.feed(data)
    except TimeoutError as error:
        raise ExecFailed("the engine does not end the stream of a command that ended", "engine_timeout") from error
    except OSError:
        head.ended = True
    except ProtocolError as error:
        raise ExecFailed(f"the engine's stream makes no sense: {error}", "engine_error") from error
    return head


def _is_over(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
