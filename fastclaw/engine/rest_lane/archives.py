"""Archives as the engine's archive calls give and take them, and as the contract has them. Bytes in, bytes out.

What comes is hostile: an archive of a container, or of a caller. It is read whole, checked, and written anew, so that
the engine gets none that it could read in another way than it was checked.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import environment_limits
from fastclaw.files import FileStat
from fastclaw.processes.file_helper import BAD_ARCHIVE, OUTSIDE, TOO_LARGE, UNSUPPORTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fastclaw.files import FileType

_TYPES: dict[bytes, FileType] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.LNKTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "character_device",
    tarfile.BLKTYPE: "block_device",
}
_KEPT = ("file", "directory", "link", "fifo")
_MOST_LINKS = 40
"""Links on one way (path_resolution(7))."""


class Refused(Exception):
    """What is wrong: a code as the file helper has them, a word more, and the member's name."""

    def __init__(self, code: int, why: str = "", name: str = "", members: int = 0) -> None:
        super().__init__(code, why, name)
        self.code, self.why, self.name, self.members = code, why, name, members


class Member(NamedTuple):
    """A member and its content, where it is a file."""

    info: tarfile.TarInfo
    data: bytes


def members_of(archive: bytes, *, is_cut: bool = False) -> Iterator[Member]:
    """All of them, in their order.

    Parameters:
        is_cut: only the beginning of the archive is there: what is missing is no error.

    Raises:
        Refused: it is none, or larger than an answer may be.
    """
    said = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
            for info in opened:
                said += info.size
                if said > environment_limits.MAX_FILE_INLINE_BYTES and not is_cut:
                    raise Refused(TOO_LARGE, name=info.name)
                source = None if is_cut or not (info.isreg() or info.issparse()) else opened.extractfile(info)
                yield Member(info, b"" if source is None else source.read())
            if not is_cut and archive[opened.offset : opened.offset + 512] != b"\0" * 512:
                raise Refused(BAD_ARCHIVE, "truncated")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if not is_cut:
            raise Refused(BAD_ARCHIVE, str(error)) from error


def packed(members: Iterable[Member]) -> bytes:
    """An archive of them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def new_member(name: str, mode: int, data: bytes | None) -> Member:
    """A file, or with None a directory, of root's and of now."""
    info = tarfile.TarInfo(name)
    info.mode = mode
    if data is None:
        info.type = tarfile.DIRTYPE
    return Member(info, data or b"")


def type_of(info: tarfile.TarInfo) -> FileType:
    """What it is."""
    return "file" if info.issparse() else _TYPES.get(info.type, "unknown")


def stat_of(info: tarfile.TarInfo) -> FileStat:
    """What is said of it. How many names it has is not."""
    whole, _, part = str(info.pax_headers.get("mtime", info.mtime)).partition(".")
    return FileStat(
        type=type_of(info),
        size=info.size,
        mode=info.mode & 0o7777,
        uid=info.uid,
        gid=info.gid,
        mtime_ns=int(whole) * 10**9 + int(part[:9].ljust(9, "0") if part.isdecimal() else 0),
        nlink=1,
    )


# --- out of the environment ---


def below(archive: bytes, excluded: Callable[[str], bool]) -> list[Member]:
    """The members of a directory's archive, by their names beneath it; without sockets and devices.

    Raises:
        Refused: it is too large.
    """
    members = list(members_of(archive))
    if not members or not members[0].info.isdir():
        return [Member(_renamed(info, posixpath.basename(info.name)), data) for info, data in members]
    top = members[0].info.name
    found: list[Member] = []
    for info, data in members[1:]:
        name = _beneath(info.name, top)
        if not name or excluded(name) or type_of(info) not in _KEPT:
            continue
        if info.islnk():
            info.linkname = _beneath(info.linkname, top)
        found.append(Member(_renamed(info, name), data))
    return found


def _beneath(name: str, top: str) -> str:
    return posixpath.relpath(name, top) if name.startswith(f"{top.rstrip('/')}/") else ""


def _renamed(info: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    info.name = name
    info.pax_headers = {key: value for key, value in info.pax_headers.items() if key == "mtime"}
    return info


def excluder(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path beneath the directory, or a directory on its way, is left out."""
    read = [("/" in pattern, re.compile(_regex(pattern.removeprefix("/")), re.DOTALL)) for pattern in patterns]

    def is_excluded(path: str) -> bool:
        parts = path.split("/")
        ways = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        steps = list(zip(ways, parts, strict=True))
        return any(shape.fullmatch(way if has_slash else part) for has_slash, shape in read for way, part in steps)

    return is_excluded


_PIECE = re.compile(r"\*\*/?|\*|\?|\[[!^]?[^/]?[^]/]*\]|\\.|.", re.DOTALL)


def _regex(pattern: str) -> str:
    return "".join(_piece(piece) for piece in _PIECE.findall(pattern))


def _piece(piece: str) -> str:
    known = {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    if piece in known:
        return known[piece]
    if len(piece) > 2 and piece[0] == "[":
        negates = piece[1] in "!^"
        inside = piece[2 if negates else 1 : -1].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
        return f"(?!/)[{'^' if negates else ''}{inside}]"
    return re.escape(piece[1] if len(piece) == 2 and piece[0] == "\\" else piece)


# --- into the environment ---


def checked(archive: bytes) -> list[Member]:
    """The members of a caller's archive, as the engine may have them.

    Raises:
        Refused: it is none; or a member would be written elsewhere, or is not made, by its name.
    """
    links: dict[str, str] = {}
    found: list[Member] = []
    for info, data in members_of(archive):
        name = _tidied(info.name, len(found))
        if type_of(info) not in _KEPT:
            raise Refused(UNSUPPORTED, "device", info.name, len(found))
        if not name:
            continue
        parent = posixpath.dirname(name)
        if _leads_out(parent, links):
            raise Refused(OUTSIDE, "", info.name, len(found))
        if info.islnk():
            info.linkname = _tidied(info.linkname, len(found), info.name)
            if _leads_out(posixpath.dirname(info.linkname), links):
                raise Refused(OUTSIDE, "", info.name, len(found))
        links.pop(name, None)
        if info.issym():
            links[name] = info.linkname
        found.append(Member(_renamed(info, name), data))
    return found


def _tidied(name: str, members: int, said: str = "") -> str:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise Refused(OUTSIDE, "", said or name, members)
    return "/".join(part for part in parts if part not in ("", "."))


def _leads_out(path: str, links: dict[str, str]) -> bool:
    """Whether the way to a directory goes out of the archive by links that the archive itself has made."""
    left = path.split("/")
    at: list[str] = []
    for _ in range(_MOST_LINKS + len(left)):
        if not left:
            return False
        part = left.pop(0)
        if part == "..":
            if not at:
                return True
            at.pop()
        elif part not in ("", "."):
            target = links.get("/".join([*at, part]))
            if target is None:
                at.append(part)
            elif target.startswith("/"):
                return True
            else:
                left = target.split("/") + left
    return True
