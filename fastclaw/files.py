"""The words of the contract for files: what each call asks for, what it answers, and the interface `Files`.

Paths are those inside the environment; a relative one starts from where a process would start that names no directory.
Nothing here does I/O. How files are reached is decided in `processes/file_calls.py` and `engine/rest_lane/archives.py`.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from fastclaw import environment_limits
from fastclaw.runtime import ExecResult, User

Path = Annotated[str, Meta(min_length=1)]
Mode = Annotated[int, Meta(ge=0, le=0o7777)]
"""Permission bits (inode(7)), as a number: 420 is 0644."""
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]
InlineBytes = Annotated[int, Meta(ge=0, le=environment_limits.MAX_FILE_INLINE_BYTES)]
FileType = Literal["file", "directory", "link", "fifo", "socket", "character_device", "block_device", "unknown"]


class FileRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all calls for files have.

    Parameters:
        environment: the environment's name; None is the main one.
        user: as which user, a name or `uid[:gid]` inside; None is the environment's own.
    """

    path: Path
    environment: str | None = None
    user: User | None = None


class ReadFile(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """The content of a file, as it is when it is opened.

    Parameters:
        offset: from which byte on; None is the whole file.
        limit: bytes. Of a whole file, more than that is `too_large`; with an `offset`, as much as that is given.
            None: as much as an answer may have by default, and as a stream without a limit.
        stream: by sockets instead of in the answer.
    """

    offset: Bytes | None = None
    limit: Bytes | None = None
    stream: bool = False


class WriteFile(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """The whole content of a file, which is made where it is not there.

    Parameters:
        text, base64: the content, as one of the two; none of them is an empty file.
        mode: its mode afterwards; None leaves that of a file that is there, and else what is usual.
        parents: whether missing directories on the way are made.
        atomic: into a new file that takes the place of the old one when it is whole.
        stream: the content comes by a socket.
        size: with `stream`: how many bytes will come; any other number is `wrong_size`.
    """

    text: str | None = None
    base64: str | None = None
    mode: Mode | None = None
    parents: bool = False
    atomic: bool = False
    stream: bool = False
    size: Bytes | None = None


class StatFile(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """What is said of a file. `follow`: of what a link leads to, not of the link."""

    follow: bool = True


class ListDir(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """A page of a directory's entries, in the order of their names' bytes.

    Parameters:
        limit: entries.
        after: the `next` of the page before.
    """

    limit: Annotated[int, Meta(ge=1, le=environment_limits.MAX_DIR_ENTRIES)] = environment_limits.DIR_ENTRIES
    after: str | None = None


class MakeDir(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """A new directory.

    Parameters:
        mode: its mode; None is what is usual.
        parents: whether missing directories on the way are made.
        exist_ok: whether it may be there already.
    """

    mode: Mode | None = None
    parents: bool = False
    exist_ok: bool = False


class Remove(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """A file, a link, an empty directory, or with `recursive` a whole tree."""

    recursive: bool = False


class Move(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """Another name for what is at `path`. `overwrite`: in the place of what is at `to`."""

    to: Path
    overwrite: bool = False


class ReadTar(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """A directory, or a file, as an archive.

    Parameters:
        exclude: patterns of what is left out, with all that is in it.
        stream: by sockets instead of in the answer.
    """

    exclude: list[str] = []
    stream: bool = False


class WriteTar(FileRequest, frozen=True, kw_only=True, omit_defaults=True):
    """An archive into a directory that is there.

    Parameters:
        base64: the archive.
        stream: it comes by a socket instead.
    """

    base64: str | None = None
    stream: bool = False


class FileContent(Struct, frozen=True, kw_only=True):
    """A file's content.

    Parameters:
        text: None where `base64` is there instead.
        size: bytes of the whole file when it was opened; 0 where the kernel makes it up.
    """

    text: str | None
    base64: str | UnsetType = UNSET
    size: int


class Written(Struct, frozen=True, kw_only=True):
    """How many bytes of content were written."""

    size: int


class Unpacked(Written, frozen=True, kw_only=True):
    """The same of an archive, and in how many members."""

    members: int


class FileStat(Struct, frozen=True, kw_only=True):
    """What is said of a file (inode(7)).

    Parameters:
        mode: permission bits.
        mtime_ns: nanoseconds since 1970, of the last change.
        nlink: how many names it has.
        target: where a link leads. Text; what of it is no UTF-8 is replaced.
    """

    type: FileType
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    target: str | UnsetType = UNSET


class DirEntry(FileStat, frozen=True, kw_only=True):
    """An entry of a directory.

    Parameters:
        name: None where it is no UTF-8.
        name_base64: present instead.
    """

    name: str | None
    name_base64: str | UnsetType = UNSET


class DirPage(Struct, frozen=True, kw_only=True):
    """Entries of a directory. `next`: present where there are more, for `after`."""

    entries: list[DirEntry]
    next: str | UnsetType = UNSET


class TarContent(Struct, frozen=True, kw_only=True):
    """An archive.

    Parameters:
        members: how many are in it.
        changed: present where a file became shorter while it was read, so that its end is zeros: the first such one.
    """

    base64: str
    members: int
    changed: str | UnsetType = UNSET


class Files(ABC):
    """The files of one environment. Called concurrently.

    A call that is cancelled has ended what it began before the cancellation goes on. All raise:

        IoError: with `errno`, `path` and a reason of the contract.
        ExecFailed: nothing can be started in the environment, or `unknown_user`.
        InvalidParams: `unsupported`, it is not offered here; or a text that no path can have.
    """

    @abstractmethod
    async def read_file(self, request: ReadFile) -> FileContent | ExecResult:
        """The content; with `stream` the process whose stdout it is."""

    @abstractmethod
    async def write_file(self, request: WriteFile) -> Written | ExecResult:
        """How much was written; with `stream` the process whose stdin takes the content."""

    @abstractmethod
    async def stat(self, request: StatFile) -> FileStat:
        """What is said of a file."""

    @abstractmethod
    async def list_dir(self, request: ListDir) -> DirPage:
        """A page of entries."""

    @abstractmethod
    async def make_dir(self, request: MakeDir) -> None:
        """Make a directory."""

    @abstractmethod
    async def remove(self, request: Remove) -> None:
        """Remove a file or a tree. Links are never followed; what is mounted in the tree is left, and is `busy`."""

    @abstractmethod
    async def move(self, request: Move) -> None:
        """Give a file or a tree another name, on the same file system."""

    @abstractmethod
    async def read_tar(self, request: ReadTar) -> TarContent | ExecResult:
        """The archive; with `stream` the process whose stdout it is."""

    @abstractmethod
    async def write_tar(self, request: WriteTar) -> Unpacked | ExecResult:
        """What was written; with `stream` the process whose stdin takes the archive."""


class FileRuntime(ABC):
    """What a runtime is besides that offers files."""

    @abstractmethod
    def files(self, environment: str | None = None) -> Files:
        """Those of one environment; None is `main`.

        Raises:
            MethodNotFound: it offers none.
            InvalidState: `unknown_environment`, `environment_busy`.
        """
