"""Who a process is, beyond its pid: start time and boot id, so that a reused pid is never taken for its predecessor.

Does not know what is owned.
"""

import os
from functools import cache
from pathlib import Path

from fastclaw.linux import proc
from fastclaw.network.bridge.firewall import Holder
from fastclaw.podman.container_spec import Owner

PROC = Path("/proc")


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, or None where there is none. A zombie counts as gone."""
    stat = proc.read_stat(pid)
    return None if stat is None or stat.gone else stat.starttime


def identity(line: str) -> tuple[int, int]:
    """Pid and start time in a line of /proc/PID/stat."""
    return int(line.partition(" ")[0]), proc.parse_stat(line.encode()).starttime


def own_start_time() -> int:
    """Start of this process."""
    ticks = start_time(os.getpid())
    if ticks is None:
        raise RuntimeError("this process is not in /proc")
    return ticks


def own_label() -> str:
    """Who we are, as it stands on what we own."""
    pid, started = os.getpid(), own_start_time()
    return Owner(pid=pid, start_time=started, boot_id=boot_id(), pid_namespace=pid_namespace()).label


def own_holder() -> Holder:
    """Who we are, as it stands in the names of our firewall tables."""
    return Holder(pid=os.getpid(), start_time=own_start_time(), pid_namespace=pid_namespace())


def pid_namespace() -> int:
    """Inode of this process's PID namespace: in another one pids mean somebody else."""
    return os.stat("/proc/self/ns/pid").st_ino


@cache
def boot_id() -> str:
    """The kernel's random id of this boot (random(4))."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()
