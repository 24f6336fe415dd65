"""A Debian 13 of our own, booted with systemd: Podman 5, Python 3.13, cgroup v2, a login session for an ordinary user.

Its root is made by debootstrap from the mirror that this machine's apt uses, once, and never written to afterwards:
each boot has an overlay over it. The machine is in PID, mount, network, IPC, UTS and cgroup namespaces of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shutil
import socket
import stat
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hosts.bounds import Bounds, UnavailableError
from tests.hosts.seat import tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUITE = "trixie"
PACKAGES = (
    "systemd systemd-sysv dbus dbus-user-session libpam-systemd ca-certificates procps iproute2 "
    "podman crun uidmap passt slirp4netns netavark aardvark-dns nftables catatonit "
    "git make python3 python3-venv "
    # What the acceptance tests compile, and the image that they use, are made with.
    "busybox-static gcc libc6-dev openssl strace"
)
"""What who follows the README has: an engine with what its package recommends, git, make, Python."""
MASKED = ("systemd-udevd.service", "systemd-networkd.service", "systemd-networkd.socket")
"""They would take this machine's devices and addresses for theirs, were a namespace ever missing."""
NODES = {"net/tun": (10, 200), "fuse": (10, 229)}
"""Devices that systemd-nspawn does not make, by their numbers (Linux, Documentation/admin-guide/devices.txt)."""
BOOT_S = 90.0
"""Until systemd says that it is up. Measured: 3 s, and 11 s on busy cores."""
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
"""What is needed here, and its package."""

NSPAWN_ENVIRON = {
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes",
    "SYSTEMD_SECCOMP": "0",
}
"""cgroup v2, as on every Debian 13, whatever this machine has; and an engine mounts what a container may not."""
NSPAWN_OPTIONS = (
    *("--boot", "--notify-ready=yes", "--console=pipe", "--register=no", "--keep-unit"),
    *("--private-network", "--resolv-conf=off", "--capability=all", "--private-users=no"),
)
SET_UP = """
mount -t tmpfs tmpfs /run  # where systemd-nspawn leaves notes of its own
mount -t overlay overlay -o lowerdir="$1",upperdir="$2/upper",workdir="$2/work" "$2/machine"
shift 2
exec "$@"
"""

WHOLE_SYS = """
mount -t sysfs sysfs /media
mount --bind /sys/fs/cgroup /media/fs/cgroup
umount --recursive --lazy /sys
mount --rbind /media /sys
mount --make-rprivate /media  # else what is below /sys goes with it
umount --recursive --lazy /media
"""
"""As a machine has it. systemd-nspawn makes a /sys of pieces, which crun cannot take apart in a user namespace."""


def apt_mirror(texts: list[str]) -> str | None:
    """Where this machine gets its Debian from, by the texts of apt's lists of sources, in both of their forms."""
    for text in texts:
        for line in text.splitlines():
            if re.match(r"(URIs:|deb\s)", line):
                for word in line.split():
                    if re.fullmatch(r"\w+://\S+/debian/?", word):
                        return word
    return None


def _sources() -> list[str]:
    patterns = ("sources.list.d/*.sources", "sources.list", "sources.list.d/*.list")
    return [path.read_text() for pattern in patterns for path in sorted(Path("/etc/apt").glob(pattern))]


def the_root(cache: Path, bounds: Bounds) -> Path:
    """The root, from the cache; made first where it is not there, in two to three minutes.

    Raises:
        UnavailableError: it cannot be made on this machine.
    """
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise UnavailableError(f"no {tool}: apt-get install {package}")
    key = hashlib.sha256(" ".join([SUITE, PACKAGES, *MASKED]).encode()).hexdigest()[:12]
    root = cache / f"{SUITE}-{key}"
    if not root.is_dir():
        mirror = apt_mirror(_sources())
        if mirror is None:
            raise UnavailableError("no Debian mirror among apt's sources")
        _make_root(root, mirror, bounds)
    return root


def _make_root(root: Path, mirror: str, bounds: Bounds) -> None:
    """Under another name until it is whole."""
    half = root.with_name(f"{root.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.parent.mkdir(parents=True, exist_ok=True)
    debootstrap = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES.split())}",
        SUITE,
        str(half),
        mirror,
    ]
    # What it mounts is gone with it.
    argv = bounds.entering(["unshare", "--mount", "--propagation=private", *debootstrap])
    try:
        done = tell(f"debian13: debootstrap {SUITE}, once, some minutes", argv, root.with_suffix(".log"))
        if done.code:
            raise UnavailableError(f"debootstrap failed with exit code {done.code}: {done.log}")
        for unit in MASKED:
            (half / "etc/systemd/system" / unit).symlink_to("/dev/null")
        # Takes its subordinate ids as every useradd does, from /etc/login.defs.
        subprocess.run(["chroot", half, "useradd", "--create-home", "--shell=/bin/bash", "dev"], check=True)
        half.rename(root)
    finally:
        bounds.kill()
        shutil.rmtree(half, ignore_errors=True)


@contextmanager
def booted(root: Path, place: Path, bounds: Bounds) -> Iterator[int]:
    """A machine that is up, with its homes and its engine's storage below `place`: the pid of its systemd.

    Raises:
        UnavailableError: it does not come up.
    """
    log = place / "console.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, log.open("wb") as console:
        notices.bind(str(place / "notify"))
        environ = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": str(place / "notify"), **NSPAWN_ENVIRON}
        process = subprocess.Popen(
            bounds.entering(_nspawn(root, place)), env=environ, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=console, stderr=console,
        )  # fmt: skip
        try:
            leader = _leader(notices, process, log)
            subprocess.run([*_inside(leader), "sh", "-euc", WHOLE_SYS], check=True)
            yield leader
        finally:
            bounds.kill()
            process.wait()


def _nspawn(root: Path, place: Path) -> list[str]:
    """The command that boots it; what has to be on no overlay, homes and an engine's storage, is bound."""
    binds = {"/home": place / "home", "/root": place / "root"}
    binds |= {"/var/lib/containers": place / "containers", "/var/tmp": place / "var-tmp"}
    subprocess.run(["cp", "--archive", root / "home", root / "root", place], check=True)
    for folder in ("upper", "work", "machine", "containers", "var-tmp"):
        (place / folder).mkdir()
    (place / "var-tmp").chmod(0o1777)
    for name, numbers in NODES.items():
        node = place / name.replace("/", "-")
        os.mknod(node, stat.S_IFCHR, os.makedev(*numbers))
        node.chmod(0o666)
        binds[f"/dev/{name}"] = node
    overlay = ["sh", "-euc", SET_UP, "sh", str(root), str(place)]
    bound = [f"--bind={source}:{target}" for target, source in binds.items()]
    nspawn = ["systemd-nspawn", f"--directory={place / 'machine'}", "--machine=debian13", *NSPAWN_OPTIONS, *bound]
    return ["unshare", "--mount", "--propagation=private", *overlay, *nspawn]


def _leader(notices: socket.socket, nspawn: subprocess.Popen[bytes], log: Path) -> int:
    """The pid of the machine's systemd, once that says that it is up."""
    deadline, leader = time.monotonic() + BOOT_S, 0
    pidfd = os.pidfd_open(nspawn.pid)
    try:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([notices.fileno(), pidfd], [], [], left)[0] != [notices.fileno()]:
                break
            told = notices.recv(4_096).decode()
            if found := re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", told, re.M):
                leader = int(found[1])
            if leader and re.search(r"^READY=1$", told, re.M):
                return leader
    finally:
        os.close(pidfd)
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise UnavailableError(f"systemd-nspawn does not bring it up: {' '.join(last)}")


def _inside(leader: int) -> list[str]:
    return ["nsenter", "--target", str(leader), "--all"]


def way_in(leader: int, user: str) -> Callable[[list[str]], list[str]]:
    """How a command gets into the machine, with a login session of the user's. One stays open while the machine is up.

    Raises:
        UnavailableError: the user cannot log in.
    """
    login = [*_inside(leader), "systemd-run", "--quiet", f"--property=User={user}"]
    login += ["--property=PAMName=login", "--property=WorkingDirectory=~"]
    opened = subprocess.run([*login, "sleep", "infinity"], capture_output=True, text=True, check=False)
    if opened.returncode:
        raise UnavailableError(f"{user} cannot log in: {opened.stderr.strip()}")
    return lambda command: [*login, "--wait", "--pipe", "--collect", *command]
