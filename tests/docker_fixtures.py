"""One private Docker for all tests that need one: its own data, sockets and control groups, and no network of its own.

Registered by tests/conftest.py; started by the first test that asks for it. Debian's package would start a Docker of
the host's, with rules in its firewall, so no script of ours installs it.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import Struct

from fastclaw.engine.base_image import default_archive
from fastclaw.engine.dialects import Docker, find_docker
from fastclaw.engine.service.plan import DEFAULT_IMAGE
from fastclaw.linux.cgroups import CGROUPS
from tests.engine_fixtures import short_directory, unusable

if TYPE_CHECKING:
    from collections.abc import Iterator

_GOT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastclaw" / "docker" / "usr"
PROGRAMS = os.pathsep.join([os.environ["PATH"], str(_GOT / "sbin"), str(_GOT / "bin")])
"""A PATH: this host's own Docker, else the one that scripts/get-docker has got."""

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
    programs = [shutil.which(name, path=PROGRAMS) for name in ("dockerd", "containerd", "setpriv")]
    if None in programs:
        unusable("there is no dockerd with containerd; run: scripts/get-docker")
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
    places = {
        "config-file": settings,
        "data-root": base / "data",
        "exec-root": base / "exec",
        "pidfile": base / "pid",
        "cgroup-parent": f"/{group}",
    }
    command = ["setpriv", "--pdeathsig", "TERM", program, "-H", f"unix://{base}/d.sock"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, (base / "log").open("wb") as log:
        notices.bind(str(base / "notify"))
        daemon = subprocess.Popen(
            [*command, *(f"--{name}={place}" for name, place in places.items()), *_NO_NETWORK],
            stdout=log,
            stderr=log,
            env={**os.environ, "NOTIFY_SOCKET": str(base / "notify"), "PATH": PROGRAMS},
            start_new_session=True,
        )
        try:
            if not is_ready(notices, daemon):
                unusable(f"dockerd does not come up: {(base / 'log').read_text(errors='replace')[-500:]}")
            yield daemon.pid
        finally:
            _end(daemon, group)


def is_ready(notices: socket.socket, daemon: subprocess.Popen[bytes]) -> bool:
    """It says so as to systemd (sd_notify(3))."""
    pidfd = os.pidfd_open(daemon.pid)
    try:
        ready, _, _ = select.select([notices.fileno(), pidfd], [], [], _UP_S)
        return notices.fileno() in ready and b"READY=1" in notices.recv(4_096)
    finally:
        os.close(pidfd)


def _end(daemon: subprocess.Popen[bytes], group: str) -> None:
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(_DOWN_S)
    for folder in (CGROUPS / group, *CGROUPS.glob(f"*/{group}")):
        with suppress(OSError):
            folder.rmdir()
