"""The monitors of execs, which an engine of somebody else's keeps: conmon, twice for each, until `exit_command_delay`
is over, five minutes by default. Their container is gone by then, and nobody asks them any more.

Knows the command line of conmon (conmon(8)); no engine.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.linux import proc

if TYPE_CHECKING:
    from collections.abc import Collection


def end_monitors(containers: Collection[str]) -> int:
    """End what monitors execs of these containers, which have been removed; return how many there were.

    Parameters:
        containers: their full ids.
    """
    return sum(_ended(pid, containers) for pid in proc.pids() if _is_monitor(pid, containers))


def _ended(pid: int, containers: Collection[str]) -> bool:
    with suppress(OSError):  # it has ended by itself, or belongs to somebody else
        pidfd = os.pidfd_open(pid)
        try:
            if _is_monitor(pid, containers):  # from the open on it cannot become another process
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False


def _is_monitor(pid: int, containers: Collection[str]) -> bool:
    """Of an exec: the container's own monitor has the container's id for its `-u` as well, and ends with it."""
    words = _command(pid)
    if os.path.basename(words[0]) != "conmon":
        return False
    container, session = (words[words.index(name) + 1] if name in words[:-1] else "" for name in ("-c", "-u"))
    return container in containers and session != container


def _command(pid: int) -> list[str]:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
        return file.read(limits.ENGINE_LOG_BYTES).decode("utf-8", "surrogateescape").split("\0")
    return [""]
