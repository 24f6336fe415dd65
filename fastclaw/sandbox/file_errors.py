"""Errors of files as Python has them: `FileNotFoundError` and its like, with the path that the caller gave."""

import errno
import os

from fastclaw.errors import IoError

_NUMBERS = {
    "bad_archive": errno.EBADMSG,
    "bad_path": errno.EINVAL,
    "busy": errno.EBUSY,
    "exists": errno.EEXIST,
    "file_busy": errno.ETXTBSY,
    "is_directory": errno.EISDIR,
    "name_too_long": errno.ENAMETOOLONG,
    "no_space": errno.ENOSPC,
    "not_directory": errno.ENOTDIR,
    "not_empty": errno.ENOTEMPTY,
    "not_found": errno.ENOENT,
    "not_regular": errno.EINVAL,
    "other_file_system": errno.EXDEV,
    "outside": errno.EXDEV,
    "permission_denied": errno.EACCES,
    "read_only": errno.EROFS,
    "too_large": errno.EFBIG,
    "too_many_links": errno.ELOOP,
    "unsupported": errno.EOPNOTSUPP,
    "wrong_size": errno.EIO,
}
"""Reasons of `docs/files.md` as the kernel's numbers, for the errors that come without one."""

_SAID_BY_NUMBER = frozenset({errno.EINVAL, errno.EXDEV, errno.EBADMSG, errno.EIO})
"""Numbers whose own words would hide what is meant."""


class FileTooLarge(OSError):
    """A file that has more than the given limit, or than there can be in one.

    Attributes:
        size: bytes that it has, where that is known.
    """

    size: int | None = None


def os_error(error: IoError, path: str) -> OSError | None:
    """What Python raises for it, or None where it is about no file.

    Parameters:
        path: as the caller gave it.
    """
    told = error.data.get("errno")
    number = told if isinstance(told, int) and told else _NUMBERS.get(error.reason)
    if number is None:
        return None
    about = str(error.data.get("name") or "")
    named = os.path.join(path, about) if about else str(error.data.get("path") or path)
    if error.reason == "too_large":
        return _too_large(error, named)
    words = str(error).removeprefix(IoError.prefix).removeprefix(f"{path}: ")
    return OSError(number, words if number in _SAID_BY_NUMBER else os.strerror(number), named)


def _too_large(error: IoError, path: str) -> FileTooLarge:
    size = error.data.get("size")
    more = f" ({size} bytes)" if isinstance(size, int) else ""
    made = FileTooLarge(errno.EFBIG, os.strerror(errno.EFBIG) + more, path)
    made.size = size if isinstance(size, int) else None
    return made
