"""What /proc says of processes."""

from __future__ import annotations

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
    """Live processes of an exec."""
    return [row.pid for row in proc.scan(PROCESS_ID_VARIABLE) if row.marker == process_id]
