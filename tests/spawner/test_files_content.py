"""The file helper: the content of one file, out and in, over this host's real files."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from fastclaw import environment_limits, limits
from fastclaw.processes.file_helper import NOT_REGULAR, TOO_LARGE, USAGE, WRONG_SIZE
from fastclaw.spawner.spawner_host import find_spawner
from tests.spawner.file_rig import NOBODY, helper
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

MOST = 2**63 - 1
BIG = os.urandom(3 * limits.MIB + 17)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is several users")


def test_a_file_is_read_whole_and_in_part(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(BIG)
    assert helper(tmp_path, "read", "f", 0, MOST, "whole").out == BIG
    for offset, most in ((0, 10), (1, limits.MIB + 1), (len(BIG) - 3, 10), (len(BIG), 1), (MOST, 1), (5, 0)):
        said = helper(tmp_path, "read", "f", offset, most, "part")
        assert (said.code, said.out, said.outcome.told) == (0, BIG[offset : offset + most], len(BIG))


def test_more_than_the_limit_is_refused_before_a_byte_is_given(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert helper(tmp_path, "read", "f", 0, 5, "whole").out == b"12345"
    said = helper(tmp_path, "read", "f", 0, 4, "whole")
    assert (said.code, said.out, said.outcome.told) == (TOO_LARGE, b"", 5)


def test_ten_gigabytes_are_refused_by_their_size(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(10 << 30)
    assert helper(tmp_path, "read", "f", 0, limits.MIB, "whole").code == TOO_LARGE
    assert helper(tmp_path, "read", "f", (10 << 30) - 2, 9, "part").out == b"\0\0"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for path, code in (
        ("fifo", NOT_REGULAR),
        ("socket", NOT_REGULAR),
        ("/dev/zero", NOT_REGULAR),
        (".", errno.EISDIR),
        ("missing", errno.ENOENT),
        ("missing/x", errno.ENOENT),
        ("fifo/x", errno.ENOTDIR),
        ("x" * 256, errno.ENAMETOOLONG),
        ("x/" * 3000, errno.ENAMETOOLONG),
    ):
        assert helper(tmp_path, "read", path, 0, MOST, "whole").code == code, path
        if path not in ("missing", "."):
            assert helper(tmp_path, "write", path, "-", "-", "").code == code, path
            assert helper(tmp_path, "write", path, "-", "-", "a").code == code, path


def test_a_fifo_with_a_reader_is_not_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert helper(tmp_path, "write", "fifo", "-", "-", "", data=b"x").code == NOT_REGULAR
        assert os.read(reader, 10) == b""
    finally:
        os.close(reader)


def test_links_are_followed_and_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "link").symlink_to("f")
    (tmp_path / "loop").symlink_to("loop")
    assert helper(tmp_path, "read", "link", 0, MOST, "whole").out == b"x"
    assert helper(tmp_path, "read", "loop", 0, MOST, "whole").code == errno.ELOOP
    assert helper(tmp_path, "write", "loop", "-", "-", "").code == errno.ELOOP
    assert helper(tmp_path, "write", "loop", "-", "-", "a").code == errno.ELOOP


def test_what_the_kernel_makes_up_is_read_to_its_end(tmp_path: Path) -> None:
    said = helper(tmp_path, "read", "/proc/self/status", 0, MOST, "whole")
    assert said.out.startswith(b"Name:")
    assert said.outcome.size == len(said.out)
    assert helper(tmp_path, "read", "/proc/self/status", 0, 10, "whole").code == TOO_LARGE
    assert helper(tmp_path, "read", "/proc/self/status", 0, 10, "part").out == said.out[:10]
    assert helper(tmp_path, "read", "/proc/self/status", 2, 4, "part").out == said.out[2:6]


def test_what_is_added_while_it_is_read_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(BIG)
    binary = find_spawner()
    assert binary is not None
    command = [str(binary), "--file", "read", "f", "0", str(MOST), "whole"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reading:
        assert reading.stdout is not None
        first = reading.stdout.read(1)  # it has been opened
        with (tmp_path / "f").open("ab") as file:
            file.write(b"more")
        assert first + reading.stdout.read() == BIG
        assert reading.wait(10) == 0


# --- in ---


def test_a_file_is_written_and_written_over(tmp_path: Path) -> None:
    for flags in ("", "a"):
        for data in (BIG, b"", b"short", BIG):
            said = helper(tmp_path, "write", "f", "-", len(data), flags, data=data)
            assert (said.code, said.outcome.size) == (0, len(data))
            assert (tmp_path / "f").read_bytes() == data
    assert helper(tmp_path, "write", "f", "-", "-", "", data=b"x").code == 0  # whatever comes
    assert (tmp_path / "f").read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("flags", ["", "a"])
def test_another_size_than_was_said_is_an_error(tmp_path: Path, flags: str) -> None:
    (tmp_path / "f").write_bytes(b"old")
    for size, why in ((4, "short"), (2, "long")):
        said = helper(tmp_path, "write", "f", "-", size, flags, data=b"new")
        assert (said.code, said.outcome.why) == (WRONG_SIZE, why)
    assert os.listdir(tmp_path) == ["f"]
    if flags:
        assert (tmp_path / "f").read_bytes() == b"old"


def test_the_mode_is_the_one_that_is_asked_for_and_else_stays(tmp_path: Path) -> None:
    for flags in ("", "a"):
        name = f"f{flags}"
        helper(tmp_path, "write", name, "-", 0, flags, umask=0o27)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
        helper(tmp_path, "write", name, 0o4751, 0, flags, umask=0o27)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o4751
        os.chmod(tmp_path / name, 0o604)
        helper(tmp_path, "write", name, "-", 0, flags)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o604


def test_missing_directories_are_made_if_that_is_asked_for(tmp_path: Path) -> None:
    for flags in ("", "a"):
        assert helper(tmp_path, "write", f"x{flags}/y/f", "-", 0, flags).code == errno.ENOENT
        assert helper(tmp_path, "write", f"x{flags}//y/./f", "-", 1, "p" + flags, data=b"x").code == 0
        assert (tmp_path / f"x{flags}" / "y" / "f").read_bytes() == b"x"
        assert helper(tmp_path, "write", f"x{flags}/y/f/z", "-", 0, "p" + flags).code == errno.ENOTDIR


def test_atomic_takes_the_place_of_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"old")
    (tmp_path / "link").symlink_to("d/second")
    (tmp_path / "d" / "second").symlink_to("f")
    assert helper(tmp_path, "write", "link", "-", 3, "a", data=b"new").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "d" / "second").is_symlink()
    assert (tmp_path / "d" / "f").read_bytes() == b"new"


def test_atomic_leaves_the_old_content_to_who_has_it_open(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with (tmp_path / "f").open("rb") as old:
        helper(tmp_path, "write", "f", "-", 3, "a", data=b"new")
        assert old.read() == b"old"


@needs_root
def test_atomic_keeps_the_owner_where_it_may(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o4777)
    os.chown(tmp_path / "f", 1234, 2345)
    (tmp_path / "f").chmod(0o4777)
    helper(tmp_path, "write", "f", "-", 3, "a", data=b"new")
    about = (tmp_path / "f").stat()
    assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (1234, 2345, 0o4777)
    assert helper(tmp_path, "write", "f", "-", 3, "a", data=b"own", user=NOBODY).code == 0
    about = (tmp_path / "f").stat()
    assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (NOBODY, 0o777), "another's set-user-ID bit was kept"


@needs_root
def test_it_is_who_it_is(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0o600)
    tmp_path.chmod(0o777)
    assert helper(tmp_path, "read", "f", 0, MOST, "whole", user=NOBODY).code == errno.EACCES
    for flags in ("", "a"):
        assert helper(tmp_path, "write", "f", "-", 0, flags, user=NOBODY).code == errno.EACCES
    assert helper(tmp_path, "write", "new", "-", 0, "", user=NOBODY).code == 0
    assert (tmp_path / "new").stat().st_uid == NOBODY
    assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.parametrize("flags", ["", "a"])
def test_a_full_device_is_told(tmp_path: Path, flags: str) -> None:
    """A limit of the file's size stands in for it: EFBIG comes by the same way as ENOSPC."""
    binary = find_spawner()
    command = f"ulimit -f 1; trap '' XFSZ; exec {binary} --file write f - - '{flags}'"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, input=BIG, capture_output=True, check=False, timeout=30)
    assert done.returncode == errno.EFBIG, done
    assert os.listdir(tmp_path) == ([] if flags else ["f"])


def half_written(pid: int) -> bool:
    """Whether a helper has written four bytes to what it has open."""
    found = [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    return any(stat.S_ISREG(os.stat(fd).st_mode) and os.stat(fd).st_size == 4 for fd in found)


def test_term_takes_back_what_is_half_written(tmp_path: Path) -> None:
    binary = find_spawner()
    assert binary is not None
    (tmp_path / "f").write_bytes(b"old")
    command = [str(binary), "--file", "write", "f", "-", "-", "a"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as writing:
        assert writing.stdin is not None
        writing.stdin.write(b"half")
        writing.stdin.flush()
        wait_until(lambda: half_written(writing.pid))
        writing.send_signal(signal.SIGTERM)
        assert writing.wait(10) == errno.EINTR
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["other"],
        ["read"],
        ["read", "f", "0", "1"],
        ["read", "f", "0", "1", "whole", "x"],
        ["read", "f", "x", "1", "whole"],
        ["read", "f", "-1", "1", "whole"],
        ["read", "f", str(2**64), "1", "whole"],
        ["write", "f", "-", "x", ""],
        ["list", ".", "0", "-"],
        ["list", ".", str(environment_limits.MAX_DIR_ENTRIES + 1), "-"],
        ["list", ".", "1", "xyz"],
        ["list", ".", "1", "abc"],
    ],
)
def test_what_it_is_not_told_to_do_it_does_not_do(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "f").write_bytes(b"x")
    assert helper(tmp_path, *words).code == USAGE
