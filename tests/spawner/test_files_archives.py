"""The file helper: directories as archives, out and in; archives that lie."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import socket
import stat
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.processes.file_helper import BAD_ARCHIVE, OUTSIDE, UNSUPPORTED
from tests.spawner.file_rig import NOBODY, Said, helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is several users")
needs_tar = pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar to compare with")

LONG = "n" * 200
MOMENT = 1_234_567_890_123_456_789


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Something of everything."""
    tree = tmp_path / "tree"
    (tree / "d" / "e").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"content")
    (tree / "d" / "big").write_bytes(os.urandom(700_001))
    (tree / "d" / "block").write_bytes(b"x" * 512)
    (tree / "empty").touch()
    (tree / LONG).mkdir()
    (tree / LONG / LONG).write_bytes(b"deep")
    (tree / "ключ").write_bytes(b"text")
    (tree / os.fsdecode(b"\xff")).write_bytes(b"binary name")
    (tree / "link").symlink_to("d/f")
    (tree / "long-link").symlink_to("/" + LONG)
    os.link(tree / "d" / "f", tree / "hard")
    os.mkfifo(tree / "fifo", 0o640)
    with (tree / "sparse").open("wb") as file:
        file.seek(3 * limits.MIB)
        file.write(b"y" * 5000)
        file.truncate(20 * limits.MIB)
    for path, mode in (("d/f", 0o4711), ("d/e", 0o500), ("empty", 0), ("d", 0o1777)):
        (tree / path).chmod(mode)
    for path in ("d/f", "sparse", "link", "d/e", "d"):
        os.utime(tree / path, ns=(0, MOMENT), follow_symlinks=False)
    os.utime(tree / "empty", ns=(0, -1_500_000_000))
    return tree


def described(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that an archive keeps, by path."""
    found = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        content: Any = None
        if stat.S_ISREG(about.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(about.st_mode):
            content = os.readlink(path)
        name = str(path.relative_to(folder))
        found[name] = (about.st_mode, about.st_uid, about.st_gid, about.st_nlink, about.st_mtime_ns, content)
    return found


def packed(folder: Path, *patterns: str) -> bytes:
    said = helper(folder.parent, "pack", folder.name, *patterns)
    assert (said.code, len(said.out) % 512) == (0, 0)
    return said.out


def unpacked(folder: Path, archive: bytes, **more: Any) -> Said:
    folder.mkdir(exist_ok=True)
    return helper(folder.parent, "unpack", folder.name, data=archive, **more)


def names(archive: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return set(opened.getnames())


def test_a_tree_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    os.mknod(tree / "socket", stat.S_IFSOCK)
    archive = packed(tree)
    os.unlink(tree / "socket")
    said = unpacked(tmp_path / "copy", archive)
    wanted = described(tree)
    assert (said.code, said.outcome.told) == (0, len(wanted))
    assert described(tmp_path / "copy") == wanted
    assert len(archive) < 2 * limits.MIB, "holes were packed"
    assert (tmp_path / "copy" / "sparse").stat().st_blocks * 512 < limits.MIB
    assert (tmp_path / "copy" / "d" / "f").samefile(tmp_path / "copy" / "hard")


def test_it_comes_over_one_that_is_there(tree: Path, tmp_path: Path) -> None:
    archive = packed(tree)
    for _ in range(2):
        assert unpacked(tmp_path / "copy", archive).code == 0
    assert described(tmp_path / "copy") == described(tree)


@needs_tar
def test_tar_reads_what_is_packed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    subprocess.run(["tar", "-xpf", "-", "-C", tmp_path / "copy"], input=packed(tree), check=True, timeout=30)
    assert described(tmp_path / "copy") == described(tree)


@needs_tar
@pytest.mark.parametrize("format", ["pax", "gnu"])
def test_what_tar_packs_is_read(tree: Path, tmp_path: Path, format: str) -> None:
    words = ["tar", "-cf", "-", f"--format={format}", *(["-S"] if format == "pax" else []), "-C", str(tree), "."]
    archive = subprocess.run(words, check=True, timeout=30, capture_output=True).stdout
    assert unpacked(tmp_path / "copy", archive).code == 0
    found, wanted = described(tmp_path / "copy"), described(tree)
    if format == "gnu":  # has whole seconds only
        for each in (found, wanted):
            each.update({name: (*of[:4], of[4] // 10**9, of[5]) for name, of in each.items()})
    assert found == wanted


@needs_tar
@pytest.mark.parametrize("version", ["0.1", "1.0"])
def test_each_kind_of_sparse_file_is_read(tree: Path, tmp_path: Path, version: str) -> None:
    words = ["tar", "-cSf", "-", "--format=pax", f"--sparse-version={version}", "-C", str(tree), "sparse"]
    archive = subprocess.run(words, check=True, timeout=30, capture_output=True).stdout
    assert unpacked(tmp_path / "copy", archive).code == 0
    assert (tmp_path / "copy" / "sparse").read_bytes() == (tree / "sparse").read_bytes()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_what_python_packs_is_read(tmp_path: Path, format: int) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_bytes(b"x" * 1000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        archive.add(tmp_path / "a", "a")
    assert unpacked(tmp_path / "copy", buffer.getvalue()).code == 0
    assert (tmp_path / "copy" / "a" / "b" / "f").read_bytes() == b"x" * 1000


def test_a_long_name_that_is_cut_at_a_slash_is_still_that_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "top" / ("n" * 99)).mkdir(parents=True)
    (tmp_path / "top" / ("n" * 99) / "f").write_bytes(b"x")
    assert unpacked(tmp_path / "copy", packed(tmp_path / "top")).code == 0
    assert (tmp_path / "copy" / ("n" * 99) / "f").read_bytes() == b"x"


def test_one_file_is_an_archive_too(tree: Path) -> None:
    said = helper(tree, "pack", "d/f")
    assert names(said.out) == {"f"}
    assert helper(tree, "pack", "fifo").code == 200
    assert helper(tree, "pack", "missing").code == errno.ENOENT


def test_what_is_excluded_is_left_out(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("a/x.o", "a/b/x.o", "a/b/y", "node_modules/z/y", "a/node_modules/z", "keep[1]"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    everything = names(packed(top))
    for pattern, gone in (
        ("*.o", {"a/x.o", "a/b/x.o"}),
        ("/a/*.o", {"a/x.o"}),
        ("a/**/*.o", {"a/x.o", "a/b/x.o"}),
        ("node_modules", {"node_modules", "node_modules/z", "node_modules/z/y", "a/node_modules", "a/node_modules/z"}),
        ("a/node_*", {"a/node_modules", "a/node_modules/z"}),
        ("?", everything - {"keep[1]", "node_modules"}),
        ("[x-z]", {"a/b/y", "a/node_modules/z", "node_modules/z", "node_modules/z/y"}),
        ("keep\\[1]", {"keep[1]"}),
        ("**/y", {"a/b/y", "node_modules/z/y"}),
        ("b", {"a/b", "a/b/x.o", "a/b/y"}),
        ("none", set()),
    ):
        assert everything - names(packed(top, pattern)) == gone, pattern
    assert names(packed(top, "*.o", "node_modules")) == {"a", "a/b", "a/b/y", "keep[1]"}


def test_what_the_kernel_makes_up_is_not_gone_into() -> None:
    script = "cd /; exec $0 --file pack / 'x*' '[!p]*'"
    from fastclaw.spawner.spawner_host import find_spawner

    done = subprocess.run(["sh", "-c", script, str(find_spawner())], capture_output=True, check=False, timeout=60)
    assert "proc" in names(done.stdout)
    assert not any(name.startswith("proc/") for name in names(done.stdout))


# --- archives that others made ---


Info = tarfile.TarInfo


def made(*members: tuple[Info, bytes] | Info, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def file(name: str, data: bytes = b"x", **more: Any) -> tuple[Info, bytes]:
    info = Info(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def other(name: str, kind: bytes, link: str = "") -> Info:
    info = Info(name)
    info.type, info.linkname, info.mode = kind, link, 0o755
    return info


def link(name: str, to: str) -> Info:
    return other(name, tarfile.SYMTYPE, to)


@pytest.mark.parametrize(
    ("members", "code", "name"),
    [
        ([file("../evil")], OUTSIDE, "../evil"),
        ([file("a/../../evil")], OUTSIDE, "a/../../evil"),
        ([file("/abs")], OUTSIDE, "/abs"),
        ([link("up", ".."), file("up/evil")], OUTSIDE, "up/evil"),
        ([link("out", "/tmp"), file("out/evil")], OUTSIDE, "out/evil"),
        ([link("a", "b"), link("b", "../x"), file("a/evil")], OUTSIDE, "a/evil"),
        ([link("out", "/tmp"), other("out/dir", tarfile.DIRTYPE)], OUTSIDE, "out/dir"),
        ([link("out", "/tmp"), other("out", tarfile.DIRTYPE)], OUTSIDE, "out"),
        ([link("out", "/tmp"), link("out/evil", "x")], OUTSIDE, "out/evil"),
        ([other("hard", tarfile.LNKTYPE, "../secret")], OUTSIDE, "hard"),
        ([other("hard", tarfile.LNKTYPE, "/etc/passwd")], OUTSIDE, "hard"),
        ([link("out", ".."), other("hard", tarfile.LNKTYPE, "out/secret")], OUTSIDE, "hard"),
        ([other("hard", tarfile.LNKTYPE, "missing")], errno.ENOENT, "hard"),
        ([other("dev", tarfile.CHRTYPE)], UNSUPPORTED, "dev"),
        ([other("dev", tarfile.BLKTYPE)], UNSUPPORTED, "dev"),
        ([other("odd", b"M")], UNSUPPORTED, "odd"),
        ([file("f"), file("f/g")], errno.ENOTDIR, "f/g"),
        ([other("d", tarfile.DIRTYPE), file("d")], errno.EISDIR, "d"),
        ([file("f"), other("f", tarfile.DIRTYPE)], errno.ENOTDIR, "f"),
        ([file("n" * 256)], errno.ENAMETOOLONG, "n" * 256),
        ([link("link", "")], BAD_ARCHIVE, "link"),
        ([file(".")], BAD_ARCHIVE, "."),
        ([link("loop", "loop"), file("loop/x")], errno.ELOOP, "loop/x"),
    ],
)
def test_what_would_go_elsewhere_is_refused_by_name(tmp_path: Path, members: list[Any], code: int, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    said = unpacked(tmp_path / "in", made(file("before"), *members, file("after")))
    assert (said.code, said.outcome.name.rstrip("/")) == (code, name)
    assert said.outcome.told == 1 + len(members) - 1
    assert (tmp_path / "in" / "before").read_bytes() == b"x"
    assert not (tmp_path / "in" / "after").exists()
    assert sorted(os.listdir(tmp_path)) == ["in", "secret"]
    assert not os.path.exists("/tmp/evil")
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_a_link_that_was_there_before_leads_nowhere_either(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to("..")
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "in" / "file").symlink_to("../target")
    assert unpacked(tmp_path / "in", made(file("out/x"))).code == OUTSIDE
    assert unpacked(tmp_path / "in", made(file("file", b"new"))).code == 0
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not (tmp_path / "in" / "file").is_symlink()


def test_links_within_are_gone_through_and_kept(tmp_path: Path) -> None:
    lib: list[Any] = [link("lib", "usr/lib"), other("lib", tarfile.DIRTYPE), file("lib/x")]
    assert unpacked(tmp_path / "in", made(other("usr/lib", tarfile.DIRTYPE), *lib)).code == 0
    assert (tmp_path / "in" / "lib").is_symlink()
    assert (tmp_path / "in" / "usr" / "lib" / "x").read_bytes() == b"x"


def test_names_are_tidied_and_missing_directories_made(tmp_path: Path) -> None:
    assert unpacked(tmp_path / "in", made(other("./", tarfile.DIRTYPE), file("./a//b/./c"))).code == 0
    assert (tmp_path / "in" / "a" / "b" / "c").read_bytes() == b"x"


def test_a_hard_link_in_the_place_of_its_own_file_does_no_harm(tmp_path: Path) -> None:
    hard = [other("g", tarfile.LNKTYPE, "f"), other("g", tarfile.LNKTYPE, "f"), other("f", tarfile.LNKTYPE, "f")]
    assert unpacked(tmp_path / "in", made(file("f"), *hard)).code == 0
    assert sorted(os.listdir(tmp_path / "in")) == ["f", "g"]
    assert (tmp_path / "in" / "f").samefile(tmp_path / "in" / "g")


@needs_root
def test_owners_are_given_by_root_and_are_the_users_own_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    archive = made(file("f", uid=1234, gid=3_000_000, mode=0o4755), other("d", tarfile.DIRTYPE))
    assert unpacked(tmp_path / "root", archive).code == 0
    about = (tmp_path / "root" / "f").stat()
    assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (1234, 3_000_000, 0o4755)
    (tmp_path / "nobody").mkdir(mode=0o777)
    (tmp_path / "nobody").chmod(0o777)
    assert unpacked(tmp_path / "nobody", archive, user=NOBODY).code == 0
    about = (tmp_path / "nobody" / "f").stat()
    assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (NOBODY, NOBODY, 0o755)


# --- archives that lie ---


def header(name: str = "f", size: int | bytes = 1, kind: bytes = b"0", **more: Any) -> bytes:
    """One header, with any size."""
    info = Info(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    return summed(block)


def summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes, name: str = "f", data: bytes = b"") -> bytes:
    text = b"".join(records)
    padded = text + b"\0" * (-len(text) % 512)
    return header("pax", len(text), b"x") + padded + header(name, len(data)) + data + b"\0" * (-len(data) % 512)


def record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def map_that_is_written_over() -> bytes:
    """A sparse map at the end of a long header, and another header as long behind that, without the map's end."""
    most = 1 << 20  # spawner/c/files/files.h, PAX_BYTES
    told = record("GNU.sparse.size", b"1") + record("GNU.sparse.name", b"f")
    kept = record("GNU.sparse.map", b"0,1")
    fill = most - len(told) - len(kept)
    told += record("comment", b"x" * (fill - len(record("comment", b"x" * fill)) + fill)) + kept
    return header("pax", most, b"x") + told + header("long", most, b"K") + b"\0".ljust(most, b"1")


END = b"\0" * 1024
SPARSE = [record("GNU.sparse.major", b"1"), record("GNU.sparse.name", b"f")]


def a_sparse(text: bytes, real: int, data: bytes) -> bytes:
    blocks = text + b"\0" * (-len(text) % 512)
    return pax(*SPARSE, record("GNU.sparse.realsize", b"%d" % real), data=blocks + data)


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"", "truncated"),
        (b"\0" * 100, "truncated"),
        (b"no archive" * 100, "checksum"),
        (b"\x1f\x8b" + b"\0" * 1000, "gzip"),
        (header(size=5) + b"12345", "truncated"),
        (header(size=5) + b"12345" + b"\0" * 507, "truncated"),
        (header(size=7 << 30) + END, "truncated"),
        (header(size=b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7) + END, "size"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "number"),
        (header(size=b"\xff" * 12) + END, "number"),
        (header(size=b"xyz") + END, "number"),
        (header(size=1) + b"x" * 1024 + END, "checksum"),
        (header("x", 2 << 20, b"x") + END, "pax"),
        (header("x", 100, b"x") + b"x" * 512 + END, "pax"),
        (pax(b"5 a=b\n") + END, "pax"),
        (pax(b"99999999999999999999 a=b\n") + END, "pax"),
        (pax(b"6 a=b\n0 x") + END, "pax"),
        (pax(b"6 abc\n") + END, "pax"),
        (pax(record("size", b"-1")) + END, "size"),
        (pax(record("size", b"9223372036854775807")) + END, "size"),
        (pax(record("size", b"9999")) + END, "truncated"),
        (pax(record("path", b"a\0b")) + END, "path"),
        (pax(record("uid", b"x")) + END, "owner"),
        (pax(record("mtime", b"1.x")) + END, "mtime"),
        (header("pax", 0, b"x"), "truncated"),
        (header("long", 100, b"L"), "truncated"),
        (a_sparse(b"1\n0\n5\n", 4, b"12345"), "sparse"),
        (a_sparse(b"1\n0\n4\n", 4, b"12345"), "sparse"),
        (a_sparse(b"2\n0\n3\n1\n2\n", 9, b"12345"), "sparse"),
        (a_sparse(b"2\n0\n3\n", 9, b"123"), "sparse"),
        (a_sparse(b"x\n", 9, b""), "sparse"),
        (a_sparse(b"99999999999\n", 9, b""), "sparse"),
        (a_sparse(b"1\n9223372036854775807\n1\n", 9, b"1"), "sparse"),
        (a_sparse(b"1\n0\n", 9, b""), "sparse"),
        (pax(record("GNU.sparse.offset", b"1")) + END, "sparse"),
        (map_that_is_written_over() + header("f", 1) + b"x".ljust(512, b"\0") + END, "sparse"),
    ],
)
def test_an_archive_that_lies_has_one_right_answer(tmp_path: Path, archive: bytes, why: str) -> None:
    before = header("before", 1) + b"x".ljust(512, b"\0") if archive else b""
    said = unpacked(tmp_path / "in", before + archive)
    assert (said.code, said.outcome.why) == (BAD_ARCHIVE, why)
    assert {name for name in os.listdir(tmp_path / "in") if name != "f"} == ({"before"} if before else set())
    if said.outcome.told < 2:
        assert not (tmp_path / "in" / "f").exists(), "a part of a file was left"


def test_a_file_larger_than_is_possible_is_one_answer(tmp_path: Path) -> None:
    archive = a_sparse(b"1\n0\n1\n", 2**62, b"x") + END
    said = unpacked(tmp_path / "in", archive)
    assert said.code in (errno.EFBIG, errno.EINVAL)
    assert os.listdir(tmp_path / "in") == []


def test_what_follows_the_end_is_ignored(tmp_path: Path) -> None:
    assert unpacked(tmp_path / "in", header("f", 0) + END + b"x" * 100_000).code == 0
    assert unpacked(tmp_path / "in", header("f", 0) + END[:512]).code == 0


def test_a_directory_that_nobody_may_look_into_gets_its_content_first(tmp_path: Path) -> None:
    closed = other("d", tarfile.DIRTYPE)
    closed.mode = 0
    tmp_path.chmod(0o777)
    (tmp_path / "in").mkdir()
    (tmp_path / "in").chmod(0o777)
    user = NOBODY if os.geteuid() == 0 else None
    assert unpacked(tmp_path / "in", made(closed, file("d/e/f")), user=user).code == 0
    assert stat.S_IMODE((tmp_path / "in" / "d").stat().st_mode) == 0
    (tmp_path / "in" / "d").chmod(0o700)
    assert (tmp_path / "in" / "d" / "e" / "f").read_bytes() == b"x"


def test_whatever_is_changed_in_an_archive_nothing_else_is_written(tree: Path, tmp_path: Path) -> None:
    (tree / "d" / "big").unlink()
    archive, chance = packed(tree), random.Random(1)
    shutil.rmtree(tree)
    (tmp_path / "witness").write_bytes(b"w")
    (tmp_path / "in").mkdir()
    for number in range(200):
        changed = bytearray(archive)
        for _ in range(chance.randrange(1, 8)):
            at = chance.randrange(len(changed))
            changed[at] = chance.choice((0, 0x2F, 0x2E, 0x37, 0xFF, chance.randrange(256)))
            if chance.random() < 0.8:
                block = at // 512 * 512
                changed[block : block + 512] = summed(changed[block : block + 512])
        said = unpacked(tmp_path / "in", bytes(changed[: chance.randrange(512, len(changed))]))
        assert said.code in (0, BAD_ARCHIVE, OUTSIDE, UNSUPPORTED) or said.code < 200, number
        assert sorted(os.listdir(tmp_path)) == ["in", "witness"], number
        assert (tmp_path / "witness").read_bytes() == b"w"


@pytest.fixture
def swapping(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Somebody who makes a directory a link that leads out, and back, all the time."""
    (tmp_path / "in" / "d").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    script = "while :; do mv d e; ln -s ../outside d; rm d; mv e d; done"
    with subprocess.Popen(["sh", "-c", script], cwd=tmp_path / "in", stderr=subprocess.DEVNULL) as swapper:
        yield swapper.kill
        swapper.kill()


def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere(tmp_path: Path, swapping: Callable[[], None]) -> None:
    archive = made(*(file(f"d/{number % 10}") for number in range(2000)))
    codes = {unpacked(tmp_path / "in", archive).code for _ in range(10)}
    swapping()
    assert os.listdir(tmp_path / "outside") == []
    assert codes <= {0, OUTSIDE, errno.ENOENT, errno.EBUSY, errno.EEXIST, errno.ENOTDIR}


def test_a_socket_beside_a_file_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "f").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "top" / "s"))
    assert names(packed(tmp_path / "top")) == {"f"}


def test_a_file_that_is_written_meanwhile_gives_an_archive_that_is_one(tmp_path: Path) -> None:
    """What it loses comes as zeros, and the outcome names it."""
    from fastclaw.spawner.spawner_host import find_spawner

    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "f").write_bytes(b"x" * (8 * limits.MIB))
    binary = find_spawner()
    assert binary is not None
    command = [str(binary), "--file", "pack", "top"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as packing:
        assert packing.stdout is not None
        assert packing.stderr is not None
        first = packing.stdout.read(1)
        os.truncate(tmp_path / "top" / "f", 10)
        archive = first + packing.stdout.read()
        said = packing.stderr.read().split(b"\t")
    assert (said[0], said[3:]) == (b"0", [b"changed", b"f\n"])
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert opened.getmember("f").size == 8 * limits.MIB
