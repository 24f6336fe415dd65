"""Whole directory trees: removed, and copied by hard links. No link is followed, and names are any bytes.

A tree that a container has written may be deeper than a path can be long, or than a process has descriptors: it is
made flat on the way.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it. One that is not there is fine.

    Raises:
        OSError: something in it cannot be removed.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        numbers = itertools.count()
        while names := os.listdir(top):
            for name in names:
                _remove(top, top, name, numbers)
    finally:
        os.close(top)
    os.rmdir(path)


def _remove(top: int, parent: int, name: str, numbers: Iterator[int]) -> None:
    """An entry of a directory. Subdirectories with something in them are moved to the top, where their turn comes."""
    try:
        os.unlink(name, dir_fd=parent)
        return
    except IsADirectoryError:
        pass
    with suppress(OSError):
        os.rmdir(name, dir_fd=parent)
        return
    if parent != top:
        _lift(top, parent, name, numbers)
        return
    inner = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        for entry in os.listdir(inner):
            _remove(top, inner, entry, numbers)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=parent)


def _lift(top: int, parent: int, name: str, numbers: Iterator[int]) -> None:
    for number in numbers:
        try:
            os.rename(name, f".{number}", src_dir_fd=parent, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # taken by what the tree had there
                raise
        else:
            return


def link_tree(source: str, target: str) -> int:
    """Make a tree of the same directories, whose files are the same files under one more name.

    Owners, rights, times and extended attributes of directories are those of the source.

    Parameters:
        target: is made.

    Returns:
        How many entries it has.

    Raises:
        OSError: also where both are on different file systems.
    """
    made = [(source, target)]
    count = 0
    for old, new in made:  # grows while it is gone through
        os.mkdir(new, 0o700)
        with os.scandir(old) as entries:
            for entry in entries:
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    made.append((entry.path, f"{new}/{entry.name}"))
                else:
                    os.link(entry.path, f"{new}/{entry.name}", follow_symlinks=False)
    for old, new in reversed(made):  # times last, and of the inner ones first
        copy_attributes(old, new)
    return count


def copy_attributes(source: str, target: str) -> None:
    """Give a directory what another one has: owner, extended attributes, rights, times.

    Raises:
        OSError: one of them cannot be set.
    """
    found = os.stat(source, follow_symlinks=False)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.chmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)
