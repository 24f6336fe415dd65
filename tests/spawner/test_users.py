"""Who a user is by the texts of /etc/passwd and /etc/group."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.spawner.frames import Identity
from fastclaw.spawner.users import MAX_ID, resolve, resolving

PASSWD = """\
# comment:x:9:9::/comment:/bin/sh
root:x:0:0:root:/root:/bin/sh

short:x:8:8
daemon:x:1:2::/usr/sbin:/usr/sbin/nologin
homeless:x:3:3:::/bin/sh
broken:x:one:1::/:/bin/sh
1234:x:77:78::/home/1234:/bin/sh
root:x:99:99:second:/other:/bin/sh
many:x:6:6:with:colons:/x:/bin/sh:extra
"""
GROUP = """\
root:x:0:
daemon:x:2:root,daemon
adm:x:4:daemon
short:x:5
bad:x:four:daemon
# off:x:7:daemon
77:x:700:
"""


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("root", Identity(0, 0, [0, 2], "/root")),
        ("0", Identity(0, 0, [0, 2], "/root")),
        ("000", Identity(0, 0, [0, 2], "/root")),
        ("daemon", Identity(1, 2, [2, 4], "/usr/sbin")),
        ("1", Identity(1, 2, [2, 4], "/usr/sbin")),
        ("homeless", Identity(3, 3, [3], "/")),
        ("1234", Identity(1234, 0, [])),
        ("77", Identity(77, 78, [78], "/home/1234")),
        ("many", Identity(6, 6, [6], "colons")),
    ],
)
def test_a_name_and_its_number_are_the_same_user(user: str, identity: Identity) -> None:
    assert resolve(user, PASSWD, GROUP) == identity


@pytest.mark.parametrize("user", ["5000", f"{MAX_ID}"])
def test_a_number_without_an_entry_is_its_own_user_with_group_0(user: str) -> None:
    assert resolve(user, PASSWD, GROUP) == resolve(user, "", "") == Identity(int(user), 0, [])


@pytest.mark.parametrize(
    ("user", "gid"),
    [("root:adm", 4), ("root:4", 4), ("0:77", 700), ("5000:5000", 5000), ("root:0004", 4), ("daemon:root", 0)],
)
def test_a_given_group_is_the_only_one(user: str, gid: int) -> None:
    found = resolve(user, PASSWD, GROUP)
    assert (found.gid, found.groups) == (gid, [])


@pytest.mark.parametrize(
    "user",
    [
        "nobody",
        "broken",
        "short",
        "# comment",
        "comment",
        "",
        ":",
        ":0",
        "0:",
        "0:nogroup",
        "0:bad",
        "0:0:0",
        "-1",
        "+1",
        " 0",
        "0 ",
        "1_0",
        f"{MAX_ID + 1}",
        f"0:{MAX_ID + 1}",
        "9" * 5_000,
        "0:" + "9" * 5_000,
        "\N{ARABIC-INDIC DIGIT THREE}",
        "\N{SUPERSCRIPT TWO}",
        "\ud800",
    ],
)
def test_who_is_not_there_is_unknown(user: str) -> None:
    with pytest.raises(ExecFailed) as refused:
        resolve(user, PASSWD, GROUP)
    assert (refused.value.reason, refused.value.fault) == ("unknown_user", "caller")


@pytest.mark.parametrize("user", [f"{limits.REAPER_UID}", f"{limits.REAPER_UID}:0", "me"])
def test_nobody_becomes_the_reapers(user: str) -> None:
    with pytest.raises(ExecFailed) as refused:
        resolve(user, f"me:x:{limits.REAPER_UID}:0::/:", "")
    assert refused.value.reason == "permission_denied"


def test_no_more_groups_than_a_request_carries() -> None:
    group = "".join(f"g{number}:x:{number}:root\n" for number in range(2 * limits.SPAWN_GROUPS))
    found = resolve("root", PASSWD, group)
    assert found.groups == list(range(limits.SPAWN_GROUPS))


@pytest.mark.parametrize("line", ["a:x:1:1:::", "::::::", "", "u:x:9999:1::/:", "g:x:5:a"])
def test_long_files_are_read_with_pauses(line: str) -> None:
    """A hostile root inside made /etc/passwd 1 MiB long, and each exec with a user cost the loop 150 ms."""
    count = 20 * limits.USERDB_STEP
    text = f"{line}\n" * count
    passwd, group = text + "nobody:x:7:7::/:\n", text + "nogroup:x:8:\n"
    # Three readings: the user, the groups that list it, the group.
    assert len(list(resolving("nobody:nogroup", passwd, group))) == 3 * 20
    assert resolve("nobody:nogroup", passwd, group) == Identity(7, 8, [])


lines = st.lists(st.text(max_size=8) | st.sampled_from(["root", "0", "1", "#", ""]), max_size=9).map(":".join)
files = st.lists(lines, max_size=8).map("\n".join)


@given(st.text(max_size=12) | st.sampled_from(["root", "0", "root:0", "1:root"]), files, files)
def test_whatever_the_files_hold_it_is_somebody_or_refused(user: str, passwd: str, group: str) -> None:
    found = None
    reason = "found"
    try:
        found = resolve(user, passwd, group)
    except ExecFailed as refused:
        reason = refused.reason
    assert reason in {"found", "unknown_user", "permission_denied"}
    if found is not None:
        assert all(0 <= number <= MAX_ID for number in (found.uid, found.gid, *found.groups))
        assert len(found.groups) <= limits.SPAWN_GROUPS
        assert found.home


names = st.text(st.characters(categories=["Ll"]), min_size=1, max_size=8)


@given(st.dictionaries(names, st.integers(0, 60_000), min_size=1, max_size=6), st.data())
def test_who_is_listed_is_found(users: dict[str, int], data: st.DataObject) -> None:
    passwd = "".join(f"{name}:x:{uid}:{uid + 1}::/home/{name}:/bin/sh\n" for name, uid in users.items())
    name = data.draw(st.sampled_from(list(users)))
    assert resolve(name, passwd, "") == Identity(users[name], users[name] + 1, [users[name] + 1], f"/home/{name}")


def test_a_number_is_never_made_to_mean_somebody_else_by_a_name() -> None:
    """A container's root can write /etc/passwd; who asked for 1000 did not ask for root."""
    assert resolve("1000", "1000:x:0:0::/:\n", "").uid == 1000
