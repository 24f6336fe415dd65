"""Control groups of commands' own, below those of their environment: made ahead, limited, joined by the commands.

    version 1    a folder in the hierarchy of each controller that is asked for. A command goes into it by `tasks`, one
                 thread alone: `cgroup.procs` waits until every processor has been idle (12 ms on a quiet machine;
                 kernel/cgroup/cgroup.c, cgroup_threadgroup_rwsem), unless somebody has just done the same
    version 2    one folder. What was in the environment's own goes into a leaf before, since a group whose inner groups
                 have controllers has no processes (cgroups(7), "no internal processes")

We open the file, and the command, which could not, writes to it: the kernel asks whether its opener may (since
CVE-2021-4197; before, whether the writer may move itself, which it may).

A folder of version 1 serves one command after the other; one of memory only while next to nothing is counted in it,
since what a command leaves in memory (files in a tmpfs) stays there. Version 2 forgets no peak: its folders serve once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastclaw import environment_limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.cgroups import (
    CGROUPS,
    Group,
    OomKills,
    count_in,
    group_in,
    limit_in,
    pressure_in,
    throttled_in,
    words_in,
)
from fastclaw.linux.proc import descends_from, is_dead, parse_label, this_process

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from fastclaw.linux.proc import Owner
    from fastclaw.runtime import GroupLimits

logger = logging.getLogger(__name__)

CONTROLLERS = {"memory_bytes": "memory", "cpus": "cpu", "pids": "pids"}
"""Which one holds each of the limits."""

OWN, LEAF = "fastclaw-", "fastclaw-leaf"
"""How names begin; and the one for what was in an environment's own group."""


OOM_KILLS = "oom_kills"
_MEMORY_FILES = (("memory.oom_control", "memory.max_usage_in_bytes"), ("memory.events", "memory.peak"))
"""Of version 1 and 2: what has the kills, and the peak."""
_READ_BYTES = 4_096
"""Of a file of a group: some hundred bytes."""


class _Folder:
    """A control group for one command at a time.

    Parameters:
        path: its own.
        hierarchy: in which it is.
    """

    __slots__ = ("before", "hierarchy", "path", "set")

    def __init__(self, path: str, hierarchy: _Hierarchy) -> None:
        self.path, self.hierarchy = path, hierarchy
        self.set: dict[str, list[tuple[str, str]]] = {}
        self.before: dict[str, int] = {}

    def limit(self, controller: str, limits: GroupLimits) -> None:
        """Write what is not written there already.

        Raises:
            OSError: the kernel refuses it.
        """
        wanted = settings(controller, limits, self.hierarchy.is_unified)
        if self.set.get(controller) == wanted:
            return
        for name, text in wanted:
            try:
                _write(f"{self.path}/{name}", text)
            except OSError as error:
                if not is_fine(name, error):
                    raise
        self.set[controller] = wanted

    def used(self, controller: str) -> dict[str, int]:
        """What its command has had of a controller so far."""
        counts = self._counts(controller)
        return {name: number - self.before.get(name, 0) for name, number in counts.items()}

    def _counts(self, controller: str) -> dict[str, int]:
        path, is_unified = self.path, self.hierarchy.is_unified
        if controller == "pids":
            return {"forks_refused": count_in(_read(f"{path}/pids.events"), "max")}
        if controller == "cpu":
            return {"throttled_us": throttled_in(_read(f"{path}/cpu.stat"))}
        events, peak = _MEMORY_FILES[is_unified]
        found = {OOM_KILLS: count_in(_read(f"{path}/{events}"), "oom_kill")}
        most = _read(f"{path}/{peak}")  # on version 2 since Linux 5.19
        return {**found, "peak_bytes": int(most)} if most else found

    def clear(self, controllers: Iterable[str]) -> bool:
        """Make it as good as new for the next command; whether it is."""
        if self.hierarchy.is_unified:
            return False
        for controller in controllers:
            self.before |= self._counts(controller)
            if controller == "memory" and not self._forget_memory():
                return False
        return True

    def _forget_memory(self) -> bool:
        left = _read(f"{self.path}/memory.usage_in_bytes")
        if not left or int(left) > environment_limits.GROUP_RESIDUE_BYTES:
            return False
        self.before.pop("peak_bytes", None)
        with suppress(OSError):
            _write(f"{self.path}/memory.max_usage_in_bytes", "0")
            return True
        return False


class _Hierarchy:
    """Where groups are made, and those that wait for a command.

    Parameters:
        group: the environment's.
        prefix: of the names.
    """

    def __init__(self, group: Group, prefix: str) -> None:
        self.is_unified = group.is_unified
        self.spares: list[_Folder] = []
        self.making: asyncio.Task[None] | None = None
        self._folder, self._prefix = group.folder, prefix
        self._count = 0

    async def make(self) -> None:
        """Have some more.

        Raises:
            OSError: there can be none.
        """
        try:
            self.spares += [_Folder(str(path), self) for path in await asyncio.to_thread(self._make)]
        finally:
            self.making = None

    def _make(self) -> list[Path]:
        if self.is_unified:
            give_controllers(self._folder, CONTROLLERS.values())
        made: list[Path] = []
        for _ in range(environment_limits.SPARE_GROUPS):
            self._count += 1
            path = self._folder / f"{self._prefix}{self._count}"
            try:
                path.mkdir()
            except OSError:
                if made:
                    break
                raise
            made.append(path)
        return made


class CommandGroups:
    """Makes the control groups for the commands of one environment, and removes them.

    Parameters:
        memberships: the text of /proc/PID/cgroup of a process that is in the environment's groups.
        prefix: of the names of its groups.
        root: where control groups are mounted.
        within: is in the path of the environment's own groups: where it is not, they are others'.
        owner: a process of this host, whose descendants alone may be moved; None: all that is in them may.
        why_none_at_all: why no command can be in one, in one line; None where they can.

    Attributes:
        refused: of each limit that cannot be had, why, in one line.
    """

    def __init__(
        self,
        memberships: str,
        prefix: str = OWN,
        root: Path = CGROUPS,
        *,
        within: str = "",
        owner: int | None = None,
        why_none_at_all: str | None = None,
    ) -> None:
        self.refused: dict[str, str] = {}
        self._hierarchies: dict[str, _Hierarchy] = {}
        self._removals: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._removing: asyncio.Task[None] | None = None
        self._is_closed = False
        by_folder: dict[Path, _Hierarchy] = {}
        for name, controller in CONTROLLERS.items():
            group = group_in(memberships, controller, root)
            why = why_none_at_all or why_none(group, controller, within)
            if why is None and owner is not None:
                why = why_not_below(group, controller, owner)
            if group is None or why is not None:
                self.refused[name] = why or ""
            else:
                self._hierarchies[name] = by_folder.setdefault(group.folder, _Hierarchy(group, prefix))

    async def take(self, limits: GroupLimits) -> CommandGroup:
        """A group for one command, with these limits.

        Raises:
            ExecFailed: `overloaded`, none can be made; `io_error`; `container_gone`.
        """
        asked = {CONTROLLERS[name]: self._hierarchies[name] for name in limits.names}
        while (lacking := next((one for one in asked.values() if not one.spares), None)) is not None:
            await self._more(lacking)
        spares = {one: one.spares.pop() for one in dict.fromkeys(asked.values())}
        group = CommandGroup(self, {controller: spares[one] for controller, one in asked.items()})
        try:
            group.limit(limits)
        except OSError as error:
            group.release()
            raise refused(error) from error
        return group

    async def _more(self, hierarchy: _Hierarchy) -> None:
        if self._is_closed:
            raise ExecFailed("the environment has ended", "container_gone")
        if hierarchy.making is None:
            hierarchy.making = self._own(hierarchy.make())
        try:
            await asyncio.shield(hierarchy.making)
        except OSError as error:
            raise refused(error) from error

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: who waited for it was told

    def take_back(self, folders: dict[str, _Folder]) -> None:
        """Nothing of their command is left in them.

        Parameters:
            folders: by the controllers of which it had some.
        """
        for folder in dict.fromkeys(folders.values()):
            spares, mine = folder.hierarchy.spares, [name for name, one in folders.items() if one is folder]
            if self._is_closed or len(spares) >= environment_limits.MAX_SPARE_GROUPS or not folder.clear(mine):
                self._removals.append(folder.path)
            else:
                spares.append(folder)
        if self._removals and self._removing is None and not self._is_closed:
            self._removing = self._own(self._remove())

    async def _remove(self) -> None:
        pause_s = environment_limits.GROUP_LOOK_MS / 1000
        try:
            while self._removals:
                paths, self._removals = self._removals, []
                busy = await asyncio.to_thread(remove_groups, paths)
                self._removals += busy
                if len(busy) == len(paths):  # the kernel is not through with a process that has been reaped
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, environment_limits.GROUP_LOOK_MAX_MS / 1000)
        finally:
            self._removing = None

    def kill(self, path: str) -> None:
        """See `CommandGroup.kill`. By a thread: the kernel may have to wait for others that change groups."""
        if not self._is_closed:
            self._own(asyncio.to_thread(kill_all, path))

    async def aclose(self) -> None:
        """Remove all that are empty; the others go with the environment's own. Idempotent."""
        self._is_closed = True
        if self._removing is not None:
            self._removing.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for hierarchy in set(self._hierarchies.values()):
            self._removals += [folder.path for folder in hierarchy.spares]
            hierarchy.spares = []
        paths, self._removals = self._removals, []
        if paths:
            await asyncio.to_thread(remove_groups, paths)


class CommandGroup:
    """The control group of one command: on version 1 one for each controller that it needs.

    Parameters:
        owner: takes its folders back.
        folders: by controller.
    """

    __slots__ = ("_folders", "_memory_bytes", "_owner", "_used")

    def __init__(self, owner: CommandGroups, folders: dict[str, _Folder]) -> None:
        self._owner, self._folders = owner, folders
        self._memory_bytes = 0
        self._used: dict[str, int] = {}

    def limit(self, limits: GroupLimits) -> None:
        """Set its limits. Nothing is in it yet.

        Raises:
            OSError: the kernel refuses one.
        """
        self._memory_bytes = limits.memory_bytes or 0
        for controller, folder in self._folders.items():
            folder.limit(controller, limits)

    @property
    def _distinct(self) -> list[_Folder]:
        """On version 2 one folder has all controllers."""
        return list(dict.fromkeys(self._folders.values()))

    @property
    def joins(self) -> int:
        """How many descriptors `open` gives."""
        return len(self._distinct)

    def open(self) -> list[int]:
        """Descriptors by which a command goes into it, with a write of "0". The caller closes them.

        Raises:
            ExecFailed: `overloaded`, no descriptor is left; `container_gone`.
        """
        opened: list[int] = []
        try:
            for folder in self._distinct:
                name = "cgroup.procs" if folder.hierarchy.is_unified else "tasks"
                opened.append(os.open(f"{folder.path}/{name}", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise refused(error) from error
        return opened

    def kill(self) -> None:
        """Have the kernel kill all that is in it, at once, so that nothing forks meanwhile; where it cannot, nothing is
        done: whoever ends the tree ends it anyway (Linux 5.14, version 2, cgroup.kill)."""
        for folder in self._distinct:
            if folder.hierarchy.is_unified:
                self._owner.kill(folder.path)

    @property
    def has_memory(self) -> bool:
        """Whether its memory is limited, and so counted."""
        return "memory" in self._folders

    def look(self) -> None:
        """Read what is counted of its command so far, for `used` and `ooms`."""
        for controller, folder in self._folders.items():
            self._used |= folder.used(controller)
        for folder in self._distinct:
            if folder.hierarchy.is_unified:
                self._used |= pressure_in(Path(folder.path))

    def used(self) -> dict[str, int]:
        """What was counted, by the limits that it has; nothing before a look."""
        return {name: number for name, number in self._used.items() if name != OOM_KILLS}

    def ooms(self) -> OomKills | None:
        """What the kernel had killed in it for want of memory; None: nothing. It has a limit of memory."""
        kills, peak = self._used.get(OOM_KILLS, 0), self._used.get("peak_bytes")
        memory = {"limit_bytes": self._memory_bytes, **({} if peak is None else {"peak_bytes": peak})}
        return OomKills(kills, memory) if kills else None

    def release(self) -> None:
        """Nothing of its command is left. Idempotent."""
        folders, self._folders = self._folders, {}
        self._owner.take_back(folders)


def own_groups(root: Path = CGROUPS) -> CommandGroups:
    """For commands on this host: below the groups that we are in ourselves.

    Their names say whose they are. Those of a fastclaw that has ended are removed.
    """
    memberships = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    for controller in CONTROLLERS.values():
        group = group_in(memberships, controller, root)
        if group is not None:
            abandoned = [str(path) for path in group.folder.glob(f"{OWN}*-*/") if is_dead(owner_of(path.name))]
            remove_groups(abandoned)
    return CommandGroups(memberships, f"{OWN}{this_process().label}-", root, owner=os.getpid())


def owner_of(name: str) -> Owner | None:
    """Who has made a group of this name; None: nobody who says so."""
    return parse_label(name.removeprefix(OWN).rpartition("-")[0])


# --- rules ---


def settings(controller: str, limits: GroupLimits, is_unified: bool) -> list[tuple[str, str]]:
    """What is written to which file, for a controller that is limited. Memory counts with swap: a command that needs
    more ends, and does not crawl."""
    if controller == "pids":
        return [("pids.max", str(limits.pids))]
    if controller == "cpu":
        period = environment_limits.CPU_PERIOD_US
        quota = round((limits.cpus or 0) * period)
        return [("cpu.max", f"{quota} {period}")] if is_unified else [("cpu.cfs_quota_us", str(quota))]
    size = str(limits.memory_bytes)
    if is_unified:
        return [("memory.max", size), ("memory.swap.max", "0")]
    with_swap = "memory.memsw.limit_in_bytes"
    return [(with_swap, "-1"), ("memory.limit_in_bytes", size), (with_swap, size)]  # it is never below the other


def is_fine(name: str, error: OSError) -> bool:
    """Whether a setting that the kernel has refused is none that is needed: swap that is not counted; a share of
    processors above that of a group further up, which holds then (version 1)."""
    if name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
        return error.errno == errno.ENOENT
    return name == "cpu.cfs_quota_us" and error.errno == errno.EINVAL


def why_none(group: Group | None, controller: str, within: str = "") -> str | None:
    """Why there can be no groups with this controller below an environment's, in one line; None: there can.

    Parameters:
        group: the environment's, of this controller.
        within: see `CommandGroups`.
    """
    if group is None or not group.folder.is_dir():
        return f"there is no cgroup controller {controller} to be seen here"
    if within not in str(group.folder):
        return f"the environment has no control group of its own for the controller {controller}"
    if not os.access(group.folder, os.W_OK | os.X_OK):
        return f"this user may make no control groups for the controller {controller}"
    if group.is_unified:
        offered = words_in(group.folder / "cgroup.controllers")
        return None if controller in offered else f"the environment has no cgroup controller {controller}"
    if controller == "memory" and limit_in(group.folder / "memory.use_hierarchy") == 0:
        return "the environment's own limit would not hold for it (memory.use_hierarchy is 0)"
    return None


def why_not_below(group: Group | None, controller: str, owner: int) -> str | None:
    """Why there can be no groups below the one that a process of this host is in, in one line; None: there can.

    On version 2 all that is in that one is moved, unless it has given its controllers on before. Nothing of others is.
    """
    if group is None or not group.is_unified or controller in words_in(group.folder / "cgroup.subtree_control"):
        return None
    others = [pid for pid in words_in(group.folder / "cgroup.procs") if not descends_from(int(pid), owner)]
    if not others and group.folder != group.mount:
        return None
    return "others are in fastclaw's control group; start it by systemd-run --user --scope -p Delegate=yes"


def refused(error: OSError) -> ExecFailed:
    """For a group that cannot be had. Where memory is short, or there are too many (ENOSPC), there may be one later."""
    if error.errno in (errno.ENOENT, errno.ENODEV):
        return ExecFailed("the environment's control group is gone", "container_gone")
    is_short = error.errno in (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EBUSY)
    return ExecFailed(f"no control group: {error.strerror}", "overloaded" if is_short else "io_error")


# --- files ---


def _read(file: str) -> str:
    """What is in it; nothing where it cannot be read. By system calls, since some are read at each exit."""
    with suppress(OSError):
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _READ_BYTES).decode("ascii")
        finally:
            os.close(fd)
    return ""


def _write(file: str | Path, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def give_controllers(folder: Path, wanted: Iterable[str]) -> None:
    """Have the groups below one of version 2 have those of these controllers that it has itself.

    What is in it goes into a leaf. A process that has been read of and ends before it is moved has its number given out
    anew no sooner than all others have been: nobody else is moved by that number.

    Raises:
        OSError: EBUSY: it is never empty, since what is in it forks all the time.
    """
    has, given = words_in(folder / "cgroup.controllers"), words_in(folder / "cgroup.subtree_control")
    lacking = [name for name in wanted if name in has and name not in given]
    if not lacking:
        return
    leaf = folder / LEAF
    leaf.mkdir(exist_ok=True)
    for attempt in range(environment_limits.LEAF_PASSES):
        for pid in words_in(folder / "cgroup.procs"):
            with suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", pid)
        try:
            _write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in lacking))
            return
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == environment_limits.LEAF_PASSES - 1:
                raise


def kill_all(path: str) -> None:
    """Kill what is in a group of version 2, where the kernel can do that at once."""
    with suppress(OSError):
        _write(f"{path}/cgroup.kill", "1")


def remove_groups(paths: Iterable[str]) -> list[str]:
    """Remove control groups; return those in which something still is."""
    busy = []
    for path in paths:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass  # the environment's end was faster
        except OSError as error:
            if error.errno == errno.EBUSY:
                busy.append(path)
            else:
                logger.warning("control group %s cannot be removed: %s", path, error.strerror)
    return busy
