"""Directories of this user alone: where they may be, and which of them are in use.

A directory in use is locked (flock(2)) by the process that made it; the lock ends with that process. A pid in its name
would not do: in another PID namespace it is another process's, or none's.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from fastclaw import limits

logger = logging.getLogger(__name__)

_NOBODY = 65_534
"""What the kernel shows for an owner that this user namespace does not map (/proc/sys/kernel/overflowuid)."""


def from_environment(name: str) -> Path | None:
    """A directory that a variable names; one that is relative does not count (XDG Base Directory Specification)."""
    value = os.environ.get(name)
    return Path(value) if value and os.path.isabs(value) else None


def runtime_directory(most: int) -> Path | None:
    """$XDG_RUNTIME_DIR; None where it is not set, and where it cannot be used, which is logged with the reason.

    Parameters:
        most: bytes that its path may have, so that there is room for the paths in it.
    """
    path = from_environment("XDG_RUNTIME_DIR")
    if path is None:
        return None
    length = len(os.fsencode(path))
    why = f"it has {length} bytes, and may have {most}" if length > most else _why_unusable(path)
    if why is not None:
        logger.warning("XDG_RUNTIME_DIR is not used: %s; taking another directory", why)
        return None
    return path


def shared_runtime_directory() -> Path | None:
    """$XDG_RUNTIME_DIR of any length, where other programs of this user have their sockets; None where it is another
    user's: `su` and `sudo -u` keep the caller's."""
    path = from_environment("XDG_RUNTIME_DIR")
    return path if path is not None and _why_unusable(path) is None else None


def _why_unusable(path: Path) -> str | None:
    return why_unsafe(path) or (None if os.access(path, os.W_OK | os.X_OK) else "it cannot be written")


def why_unsafe(path: Path) -> str | None:
    """Why another user could replace a directory, in a few words; None where none can.

    A safe one, and each directory above it, is this user's or root's, and either not writable by others or sticky, as
    /tmp is.
    """
    try:
        real = path.resolve(strict=True)
        for part in (real, *real.parents):
            found = part.lstat()
            if found.st_uid not in (0, os.geteuid(), _NOBODY):
                return f"{part} belongs to user {found.st_uid}"
            if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
                return f"{part} can be written by everybody"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def make_private(path: Path) -> str | None:
    """Make a directory that only this user can enter, and its missing parents; or check one that is there.

    Returns:
        Why it is not private, in a few words; None where it is.

    Raises:
        OSError: it cannot be made.
    """
    for missing in reversed([one for one in (path, *path.parents) if not os.path.lexists(one)]):
        with contextlib.suppress(FileExistsError):  # another process was quicker; the owner is looked at below
            missing.mkdir(mode=0o700)  # mkdir(parents=True) would give the parents what the umask leaves
            missing.chmod(0o700)  # the umask may take away what its owner needs
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is no directory"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    return "can be written by others" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


class HeldDirectory:
    """A new directory of mode 0700, in use until it is removed or this process ends.

    Parameters:
        parent: where it is made.
        prefix: of its name.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        for _ in range(limits.HOLD_TRIES):
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            with contextlib.suppress(FileNotFoundError):
                self.path.chmod(0o700)  # as in `make_private`
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if _locks(self._fd) and self.is_there():
                    return
                self.remove()
            # Another process took it for abandoned before it was locked.
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(parent))

    def is_there(self) -> bool:
        """Whether it has been neither removed nor replaced."""
        try:
            there, held = os.stat(self.path, follow_symlinks=False), os.fstat(self._fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def share(self) -> int:
        """A descriptor for another process, which keeps it in use as long as that has it open; the caller's to close.

        Raises:
            OSError: no descriptor is left.
        """
        return os.dup(self._fd)

    def remove(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def remove_abandoned(parent: Path, pattern: str) -> None:
    """Remove directories of this user whose holder has ended, also one of another PID namespace.

    Parameters:
        pattern: of their names, as for `Path.glob`.
    """
    for path in parent.glob(pattern):
        with contextlib.suppress(OSError):  # another process was quicker
            if path.lstat().st_uid == os.geteuid():
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if _locks(fd):
            shutil.rmtree(path)
    finally:
        os.close(fd)


def _locks(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
