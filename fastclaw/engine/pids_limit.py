"""The pids limit of a container, raised by what is ours in it: the limit that a user has set is for the commands alone.

It is raised as keepers are added, and not for all that there could ever be: a fork bomb takes whatever is free. Where
the cgroup cannot be written to, what is ours counts among the commands' from some number of processes on.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from fastclaw.decisions.container import spawner_pids

logger = logging.getLogger(__name__)

CGROUPS = Path("/sys/fs/cgroup")


class PidsLimit:
    """Parameters:
    init: the container's, as this host sees it.
    commands: what the commands may have.
    """

    def __init__(self, init: int, commands: int) -> None:
        self._commands = commands
        self._file = find(init, CGROUPS)
        if self._file is None:
            logger.info("no pids limit of the container is to be found; keepers count among its processes")

    def make_room(self, keepers: int) -> None:
        """For so many keepers with their pumps."""
        if self._file is None:
            return
        try:
            self._file.write_text(str(self._commands + spawner_pids(keepers)))
        except OSError as error:
            logger.warning("the container's pids limit cannot be raised: %s", error.strerror)
            self._file = None


def find(pid: int, root: Path) -> Path | None:
    """The nearest pids.max with a number in it among a process's cgroups (cgroups(7), /proc/PID/cgroup).

    None where there is none, or where the process lies outside what is seen here.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            return _nearest(root / "pids", path)
    unified = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), None)
    return None if unified is None else _nearest(root, unified)


def _nearest(root: Path, path: str) -> Path | None:
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        return None
    for length in range(len(parts), 0, -1):
        file = root.joinpath(*parts[:length], "pids.max")
        with suppress(OSError):
            if file.read_text().strip().isdigit():
                return file
    return None
