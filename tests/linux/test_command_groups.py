"""Control groups of commands' own: real ones below a group of our own, on both versions; rules by themselves.

What the limits do to commands in containers is in tests/acceptance/test_command_limits.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import environment_limits
from fastclaw.errors import ExecFailed
from fastclaw.limits import MIB
from fastclaw.linux.cgroups import CGROUPS, Group, group_in
from fastclaw.linux.command_groups import (
    CONTROLLERS,
    LEAF,
    OWN,
    CommandGroups,
    give_controllers,
    is_fine,
    own_groups,
    refused,
    remove_groups,
    settings,
    why_none,
    why_not_below,
)
from fastclaw.linux.proc import Owner, boot_id, this_process
from fastclaw.runtime import GroupLimits
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastclaw.linux.command_groups import CommandGroup

ALL = GroupLimits(memory_bytes=32 * MIB, cpus=0.05, pids=20)
NAME = f"fastclaw-test-{os.getpid()}"
IS_V1 = (CGROUPS / "pids" / "tasks").exists()

needs_own_groups = pytest.mark.skipif(os.geteuid() != 0 or not IS_V1, reason="only root makes groups of version 1")


@pytest.fixture
def memberships() -> Iterator[str]:
    """Of a process that is in groups of our own, one below each controller."""
    folders = [CGROUPS / controller / NAME for controller in CONTROLLERS.values()]
    for folder in folders:
        folder.mkdir()
    try:
        yield "".join(f"1:{controller}:/{NAME}\n" for controller in CONTROLLERS.values())
    finally:
        for folder in folders:
            for path in (*folder.glob("*/"), folder):
                with suppress(FileNotFoundError):
                    path.rmdir()


def made() -> list[str]:
    return sorted(str(path.relative_to(CGROUPS)) for path in CGROUPS.glob(f"*/{NAME}/*/"))


def join(group: CommandGroup) -> None:
    """As the spawner's command does."""
    for fd in group.open():
        os.write(fd, b"0")
        os.close(fd)


def run_in(group: CommandGroup, script: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["sh", "-c", script], preexec_fn=lambda: join(group), capture_output=True, check=False)


@needs_own_groups
async def test_limits_hold_for_what_goes_into_a_group(memberships: str) -> None:
    groups = CommandGroups(memberships)
    assert groups.refused == {}
    group = await groups.take(ALL)
    shown = run_in(group, "cat /proc/self/cgroup").stdout.decode()
    for controller in CONTROLLERS.values():
        inside = group_in(shown, controller, CGROUPS)
        assert inside is not None
        assert inside.folder.parent == CGROUPS / controller / NAME
    assert b"fork" in run_in(group, "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & sleep 1 & sleep 1 & done; wait").stderr
    assert run_in(group, "exec tail /dev/zero").returncode == -9
    group.look()
    ooms = group.ooms()
    assert ooms is not None
    assert (ooms.kills, ooms.memory["limit_bytes"]) == (1, 32 * MIB)
    used = group.used()
    assert used["forks_refused"] > 0
    assert 0 < used["peak_bytes"] <= 32 * MIB
    run_in(group, "timeout 1 sh -c 'while :; do :; done'")
    group.look()
    assert group.used()["throttled_us"] > 100_000
    group.release()
    await groups.aclose()
    assert made() == []


@needs_own_groups
async def test_a_group_serves_again_as_good_as_new(memberships: str) -> None:
    groups = CommandGroups(memberships)
    first = await groups.take(ALL)
    assert run_in(first, "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & sleep 1 & sleep 1 & done; wait").returncode != 0
    there = made()
    first.release()
    for limit in (16 * MIB, 256 * MIB, 16 * MIB):  # the kernel refuses a limit above that with swap
        again = await groups.take(GroupLimits(memory_bytes=limit, pids=5))
        again.look()
        used = again.used()
        assert used["forks_refused"] == 0
        assert again.ooms() is None
        assert used["peak_bytes"] <= environment_limits.GROUP_RESIDUE_BYTES
        assert run_in(again, "exec tail /dev/zero").returncode == -9
        again.look()
        ooms = again.ooms()
        assert ooms is not None
        assert ooms == (1, {"limit_bytes": limit, "peak_bytes": ooms.memory["peak_bytes"]}, True)
        assert limit // 2 < ooms.memory["peak_bytes"] <= limit
        again.release()
    assert set(made()) <= set(there)
    await groups.aclose()


@needs_own_groups
async def test_what_a_command_leaves_in_memory_is_no_other_ones(memberships: str) -> None:
    groups = CommandGroups(memberships)
    kept = Path("/dev/shm") / NAME
    try:
        first = await groups.take(GroupLimits(memory_bytes=32 * MIB))
        assert run_in(first, f"head -c 8388608 /dev/zero > {kept}").returncode == 0
        first.release()
        for _ in range(2 * environment_limits.SPARE_GROUPS):
            other = await groups.take(GroupLimits(memory_bytes=MIB))
            assert run_in(other, "true").returncode == 0
            other.release()
    finally:
        kept.unlink(missing_ok=True)
        await groups.aclose()
    await until(lambda: made() == [])


@needs_own_groups
async def test_many_at_once_have_one_each_and_few_are_kept(memberships: str) -> None:
    groups = CommandGroups(memberships)
    taken = await asyncio.gather(*(groups.take(GroupLimits(pids=number + 1)) for number in range(100)))
    limits = {(CGROUPS / name / "pids.max").read_text() for name in made()}
    assert {f"{number + 1}\n" for number in range(100)} <= limits
    for group in taken:
        group.release()
        group.release()
    await until(lambda: len(made()) <= environment_limits.MAX_SPARE_GROUPS)
    await groups.aclose()
    assert made() == []
    await groups.aclose()


@needs_own_groups
async def test_what_is_still_busy_goes_later(memberships: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_limits, "MAX_SPARE_GROUPS", 0)
    groups = CommandGroups(memberships)
    group = await groups.take(GroupLimits(pids=5))
    left = await asyncio.create_subprocess_exec("sleep", "60", preexec_fn=lambda: join(group))
    (own,) = (name for name in made() if (CGROUPS / name / "cgroup.procs").read_text())
    others = len(made()) - 1
    group.release()
    again = await groups.take(GroupLimits(pids=5))
    again.release()
    await until(lambda: len(made()) == others)
    assert own in made()
    left.kill()
    await left.wait()
    await until(lambda: own not in made())
    await groups.aclose()


@needs_own_groups
async def test_an_environment_that_has_ended_makes_none(memberships: str) -> None:
    groups = CommandGroups(memberships)
    group = await groups.take(GroupLimits(pids=5))
    await groups.aclose()
    with pytest.raises(ExecFailed) as raised:
        await groups.take(GroupLimits(pids=5))
    assert raised.value.reason == "container_gone"
    group.release()
    gone = CommandGroups(memberships.replace(NAME, f"{NAME}/none"))
    assert set(gone.refused) == set(CONTROLLERS)


# --- version 2, by files: a kernel has its controllers in one version or the other ---


def v2_files(folder: Path, controllers: str = "cpu memory pids", given: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"controllers": controllers, "subtree_control": given, "procs": "7\n8\n"}.items():
        (folder / f"cgroup.{name}").write_text(text)
    return folder


def test_version_2_has_what_the_environment_was_given(tmp_path: Path) -> None:
    v2_files(tmp_path / "a/b", "memory pids")
    groups = CommandGroups("0::/a/b\n", root=tmp_path)
    assert groups.refused == {"cpus": "the environment has no cgroup controller cpu"}
    assert set(CommandGroups("0::/a/c\n", root=tmp_path).refused) == set(CONTROLLERS)
    assert set(CommandGroups("", root=tmp_path).refused) == set(CONTROLLERS)


def test_processes_go_into_a_leaf_before_there_are_controllers_below(tmp_path: Path) -> None:
    folder = v2_files(tmp_path / "a")
    v2_files(folder / LEAF)
    give_controllers(folder, ["memory", "pids", "hugetlb"])
    assert (folder / LEAF / "cgroup.procs").read_text().startswith("8")
    assert (folder / "cgroup.subtree_control").read_text() == "+memory +pids"
    v2_files(folder, given="memory pids")
    give_controllers(folder, ["memory", "pids"])
    assert (folder / "cgroup.subtree_control").read_text() == "memory pids"


# --- rules ---


def test_what_is_written_where() -> None:
    assert [settings(name, ALL, True) for name in ("memory", "cpu", "pids")] == [
        [("memory.max", str(32 * MIB)), ("memory.swap.max", "0")],
        [("cpu.max", "5000 100000")],
        [("pids.max", "20")],
    ]
    assert [settings(name, ALL, False) for name in ("memory", "cpu", "pids")] == [
        [
            ("memory.memsw.limit_in_bytes", "-1"),
            ("memory.limit_in_bytes", str(32 * MIB)),
            ("memory.memsw.limit_in_bytes", str(32 * MIB)),
        ],
        [("cpu.cfs_quota_us", "5000")],
        [("pids.max", "20")],
    ]


def test_a_setting_that_is_not_needed_may_be_refused() -> None:
    for name, number in (("memory.swap.max", errno.ENOENT), ("cpu.cfs_quota_us", errno.EINVAL)):
        assert is_fine(name, OSError(number, ""))
        assert not is_fine(name, OSError(errno.EACCES, ""))
    assert not is_fine("memory.max", OSError(errno.ENOENT, ""))


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOENT, "container_gone"),
        (errno.ENODEV, "container_gone"),
        (errno.ENOSPC, "overloaded"),
        (errno.EBUSY, "overloaded"),
        (errno.EACCES, "io_error"),
    ],
)
def test_what_the_kernel_refuses(number: int, reason: str) -> None:
    assert refused(OSError(number, "words")).reason == reason


def test_why_there_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "memory" / "a"
    group = Group(folder, tmp_path / "memory", is_unified=False)
    assert (
        why_none(None, "memory") == why_none(group, "memory") == "there is no cgroup controller memory to be seen here"
    )
    folder.mkdir(parents=True)
    assert why_none(group, "memory") is None
    assert why_none(group, "memory", "/a") is None
    assert "no control group of its own" in str(why_none(group, "memory", "abc"))
    (folder / "memory.use_hierarchy").write_text("0\n")
    assert "use_hierarchy is 0" in str(why_none(group, "memory"))


def test_what_cannot_be_removed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "plain" / "inner").mkdir(parents=True)
    assert remove_groups([f"{tmp_path}/plain", f"{tmp_path}/none"]) == []
    assert "cannot be removed" in caplog.text


@needs_own_groups
async def test_groups_of_this_host_go_with_their_owner_or_at_the_next_start() -> None:
    dead = Owner(2**22 + 1, 1, this_process().pid_namespace, boot_id())
    alive = f"{OWN}{this_process().label}-"
    left = [CGROUPS / "pids" / f"{OWN}{dead.label}-1", CGROUPS / "pids" / f"{alive}other-1"]
    for path in left:
        path.mkdir()
    try:
        groups = own_groups()
        assert [path.exists() for path in left] == [False, True]
        assert groups.refused == {}
        group = await groups.take(GroupLimits(pids=7))
        assert f"/{alive}" in run_in(group, "cat /proc/self/cgroup").stdout.decode()
        group.release()
        await groups.aclose()
    finally:
        remove_groups(map(str, left))
    assert not list(CGROUPS.glob(f"pids/{alive}*/"))


def test_nothing_of_others_is_moved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    group, whole = Group(tmp_path / "a", tmp_path, is_unified=True), Group(tmp_path, tmp_path, is_unified=True)
    for given, pids, why in (
        ("", f"{os.getpid()}\n", None),
        ("", f"{os.getpid()}\n1\n", "others are in"),
        ("pids", f"{os.getpid()}\n1\n", None),
    ):
        (tmp_path / "a/cgroup.subtree_control").write_text(given)
        (tmp_path / "a/cgroup.procs").write_text(pids)
        told = why_not_below(group, "pids", os.getpid())
        assert told is None if why is None else why in str(told)
    assert why_not_below(whole, "pids", os.getpid()) is not None
    assert why_not_below(Group(tmp_path, tmp_path, is_unified=False), "pids", 1) is None
