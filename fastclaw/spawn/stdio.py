"""The streams of one process: three pipes, or a terminal. Our ends do not block; its ends do, as every program expects
of its stdio."""

from __future__ import annotations

import os
from errno import EMFILE
from fcntl import F_SETFL, fcntl
from os import O_CLOEXEC, O_NONBLOCK, O_WRONLY, pipe2

from fastclaw.spawn import refusals
from fastclaw.transport.outbox import close_all


class Stdio:
    """Parameters:
    stdin: False leaves its stdin to the spawner, which gives it an empty one.

    Attributes:
        stdin, stdout, stderr: ours; they become the lane process's.
        theirs: to be passed on, in the order of their numbers there.

    Raises:
        ExecFailed: `overloaded`, no descriptor is left.
    """

    __slots__ = ("stderr", "stdin", "stdout", "theirs")

    def __init__(self, stdin: bool) -> None:
        opened: list[int] = []
        try:
            if stdin:
                opened += pipe2(O_CLOEXEC)
            opened += pipe2(O_CLOEXEC)
            opened += pipe2(O_CLOEXEC)
        except OSError as error:
            close_all(opened)
            raise refusals.resources_refused(error) from error
        self.stderr, error_end = opened[-2:]
        self.stdout, output_end = opened[-4:-2]
        fcntl(self.stderr, F_SETFL, O_NONBLOCK)
        fcntl(self.stdout, F_SETFL, O_NONBLOCK)
        self.stdin: int | None = None
        self.theirs = [output_end, error_end]
        if stdin:
            self.theirs.insert(0, opened[0])
            self.stdin = opened[1]
            fcntl(opened[1], F_SETFL, O_NONBLOCK | O_WRONLY)

    def give_to(self, uid: int, gid: int) -> None:
        """Let this user open its streams again by name (/dev/stdout): a pipe belongs to who made it, mode 0600.

        Where we may not give files away, it cannot; the streams themselves work.
        """
        for fd in self.theirs:
            try:
                os.fchown(fd, uid, gid)
            except PermissionError:
                return

    def close_ours(self) -> None:
        """For a start that failed."""
        close_all(fd for fd in (self.stdin, self.stdout, self.stderr) if fd is not None)


def terminal_streams(master: int | None, stdin: bool) -> tuple[int | None, int, int]:
    """Stdin, stdout and stderr of a process on a terminal: two descriptors of the terminal, and an output at its end.

    Parameters:
        master: stays the caller's; None where there was no room for it here when it came.
        stdin: False gives the caller no input.

    Raises:
        ExecFailed: `overloaded`, no descriptor is left.
    """
    opened: list[int] = []
    try:
        if master is None:
            raise OSError(EMFILE, os.strerror(EMFILE))
        os.set_blocking(master, False)
        opened += pipe2(O_CLOEXEC | O_NONBLOCK)
        opened.append(os.dup(master))
        if stdin:
            opened.append(os.dup(master))
    except OSError as error:
        close_all(opened)
        raise refusals.resources_refused(error) from error
    stderr, nobody, stdout, *inputs = opened
    os.close(nobody)
    return (inputs[0] if inputs else None), stdout, stderr
