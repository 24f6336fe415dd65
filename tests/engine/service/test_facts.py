"""What is found out about this host, against other ways of finding it out."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.engine.service import facts
from fastclaw.engine.service.facts import (
    cgroup_mode,
    container_controllers,
    docker_group,
    docker_url,
    engine_url,
    find_program,
    free_subordinate_id,
    hard_limit,
    has_mounts_below,
    host_facts,
    is_static_elf,
    program_version,
    subordinate_ids,
    why_no_docker,
    why_no_engine,
    why_no_user_namespaces,
)
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.linux.proc import Mount
from fastclaw.options import Options

MOUNTED = """\
mount -t tmpfs none "$1" && exec "$2" -c '
import sys
from pathlib import Path
from fastclaw.engine.service.facts import has_mounts_below, storage_driver
from fastclaw.linux.proc import is_in_memory, mounts
print(storage_driver(Path("/")) in ("overlay", "vfs", None), is_in_memory(sys.argv[1]))
print(has_mounts_below(Path(sys.argv[1]).parent, mounts()))
' "$1"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
@pytest.mark.parametrize("name", [b"\xff", b"a\rb", b"a\x0cb", "a\u2028b".encode(), "a\u00a0b".encode()])
def test_whatever_somebody_has_called_a_mount_point(name: bytes, tmp_path: Path) -> None:
    """Every start and `doctor` failed on a host with one whose name is no UTF-8."""
    point = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(point)
    done = subprocess.run(["unshare", "-m", "sh", "-c", MOUNTED, "sh", point, sys.executable], capture_output=True)
    assert done.stdout == b"True True\nTrue\n", done.stderr


@pytest.mark.parametrize(
    ("files", "mode"),
    [(["cgroup.controllers"], "v2"), (["unified/cgroup.controllers", "pids/tasks"], "hybrid"), (["pids/tasks"], "v1")],
)
def test_cgroup_mode(tmp_path: Path, files: list[str], mode: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert cgroup_mode(tmp_path) == mode


def test_a_dynamic_program_is_not_static() -> None:
    assert not is_static_elf(Path(os.path.realpath("/bin/ls")))


def test_a_script_is_not_static(tmp_path: Path) -> None:
    script = tmp_path / "x"
    script.write_text("#!/bin/sh\n")
    assert not is_static_elf(script)


def test_a_program_without_interpreter_is_static(tmp_path: Path) -> None:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    header[32:40] = (64).to_bytes(8, "little")
    header[54:56], header[56:58] = (56).to_bytes(2, "little"), (1).to_bytes(2, "little")
    program = tmp_path / "x"
    program.write_bytes(bytes(header) + (1).to_bytes(4, "little") + bytes(52))
    assert is_static_elf(program)
    program.write_bytes(bytes(header) + (3).to_bytes(4, "little") + bytes(52))
    assert not is_static_elf(program)


def test_hard_limit_has_a_ceiling() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard_limit(resource.RLIMIT_NOFILE, 100) == 100
    assert hard_limit(resource.RLIMIT_NOFILE, hard + 1) == hard


def test_version_of_a_program() -> None:
    assert program_version(sys.executable) == sys.version.split()[0]


def test_version_of_nothing(tmp_path: Path) -> None:
    assert program_version(str(tmp_path / "none")) is None


def test_programs_are_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_program("sh") is not None
    assert find_program("no-such-program-here") is None


def test_facts_of_this_host(tmp_path: Path) -> None:
    facts = host_facts(tmp_path)
    assert facts.is_root is (os.geteuid() == 0)
    assert facts.nproc <= int(Path("/proc/sys/kernel/pid_max").read_text())
    assert facts.cgroups == cgroup_mode(Path("/sys/fs/cgroup"))
    if facts.conmon is not None:
        said = subprocess.run([facts.conmon, "--version"], capture_output=True, text=True, check=True).stdout
        assert facts.conmon_version is not None
        assert facts.conmon_version in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not look")
def test_a_directory_that_may_not_be_looked_into_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_RUNTIME_DIR and HOME are root's for who came by `su` or `sudo`: pathlib raised PermissionError."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(closed))
    os.seteuid(65534)
    try:
        facts = host_facts(closed / "state")
    finally:
        os.seteuid(0)
    assert (facts.is_root, facts.user_systemd) == (False, False)


def test_controllers_of_root_and_of_a_user(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    assert container_controllers(tmp_path, 0) == {"pids"}
    assert container_controllers(tmp_path, 7) == set(), "on v1 nothing is delegated"
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    assert container_controllers(tmp_path, 0) == {"cpu", "memory", "pids"}
    assert container_controllers(tmp_path, 7) == set(), "there is no session"
    session = tmp_path / "user.slice" / "user-7.slice" / "user@7.service"
    session.mkdir(parents=True)
    (session / "cgroup.controllers").write_text("memory pids\n")
    assert container_controllers(tmp_path, 7) == {"memory", "pids"}


def test_subordinate_ids_by_name_or_number(tmp_path: Path) -> None:
    uids, gids = tmp_path / "subuid", tmp_path / "subgid"
    files = [uids, gids]
    assert (subordinate_ids(0, files), free_subordinate_id(files)) == (0, 100_000)
    uids.write_text("somebody:1:2\nroot:100000:65536\nroot:165536:4\n")
    gids.write_text("00:1:2\n\nroot:x:7\nroot:5\n")
    assert (subordinate_ids(0, files), free_subordinate_id(files)) == (0, 165_540)
    gids.write_text("0:200000:65536\n")
    assert (subordinate_ids(0, files), free_subordinate_id(files)) == (65_536, 265_536)
    assert subordinate_ids(123_456, files) == 0, "a number without a name"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("user/max_user_namespaces", "0", f"user.max_user_namespaces={limits.WANTED_USER_NAMESPACES}"),
        ("user/max_user_namespaces", "100", None),
        ("kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone=1"),
        ("kernel/unprivileged_userns_clone", "1\n", None),
        ("kernel/other", "0", None),
    ],
)
def test_a_kernel_that_has_no_user_namespaces_for_users(
    tmp_path: Path, name: str, value: str, told: str | None
) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(value)
    assert why_no_user_namespaces(tmp_path) == told


def test_what_is_mounted_in_a_directory_is_not_the_directory_itself(tmp_path: Path) -> None:
    for point, is_below in ((tmp_path, False), (tmp_path / "a b", True), (tmp_path.parent, False)):
        assert has_mounts_below(tmp_path, [Mount(str(point), "ramfs")]) is is_below
    assert not has_mounts_below(tmp_path, [Mount(f"{tmp_path}-other", "ramfs")])


def test_the_named_engine_wins_over_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    assert engine_url(Options()) is None
    monkeypatch.setenv("CONTAINER_HOST", "")
    assert engine_url(Options()) is None
    monkeypatch.setenv("CONTAINER_HOST", "tcp://env:1")
    assert engine_url(Options()) == "tcp://env:1"
    assert engine_url(Options(url="unix:///x")) == "unix:///x"


@pytest.mark.parametrize(("uid", "place"), [(0, "podman"), (7, "user/7/podman"), (8, "x/podman")])
def test_the_hosts_own_engine_is_found_by_its_socket(
    uid: int, place: str, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "HOST_RUN_DIR", short_dir)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(facts, "shared_runtime_directory", lambda: short_dir / "x" if uid == 8 else None)
    systemctl = "systemctl --user" if uid else "systemctl"
    path = short_dir / place / "podman.sock"
    with pytest.raises(StartFailed, match=f"{path}; run: {systemctl} enable --now podman.socket"):
        engine_url(Options(url="host"))
    assert why_no_engine(Options(url="host")) is None, "what was named is not replaced by the local runtime"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        assert engine_url(Options(url="host")) == f"unix://{path}"


@pytest.mark.usefixtures("programs")
def test_without_podman_it_says_so_unless_an_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", "")
    assert "apt-get install podman" in (why_no_engine(Options()) or "")
    assert why_no_engine(Options(url="unix:///x")) is None


def test_docker_is_where_the_user_says_or_at_its_usual_sockets(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "DOCKER_SOCKET", short_dir / "docker.sock")
    monkeypatch.setattr(facts, "shared_runtime_directory", lambda: short_dir / "x")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert docker_url(Options()) == f"unix://{short_dir}/docker.sock"
    (short_dir / "x").mkdir()
    own = short_dir / "x" / "docker.sock"
    own.touch()
    assert docker_url(Options()) == docker_url(Options(url="host")) == f"unix://{own}"
    monkeypatch.setenv("DOCKER_HOST", "tcp://env:1")
    assert docker_url(Options()) == "tcp://env:1"
    assert docker_url(Options(url="unix:///x")) == "unix:///x"
    monkeypatch.setenv("DOCKER_HOST", "ssh://env")
    with pytest.raises(InvalidParams, match="DOCKER_HOST: ssh://env is not spoken here"):
        docker_url(Options())


@pytest.mark.parametrize("named", ["unix:///nonexistent", "tcp://127.0.0.1:1"])
def test_a_docker_that_is_named_is_not_replaced_by_the_local_runtime(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", named)
    assert why_no_docker(Options()) is None


def test_a_docker_that_this_user_may_not_ask_has_a_group(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = short_dir / "docker.sock"
    url = f"unix://{path}"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may
    assert docker_group(url) is None, "none is there"
    path.touch()
    os.chown(path, -1, path.stat().st_gid or 1)  # not root's
    path.chmod(0o660)
    assert docker_group(url) == path.group()
    path.chmod(0o600)
    assert docker_group(url) is None, "the group may not either"
    path.chmod(0o660)
    monkeypatch.undo()
    assert docker_group(url) is None, "this user may"
    assert docker_group("tcp://127.0.0.1:1") is None


def test_docker_is_there_where_something_listens(short_dir: Path) -> None:
    path = short_dir / "docker.sock"
    named = Options(url=f"unix://{path}")
    assert why_no_docker(named) == f"no Docker answers at {path}: No such file or directory"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        assert why_no_docker(named) == f"no Docker answers at {path}: Connection refused"
        one.listen()
        assert why_no_docker(named) is None
