"""What of a directory an engine is sent to build from: read back by Python's own tarfile."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from fastclaw import engine_limits
from fastclaw.engine.build_context import BuildContext, Ignored
from fastclaw.errors import IoError
from fastclaw.limits import MIB

NOBODY = 65_534


def made(directory: Path, *names: str, ignore: str = "") -> Path:
    """A directory with these files and a Containerfile."""
    for name in ("Containerfile", *names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    if ignore:
        (directory / ".containerignore").write_text(ignore)
    return directory


def sent(directory: Path, file: str | None = None) -> dict[str, tarfile.TarInfo]:
    archive = BuildContext.open(str(directory), file).archive()
    found = read(b"".join(archive))
    if archive.error is not None:
        raise archive.error
    return found


def read(data: bytes) -> dict[str, tarfile.TarInfo]:
    """The members of an archive, which has to be a sound one; the last of those that have the same name."""
    with tarfile.open(fileobj=io.BytesIO(data), errorlevel=2) as tar:
        return {member.name: member for member in tar}


@pytest.mark.parametrize(
    ("lines", "left_out", "kept"),
    [
        ("a", "a a/b a/b/c", "b b/a ab"),
        ("/a/", "a a/b", "b/a"),
        ("*", "a a/b .x", ""),
        ("*\n!a", "b b/c", "a a/b a/b/c"),
        ("*\n!a\na/b", "b a/b a/b/c", "a a/c"),
        ("*.o", "x.o x.o/y", "d/x.o x.oo"),
        ("**/*.o", "x.o d/x.o d/e/x.o", "x.c d/x.c"),
        ("**/a", "a b/a b/c/a/d", "ba b/ca"),
        ("a/**", "a/b a/b/c", "a b"),
        ("a/**/z", "a/z a/b/z a/b/c/z/y", "a/b za"),
        ("?x", "ax bx/c", "x a/x"),
        ("[a-c]x", "ax cx", "dx"),
        (r"\*x", "*x", "ax"),
        ("# a\n\n  b  ", "b", "a # "),
        ("./a/../b", "b", "a"),
        ("[z-a]", "", "a z"),
        ("!", "", "a"),
        (".", "", "a"),
        ("a.b", "a.b", "axb"),
    ],
)
def test_the_last_pattern_that_fits_decides(lines: str, left_out: str, kept: str) -> None:
    ignored = Ignored(lines.splitlines())
    assert [path for path in left_out.split() if not ignored(path)] == []
    assert [path for path in kept.split() if ignored(path)] == []


def test_a_directory_is_sent_with_modes_times_and_links_and_belongs_to_root(tmp_path: Path) -> None:
    made(tmp_path, "d/e/f", "x" * 120, "ü")
    (tmp_path / "d/e/f").chmod(0o4751)
    os.utime(tmp_path / "d/e/f", (1, 1_000_000_000.5))
    (tmp_path / "out").symlink_to("/etc/passwd")
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / "up").symlink_to("..")
    found = sent(tmp_path)
    assert list(found) == sorted([*found], key=lambda name: name.split("/"))
    assert {*found} == {"Containerfile", "d", "d/e", "d/e/f", "x" * 120, "ü", "out", "broken", "up"}
    file = found["d/e/f"]
    assert (file.mode, file.mtime, file.size, file.uid, file.gid) == (0o4751, 1_000_000_000, 5, 0, 0)
    assert {name: found[name].linkname for name in ("out", "broken", "up")} == {
        "out": "/etc/passwd",
        "broken": "nothing",
        "up": "..",
    }


def test_what_is_no_file_stays_and_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(made(tmp_path) / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    assert {*sent(tmp_path)} == {"Containerfile"}


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    made(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).touch()
    assert {os.fsencode(name) for name in sent(tmp_path)} == {b"Containerfile", b"caf\xe9"}


def test_what_is_left_out_is_not_read_and_the_files_that_say_so_are_sent(tmp_path: Path) -> None:
    ignore = "*\n!src\nsrc/secret\n**/*.o\n"
    made(tmp_path, "src/a.c", "src/a.o", "src/secret/key", "other/b", "build/Containerfile", ignore=ignore)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**42)
    found = {*sent(tmp_path, "build/Containerfile")}
    assert found == {".containerignore", "build/Containerfile", "src", "src/a.c"}


def test_the_ignore_file_of_docker_counts_where_there_is_no_other(tmp_path: Path) -> None:
    made(tmp_path, "a", "b")
    (tmp_path / ".dockerignore").write_text("a\n")
    assert {*sent(tmp_path)} == {"Containerfile", ".dockerignore", "b"}
    (tmp_path / ".containerignore").write_text("b\n")
    assert {*sent(tmp_path)} == {"Containerfile", ".dockerignore", ".containerignore", "a"}


def test_the_file_is_containerfile_else_dockerfile_or_as_it_is_named(tmp_path: Path) -> None:
    made(tmp_path, "Dockerfile", "d/Other")
    assert BuildContext.open(str(tmp_path), None).containerfile == "Containerfile"
    assert BuildContext.open(str(tmp_path), "./d/../d/Other").containerfile == "d/Other"
    (tmp_path / "Containerfile").unlink()
    assert BuildContext.open(str(tmp_path), None).containerfile == "Dockerfile"
    (tmp_path / "Dockerfile").unlink()
    (tmp_path / "Dockerfile").symlink_to("d/Other")
    assert BuildContext.open(str(tmp_path), None).containerfile == "Dockerfile"


@pytest.mark.parametrize(
    ("directory", "file", "reason", "path"),
    [
        ("none", None, "not_found", "none"),
        ("Containerfile", None, "not_directory", "Containerfile"),
        ("empty", None, "not_found", "empty/Containerfile"),
        (".", "none", "not_found", "none"),
        (".", "empty", "not_regular", "empty"),
        ("empty", "../Containerfile", "outside", "empty/../Containerfile"),
        (".", "/etc/passwd", "outside", "/etc/passwd"),
        (".", "link", "outside", "link"),
    ],
)
def test_what_cannot_be_built_from(tmp_path: Path, directory: str, file: str | None, reason: str, path: str) -> None:
    (made(tmp_path) / "empty").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(IoError) as raised:
        BuildContext.open(str(tmp_path / directory), file)
    assert raised.value.reason == reason
    assert raised.value.data["path"] == str(tmp_path / path)


def test_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    with (made(tmp_path) / "large").open("wb") as file:
        file.truncate(256 * MIB)
    sizes = [len(chunk) for chunk in BuildContext.open(str(tmp_path), None).archive()]
    assert max(sizes) <= engine_limits.IMAGE_CHUNK_BYTES
    assert sum(sizes) > 256 * MIB


def test_a_tree_of_any_depth(tmp_path: Path) -> None:
    here = os.open(made(tmp_path), os.O_RDONLY)
    depth = 1_050  # Python's own recursion ends at a thousand
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    found = len(sent(tmp_path))
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # whose depth is no limit either, unlike shutil's
    assert found == depth + 1


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = made(tmp_path) / "shrinks"
    path.write_bytes(b"x" * 2 * engine_limits.IMAGE_CHUNK_BYTES)
    archive = BuildContext.open(str(tmp_path), None).archive()
    pieces = []
    for piece in archive:
        pieces += [piece]
        if piece.startswith(b"xxx"):
            os.truncate(path, 0)
    assert archive.error is not None
    assert (archive.error.reason, archive.error.data["path"]) == ("wrong_size", str(path))
    assert_nothing_can_be_built_from(b"".join(pieces))


def test_what_is_given_up_is_ended_soon_and_in_order(tmp_path: Path) -> None:
    made(tmp_path, "a", "z")
    (tmp_path / "m").write_bytes(b"x" * 10 * engine_limits.IMAGE_CHUNK_BYTES)
    pieces: list[bytes] = []
    archive = BuildContext.open(str(tmp_path), None).archive(lambda: any(piece[:1] == b"x" for piece in pieces))
    pieces.extend(archive)
    assert archive.is_spoiled
    assert archive.error is None
    found = assert_nothing_can_be_built_from(b"".join(pieces))
    assert {*found} == {"Containerfile", "a", "m"}


def assert_nothing_can_be_built_from(data: bytes) -> dict[str, tarfile.TarInfo]:
    """Its file of orders is an empty one."""
    found = read(data)
    assert found["Containerfile"].size == 0
    return found


@pytest.mark.parametrize("name", ["file", "directory/file"])
def test_what_may_not_be_read_is_an_error_by_its_name(tmp_path: Path, name: str) -> None:
    path = made(tmp_path, name) / name
    for one in (path, *path.parents[: len(Path(name).parts) - 1]):
        one.chmod(0)
    result = as_nobody(tmp_path)
    path.parent.chmod(0o755)
    first = name.partition("/")[0]
    assert result == f"permission_denied {first}"


def as_nobody(directory: Path) -> str:
    """What comes of sending a directory as a user whose it is not: root may read anything."""
    directory.chmod(0o755)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.chdir(directory)
        if os.geteuid() == 0:
            os.chroot(".")  # the directories above it are root's alone, and Python 3.13 resolves them too
            os.setuid(NOBODY)
        try:
            sent(Path())
        except IoError as error:
            os.write(writer, f"{error.reason} {error.data['path']}".encode())
        os._exit(0)
    os.wait()
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        return pipe.read()
