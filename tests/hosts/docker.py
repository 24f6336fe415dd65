"""Docker's own daemon in a host that `here` makes, beside no Podman: it has all that this writes."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.docker_fixtures import is_ready
from tests.hosts.bounds import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SOCKET = "unix:///run/docker.sock"
"""As the daemon has it by itself, and as DOCKER_HOST names it."""


@contextmanager
def daemon(place: Path, group: str, enter: Callable[[list[str]], list[str]]) -> Iterator[None]:
    """The daemon, up. It ends with its host.

    Parameters:
        place: of the host.
        group: the control group that those of containers are made in.
        enter: how root gets in.

    Raises:
        UnavailableError: it is not installed, or does not start.
    """
    if shutil.which("dockerd") is None:
        raise UnavailableError("no dockerd: apt-get install docker.io")
    if podman := shutil.which("podman"):  # what is no program is none that is found
        subprocess.run(enter(["mount", "--bind", "/dev/null", podman]), check=True)
    log = place / "dockerd.log"
    command = ["dockerd", "--iptables=false", "--bridge=none", "--data-root=/home/docker"]
    command += [f"--cgroup-parent=/{group}", "--exec-opt=native.cgroupdriver=cgroupfs", f"--host={SOCKET}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, log.open("wb") as file:
        notices.bind(str(place / "run" / "notify"))
        argv = enter(["env", "NOTIFY_SOCKET=/run/notify", *command])
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
        try:
            if not is_ready(notices, process):
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise UnavailableError(f"dockerd does not start: {' '.join(last)}")
            yield
        finally:
            process.terminate()
            process.wait()
