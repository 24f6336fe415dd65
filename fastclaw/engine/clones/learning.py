"""Looks at the first container of a kind, which runs nothing but our spawner yet: what the engine has made of it.

Reads files of the engine's on this host, and copies what the engine has put into the container's root.
"""

from __future__ import annotations

import base64
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from fastclaw import engine_limits
from fastclaw.engine.clones.bundles import First, OwnFile, Template, Unclonable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastclaw.engine.podman_client import InspectedFiles

_RECORDS = Path("/run/crun")
"""Where root's crun keeps its records: conmon starts it without --root (libpod/oci_conmon_linux.go, 4.3.1)."""

_OPAQUE = "trusted.overlay.opaque"
"""kernel: Documentation/filesystems/overlayfs.rst."""

_INFINITE = (1 << 64) - 1
"""No limit, as the OCI runtime specification has it."""

_LIMITS = {
    "Max cpu time": "RLIMIT_CPU",
    "Max file size": "RLIMIT_FSIZE",
    "Max data size": "RLIMIT_DATA",
    "Max stack size": "RLIMIT_STACK",
    "Max core file size": "RLIMIT_CORE",
    "Max resident set": "RLIMIT_RSS",
    "Max processes": "RLIMIT_NPROC",
    "Max open files": "RLIMIT_NOFILE",
    "Max locked memory": "RLIMIT_MEMLOCK",
    "Max address space": "RLIMIT_AS",
    "Max file locks": "RLIMIT_LOCKS",
    "Max pending signals": "RLIMIT_SIGPENDING",
    "Max msgqueue size": "RLIMIT_MSGQUEUE",
    "Max nice priority": "RLIMIT_NICE",
    "Max realtime priority": "RLIMIT_RTPRIO",
    "Max realtime timeout": "RLIMIT_RTTIME",
}
"""As /proc/PID/limits calls them (proc_pid_limits(5)), which may be read where prlimit(2) is refused."""

_NAME_WIDTH = 26


class Layer(Struct, frozen=True):
    """A layer of an image in the engine's storage.

    Parameters:
        name: its id.
        path: its files.
        witness: is removed before any of its files is (containers/storage, drivers/overlay/overlay.go: Remove).
    """

    name: str
    path: str
    witness: str


class Learned(Struct, frozen=True, kw_only=True):
    """A kind of which clones can be made.

    Parameters:
        layers: of its image, the uppermost first.
        upper: of the root directory: uid and gid as the container sees them, rights.
        volumes: of those that it has: the same.
        filter: its seccomp filter, compiled, in base64; None where that is not to be had.
    """

    template: Template
    layers: tuple[Layer, ...]
    upper: tuple[int, int, int]
    volumes: dict[str, tuple[int, int, int]]
    filter: str | None


def learn(id: str, spec: Mapping[str, Any], found: InspectedFiles, seed: str) -> Learned:
    """Everything about the first container of a kind.

    Parameters:
        id: its full id.
        spec: what it was asked for with.
        seed: a directory that is made, with what the engine has put into its root.

    Raises:
        Unclonable: there can be no clones of it.
        OSError: something is not where it should be.
    """
    data = found.graph_driver.data or {}
    if found.graph_driver.name != "overlay" or "LowerDir" not in data:
        raise Unclonable(f"the engine's storage is {found.graph_driver.name}, and clones need overlay")
    if not found.state.running:
        raise Unclonable("the first container of the kind has ended")
    root, init = _first_id(spec), Path("/proc", str(found.state.pid))
    config = msgspec.json.decode(Path(found.config_path).read_bytes(), type=dict[str, Any])
    volumes = {mount.name: mount.source for mount in found.mounts if mount.name}
    first = First(
        id=id,
        config=config,
        files=tuple(_own_files(config, id, root)),
        volumes=volumes,
        rlimits=_rlimits((init / "limits").read_text(encoding="ascii")),
        oom_score=int((init / "oom_score_adj").read_text(encoding="ascii")),
    )
    template = Template(spec, first)
    _copy_seed(data["UpperDir"], seed, root)
    return Learned(
        template=template,
        layers=tuple(map(_layer, data["LowerDir"].split(":"))),
        upper=_owner(data["UpperDir"], root),
        volumes={name: _empty_volume(name, path, root) for name, path in volumes.items()},
        filter=_filter(id),
    )


def _first_id(spec: Mapping[str, Any]) -> int:
    """The host's id of root inside."""
    mappings = spec.get("idmappings")
    return int(mappings["UIDMap"][0]["host_id"]) if mappings else 0


def _owner(path: str, root: int) -> tuple[int, int, int]:
    found = os.stat(path, follow_symlinks=False)
    return found.st_uid - root, found.st_gid - root, stat.S_IMODE(found.st_mode)


def _layer(path: str) -> Layer:
    """A path is STORAGE/overlay/ID/diff, or by the short link beside the ids, which Podman mounts."""
    real = Path(path).resolve(strict=True)
    home = real.parent.parent
    link = (real.parent / "link").read_text(encoding="ascii").strip()
    return Layer(real.parent.name, str(real), str(home / "l" / link))


def _own_files(config: Mapping[str, Any], id: str, root: int) -> list[OwnFile]:
    """What is mounted out of the directories that the engine has for this one container."""
    found: list[OwnFile] = []
    for mount in config["mounts"]:
        source = mount.get("source", "")
        if id in source and os.path.isfile(source):
            text = _small_text(source)
            uid, gid, mode = _owner(source, root)
            name = f"own-{len(found)}"
            found.append(OwnFile(destination=mount["destination"], name=name, text=text, mode=mode, uid=uid, gid=gid))
    return found


def _small_text(path: str) -> str:
    data = Path(path).read_bytes()
    if len(data) > engine_limits.CLONE_FILE_BYTES:
        raise Unclonable(f"the engine's own {path} has {len(data)} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unclonable(f"the engine's own {path} is no text") from error


def _rlimits(text: str) -> tuple[tuple[str, int, int], ...]:
    """Those that are in force, by the text of /proc/PID/limits."""
    found = []
    for line in text.splitlines()[1:]:
        soft, hard, *_ = line[_NAME_WIDTH:].split()
        found.append((_LIMITS[line[:_NAME_WIDTH].rstrip()], _number(soft), _number(hard)))
    return tuple(sorted(found))


def _number(limit: str) -> int:
    return _INFINITE if limit == "unlimited" else int(limit)


def _empty_volume(name: str, path: str, root: int) -> tuple[int, int, int]:
    if os.listdir(path):
        raise Unclonable("the image has files where the workspace is, and the engine copies them into each volume")
    return _owner(path, root)


def _filter(id: str) -> str | None:
    with suppress(OSError):
        return base64.b64encode((_RECORDS / id / "seccomp.bpf").read_bytes()).decode()
    return None


def _copy_seed(upper: str, seed: str, root: int) -> None:
    """What was put into its root before it ran: mount points, the working directory, links."""
    made = [(upper, seed)]
    count = 0
    os.mkdir(seed, 0o700)
    for old, new in made:  # grows while it is gone through
        with os.scandir(old) as entries:
            for entry in entries:
                count += 1
                if count > engine_limits.CLONE_SEED_ENTRIES:
                    raise Unclonable("the engine puts too many files into a new container")
                path = f"{new}/{entry.name}"
                _copy_entry(entry, path, root)
                if entry.is_dir(follow_symlinks=False):
                    made.append((entry.path, path))
    for old, new in reversed(made):
        _own(old, new, root)


def _copy_entry(entry: os.DirEntry[str], path: str, root: int) -> None:
    if entry.is_dir(follow_symlinks=False):
        os.mkdir(path, 0o700)
        return
    found = entry.stat(follow_symlinks=False)
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), path)
    elif stat.S_ISREG(found.st_mode) and not found.st_size:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.chmod(path, stat.S_IMODE(found.st_mode))
    else:
        raise Unclonable(f"the engine puts {entry.name} into a new container, which is neither empty nor a link")
    os.chown(path, _inside(found.st_uid, root), _inside(found.st_gid, root), follow_symlinks=False)


def _inside(id: int, root: int) -> int:
    """Whose it is inside, by the id on this host. One that was not lent is a working directory's that Podman has made
    (podman/container.py, `_lend_working_dir`)."""
    return id - root if id >= root else id


def _own(old: str, new: str, root: int) -> None:
    found = os.stat(old, follow_symlinks=False)
    if _OPAQUE in os.listxattr(old, follow_symlinks=False):
        os.setxattr(new, _OPAQUE, os.getxattr(old, _OPAQUE, follow_symlinks=False), follow_symlinks=False)
    os.chown(new, _inside(found.st_uid, root), _inside(found.st_gid, root))
    os.chmod(new, stat.S_IMODE(found.st_mode))
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
