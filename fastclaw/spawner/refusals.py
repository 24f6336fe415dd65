"""Says in the product's words why the kernel did not start a command: the one seam from errno to `ExecFailed`.

Pure apart from `os.strerror`. Sources: execve(2), chdir(2), clone(2), pipe(2), setrlimit(2), pty(7).
"""

from __future__ import annotations

import errno
import os
from errno import EINVAL, EPERM
from typing import TYPE_CHECKING

from fastclaw.errors import ExecFailed
from fastclaw.linux.executable import why_refused
from fastclaw.spawner import frames

if TYPE_CHECKING:
    from fastclaw.linux.executable import Finding
    from fastclaw.processes.lane import StartSpec

_OVERLOADED = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC}
_BY_ERRNO = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.ENOEXEC: "not_executable",
    errno.EINVAL: "not_executable",
    errno.ELIBBAD: "not_executable",
    errno.EISDIR: "not_executable",
    errno.ETXTBSY: "file_busy",
    errno.E2BIG: "too_long",
    errno.ENAMETOOLONG: "too_long",
    **dict.fromkeys(_OVERLOADED, "overloaded"),
}

_OF_THE_FILE = {"not_found", "permission_denied", "not_executable"}
"""Reasons for which its file is to blame, or one that it needs."""


def step_refused(step: int, errno: int, spec: StartSpec, found: Finding | None = None) -> ExecFailed:
    """What a spawner said of a start: the step that failed, and why.

    Parameters:
        step: one of `frames`'s STEPs.
        spec: what was to be started.
        found: what was seen of its file.
    """
    words = os.strerror(errno)
    if step == frames.STEP_EXEC:
        reason = _BY_ERRNO.get(errno, "io_error")
        if reason in _OF_THE_FILE and found is not None:
            words = why_refused(found, is_format=reason == "not_executable") or words
        return ExecFailed(f"{spec.cmd[0]!r}: {words}", reason)
    if errno in _OVERLOADED:
        return resources_refused(OSError(errno, words))
    if step == frames.STEP_ADOPT:
        return ExecFailed(f"the worker ended before template {spec.template!r} had handed it over", "template_gone")
    if step == frames.STEP_DIRECTORY:
        return ExecFailed(f"working directory {spec.working_dir!r}: {words}", "bad_working_dir")
    if step == frames.STEP_USER and errno == EINVAL:  # setuid(2)
        return ExecFailed(f"user {spec.user!r}: the environment's user namespace has no such id", "unknown_user")
    what = {
        frames.STEP_TTY: "no pseudo-terminal",
        frames.STEP_LIMIT: f"limits {spec.limits}",
        frames.STEP_USER: f"user {spec.user!r}",
    }.get(step, "the process")
    if step == frames.STEP_LIMIT and errno == EPERM:
        words += "; a process here may lower its hard limits and not raise them"
    return ExecFailed(f"{what}: {words}", "permission_denied" if errno == EPERM else "io_error")


def resources_refused(error: OSError) -> ExecFailed:
    """No pipes or no process are to be had."""
    reason = "overloaded" if error.errno in _OVERLOADED else "io_error"
    words = os.strerror(error.errno) if error.errno else str(error)
    return ExecFailed(f"there is no room for one more process: {words}", reason)


def text_refused(command: str, error: ValueError) -> ExecFailed:
    """An argument or variable that no process can be given: a NUL inside, or no valid text."""
    return ExecFailed(f"{command!r}: {error}", "invalid_params")
