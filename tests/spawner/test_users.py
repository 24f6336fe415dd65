"""Who a process runs as, by this host's user database."""

from __future__ import annotations

import os
import pwd
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed
from fastclaw.spawner.frames import Identity
from fastclaw.spawner.users import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
NOBODY = pwd.getpwnam("nobody")
UNLISTED = 54_321


@contextmanager
def without_privilege() -> Iterator[None]:
    """For a while this process is nobody in particular."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        os.setegid(NOBODY.pw_gid)
        os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)


@needs_root
@pytest.mark.parametrize("user", ["nobody", str(NOBODY.pw_uid), f"000{NOBODY.pw_uid}"])
def test_a_name_and_its_number_are_the_same_user(user: str) -> None:
    groups = os.getgrouplist("nobody", NOBODY.pw_gid)
    assert resolve(user) == Identity(NOBODY.pw_uid, NOBODY.pw_gid, groups, NOBODY.pw_dir)


@needs_root
@pytest.mark.parametrize(
    ("user", "identity"),
    [
        (f"{UNLISTED}", Identity(UNLISTED, 0, [])),
        (f"{UNLISTED}:7", Identity(UNLISTED, 7, [])),
        ("nobody:root", Identity(NOBODY.pw_uid, 0, [], NOBODY.pw_dir)),
        (f"nobody:{UNLISTED}", Identity(NOBODY.pw_uid, UNLISTED, [], NOBODY.pw_dir)),
        ("0:0", Identity(0, 0, [], pwd.getpwuid(0).pw_dir)),
        ("4294967294", Identity(2**32 - 2, 0, [])),
    ],
)
def test_numbers_need_no_entry_and_a_given_group_is_the_only_one(user: str, identity: Identity) -> None:
    assert resolve(user) == identity


@pytest.mark.parametrize(
    "user",
    [
        "no-such-user",
        "0:no-such-group",
        "",
        ":",
        "0:",
        ":0",
        "0:0:0",
        "-1",
        "+1",
        " 0",
        "4294967295",
        "0:4294967295",
        "9" * 5_000,
        "0:" + "9" * 5_000,
        "\N{ARABIC-INDIC DIGIT THREE}",
        "0:\N{ARABIC-INDIC DIGIT THREE}",
        "a\0b",
        "0:a\0b",
        "\ud800",
    ],
)
def test_who_is_not_there_is_unknown(user: str) -> None:
    with pytest.raises(ExecFailed) as refused:
        resolve(user)
    assert (refused.value.reason, refused.value.fault) == ("unknown_user", "caller")


def test_without_privilege_we_are_ourselves_and_nobody_else() -> None:
    with without_privilege():
        assert resolve(f"{os.geteuid()}:{os.getegid()}") is None
        with pytest.raises(ExecFailed) as refused:
            resolve("root")
    assert refused.value.reason == "permission_denied"


def test_without_privilege_an_unknown_user_is_still_called_unknown() -> None:
    with without_privilege(), pytest.raises(ExecFailed) as refused:
        resolve("no-such-user")
    assert refused.value.reason == "unknown_user"
