"""What the file helper is told, and what its outcome means. Pure; the other side is spawner/c/files.

A command of ours in the environment: the spawner's own binary. It says by its exit code and by one line on stderr what
came of it; contents and archives go by stdin and stdout.
"""

from __future__ import annotations

import base64
import binascii
import errno
from typing import TYPE_CHECKING, NamedTuple

from msgspec import UNSET, structs

from fastclaw import environment_limits, limits
from fastclaw.errors import InvalidParams, IoError
from fastclaw.files import (
    DirEntry,
    DirPage,
    FileContent,
    FileStat,
    ReadFile,
    TarContent,
    WriteFile,
    WriteTar,
)
from fastclaw.processes.run_output import json_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastclaw.files import FileRequest, FileType, ListDir, MakeDir, Move, ReadTar, Remove, StatFile

PROGRAM = "/proc/self/exe"
"""The spawner's binary, as a child of the spawner calls it: found on every lane, and by users who may not look into the
directory that it is in."""

NOT_REGULAR, TOO_LARGE, BAD_ARCHIVE, OUTSIDE, WRONG_SIZE, UNSUPPORTED, USAGE = range(200, 207)
"""Exit codes that are no errno (spawner/c/files/files.h)."""

_SPECIAL = {
    NOT_REGULAR: ("not_regular", None, "it is no regular file"),
    TOO_LARGE: ("too_large", errno.EFBIG, "it is larger than `limit`"),
    BAD_ARCHIVE: ("bad_archive", None, "it is no sound archive"),
    OUTSIDE: ("outside", None, "the name leads out of the directory"),
    WRONG_SIZE: ("wrong_size", None, "what came is not `size` bytes"),
    UNSUPPORTED: ("unsupported", None, "devices, and members of unknown types, are not made"),
}

_REASONS = {
    errno.ENOENT: "not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EISDIR: "is_directory",
    errno.ENOTDIR: "not_directory",
    errno.EEXIST: "exists",
    errno.ENOTEMPTY: "not_empty",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EFBIG: "too_large",
    errno.EROFS: "read_only",
    errno.ENAMETOOLONG: "name_too_long",
    errno.ELOOP: "too_many_links",
    errno.EMLINK: "too_many_links",
    errno.EXDEV: "other_file_system",
    errno.EBUSY: "busy",
    errno.ETXTBSY: "file_busy",
    errno.ENXIO: "not_regular",
    errno.ENODEV: "not_regular",
    errno.EINVAL: "bad_path",
    errno.ENOMEM: "overloaded",
    errno.EMFILE: "overloaded",
    errno.ENFILE: "overloaded",
    errno.EAGAIN: "overloaded",
}

_TEXTS = {
    "not_found": "no such file or directory",
    "permission_denied": "permission denied",
    "is_directory": "it is a directory",
    "not_directory": "it, or something on the way to it, is no directory",
    "exists": "it is there already",
    "not_empty": "the directory is not empty; `recursive` removes what is in it",
    "no_space": "no space is left",
    "too_large": "the file would be larger than is permitted",
    "read_only": "the file system is read-only",
    "name_too_long": "the name, or the depth, is more than is possible",
    "too_many_links": "too many links",
    "other_file_system": "it is on another file system; copy it by read_tar and write_tar",
    "busy": "something is mounted there",
    "file_busy": "it is a program that runs",
    "not_regular": "it is no regular file",
    "bad_path": "that cannot be done with such a path",
    "overloaded": "there is not enough memory, or there are too many open files",
}

_TYPES: dict[str, FileType] = {
    "f": "file",
    "d": "directory",
    "l": "link",
    "p": "fifo",
    "s": "socket",
    "c": "character_device",
    "b": "block_device",
}


# --- what it is told ---


def read_words(request: ReadFile) -> list[str]:
    """For `read_file`."""
    kind = "whole" if request.offset is None else "part"
    return ["read", request.path, str(request.offset or 0), str(read_limit(request)), kind]


def read_limit(request: ReadFile) -> int:
    """How many bytes are wanted at most.

    Raises:
        InvalidParams: more than an answer can have.
    """
    if request.stream:
        return 2**63 - 1 if request.limit is None else request.limit
    most = environment_limits.FILE_INLINE_BYTES if request.limit is None else request.limit
    highest = environment_limits.MAX_FILE_INLINE_BYTES
    if most > highest:
        text = f"$.limit is over {highest} bytes, the most that an answer has; use `stream`"
        raise InvalidParams(text, path="$.limit")
    return most


def write_words(request: WriteFile, size: int | None) -> list[str]:
    """For `write_file`. `size`: what will come, where that is known."""
    flags = ("p" if request.parents else "") + ("a" if request.atomic else "")
    return ["write", request.path, _number(request.mode), _number(size), flags]


def stat_words(request: StatFile) -> list[str]:
    """For `stat`."""
    return ["stat", request.path, "follow" if request.follow else "link"]


def list_words(request: ListDir) -> list[str]:
    """For `list_dir`.

    Raises:
        InvalidParams: `after` is no `next`.
    """
    after = "-"
    if request.after is not None:
        try:
            after = base64.b64decode(request.after, validate=True).hex() or "-"
        except (binascii.Error, ValueError) as error:
            raise InvalidParams("$.after is no `next` of an answer", path="$.after") from error
    return ["list", request.path, str(request.limit), after]


def make_words(request: MakeDir) -> list[str]:
    """For `make_dir`."""
    flags = ("p" if request.parents else "") + ("e" if request.exist_ok else "")
    return ["mkdir", request.path, _number(request.mode), flags]


def remove_words(request: Remove) -> list[str]:
    """For `remove`."""
    return ["remove", request.path, "r" if request.recursive else "-"]


def move_words(request: Move) -> list[str]:
    """For `move`."""
    return ["move", request.path, request.to, "o" if request.overwrite else "-"]


def pack_words(request: ReadTar) -> list[str]:
    """For `read_tar`."""
    return ["pack", request.path, *request.exclude]


def unpack_words(request: WriteTar) -> list[str]:
    """For `write_tar`."""
    return ["unpack", request.path]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def check_request(request: FileRequest, words: Sequence[str]) -> None:
    """Refuse what no argument can carry.

    Raises:
        InvalidParams: a NUL.
    """
    if any("\0" in word for word in words):
        name = "$.path" if "\0" in request.path else "$"
        raise InvalidParams(f"{name} holds a NUL byte", path=name)


def content_of(request: WriteFile | WriteTar) -> bytes:
    """What is to be written, out of the params.

    Raises:
        InvalidParams: both forms at once, base64 that is none, or content beside `stream`.
    """
    text = request.text if isinstance(request, WriteFile) else None
    if request.base64 is not None and text is not None:
        raise InvalidParams("$.text and $.base64 are both given; one of them is the content", path="$.base64")
    if request.stream and (request.base64 is not None or text is not None):
        name = "$.base64" if text is None else "$.text"
        raise InvalidParams(f"{name} is given beside $.stream; the content comes by the socket", path=name)
    if text is not None:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise InvalidParams("$.text is no text; send it as $.base64", path="$.text") from error
    try:
        return base64.b64decode(request.base64 or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidParams(f"$.base64 is no base64: {error}", path="$.base64") from error


# --- what it says ---


class Outcome(NamedTuple):
    """The line on stderr.

    Parameters:
        code: 0, an errno, or one of the numbers above.
        told, size: a number of entries or members, or a file's size; and bytes.
        why: a word more.
        name: what it is about, beneath the path of the request; empty: that itself.
    """

    code: int
    told: int
    size: int
    why: str
    name: str


def read_outcome(line: bytes) -> Outcome | None:
    """None: it did not get to say it."""
    fields = line.removesuffix(b"\n").split(b"\t", 4)
    numbers = fields[:3]
    if len(fields) != 5 or not all(number.isdigit() and len(number) <= 20 for number in numbers):
        return None
    code, told, size = map(int, numbers)
    return Outcome(code, told, size, fields[3].decode("ascii", "replace"), fields[4].decode("utf-8", "replace"))


class Failure(NamedTuple):
    """Why a call for a file failed, in the words of the contract."""

    reason: str
    errno: int | None
    text: str


def error_for(error: OSError, path: str) -> IoError:
    """The error of what this process itself could not do with a file of its host."""
    failure = failure_of(error.errno or 0)
    return IoError(f"{path}: {failure.text}", failure.reason, errno=failure.errno, path=path)


def failure_of(code: int) -> Failure:
    """What an exit code other than 0 means."""
    if code in _SPECIAL:
        return Failure(*_SPECIAL[code])
    reason = _REASONS.get(code, "io_error")
    return Failure(reason, code if code < NOT_REGULAR else None, _TEXTS.get(reason, f"error {code}"))


def error_of(request: FileRequest, outcome: Outcome) -> IoError:
    """The error of a call that has failed: with the path as it was asked for, and what was done before."""
    path, failure = request.path, failure_of(outcome.code)
    about = f"{path}: {outcome.name}" if outcome.name else path
    why = f" ({outcome.why})" if outcome.why else ""
    data: dict[str, object] = {"errno": failure.errno, "path": path}
    if outcome.name:
        data["name"] = outcome.name
    if isinstance(request, ReadFile) and outcome.code == TOO_LARGE:
        data["size"] = outcome.told
    if isinstance(request, (WriteFile, WriteTar)):
        data["written"] = outcome.size
    if isinstance(request, WriteTar):
        data["members"] = outcome.told
    return IoError(f"{about}: {failure.text}{why}", failure.reason, **data)


def content(data: bytes, size: int) -> FileContent:
    """A file's content, in the form that is shorter on the wire."""
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError:
        text = None
    encoded_length = (len(data) + 2) // 3 * 4
    if text is None or (len(data) > limits.KIB and json_length(data) > encoded_length):
        return FileContent(text=None, base64=base64.b64encode(data).decode(), size=size)
    return FileContent(text=text, size=size)


def archive(data: bytes, outcome: Outcome) -> TarContent:
    """An archive, with what the outcome says of it."""
    changed = outcome.name if outcome.why == "changed" else UNSET
    return TarContent(base64=base64.b64encode(data).decode(), members=outcome.told, changed=changed)


def stat_of(data: bytes) -> FileStat:
    """What `stat` said."""
    [(_, stat)] = _entries(data)
    return stat


def page_of(data: bytes, there: int) -> DirPage:
    """What `list` said. `there`: entries after the page's beginning, of which it shows the first."""
    return page(_entries(data), there)


def page(found: list[tuple[bytes, FileStat]], there: int) -> DirPage:
    """A page with these entries. `there`: how many there are from its beginning on."""
    more = base64.b64encode(found[-1][0]).decode() if found and there > len(found) else UNSET
    return DirPage(entries=[_entry(name, stat) for name, stat in found], next=more)


def _entry(name: bytes, stat: FileStat) -> DirEntry:
    fields = structs.asdict(stat)
    try:
        return DirEntry(name=str(name, "utf-8"), **fields)
    except UnicodeDecodeError:
        return DirEntry(name=None, name_base64=base64.b64encode(name).decode(), **fields)


def _entries(data: bytes) -> list[tuple[bytes, FileStat]]:
    """Each is numbers, name and target."""
    parts = data.split(b"\0")[:-1]
    return [(parts[at + 1], _stat(parts[at].decode(), parts[at + 2])) for at in range(0, len(parts), 3)]


def _stat(numbers: str, target: bytes) -> FileStat:
    kind, size, mode, uid, gid, nlink, mtime_ns = numbers.split(" ")
    return FileStat(
        type=_TYPES.get(kind, "unknown"),
        size=int(size),
        mode=int(mode),
        uid=int(uid),
        gid=int(gid),
        mtime_ns=int(mtime_ns),
        nlink=int(nlink),
        target=target.decode("utf-8", "replace") if kind == "l" else UNSET,
    )
