"""The monitors of execs that an engine which is not ours keeps when their container is gone."""

import os
import signal
from collections.abc import Collection
from contextlib import suppress

from fastclaw import engine_limits
from fastclaw.linux import proc


def end_monitors(containers: Collection[str]) -> int:
    """End what monitors execs of these containers, which have been removed; return how many there were.

    An engine that is not ours keeps them, two conmon for each exec, until `exit_command_delay` is over, five minutes by
    default.

    Parameters:
        containers: their full ids.
    """
    return sum(_ended(pid, containers) for pid in proc.pids() if _is_monitor(pid, containers))


def _ended(pid: int, containers: Collection[str]) -> bool:
    with suppress(OSError):  # it has ended by itself, or belongs to another user
        pidfd = os.pidfd_open(pid)
        try:
            if _is_monitor(pid, containers):  # from the open on it cannot become another process
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False


def _is_monitor(pid: int, containers: Collection[str]) -> bool:
    """Of an exec, by the command line of conmon(8): the container's own monitor has the container's id for its `-u` as
    well, and ends with it."""
    words = _command(pid)
    if os.path.basename(words[0]) != "conmon":
        return False
    container, session = (words[words.index(name) + 1] if name in words[:-1] else "" for name in ("-c", "-u"))
    return container in containers and session != container


def _command(pid: int) -> list[str]:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
        return file.read(engine_limits.ENGINE_LOG_BYTES).decode("utf-8", "surrogateescape").split("\0")
    return [""]
