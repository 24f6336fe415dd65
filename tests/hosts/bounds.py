"""Control groups of our own, which bound all that a host runs, and by which all of it is ended.

In the hierarchies of pids and memory with a limit, and without one in those where systemd makes groups below the one
that it is in, so that its are below ours. Groups that others made are left as they are.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "fastclaw-hosts-"
"""Of all that has a name on this machine; the pid of who made it comes behind."""

PIDS = 3_000
"""The suite takes some 600 at most; a bomb among its tests must not fill this machine's 32 768."""
MEMORY_BYTES = 8 << 30
"""A third of what the smallest machine has that the suite is run on."""
LIMITS = {"pids.max": PIDS, "memory.max": MEMORY_BYTES, "memory.limit_in_bytes": MEMORY_BYTES}
"""By the names of both versions of the interface."""
END_S = 30.0
"""How long what was killed may take to be gone. Measured: 0.4 s with 300 processes."""


class UnavailableError(Exception):
    """A host that cannot be had on this machine. The text says why."""


class Bounds:
    """One set of groups, for the host that the process `owner` holds."""

    def __init__(self, owner: int) -> None:
        self.name = f"{PREFIX}{owner}"
        self.folders = [hierarchy / self.name for hierarchy in _hierarchies()]

    def entering(self, argv: list[str]) -> list[str]:
        """A command that is in the groups before it is `argv`."""
        enter = "".join(f"echo $$ >{folder}/cgroup.procs; " for folder in self.folders)
        return ["sh", "-euc", f'{enter}exec "$@"', "sh", *argv]

    def make(self) -> None:
        """Make the groups, with the limits in force.

        Raises:
            UnavailableError: a limit cannot be had.
        """
        try:
            limited = {name for folder in self.folders for name in _make(folder)}
        except OSError as error:
            self.end()
            raise UnavailableError(f"control groups cannot be made here: {error}") from error
        if missing := {"pids", "memory"} - limited:
            self.end()
            raise UnavailableError(f"no control group can limit {' and '.join(sorted(missing))} here")

    def end(self) -> None:
        """Kill all that is in them, and remove them.

        Raises:
            TimeoutError: something does not end.
        """
        self.kill()
        for folder in [*self.folders, *CGROUPS.glob(f"*/{self.name}")]:
            for path, _, _ in os.walk(folder, topdown=False):
                os.rmdir(path)

    def kill(self) -> None:
        """Kill all that is in them, and wait until it is gone.

        Raises:
            TimeoutError: something does not end.
        """
        deadline = time.monotonic() + END_S
        while pids := self._pids():
            for pid in pids:
                _kill_and_wait(pid)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes in {self.name} do not end: {pids}")

    def _pids(self) -> set[int]:
        return {pid for folder in self.folders for file in folder.rglob("cgroup.procs") for pid in _read(file)}


def _make(folder: Path) -> list[str]:
    """Make a group; which controllers bound it."""
    folder.mkdir()
    bounding = [(folder / file, limit) for file, limit in LIMITS.items() if (folder / file).exists()]
    for file, limit in bounding:
        file.write_text(str(limit))
    return [file.name.partition(".")[0] for file, _ in bounding]


def _read(file: Path) -> list[int]:
    with suppress(OSError):
        return [int(line) for line in file.read_text().split()]
    return []


def _kill_and_wait(pid: int) -> None:
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], END_S)
        finally:
            os.close(pidfd)


def _hierarchies() -> list[Path]:
    """The mounts of those that are joined: all of version 2, and of version 1 what needs no more than a folder."""
    joined = [CGROUPS, *(CGROUPS / name for name in ("pids", "memory", "unified", "systemd"))]
    return [path for path in joined if (path / "cgroup.procs").exists()]


@contextmanager
def bounds() -> Iterator[Bounds]:
    """Groups that are there for a while; whatever is still in them at the end is ended.

    Raises:
        UnavailableError: this machine, or this user, cannot have them.
    """
    if os.geteuid() != 0:
        raise UnavailableError("needs root: it makes control groups and namespaces")
    groups = Bounds(os.getpid())
    groups.make()
    try:
        yield groups
    finally:
        groups.end()
