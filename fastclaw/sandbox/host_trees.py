"""Directories of this host as tar archives, for their way into a sandbox, and out of one again.

An archive that comes out of a sandbox is not trusted: it is unpacked by descriptors, each name beneath the directory
above it, so that no link of it, or of anybody who writes there meanwhile, leads anywhere else. Owners, set-user-ID
bits and devices are not taken over.
"""

import contextlib
import errno
import fnmatch
import io
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_COPY_BYTES = 1 << 20
_PERMISSIONS = 0o777
"""Of what is moved: neither set-user-ID, nor set-group-ID, nor sticky."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(directory: Path, into: IO[bytes], exclude: Iterable[str]) -> None:
    """Write what is in a directory as an archive; all of it is root's there, which is whoever unpacks it.

    Parameters:
        exclude: patterns of what is left out, as in docs/files.md.

    Raises:
        OSError: something in it cannot be read.
    """
    left_out = _matcher(exclude)
    at = directory

    def entry(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal at
        at = directory / member.name
        if member.name and left_out(member.name):
            return None
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk() or member.isfifo()):
            return None
        member.uid = member.gid = 0
        member.mode &= _PERMISSIONS  # set-user-ID would be of another user there
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(os.listdir(directory)):
            try:
                archive.add(directory / name, arcname=name, filter=entry)
            except OSError as error:
                if error.errno is None:  # tarfile's own, which names nothing
                    raise OSError(errno.EIO, "it became shorter while it was read", str(at)) from error
                raise


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path is left out: a pattern without `/` is about the last name, one with it about the whole path."""
    made = [(("/" in pattern), re.compile(_expression(pattern.strip("/")))) for pattern in patterns]
    return lambda path: any(
        expression.fullmatch(path if whole else path.rpartition("/")[2]) for whole, expression in made
    )


_TOKEN = re.compile(r"\\(?P<plain>.)|(?P<all>\*\*)|(?P<any>\*)|(?P<one>\?)|(?P<set>\[!?\]?[^\]]*\])|(?P<other>.)", re.S)


def _expression(pattern: str) -> str:
    made: list[str] = []
    for token in _TOKEN.finditer(pattern):
        kind, text = token.lastgroup, token[0]
        if kind == "set":
            made.append(fnmatch.translate(text).removesuffix(r"\Z").removesuffix(r"\z"))
        else:
            made.append({"all": ".*", "any": "[^/]*", "one": "[^/]"}.get(kind or "", re.escape(token[kind or 0])))
    return "".join(made)


def unpack(archive: IO[bytes], into: Path) -> None:
    """Unpack an archive into a directory, which is made where it is missing; what is there is replaced, directories
    are kept.

    Raises:
        OSError: EBADMSG for what is no archive, EXDEV for a member that would be elsewhere; or what the kernel says.
    """
    into.mkdir(parents=True, exist_ok=True)
    root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    directories: list[tuple[Sequence[str], tarfile.TarInfo]] = []
    try:
        with tarfile.open(fileobj=archive, mode="r|") as members:
            for member in members:
                names = _names(member.name)
                if not names:
                    continue
                with _naming(into.joinpath(*names)), _parent(root, names) as above:
                    _place(members, member, root, above, names[-1])
                if member.isdir():
                    directories.append((names, member))
        for names, member in reversed(directories):  # when all that is in them is there
            with _parent(root, names) as above, _opened(names[-1], above) as made:
                os.fchmod(made, member.mode & _PERMISSIONS)
                os.utime(made, (member.mtime, member.mtime))
    except tarfile.TarError as error:
        raise OSError(errno.EBADMSG, f"what came is no whole archive: {error}", str(into)) from error
    finally:
        os.close(root)


def _names(path: str) -> Sequence[str]:
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise OSError(errno.EXDEV, "a member of the archive would be outside", path)
    return names


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors within it say what they are about: those of a descriptor do not."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EXDEV):  # which have words of their own
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _opened(name: str, above: int) -> Iterator[int]:
    fd = os.open(name, _DIRECTORY, dir_fd=above)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _parent(root: int, names: Sequence[str]) -> Iterator[int]:
    """The directory in which a member is; those on the way are made."""
    with contextlib.ExitStack() as opened:
        at = root
        for name in names[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=at)
            at = opened.enter_context(_opened(name, at))
        yield at


def _place(members: tarfile.TarFile, member: tarfile.TarInfo, root: int, above: int, name: str) -> None:
    if member.isdir():
        _make_directory(name, above)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=above)
    if member.issym():
        os.symlink(member.linkname, name, dir_fd=above)
    elif member.islnk():
        others = _names(member.linkname)
        with _parent(root, others) as beside:
            os.link(others[-1], name, src_dir_fd=beside, dst_dir_fd=above, follow_symlinks=False)
    elif member.isfifo():
        os.mkfifo(name, member.mode & _PERMISSIONS, dir_fd=above)
    elif member.isreg():
        _write(members, member, name, above)


def _make_directory(name: str, above: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=above).st_mode):
            os.unlink(name, dir_fd=above)
            os.mkdir(name, 0o700, dir_fd=above)


def _copy(content: io.RawIOBase, file: IO[bytes], size: int) -> None:
    while size and (piece := content.read(min(size, _COPY_BYTES))):
        file.write(piece)
        size -= len(piece)


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, name: str, above: int) -> None:
    extracted: Any = members.extractfile(member)
    content = extracted.raw  # what buffers it could not go over holes: it seeks only where a whole stream can
    try:
        with open(os.open(name, _NEW_FILE, 0o600, dir_fd=above), "wb") as file:
            for start, size in getattr(member, "sparse", None) or [(0, member.size)]:
                content.seek(start)
                file.seek(start)
                _copy(content, file, size)
            file.truncate(member.size)  # holes stay holes: what has no bytes inside fills no disk here
            os.fchmod(file.fileno(), member.mode & _PERMISSIONS)
            file.flush()
            os.utime(file.fileno(), (member.mtime, member.mtime))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=above)  # a part of a file is none
        raise
