"""Directories of this host as archives and back: everything is kept that shall be, and nothing leads out."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.sandbox.host_trees import pack, unpack


def packed(directory: Path, exclude: tuple[str, ...] = ()) -> bytes:
    into = io.BytesIO()
    pack(directory, into, exclude)
    return into.getvalue()


def names(archive: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        return set(members.getnames())


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    into.seek(0)
    return into


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: int | str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.mode = kind, 0o644
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def file(name: str, content: bytes = b"x", **fields: int) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.REGTYPE, size=len(content), **fields), content


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind, linkname=to), b""


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "deep" / ("n" * 200)).mkdir(parents=True)
    (tree / "a file").write_bytes(os.urandom(3 << 20))
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    (tree / "deep" / "read-only").mkdir(mode=0o555)
    (tree / "absolute").symlink_to("/usr/bin/python3")
    (tree / "nowhere").symlink_to("not there")
    os.link(tree / "run", tree / "deep" / "same")
    os.mkfifo(tree / "fifo", 0o640)
    os.utime(tree / "a file", (1, 1))
    unpack(io.BytesIO(packed(tree)), tmp_path / "copy")
    copy = tmp_path / "copy"
    for path in sorted(tree.rglob("*")):
        there, here = path.lstat(), (copy / path.relative_to(tree)).lstat()
        assert (stat.S_IFMT(there.st_mode), there.st_size) == (stat.S_IFMT(here.st_mode), here.st_size), path
        if not path.is_symlink():
            assert stat.S_IMODE(there.st_mode) & 0o777 == stat.S_IMODE(here.st_mode), path
    assert (copy / "a file").read_bytes() == (tree / "a file").read_bytes()
    assert (copy / "a file").stat().st_mtime == 1
    assert (copy / "absolute").readlink() == Path("/usr/bin/python3")
    assert (copy / "run").samefile(copy / "deep" / "same")


def test_a_socket_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for a path that is short enough
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        (tmp_path / "f").write_text("x")
        assert names(packed(tmp_path)) == {"f"}


def test_what_is_packed_belongs_to_whoever_unpacks_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    (tmp_path / "f").chmod(0o6755)
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path))) as members:
        found = members.getmember("f")
        assert (found.uid, found.gid, found.uname, found.gname, found.mode) == (0, 0, "", "", 0o755)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), {"a", "a/b", "a/b/c.py", "a/d.txt", "d.txt", "e.py"}),
        (("*.py",), {"a", "a/b", "a/d.txt", "d.txt"}),
        (("a",), {"d.txt", "e.py"}),
        (("b",), {"a", "a/d.txt", "d.txt", "e.py"}),
        (("a/*",), {"a", "d.txt", "e.py"}),
        (("a/d.txt",), {"a", "a/b", "a/b/c.py", "d.txt", "e.py"}),
        (("**/d.txt",), {"a", "a/b", "a/b/c.py", "d.txt", "e.py"}),
        (("a/*.py",), {"a", "a/b", "a/b/c.py", "a/d.txt", "d.txt", "e.py"}),
        (("a/**.py",), {"a", "a/b", "a/d.txt", "d.txt", "e.py"}),
        (("[!d].*",), {"a", "a/b", "a/d.txt", "d.txt"}),
        (("[a-d].py",), {"a", "a/b", "a/d.txt", "d.txt", "e.py"}),
        (("?.txt", "e.p?"), {"a", "a/b", "a/b/c.py"}),
        ((r"\*.py", "(", "a+b", "["), {"a", "a/b", "a/b/c.py", "a/d.txt", "d.txt", "e.py"}),
    ],
)
def test_patterns_leave_out_what_they_mean(tmp_path: Path, patterns: tuple[str, ...], left: set[str]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/c.py", "a/d.txt", "d.txt", "e.py"):
        (tmp_path / name).write_text(name)
    assert names(packed(tmp_path, patterns)) == left


@given(st.text(alphabet="ab*?[]!/\\.-^", max_size=8))
def test_any_text_is_a_pattern(pattern: str) -> None:
    pack(Path(__file__).parent, io.BytesIO(), (pattern,))


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        packed(tmp_path / "none")


# --- archives that are not to be trusted ---


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/../out", "a/.."])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="outside") as refused:
        unpack(archive_of(file(name)), tmp_path / "in")
    assert refused.value.errno == errno.EXDEV
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_absolute_name_is_beneath_the_directory(tmp_path: Path) -> None:
    unpack(archive_of(file("/etc/it")), tmp_path / "in")
    assert (tmp_path / "in" / "etc" / "it").read_text() == "x"


def test_nothing_is_written_through_a_link_of_the_archive(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for to in (str(outside), "../outside"):
        with pytest.raises(NotADirectoryError):
            unpack(archive_of(link("way", to), file("way/f")), tmp_path / "in")
    assert list(outside.iterdir()) == []


def test_nothing_is_written_through_a_link_that_is_there(tmp_path: Path) -> None:
    outside, into = tmp_path / "outside", tmp_path / "in"
    outside.write_text("as it was")
    into.mkdir()
    (into / "f").symlink_to(outside)
    unpack(archive_of(file("f", b"new")), into)
    assert outside.read_text() == "as it was"
    assert (into / "f").read_text() == "new"
    assert not (into / "f").is_symlink()


def test_a_hard_link_leads_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    for to in ("../secret", "way/secret"):
        with pytest.raises(OSError, match=r"outside|Not a directory"):
            unpack(archive_of(link("way", str(tmp_path)), link("h", to, tarfile.LNKTYPE)), tmp_path / "in")
    assert secret.stat().st_nlink == 1
    # A hard link to a symbolic link is that link, and gives nobody the file.
    unpack(archive_of(link("way", str(secret)), link("h", "way", tarfile.LNKTYPE)), tmp_path / "again")
    assert secret.stat().st_nlink == 1


def test_owners_special_bits_and_devices_are_not_taken_over(tmp_path: Path) -> None:
    mine = file("f", mode=0o6777, uid=12345, gid=12345)
    device = member("null", tarfile.CHRTYPE, devmajor=1, devminor=3)
    directory = member("d", tarfile.DIRTYPE, mode=0o7777)
    unpack(archive_of(mine, (device, b""), (directory, b"")), tmp_path)
    found = (tmp_path / "f").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o777, os.geteuid(), os.getegid())
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777
    assert not (tmp_path / "null").exists()


def test_what_is_there_is_replaced_and_directories_are_kept(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")
    (tmp_path / "f").write_text("long old content")
    unpack(archive_of((member("d", tarfile.DIRTYPE), b""), file("d/new"), file("f", b"n")), tmp_path)
    assert (tmp_path / "d" / "old").read_text() == "old"
    assert (tmp_path / "f").read_text() == "n"
    with pytest.raises(IsADirectoryError):
        unpack(archive_of(file("d")), tmp_path)


@pytest.mark.parametrize("archive", [b"", b"no archive at all" * 100, b"\0" * 100])
def test_what_is_no_archive_is_said(tmp_path: Path, archive: bytes) -> None:
    with pytest.raises(OSError, match="no whole archive") as refused:
        unpack(io.BytesIO(archive), tmp_path)
    assert refused.value.errno == errno.EBADMSG


def test_an_archive_that_is_cut_short_is_said(tmp_path: Path) -> None:
    whole = archive_of(file("f", b"x" * 5000)).getvalue()
    with pytest.raises(OSError, match="no whole archive"):
        unpack(io.BytesIO(whole[:3000]), tmp_path)


@given(st.binary(max_size=2048), st.integers(0, 2047), st.integers(0, 255))
def test_any_bytes_unpack_or_are_an_error(data: bytes, at: int, byte: int) -> None:
    spoiled = bytearray(archive_of(file("d/f"), link("l", "/"), link("h", "d/f", tarfile.LNKTYPE)).getvalue())
    spoiled[at] = byte
    for archive in (data, bytes(spoiled)):
        with tempfile.TemporaryDirectory() as directory:
            try:
                unpack(io.BytesIO(archive), Path(directory, "in"))
            except OSError:
                continue
