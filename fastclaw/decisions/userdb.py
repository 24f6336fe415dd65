"""Who a `user` of a request is, by the files /etc/passwd and /etc/group of the container it runs in.

Texts in, an identity out; the rules are those of Podman's `--user`: a name or a number, either with `:group`. A number
without an entry is its own user with group 0, as in containers (moby/sys/user, GetExecUser). For the formats see
passwd(5) and group(5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.protocol.spawner import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ID = 2**32 - 2
"""The kernel keeps (uid_t)-1 for "no change" (setuid(2))."""


def resolve(user: str, passwd: str, group: str) -> Identity:
    """The identity of `name`, `uid`, `name:group` or `uid:gid`.

    Parameters:
        passwd, group: texts of the two files; empty where there are none.

    Raises:
        ExecFailed: `unknown_user`; `permission_denied` for the number that the keepers have.
    """
    name, colon, group_name = user.partition(":")
    found = _user(name, passwd, group)
    if colon:
        found = found._replace(gid=_group(group_name, group), groups=[])
    if found.uid == limits.KEEPER_UID:
        raise ExecFailed(f"user {found.uid} is fastclaw's own; take another", "permission_denied")
    return found


def _user(name: str, passwd: str, group: str) -> Identity:
    number = _number(name)
    for fields in _entries(passwd, 7):
        uid, gid = _number(fields[2]), _number(fields[3])
        # A number is that number, whatever a container's root has written: else it could make one mean itself.
        if uid is None or gid is None or (fields[0] != name if number is None else uid != number):
            continue
        return Identity(uid, gid, _memberships(fields[0], gid, group), fields[5] or "/")
    if number is None:
        raise _unknown(name)
    return Identity(number, 0, [])


def _memberships(name: str, gid: int, group: str) -> list[int]:
    """The groups that list a user, the primary one first; as many as a request can carry."""
    listed = [
        number
        for fields in _entries(group, 4)
        if name in fields[3].split(",") and (number := _number(fields[2])) is not None
    ]
    return list(dict.fromkeys([gid, *listed]))[: limits.SPAWN_GROUPS]


def _group(name: str, group: str) -> int:
    number = _number(name)
    for fields in _entries(group, 4):
        gid = _number(fields[2])
        if gid is not None and fields[0] == name:
            return gid
    if number is None:
        raise _unknown(name)
    return number


def _entries(text: str, least: int) -> Iterator[list[str]]:
    for line in text.split("\n"):
        fields = line.split(":")
        if len(fields) >= least and fields[0] and not fields[0].startswith("#"):
            yield fields


def _number(text: str) -> int | None:
    """A user or group number, or None. By length first: int() refuses thousands of digits, and no number has them."""
    digits = text.lstrip("0") or "0" if text else ""
    if not (text.isascii() and digits.isdecimal()) or len(digits) > len(str(MAX_ID)) or int(digits) > MAX_ID:
        return None
    return int(digits)


def _unknown(name: str) -> ExecFailed:
    return ExecFailed(f"no user or group {name!r} in the container", "unknown_user")
