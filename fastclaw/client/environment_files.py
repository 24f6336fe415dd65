"""The files of one environment, as a supervisor has them: bytes in and out, whole or by a stream.

What is small goes in one call; what is large by a stream, without the caller's doing.
"""

import base64
import binascii
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Struct, UnsetType

from fastclaw import environment_limits
from fastclaw.client.answers import Shape, given, shaped
from fastclaw.client.file_stream import FileStream, all_of, put_all
from fastclaw.errors import InvalidParams, IoError, ProtocolError
from fastclaw.files import DirEntry, DirPage, FileContent, FileStat, TarContent, Unpacked, Written
from fastclaw.runtime import ExecResult

if TYPE_CHECKING:
    from fastclaw.client.runtime_client import RuntimeClient


class _Nothing(Struct):
    """An answer without fields."""


class EnvironmentFiles:
    """The calls for files of one environment. All raise IoError, with `reason`, `errno` and `path` of the contract, and
    ExecFailed, InvalidParams, InvalidState, MethodNotFound as `exec` does.

    Parameters that most of them have: `path` is one inside, relative to the environment's default directory; `user` a
    name or `uid[:gid]` inside, None for the environment's own.

    Attributes:
        environment: its name; None is `main`.
    """

    environment: str | None = None

    @property
    @abstractmethod
    def client(self) -> "RuntimeClient":
        """What sends the calls."""

    async def _call(self, method: str, shape: type[Shape], **params: Any) -> Shape:
        answer = await self.client.call(method, given(environment=self.environment, **params), None)
        return shaped(answer, shape, method)

    async def _stream(self, method: str, path: str, *, writes: bool, **params: Any) -> FileStream:
        started = await self._call(method, ExecResult, path=path, stream=True, **params)
        return FileStream(self.client, started, path, writes=writes)

    # --- contents ---

    async def read_file(
        self, path: str, *, user: str | None = None, offset: int | None = None, limit: int | None = None
    ) -> bytes:
        """The content of a file.

        Parameters:
            offset: from which byte on; with it, `limit` is how much of it is wanted.
            limit: bytes; without `offset`, a larger file is an error. None: no limit.

        Raises:
            IoError: `too_large`, and the other reasons.
        """
        small = min(
            environment_limits.FILE_INLINE_BYTES if limit is None else limit, environment_limits.FILE_INLINE_BYTES
        )
        if offset is not None and small != limit:
            return await all_of(await self.file_reader(path, user=user, offset=offset, limit=limit))
        try:
            return await self._read_small(path, user=user, offset=offset, limit=small)
        except IoError as error:
            told = error.data.get("size")
            size = told if isinstance(told, int) else 0
            if error.reason != "too_large" or (limit is not None and max(size, small + 1) > limit):
                raise
        try:
            return await all_of(await self.file_reader(path, user=user, limit=limit), size)
        except InvalidParams as error:
            if error.reason != "unsupported":
                raise
        most = environment_limits.MAX_FILE_INLINE_BYTES
        return await self._read_small(path, user=user, offset=offset, limit=min(most, limit or most))

    async def _read_small(self, path: str, **params: Any) -> bytes:
        content = await self._call("read_file", FileContent, path=path, **params)
        return _bytes(content.text, content.base64, "read_file")

    async def file_reader(
        self, path: str, *, user: str | None = None, offset: int | None = None, limit: int | None = None
    ) -> FileStream:
        """The content of a file, as a stream."""
        return await self._stream("read_file", path, writes=False, user=user, offset=offset, limit=limit)

    async def write_file(
        self,
        path: str,
        data: bytes | str,
        *,
        user: str | None = None,
        mode: int | None = None,
        parents: bool = False,
        atomic: bool = False,
    ) -> int:
        """Write the whole content of a file; how many bytes that were.

        Parameters:
            mode: of the file afterwards.
            parents: make missing directories.
            atomic: whoever reads sees the old content or the new one, never a part.
        """
        data = data.encode() if isinstance(data, str) else data
        more = given(user=user, mode=mode, parents=parents or None, atomic=atomic or None)
        if len(data) > environment_limits.FILE_INLINE_BYTES:
            try:
                stream = await self._stream("write_file", path, writes=True, size=len(data), **more)
                return (await put_all(stream, data)).size
            except InvalidParams as error:
                if error.reason != "unsupported":
                    raise
        written = await self._call("write_file", Written, path=path, base64=_encoded(data), **more)
        return written.size

    async def file_writer(
        self,
        path: str,
        *,
        size: int | None = None,
        user: str | None = None,
        mode: int | None = None,
        parents: bool = False,
        atomic: bool = False,
    ) -> FileStream:
        """The content of a file, as a stream to write to.

        Parameters:
            size: how many bytes will come. Without it, the end of a client that dies is taken for the end of the file.
        """
        more = given(size=size, user=user, mode=mode, parents=parents or None, atomic=atomic or None)
        return await self._stream("write_file", path, writes=True, **more)

    # --- names ---

    async def stat(self, path: str, *, user: str | None = None, follow: bool = True) -> FileStat:
        """What is said of a file. `follow`: of what a link leads to."""
        return await self._call("stat", FileStat, path=path, user=user, follow=None if follow else False)

    async def list_dir(self, path: str = ".", *, user: str | None = None) -> list[DirEntry]:
        """All entries of a directory, however many pages that takes, in the order of their names' bytes."""
        return [entry async for entry in self.dir_entries(path, user=user)]

    async def dir_entries(self, path: str = ".", *, user: str | None = None) -> AsyncIterator[DirEntry]:
        """The same, page by page.

        Raises:
            ProtocolError: the runtime goes on and on with the same page.
        """
        after: str | None = None
        while True:
            page = await self._call("list_dir", DirPage, path=path, user=user, after=after)
            for entry in page.entries:
                yield entry
            if page.next is UNSET:
                return
            if page.next == after:
                raise ProtocolError(f"the runtime's answer to list_dir says next {after!r} a second time")
            after = page.next

    async def make_dir(
        self,
        path: str,
        *,
        user: str | None = None,
        mode: int | None = None,
        parents: bool = False,
        exist_ok: bool = False,
    ) -> None:
        """Make a directory. `parents`: those above it, too; `exist_ok`: it may be there already."""
        more = given(user=user, mode=mode, parents=parents or None, exist_ok=exist_ok or None)
        await self._call("make_dir", _Nothing, path=path, **more)

    async def remove(self, path: str, *, user: str | None = None, recursive: bool = False) -> None:
        """Remove a file, a link, or a directory: an empty one, or with `recursive` all that is in it."""
        await self._call("remove", _Nothing, path=path, user=user, recursive=recursive or None)

    async def move(self, path: str, to: str, *, user: str | None = None, overwrite: bool = False) -> None:
        """Give a file or a directory another name. `overwrite`: also where that is taken."""
        await self._call("move", _Nothing, path=path, to=to, user=user, overwrite=overwrite or None)

    # --- archives ---

    async def read_tar(self, path: str = ".", *, user: str | None = None, exclude: Iterable[str] = ()) -> bytes:
        """A directory, or a file, as a tar archive. `exclude`: patterns of what is left out."""
        try:
            return await all_of(await self.tar_reader(path, user=user, exclude=exclude))
        except InvalidParams as error:
            if error.reason != "unsupported":
                raise
        archive = await self._call("read_tar", TarContent, path=path, user=user, exclude=list(exclude) or None)
        return _bytes(None, archive.base64, "read_tar")

    async def tar_reader(self, path: str = ".", *, user: str | None = None, exclude: Iterable[str] = ()) -> FileStream:
        """The same, as a stream."""
        return await self._stream("read_tar", path, writes=False, user=user, exclude=list(exclude) or None)

    async def write_tar(self, path: str, archive: bytes, *, user: str | None = None) -> int:
        """Unpack an archive into a directory that is there; how many members it had."""
        try:
            outcome = await put_all(await self.tar_writer(path, user=user), archive)
            return outcome.told
        except InvalidParams as error:
            if error.reason != "unsupported":
                raise
        written = await self._call("write_tar", Unpacked, path=path, user=user, base64=_encoded(archive))
        return written.members

    async def tar_writer(self, path: str, *, user: str | None = None) -> FileStream:
        """The same, as a stream to write to."""
        return await self._stream("write_tar", path, writes=True, user=user)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str | None, encoded: str | UnsetType, method: str) -> bytes:
    if encoded is UNSET:
        return (text or "").encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"the runtime's answer to {method} has base64 that is none: {error}") from error
