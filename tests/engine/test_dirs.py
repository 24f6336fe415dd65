"""Directories of managed engines: who may enter, what is forgotten, what fits."""

import os
import stat
import threading
import tomllib
from pathlib import Path

import msgspec
import pytest

from fastclaw.decisions.service import HostFacts, plan_service
from fastclaw.engine.dirs import (
    default_run_dir,
    default_state_dir,
    lock_file,
    private_directory,
    remove_dead_service_dirs,
    service_dir,
    service_paths,
)
from fastclaw.engine.owner import boot_id, own_start_time
from fastclaw.errors import StartFailed

PLAN = plan_service(
    HostFacts(
        is_root=True,
        cgroups="v2",
        podman="/usr/bin/podman",
        crun="/usr/bin/crun",
        conmon="/usr/bin/conmon",
        setpriv="/usr/bin/setpriv",
        nofile=20_000,
        nproc=32_768,
    )
)


def test_conmon_has_a_stand_in_that_can_run(tmp_path: Path) -> None:
    paths = service_paths(tmp_path / "s", tmp_path / "r", service_dir(tmp_path / "r"), PLAN)
    [shim] = tomllib.loads(Path(paths.conf).read_text())["engine"]["conmon_path"]
    assert Path(shim).read_text() == PLAN.conmon_shim
    assert os.access(shim, os.X_OK)
    plain = msgspec.structs.replace(PLAN, conmon_shim=None)
    paths = service_paths(tmp_path / "s", tmp_path / "r", service_dir(tmp_path / "r"), plain)
    assert tomllib.loads(Path(paths.conf).read_text())["engine"]["conmon_path"] == ["/usr/bin/conmon"]


def test_state_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/x/state")
    assert default_state_dir() == Path("/x/state/fastclaw")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_state_dir() == Path("/home/someone/.local/state/fastclaw")


def test_run_dir_follows_xdg_then_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_run_dir() == Path("/run/user/7/fastclaw")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_run_dir() == Path("/run/fastclaw")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert default_run_dir() == Path("/tmp/fastclaw-7")


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    private_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StartFailed, match="only this user"):
        private_directory(tmp_path)


def test_a_link_is_no_private_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StartFailed, match="only this user"):
        private_directory(tmp_path / "link")


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartFailed, match="cannot make directory") as caught:
        private_directory(tmp_path / "file" / "x")
    assert "\n" not in str(caught.value)


def test_a_socket_path_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(StartFailed, match="shorter directory"):
        service_paths(tmp_path / "s", tmp_path, deep, PLAN)


def test_settings_are_written_once_and_named_by_content(tmp_path: Path) -> None:
    other_plan = msgspec.structs.replace(PLAN, oci_runtime="runc")
    first = service_paths(tmp_path / "s", tmp_path / "r", service_dir(tmp_path / "r"), PLAN)
    again = service_paths(tmp_path / "s", tmp_path / "r", service_dir(tmp_path / "r"), PLAN)
    other = service_paths(tmp_path / "s", tmp_path / "r", service_dir(tmp_path / "r"), other_plan)
    assert first.conf == again.conf != other.conf
    assert 'runtime = "crun"' in Path(first.conf).read_text()
    assert 'runtime = "runc"' in Path(other.conf).read_text()
    assert first.socket != again.socket
    assert (first.root, first.runroot, first.tmpdir) == (again.root, again.runroot, again.tmpdir)


def test_another_run_dir_means_another_storage(tmp_path: Path) -> None:
    one = service_paths(tmp_path / "s", tmp_path / "r1", service_dir(tmp_path / "r1"), PLAN)
    two = service_paths(tmp_path / "s", tmp_path / "r2", service_dir(tmp_path / "r2"), PLAN)
    assert one.root != two.root


def test_what_ran_before_the_last_boot_is_forgotten(tmp_path: Path) -> None:
    paths = service_paths(tmp_path / "s", tmp_path / "r", service_dir(tmp_path / "r"), PLAN)
    alive = Path(paths.tmpdir) / "alive"
    alive.parent.mkdir()
    alive.touch()
    service_paths(tmp_path / "s", tmp_path / "r", service_dir(tmp_path / "r"), PLAN)
    assert alive.exists()
    (alive.parent.parent / "boot").write_text("another boot")
    service_paths(tmp_path / "s", tmp_path / "r", service_dir(tmp_path / "r"), PLAN)
    assert not alive.exists()
    assert (alive.parent.parent / "boot").read_text() == boot_id()


def test_directories_of_dead_owners_go_and_others_stay(tmp_path: Path) -> None:
    dead = tmp_path / f"{os.getpid()}-{own_start_time() + 1}-0"
    dead.mkdir()
    (dead / "podman.sock").touch()
    mine = service_dir(tmp_path)
    (tmp_path / "engine").mkdir()
    (tmp_path / "store-1-2").mkdir()
    remove_dead_service_dirs(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "engine", "store-1-2"])


def test_a_held_lock_times_out_and_a_freed_one_is_taken(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "lock", 0)
    with pytest.raises(StartFailed, match="try again") as caught:
        lock_file(tmp_path / "lock", 20)
    assert caught.value.reason == "engine_timeout"
    freer = threading.Timer(0.02, os.close, [held])
    freer.start()
    os.close(lock_file(tmp_path / "lock", 5_000))
    freer.join()
