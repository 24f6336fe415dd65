"""Turns the `user` of a request into numbers of this host's user database.

Owns the reading of `name`, `uid`, and either with `:group`. Knows nothing of processes.
"""

from __future__ import annotations

import grp
import os
import pwd

from fastclaw.errors import ExecFailed
from fastclaw.spawner.frames import Identity

_MAX_ID = 2**32 - 2
"""The kernel keeps (uid_t)-1 for "no change" (setuid(2))."""


def resolve(user: str) -> Identity | None:
    """The identity of `name`, `uid`, `name:group` or `uid:gid`; None where that is who we are already.

    A number without an entry in the user database has group 0 unless one is given, as in containers, and no others.

    Raises:
        ExecFailed: `unknown_user`; `permission_denied` where we may not become that user.
    """
    name, colon, group = user.partition(":")
    wanted = _identity(name)
    if colon:
        wanted = wanted._replace(gid=_gid(group), groups=[])
    return _permitted(user, wanted)


def _permitted(user: str, wanted: Identity) -> Identity | None:
    if os.geteuid() == 0:
        return wanted
    if (wanted.uid, wanted.gid) == (os.geteuid(), os.getegid()):
        return None
    raise ExecFailed(f"only root can start processes as user {user!r}", "permission_denied")


def _identity(name: str) -> Identity:
    try:
        entry = pwd.getpwuid(_number(name)) if _is_number(name) else pwd.getpwnam(name)
    except (KeyError, ValueError) as unknown:
        if not _is_number(name):
            raise _unknown(name) from unknown
        return Identity(_number(name), 0, [])
    return Identity(entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid), entry.pw_dir)


def _gid(name: str) -> int:
    try:
        return _number(name) if _is_number(name) else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError) as unknown:
        raise _unknown(name) from unknown


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _number(text: str) -> int:
    # Compared by length first: int() refuses thousands of digits, and no number of a user has them.
    digits = text.lstrip("0")
    if len(digits) > len(str(_MAX_ID)) or int(digits or "0") > _MAX_ID:
        raise _unknown(text)
    return int(digits or "0")


def _unknown(name: str) -> ExecFailed:
    return ExecFailed(f"no user or group {name!r} on this host", "unknown_user")
