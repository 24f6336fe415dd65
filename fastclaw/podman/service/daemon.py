"""A managed service that outlives the command which starts it: `fastclaw engine start|stop|status`.

    RUN/engine/podman.sock, pid (the service's own line of /proc/PID/stat), log, lock

Whatever a pid file says, only a process with that pid *and* that start time is ever signalled.
"""

import asyncio
import os
from pathlib import Path

from msgspec import Struct

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.linux.owner import identity, start_time
from fastclaw.linux.sockets import wait_readable
from fastclaw.podman.service.plan import ServicePaths, ServicePlan, service_env, standing_argv
from fastclaw.podman.service.service import answers_ping
from fastclaw.podman.service.service_process import end_service, reap, spawn_service
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
    """How the standing service is.

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
    home = _home(run_dir)
    lock = await asyncio.to_thread(lock_file, home / "lock", LOCK_MS)
    try:
        status = await engine_status(run_dir)
        if not status.answers:
            await _end(home)
            await _start(plan, await asyncio.to_thread(service_paths, state_dir, run_dir, home, plan), home)
            status = await engine_status(run_dir)
        return status
    finally:
        os.close(lock)


async def engine_stop(run_dir: Path) -> EngineStatus:
    """End the service; nothing happens where none runs. Its containers are not touched."""
    home = _home(run_dir)
    lock = await asyncio.to_thread(lock_file, home / "lock", LOCK_MS)
    try:
        await _end(home)
        return await engine_status(run_dir)
    finally:
        os.close(lock)


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


def _home(run_dir: Path) -> Path:
    private_directory(run_dir)
    private_directory(run_dir / ENGINE_DIR)
    return run_dir / ENGINE_DIR


def _recorded(home: Path) -> int | None:
    """Pid of the service if the process that wrote the pid file still runs."""
    try:
        pid, started = identity((home / "pid").read_text())
    except (FileNotFoundError, ValueError, IndexError):
        return None
    return pid if start_time(pid) == started else None


async def _start(plan: ServicePlan, paths: ServicePaths, home: Path) -> None:
    log = home / "log"
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        pid = spawn_service(
            standing_argv(plan, paths, str(home / "pid")), service_env(paths, engine_variables()), log_fd
        )
    except OSError as error:
        raise StartFailed(f"cannot start podman: {error.strerror}", "engine_unavailable") from error
    finally:
        os.close(log_fd)
    try:
        await _ready(pid, paths.socket, log)
    except BaseException:
        await _end_child(pid)
        raise


async def _ready(pid: int, socket: str, log: Path) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        async with asyncio.timeout(limits.ENGINE_READY_MS / 1000):
            while not await answers_ping(socket):
                if await wait_readable(pidfd, limits.ENGINE_READY_POLL_MS):
                    raise StartFailed(f"podman ended at once: {_last_line(log)}", "engine_unavailable")
    except TimeoutError as error:
        raise StartFailed(
            f"podman does not answer after {limits.ENGINE_READY_MS} ms; see {log}", "engine_timeout"
        ) from error
    finally:
        os.close(pidfd)


async def _end_child(pid: int) -> None:
    """End a child of ours: not reaped yet, so its pid cannot have been reused."""
    pidfd = os.pidfd_open(pid)
    try:
        await end_service(pid, pidfd, limits.ENGINE_STOP_MS)
    finally:
        os.close(pidfd)
        reap(pid)


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
            reap(pid)
    finally:
        os.close(pidfd)


async def _answers_in_time(socket: str) -> bool:
    try:
        async with asyncio.timeout(limits.PROGRAM_ANSWER_MS / 1000):
            return await answers_ping(socket)
    except TimeoutError:
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
