"""Says in the product's words why the kernel did not start a command: the one seam from errno to `ExecFailed`.

Pure apart from `os.strerror`. Sources: execve(2), chdir(2), fork(2), pipe(2), and CPython's subprocess, which gives
the `filename` of the step that failed.
"""

from __future__ import annotations

import errno
import os

from fastclaw.errors import ExecFailed

_OVERLOADED = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
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
_USER_ERRNOS = {errno.EPERM, errno.EINVAL}


def exec_refused(command: str, error: OSError) -> ExecFailed:
    """The command itself cannot be run."""
    return _failed(f"{command!r}: {_words(error)}", _BY_ERRNO.get(error.errno or 0, "io_error"))


def directory_refused(directory: str, error: OSError) -> ExecFailed:
    """The working directory cannot be entered."""
    reason = "overloaded" if error.errno in _OVERLOADED else "bad_working_dir"
    return _failed(f"working directory {directory!r}: {_words(error)}", reason)


def user_refused(user: str, error: OSError) -> ExecFailed:
    """The process may not become this user."""
    reason = "unknown_user" if error.errno == errno.EINVAL else "permission_denied"
    return _failed(f"user {user!r}: {_words(error)}", reason)


def resources_refused(error: OSError) -> ExecFailed:
    """No pipes or no process are to be had."""
    reason = "overloaded" if error.errno in _OVERLOADED else "io_error"
    return _failed(f"the host has no room for one more process: {_words(error)}", reason)


def text_refused(command: str, error: ValueError) -> ExecFailed:
    """An argument or variable that no process can be given: a NUL inside, `=` in a name, or no valid text."""
    return _failed(f"{command!r}: {error}", "invalid_params")


def start_refused(command: str, directory: str | None, user: str | None, error: OSError) -> ExecFailed:
    """Tell apart which step of `subprocess.Popen` failed.

    `filename` is the command where exec failed, and the directory where a step before it did. The directory must
    have been handed over as bytes, so that the two differ even where their text is the same. setuid's errors are
    none that chdir has.
    """
    if error.filename is None or isinstance(error.filename, bytes):
        if user is not None and error.errno in _USER_ERRNOS:
            return user_refused(user, error)
        if directory is not None and isinstance(error.filename, bytes):
            return directory_refused(directory, error)
        return resources_refused(error)
    return exec_refused(command, error)


def _failed(message: str, reason: str) -> ExecFailed:
    return ExecFailed(message, reason)


def _words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
