"""Where a spawner runs: the interface of all such places, and this host itself, without any isolation.

Owns this host's spawner process and knows its binary and its users. Commands have our environment, directory, umask
and resource limits; each leads a session of its own. If we are killed, the spawner sees its socket close and ends every
tree it keeps, then itself.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import platform
import pwd
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.linux.command_groups import own_groups
from fastclaw.linux.helper import Backoff, Child, start_on_a_socket
from fastclaw.spawner import frames, users
from fastclaw.spawner.link import greet
from fastclaw.spawner.templates import Templates

if TYPE_CHECKING:
    from fastclaw.linux.command_groups import CommandGroups
    from fastclaw.spawner.link import Spawner
    from fastclaw.spawner.templates import Plans

logger = logging.getLogger(__name__)


class SpawnerHost(ABC):
    """A spawner that is up, and what must be known of its surroundings.

    Attributes:
        spawner: takes the requests.
        env: what every process gets before the request's own variables.
        identity: who a process is that names no user; None leaves it who its spawner is.
        templates: what may be forked, where there is anything.
        groups: the control groups that commands may have of their own; None: there are none.
    """

    spawner: Spawner
    env: dict[str, str]
    identity: frames.Identity | None
    templates: Templates | None = None
    groups: CommandGroups | None = None

    async def start_templates(self, plans: Plans | None) -> None:
        """Bring its templates up. The spawner is.

        Raises:
            StartFailed: see `Templates.start`.
        """
        if plans is not None:
            self.templates = Templates(plans, self)
            await self.templates.start()

    def health(self) -> dict[str, object]:
        """What `health` says of it."""
        templates = {} if self.templates is None else {"templates": self.templates.health()}
        return {**self.spawner.counts(), **templates}

    @abstractmethod
    async def identify(self, user: str) -> frames.Identity | None:
        """Who `user` is inside: a name or a number, either with `:group`; None is who its spawner is.

        Raises:
            ExecFailed: `unknown_user`, `permission_denied`.
        """


class HostSlot(ABC):
    """The spawner host in use, which is followed by another when it dies."""

    @property
    @abstractmethod
    def host(self) -> SpawnerHost | None:
        """The one in use; None while there is none."""

    @abstractmethod
    def take(self) -> SpawnerHost:
        """The one for the next start.

        Raises:
            ExecFailed: `container_gone`, it is dead and its successor is not up yet.
        """

    @abstractmethod
    def health(self) -> dict[str, object]:
        """What `health` says of the one in use."""


class LocalHost(SpawnerHost, HostSlot):
    """This host, with one spawner after the other.

    Parameters:
        plans: templates that come up with every spawner.
        collect_bytes: what all runs together may collect.

    Attributes:
        backoff: counts the spawners in a row that did not last.
    """

    def __init__(self, plans: Plans | None = None, collect_bytes: int = limits.RUN_OUTPUT_BYTES) -> None:
        self._plans = plans
        self._collect_bytes = collect_bytes
        self.env = dict(os.environ)
        self.identity = None
        self._child: Child | None = None
        self._reviving: asyncio.Task[None] | None = None
        self.backoff = Backoff(asyncio.get_running_loop().time)

    async def start(self) -> None:
        """Bring the spawner up.

        Raises:
            StartFailed: there is none for this machine, it cannot be started, or it does not answer.
        """
        binary = find_spawner()
        if binary is None:
            raise StartFailed(why_no_spawner() or "no spawner", "unsupported")
        if self.groups is None:
            self.groups = await asyncio.to_thread(own_groups)
        try:
            self._child, ours = start_on_a_socket([str(binary)], env={})
        except OSError as error:
            raise StartFailed(f"cannot start the spawner: {error}", "io_error") from error
        try:
            self.spawner = await greet(
                ours,
                confine=False,
                reaper_uid=frames.NO_USER,
                collect_bytes=self._collect_bytes,
                on_end=self._on_end,
            )
        except BaseException:
            await self._end_child()
            raise
        try:
            await self.start_templates(self._plans)
            if not self.spawner.alive:
                raise StartFailed("the spawner has ended while its templates came up")
        except BaseException:
            await self._close_templates()
            self.spawner.close()
            await self._end_child()
            raise
        self.backoff.came_up()

    def _on_end(self) -> None:
        """It was killed. What it kept is reported gone; the next one comes up, at growing intervals if they die too."""
        logger.warning("the spawner has ended; starting another")
        if self._reviving is not None and not self._reviving.done():
            return  # one is being started, which goes on
        self.backoff.ended()
        self._reviving = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        await self._close_templates()
        await self._end_child()
        while True:
            await asyncio.sleep(self.backoff.pause_s)
            try:
                await self.start()
                return
            except StartFailed as error:
                self.backoff.failed()
                logger.warning("no spawner (%s); trying again", str(error))

    async def identify(self, user: str) -> frames.Identity | None:
        """As `SpawnerHost.identify`, by the user database."""
        return resolve_user(user)

    @property
    def pid(self) -> int:
        """The spawner's own."""
        assert self._child is not None
        return self._child.pid

    @property
    def host(self) -> SpawnerHost | None:
        """This one, while its spawner is up."""
        return self if self.spawner.alive else None

    def take(self) -> SpawnerHost:
        """This one; without a spawner the start fails."""
        return self

    def health(self) -> dict[str, object]:
        """What `health` says of it."""
        return {"isolation": "none", **super().health()}

    async def aclose(self) -> None:
        """Close the spawner's socket; return when it has ended, and with it everything it kept. Idempotent."""
        if self._reviving is not None:
            self._reviving.cancel()
            await asyncio.wait([self._reviving])
        await self._close_templates()
        if hasattr(self, "spawner"):
            self.spawner.close()
        await self._end_child()
        if self.groups is not None:
            await self.groups.aclose()

    # Both attributes are reset at the end only: a revival that is cancelled before leaves the rest to `aclose`.

    async def _close_templates(self) -> None:
        if self.templates is not None:
            await self.templates.aclose()
            self.templates = None

    async def _end_child(self) -> None:
        if self._child is not None:
            await self._child.aclose(limits.SPAWN_EXIT_MS)
            self._child = None


# --- this host's users ---


def resolve_user(user: str) -> frames.Identity | None:
    """The identity of `name`, `uid`, `name:group` or `uid:gid` on this host; None where that is who we are already.

    Raises:
        ExecFailed: `unknown_user`; `permission_denied` where we may not become that user.
    """
    name, group = users.split(user)
    wanted = _listed(name)
    if group is not None:
        wanted = wanted._replace(gid=_gid(group), groups=[])
    if os.geteuid() == 0:
        return wanted
    if (wanted.uid, wanted.gid) == (os.geteuid(), os.getegid()):
        return None
    raise ExecFailed(f"only root can start processes as user {user!r}", "permission_denied")


def _listed(name: str) -> frames.Identity:
    number = users.id_number(name)
    try:
        entry = pwd.getpwnam(name) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError) as error:
        if number is None:
            raise users.unknown(name, "on this host") from error
        return frames.Identity(number, 0, [])
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return frames.Identity(entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def _gid(name: str) -> int:
    number = users.id_number(name)
    try:
        return grp.getgrnam(name).gr_gid if number is None else number
    except (KeyError, ValueError) as error:
        raise users.unknown(name, "on this host") from error


# --- the binary ---

BINARIES = Path(__file__).parent / "bin"

ARCHITECTURES = ("x86_64", "aarch64")
"""Those that spawner/c has system calls for, as uname(2) names them."""


def path_for(architecture: str) -> Path:
    """Where the binary for an architecture belongs, whether it is there or not."""
    return BINARIES / f"spawner-{architecture}"


def find_spawner() -> Path | None:
    """The binary for this machine, or None: `why_no_spawner` says why."""
    path = path_for(platform.machine())
    return path if os.access(path, os.X_OK) else None


def why_no_spawner() -> str | None:
    """Why there is no spawner for this machine, in one line; None where there is one."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return f"the spawner knows {' and '.join(ARCHITECTURES)}, and this machine is {machine}"
    if find_spawner() is None:
        again = "install it again: make install, or pip install --force-reinstall fastclaw"
        return f"{path_for(machine).name} was not built with this package; {again}"
    return None
