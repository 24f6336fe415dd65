"""Directories of managed engines: who may enter, what is forgotten, what fits."""

import os
import pwd
import stat
import threading
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastclaw import engine_limits, limits
from fastclaw.engine.service.plan import HostFacts, ServicePaths, ServicePlan, plan_service
from fastclaw.engine.service.storage import (
    default_run_dir,
    default_state_dir,
    disk_of,
    engine_variables,
    give_up_reserve,
    has_room,
    keep_reserve,
    lock_file,
    private_directory,
    service_dir,
    service_paths,
    why_full,
)
from fastclaw.errors import StartFailed
from fastclaw.linux.proc import boot_id

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


def paths_in(base: Path, plan: ServicePlan = PLAN, state: str = "s", run: str = "r", own: str = "own") -> ServicePaths:
    """Where a service lives below a directory of the test's."""
    return service_paths(base / state, base / run, base / run / own, plan)


def test_conmon_has_a_stand_in_that_can_run(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    [shim] = tomllib.loads(Path(paths.conf).read_text())["engine"]["conmon_path"]
    assert Path(shim).read_text() == PLAN.conmon_shim
    assert os.access(shim, os.X_OK)
    plain = msgspec.structs.replace(PLAN, conmon_shim=None)
    paths = paths_in(tmp_path, plain)
    assert tomllib.loads(Path(paths.conf).read_text())["engine"]["conmon_path"] == ["/usr/bin/conmon"]


def test_state_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/x/state")
    assert default_state_dir() == Path("/x/state/fastclaw")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_state_dir() == Path("/home/someone/.local/state/fastclaw")


def test_a_home_that_somebody_else_could_change_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As `sudo -E` leaves it to root."""
    tmp_path.chmod(0o777)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_state_dir() == Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".local" / "state" / "fastclaw"
    assert f"HOME is not used: {tmp_path} can be written by everybody" in caplog.text


@pytest.mark.parametrize("home", ["rel", "", "./rel", None])
def test_relative_directories_do_not_count(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman-container-tools/podman#26667: HOME=rel left ./rel behind, and Podman looked for its settings there."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        if home is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, home)
    assert default_state_dir() == Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".local/state/fastclaw"
    assert default_run_dir().is_absolute()


def test_a_user_without_any_home_reads_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 2**31)
    with pytest.raises(StartFailed, match="set HOME or XDG_STATE_HOME"):
        default_state_dir()


def test_run_dir_follows_xdg_then_the_user(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    assert default_run_dir() == short_dir / "fastclaw"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_run_dir() == Path("/run/fastclaw")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert default_run_dir() == Path("/tmp/fastclaw-7")


@pytest.mark.parametrize("length", [22, 23, 44, 45, 120])
def test_a_runtime_directory_that_is_too_long_for_podman_is_not_used(
    length: int, monkeypatch: pytest.MonkeyPatch, short_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """podman-container-tools/podman#22272: of 23 to 44 characters, every start failed with words about a runroot."""
    chosen = Path(f"{short_dir}/{'x' * (length - len(str(short_dir)) - 1)}")
    chosen.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(chosen))
    if length == 22:
        assert default_run_dir() == chosen / "fastclaw"
    else:
        assert default_run_dir() != chosen / "fastclaw"
        assert f"XDG_RUNTIME_DIR is not used: it has {length} bytes, and may have 22" in caplog.text
    paths = service_paths(short_dir / "s", default_run_dir(), short_dir / "own", PLAN)
    assert len(paths.runroot) <= 50


def test_an_engine_is_told_of_no_runtime_directory_that_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, short_dir: Path
) -> None:
    """`su` and `sudo -u` keep the caller's, and a rootless Podman refused to start: "not owned by the current user"."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    assert engine_variables() == dict(os.environ)
    open_to_all = short_dir / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for unusable in (short_dir / "none", open_to_all):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(unusable))
        assert os.environ.items() - engine_variables().items() == {("XDG_RUNTIME_DIR", str(unusable))}


def test_a_link_is_no_private_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StartFailed, match="link is no directory"):
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


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_a_state_directory_that_no_overlay_can_have_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Podman: "kernel does not support overlay fs", and nothing of the name of the home directory."""
    plan = msgspec.structs.replace(PLAN, storage_driver="overlay")
    with pytest.raises(StartFailed, match=r"no images in .*a.+b: .* overlay mount; set XDG_STATE_HOME"):
        paths_in(tmp_path, plan, state=name)
    for other in ({"storage_driver": "vfs"}, {"storage": "host"}):
        paths_in(tmp_path, msgspec.structs.replace(plan, **other), state=name)


def test_settings_are_written_once_and_named_by_content(tmp_path: Path) -> None:
    other_plan = msgspec.structs.replace(PLAN, oci_runtime="runc")
    first = paths_in(tmp_path)
    again = paths_in(tmp_path, own="again")
    other = paths_in(tmp_path, other_plan)
    assert first.conf == again.conf != other.conf
    assert 'runtime = "crun"' in Path(first.conf).read_text()
    assert 'runtime = "runc"' in Path(other.conf).read_text()
    assert first.socket != again.socket
    assert (first.root, first.runroot, first.tmpdir) == (again.root, again.runroot, again.tmpdir)
    assert first.root != paths_in(tmp_path, run="r2").root, "another run directory means another storage"


def test_what_ran_before_the_last_boot_is_forgotten(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    alive = Path(paths.tmpdir) / "alive"
    alive.parent.mkdir()
    alive.touch()
    paths_in(tmp_path)
    assert alive.exists()
    (alive.parent.parent / "boot").write_text("another boot")
    paths_in(tmp_path)
    assert not alive.exists()
    assert (alive.parent.parent / "boot").read_text() == boot_id()


def test_directories_of_dead_owners_go_and_others_stay(tmp_path: Path) -> None:
    dead = tmp_path / f"{os.getpid()}-abcdefgh"
    dead.mkdir()
    (dead / "podman.sock").touch()
    mine = service_dir(tmp_path)
    (tmp_path / "engine").mkdir()
    service_paths(tmp_path / "s", tmp_path, mine.path, PLAN)
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("store-")}
    assert names == {mine.path.name, "engine", "s"}
    mine.remove()


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770])
def test_a_run_directory_that_others_can_write_is_refused(mode: int, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r").chmod(mode)
    with pytest.raises(StartFailed, match="r can be written by others") as caught:
        service_dir(tmp_path / "r")
    assert "\n" not in str(caught.value)
    (tmp_path / "r").chmod(0o700)
    tmp_path.chmod(0o777)
    with pytest.raises(StartFailed, match=r"can be written by everybody, so .*/r is not safe; choose another one"):
        service_dir(tmp_path / "r")


def test_a_state_directory_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    """Its settings name the programs that the engine runs."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StartFailed, match=r"open can be written by everybody, so .*/s is not safe; choose another one"):
        paths_in(tmp_path, state="open/s")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")
def test_a_run_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir(mode=0o700)
    os.chown(tmp_path / "r", 34567, -1)
    with pytest.raises(StartFailed, match=r"r belongs to user 34567.*remove it or choose another one"):
        service_dir(tmp_path / "r")


@pytest.mark.parametrize("umask", [0, 0o777])
def test_directories_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        made = service_dir(tmp_path / "a" / "r")
    finally:
        os.umask(previous)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "r", made.path)]
    assert modes == [0o700] * 3
    made.remove()


def test_a_held_lock_times_out_and_a_freed_one_is_taken(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "lock", 0)
    with pytest.raises(StartFailed, match="try again") as caught:
        lock_file(tmp_path / "lock", 20)
    assert caught.value.reason == "engine_timeout"
    freer = threading.Timer(0.02, os.close, [held])
    freer.start()
    os.close(lock_file(tmp_path / "lock", 5_000))
    freer.join()


def test_a_reserve_takes_room_until_it_is_given_up(tmp_path: Path) -> None:
    reserve = tmp_path / "key" / "reserve"
    keep_reserve(reserve)
    assert reserve.stat().st_blocks * 512 >= engine_limits.DISK_RESERVE_BYTES
    before = reserve.stat()
    keep_reserve(reserve)
    assert reserve.stat().st_ino == before.st_ino
    give_up_reserve(reserve)
    give_up_reserve(reserve)
    assert list(reserve.parent.iterdir()) == []


def test_without_a_place_for_it_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    keep_reserve(tmp_path / "key" / "reserve")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_how_full_a_disk_is(tmp_path: Path) -> None:
    disk = disk_of(tmp_path)
    assert disk is not None
    assert disk["path"] == str(tmp_path)
    assert 0 < disk["free_bytes"] <= disk["bytes"]
    assert has_room(tmp_path)
    assert why_full(disk) is None
    assert disk_of(tmp_path / "gone") is None
    assert has_room(tmp_path / "gone")
    assert why_full(None) is None
    assert not has_room(Path("/proc")), "its file system has no room at all"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"free_bytes": engine_limits.DISK_LOW_BYTES - 1}, "the disk of /x is full: 15 of 64 MiB are free"),
        ({"free_files": 0}, "the disk of /x is full: it has no inodes left"),
        ({"free_files": None}, None),
    ],
)
def test_when_a_disk_counts_as_full(changes: dict[str, Any], said: str | None) -> None:
    disk = {"path": "/x", "bytes": 64 * limits.MIB, "free_bytes": 32 * limits.MIB, "free_files": 7}
    assert why_full(disk | changes) == said
