"""The directories of managed engines: what lasts, what lives until the next boot, what lives as long as a service.

    STATE/<key>/storage           images and containers, shared by every service of this user
    STATE/conf/<hash>             settings and conmon's stand-in; named by content, since containers outlive a service
    RUN/store-<key>/{run,tmp,boot}  Podman's runroot and tmpdir of that storage
    RUN/<pid>-<random>/           one service: its socket; in use while its owner holds it
    RUN/engine/                   the service of `fastclaw engine start`

`<key>` stands for the pair of both directories: Podman writes runroot and tmpdir into its database and refuses
any other (libpod/boltdb_state_internal.go, 4.3.1).

And room on the disk: beside the storage lies a reserve, a file that can be given up. Where the disk is full, Podman
cannot write down that a container is gone, and so its layer stays, which is what fills the disk. Starts nothing.
"""

import fcntl
import hashlib
import logging
import os
import pwd
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastclaw import engine_limits, limits
from fastclaw.engine.service.plan import ServicePaths, ServicePlan, conf_text
from fastclaw.engine_limits import PODMAN_RUNROOT_BYTES
from fastclaw.errors import StartFailed
from fastclaw.limits import MIB
from fastclaw.linux.directories import (
    HeldDirectory,
    from_environment,
    make_private,
    remove_abandoned,
    runtime_directory,
    shared_runtime_directory,
    why_unsafe,
)
from fastclaw.linux.proc import boot_id

logger = logging.getLogger(__name__)

SOCKET_NAME = "podman.sock"
ENGINE_DIR = "engine"

MOUNT_OPTION_MARKS = ":,\\"
"""What separates or escapes in an overlay mount's `lowerdir=` (kernel: Documentation/filesystems/overlayfs.rst)."""

_BY_WHAT = "(XDG_RUNTIME_DIR, XDG_STATE_HOME, options.state_dir)"
_LONGEST_RUNTIME_DIR = PODMAN_RUNROOT_BYTES - len("/fastclaw/store-01234567/run")


def default_state_dir() -> Path:
    """`$XDG_STATE_HOME/fastclaw`, else `~/.local/state/fastclaw` (XDG Base Directory Specification).

    Raises:
        StartFailed: this user has no home directory.
    """
    state = from_environment("XDG_STATE_HOME")
    return (state or _home() / ".local" / "state") / "fastclaw"


def _home() -> Path:
    """$HOME, unless it is another user's: `sudo -E` leaves the caller's to root, as some CI services do."""
    home = from_environment("HOME")
    why = None if home is None or not os.path.exists(home) else why_unsafe(home)
    if why is not None:
        logger.warning("HOME is not used: %s; taking the home directory of this user's entry in /etc/passwd", why)
    if home is None or why is not None:
        try:
            home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
        except KeyError as error:
            raise StartFailed("no home directory; set HOME or XDG_STATE_HOME to an absolute path") from error
    return home


def default_run_dir() -> Path:
    """`$XDG_RUNTIME_DIR/fastclaw`, else `/run/fastclaw` for root, else `/tmp/fastclaw-<uid>`."""
    chosen = runtime_directory(_LONGEST_RUNTIME_DIR)
    if chosen is not None:
        return chosen / "fastclaw"
    return Path("/run/fastclaw") if os.geteuid() == 0 else Path(f"/tmp/fastclaw-{os.geteuid()}")


def engine_variables() -> dict[str, str]:
    """This process's, without an XDG_RUNTIME_DIR that is not its user's: Podman and its OCI runtime would insist on it,
    and as root make it."""
    dropped = "XDG_RUNTIME_DIR" if shared_runtime_directory() is None else None
    return {name: value for name, value in os.environ.items() if name != dropped}


def service_dir(run_dir: Path) -> HeldDirectory:
    """A new directory for one service of this process.

    Raises:
        StartFailed: as `private_directory`.
    """
    private_directory(run_dir)
    try:
        return HeldDirectory(run_dir, f"{os.getpid()}-")
    except OSError as error:
        raise StartFailed(f"cannot make a directory in {run_dir}: {error.strerror}") from error


def service_paths(state_dir: Path, run_dir: Path, own_dir: Path, plan: ServicePlan) -> ServicePaths:
    """Make and name everything one service needs.

    Parameters:
        own_dir: where its socket goes.

    Raises:
        StartFailed: `engine_error`: a directory cannot be had, or the socket's path is too long for the kernel.
    """
    socket = own_dir / SOCKET_NAME
    check_socket_path(socket)
    _check_layers_path(state_dir, plan)
    key = hashlib.sha256(f"{state_dir}\0{run_dir}".encode()).hexdigest()[:8]
    store = run_dir / f"store-{key}"
    private_directory(store)
    private_directory(state_dir)
    reserve = state_dir / key / "reserve"
    try:
        with locked(store / "lock"):
            _forget_last_boot(store)
            remove_abandoned(run_dir, "[0-9]*-????????")  # services of killed processes died with them
            conf_path = _write_settings(state_dir / "conf", plan)
            keep_reserve(reserve)
    except OSError as error:
        raise StartFailed(f"cannot write {error.filename or state_dir}: {error.strerror}") from error
    return ServicePaths(
        root=str(state_dir / key / "storage"),
        runroot=str(store / "run"),
        tmpdir=str(store / "tmp"),
        socket=str(socket),
        conf=str(conf_path),
        reserve=str(reserve),
    )


def check_socket_path(socket: Path) -> None:
    """Refuse a path that does not fit into `sun_path`."""
    if len(os.fsencode(socket)) > limits.SOCKET_PATH_BYTES:
        raise StartFailed(
            f"socket path {socket} is longer than {limits.SOCKET_PATH_BYTES} bytes; "
            "set XDG_RUNTIME_DIR to a shorter directory"
        )


def _check_layers_path(state_dir: Path, plan: ServicePlan) -> None:
    """Podman would say that the kernel has no overlay."""
    found = [mark for mark in MOUNT_OPTION_MARKS if mark in str(state_dir)]
    if found and (plan.storage, plan.storage_driver) == ("private", "overlay"):
        raise StartFailed(
            f"there can be no images in {state_dir}: {found[0]!r} has a meaning in the options of an overlay mount; "
            "set XDG_STATE_HOME or options.state_dir to a directory without"
        )


def private_directory(path: Path) -> None:
    """Make a directory that only this user can enter or replace, or check that it is one.

    Raises:
        StartFailed: it or one on the way belongs to another user; it is open to others, no directory, or cannot be
            made.
    """
    try:
        why = make_private(path)
    except OSError as error:
        raise StartFailed(f"cannot make directory {path}: {error.strerror}") from error
    if why is not None:
        raise StartFailed(
            f"{path} {why}, and must be a directory that only this user can write; remove it or choose another one "
            + _BY_WHAT
        )
    why = why_unsafe(path)
    if why is not None:
        raise StartFailed(f"{why}, so {path} is not safe; choose another one {_BY_WHAT}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file for a few file operations.

    Raises:
        StartFailed: `engine_timeout`: another process holds it for longer than `engine_limits.ENGINE_LOCK_MS`.
    """
    fd = lock_file(path, engine_limits.ENGINE_LOCK_MS)
    try:
        yield
    finally:
        os.close(fd)


def lock_file(path: Path, timeout_ms: int) -> int:
    """Take a lock file and return the descriptor that holds it. Waits in small steps: flock(2) knows no deadline.

    Raises:
        StartFailed: `engine_timeout`: another process holds it for longer.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _flock(fd, path, timeout_ms)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _flock(fd: int, path: Path, timeout_ms: int) -> None:
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > deadline:
            raise StartFailed(f"{path} is locked by another process; try again", "engine_timeout")
        time.sleep(engine_limits.ENGINE_READY_POLL_MS / 1000)


def _forget_last_boot(store: Path) -> None:
    """Empty runroot and tmpdir after a reboot: left as they are, Podman would believe that its containers still run."""
    marker = store / "boot"
    if marker.exists() and marker.read_text() == boot_id():
        return
    for name in ("run", "tmp"):
        shutil.rmtree(store / name, ignore_errors=True)
    marker.write_text(boot_id())


def _write_settings(directory: Path, plan: ServicePlan) -> Path:
    private_directory(directory)
    conmon = plan.facts.conmon or "conmon"
    if plan.conmon_shim is not None:
        conmon = str(_write_once(directory, plan.conmon_shim, 0o700))
    return _write_once(directory, conf_text(plan, conmon), 0o600)


def _write_once(directory: Path, text: str, mode: int) -> Path:
    """A file named by its content. It appears complete or not at all."""
    path = directory / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not path.exists():
        draft = directory / f"{path.name}.{os.getpid()}"
        draft.write_text(text)
        draft.chmod(mode)
        draft.replace(path)
    return path


def keep_reserve(path: Path) -> None:
    """Have the file, or do without it where there is no room."""
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, engine_limits.DISK_RESERVE_BYTES)
        finally:
            os.close(fd)
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()


def give_up_reserve(path: Path) -> None:
    """Have the room instead of the file."""
    path.unlink(missing_ok=True)


def has_room(directory: Path) -> bool:
    """Whether there is as much as the reserve is, without it."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return True
    return found.f_bavail * found.f_frsize >= engine_limits.DISK_RESERVE_BYTES and (
        found.f_favail > 0 or not found.f_files
    )


def disk_of(path: Path) -> dict[str, Any] | None:
    """How full the disk is that holds a directory; None where it is not to be found. For `health`."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    # Root may use what a file system holds back.
    free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
    return {
        "path": str(path),
        "bytes": found.f_blocks * found.f_frsize,
        "free_bytes": free,
        "free_files": found.f_ffree,
    }


def why_full(disk: dict[str, Any] | None) -> str | None:
    """What is wrong with a disk, in one line; None where it has room."""
    if disk is None:
        return None
    if disk["free_bytes"] < engine_limits.DISK_LOW_BYTES:
        free, size = disk["free_bytes"] // MIB, disk["bytes"] // MIB
        return f"the disk of {disk['path']} is full: {free} of {size} MiB are free"
    if disk["free_files"] == 0:
        return f"the disk of {disk['path']} is full: it has no inodes left"
    return None
