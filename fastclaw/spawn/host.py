"""Starts processes of this host itself, without any isolation: the lane of the `local` runtime.

Owns the pipes, the pidfd and the reaping of each command. Knows nothing of sockets, ids or records. A start is one
`subprocess.Popen` on the loop's thread, which returns when exec has succeeded or with the errno of the step that
failed; it takes vfork as long as no user is asked for. Measured, it is as fast as `os.posix_spawn`, with 15 000 open
descriptors too (close_fds costs nothing that can be seen), so a start takes what the kernel takes for it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.lane import PROCESS_ID_VARIABLE, ExitStatus, Grace, Lane, LaneProcess, StartSpec
from fastclaw.spawn import refusals, users
from fastclaw.spawn.orphans import Orphanage, become_subreaper
from fastclaw.spawn.warden import VARIABLE as OWNER_VARIABLE
from fastclaw.transport import procfs
from fastclaw.transport.proctree import end_tree

if TYPE_CHECKING:
    from fastclaw.spawn.guard import Guard

_US = 1_000_000


class HostLane(Lane):
    """Commands as our own children, each leading a session of its own.

    Their environment is ours, unchanged, then the request's variables; PATH of the result finds the command. Signal
    dispositions are default and the mask is empty, whatever fastclaw itself was started with; umask and resource
    limits are inherited.

    Parameters:
        guard: ends everything should this process be killed; None does without.

    Raises:
        StartFailed: the kernel has no subreaper.
    """

    name = "host"

    def __init__(self, guard: Guard | None = None) -> None:
        self.capabilities = ["user", "signal", "kill_tree", "usage", "separate_eof", "signal_number", "reopen_stdio"]
        become_subreaper()
        clean_signals()
        self.orphans = Orphanage()
        self._guard = guard
        self._live: set[HostProcess] = set()
        self._owner = secrets.token_hex(limits.OWNER_TOKEN_BYTES) if guard is None else guard.token
        if guard is not None:
            self.orphans.leave_alone(guard.pid)

    async def start(self, spec: StartSpec, shard: int) -> LaneProcess:
        """Start one process. Nothing is awaited in here, so it cannot be cancelled half-way."""
        began = time.perf_counter_ns()
        identity = None if spec.user is None else users.resolve(spec.user)
        stdio = _Stdio.open(spec.stdin)
        try:
            pid = self._spawn(spec, identity, stdio)
            process = self._adopt(pid, spec.process_id, stdio)
        except BaseException:
            stdio.close_ours()
            raise
        finally:
            stdio.close_theirs()
        process.timings["spawn"] = (time.perf_counter_ns() - began) // 1000
        return process

    def _spawn(self, spec: StartSpec, identity: users.Identity | None, stdio: _Stdio) -> int:
        command, directory = spec.cmd[0], spec.working_dir
        if not command:
            raise ExecFailed("an empty command", "not_found")
        if directory is not None and not directory.startswith("/"):
            raise ExecFailed(f"working directory {directory!r} is not absolute", "bad_working_dir")
        try:
            return _popen(spec.cmd, self._environment(spec), directory, identity, stdio.theirs)
        except OSError as error:
            raise refusals.start_refused(command, directory, spec.user, error) from error
        except ValueError as error:
            raise refusals.text_refused(command, error) from error

    def _environment(self, spec: StartSpec) -> dict[str, str]:
        return {
            **os.environ,
            **spec.env,
            OWNER_VARIABLE: self._owner,
            PROCESS_ID_VARIABLE: spec.process_id,
        }

    def _adopt(self, pid: int, process_id: str, stdio: _Stdio) -> HostProcess:
        try:
            pidfd = os.pidfd_open(pid)
            slot = None if self._guard is None else self._guard.track(pid)
        except BaseException as error:
            _end_unwatched(pid)
            if isinstance(error, OSError):
                raise refusals.resources_refused(error) from error
            raise
        process = HostProcess(self, process_id, pid, pidfd, slot, stdio)
        self.orphans.register(pid)
        self._live.add(process)
        return process

    def _reaped(self, process: HostProcess) -> None:
        self.orphans.forget(process.pid)
        self._live.discard(process)
        if self._guard is not None and process.slot is not None:
            self._guard.untrack(process.slot)

    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        """End these commands, and what commands that ended before have left, in one hunt.

        Raises:
            ExecFailed: `engine_timeout`, as `end_tree`.
        """
        own = [process for process in processes if isinstance(process, HostProcess)]
        roots = [process.pid for process in own if not process.exited.done()]
        ended = await end_tree(self._owner, None, grace, more_roots=roots, variable=OWNER_VARIABLE)
        self.orphans.reap(ended)
        if own:
            await asyncio.wait([process.exited for process in own])

    async def aclose(self) -> None:
        """Stop watching for orphans. The commands have been ended before, each by its `end_tree`."""
        self.orphans.close()

    def health(self) -> dict[str, object]:
        return {"name": self.name, "isolation": "none", "live": len(self._live)}


class HostProcess(LaneProcess):
    """A command of this host."""

    def __init__(self, lane: HostLane, process_id: str, pid: int, pidfd: int, slot: int | None, stdio: _Stdio) -> None:
        self.pid, self.slot = pid, slot
        self.stdin_fd, self.stdout_fd, self.stderr_fd = stdio.stdin, stdio.outputs[0], stdio.outputs[1]
        self.timings: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._lane, self._process_id = lane, process_id
        self._pidfd: int | None = pidfd
        self._led: dict[int, int] = {}
        self._loop.add_reader(pidfd, self._ended)

    def signal(self, signum: int) -> None:
        if self._pidfd is None:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            return
        except OSError as error:
            raise ExecFailed(f"signal {signum}: {os.strerror(error.errno or 0)}", "unsupported") from error

    async def end_tree(self, grace: Grace) -> None:
        root = None if self._pidfd is None else self.pid
        ended = await end_tree(self._process_id, root, grace, led=self._led)
        self._lane.orphans.reap(ended)
        await asyncio.wait([self.exited])

    async def aclose(self) -> None:
        self._forget_pidfd()

    def _ended(self) -> None:
        """The pidfd is readable: the command is a zombie that only we may reap (a child's exit is kept for wait4)."""
        self._forget_pidfd()
        self._led = {self.pid: procfs.ticks_now()}
        status = _reap(self.pid)
        self._lane._reaped(self)
        if not self.exited.done():
            self.exited.set_result(status)

    def _forget_pidfd(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


class _Stdio:
    """Three pipes. Ours do not block; theirs do, as every program expects of its stdio."""

    __slots__ = ("outputs", "stdin", "theirs")

    def __init__(self) -> None:
        self.stdin: int | None = None
        self.outputs: list[int] = []
        self.theirs: list[int] = []

    @classmethod
    def open(cls, stdin: bool) -> _Stdio:
        stdio = cls()
        try:
            stdio._fill(stdin)
        except OSError as error:
            stdio.close_ours()
            stdio.close_theirs()
            raise refusals.resources_refused(error) from error
        return stdio

    def _fill(self, stdin: bool) -> None:
        if stdin:
            theirs, self.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.stdin, False)
        else:
            theirs = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.theirs.append(theirs)
        self._output()
        self._output()

    def _output(self) -> None:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        self.outputs.append(ours)
        self.theirs.append(theirs)
        os.set_blocking(ours, False)

    def close_ours(self) -> None:
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None
        while self.outputs:
            os.close(self.outputs.pop())

    def close_theirs(self) -> None:
        while self.theirs:
            os.close(self.theirs.pop())


def _popen(
    cmd: list[str], env: dict[str, str], directory: str | None, identity: users.Identity | None, stdio: list[int]
) -> int:
    """Start a child and take over its reaping: with a returncode set, Popen neither polls nor warns.

    The directory goes as bytes so that an error's filename tells it from the command.
    """
    child = subprocess.Popen(
        cmd,
        stdin=stdio[0],
        stdout=stdio[1],
        stderr=stdio[2],
        env=env,
        cwd=None if directory is None else os.fsencode(directory),
        start_new_session=True,
        close_fds=True,
        restore_signals=True,
        user=None if identity is None else identity.uid,
        group=None if identity is None else identity.gid,
        extra_groups=None if identity is None else identity.groups,
    )
    child.returncode = 0
    return child.pid


def clean_signals() -> None:
    """Empty our signal mask, and turn ignored signals into handled ones: exec keeps the former for the child.

    `restore_signals` does it for the signals that Python itself ignores. For this process a handler that does nothing
    is the same as ignoring. Only the main thread can install one; elsewhere children inherit what is ignored.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    python = {signal.SIGPIPE, signal.SIGXFSZ}
    for signum in signal.valid_signals() - python:
        if signal.getsignal(signum) is signal.SIG_IGN:
            with suppress(ValueError):
                signal.signal(signum, _nothing)


def _nothing(_signum: int, _frame: object) -> None:
    """A handler that does nothing."""


def _reap(pid: int) -> ExitStatus:
    try:
        _, status, usage = os.wait4(pid, 0)
    except ChildProcessError:
        return ExitStatus(reason="unknown")
    used = {
        "user_us": round(usage.ru_utime * _US),
        "system_us": round(usage.ru_stime * _US),
        "max_rss_kb": usage.ru_maxrss,
    }
    if os.WIFSIGNALED(status):
        return ExitStatus(reason="signaled", signal=os.WTERMSIG(status), usage=used)
    return ExitStatus(reason="exited", exit_code=os.WEXITSTATUS(status), usage=used)


def _end_unwatched(pid: int) -> None:
    """End a child that we cannot watch. It is ours and unreaped, so its number, and its group's, is still its own."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
