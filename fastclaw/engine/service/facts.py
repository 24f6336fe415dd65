"""Gathers the facts about this host that `podman/service/plan.py` judges. Also which engine an
environment uses: the one that its user named, else one of our own. Reads, never changes anything.

Knows where Linux distributions keep their programs and how /proc and /sys spell things; decides nothing.
"""

import grp
import os
import pwd
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from fastclaw import engine_limits, limits
from fastclaw.engine.service.plan import CgroupMode, HostFacts, ServicePlan, plan_service, why_not_url
from fastclaw.engine.service.storage import default_state_dir
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.linux import own_process
from fastclaw.linux.directories import shared_runtime_directory
from fastclaw.linux.executable import loader_of
from fastclaw.linux.proc import Mount, file_system, is_below, mounts
from fastclaw.options import Options

HELPER_DIRS = (
    "/usr/libexec/podman",
    "/usr/local/libexec/podman",
    "/usr/lib/podman",
    "/usr/local/lib/podman",
    "/usr/libexec/catatonit",
)
"""Where Podman itself looks for its helpers (containers/common, pkg/config: DefaultHelperBinariesDir)."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PID_MAX = Path("/proc/sys/kernel/pid_max")
"""Podman 4.3.1 lowers its own RLIMIT_NPROC to it, so a container can have no more (found by experiment)."""

CGROUP_ROOT = Path("/sys/fs/cgroup")
DOCKER_SOCKET = Path("/var/run/docker.sock")
"""Docker's own default (dockerd(8), -H); a rootless one's has the same name in XDG_RUNTIME_DIR."""
OVERLAY_BAD_LOWER = frozenset({"overlay", "nfs", "nfs4", "9p", "fuse.sshfs"})
"""File systems that cannot be the upper layer of an overlay mount (kernel: Documentation/filesystems/overlayfs.rst)."""


def host_facts(state_dir: Path) -> HostFacts:
    """Look at this host.

    Parameters:
        state_dir: where images will be kept; its file system decides the storage driver. Need not exist.
    """
    conmon = find_program("conmon")
    return HostFacts(
        is_root=os.geteuid() == 0,
        cgroups=cgroup_mode(CGROUP_ROOT),
        podman=find_program("podman"),
        crun=find_program("crun"),
        runc=find_program("runc"),
        conmon=conmon,
        conmon_version=conmon and program_version(conmon),
        catatonit=static_catatonit(),
        netavark=find_program("netavark"),
        iptables=find_program("iptables"),
        nft=find_program("nft"),
        setpriv=_util_linux_setpriv(),
        unshare=find_program("unshare"),
        python=sys.executable or None,
        nofile=hard_limit(resource.RLIMIT_NOFILE, engine_limits.MAX_NOFILE),
        nproc=hard_limit(resource.RLIMIT_NPROC, int(PID_MAX.read_text())),
        storage_driver=storage_driver(state_dir),
        user_systemd=_user_systemd(),
        state_executable=runs_programs(state_dir),
    )


def find_program(name: str) -> str | None:
    """Absolute path of a program: PATH, then the system directories, then Podman's own helper directories."""
    path = os.pathsep.join([os.environ.get("PATH", ""), SYSTEM_PATH, *HELPER_DIRS])
    return shutil.which(name, path=path)


def program_version(path: str) -> str | None:
    """The first dotted number that `PROGRAM --version` prints, or None where it does not answer."""
    found = re.search(r"\d+\.\d+(?:\.\d+)*", _says_of_itself(path))
    return found and found[0]


def version_line(path: str) -> str:
    """The first line that `PROGRAM --version` prints; empty where it does not answer."""
    return _says_of_itself(path).partition("\n")[0]


def _says_of_itself(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, timeout=engine_limits.PROGRAM_ANSWER_MS / 1000, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def static_catatonit() -> str | None:
    """Path of the host's catatonit, if it runs inside any image: a dynamic one would miss its libraries there."""
    path = find_program("catatonit")
    return path if path is not None and is_static_elf(Path(path)) else None


def is_static_elf(path: Path) -> bool:
    """Whether a file is a program that needs nothing but itself."""
    try:
        return elf_loader(path) is None
    except ValueError:
        return False


def elf_loader(path: Path) -> str | None:
    """The dynamic loader that a program names (elf(5), PT_INTERP), or None for a static one.

    Raises:
        ValueError: it is no 64-bit little-endian ELF file.
    """
    program = path.read_bytes()
    if len(program) < 64 or program[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no ELF program")
    return loader_of(program)


def cgroup_mode(root: Path) -> CgroupMode:
    """Which cgroups are mounted: v2 has cgroup.controllers at its root, hybrid has it one directory below."""
    if (root / "cgroup.controllers").exists():
        return "v2"
    return "hybrid" if (root / "unified" / "cgroup.controllers").exists() else "v1"


def container_controllers(root: Path, uid: int) -> frozenset[str]:
    """The cgroup controllers that the containers of this user's engine can have: on v2 an ordinary user has those that
    systemd delegates (systemd.resource-control(5), Delegate=), on v1 none."""
    if cgroup_mode(root) != "v2":
        return frozenset(entry.name for entry in root.iterdir()) if uid == 0 else frozenset()
    group = root if uid == 0 else root / "user.slice" / f"user-{uid}.slice" / f"user@{uid}.service"
    try:
        return frozenset((group / "cgroup.controllers").read_text(encoding="ascii").split())
    except OSError:
        return frozenset()


SUBORDINATE_IDS = (Path("/etc/subuid"), Path("/etc/subgid"))

FIRST_SUBORDINATE_ID = 100_000
"""Where useradd(8) begins (login.defs(5), SUB_UID_MIN)."""


def subordinate_ids(uid: int, files: Sequence[Path] = SUBORDINATE_IDS) -> int:
    """How many ids a user has by name or by number in each of these files (subuid(5)): the fewest."""
    names = {str(uid), user_name(uid)}
    return min(sum(count for name, _, count in _id_ranges(path) if name in names) for path in files)


def free_subordinate_id(files: Sequence[Path] = SUBORDINATE_IDS) -> int:
    """The first behind all that are given: those of two users must not meet."""
    return max(FIRST_SUBORDINATE_ID, *(first + count for path in files for _, first, count in _id_ranges(path)), 0)


def user_name(uid: int) -> str:
    """What a user is called; its number where that is nowhere."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _id_ranges(path: Path) -> list[tuple[str, int, int]]:
    """Whose, the first, how many: what is no such line does not count."""
    fields = [line.split(":") for line in _lines(path)] if path.exists() else []
    return [(name, int(first), int(count)) for name, first, count in filter(_is_range, fields)]


def _is_range(fields: list[str]) -> bool:
    return len(fields) == 3 and all(word.isascii() and word.isdecimal() for word in fields[1:])


def why_no_user_namespaces(settings: Path) -> str | None:
    """The sysctl by which this kernel refuses them to ordinary users, as it should be; None where it does not."""
    for name in ("user.max_user_namespaces", "kernel.unprivileged_userns_clone"):
        with suppress(OSError):
            if (settings / name.replace(".", "/")).read_text(encoding="ascii").strip() == "0":
                return f"{name}={limits.WANTED_USER_NAMESPACES if 'max' in name else 1}"
    return None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def hard_limit(which: int, ceiling: int) -> int:
    """The hard limit as a number; `ceiling` stands for "unlimited"."""
    hard = own_process.hard_limit(which)
    return ceiling if hard is None else min(hard, ceiling)


def storage_driver(state_dir: Path) -> Literal["overlay", "vfs"] | None:
    """The driver that works on the state directory's file system; None leaves it to Podman (fuse-overlayfs)."""
    kind = file_system(state_dir, mounts())
    if kind not in OVERLAY_BAD_LOWER:
        return "overlay" if os.geteuid() == 0 else None
    return None if find_program("fuse-overlayfs") else "vfs"


def runs_programs(state_dir: Path) -> bool:
    """Whether the file system that holds (or will hold) the state directory is mounted without noexec."""
    existing = next(path for path in (state_dir, *state_dir.absolute().parents) if os.path.exists(path))
    return not os.statvfs(existing).f_flag & os.ST_NOEXEC


def has_mounts_below(path: Path, mounted: list[Mount]) -> bool:
    """Whether something else is mounted somewhere in a directory."""
    wanted = os.path.realpath(path)
    return any(mount.point != wanted and is_below(mount.point, wanted) for mount in mounted)


def _util_linux_setpriv() -> str | None:
    """busybox has a setpriv as well, without --pdeathsig."""
    path = find_program("setpriv")
    return path if path is not None and "busybox" not in os.path.realpath(path) else None


def _user_systemd() -> bool:
    shared = shared_runtime_directory()
    return shared is not None and os.path.exists(shared / "systemd" / "private")


OF_HOST = "host"
"""As an engine's URL: the host's own, by the socket that systemd keeps for it."""

HOST_RUN_DIR = Path("/run")


def engine_url(options: Options) -> str | None:
    """The engine that the user named: `options.url`, else CONTAINER_HOST; None is one of our own.

    Raises:
        InvalidParams: it is of a form that is not spoken here.
        StartFailed: `engine_unavailable`: the host's own is meant, and has no socket.
    """
    url = options.url or os.environ.get("CONTAINER_HOST") or None
    if url == OF_HOST:
        return _host_socket(os.geteuid())
    if url is not None:
        _check_url(url, "$.options.url" if options.url else "CONTAINER_HOST")
    return url


def _check_url(url: str, source: str) -> None:
    why = why_not_url(url)
    if why is not None:
        raise InvalidParams(f"{source}: {why}", "unsupported", path="$.options.url")


def _host_socket(uid: int) -> str:
    """Of podman.socket (podman-system-service(1)); a login by `su` has no XDG_RUNTIME_DIR, but the same socket."""
    own = shared_runtime_directory() or HOST_RUN_DIR / "user" / str(uid)
    path = (own if uid else HOST_RUN_DIR) / "podman" / "podman.sock"
    if not path.is_socket():
        systemctl = "systemctl --user" if uid else "systemctl"
        text = f"the host's engine has no socket at {path}; run: {systemctl} enable --now podman.socket"
        raise StartFailed(text, "engine_unavailable")
    return f"unix://{path}"


def docker_url(options: Options) -> str:
    """The Docker that the user named: `options.url`, else DOCKER_HOST; else its socket, the host's or this user's.

    Raises:
        InvalidParams: it is of a form that is not spoken here.
    """
    given = options.url or os.environ.get("DOCKER_HOST")
    if given and given != OF_HOST:
        _check_url(given, "$.options.url" if options.url else "DOCKER_HOST")
        return given
    shared = shared_runtime_directory()
    sockets = [DOCKER_SOCKET] if shared is None else [DOCKER_SOCKET, shared / DOCKER_SOCKET.name]
    return f"unix://{next(filter(os.path.exists, sockets), DOCKER_SOCKET)}"


def why_no_docker(options: Options) -> str | None:
    """Why Docker cannot be used here, in one line; None where it can, as far as can be told without asking it."""
    url = docker_url(options)
    if not url.startswith("unix:") or (os.environ.get("DOCKER_HOST") and not options.url):
        return None  # it was named, so nothing else will do: the start says what is wrong
    path = url.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(engine_limits.PROGRAM_ANSWER_MS / 1000)
        try:
            probe.connect(path)
        except OSError as error:
            return f"no Docker answers at {path}: {error.strerror or error}"
    return None


def docker_group(url: str) -> str | None:
    """The group that this user has to be in to ask the Docker at a URL; None where it may ask, or no group may."""
    path = url.removeprefix("unix://")
    try:
        found = os.stat(path)
        if os.access(path, os.W_OK) or found.st_gid == 0 or not found.st_mode & stat.S_IWGRP:
            return None
        return grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        return None


def why_no_engine(options: Options) -> str | None:
    """Why Podman cannot be used here, in one line; None where it can, as far as can be told without starting it."""
    try:
        if engine_url(options) is not None:
            return None
    except StartFailed:
        return None  # it was named, so nothing else will do: the start says what is wrong
    try:
        own_plan(options)
    except StartFailed as error:
        return str(error)
    return None


def own_state_dir(options: Options) -> Path:
    """Where an engine of our own keeps images and records."""
    return Path(options.state_dir) if options.state_dir else default_state_dir()


def own_plan(options: Options) -> ServicePlan:
    """How an engine of our own runs on this host.

    Raises:
        StartFailed: `engine_unavailable`: it cannot.
    """
    facts = host_facts(own_state_dir(options))
    flags = options.oci_runtime_flags
    return plan_service(facts, oci_runtime=options.oci_runtime, flags=flags, storage=options.storage)
