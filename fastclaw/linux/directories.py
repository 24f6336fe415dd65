"""Directories of this user alone: where they may be, and which of them are in use.

A directory in use is locked (flock(2)) by the process that made it, for as long as that lives: the kernel lets go of
the lock with it. A pid in its name would mean somebody else in another PID namespace, or nobody.
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

from fastclaw import answer_limits

logger = logging.getLogger(__name__)

_NOBODY = 65_534
"""Who an owner is that the user namespace does not know (/proc/sys/kernel/overflowuid): nobody in here."""


def from_environment(name: str) -> Path | None:
    """A directory that a variable names; one that is relative does not count (XDG Base Directory Specification)."""
    value = os.environ.get(name)
    return Path(value) if value and os.path.isabs(value) else None


def runtime_directory(most: int) -> Path | None:
    """$XDG_RUNTIME_DIR, if it can be used: else the log says why not, and the caller takes another one.

    Parameters:
        most: bytes that it may have, so that there is room for the paths in it.
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
    """$XDG_RUNTIME_DIR of whatever length, where other programs of this user have their sockets; None where it is not
    this user's to use: `su` and `sudo -u` keep the caller's."""
    path = from_environment("XDG_RUNTIME_DIR")
    return path if path is not None and _why_unusable(path) is None else None


def _why_unusable(path: Path) -> str | None:
    return why_unsafe(path) or (None if os.access(path, os.W_OK | os.X_OK) else "it cannot be written")


def why_unsafe(path: Path) -> str | None:
    """How somebody else could put another directory in a directory's place, in a few words; None where nobody can.

    Each one on the way is this user's or root's, and others cannot write it; or it is sticky, as /tmp is.
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
    """Make a directory that only this user can enter, its parents too where they are missing; or see that it is one.

    Returns:
        Why it is none, in a few words.

    Raises:
        OSError: it cannot be made.
    """
    for missing in reversed([one for one in (path, *path.parents) if not os.path.lexists(one)]):
        with contextlib.suppress(FileExistsError):  # somebody was quicker; whose it is comes out below
            missing.mkdir(mode=0o700)  # mkdir(parents=True) would give the parents what the umask leaves
            missing.chmod(0o700)  # the umask may take away what its owner needs
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is no directory"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    return "can be written by others" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


class HeldDirectory:
    """A new directory of mode 0700, which is in use until it is removed or this process ends.

    Parameters:
        prefix: of its name.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        for _ in range(answer_limits.HOLD_TRIES):
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            with contextlib.suppress(FileNotFoundError):
                self.path.chmod(0o700)  # as in `make_private`
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if _locks(self._fd) and self.is_there():
                    return
                self.remove()
            # Somebody took it for abandoned before it was locked.
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(parent))

    def is_there(self) -> bool:
        """Whether nobody has removed it or put another one in its place."""
        try:
            there, held = os.stat(self.path, follow_symlinks=False), os.fstat(self._fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def remove(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def remove_abandoned(parent: Path, pattern: str) -> None:
    """Remove directories of this user whose holder is gone, in whatever PID namespace it was."""
    for path in parent.glob(pattern):
        with contextlib.suppress(OSError):  # somebody else was quicker
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
