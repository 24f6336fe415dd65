"""Who a `user` of a request is: a name or a number, either with `:group`, as in Podman's `--user`.

Texts in, an identity out: of /etc/passwd and /etc/group of a container (passwd(5), group(5)). What this host's user
database says is asked for in spawner_host.py. A number without an entry is its own user with group 0
(moby/sys/user, GetExecUser).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.spawner.frames import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

Wanted = TypeVar("Wanted")

MAX_ID = 2**32 - 2
"""The kernel keeps (uid_t)-1 for "no change" (setuid(2))."""


def resolve(user: str, passwd: str, group: str) -> Identity:
    """The identity of `name`, `uid`, `name:group` or `uid:gid`.

    Parameters:
        passwd, group: texts of the two files; empty where there are none.

    Raises:
        ExecFailed: `unknown_user`; `permission_denied` for the number that the reapers have.
    """
    steps = resolving(user, passwd, group)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: Identity = done.value
            return found


def resolving(user: str, passwd: str, group: str) -> Generator[None, None, Identity]:
    """The steps of `resolve`, with a pause every few lines: a container's root may have made the files long."""
    name, group_name = split(user)
    found = yield from _user(name, passwd, group)
    if group_name is not None:
        found = found._replace(gid=(yield from _group(group_name, group)), groups=[])
    if found.uid == limits.REAPER_UID:
        raise ExecFailed(f"user {found.uid} is fastclaw's own; take another", "permission_denied")
    return found


def split(user: str) -> tuple[str, str | None]:
    """The user and the group, by name or number, that a request names; None: the user's own groups."""
    name, colon, group = user.partition(":")
    return name, group if colon else None


def _user(name: str, passwd: str, group: str) -> Generator[None, None, Identity]:
    number = id_number(name)

    def entry(fields: list[str]) -> tuple[str, Identity] | None:
        # A number is that number, whatever a container's root has written: else it could make one mean itself.
        if number is None and fields[0] != name:
            return None
        uid, gid = id_number(fields[2]), id_number(fields[3])
        if uid is None or gid is None or number not in (None, uid):
            return None
        return fields[0], Identity(uid, gid, [], fields[5] or "/")

    found = yield from _first(passwd, 7, entry)
    if found is not None:
        listed, identity = found
        return identity._replace(groups=(yield from _memberships(listed, identity.gid, group)))
    if number is None:
        raise unknown(name)
    return Identity(number, 0, [])


def _memberships(name: str, gid: int, group: str) -> Generator[None, None, list[int]]:
    """The groups that list a user, the primary one first; as many as a request can carry."""
    listed = {gid: None}
    member = f",{name},"

    def add(fields: list[str]) -> bool | None:
        if member in f",{fields[3]}," and (number := id_number(fields[2])) is not None:
            listed[number] = None
        return len(listed) == limits.SPAWN_GROUPS or None

    yield from _first(group, 4, add)
    return list(listed)


def _group(name: str, group: str) -> Generator[None, None, int]:
    found = yield from _first(group, 4, lambda fields: id_number(fields[2]) if fields[0] == name else None)
    number = id_number(name) if found is None else found
    if number is None:
        raise unknown(name)
    return number


def _first(text: str, least: int, wanted: Callable[[list[str]], Wanted | None]) -> Generator[None, None, Wanted | None]:
    """The first result of `wanted` for a line with at least so many fields."""
    end, lines = -1, 0
    while end < len(text):
        start = end + 1
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        fields = text[start:end].split(":", least)
        if len(fields) >= least and fields[0] and not fields[0].startswith("#"):
            found = wanted(fields)
            if found is not None:
                return found
        lines += 1
        if lines % limits.USERDB_STEP == 0:
            yield
    return None


def id_number(text: str) -> int | None:
    """A user or group number, or None. By length first: int() refuses thousands of digits, and no number has them."""
    digits = text.lstrip("0") or "0" if text else ""
    if not (text.isascii() and digits.isdecimal()) or len(digits) > len(str(MAX_ID)) or int(digits) > MAX_ID:
        return None
    return int(digits)


def unknown(name: str, where: str = "in the container") -> ExecFailed:
    """The error for a name that is in no database."""
    return ExecFailed(f"no user or group {name!r} {where}", "unknown_user")
