"""Room on a disk. That a full one is left as it was is seen in tests/acceptance/test_full_disk.py."""

from pathlib import Path
from typing import Any

import pytest

from fastclaw import answer_limits, limits
from fastclaw.podman.disk import disk_of, give_up_reserve, has_room, keep_reserve, why_full


def test_a_reserve_takes_room_until_it_is_given_up(tmp_path: Path) -> None:
    reserve = tmp_path / "key" / "reserve"
    keep_reserve(reserve)
    assert reserve.stat().st_blocks * 512 >= answer_limits.DISK_RESERVE_BYTES
    before = reserve.stat()
    keep_reserve(reserve)
    assert reserve.stat().st_ino == before.st_ino
    give_up_reserve(reserve)
    give_up_reserve(reserve)
    assert list(reserve.parent.iterdir()) == []


def test_without_a_place_for_it_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    keep_reserve(tmp_path / "key" / "reserve")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_how_full_a_disk_is(tmp_path: Path) -> None:
    disk = disk_of(tmp_path)
    assert disk is not None
    assert disk["path"] == str(tmp_path)
    assert 0 < disk["free_bytes"] <= disk["bytes"]
    assert has_room(tmp_path)
    assert why_full(disk) is None
    assert disk_of(tmp_path / "gone") is None
    assert has_room(tmp_path / "gone")
    assert why_full(None) is None
    assert not has_room(Path("/proc")), "its file system has no room at all"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"free_bytes": answer_limits.DISK_LOW_BYTES - 1}, "the disk of /x is full: 15 of 64 MiB are free"),
        ({"free_files": 0}, "the disk of /x is full: it has no inodes left"),
        ({"free_files": None}, None),
    ],
)
def test_when_a_disk_counts_as_full(changes: dict[str, Any], said: str | None) -> None:
    disk = {"path": "/x", "bytes": 64 * limits.MIB, "free_bytes": 32 * limits.MIB, "free_files": 7}
    assert why_full(disk | changes) == said
