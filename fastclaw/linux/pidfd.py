"""How a process that is not our child ended, from its pidfd, and signals that cannot hit another process.

Owns two outside facts. Linux 6.15 keeps the wait status behind the pidfd once the process was reaped
(PIDFD_GET_INFO with PIDFD_INFO_EXIT, include/uapi/linux/pidfd.h). Before the reap, and on any kernel, a zombie shows it
in /proc to readers that may trace it. Knows nothing of engines or trees.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from contextlib import suppress

from fastclaw.linux.proc import zombie_status

_INFO = struct.Struct("<Q52xi")
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, 64 bytes)


def send_signal(pidfd: int, pid: int, signum: int, *, group: bool = False) -> None:
    """Send a signal to the process, if it is there.

    Parameters:
        group: to the process group that it is in now, unless that is ours too. It goes by its number, which was its own
            a moment ago: the process had not been reaped.
    """
    with suppress(ProcessLookupError):
        number = os.getpgid(pid) if group else os.getpgrp()
        signal.pidfd_send_signal(pidfd, 0)
        if number == os.getpgrp():
            signal.pidfd_send_signal(pidfd, signum)
        else:
            os.killpg(number, signum)


def wait_status(pidfd: int, pid: int) -> int | None:
    """The wait status as of wait(2), or None where it runs, or where the kernel no longer tells."""
    status = _kept_status(pidfd)
    if status is None:
        status = _zombie_status(pidfd, pid)
    return _kept_status(pidfd) if status is None else status


def _kept_status(pidfd: int) -> int | None:
    """What the kernel keeps after the reap."""
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, 0)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None  # ENOTTY, EINVAL: an older kernel; ESRCH: reaped, and not kept
    mask, status = _INFO.unpack(buffer)
    return status if mask & _PIDFD_INFO_EXIT else None


def _zombie_status(pidfd: int, pid: int) -> int | None:
    """What /proc says before the reap. The number is ours for sure if the pidfd can still be signalled afterwards."""
    try:
        status = zombie_status(pid)
        signal.pidfd_send_signal(pidfd, 0)
    except OSError:
        return None
    return status
