"""Directories of one user: who may have them, and how long they are in use."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.linux.directories import (
    HeldDirectory,
    from_environment,
    make_private,
    remove_abandoned,
    runtime_directory,
    why_unsafe,
)

if TYPE_CHECKING:
    from pathlib import Path

HOLDS = """
import sys
from pathlib import Path
from fastclaw.linux.directories import HeldDirectory
print(HeldDirectory(Path(sys.argv[1]), "held-").path, flush=True)
sys.stdin.read()
"""
CLEANS = """
import sys
from pathlib import Path
from fastclaw.linux.directories import remove_abandoned
remove_abandoned(Path(sys.argv[1]), "held-*")
"""
AS_ROOT = [] if os.geteuid() == 0 else ["--map-root-user"]
IN_ANOTHER_PID_NAMESPACE = ["unshare", *AS_ROOT, "--pid", "--fork", "--mount-proc"]


def test_it_is_in_use_until_its_holder_ends_in_whatever_pid_namespace(tmp_path: Path) -> None:
    """A start in another PID namespace (a pod with an emptyDir, a dev container) removed what a live one used."""
    cleans = [*IN_ANOTHER_PID_NAMESPACE, sys.executable, "-c", CLEANS, str(tmp_path)]
    mine = HeldDirectory(tmp_path, "held-")
    with subprocess.Popen(
        [*IN_ANOTHER_PID_NAMESPACE, sys.executable, "-c", HOLDS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = other.stdout.readline().strip()
        subprocess.run(cleans, check=True, timeout=30)
        remove_abandoned(tmp_path, "held-*")
        assert {str(path) for path in tmp_path.iterdir()} == {str(mine.path), theirs}
        other.stdin.close()
    subprocess.run(cleans, check=True, timeout=30)
    assert list(tmp_path.iterdir()) == [mine.path]
    mine.remove()
    mine.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_shared_one_is_in_use_until_both_have_ended(tmp_path: Path) -> None:
    held = HeldDirectory(tmp_path, "held-")
    shared = held.share()
    os.close(held._fd)
    held._fd = -1
    remove_abandoned(tmp_path, "held-*")
    assert held.path.exists()
    os.close(shared)
    remove_abandoned(tmp_path, "held-*")
    assert not held.path.exists()


def test_its_holder_knows_when_it_is_gone(tmp_path: Path) -> None:
    held = HeldDirectory(tmp_path, "held-")
    assert stat.S_IMODE(held.path.stat().st_mode) == 0o700
    assert held.is_there()
    shutil.rmtree(held.path)
    assert not held.is_there()
    held.path.mkdir()
    assert not held.is_there()
    held.remove()
    assert not held.is_there()


def test_what_is_no_directory_of_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "held-file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "held-link").symlink_to(tmp_path / "real")
    remove_abandoned(tmp_path, "held-*")
    assert {path.name for path in tmp_path.iterdir()} == {"held-file", "held-link", "real"}


def test_a_directory_in_a_path_that_others_can_write_is_unsafe(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert why_unsafe(inner) is None
    (tmp_path / "a").chmod(0o777)
    assert why_unsafe(inner) == f"{tmp_path}/a can be written by everybody"
    (tmp_path / "link").symlink_to(inner)
    assert why_unsafe(tmp_path / "link") == f"{tmp_path}/a can be written by everybody"
    (tmp_path / "a").chmod(0o1777)
    assert why_unsafe(inner) is None
    assert why_unsafe(tmp_path / "gone") == f"{tmp_path / 'gone'}: No such file or directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")
def test_a_directory_below_somebody_elses_is_unsafe(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    os.chown(tmp_path / "a", 34567, -1)
    assert why_unsafe(inner) == f"{tmp_path}/a belongs to user 34567"
    assert make_private(tmp_path / "a") == "belongs to user 34567"
    assert make_private(inner) is None


def test_what_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for value, found in (("/x", "/x"), ("x", None), ("", None), (None, None)):
        if value is None:
            monkeypatch.delenv("XDG_RUNTIME_DIR")
        else:
            monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert from_environment("XDG_RUNTIME_DIR") == (None if found is None else tmp_path.joinpath(found))
    assert runtime_directory(100) is None
    assert caplog.text == ""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory(len(str(tmp_path))) == tmp_path
    assert runtime_directory(len(str(tmp_path)) - 1) is None
    tmp_path.chmod(0o777)
    assert runtime_directory(1_000) is None
    assert f"XDG_RUNTIME_DIR is not used: {tmp_path} can be written by everybody" in caplog.text


MANY = """
import sys
from pathlib import Path
from fastclaw.linux.directories import HeldDirectory, remove_abandoned
for _ in range(300):
    remove_abandoned(Path(sys.argv[1]), "x-*")
    held = HeldDirectory(Path(sys.argv[1]), "x-")
    assert held.is_there()
    held.remove()
"""


def test_many_that_begin_at_once_take_no_directory_of_another_for_abandoned(tmp_path: Path) -> None:
    """One that is just made is not locked yet: whoever has lost it so makes another."""
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == []
