"""The directory of a build as the engine gets it: a tar archive that is made while it is sent, whatever its size.

Owns what of the directory goes along: its ignore file decides, as containerignore(5) says. Links are sent as links and
never followed; what is neither file, directory nor link stays here, and is never opened.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import engine_limits
from fastclaw.errors import IoError
from fastclaw.processes.file_helper import error_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

IGNORE_FILES = (".containerignore", ".dockerignore")
CONTAINERFILES = ("Containerfile", "Dockerfile")


class Ignored:
    """What the patterns of an ignore file leave out: the last that fits a path, or a directory above it, decides.

    Parameters:
        lines: of the file.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for line in lines:
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            takes_back = pattern.startswith("!")
            path = os.path.normpath(pattern[takes_back:].strip()).lstrip("/")
            if path != ".":
                with suppress(re.error):  # the engine reads the file too, and says what is wrong with it
                    self._rules.append((not takes_back, _regex(path)))
        self.takes_some_back = any(not leaves_out for leaves_out, _ in self._rules)

    def __call__(self, path: str) -> bool:
        """Whether a path, relative to the directory, is left out."""
        found = False
        for leaves_out, regex in self._rules:
            if leaves_out is not found and regex.match(path):
                found = leaves_out
        return found


def _regex(pattern: str) -> re.Pattern[str]:
    """Of a path itself, and of all beneath it. `**` stands for any directories, and at the end for anything."""
    beginning, ending = (pattern[:-2], ".*") if pattern.endswith("**") else (pattern, "(?:/.*)?")
    parts = re.findall(r"\*\*/?|\*|\?|\[[^\]]+\]|\\.|.", beginning, re.DOTALL)
    return re.compile(f"{''.join(map(_part, parts))}{ending}\\Z", re.DOTALL)


def _part(part: str) -> str:
    match part:
        case "**" | "**/":
            return "(?:.*/)?"
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
    if len(part) > 2 and part.startswith("["):
        return part.replace("\\", r"\\")
    return re.escape(part[1:] if len(part) == 2 and part.startswith("\\") else part)


class BuildContext(NamedTuple):
    """A directory to build from.

    Parameters:
        directory: on this host.
        containerfile: relative to it.
        ignored: what is left out.
    """

    directory: Path
    containerfile: str
    ignored: Ignored

    @classmethod
    def open(cls, directory: str, file: str | None) -> BuildContext:
        """See what there is.

        Raises:
            IoError: the directory, its Containerfile or its ignore file is not there, cannot be read, or is outside.
        """
        root = Path(directory)
        try:
            if not stat.S_ISDIR(root.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "", directory)
            return cls(root, _containerfile(root, file), _ignored(root))
        except OSError as error:
            raise error_for(error, str(error.filename or directory)) from error

    def archive(self, is_given_up: Callable[[], bool] = bool) -> Archive:
        """As it is sent."""
        return Archive(self, is_given_up)

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """What is sent, in the order of the names, each after the directory that it is in."""
        left = self._within("")
        while left:
            path = left.pop()
            found = os.lstat(self.directory / path)
            is_sent = self._is_sent(path)
            if is_sent and stat.S_IFMT(found.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                yield path, found
            if stat.S_ISDIR(found.st_mode) and (is_sent or self._may_have_some(path)):
                left += self._within(path)

    def _within(self, path: str) -> list[str]:
        """The entries of a directory, the last one first."""
        names = sorted(os.listdir(self.directory / path), reverse=True)
        return [f"{path}/{name}" if path else name for name in names]

    def _is_sent(self, path: str) -> bool:
        return path == self.containerfile or path in IGNORE_FILES or not self.ignored(path)

    def _may_have_some(self, path: str) -> bool:
        """Whether something in a directory that is left out may be sent all the same."""
        return self.ignored.takes_some_back or self.containerfile.startswith(f"{path}/")


def _containerfile(root: Path, file: str | None) -> str:
    """Where it is, relative to the directory; a link may not lead out."""
    wanted = (file,) if file is not None else CONTAINERFILES
    name = next((one for one in wanted if (root / one).exists()), wanted[0])
    path = root / os.path.normpath(name)
    if not path.resolve(strict=True).is_relative_to(root.resolve()):
        raise IoError(f"{path}: the name leads out of the directory", "outside", path=str(path), errno=None)
    if not path.is_file():
        raise IoError(f"{path}: it is no regular file", "not_regular", path=str(path), errno=None)
    return str(PurePosixPath(os.path.normpath(name)))


def _ignored(root: Path) -> Ignored:
    for name in IGNORE_FILES:
        path = root / name
        if path.is_file():
            return Ignored(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    return Ignored(())


class Archive:
    """A directory on its way to the engine, piece by piece.

    Where it cannot be read to its end, or nobody wants it any more, the engine gets a sound archive all the same, of a
    directory from which nothing can be built: of a body that breaks off Podman 4.3.1 would keep what had come, for ever
    (pkg/api/handlers/compat/images_build.go: it returns before it sees to the removal).

    Parameters:
        is_given_up: asked before each piece; bool() is False.

    Attributes:
        is_spoiled: nothing can be built from it.
        error: why it could not be read.
    """

    def __init__(self, context: BuildContext, is_given_up: Callable[[], bool]) -> None:
        self._context = context
        self._is_given_up = is_given_up
        self.is_spoiled = False
        self.error: IoError | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for path, found in self._context.entries():
                yield from self._member(path, found)
                if self._must_end():
                    break
        except OSError as error:
            self.error = error_for(error, str(error.filename))
        except IoError as error:
            self.error = error
        if self._must_end():
            self.is_spoiled = True
            yield _header(tarfile.TarInfo(self._context.containerfile))  # in the place of the real one
        yield tarfile.NUL * 2 * tarfile.BLOCKSIZE

    def _must_end(self) -> bool:
        return self.error is not None or self._is_given_up()

    def _member(self, path: str, found: os.stat_result) -> Iterator[bytes]:
        """Its header and content. Owners are root, as in any build: who has the directory is nobody's business."""
        root, member = self._context.directory, tarfile.TarInfo(path)
        member.mode, member.mtime = stat.S_IMODE(found.st_mode), max(int(found.st_mtime), 0)
        if stat.S_ISDIR(found.st_mode):
            member.type = tarfile.DIRTYPE
            yield _header(member)
        elif stat.S_ISLNK(found.st_mode):
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(root / path)
            yield _header(member)
        else:
            yield from self._file(root / path, member)

    def _file(self, path: Path, member: tarfile.TarInfo) -> Iterator[bytes]:
        """What it has now that it is open; a link, FIFO or device that took its place is refused, without waiting."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise IoError(f"{path}: it is no regular file", "not_regular", path=str(path), errno=None)
            member.size = left = found.st_size
            yield _header(member)
            while left:
                chunk = self._chunk(fd, path, min(left, engine_limits.IMAGE_CHUNK_BYTES))
                left -= len(chunk)
                yield chunk
        finally:
            os.close(fd)
        yield tarfile.NUL * (-member.size % tarfile.BLOCKSIZE)

    def _chunk(self, fd: int, path: Path, size: int) -> bytes:
        """The next piece of a file, or as much of nothing where it must end: its size has been said."""
        chunk = b""
        if not self._must_end():
            try:
                chunk = os.read(fd, size)
            except OSError as error:
                self.error = error_for(error, str(path))
            else:
                if not chunk:
                    text = f"{path}: it became shorter while it was read"
                    self.error = IoError(text, "wrong_size", path=str(path), errno=None)
        return chunk or bytes(size)


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
