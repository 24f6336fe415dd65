"""The calls for files on the REST lane: by the engine's archive calls, which resolve paths inside the container.

Everything is done by the engine as root and in memory, so what is large, or needs another user, is refused.
docs/files.md says what differs from the file helper.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import posixpath
from typing import TYPE_CHECKING

from fastclaw import environment_limits, limits
from fastclaw.engine.rest_lane import archives
from fastclaw.engine.rest_lane.archives import Member, Refused
from fastclaw.errors import InvalidParams, IoError
from fastclaw.files import DirPage, Files, Unpacked, Written
from fastclaw.processes import file_helper
from fastclaw.processes.file_helper import NOT_REGULAR, TOO_LARGE, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastclaw.engine.containers import Containers
    from fastclaw.engine.rest_lane.exec_calls import ExecCalls
    from fastclaw.files import (
        FileContent,
        FileRequest,
        FileStat,
        ListDir,
        MakeDir,
        Move,
        ReadFile,
        ReadTar,
        Remove,
        StatFile,
        TarContent,
        WriteFile,
        WriteTar,
    )

_HEADERS_BYTES = 64 * limits.KIB
"""More than what is around a file in the engine's archive of it, and enough to tell what it is."""

_FILE_MODE, _DIRECTORY_MODE = 0o644, 0o755


class ArchiveFiles(Files):
    """The files of an environment's one container.

    Parameters:
        calls: to the engine.
        containers: what it has; more than one is refused.
        directory: where a relative path starts.
    """

    def __init__(self, calls: ExecCalls, containers: Containers, directory: str) -> None:
        self._calls, self._containers, self._directory = calls, containers, directory

    async def read_file(self, request: ReadFile) -> FileContent:
        self._refuse(request, stream=request.stream)
        most, offset = file_helper.read_limit(request), request.offset or 0
        if offset > environment_limits.MAX_FILE_INLINE_BYTES:
            raise _unsupported("offset")
        first = await self._first(request, request.path, offset + most + _HEADERS_BYTES)
        kind, size = archives.type_of(first.info), first.info.size
        if kind == "directory":
            raise _failed(request, errno.EISDIR)
        if kind != "file":
            raise _failed(request, NOT_REGULAR)
        if request.offset is None and size > most:
            raise _failed(request, TOO_LARGE, told=size)
        data = first.data[offset : offset + most]
        return file_helper.content(data, size)

    async def write_file(self, request: WriteFile) -> Written:
        self._refuse(request, stream=request.stream, atomic=request.atomic)
        data = file_helper.content_of(request)
        there = await self._look(request, request.path)
        if there is not None and there.type == "directory":
            raise _failed(request, errno.EISDIR)
        if there is not None and there.type != "file":
            raise _failed(request, NOT_REGULAR)
        mode = _FILE_MODE if request.mode is None else request.mode
        await self._make(request, request.path, mode, data, parents=request.parents)
        return Written(size=len(data))

    async def stat(self, request: StatFile) -> FileStat:
        self._refuse(request, follow=not request.follow)
        return archives.stat_of((await self._first(request, request.path, _HEADERS_BYTES)).info)

    async def list_dir(self, request: ListDir) -> DirPage:
        self._refuse(request)
        file_helper.list_words(request)  # refuses an `after` that is none
        after = base64.b64decode(request.after or "")
        members = await self._below(request, [], must_be_directory=True)
        found = sorted(
            ((info.name.encode("utf-8", "surrogateescape"), info) for info, _ in members if "/" not in info.name),
            key=lambda pair: pair[0],
        )
        left = [pair for pair in found if pair[0] > after]
        return file_helper.page([(name, archives.stat_of(info)) for name, info in left[: request.limit]], len(left))

    async def make_dir(self, request: MakeDir) -> None:
        self._refuse(request)
        there = await self._look(request, request.path)
        if there is not None:
            if request.exist_ok and there.type == "directory":
                return
            raise _failed(request, errno.EEXIST)
        mode = _DIRECTORY_MODE if request.mode is None else request.mode
        await self._make(request, request.path, mode, None, parents=request.parents)

    async def remove(self, request: Remove) -> None:
        raise _unsupported(None)

    async def move(self, request: Move) -> None:
        raise _unsupported(None)

    async def read_tar(self, request: ReadTar) -> TarContent:
        self._refuse(request, stream=request.stream)
        members = await self._below(request, request.exclude)
        return file_helper.archive(archives.packed(members), Outcome(0, len(members), 0, "", ""))

    async def write_tar(self, request: WriteTar) -> Unpacked:
        self._refuse(request, stream=request.stream)
        archive = file_helper.content_of(request)
        there = await self._look(request, request.path)
        if there is None or there.type != "directory":
            raise _failed(request, errno.ENOENT if there is None else errno.ENOTDIR)
        members = _checked(request, lambda: archives.checked(archive))
        await self._put(request, self._absolute(request.path), members)
        return Unpacked(size=sum(len(data) for _, data in members), members=len(members))

    # --- what is offered ---

    def _refuse(self, request: FileRequest, **asked: bool) -> None:
        file_helper.check_request(request, [request.path])
        if len(self._containers) > 1:
            raise InvalidParams(
                "files are not offered with several containers, which have their own each", "unsupported"
            )
        for name, is_asked in {"user": request.user is not None, **asked}.items():
            if is_asked:
                raise _unsupported(name)

    def _absolute(self, path: str) -> str:
        return posixpath.join(self._directory, path)

    # --- the engine ---

    @contextlib.contextmanager
    def _container(self) -> Iterator[str]:
        """The id of the container."""
        container = self._containers.take(0)
        try:
            yield container.id
        finally:
            container.give_back()

    async def _archive(self, request: FileRequest, path: str, most: int) -> bytes | None:
        """The engine's archive of what is there, or its beginning; None: there is nothing."""
        with self._container() as container:
            return await self._calls.get_archive(container, self._absolute(path), most)

    async def _first(self, request: FileRequest, path: str, most: int) -> Member:
        archive = await self._archive(request, path, most)
        if archive is None:
            raise _failed(request, errno.ENOENT)
        is_cut = len(archive) >= most
        first = next(archives.members_of(archive, is_cut=is_cut), None)
        if first is None:
            raise _failed(request, errno.ENOENT)
        begin = first.info.offset_data
        return Member(first.info, archive[begin : begin + first.info.size])

    async def _look(self, request: FileRequest, path: str) -> FileStat | None:
        archive = await self._archive(request, path, _HEADERS_BYTES)
        first = next(archives.members_of(archive or b"", is_cut=True), None)
        return None if first is None else archives.stat_of(first.info)

    async def _below(
        self, request: ReadTar | ListDir, exclude: list[str], *, must_be_directory: bool = False
    ) -> list[Member]:
        most = environment_limits.MAX_FILE_INLINE_BYTES + _HEADERS_BYTES
        archive = await self._archive(request, request.path, most)
        if archive is None:
            raise _failed(request, errno.ENOENT)
        first = next(archives.members_of(archive, is_cut=True), None)
        if must_be_directory and first is not None and not first.info.isdir():
            raise _failed(request, errno.ENOTDIR)
        if len(archive) >= most:
            raise _failed(request, TOO_LARGE)
        return _checked(request, lambda: archives.below(archive, archives.excluder(exclude)))

    async def _make(self, request: FileRequest, path: str, mode: int, data: bytes | None, *, parents: bool) -> None:
        """A file or a directory, in the innermost directory that is there; those in between where they may be made."""
        above, names = posixpath.split(self._absolute(path).rstrip("/"))[0], [posixpath.basename(path.rstrip("/"))]
        there = await self._look(request, above)
        while there is None and parents and above != "/":
            names.insert(0, posixpath.basename(above))
            above = posixpath.dirname(above)
            there = await self._look(request, above)
        if there is None or there.type != "directory":
            raise _failed(request, errno.ENOENT if there is None else errno.ENOTDIR)
        between = ["/".join(names[:count]) for count in range(1, len(names))]
        made = [archives.new_member(name, _DIRECTORY_MODE, None) for name in between]
        await self._put(request, above, [*made, archives.new_member("/".join(names), mode, data)])

    async def _put(self, request: FileRequest, directory: str, members: list[Member]) -> None:
        with self._container() as container:
            failure = await self._calls.put_archive(container, directory, archives.packed(members))
        if failure is not None:
            raise _failed(request, failure)


def _checked(request: FileRequest, read: Callable[[], list[Member]]) -> list[Member]:
    try:
        return read()
    except Refused as error:
        outcome = Outcome(error.code, error.members, 0, error.why, error.name)
        raise file_helper.error_of(request, outcome) from error


def _failed(request: FileRequest, code: int, told: int = 0) -> IoError:
    return file_helper.error_of(request, Outcome(code, told, 0, "", ""))


def _unsupported(name: str | None) -> InvalidParams:
    what = "this call" if name is None else f"$.{name}"
    path = "$" if name is None else f"$.{name}"
    return InvalidParams(f"{what} is not offered by the rest lane (docs/files.md)", "unsupported", path=path)
