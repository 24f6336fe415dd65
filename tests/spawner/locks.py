"""Programs that hold up whoever touches a pipe: splice(2) from an empty socket waits with the pipe's mutex held.

Nothing but an end of the socket or a signal to the holder ends that; O_NONBLOCK is of no use to who waits.
All of them let go by themselves after `HOLD_S`.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLD_S = 60
"""Longer than any deadline here."""
_SPLICE = {"x86_64": 275, "aarch64": 76}
"""The system call's number (unistd.h)."""
FIFO = f"""
import os, signal, socket, sys
ours, theirs = socket.socketpair()
fd = os.open(sys.argv[1], os.O_RDWR)
signal.alarm({HOLD_S})
os.splice(theirs.fileno(), fd, 1)
"""
"""Locks the FIFO that it is given the name of."""

STDOUT = f"""
import os, signal, socket, sys
ours, theirs = socket.socketpair()
signal.alarm({HOLD_S})
os.write(1, sys.argv[1].encode())
os.splice(theirs.fileno(), 1, 1)
"""
"""Writes its argument and locks its stdout."""

LEFT_LOCKED = f"""
import os, signal, socket, sys, time
ours, theirs = socket.socketpair()
os.write(1, sys.argv[1].encode())
holder = os.fork()
if holder == 0:
    os.setsid()
    signal.alarm({HOLD_S})
    os.splice(theirs.fileno(), 1, 1)
    os._exit(0)
while not open(f"/proc/{{holder}}/syscall").read().startswith("{_SPLICE.get(platform.machine())} "):
    time.sleep(0.001)
os._exit(3)
"""
"""Writes its argument and ends with 3, as soon as somebody that it leaves has locked its stdout."""


def is_holding(pid: int) -> bool:
    """Whether it sits in splice(2)."""
    with open(f"/proc/{pid}/syscall") as call:
        return call.read().startswith(f"{_SPLICE[platform.machine()]} ")


@contextmanager
def a_locked_fifo(path: str) -> Iterator[None]:
    """It is locked while this lasts."""
    with subprocess.Popen([sys.executable, "-S", "-c", FIFO, path]) as holder:
        try:
            wait_until(lambda: is_holding(holder.pid))
            yield
        finally:
            holder.kill()
