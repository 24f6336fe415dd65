"""A service that outlives the command which starts it: `fastclaw engine start|stop|status`.

    RUN/engine/podman.sock, pid (the service's own line of /proc/PID/stat), log, lock

Whatever a pid file says, only a process with that pid *and* that start time is ever signalled.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from msgspec import Struct

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.linux.helper import Child
from fastclaw.linux.proc import identity, start_time
from fastclaw.podman.service.plan import ServicePaths, ServicePlan, daemon_argv, service_env
from fastclaw.podman.service.service import answers_ping, await_answer, end_service
from fastclaw.podman.service.storage import (
    ENGINE_DIR,
    SOCKET_NAME,
    engine_variables,
    lock_file,
    private_directory,
    service_paths,
)

LOCK_MS = limits.ENGINE_READY_MS + limits.ENGINE_STOP_MS
"""Another process may be bringing the same service up, and failing."""


class EngineStatus(Struct, frozen=True, kw_only=True):
    """How the service is.

    Parameters:
        answers: it replied to a ping just now.
        pid: None where none runs.
        url: where it is, or would be.
        log: file with its stderr.
    """

    running: bool
    answers: bool
    pid: int | None
    url: str
    log: str


async def engine_start(plan: ServicePlan, state_dir: Path, run_dir: Path) -> EngineStatus:
    """Start the service, or find it running. Nothing is left of one that fails to come up.

    Raises:
        StartFailed: as `ManagedService.start`.
    """
    async with _locked_home(run_dir) as home:
        status = await engine_status(run_dir)
        if not status.answers:
            await _end(home)
            await _start(plan, await asyncio.to_thread(service_paths, state_dir, run_dir, home, plan), home)
            status = await engine_status(run_dir)
        return status


async def engine_stop(run_dir: Path) -> EngineStatus:
    """End the service; nothing happens where none runs. Its containers are not touched."""
    async with _locked_home(run_dir) as home:
        await _end(home)
        return await engine_status(run_dir)


async def engine_status(run_dir: Path) -> EngineStatus:
    """Look, without changing anything."""
    home = run_dir / ENGINE_DIR
    socket = home / SOCKET_NAME
    found = _recorded(home)
    return EngineStatus(
        running=found is not None,
        answers=found is not None and await _answers_in_time(str(socket)),
        pid=found,
        url=f"unix://{socket}",
        log=str(home / "log"),
    )


@asynccontextmanager
async def _locked_home(run_dir: Path) -> AsyncIterator[Path]:
    """The service's directory, with no other process in it."""
    private_directory(run_dir)
    private_directory(run_dir / ENGINE_DIR)
    lock = await asyncio.to_thread(lock_file, run_dir / ENGINE_DIR / "lock", LOCK_MS)
    try:
        yield run_dir / ENGINE_DIR
    finally:
        os.close(lock)


def _recorded(home: Path) -> int | None:
    """Pid of the service if the process that wrote the pid file still runs."""
    try:
        pid, started = identity((home / "pid").read_text())
    except (FileNotFoundError, ValueError, IndexError):
        return None
    return pid if start_time(pid) == started else None


async def _start(plan: ServicePlan, paths: ServicePaths, home: Path) -> None:
    log, argv = home / "log", daemon_argv(plan, paths, str(home / "pid"))
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        service = Child(argv, service_env(paths, engine_variables()), {2: log_fd})
    except OSError as error:
        raise StartFailed(f"cannot start podman: {error.strerror}", "engine_unavailable") from error
    finally:
        os.close(log_fd)
    try:
        await await_answer(service, paths.socket, lambda: f": {_last_line(log)}; see {log}")
    except BaseException:
        await end_service(service.pid, service.pidfd, limits.ENGINE_STOP_MS)
        service.close()
        raise
    service.detach()


async def _end(home: Path) -> None:
    """End the recorded service, of whatever command, and forget it."""
    pid = _recorded(home)
    if pid is not None:
        await _end_recorded(home, pid)
    (home / "pid").unlink(missing_ok=True)
    (home / SOCKET_NAME).unlink(missing_ok=True)


async def _end_recorded(home: Path, pid: int) -> None:
    """The descriptor comes first and the identity is checked after: from then on it cannot become another process."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _recorded(home) == pid:
            await end_service(pid, pidfd, limits.ENGINE_STOP_MS)
            _reap(pid)
    finally:
        os.close(pidfd)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # it is not ours, but of an earlier command
        os.waitpid(pid, os.WNOHANG)


async def _answers_in_time(socket: str) -> bool:
    try:
        async with asyncio.timeout(limits.PROGRAM_ANSWER_MS / 1000):
            return await answers_ping(socket)
    except TimeoutError:
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
