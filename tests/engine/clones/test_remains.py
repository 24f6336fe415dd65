"""What a clone leaves behind is found by its id and removed: processes, control groups, records, files."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import engine_limits
from fastclaw.engine.clones import remains
from fastclaw.engine.clones.remains import remove_abandoned, remove_clone, remove_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

ID = f"{os.getpid():064x}"
PARENT = f"/fastclaw-test-{os.getpid()}"
GROUP = f"{PARENT}/fastclaw-{ID}"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clones are root's")


@pytest.fixture
def hierarchies() -> Iterator[list[Path]]:
    """Control groups of a clone in each hierarchy of this host, below a parent of our own."""
    root = Path(remains.CGROUPS)
    mounts = [root] if (root / "cgroup.procs").exists() else []
    mounts += [path for path in root.iterdir() if path.is_dir() and not path.is_symlink() and (path / "tasks").exists()]
    groups = [Path(f"{mount}{GROUP}") for mount in mounts]
    for group in groups:
        group.mkdir(parents=True)
    yield groups
    for group in groups:
        for path in (*group.glob("*/"), group, group.parent):
            if path.is_dir():
                path.rmdir()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What a fastclaw with one clone has."""
    own = tmp_path / "directory"
    for name in (f"clones/{ID}/upper/deep", f"state/{ID}", "layers/0", "volumes/v"):
        (own / name).mkdir(parents=True)
    config = {"linux": {"cgroupsPath": GROUP}}
    (own / "clones" / ID / "config.json").write_text(json.dumps(config))
    return own


def sleeper(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", *words])


def test_all_of_a_clone_goes_and_nothing_else(directory: Path, hierarchies: list[Path]) -> None:
    (hierarchies[0] / "inner").mkdir()
    with sleeper() as inside, sleeper() as outside:
        (hierarchies[0] / "inner" / "cgroup.procs").write_text(str(inside.pid))
        (hierarchies[1] / "cgroup.procs").write_text(str(inside.pid))
        remove_clone(str(directory), ID)
        assert inside.wait(10) == -9
        assert outside.poll() is None
        outside.kill()
    assert [group for group in hierarchies if group.exists()] == []
    assert sorted(str(path.relative_to(directory)) for path in directory.rglob("*")) == [
        "clones",
        "layers",
        "layers/0",
        "state",
        "volumes",
        "volumes/v",
    ]
    remove_clone(str(directory), ID)


def test_a_crun_of_a_dead_cloner_is_ended_before_its_clone_is_removed(directory: Path) -> None:
    with sleeper("run", ID) as crun, sleeper("run", f"{ID}0") as other:
        remove_clone(str(directory), ID, adopted=True)
        assert crun.wait(10) == -9
        assert other.poll() is None
        other.kill()
    assert not (directory / "clones" / ID).exists()


def test_a_group_that_is_not_the_clones_is_left_alone(directory: Path, hierarchies: list[Path]) -> None:
    config = {"linux": {"cgroupsPath": PARENT}}
    (directory / "clones" / ID / "config.json").write_text(json.dumps(config))
    remove_clone(str(directory), ID)
    assert all(group.exists() for group in hierarchies)


@pytest.mark.parametrize("text", [None, "", "{", "{}", '{"linux": {}}'])
def test_a_clone_that_was_half_made_or_half_removed(directory: Path, text: str | None) -> None:
    config = directory / "clones" / ID / "config.json"
    config.unlink()
    if text is not None:
        config.write_text(text)
    remove_clone(str(directory), ID)
    assert list((directory / "clones").iterdir()) == []


def test_a_group_that_stays_in_use_is_an_error(
    directory: Path, hierarchies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_limits, "CLONE_END_MS", 50)
    monkeypatch.setattr(remains, "_is_in", lambda pid, id: False)
    with sleeper() as inside:
        (hierarchies[0] / "cgroup.procs").write_text(str(inside.pid))
        with pytest.raises(OSError, match="busy"):
            remove_clone(str(directory), ID)
        inside.kill()


def test_directories_of_the_dead_go_and_those_of_the_living_stay(directory: Path, hierarchies: list[Path]) -> None:
    living = directory.parent / "living"
    living.mkdir()
    held = os.open(living, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert remove_abandoned(directory.parent) == []
    os.close(held)
    assert os.listdir(directory.parent) == ["living"]
    assert [group for group in hierarchies if group.exists()] == []
    assert remove_abandoned(directory.parent / "none") == []


def test_what_cannot_be_removed_is_told_and_keeps_no_other(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (told,) = remove_abandoned(tmp_path)
    assert told.startswith(f"{tmp_path}/file: Not a directory")
    assert not directory.exists()


def test_a_directory_without_clones(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    remove_directory(str(tmp_path / "new"), adopted=True)
    assert os.listdir(tmp_path) == []
