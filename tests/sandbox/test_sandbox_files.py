"""Files of a sandbox, with Python's own errors; and on their way to and from this host."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fastclaw.sandbox import FileTooLarge

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.sandbox.sync import Host, Sandbox


@pytest.mark.parametrize("data", [b"", b"\0\xff", "é\n".encode(), os.urandom(5 << 20)])
def test_what_is_written_is_read(box: Sandbox, data: bytes) -> None:
    box.write("new/dir/f", data)
    assert box.read("new/dir/f") == data
    assert box.read(os.path.join(box.working_dir, "new/dir/f")) == data
    box.write("new/dir/f", b"x")
    assert box.read("new/dir/f") == b"x"


def test_text(box: Sandbox) -> None:
    box.write("f", "grüß\r\n")
    assert box.read_text("f") == "grüß\r\n"
    assert box.read_text("f", encoding="latin-1") == "grÃ¼Ã\x9f\r\n"
    box.write("f", b"\xff")
    with pytest.raises(UnicodeDecodeError):
        box.read_text("f")
    assert box.read_text("f", errors="replace") == "\N{REPLACEMENT CHARACTER}"


def test_errors_are_pythons_own_with_the_callers_path(box: Sandbox) -> None:
    box.mkdir("d/e")
    box.write("f", "x")
    for call, error in (
        (lambda: box.read("none"), FileNotFoundError),
        (lambda: box.stat("none"), FileNotFoundError),
        (lambda: box.list("none"), FileNotFoundError),
        (lambda: box.get("none", "/nowhere"), FileNotFoundError),
        (lambda: box.write("none/f", "", parents=False), FileNotFoundError),
        (lambda: box.read("d"), IsADirectoryError),
        (lambda: box.write("d", ""), IsADirectoryError),
        (lambda: box.read("f/g"), NotADirectoryError),
        (lambda: box.list("f"), NotADirectoryError),
        (lambda: box.mkdir("d", exist_ok=False), FileExistsError),
    ):
        with pytest.raises(error) as failed:
            call()
        assert failed.value.filename in ("none", "none/f", "d", "f/g", "f"), error
        assert failed.value.strerror == os.strerror(failed.value.errno or 0)
    with pytest.raises(OSError, match="not empty") as failed:
        box.remove("d")
    assert failed.value.errno == errno.ENOTEMPTY


def test_what_a_user_may_not(podman_box: Sandbox) -> None:
    podman_box.write("/tmp/secret", "s", mode=0o600)
    for call in (
        lambda: podman_box.read("/tmp/secret", user="65534"),
        lambda: podman_box.write("/tmp/secret", "", user="65534"),
    ):
        with pytest.raises(PermissionError, match="/tmp/secret"):
            call()
    podman_box.write("/tmp/own", "o", user="65534:65534")
    assert podman_box.stat("/tmp/own").uid == 65534


def test_a_limit(box: Sandbox) -> None:
    box.write("f", b"x" * 2048)
    assert len(box.read("f", limit="2k")) == 2048
    assert box.read("f", offset=2000, limit=100) == b"x" * 48
    with pytest.raises(FileTooLarge, match="2048 bytes") as failed:
        box.read("f", limit=2047)
    assert (failed.value.size, failed.value.filename) == (2048, "f")


def test_names(box: Sandbox) -> None:
    box.write("d/a", "1")
    box.write("d/b", "22", mode=0o600)
    box.mkdir("d/c")
    assert [(entry.name, entry.type, entry.size) for entry in box.list("d")][:2] == [("a", "file", 1), ("b", "file", 2)]
    assert box.stat("d/b").mode == 0o600
    assert (box.exists("d/a"), box.exists("d/none"), box.exists("d/a/x")) == (True, False, False)
    box.move("d/a", "d/b", overwrite=True)
    assert box.read("d/b") == b"1"
    with pytest.raises(FileExistsError):
        box.move("d/b", "d/c")
    with pytest.raises(FileNotFoundError, match="'d/b' -> 'none/b'") as failed:
        box.move("d/b", "none/b")
    assert (failed.value.filename, failed.value.filename2) == ("d/b", "none/b")
    box.run(["ln", "-s", "loop", "loop"], check=True)
    assert not box.exists("loop")
    box.remove("d", recursive=True)
    assert not box.exists("d")


def test_a_directory_goes_in_and_out(box: Sandbox, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    (here / "big").write_bytes(os.urandom(3 << 20))
    (here / "sub" / "run").write_text("#!/bin/sh\necho ran\n")
    (here / "sub" / "run").chmod(0o755)
    (here / "sub" / "cache").write_text("no")
    (here / "link").symlink_to("sub/run")
    box.put(here, "there/deep", exclude=["cache"])
    assert box.run(["there/deep/link"]).text == "ran\n"
    assert not box.exists("there/deep/sub/cache")
    box.write("there/deep/more", "m")
    box.get("there/deep", tmp_path / "back", exclude=["big"])
    back = tmp_path / "back"
    assert sorted(path.relative_to(back).as_posix() for path in back.rglob("*")) == ["link", "more", "sub", "sub/run"]
    assert (back / "sub" / "run").stat().st_mode & 0o777 == 0o755
    box.get("there", back)
    assert (back / "deep" / "big").read_bytes() == (here / "big").read_bytes()


def test_a_file_goes_in_and_out(box: Sandbox, tmp_path: Path) -> None:
    here = tmp_path / "f"
    here.write_bytes(os.urandom(2 << 20))
    here.chmod(0o750)
    box.put(here, "a/b/named")
    box.put(str(here), "a/c/")
    assert box.stat("a/c/f").mode == 0o750
    box.get("a/b/named", tmp_path / "new" / "back")
    box.get("a/c/f", f"{tmp_path}/into/")
    for back in (tmp_path / "new" / "back", tmp_path / "into" / "f"):
        assert back.read_bytes() == here.read_bytes()
        assert back.stat().st_mode & 0o777 == 0o750 & ~_umask()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["back"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_is_put_belongs_to_the_user(podman_host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with podman_host.start(user="1234:1234") as box:
        box.put(tmp_path, "/tmp/d")
        box.put(tmp_path / "f", "/tmp/f")
        assert {box.stat(path).uid for path in ("/tmp/d", "/tmp/d/f", "/tmp/f")} == {1234}
        box.put(tmp_path, "/tmp/roots", user="0")
        assert box.stat("/tmp/roots/f").uid == 0


def test_what_fails_on_the_way_is_said_and_leaves_nothing(box: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed:
        box.put(tmp_path / "none", "x")
    assert failed.value.filename == str(tmp_path / "none")
    (tmp_path / "f").write_text("x")
    box.write("file", "")
    with pytest.raises(NotADirectoryError):
        box.put(tmp_path, "file/d")
    with pytest.raises(NotADirectoryError):
        box.put(tmp_path / "f", "file/f")
    (tmp_path / "t").mkdir()
    box.write("d/f", "new")
    with pytest.raises(IsADirectoryError):
        box.get("d/f", tmp_path / "t")
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(NotADirectoryError):
        box.get("d", tmp_path / "f" / "x")


def test_archives(box: Sandbox) -> None:
    box.write("from/a", "1")
    box.mkdir("to")
    box.write_tar("to", box.read_tar("from"))
    assert box.read("to/a") == b"1"
    with pytest.raises(OSError, match="bad_archive") as failed:
        box.write_tar("to", b"none")
    assert failed.value.errno == errno.EBADMSG


def test_a_reset_takes_it_all_back(podman_box: Sandbox) -> None:
    podman_box.write("f", "x")
    before = podman_box.container
    podman_box.reset()
    assert not podman_box.exists("f")
    assert podman_box.container != before


def test_what_cannot_be_put_leaves_what_is_there(box: Sandbox, tmp_path: Path) -> None:
    """A FIFO that nobody writes to is not waited for."""
    box.write("kept", "as it was")
    os.mkfifo(tmp_path / "fifo")
    for source in (tmp_path / "fifo", tmp_path / "none", "/dev/zero"):
        with pytest.raises(OSError, match=r"no regular file|No such file") as raised:
            box.put(source, "kept")
        assert raised.value.filename == str(source)
    assert box.read_text("kept") == "as it was"


def test_what_the_kernel_makes_up_is_put_whole(box: Sandbox) -> None:
    box.put("/proc/self/status", "status")
    assert box.read("status").startswith(b"Name:")


def test_a_directory_in_which_a_file_becomes_shorter_names_it(local_host: Host, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(bytes(64 << 20))
    with local_host.start() as box, ThreadPoolExecutor(1) as beside:
        putting = beside.submit(box.put, source, str(tmp_path / "there"))
        while not (tmp_path / "there" / "f").exists():
            assert not putting.done(), putting.exception()
        os.truncate(source / "f", 1)
        with pytest.raises(OSError, match="became shorter") as raised:
            putting.result()
    assert raised.value.filename == str(source / "f")


def test_errors_of_what_is_got_name_what_it_was_to_be(box: Sandbox, tmp_path: Path) -> None:
    box.write("d/f", "x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "into" / "f").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as raised:
        box.get("d/f", tmp_path / "taken")
    assert raised.value.filename == str(tmp_path / "taken")
    with pytest.raises(IsADirectoryError) as raised:
        box.get("d", tmp_path / "into")
    assert raised.value.filename == str(tmp_path / "into" / "f")
    longest = "n" * 255
    box.write(longest, "x")
    box.get(longest, tmp_path / longest)
    assert (tmp_path / longest).read_text() == "x"


def test_a_file_is_got_by_several_at_once(box: Sandbox, tmp_path: Path) -> None:
    box.write("f", bytes(5 << 20))
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda _: box.get("f", tmp_path / "f"), range(4)):
            pass
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["f"]


def test_what_has_holes_inside_has_them_here(box: Sandbox, tmp_path: Path) -> None:
    """A file of terabytes is made by a command of a moment, and must not fill this host's disk."""
    made = "dd of=d/f bs=1 seek=%d conv=notrunc 2>/dev/null"
    box.mkdir("d")
    for place in (0, 5000, 1 << 20, 1 << 40):
        box.run(made % place, input=f"at {place}", check=True)
    box.get("d", tmp_path / "d")
    found = (tmp_path / "d" / "f").stat()
    assert found.st_size == (1 << 40) + len(f"at {1 << 40}")
    assert found.st_blocks * 512 < 1 << 20
    with open(tmp_path / "d" / "f", "rb") as file:
        for place in (0, 5000, 1 << 20, 1 << 40):
            file.seek(place)
            assert file.read(16).rstrip(b"\0") == f"at {place}".encode()
