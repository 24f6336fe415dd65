"""Who a `user` of a request is, by the files /etc/passwd and /etc/group of the container it runs in.

Texts in, an identity out; the rules are those of Podman's `--user`: a name or a number, either with `:group`. A number
without an entry is its own user with group 0, as in containers (moby/sys/user, GetExecUser). For the formats see
passwd(5) and group(5).
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
    """As `resolve`, with a pause every few lines: whoever owns the files may have made them long."""
    name, colon, group_name = user.partition(":")
    found = yield from _user(name, passwd, group)
    if colon:
        found = found._replace(gid=(yield from _group(group_name, group)), groups=[])
    if found.uid == limits.REAPER_UID:
        raise ExecFailed(f"user {found.uid} is fastclaw's own; take another", "permission_denied")
    return found


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
        raise _unknown(name)
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
        raise _unknown(name)
    return number


def _first(text: str, least: int, wanted: Callable[[list[str]], Wanted | None]) -> Generator[None, None, Wanted | None]:
    """What is wanted of the first line that has it, of those with at least so many fields."""
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


def _unknown(name: str) -> ExecFailed:
    return ExecFailed(f"no user or group {name!r} in the container", "unknown_user")
