"""The cloner's process: a start that fails leaves nothing, and what is left when fastclaw dies is removed by it."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastclaw import engine_limits
from fastclaw.engine.clones import cloner_main, remains
from fastclaw.engine.clones.cloner import Cloner
from fastclaw.engine.clones.cloner_main import GracePeriod, own_procs
from fastclaw.errors import StartFailed
from fastclaw.linux import file_trees
from fastclaw.linux.directories import HeldDirectory
from tests.balance import open_descriptors

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clones are root's")

ID = "c" * 64


def order(**changed: Any) -> dict[str, Any]:
    return {
        "clone": ID,
        "config": "{}",
        "files": [],
        "lower": ["0"],
        "upper": [0, 0, 0o755],
        "ids": None,
        "volumes": [],
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"lower": ["none"]}, "No such file or directory: clones/"),
        ({"upper": [0, 0, 0o755], "volumes": [{"name": "a/b", "uid": 0, "gid": 0, "mode": 0}]}, "No such file"),
        ({"files": [{"name": "a/b", "text": "", "mode": 0o600, "uid": 0, "gid": 0}]}, "No such file"),
        ({"config": "{"}, "parse error"),
        ({"config": '{"ociVersion": "1.0.0", "process": {"args": ["x"], "cwd": "/"}}'}, "no ['`]linux['`] block"),
        ({"ids": [1 << 31, 1 << 31]}, "Invalid argument"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    short_dir: Path, changed: dict[str, Any], why: str
) -> None:
    cloner = Cloner(HeldDirectory(short_dir, "x-"), "/usr/bin/crun", None)
    try:
        (name,) = os.listdir(short_dir)
        own = short_dir / name
        (own / "layers" / "0").mkdir()
        with pytest.raises(StartFailed, match=why):
            await cloner.order("start", 5_000, **order(**changed))
        await cloner.order("remove", 5_000, clone=ID, adopted=False)
        assert os.listdir(own / "clones") == os.listdir(own / "state") == []
    finally:
        await cloner.aclose()


def test_a_grace_period_moves_nothing_and_is_begun_once_at_a_time() -> None:
    before, group = open_descriptors(), Path("/proc/self/cgroup").read_text()
    period = GracePeriod(own_procs())
    period.begin()
    period.close()
    assert (open_descriptors(), Path("/proc/self/cgroup").read_text()) == (before, group)
    told, tell = os.pipe()
    size = fcntl.fcntl(tell, fcntl.F_SETPIPE_SZ, mmap.PAGESIZE)
    os.write(tell, b"x" * size)
    period = GracePeriod(tell)
    for _ in range(3):
        period.begin()  # the first of them waits, since the pipe is full
    assert os.read(told, size) == b"x" * size
    period.close()
    with open(told, "rb") as pipe:
        assert pipe.read() == str(os.getpid()).encode()


def test_what_takes_long_to_remove_holds_up_nobody_before_there_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine_limits, "CLONER_TRASH", 2)
    (tmp_path / remains.TRASH).mkdir()
    may_go, removed = threading.Event(), []

    def slowly(path: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert may_go.wait(20)
        removed.append(path)
        file_trees.remove_tree(path)

    monkeypatch.setattr(cloner_main, "file_trees", SimpleNamespace(remove_tree=slowly))
    trash = cloner_main.Trash()
    for name in ("large", "other", "third"):
        (tmp_path / name / "inner").mkdir(parents=True)
        trash.take(name)
        assert not (tmp_path / name).exists()
    assert [path.split("/")[1][0] for path in removed] == ["2"]  # the third: it was removed by who left it
    trash.take("never-there")
    may_go.set()
    trash.shutdown()
    left = os.listdir(tmp_path / remains.TRASH)
    assert len(left) <= 1  # what was not begun is left to the removal of the whole
