"""Who a process is, beyond its pid: start time and boot id, so that a reused pid is never taken for its predecessor.

What fastclaw makes outside of itself says whose it is by such an identity: containers and volumes in a label, nftables
tables in their name. Does not know what is owned.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastclaw.linux import proc as procfs

PROC = Path("/proc")

_LABEL = re.compile(r"([0-9]{1,20}):([0-9]{1,20}):([^:]+):([0-9]{1,20})")


class Owner(NamedTuple):
    """The process that made something.

    Parameters:
        start_time: clock ticks since boot (/proc/PID/stat, field 22).
        pid_namespace: inode of its /proc/PID/ns/pid: elsewhere its pid means somebody else, or nobody.
        boot_id: /proc/sys/kernel/random/boot_id; None for what lasts no longer than a boot.
    """

    pid: int
    start_time: int
    pid_namespace: int
    boot_id: str | None = None

    @property
    def label(self) -> str:
        """As it stands in a container's label."""
        return f"{self.pid}:{self.start_time}:{self.boot_id}:{self.pid_namespace}"

    @property
    def table_prefix(self) -> str:
        """How the names of its nftables tables begin."""
        return f"fastclaw_{self.pid}_{self.start_time}_{self.pid_namespace}_"

    def is_gone(self, here: "Owner", start_time: int | None) -> bool:
        """Whether it has ended for certain.

        Parameters:
            here: a process of this boot and PID namespace; of another namespace we know nothing.
            start_time: of the process that has its pid now; None where there is none.
        """
        if self.boot_id not in (None, here.boot_id):
            return True
        return self.pid_namespace == here.pid_namespace and self.start_time != start_time


def parse_label(label: str) -> Owner | None:
    """The owner in a label, or None where the label is not one of ours."""
    found = _LABEL.fullmatch(label)
    if found is None:
        return None
    pid, start, boot, namespace = found.groups()
    return Owner(int(pid), int(start), int(namespace), boot)


def is_dead(owner: Owner | None) -> bool:
    """Whether it has ended for certain. What names no owner is nobody's to remove."""
    return owner is not None and owner.is_gone(this_process(), start_time(owner.pid))


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, or None where there is none. A zombie counts as gone."""
    stat = procfs.read_stat(pid)
    return None if stat is None or stat.gone else stat.starttime


def identity(line: str) -> tuple[int, int]:
    """Pid and start time in a line of /proc/PID/stat."""
    return int(line.partition(" ")[0]), procfs.parse_stat(line.encode()).starttime


def this_process() -> Owner:
    """Who we are."""
    ticks = start_time(os.getpid())
    if ticks is None:
        raise RuntimeError("this process is not in /proc")
    return Owner(os.getpid(), ticks, os.stat("/proc/self/ns/pid").st_ino, boot_id())


@cache
def boot_id() -> str:
    """The kernel's random id of this boot (random(4))."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()
