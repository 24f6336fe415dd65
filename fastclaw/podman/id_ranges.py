"""Ranges of this host's user and group ids, each lent to one environment at a time.

Owns the locks: a file for each range, locked for as long as its environment lives, whoever made it. They go with the
process that holds them, however it ends. Nothing is written to subuid(5), which is for users other than root.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.podman.service.dirs import private_directory

if TYPE_CHECKING:
    from pathlib import Path


class IdRange:
    """One that is taken, until `release`.

    Attributes:
        first: the host's id of root inside.
    """

    def __init__(self, first: int, lock: int) -> None:
        self.first = first
        self._lock = lock

    def release(self) -> None:
        """Nobody has it any more."""
        os.close(self._lock)


def take_id_range(directory: Path, first: int, count: int) -> IdRange:
    """Take a range that nobody has.

    Parameters:
        directory: where the locks are, the same for everybody on this host.
        first: of the first range; `count` of them lie behind each other.

    Raises:
        StartFailed: `overloaded`: all are taken; `io_error`: a lock cannot be had.
    """
    try:
        private_directory(directory)
        for start in range(first, first + count * limits.IDS, limits.IDS):
            lock = os.open(directory / str(start), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            except BaseException:
                os.close(lock)
                raise
            else:
                return IdRange(start, lock)
    except OSError as error:
        raise StartFailed(f"no range of ids can be locked in {directory}: {error.strerror}", "io_error") from error
    raise StartFailed(
        f"all {count} ranges of ids are taken by other environments; end one, or give more (options.id_ranges)",
        "overloaded",
    )
