"""The janitor as the program that it is, with a stand-in for Podman that writes down what it is asked."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fastclaw.engine.service import janitor_main
from fastclaw.engine.service.plan import JanitorOrder, janitor_argv
from fastclaw.linux.cgroups import CGROUPS
from fastclaw.linux.directories import HeldDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = 65534
PATIENCE_S = 10
CONTAINER = "c0ffee" * 10 + "0123"
PODMAN = """\
echo "$*" >> "$HOME/asked"
case $1 in
ps) cat "$HOME/containers" ;;
rm) [ -e "$HOME/stubborn" ] || : > "$HOME/containers" ;;
volume) [ "$2" = rm ] || cat "$HOME/volumes" ;;
esac
"""
RUNTIME = 'echo "runtime $*" >> "$HOME/asked"'
NFT = """\
#!/bin/sh
echo "nft $*" >> "$HOME/asked"
[ "$1" = delete ] || cat "$HOME/tables"
"""
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 1000 & wait $!; done"


class Owner:
    """A janitor with us as its owner.

    Attributes:
        home: where its Podman keeps the lists of what there is.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.service = subprocess.Popen(["sleep", "1000"])
        self._ours, self._theirs = socket.socketpair()
        self.janitor: subprocess.Popen[bytes] | None = None
        (home / "own").mkdir()
        self.has()

    def has(self, containers: str = "", volumes: str = "", tables: str = "") -> None:
        (self.home / "containers").write_text(containers)
        (self.home / "volumes").write_text(volumes)
        (self.home / "tables").write_text(tables)

    def nft(self) -> str:
        """A stand-in for nft."""
        path = self.home / "nft"
        path.write_text(NFT)
        path.chmod(0o700)
        return str(path)

    def employ(self, script: str = PODMAN, **changes: Any) -> None:
        order = JanitorOrder(
            owner=os.getpid(),
            service=self.service.pid,
            own_dir=str(self.home / "own"),
            podman=["/bin/sh", "-c", script, "podman"],
            runtime=["/bin/sh", "-c", RUNTIME, "runtime"],
            label="a=b",
            drain_ms=100,
        )
        argv = janitor_argv(sys.executable, janitor_main.__file__, msgspec.structs.replace(order, **changes))
        env = {**os.environ, "HOME": str(self.home)}
        self.janitor = subprocess.Popen(argv, stdin=self._theirs.fileno(), env=env, start_new_session=True)
        self._theirs.close()
        self._ours.settimeout(PATIENCE_S)
        assert self._ours.recv(1) == janitor_main.ARMED

    def die(self) -> int:
        """Close our end; the janitor's exit code."""
        self._ours.close()
        assert self.janitor is not None
        return self.janitor.wait(PATIENCE_S)

    def asked(self) -> list[str]:
        path = self.home / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()
        for process in (self.janitor, self.service):
            if process is not None:
                process.kill()
                process.wait(PATIENCE_S)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(tmp_path)
    yield owner
    owner.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_it_ends_the_steps_of_the_owners_builds(owner: Owner) -> None:
    """A rootless engine has them in no control group that we name: they went on to their end."""
    with step(janitor_main.shm_kib("b", 3)) as mine, step(janitor_main.shm_kib("c", 3)) as another:
        owner.employ(label="a=b", steps_have_size=True)
        assert owner.die() == 0
        assert mine.wait(PATIENCE_S) == -signal.SIGKILL
        assert another.poll() is None


@contextmanager
def step(kib: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a /dev/shm of this size."""
    script = f"mount -t tmpfs -o size={kib}k shm /dev/shm && echo up && exec sleep 1000"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("is_held", [False, True])
def test_it_removes_the_owners_sockets_where_nobody_holds_them(owner: Owner, is_held: bool) -> None:
    """They stayed until the next fastclaw of that user."""
    sockets = HeldDirectory(owner.home, "sockets-")
    (sockets.path / "one.io").touch()
    kept = [sockets.share()] if is_held else []
    owner.employ(sockets=str(sockets.path))
    os.close(sockets._fd)  # the lock is let go of as by the death of its holder, and nothing is removed
    assert owner.die() == 0
    assert sockets.path.exists() == is_held
    for fd in kept:
        os.close(fd)


def test_it_removes_what_bears_the_owners_label(owner: Owner) -> None:
    owner.has(containers=f"{CONTAINER}\nd00d\n", volumes="v1\nv2\n")
    owner.employ()
    assert owner.asked() == []
    assert owner.die() == 0
    assert owner.asked() == [
        "ps --all --quiet --no-trunc --filter label=a=b",
        f"rm --force --time 0 --volumes {CONTAINER} d00d",
        "ps --all --quiet --no-trunc --filter label=a=b",
        "volume ls --quiet --filter label=a=b",
        "volume rm --force v1 v2",
        f"runtime delete --force {CONTAINER}",
        "runtime delete --force d00d",
    ]
    assert not (owner.home / "own").exists()


def test_where_nothing_is_left_nothing_is_removed(owner: Owner) -> None:
    owner.employ()
    assert owner.die() == 0
    assert [line.split()[0] for line in owner.asked()] == ["ps", "volume"]
    assert not (owner.home / "own").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")
def test_a_step_of_a_build_ends_at_once_and_its_container_goes_after_the_service(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the containers in which builds work that alone which is called as buildah called the host of the step."""
    group = CGROUPS / "pids" if (CGROUPS / "pids").is_dir() else CGROUPS
    folder = group / f"fastclaw_1_2_3_{janitor_main.STEPS}{os.getpid():08x}"
    folder.mkdir()
    mine, other = "c0ffee" * 10 + "0123", "beef00" * 10 + "4567"
    owner.has(containers=f"{mine}=buildah\nd00d=buildah\n{other}=buildah\n")
    (owner.home / "stubborn").touch()
    for name, path, host in (
        ("buildah1", folder.name, mine[:12]),
        ("buildah2", "fastclaw_1_2_4_build_c0ffee", other[:12]),
        ("other", folder.name, other[:12]),
    ):
        (tmp_path / name).mkdir()
        config = {"hostname": host, "linux": {"cgroupsPath": f"/{path}"}}
        (tmp_path / name / "config.json").write_bytes(msgspec.json.encode(config))
    (tmp_path / "buildah-half").mkdir()
    (tmp_path / "buildah-half" / "config.json").write_text(f'{{"linux": {{"cgroupsPath":"/{folder.name}"')
    (tmp_path / "buildah-of-somebody-else").mkdir()
    os.mkfifo(tmp_path / "buildah-of-somebody-else" / "config.json")  # whoever opens it waits for ever
    os.chown(tmp_path / "buildah-of-somebody-else", NOBODY, NOBODY)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with subprocess.Popen(["sleep", "1000"]) as step:
        (folder / "cgroup.procs").write_text(str(step.pid))
        owner.employ(tables="fastclaw_1_2_3_")
        assert owner.die() == 0
        assert step.wait(PATIENCE_S) == -signal.SIGKILL
    asked = owner.asked()
    assert "ps --all --external --no-trunc --format {{.ID}}={{.Command}}" in asked
    assert f"rm --force {mine}" in asked
    assert not folder.exists()


TABLES = """\
table ip nat
table inet fastclaw_1_2_3_fadedf00
table inet fastclaw_1_2_4_deadbeef
table inet fastclaw_1_2_3_0123abcd
"""


def test_the_owners_networks_go_after_its_containers(owner: Owner) -> None:
    owner.has(containers=CONTAINER, tables=TABLES)
    owner.employ(nft=owner.nft(), tables="fastclaw_1_2_3_")
    assert owner.die() == 0
    assert [line for line in owner.asked() if line.startswith(("nft", "rm"))] == [
        f"rm --force --time 0 --volumes {CONTAINER}",
        "nft list tables",
        "nft delete table inet fastclaw_1_2_3_fadedf00",
        "nft delete table inet fastclaw_1_2_3_0123abcd",
    ]


def test_tables_of_nobody_are_left_alone(owner: Owner) -> None:
    owner.has(tables=TABLES)
    owner.employ(nft=owner.nft(), tables="")
    assert owner.die() == 0
    assert not [line for line in owner.asked() if line.startswith("nft")]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes an interface")
def test_an_interface_goes_before_its_rules(owner: Owner) -> None:
    subprocess.run(["ip", "link", "add", "fcfadedf00", "type", "bridge"], check=True)
    owner.has(tables=TABLES)
    owner.employ(nft=owner.nft(), tables="fastclaw_1_2_3_")
    assert owner.die() == 0
    assert "fcfadedf00" not in [name for _, name in socket.if_nameindex()]


def test_killed_it_does_nothing(owner: Owner) -> None:
    owner.has(containers=CONTAINER)
    owner.employ()
    assert owner.janitor is not None
    owner.janitor.kill()
    assert owner.die() == -signal.SIGKILL
    assert owner.asked() == []
    assert (owner.home / "own").exists()


def test_a_container_that_stays_is_tried_a_few_times(owner: Owner) -> None:
    owner.has(containers=CONTAINER)
    (owner.home / "stubborn").touch()
    owner.employ(tries=2)
    assert owner.die() == 0
    assert [line.split()[0] for line in owner.asked()] == ["ps", "rm", "ps", "rm", "volume", "runtime"]


def test_an_engine_that_hangs_does_not_keep_it(owner: Owner) -> None:
    owner.employ("exec sleep 1000", call_ms=50)
    assert owner.die() == 0
    assert not (owner.home / "own").exists()


def test_an_engine_that_is_not_there_does_not_keep_it(owner: Owner) -> None:
    owner.employ(podman=["/nonexistent/podman"])
    assert owner.die() == 0
    assert not (owner.home / "own").exists()


def test_a_service_that_will_not_end_is_killed_first(owner: Owner) -> None:
    owner.service.kill()
    owner.service.wait(PATIENCE_S)
    with subprocess.Popen(["/bin/sh", "-c", STUBBORN], stdout=subprocess.PIPE, process_group=0) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == b"ready\n"
        owner.employ(service=service.pid)
        owner.die()
        assert service.wait(PATIENCE_S) == -signal.SIGKILL
        os.killpg(service.pid, signal.SIGKILL)


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
def test_the_other_process_of_a_rootless_service_ends_too(owner: Owner, ignores: str) -> None:
    script = f"{ignores}echo ready; while :; do sleep 1000 & wait $!; done"
    argv = ["/bin/sh", "-c", script, "podman", f"unix://{owner.home}/own/podman.sock"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as twin:
        assert twin.stdout is not None
        assert twin.stdout.readline() == b"ready\n"
        owner.employ()
        owner.service.kill()
        owner.service.wait()
        assert owner.die() == 0
        assert twin.wait(PATIENCE_S) == -(signal.SIGKILL if ignores else signal.SIGTERM)
        os.killpg(twin.pid, signal.SIGKILL)  # its sleep


def test_a_service_that_ends_by_itself_is_waited_for(owner: Owner) -> None:
    owner.employ(drain_ms=PATIENCE_S * 1000)
    owner.service.terminate()
    assert owner.die() == 0
    assert owner.service.wait(PATIENCE_S) == -signal.SIGTERM


def test_a_number_that_may_be_somebody_elses_is_left_alone(owner: Owner) -> None:
    """Its owner died before the janitor took hold of the service: by now the pid may be anybody's."""
    owner.employ(owner=os.getpid() + 1)
    assert owner.die() == 0
    assert owner.service.poll() is None


def test_what_still_runs_of_a_forgotten_container_is_ended(owner: Owner) -> None:
    """Its monitor's command line names it; one that only has it in a longer word is nobody's."""
    owner.has(containers=CONTAINER)
    waiting = ["sh", "-c", "read x"]
    with (
        subprocess.Popen([*waiting, "conmon", "-c", CONTAINER], stdin=subprocess.PIPE) as monitor,
        subprocess.Popen([*waiting, "other", f"/run/{CONTAINER}"], stdin=subprocess.PIPE) as other,
    ):
        owner.employ()
        assert owner.die() == 0
        assert monitor.wait(PATIENCE_S) == -signal.SIGKILL
        assert other.poll() is None


@pytest.mark.skipif(shutil.which("strace") is None, reason="counts system calls with strace")
def test_an_idle_one_sleeps(owner: Owner, tmp_path: Path) -> None:
    owner.employ()
    assert owner.janitor is not None
    seen = tmp_path / "strace"
    argv = ["timeout", "0.3", "strace", "-qq", "-f", "-o", str(seen), "-p", str(owner.janitor.pid)]
    subprocess.run(argv, capture_output=True, check=False)
    assert len(seen.read_text().splitlines()) <= 2
