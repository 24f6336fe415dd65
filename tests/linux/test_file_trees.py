"""Trees are removed and linked as they are: deep, with any names, and never through a link."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from fastclaw.linux.file_trees import link_tree, remove_tree

if TYPE_CHECKING:
    from pathlib import Path

DEEPER_THAN_A_PATH = 3_000
"""Levels of names of two bytes and more: PATH_MAX is 4 096, and Python's recursion ends at 1 000."""


def dig(top: Path, levels: int) -> None:
    """Directories in each other, with a file and a second directory in each."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=fd)
        os.mkdir("e", dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_a_tree_that_is_deeper_than_a_path_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    dig(top, DEEPER_THAN_A_PATH)
    remove_tree(str(top))
    assert os.listdir(tmp_path) == []


def test_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    top = tmp_path / "top"
    (top / "inner").mkdir(parents=True)
    (top / "inner" / "link").symlink_to(outside)
    (top / "link").symlink_to(outside)
    remove_tree(str(top))
    assert (outside / "file").read_text() == "kept"
    assert os.listdir(tmp_path) == ["outside"]


def test_names_of_any_bytes_and_those_that_it_takes_itself(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path / "top")
    os.makedirs(top + b"/a/\xff\xfe/c")
    os.makedirs(top + b"/b/.0/\n/c")
    os.makedirs(top + b"/.0/full")
    open(top + b"/.1", "w").close()
    os.chmod(top + b"/a/\xff\xfe", 0)
    remove_tree(os.fsdecode(top))
    assert os.listdir(tmp_path) == []


def test_one_that_is_not_there_is_fine_and_a_link_is_none(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "none"))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        remove_tree(str(tmp_path / "link"))


def test_a_linked_tree_has_the_same_files_and_equal_directories(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "file").write_text("x")
    (source / "deep" / "link").symlink_to("/etc/passwd")
    os.chmod(source / "deep", 0o2751)
    os.setxattr(source / "deep", "user.colour", b"blue")
    os.utime(source / "deep", ns=(1_000, 2_000))
    assert link_tree(str(source), str(target)) == 4
    assert (target / "deep" / "file").samefile(source / "deep" / "file")
    assert os.readlink(target / "deep" / "link") == "/etc/passwd"
    assert (target / "deep" / "link").lstat().st_ino == (source / "deep" / "link").lstat().st_ino
    found = (target / "deep").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o2751, 2_000)
    assert os.getxattr(target / "deep", "user.colour") == b"blue"
    assert (target / "deep" / "er").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files and gives files away")
def test_owners_and_whiteouts_are_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    os.mknod(source / "gone", stat.S_IFCHR, 0)
    os.chown(source, 12, 34)
    os.setxattr(source, "trusted.overlay.opaque", b"y")
    link_tree(str(source), str(target))
    assert stat.S_ISCHR((target / "gone").stat().st_mode)
    assert (target.stat().st_uid, target.stat().st_gid) == (12, 34)
    assert os.getxattr(target, "trusted.overlay.opaque") == b"y"


def test_another_file_system_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    elsewhere = f"/dev/shm/fastclaw-trees-{os.getpid()}"
    try:
        with pytest.raises(OSError, match="cross-device"):
            link_tree(str(tmp_path / "source"), elsewhere)
    finally:
        remove_tree(elsewhere)
