"""What root inside may in one environment, and whose the workspace is: decided before the first container is made.

Gathers the facts for `container_spec.py`, and takes a range of this host's ids for the environment. Starts nothing.
"""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from fastclaw import limits
from fastclaw.engine import container_spec
from fastclaw.engine.container_spec import Ids, NamespaceFacts, read_capabilities
from fastclaw.engine.service.facts import has_mounts_below
from fastclaw.engine.service.storage import private_directory
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.linux import proc
from fastclaw.options import Options
from fastclaw.spawner import users

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Awaitable, Callable

    from fastclaw.engine.dialects import EngineVersion


ID_LOCKS = Path("/run/fastclaw/ids")
"""One directory for all environments of this host, made by its root."""

USER_FILES = ("/etc/passwd", "/etc/group")


class Rights(Struct, frozen=True, kw_only=True):
    """What was decided.

    Parameters:
        capabilities: of commands that are root.
        ids: the host's id of root inside; None: there is no user namespace of our making.
        why_no_ids: why not, in one line.
        user: who the environment's user is, where there is a workspace.
        owner: who the workspace's directory belongs to on the host; None where it is a volume.
        root: the host's user who is root inside, where the engine is rootless.
    """

    capabilities: tuple[str, ...] = ()
    ids: int | None = None
    why_no_ids: str | None = None
    user: Ids | None = None
    owner: Ids | None = None
    root: int | None = None

    @property
    def workspace_option(self) -> str | None:
        """How the workspace's directory is mounted, besides the usual."""
        if self.ids is None or self.owner is None or self.user is None:
            return None
        return container_spec.mount_option(self.ids, self.owner, self.user)

    @property
    def volume_owner(self) -> str | None:
        """Whose a workspace that is a volume must be, as the engine sees it."""
        if self.user is None:
            return None
        first = self.ids or 0
        return f"{first + self.user.uid}:{first + self.user.gid}"

    @property
    def note(self) -> str | None:
        """What a user has to know of the workspace, in one line."""
        if self.ids is not None or self.owner is None or self.user is None:
            return None
        writer = Ids(uid=0, gid=0) if self.owner.uid == self.root else self.owner
        if self.user.uid == writer.uid:
            return None
        return (
            f"the workspace belongs to {self.owner} and the default user is {self.user}, who may be unable to write "
            f"in it (no user namespace: {self.why_no_ids}); set options.user to {writer}"
        )

    def health(self) -> dict[str, Any]:
        """For `health.details.rights`."""
        namespace = {"why_none": self.why_no_ids} if self.ids is None else {"first": self.ids, "count": limits.IDS}
        said: dict[str, Any] = {"capabilities": list(self.capabilities), "user_namespace": namespace}
        if self.owner is not None and self.user is not None:
            said["workspace"] = {"owner": str(self.owner), "user": str(self.user), "is_mapped": self.ids is not None}
        return said


async def settle_rights(
    options: Options,
    *,
    is_here: bool,
    has_spawner: bool,
    version: EngineVersion,
    user: str,
    read_files: Callable[[], Awaitable[list[str]]],
    ranges: IdRanges,
    setup: contextlib.AsyncExitStack,
) -> Rights:
    """Decide, and take a range of ids where that is the decision.

    Parameters:
        is_here: the engine is on this host.
        has_spawner: most likely the spawn lane is taken.
        user: the environment's, by name or number.
        read_files: gives the texts of `USER_FILES` in the image.
        ranges: gives the range of ids.

    Raises:
        StartFailed: `unsupported`: a user namespace is wanted and there can be none; `unknown_user`; `bad_mount`: the
            workspace is not there; `overloaded`: all ranges of ids are taken.
    """
    owner = _owner(options) if is_here else None
    who = None if options.workspace is None else await _identify(user, read_files)
    highest = _highest_number(user if who is None else str(who))
    facts = _facts(options, version, owner, is_here=is_here, highest_id=highest)
    why_none = _why_none(options, facts, has_spawner=has_spawner)
    wanted = options.capabilities
    if wanted is None:
        wanted = "none" if why_none else "default"
    ids = None
    if why_none is None:
        taken = ranges.take(options.id_ranges.first, options.id_ranges.count)
        setup.callback(ranges.give_back, taken)
        ids = taken.first
    root = os.geteuid() if version.rootless else None
    capabilities = read_capabilities(wanted)
    return Rights(capabilities=capabilities, ids=ids, why_no_ids=why_none, user=who, owner=owner, root=root)


def why_no_user_namespace(version: EngineVersion, *, is_here: bool) -> str | None:
    """Why containers without a workspace get none of their own on this engine; None where they do."""
    return container_spec.why_none(_facts(Options(), version, None, is_here=is_here))


def _why_none(options: Options, facts: NamespaceFacts, *, has_spawner: bool) -> str | None:
    if options.user_namespace == "host":
        return "options.user_namespace is host"
    if options.user_namespace == "auto" and not has_spawner:
        return "on the REST lane streams belong to the host's root, and cannot be opened again inside (/dev/stdout)"
    why_none = container_spec.why_none(facts)
    if why_none is not None and options.user_namespace == "private":
        raise StartFailed(f"no user namespace: {why_none}; set options.user_namespace to auto", "unsupported")
    return why_none


def _owner(options: Options) -> Ids | None:
    if options.workspace is None or options.workspace.source is None:
        return None
    try:
        found = os.stat(options.workspace.source)
    except OSError as error:
        raise StartFailed(f"the workspace {options.workspace.source}: {error.strerror}", "bad_mount") from error
    return Ids(uid=found.st_uid, gid=found.st_gid)


def _facts(
    options: Options, version: EngineVersion, owner: Ids | None, *, is_here: bool, highest_id: int = 0
) -> NamespaceFacts:
    source = options.workspace.source if options.workspace else None
    runtime = options.oci_runtime or version.oci_runtime
    major, minor, *_ = platform.release().split(".")
    return NamespaceFacts(
        is_root=os.geteuid() == 0,
        is_here=is_here,
        rootless=version.rootless,
        is_docker=version.docker != "",
        storage_driver=version.storage_driver,
        oci_runtime=runtime.rpartition("/")[2],
        oci_runtime_version=version.oci_runtime_version if runtime == version.oci_runtime else "",
        kernel=(int(major), int(minor.partition("-")[0])),
        user_namespaces=_user_namespaces(),
        highest_id=highest_id,
        owner=owner,
        **_mounts(source),
    )


def _user_namespaces() -> int:
    try:
        return int(Path("/proc/sys/user/max_user_namespaces").read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0  # a kernel without them (CONFIG_USER_NS)


def _mounts(source: str | None) -> dict[str, Any]:
    if source is None:
        return {}
    path, mounted = Path(source), proc.mounts()
    return {"file_system": proc.file_system(path, mounted), "has_mounts": has_mounts_below(path, mounted)}


def _highest_number(user: str) -> int:
    """Of those in `uid`, `uid:gid` and names; without looking into the image no other is known."""
    return max(users.id_number(word) or 0 for word in user.split(":"))


async def _identify(user: str, read_files: Callable[[], Awaitable[list[str]]]) -> Ids:
    """A user's numbers. Root and those that are all numbers are known without looking into the image."""
    uid, colon, gid = user.partition(":")
    if user in ("", "0", "root"):
        return Ids(uid=0, gid=0)
    texts = ["", ""] if colon and uid.isdecimal() and gid.isdecimal() else await read_files()
    try:
        found = users.resolve(user, *texts)
    except ExecFailed as error:
        raise StartFailed(f"options.user or the image's user: {error}", error.reason) from error
    return Ids(uid=found.uid, gid=found.gid)


class IdRange(NamedTuple):
    """A range of this host's user and group ids, which one environment has until it is given back.

    The lock goes with the process that holds it, however that ends. Nothing is written to subuid(5), which is for users
    other than root.

    Parameters:
        first: the host's id of root inside.
        lock: descriptor of a locked file.
    """

    first: int
    lock: int


class IdRanges:
    """Lends ranges of ids to the environments of one process, which looks only at those that it has not lent itself: a
    hundred environments would try a hundred locks for the next one.

    Parameters:
        directory: where the locks are, a file for each range: the same for everybody on this host.
    """

    def __init__(self, directory: Path = ID_LOCKS) -> None:
        self._directory = directory
        self._lent: set[int] = set()

    def __repr__(self) -> str:
        return f"<IdRanges {len(self._lent)} lent>"

    def take(self, first: int, count: int) -> IdRange:
        """The first range that is free; `give_back` follows.

        Parameters:
            first: of the first range; `count` of them lie behind each other.

        Raises:
            StartFailed: `overloaded`: all are taken; `io_error`: a lock cannot be had.
        """
        try:
            private_directory(self._directory)
            for start in range(first, first + count * limits.IDS, limits.IDS):
                lock = None if start in self._lent else self._lock(start)
                if lock is not None:
                    self._lent.add(start)
                    return IdRange(start, lock)
        except OSError as error:
            text = f"no range of ids can be locked in {self._directory}: {error.strerror}"
            raise StartFailed(text, "io_error") from error
        raise StartFailed(
            f"all {count} ranges of ids are taken by other environments; end one, or give more (options.id_ranges)",
            "overloaded",
        )

    def _lock(self, start: int) -> int | None:
        """The descriptor; None where another process has it."""
        lock = os.open(self._directory / str(start), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return lock

    def give_back(self, taken: IdRange) -> None:
        """It is free again."""
        os.close(taken.lock)
        self._lent.discard(taken.first)
