"""What is decided of rights before a container is made; what holds inside: tests/acceptance/test_rights.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fastclaw import limits
from fastclaw.engine import rights
from fastclaw.engine.container_spec import DEFAULT, Ids
from fastclaw.engine.rights import IdRanges, Rights, settle_rights
from fastclaw.errors import StartFailed
from fastclaw.options import FIRST_ID, Options
from tests.balance import open_descriptors
from tests.engine.versions import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastclaw.engine.dialects import EngineVersion


PASSWD = "wolf:x:7:8::/:\n"


async def settled(
    version: EngineVersion = VERSION, user: str = "0", *, has_spawner: bool = True, **options: Any
) -> Rights:
    async def read_files() -> list[str]:
        return [PASSWD, ""]

    async with contextlib.AsyncExitStack() as setup:
        wanted = msgspec.convert(options, Options)
        return await settle_rights(
            wanted,
            is_here=True,
            has_spawner=has_spawner,
            version=version,
            user=user,
            read_files=read_files,
            ranges=IdRanges(rights.ID_LOCKS),
            setup=setup,
        )


async def test_without_a_namespace_root_has_nothing_unless_it_is_asked_for() -> None:
    found = await settled()
    assert (found.capabilities, found.ids) == ((), None)
    assert "rootless" in str(found.why_no_ids)
    assert (await settled(capabilities="default")).capabilities == DEFAULT
    assert (await settled(user_namespace="host")).why_no_ids == "options.user_namespace is host"
    with pytest.raises(StartFailed, match=r"no user namespace: a rootless engine .* auto") as refused:
        await settled(user_namespace="private")
    assert refused.value.reason == "unsupported"


@pytest.mark.parametrize(
    ("user", "ids"), [("", (0, 0)), ("root", (0, 0)), ("5:6", (5, 6)), ("wolf", (7, 8)), ("7", (7, 8)), ("9", (9, 0))]
)
async def test_whose_a_workspace_is_to_be(user: str, ids: tuple[int, int], tmp_path: Path) -> None:
    found = await settled(user=user, workspace={"target": "/work", "source": str(tmp_path)})
    owner = Ids(uid=os.getuid(), gid=os.getgid())
    assert (found.user, found.owner) == (Ids(uid=ids[0], gid=ids[1]), owner)
    assert found.workspace_option is None
    assert found.volume_owner == f"{ids[0]}:{ids[1]}"
    assert (found.note is None) == (ids[0] == 0), "root inside a rootless engine is who runs it"
    assert found.note is None or "set options.user to 0:0" in found.note


@pytest.mark.parametrize(
    ("root", "uid", "writer"),
    [(1000, 0, None), (1000, 1000, "0:0"), (None, 0, "1000:1000"), (None, 1000, None), (1001, 0, "1000:1000")],
)
def test_who_can_write_in_a_workspace_is_told_as_it_is_inside(root: int | None, uid: int, writer: str | None) -> None:
    owner = Ids(uid=1000, gid=1000)
    note = Rights(user=Ids(uid=uid, gid=uid), owner=owner, root=root).note
    assert (note is None) == (writer is None)
    assert writer is None or str(note).endswith(f"set options.user to {writer}")


async def test_a_user_that_is_not_there_and_a_workspace_that_is_not_are_said(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="sheep") as unknown:
        await settled(user="sheep", workspace={"target": "/work"})
    assert unknown.value.reason == "unknown_user"
    with pytest.raises(StartFailed, match=f"{tmp_path}/none: No such file") as refused:
        await settled(workspace={"target": "/work", "source": f"{tmp_path}/none"})
    assert refused.value.reason == "bad_mount"


@pytest.mark.skipif(os.geteuid() != 0, reason="ids of the host are root's to give away")
async def test_a_range_is_lent_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "ID_LOCKS", tmp_path)
    version = msgspec.structs.replace(VERSION, rootless=False)
    assert "/dev/stdout" in str((await settled(version, has_spawner=False)).why_no_ids)
    for _ in range(2):
        found = await settled(version, id_ranges={"first": FIRST_ID, "count": 1})
        assert (found.ids, found.capabilities, found.volume_owner) == (FIRST_ID, DEFAULT, None)


@pytest.mark.parametrize("user", ["65536", "1:65536", "wolf:65536", "200000"])
async def test_a_user_whose_number_no_range_has_gets_no_namespace(user: str, tmp_path: Path) -> None:
    """Numbers of people in a directory service begin above it; commands could not be started as such a user."""
    version = msgspec.structs.replace(VERSION, rootless=False)
    both: list[dict[str, Any]] = [{}, {"workspace": {"target": "/work"}}]
    for more in both:
        found = await settled(version, user=user, **more)
        assert (found.ids, found.capabilities) == (None, ())
        assert "beyond the 65536 ids" in str(found.why_no_ids)
        with pytest.raises(StartFailed, match=r"no user namespace: user or group .* beyond the 65536"):
            await settled(version, user=user, user_namespace="private", **more)


FIRST = 2 * limits.IDS
HOLDER = """
import sys
from pathlib import Path
from fastclaw.engine.rights import IdRanges
print(IdRanges(Path(sys.argv[1])).take(int(sys.argv[2]), 3).first, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ranges(tmp_path: Path) -> Iterator[IdRanges]:
    """With locks of their own."""
    before = open_descriptors()
    yield IdRanges(tmp_path / "ids")
    for fd in set(open_descriptors()) - set(before):
        os.close(fd)


def take(ranges: IdRanges) -> int:
    return ranges.take(FIRST, 3).first


def test_no_two_have_the_same_and_the_last_is_refused(ranges: IdRanges, tmp_path: Path) -> None:
    others = IdRanges(tmp_path / "ids")
    assert [take(one) for one in (ranges, others, ranges)] == [FIRST, FIRST + limits.IDS, FIRST + 2 * limits.IDS]
    with pytest.raises(StartFailed, match=r"all 3 ranges .*options.id_ranges") as refused:
        take(ranges)
    assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)


def test_one_that_is_given_back_is_taken_again(ranges: IdRanges) -> None:
    first = ranges.take(FIRST, 3)
    assert take(ranges) == FIRST + limits.IDS
    ranges.give_back(first)
    assert take(ranges) == FIRST


def test_one_that_is_lent_is_not_looked_at_again(ranges: IdRanges, tmp_path: Path) -> None:
    """With a hundred environments, that would be a hundred locks for each further one."""
    assert take(ranges) == FIRST
    (tmp_path / "ids" / str(FIRST)).unlink()
    assert take(ranges) == FIRST + limits.IDS
    assert not (tmp_path / "ids" / str(FIRST)).exists()


def test_one_goes_with_the_process_that_has_it(ranges: IdRanges, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "ids"), str(FIRST)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) == FIRST
        assert take(ranges) == FIRST + limits.IDS
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert take(ranges) == FIRST


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartFailed, match=f"{tmp_path}/file"):
        IdRanges(tmp_path / "file" / "ids").take(FIRST, 1)
    assert os.listdir(tmp_path) == ["file"]
