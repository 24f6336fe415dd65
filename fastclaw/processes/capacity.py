"""How many processes this host can hold, and which of its limits binds first.

Takes the limits as numbers and does not know where they were read.
"""

from typing import NamedTuple

from fastclaw import limits
from fastclaw.linux.own_limits import HostLimits


class Capacity(NamedTuple):
    """How many processes, and the name of the limit that says so."""

    processes: int
    binds: str


def capacity(host: HostLimits, asked: int, files_each: int = limits.FILES_PER_PROCESS) -> Capacity:
    """The most processes that `options.max_processes` (`asked`) and the host allow.

    Parameters:
        files_each: descriptors of this process for each.
    """
    ceilings = {
        "options.max_processes": asked,
        "open files": _share(host.nofile, limits.RESERVED_FILES, files_each),
        "processes of this user": _share(host.nproc, limits.RESERVED_PIDS, limits.PIDS_PER_PROCESS),
        "kernel.pid_max": _share(host.pid_max, limits.RESERVED_PIDS, limits.PIDS_PER_PROCESS),
        "memory": _share(host.memory_bytes, 0, limits.MEMORY_PER_PROCESS),
    }
    known = {name: count for name, count in ceilings.items() if count is not None}
    binds = min(known, key=lambda name: known[name])
    return Capacity(known[binds], binds)


def _share(total: int | None, reserved: int, each: int) -> int | None:
    return None if total is None else max(1, (total - reserved) // each)
