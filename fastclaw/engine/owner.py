"""Who a process is, beyond its pid: start time and boot id, so that a reused pid is never taken for its predecessor.

Knows /proc. Does not know what is owned.
"""

import os
from functools import cache
from pathlib import Path

PROC = Path("/proc")


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, or None where there is none (proc(5), /proc/PID/stat field 22).

    A zombie counts as gone: it runs nothing any more.
    """
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return parse_stat(stat)[1]


def parse_stat(line: str) -> tuple[int, int | None]:
    """Pid and start time in a line of /proc/PID/stat; None for one that has ended. The name may hold any character."""
    fields = line.rpartition(")")[2].split()
    return int(line.partition(" ")[0]), None if fields[0] in "ZX" else int(fields[19])


def own_start_time() -> int:
    """Start of this process."""
    ticks = start_time(os.getpid())
    if ticks is None:
        raise RuntimeError("this process is not in /proc")
    return ticks


@cache
def boot_id() -> str:
    """The kernel's random id of this boot (random(4))."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()
