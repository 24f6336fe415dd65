"""The file helper: what is said of files and directories; directories and names that are made, changed and removed."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from fastclaw import environment_limits
from fastclaw.processes.file_helper import page_of, stat_of
from tests.spawner.file_rig import NOBODY, helper

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.files import DirPage

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is several users")


def test_what_is_said_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "f").chmod(0o2751)
    os.utime(tmp_path / "f", ns=(1, -1_500_000_000))
    os.link(tmp_path / "f", tmp_path / "second")
    (tmp_path / "link").symlink_to("f")
    about = (tmp_path / "f").stat()
    said = stat_of(helper(tmp_path, "stat", "link", "follow").out)
    assert (said.type, said.size, said.mode, said.nlink) == ("file", 5, 0o2751, 2)
    assert (said.uid, said.gid, said.mtime_ns) == (about.st_uid, about.st_gid, -1_500_000_000)
    said = stat_of(helper(tmp_path, "stat", "link", "link").out)
    assert (said.type, said.target) == ("link", "f")
    assert helper(tmp_path, "stat", "f/x", "follow").code == errno.ENOTDIR


def test_each_type_has_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for path, name in (
        ("fifo", "fifo"),
        ("socket", "socket"),
        (".", "directory"),
        ("/dev/null", "character_device"),
    ):
        assert stat_of(helper(tmp_path, "stat", path, "follow").out).type == name


def listed(folder: Path, limit: int = environment_limits.MAX_DIR_ENTRIES, after: bytes = b"") -> DirPage:
    said = helper(folder, "list", ".", limit, after.hex() or "-")
    assert said.code == 0
    return page_of(said.out, said.outcome.told)


def test_a_directory_comes_in_pages_in_the_order_of_bytes(tmp_path: Path) -> None:
    names = sorted(
        [os.fsencode(f"{number % 97}-{number}") for number in range(1000)] + ["ключ".encode(), b"\xff", b" "]
    )
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    for limit in (1, 7, 999, len(names), environment_limits.MAX_DIR_ENTRIES):
        found: list[bytes] = []
        for _ in range(len(names) // limit + 1):
            said = helper(tmp_path, "list", ".", limit, found[-1].hex() if found else "-")
            page = said.out.split(b"\0")[1::3]
            assert said.outcome.told == len(names) - len(found)
            found += page
            if len(found) == len(names) or limit == 1:
                break
        assert found == names[: len(found)]
        assert len(found) == (1 if limit == 1 else len(names))


def test_a_page_says_where_the_next_begins_and_has_names_that_are_no_text(tmp_path: Path) -> None:
    for name in (b"a", b"b\n\t", b"\xff"):
        (tmp_path / os.fsdecode(name)).mkdir()
    page = listed(tmp_path, 2)
    assert [entry.name for entry in page.entries] == ["a", "b\n\t"]
    assert page.next == "YgoJ"
    page = listed(tmp_path, 2, b"b\n\t")
    [entry] = page.entries
    assert (entry.name, entry.name_base64, entry.type) == (None, "/w==", "directory")
    assert not page.next


def test_an_entry_that_is_a_link_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere/at/all")
    [entry] = listed(tmp_path).entries
    assert (entry.type, entry.target) == ("link", "/nowhere/at/all")


def test_an_empty_directory_and_what_is_none(tmp_path: Path) -> None:
    assert listed(tmp_path).entries == []
    os.mkfifo(tmp_path / "fifo")
    assert helper(tmp_path, "list", "fifo", 1, "-").code == errno.ENOTDIR
    assert helper(tmp_path, "list", "missing", 1, "-").code == errno.ENOENT


# --- making ---


def test_directories_are_made(tmp_path: Path) -> None:
    assert helper(tmp_path, "mkdir", "a/b", "-", "").code == errno.ENOENT
    assert helper(tmp_path, "mkdir", "a/b/", 0o1700, "p").code == 0
    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o1700
    assert helper(tmp_path, "mkdir", "a/b", "-", "p").code == errno.EEXIST
    assert helper(tmp_path, "mkdir", "a/b", "-", "pe").code == 0
    (tmp_path / "f").touch()
    assert helper(tmp_path, "mkdir", "f", "-", "e").code == errno.EEXIST
    assert helper(tmp_path, "mkdir", "f/g", "-", "pe").code == errno.ENOTDIR


def test_a_move_takes_no_place_unless_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    said = helper(tmp_path, "move", "a", "b", "-")
    assert (said.code, said.outcome.name) == (errno.EEXIST, "b")
    assert helper(tmp_path, "move", "a", "b", "o").code == 0
    assert (tmp_path / "b").read_bytes() == b"a"
    (tmp_path / "d").mkdir()
    assert helper(tmp_path, "move", "d", "d/e", "-").code == errno.EINVAL
    assert helper(tmp_path, "move", "b", "d", "o").code == errno.EISDIR
    assert helper(tmp_path, "move", "b", "/proc/x", "-").code == errno.EXDEV


# --- removing ---


def test_files_links_and_empty_directories_are_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").touch()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link/", "empty//", "fifo"):
        assert helper(tmp_path, "remove", name, "r").code == 0
    assert helper(tmp_path, "remove", "missing", "r").code == errno.ENOENT
    assert helper(tmp_path, "remove", "kept", "-").code == errno.ENOTEMPTY
    for name in (".", "kept/.", "kept/..", ".."):
        assert helper(tmp_path, "remove", name, "r").code == errno.EINVAL
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["f"]


def test_a_tree_goes_and_what_its_links_lead_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").touch()
    tree = tmp_path / "tree"
    for number in range(30):
        (tree / str(number) / "x" / "y").mkdir(parents=True)
        (tree / str(number) / "link").symlink_to(tmp_path / "kept")
        for each in range(20):
            (tree / str(number) / "x" / f"{'n' * 200}{each}").touch()
    said = helper(tmp_path, "remove", "tree", "r")
    assert (said.code, said.outcome.told) == (0, 1 + 30 * (1 + 1 + 1 + 1 + 20))
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["f"]


def test_a_tree_deeper_than_there_are_descriptors_goes(tmp_path: Path) -> None:
    make_deep(tmp_path, 1300)
    assert helper(tmp_path, "remove", "d", "r").code == 0
    assert os.listdir(tmp_path) == []


def make_deep(folder: Path, depth: int) -> None:
    """Directories named d, each in the one before; in each a file."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        at = below
    os.close(at)


@needs_root
def test_what_may_not_be_removed_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "tree" / "of" / "root").mkdir(parents=True)
    (tmp_path / "tree" / "of" / "root" / "f").touch()
    said = helper(tmp_path, "remove", "tree", "r", user=NOBODY)
    assert (said.code, said.outcome.name) == (errno.EACCES, "of")


@needs_root
def test_what_is_mounted_in_a_tree_stays(tmp_path: Path) -> None:
    (tmp_path / "tree" / "mounted").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "f").touch()
    script = f"""mount --bind other tree/mounted || exit 77
    {find()} --file remove tree r; echo $?; ls tree/mounted"""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.split() == [str(errno.EBUSY), "f"], done
    assert "mounted" in done.stderr


def find() -> Path:
    from fastclaw.spawner.spawner_host import find_spawner

    binary = find_spawner()
    assert binary is not None
    return binary
