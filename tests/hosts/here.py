"""This machine's own system, packages and engines, for a user of its own, in namespaces that end with all in them.

What the user writes is below one directory: home, /tmp, /var/tmp, /run, the engine's storage and, as an overlay, /etc,
so that a user added there is none of this machine's. Its network is a loopback.
"""

from __future__ import annotations

import shlex
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.hosts.bounds import Bounds, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BOUND = {
    "home": "/home",
    "root": "/root",
    "tmp": "/tmp",
    "run": "/run",
    "containers": "/var/lib/containers",
    "var-tmp": "/var/tmp",
}
"""What is of the host alone: the folder that it is in, and where it is seen."""
OPEN_TO_ALL = ("tmp", "var-tmp")

SET_UP = """
cd "$1"
mount -t overlay overlay -o lowerdir=/etc,upperdir="$1/upper",workdir="$1/work" /etc
shift
for bound in "$@"; do
    [ -d "${bound#*:}" ] || continue
    # By its name in here: the whole one may be below what is bound already.
    mount --no-canonicalize --bind "${bound%%:*}" "${bound#*:}"
done
cd /
ip link set lo up
useradd --create-home --shell /bin/bash dev
echo ready
exec >&-
# The kernel reaps the orphans of a PID 1 that ignores the ends of its children.
exec env --ignore-signal=CHLD sleep infinity
"""


@contextmanager
def enclosed(place: Path, bounds: Bounds) -> Iterator[int]:
    """The host, with an ordinary user `dev`: the pid of its init.

    Raises:
        UnavailableError: it cannot be made.
    """
    for folder in ("upper", "work", *BOUND):
        (place / folder).mkdir(exist_ok=True)
    for folder in OPEN_TO_ALL:
        (place / folder).chmod(0o1777)
    (place / "upper").chmod(0o755)
    pairs = [f"{folder}:{target}" for folder, target in BOUND.items()]
    # Mounts come in, as from an ordinary mount(8), and none go out.
    spaces = ["unshare", "--mount", "--propagation=slave", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc"]
    argv = bounds.entering([*spaces, "sh", "-euc", SET_UP, "sh", str(place), *pairs])
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise UnavailableError(f"its namespaces cannot be made: {process.stderr.read().strip()}")
        yield _child_of(process.pid)
    finally:
        bounds.kill()
        process.communicate()


def _child_of(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
        return int(children.read())


def way_in(init: int, user: str, bounds: Bounds, environ: dict[str, str]) -> Callable[[list[str]], list[str]]:
    """How a command gets into it, as the user, with what a login shell sets and `environ` beside."""
    spaces = ["nsenter", "--target", str(init), "--mount", "--net", "--ipc", "--uts", "--pid"]
    settings = ["env", *(f"{name}={value}" for name, value in environ.items())]

    def enter(command: list[str]) -> list[str]:
        login = ["runuser", "--login", user, "--command", shlex.join([*settings, *command])]
        return bounds.entering([*spaces, *login])

    return enter
