"""The pids limit of a container, raised by what is ours in it: the limit that a user has set is for the commands alone.

It is raised as reapers are added, and not for all that there could ever be: a fork bomb takes whatever is free. Where
the cgroup cannot be written to, what is ours counts among the commands' from some number of processes on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastclaw.linux.cgroups import count_in_file
from fastclaw.podman.container_spec import spawner_pids

if TYPE_CHECKING:
    from fastclaw.linux.cgroups import Group

logger = logging.getLogger(__name__)


class PidsLimit:
    """Parameters:
    group: where the pids controller has the container's init; None: nowhere that is seen from here.
    container: its id, which is in the name of its own groups: a limit further up is somebody else's.
    commands: what the commands may have.
    """

    def __init__(self, group: Group | None, container: str, commands: int) -> None:
        self._commands = commands
        nearest = group.nearest("pids.max") if group is not None else None
        self._file = nearest if nearest is not None and container in str(nearest) else None
        self._events = self._file.with_name("pids.events") if self._file is not None else None

    def make_room(self, reapers: int) -> None:
        """For so many reapers with their pumps."""
        if self._file is None:
            logger.info("no pids limit of the container is to be found; reapers count among its processes")
            return
        try:
            self._file.write_text(str(self._commands + spawner_pids(reapers)))
        except OSError as error:
            logger.warning("the container's pids limit cannot be raised: %s", error.strerror)
            self._file = None

    def health(self) -> dict[str, int]:
        """What the commands may have, and how often a fork was refused for it; nothing where no limit is in force."""
        if self._events is None:
            return {}
        return {"limit": self._commands, "hits": count_in_file(self._events, "max")}
