"""Room on the disk of an engine's storage: how much there is, and a reserve that can be given up.

Where the disk is full, Podman cannot write down that a container is gone, and so its layer stays, which is what fills
the disk. The reserve is room for that: a file beside the storage.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastclaw import answer_limits
from fastclaw.limits import MIB


def keep_reserve(path: Path) -> None:
    """Have the file, or do without it where there is no room."""
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, answer_limits.DISK_RESERVE_BYTES)
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
    return found.f_bavail * found.f_frsize >= answer_limits.DISK_RESERVE_BYTES and (
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
    if disk["free_bytes"] < answer_limits.DISK_LOW_BYTES:
        free, size = disk["free_bytes"] // MIB, disk["bytes"] // MIB
        return f"the disk of {disk['path']} is full: {free} of {size} MiB are free"
    if disk["free_files"] == 0:
        return f"the disk of {disk['path']} is full: it has no inodes left"
    return None
