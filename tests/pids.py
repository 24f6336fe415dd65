"""What /proc says of processes."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from fastclaw.linux import proc
from fastclaw.processes.lane import PROCESS_ID_VARIABLE


def children_of(pid: int) -> list[int]:
    """By proc_pid_task(5), the oldest first; empty where there is no such process."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def descendants_of(pid: int) -> list[int]:
    """Everybody below, parents first."""
    found = children_of(pid)
    for one in found:
        found += children_of(one)
    return found


def state_of(pid: int) -> str:
    """Its letter by proc_pid_stat(5); empty where there is no such process."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def is_there(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    return state_of(pid) != ""


def has_not_ended(pid: int) -> bool:
    """The same without zombies: those of a dead parent are init's to reap, whenever it pleases."""
    return state_of(pid) not in {"", "Z"}


def sleeps_in(pid: int) -> str:
    """The function of the kernel in which it sleeps, by proc_pid_wchan(5); empty where there is no such process."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/wchan").read_text()
    return ""


def command_line(pid: int) -> bytes:
    """With a zero byte after each word; empty for a zombie, and where there is no such process."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def marked(process_id: str) -> list[int]:
    """Live processes of an exec, those of this user's subordinate ids among them."""
    variable = f"{PROCESS_ID_VARIABLE}={process_id}".encode()
    rows = proc.scan(PROCESS_ID_VARIABLE)
    return [row.pid for row in rows if row.marker == process_id or variable in _environ_of_another(row.pid)]


def _environ_of_another(pid: int) -> list[bytes]:
    """Of a process in a user namespace of this user's: only who is root in there may open it where it is another's."""
    with suppress(OSError):
        own, its = (os.readlink(f"/proc/{one}/ns/user") for one in ("self", pid))
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid() != 0 and its != own:
            argv = ["nsenter", f"--user=/proc/{pid}/ns/user", "cat", f"/proc/{pid}/environ"]
            return subprocess.run(argv, capture_output=True, check=False).stdout.split(b"\0")
    return []


def init_of(process_id: str) -> int:
    """PID 1 of the container that an exec runs in, as this host counts. Its number need not be the lowest there."""
    namespace = _namespace_of(marked(process_id)[0])
    [init] = [pid for pid in proc.pids() if _namespace_of(pid) == namespace and _is_init(pid)]
    return init


def oldest(pids: list[int]) -> int:
    """Of live processes the one that began first. Its number need not be the lowest: they begin anew at pid_max."""
    return min((stat.starttime, pid) for pid in pids if (stat := proc.read_stat(pid)) is not None)[1]


def _namespace_of(pid: int) -> str:
    with suppress(OSError):  # it is gone, or nobody's to look at, as this host's first process may be
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _is_init(pid: int) -> bool:
    """By the last number of NSpid, proc_pid_status(5)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(line.split()[-1] == "1" for line in lines if line.startswith("NSpid:"))
    return False
