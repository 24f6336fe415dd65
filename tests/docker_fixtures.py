"""One private Docker for all tests that need one: its own data, sockets and control groups, and no network of its own.

Registered by tests/conftest.py; started by the first test that asks for it. Debian's package would start a Docker of
the host's, with rules in its firewall, so no script of ours installs it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from msgspec import Struct

from fastclaw.errors import StartFailed
from fastclaw.linux.cgroups import CGROUPS
from fastclaw.podman.base_image import default_archive
from fastclaw.podman.dialects import Docker, find_docker
from fastclaw.podman.service.facts import find_program
from fastclaw.podman.service.plan import DEFAULT_IMAGE
from tests.engine_fixtures import short_directory, unusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UP_S, _DOWN_S = 30.0, 30.0
_NO_NETWORK = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")


class DockerService(Struct, frozen=True, kw_only=True):
    """A running daemon, the pid of which is `pid`. `image` is in its storage."""

    url: str
    image: str
    pid: int
    dialect: Docker


@pytest.fixture(scope="session")
def docker_service() -> Iterator[DockerService]:
    """A Docker that has the default image, shared by all tests of the session."""
    programs = [find_program(name) for name in ("dockerd", "containerd", "setpriv")]
    if None in programs:
        unusable("there is no dockerd with containerd; run: apt-get install docker.io")
    if os.geteuid() != 0:
        unusable("only root can start a dockerd")
    with short_directory() as base, _daemon(str(programs[0]), base) as pid:
        url = f"unix://{base}/d.sock"
        dialect = find_docker(url, 5)
        with dialect.client(url, 60) as client:
            dialect.import_image(client, DEFAULT_IMAGE, default_archive())
        yield DockerService(url=url, image=DEFAULT_IMAGE, pid=pid, dialect=dialect)


@contextmanager
def _daemon(program: str, base: Path) -> Iterator[int]:
    """Ends with this process, however that ends; and takes its containers and containerd with it."""
    settings, group = base / "daemon.json", f"fastclaw-docker-{os.getpid()}"
    settings.write_text(f'{{"deprecated-key-path": "{base}/key.json"}}')  # else it writes to /etc/docker
    places = (
        "--config-file",
        settings,
        "--data-root",
        base / "data",
        "--exec-root",
        base / "exec",
        "--pidfile",
        base / "pid",
    )
    command = ["setpriv", "--pdeathsig", "TERM", program, "-H", f"unix://{base}/d.sock"]
    with (base / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [*command, *places, "--cgroup-parent", f"/{group}", *_NO_NETWORK],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _await(f"unix://{base}/d.sock", daemon, base / "log")
        yield daemon.pid
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(_DOWN_S)
        for folder in (CGROUPS / group, *CGROUPS.glob(f"*/{group}")):
            with suppress(OSError):
                folder.rmdir()


def _await(url: str, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _UP_S
    while True:
        try:
            find_docker(url, 5)
            return
        except StartFailed as error:
            if daemon.poll() is not None or time.monotonic() > deadline:
                unusable(f"dockerd does not come up ({error}): {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.05)  # it says that it is up in its log only
