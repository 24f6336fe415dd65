"""Whether containers get a user namespace of their own, whose root has no rights on the host (user_namespaces(7)).

And how a workspace is seen through it: the ids of its owner are those of the environment's user, both ways, and all
others that the environment has are themselves, so that nothing inside writes what belongs to the host's root.
And which of root's capabilities(7) a command may have. Pure: `podman/rights.py` gathers the facts and takes a range.
"""

from collections.abc import Iterable

from msgspec import Struct

from fastclaw import limits
from fastclaw.errors import InvalidParams
from fastclaw.options import Capabilities

IDMAPPED_LAYERS = (5, 19)
"""Since when an image's layers can be mapped without copying them (Linux 5.19, "ovl: support idmapped layers")."""

IDMAPPED_MOUNTS = {"ext4": (5, 12), "xfs": (5, 12), "vfat": (5, 12), "btrfs": (5, 15), "f2fs": (5, 18), "tmpfs": (6, 3)}
"""Since when a file system can be mapped by mount (mount_setattr(2), "ID-mapped mounts")."""

MAPS_WORKSPACES = "crun"
"""Takes a mapping of one's own with a mount (crun(1), "idmap mount options"); runc 1.1.5 ignores it."""


class Ids(Struct, frozen=True, kw_only=True):
    """A user and a group, by number."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


class NamespaceFacts(Struct, frozen=True, kw_only=True):
    """What the rules need to know.

    Parameters:
        is_root: fastclaw is the host's root.
        is_here: the engine is on this host.
        rootless: the engine has a user namespace already, and no ids but its own.
        storage_driver, oci_runtime: the engine's; of the runtime the last part of its path.
        kernel: version and patch level.
        user_namespaces: how many there may be (/proc/sys/user/max_user_namespaces).
        highest_id: of the environment's user and its group, as far as they are known.
        owner: of the workspace's directory on the host; None where it is not the host's.
        file_system: the type of what that directory is on.
        has_mounts: something else is mounted in that directory.
    """

    is_root: bool
    is_here: bool
    rootless: bool
    storage_driver: str
    oci_runtime: str
    kernel: tuple[int, int]
    user_namespaces: int
    highest_id: int = 0
    owner: Ids | None = None
    file_system: str = ""
    has_mounts: bool = False


def why_none(facts: NamespaceFacts) -> str | None:
    """Why there can be no user namespace, in one line; None where there can."""
    if facts.rootless:
        return "a rootless engine has one already, whose root is the engine's user"
    if not (facts.is_root and facts.is_here):
        return "ids of this host are its root's to give away, to an engine that is here"
    if not facts.user_namespaces:
        return "this kernel allows none (sysctl user.max_user_namespaces)"
    if facts.storage_driver != "overlay" or facts.kernel < IDMAPPED_LAYERS:
        wanted = ".".join(map(str, IDMAPPED_LAYERS))
        return f"images would have to be copied: that takes storage driver overlay and Linux {wanted}"
    if facts.highest_id >= limits.IDS:
        return f"user or group {facts.highest_id} is beyond the {limits.IDS} ids that it has"
    return _why_no_workspace(facts)


def _why_no_workspace(facts: NamespaceFacts) -> str | None:
    if facts.owner is None:
        return None
    if 0 in (facts.owner.uid, facts.owner.gid):
        return (
            f"the workspace belongs to {facts.owner} of the host, and what is written inside would be root's; "
            "give it to another user and group (chown)"
        )
    if facts.oci_runtime != MAPS_WORKSPACES:
        return f"the OCI runtime {facts.oci_runtime} cannot map a workspace; {MAPS_WORKSPACES} can"
    if facts.has_mounts:
        return "something else is mounted in the workspace, and only the workspace itself could be mapped"
    since = IDMAPPED_MOUNTS.get(facts.file_system)
    if since is None or facts.kernel < since:
        return f"a workspace on {facts.file_system} cannot be mapped by this kernel"
    return None


def mount_option(first: int, owner: Ids, user: Ids) -> str:
    """The mount option that makes what the owner has the user's, and the other way round.

    Parameters:
        first: the host's id of root inside.
        owner: of the directory, on the host.
        user: of the environment, inside.
    """
    uids, gids = _extents(first, owner.uid, user.uid), _extents(first, owner.gid, user.gid)
    return f"idmap=uids={uids};gids={gids}"


def _extents(first: int, owner: int, user: int) -> str:
    """On disk, on the host, how many: the one id that is meant, and all others of the environment as themselves.

    What root inside has written belongs to an id of a range, and may be a workspace itself: it and the user's change
    places then, since no id may come twice.
    """
    meant, end = first + user, first + limits.IDS
    changed = {owner: meant}
    if first <= owner < end:
        changed[meant] = owner
    extents = [(disk, host, 1) for disk, host in changed.items()]
    start = first
    for stop in (*sorted({meant, owner} & set(range(first, end))), end):
        if stop > start:
            extents.append((start, start, stop - start))
        start = stop + 1
    return "#".join(f"{disk}-{host}-{count}" for disk, host, count in extents)


NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
"""linux/capability.h"""

UNUSUAL = frozenset({"CAP_KILL", "CAP_NET_RAW", "CAP_MKNOD", "CAP_AUDIT_WRITE"})
"""Only by name: packets of one's own making, device files, the host's audit log. And CAP_KILL, with which `kill -9 -1`
ends the spawner's reapers, and so every process of the environment, where without it ends what is root's."""

DEFAULT = tuple(name for name in NUMBERS if name not in UNUSUAL)

PATH = "$.options.capabilities"


def read_capabilities(wanted: Capabilities) -> tuple[str, ...]:
    """The names that are meant, with their prefix, by number.

    Raises:
        InvalidParams: a name that is none, or none of those that may be had.
    """
    if wanted == "none":
        return ()
    if wanted == "default":
        return DEFAULT
    names = {f"CAP_{name.upper().removeprefix('CAP_')}" for name in wanted}
    if unknown := sorted(names - NUMBERS.keys()):
        there_are = ", ".join(name.removeprefix("CAP_") for name in NUMBERS)
        raise InvalidParams(f"{PATH}: {unknown[0]} cannot be had; there are {there_are}", "unsupported", path=PATH)
    return tuple(name for name in NUMBERS if name in names)


def mask(names: Iterable[str]) -> int:
    """A bit for each of them, as capget(2) has it in its first word."""
    return sum(1 << NUMBERS[name] for name in names)
