"""Says in the product's words why the kernel did not start a command: the one seam from errno to `ExecFailed`.

Pure apart from `os.strerror`. Sources: execve(2), chdir(2), clone(2), pipe(2), setrlimit(2), pty(7).
"""

from __future__ import annotations

import errno
import os
from errno import EPERM
from typing import TYPE_CHECKING

from fastclaw.errors import ExecFailed
from fastclaw.protocol import spawner as frames

if TYPE_CHECKING:
    from fastclaw.lane import StartSpec

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
    errno.ETXTBSY: "not_executable",
    errno.E2BIG: "too_long",
    errno.ENAMETOOLONG: "too_long",
    **dict.fromkeys(_OVERLOADED, "overloaded"),
}


def step_refused(step: int, errno: int, spec: StartSpec) -> ExecFailed:
    """What a spawner said of a start: the step that failed, and why.

    Parameters:
        step: one of `protocol.spawner`'s STEPs.
        spec: what was to be started.
    """
    words = os.strerror(errno)
    if step == frames.STEP_EXEC:
        return ExecFailed(f"{spec.cmd[0]!r}: {words}", _BY_ERRNO.get(errno, "io_error"))
    if errno in _OVERLOADED:
        return resources_refused(OSError(errno, words))
    if step == frames.STEP_ADOPT:
        return ExecFailed(f"the worker ended before template {spec.template!r} had handed it over", "template_gone")
    if step == frames.STEP_DIRECTORY:
        return ExecFailed(f"working directory {spec.working_dir!r}: {words}", "bad_working_dir")
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
