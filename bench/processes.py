"""What processes have used, of /proc: CPU time, resident memory, and what the kernel keeps for all of them together."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from pathlib import Path

from fastclaw.linux import proc

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
_KCMP = {"x86_64": 312, "aarch64": 272}
_KCMP_VM = 1
_KERNEL_FIELDS = ("Slab", "KernelStack", "PageTables", "Percpu")


def descendants(pid: int) -> list[int]:
    """Everything below a process."""
    parents = {one: stat.ppid for one in proc.pids() if (stat := proc.read_stat(one)) is not None}
    children: dict[int, list[int]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    found, todo = list[int](), [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def cpu_seconds(pid: int) -> float:
    """What the live threads of a process have used; 0 for one that is gone.

    In nanoseconds by schedstat where the kernel has it: utime and stime of proc_pid_stat(5) count in steps of 10 ms.
    """
    with suppress(OSError):
        threads = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_bytes().split()[0]) for thread in threads) / 1e9
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S
    return 0.0


def resident_kb(pid: int) -> int:
    """Resident memory; 0 for a process that is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_KB
    return 0


def proportional_kb(pid: int) -> int:
    """Resident memory, of what is shared only this process's part (PSS); all of it where we may not look."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return resident_kb(pid)


def runs(pid: int, program: str) -> bool:
    """Whether a process executes this file, as far as we may look."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe") == program
    return False


def name(pid: int) -> str:
    """The command's name (proc_pid_comm(5)), empty for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    return ""


def have_one_memory(left: int, right: int) -> bool:
    """Whether two processes share their address space (CLONE_VM), by kcmp(2); True where we may not ask."""
    number = _KCMP.get(platform.machine())
    if number is None:
        return True
    return ctypes.CDLL(None).syscall(number, left, right, _KCMP_VM, 0, 0) in (0, -1)


def memory_info_kb() -> dict[str, int]:
    """/proc/meminfo by name."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {fields[0].rstrip(":"): int(fields[1]) for fields in lines}


def kernel_kb() -> int:
    """What the kernel keeps for all processes, sockets and pipes: slabs, stacks, page tables, memory of each CPU."""
    info = memory_info_kb()
    return sum(info[field] for field in _KERNEL_FIELDS)
