"""When containers get a user namespace, and how a workspace is mapped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastclaw import limits
from fastclaw.engine.container_spec import (
    DEFAULT,
    NUMBERS,
    Ids,
    NamespaceFacts,
    mask,
    mount_option,
    read_capabilities,
    why_none,
)
from fastclaw.errors import InvalidParams
from fastclaw.options import FIRST_ID, ID_RANGES

FACTS = NamespaceFacts(
    is_root=True,
    is_here=True,
    rootless=False,
    storage_driver="overlay",
    oci_runtime="crun",
    kernel=(5, 19),
    user_namespaces=1,
    owner=Ids(uid=1000, gid=1000),
    file_system="ext4",
)
NO_WORKSPACE: dict[str, Any] = {"owner": None, "file_system": ""}


def test_where_everything_is_there_there_is_one() -> None:
    assert why_none(FACTS) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rootless": True}, "rootless"),
        ({"is_docker": True}, "Docker gives"),
        ({"is_root": False}, "root's to give away"),
        ({"is_here": False}, "root's to give away"),
        ({"user_namespaces": 0}, "user.max_user_namespaces"),
        ({"highest_id": limits.IDS}, "group 65536 is beyond"),
        ({"storage_driver": "vfs"}, "copied"),
        ({"kernel": (5, 18)}, "Linux 5.19"),
        ({"owner": Ids(uid=0, gid=1000)}, "belongs to 0:1000"),
        ({"owner": Ids(uid=1000, gid=0)}, "belongs to 1000:0"),
        ({"oci_runtime": "runc"}, "crun 1.8.1 and later can"),
        ({"oci_runtime_version": "crun version 1.8"}, "crun 1.8.1 and later can"),
        ({"oci_runtime": "runsc"}, "gVisor"),
        ({"file_system": "nfs4"}, "nfs4"),
        ({"has_mounts": True}, "mounted in the workspace"),
        ({"file_system": "tmpfs", "kernel": (6, 2)}, "tmpfs"),
    ],
)
def test_where_something_is_not_it_says_what(change: dict[str, Any], word: str) -> None:
    said = why_none(msgspec.structs.replace(FACTS, **change))
    assert said is not None
    assert word in said


@pytest.mark.parametrize("change", [{"oci_runtime": "runc"}, {"file_system": "nfs4"}])
def test_without_a_directory_of_the_hosts_what_maps_it_does_not_matter(change: dict[str, Any]) -> None:
    assert why_none(msgspec.structs.replace(FACTS, **(NO_WORKSPACE | change))) is None


def extents(option: str, kind: str) -> list[tuple[int, ...]]:
    fields = dict(field.split("=") for field in option.removeprefix("idmap=").split(";"))
    return [tuple(map(int, extent.split("-"))) for extent in fields[kind].split("#")]


@pytest.mark.parametrize("user", [0, 1, 1000, limits.IDS - 1])
def test_the_owners_files_are_the_users_and_every_other_id_is_itself(user: int) -> None:
    option = mount_option(FIRST_ID, Ids(uid=1000, gid=50), Ids(uid=user, gid=0))
    found = extents(option, "uids")
    assert (1000, FIRST_ID + user, 1) in found
    host = [number for _, start, count in found for number in range(start, start + count)]
    assert sorted(host) == list(range(FIRST_ID, FIRST_ID + limits.IDS))
    assert all(disk == start for disk, start, _ in found if disk != 1000)
    assert (50, FIRST_ID, 1) in extents(option, "gids")


@pytest.mark.parametrize("user", [0, 1000, limits.IDS - 1])
@pytest.mark.parametrize("owner", [0, 3, 1000, limits.IDS - 1])
def test_what_was_written_inside_may_be_a_workspace_itself(owner: int, user: int) -> None:
    """crun refused to start with one of an id of the range: it was on disk twice."""
    found = extents(mount_option(FIRST_ID, Ids(uid=FIRST_ID + owner, gid=50), Ids(uid=user, gid=0)), "uids")
    pairs = {disk + at: host + at for disk, host, count in found for at in range(count)}
    assert len(pairs) == sum(count for _, _, count in found)
    assert pairs.pop(FIRST_ID + owner) == FIRST_ID + user
    assert sorted(pairs.values()) == sorted(set(range(FIRST_ID, FIRST_ID + limits.IDS)) - {FIRST_ID + user})
    assert {disk: host for disk, host in pairs.items() if disk != host} == (
        {} if owner == user else {FIRST_ID + user: FIRST_ID + owner}
    )


def test_nothing_inside_is_written_as_the_hosts_root() -> None:
    for user in (0, 1000):
        option = mount_option(FIRST_ID, Ids(uid=1000, gid=1000), Ids(uid=user, gid=user))
        assert all(disk > 0 for kind in ("uids", "gids") for disk, _, _ in extents(option, kind))


def test_the_ranges_are_where_systemd_says_that_nobody_is() -> None:
    """UIDS-GIDS.md of systemd: 1879048192 to 2147352575 are unused."""
    assert FIRST_ID == 1_879_048_192
    assert FIRST_ID + ID_RANGES * limits.IDS <= 2_147_352_575


def test_none_is_none_and_default_has_nothing_unusual() -> None:
    assert read_capabilities("none") == ()
    assert read_capabilities("default") == DEFAULT
    assert len(DEFAULT) == 10


@pytest.mark.parametrize("name", ["CHOWN", "CAP_CHOWN", "cap_chown", "chown"])
def test_a_name_is_one_with_and_without_its_prefix(name: str) -> None:
    assert read_capabilities([name, "CHOWN"]) == ("CAP_CHOWN",)


@pytest.mark.parametrize("name", ["SYS_ADMIN", "CAP_NET_ADMIN", "SYS_PTRACE", "CAP_CAP_CHOWN", "", "CAP_"])
def test_what_would_undo_the_sandbox_cannot_be_had(name: str) -> None:
    with pytest.raises(InvalidParams, match="cannot be had; there are CHOWN, ") as refused:
        read_capabilities(["CHOWN", name])
    assert refused.value.reason == "unsupported"


def test_their_numbers_are_the_kernels() -> None:
    header = Path("/usr/include/linux/capability.h").read_text()
    defined = dict(re.findall(r"^#define (CAP_\w+)\s+(\d+)$", header, re.MULTILINE))
    assert {name: int(defined[name]) for name in NUMBERS} == NUMBERS
    assert mask(["CAP_CHOWN", "CAP_SETFCAP"]) == 0x80000001
