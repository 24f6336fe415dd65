"""The control groups that a process is in, as this host sees them: their limits, and how often those were hit.

Both versions of the interface: cgroups(7), Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst. A file of
theirs is read from memory, in a microsecond, and a read never waits.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits

if TYPE_CHECKING:
    from collections.abc import Callable

CGROUPS = Path("/sys/fs/cgroup")

_NO_LIMIT = 1 << 62
"""Version 1 says 2^63 less a page for none."""
_READ_BYTES = 4_096


class Group(NamedTuple):
    """One control group: its folder, below which mount, and of which version of the interface."""

    folder: Path
    mount: Path
    is_unified: bool

    def nearest(self, name: str) -> Path | None:
        """The file of this name with a limit in it, here or in the nearest group above."""
        for folder in (self.folder, *self.folder.parents):
            if folder == self.mount:
                break
            if limit_in(folder / name) is not None:
                return folder / name
        return None


def group_of(pid: int, controller: str) -> Group | None:
    """Where a controller has a process; None where it has none, or that lies outside what is seen here."""
    with suppress(OSError):
        return group_in(Path(f"/proc/{pid}/cgroup").read_text(), controller, CGROUPS)
    return None


def group_in(memberships: str, controller: str, root: Path) -> Group | None:
    """As `group_of`, by the text of a process's /proc/PID/cgroup. That names hierarchies of version 1 which are not
    mounted here, too, as in a machine with version 2 in namespaces of one with both: they say nothing.
    """
    found = None
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        is_unified = not controllers
        if (not is_unified and controller not in controllers.split(",")) or ".." in path.split("/"):
            continue
        mount = root if is_unified else root / controller
        if is_unified:
            found = Group(mount / path.lstrip("/"), mount, is_unified)
        elif mount.is_dir():
            return Group(mount / path.lstrip("/"), mount, is_unified)
    return found


def limit_in(file: Path) -> int | None:
    """The number in it; None where it cannot be read, or says that there is no limit."""
    with suppress(OSError, ValueError):
        number = int(read(file))
        return number if number < _NO_LIMIT else None
    return None


_LIMIT_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "pids": ("pids.max", "pids.max"),
    "cpu": ("cpu.cfs_quota_us", "cpu.max"),
    "cpuset": ("cpuset.cpus", "cpuset.cpus"),
}


def held_limits(memberships: str, owner: str, root: Path = CGROUPS) -> frozenset[str]:
    """The controllers that hold a limit of a process: an engine may have dropped what it was asked for, without a word.

    Parameters:
        memberships: the text of its /proc/PID/cgroup.
        owner: is in the names of its own groups: a limit further up is another's.
    """
    return frozenset(name for name in _LIMIT_FILES if _holds(group_in(memberships, name, root), name, owner))


def _holds(group: Group | None, controller: str, owner: str) -> bool:
    if group is None:
        return False
    name = _LIMIT_FILES[controller][group.is_unified]
    own = takewhile(lambda folder: owner in str(folder), (group.folder, *group.folder.parents))
    return any(words and not _is_none(words[0]) for words in (words_in(folder / name) for folder in own))


def _is_none(word: str) -> bool:
    """Whether a file of a limit says so that there is none."""
    return word in ("max", "-1") or (word.isdigit() and int(word) >= _NO_LIMIT)


def read(file: Path) -> str:
    """What is in a file of the kernel's, in a fifth of the time that `Path.read_text` takes.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
        return b"".join(parts).decode("ascii")
    finally:
        os.close(fd)


def text_in(file: Path) -> str:
    """What is in it; nothing where it cannot be read."""
    with suppress(OSError):
        return read(file)
    return ""


def words_in(file: Path) -> list[str]:
    """The words in it; none where it cannot be read."""
    return text_in(file).split()


def count_in(text: str, name: str) -> int:
    """Of a file of events, a name and a number a line; 0 where it has no such line."""
    for line in text.splitlines():
        word, _, number = line.partition(" ")
        if word == name and number.isdigit():
            return int(number)
    return 0


def count_in_file(file: Path, name: str) -> int:
    """As `count_in`; 0 where it cannot be read, too."""
    with suppress(OSError):
        return count_in(file.read_text(), name)
    return 0


def pressure_in(folder: Path) -> dict[str, int]:
    """How long some of what is in a group of version 2 has waited in all, in microseconds: for a processor, for memory
    to be given back, for a disk (Documentation/accounting/psi.rst). Nothing where the kernel does not count it."""
    found = {}
    for resource in ("cpu", "memory", "io"):
        with suppress(OSError):
            total = re.search(r"^some .*total=([0-9]+)$", (folder / f"{resource}.pressure").read_text(), re.MULTILINE)
            if total is not None:
                found[f"{resource}_pressure_us"] = int(total[1])
    return found


def throttled_in(text: str) -> int:
    """For how long a group's processes were kept from processors by its limit, in microseconds, by its cpu.stat."""
    return count_in(text, "throttled_usec") or count_in(text, "throttled_time") // 1_000


def processors(group: Group | None) -> dict[str, int]:
    """For `health`: the nearest limit of processor time, in hundredths of a processor, and how long it held them up;
    nothing where none is in force."""
    folder = None if group is None else group.folder
    while group is not None and folder is not None and folder != group.mount:
        if group.is_unified:
            quota, period = [*words_in(folder / "cpu.max"), "max", "1"][:2]
        else:
            quota, period = [
                *words_in(folder / "cpu.cfs_quota_us"),
                *words_in(folder / "cpu.cfs_period_us"),
                "-1",
                "1",
            ][:2]
        if quota not in ("max", "-1"):
            return {
                "limit_percent": int(quota) * 100 // int(period),
                "throttled_us": throttled_in(text_in(folder / "cpu.stat")),
            }
        folder = folder.parent
    return {}


class OomKills(NamedTuple):
    """What the kernel's out-of-memory killer did in an environment while a command lived.

    Parameters:
        kills: how many processes it killed.
        memory: `limit_bytes` and `peak_bytes` of the environment, where they are known.
        is_recent: the last of them may have been the command itself, if it has ended by SIGKILL just now.
    """

    kills: int
    memory: dict[str, int]
    is_recent: bool = True


class MemoryWatch:
    """How often the kernel's out-of-memory killer has been at work in a container.

    Where a limit is in force, the counter is read at the beginning and at the end of each command. Where none is, only
    the host's own shortage kills, and it is read at the ends that look like it; what was killed before a command began
    and was not noticed then is taken for its own.

    Parameters:
        group: where the memory controller has it; None: nothing is ever noticed.
        now: seconds.
    """

    def __init__(self, group: Group | None, now: Callable[[], float] = monotonic) -> None:
        self._group = group
        self._now = now
        self._risen_at = 0.0
        self._limit: Path | None = None
        self._fd = -1
        self._kills = 0
        if self._group is not None:
            self._limit = self._group.nearest("memory.max" if self._group.is_unified else "memory.limit_in_bytes")
            with suppress(OSError):
                self._fd = os.open(self._group.folder / self._events, os.O_RDONLY | os.O_CLOEXEC)
        self._read()

    @property
    def _events(self) -> str:
        return "memory.events" if self._group is None or self._group.is_unified else "memory.oom_control"

    def _read(self) -> int:
        with suppress(OSError):  # there is none, or it is gone with its last process
            kills = count_in(os.pread(self._fd, _READ_BYTES, 0).decode(), "oom_kill")
            if kills != self._kills:
                self._kills, self._risen_at = kills, self._now()
        return self._kills

    def mark(self) -> int:
        """The count of kills when a command begins, for `since`."""
        return self._kills if self._limit is None else self._read()

    def since(self, mark: int, is_killed: bool) -> OomKills | None:
        """What was killed since a mark; None where nothing was.

        Parameters:
            is_killed: the command ended as if it, or a child of its, had been killed.
        """
        if self._limit is None and not is_killed:
            return None
        kills = self._read() - mark
        if kills <= 0:
            return None
        is_recent = self._now() - self._risen_at <= limits.OOM_VICTIM_MS / 1000
        return OomKills(kills, self._use(), is_recent)

    def _use(self) -> dict[str, int]:
        if self._group is None:
            return {}
        folder = self._group.folder if self._limit is None else self._limit.parent
        peak = limit_in(folder / ("memory.peak" if self._group.is_unified else "memory.max_usage_in_bytes"))
        limit = None if self._limit is None else limit_in(self._limit)
        found = {"limit_bytes": limit, "peak_bytes": peak}
        return {name: number for name, number in found.items() if number is not None}

    def health(self) -> dict[str, int]:
        """Limit and peak where there are any; `hits`: how often memory had to be taken back; `oom_kills`."""
        if self._group is None:
            return {}
        folder = self._group.folder if self._limit is None else self._limit.parent
        if self._group.is_unified:
            hits = count_in_file(folder / "memory.events", "max")
        else:
            hits = limit_in(folder / "memory.failcnt") or 0
        return {**self._use(), "hits": hits, "oom_kills": self._read()}

    def close(self) -> None:
        """Read the counter for the last time and close its file. Idempotent."""
        if self._fd >= 0:
            self._read()
            os.close(self._fd)
            self._fd = -1
