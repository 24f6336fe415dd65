"""One child process that is a service: started, watched by pidfd, ended, reaped. Knows nothing of what it serves.

The child is made by posix_spawn in the calling thread. That matters to a child with a parent-death signal: the kernel
sends it when the *thread* that made the child ends (prctl(2), PR_SET_PDEATHSIG), so a bound service must be started
from a thread that lives as long as fastclaw does: the event loop's, never a pool's.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

from fastclaw import limits
from fastclaw.linux import proc
from fastclaw.linux.packets import close_all
from fastclaw.linux.sockets import wait_readable

DEFAULTED = [
    *(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXFSZ, signal.SIGCHLD)
]
"""Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored in what is started."""


def spawn_service(argv: list[str], env: dict[str, str], stderr_fd: int, stdin_fd: int | None = None) -> int:
    """Start a program in a session of its own, so that a Ctrl-C meant for fastclaw does not reach it.

    Parameters:
        stdin_fd: None is /dev/null.

    Returns:
        its pid. The caller reaps it, or ends before it.

    Raises:
        OSError: the program cannot be started.
    """
    stdin = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    actions = [
        stdin if stdin_fd is None else (os.POSIX_SPAWN_DUP2, stdin_fd, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, stderr_fd, 2),
    ]
    return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=True, setsigdef=DEFAULTED, setsigmask=[])


async def end_process(pidfd: int, grace_ms: int) -> None:
    """TERM, then KILL after `grace_ms`, until the process has ended. Cancelled, it still sends KILL."""
    _send(pidfd, signal.SIGTERM)
    try:
        ended = await wait_readable(pidfd, grace_ms)
    except BaseException:
        _send(pidfd, signal.SIGKILL)
        raise
    if not ended:
        _send(pidfd, signal.SIGKILL)
        await wait_readable(pidfd, grace_ms)


async def end_service(pid: int, pidfd: int, grace_ms: int) -> None:
    """End a program of `spawn_service`, and what is left of its process group then.

    Rootless, Podman starts itself once more in a user namespace and waits for that one; and where it was the first to
    make that namespace it may end at TERM without passing it on (seen with 4.3.1).
    """
    await end_process(pidfd, grace_ms)
    for _ in range(limits.ENGINE_GROUP_LOOKS):
        rest = list(_open_group(pid))
        try:
            for other in rest:
                await end_process(other, grace_ms)
        finally:
            close_all(rest)
        if not rest:
            return


def _open_group(pgrp: int) -> Iterator[int]:
    """Pidfds of all in a process group."""
    for pid in proc.pids():
        if _is_in_group(pid, pgrp):
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                if _is_in_group(pid, pgrp):  # from the open on it cannot become another process
                    yield pidfd
                else:
                    os.close(pidfd)


def _is_in_group(pid: int, pgrp: int) -> bool:
    stat = proc.read_stat(pid)
    return stat is not None and stat.pgrp == pgrp and not stat.gone


def reap(pid: int) -> None:
    """Collect a child that has ended. Nothing happens for one that has not, or that is not a child of this process."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _send(pidfd: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signum)
