"""The calls for files where there is a spawner: each is a short command in the environment, the file helper.

So user, directory, limits, cancellation and proof of the end are those of any command, nothing is needed in the image,
and no process of the host walks a path of the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclaw import environment_limits
from fastclaw.errors import ExecFailed, IoError
from fastclaw.files import Files, Move, Unpacked, Written
from fastclaw.processes import file_helper
from fastclaw.runtime import ExecRequest, RunRequest

if TYPE_CHECKING:
    from fastclaw.files import (
        DirPage,
        FileContent,
        FileRequest,
        FileStat,
        ListDir,
        MakeDir,
        ReadFile,
        ReadTar,
        Remove,
        StatFile,
        TarContent,
        WriteFile,
        WriteTar,
    )
    from fastclaw.processes.lane import Collected
    from fastclaw.processes.pool import ProcessPool
    from fastclaw.runtime import ExecResult, ExitRecord


class HelperFiles(Files):
    """The files of an environment, by helpers that its pool starts."""

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = pool

    async def read_file(self, request: ReadFile) -> FileContent | ExecResult:
        words = file_helper.read_words(request)
        if request.stream:
            return await self._stream(request, words, stdin=False)
        data, outcome = await self._run(request, words, most=file_helper.read_limit(request))
        return file_helper.content(data, outcome.told)

    async def write_file(self, request: WriteFile) -> Written | ExecResult:
        data = file_helper.content_of(request)
        if request.stream:
            return await self._stream(request, file_helper.write_words(request, request.size), stdin=True)
        _, outcome = await self._run(request, file_helper.write_words(request, len(data)), data)
        return Written(size=outcome.size)

    async def stat(self, request: StatFile) -> FileStat:
        data, _ = await self._run(request, file_helper.stat_words(request))
        return file_helper.stat_of(data)

    async def list_dir(self, request: ListDir) -> DirPage:
        data, outcome = await self._run(request, file_helper.list_words(request))
        return file_helper.page_of(data, outcome.told)

    async def make_dir(self, request: MakeDir) -> None:
        await self._run(request, file_helper.make_words(request))

    async def remove(self, request: Remove) -> None:
        await self._run(request, file_helper.remove_words(request))

    async def move(self, request: Move) -> None:
        await self._run(request, file_helper.move_words(request))

    async def read_tar(self, request: ReadTar) -> TarContent | ExecResult:
        words = file_helper.pack_words(request)
        if request.stream:
            return await self._stream(request, words, stdin=False)
        data, outcome = await self._run(request, words, kills=True)
        return file_helper.archive(data, outcome)

    async def write_tar(self, request: WriteTar) -> Unpacked | ExecResult:
        data, words = file_helper.content_of(request), file_helper.unpack_words(request)
        if request.stream:
            return await self._stream(request, words, stdin=True)
        _, outcome = await self._run(request, words, data)
        return Unpacked(size=outcome.size, members=outcome.told)

    async def _run(
        self,
        request: FileRequest,
        words: list[str],
        data: bytes = b"",
        *,
        most: int = environment_limits.MAX_FILE_INLINE_BYTES,
        kills: bool = False,
    ) -> tuple[bytes, file_helper.Outcome]:
        """What the helper wrote, and its outcome.

        Parameters:
            most: bytes that it may write.
            kills: whether it is ended where it writes more; else it does not.
        """
        file_helper.check_request(request, words)
        run = RunRequest(
            cmd=[file_helper.PROGRAM, "--file", *words],
            working_dir=_directory(request),
            user=request.user,
            output_limit=max(most, environment_limits.FILE_OUTCOME_BYTES),
            keep="head",
            on_limit="kill" if kills else "truncate",
        )
        record, collected = await self._pool.collect(run, data)
        return collected.stdout.head, _outcome(request, record, collected)

    async def _stream(self, request: FileRequest, words: list[str], *, stdin: bool) -> ExecResult:
        file_helper.check_request(request, words)
        wanted = ExecRequest(
            cmd=[file_helper.PROGRAM, "--file", *words],
            working_dir=_directory(request),
            user=request.user,
            stdin=stdin,
            on_disconnect="kill" if stdin else "eof",
        )
        result = await self._pool.exec(wanted)
        self._pool.table.find(result.process_id).explain = lambda code: _said(request.path, code)
        return result


def _directory(request: FileRequest) -> str | None:
    """An absolute path is there whatever the default directory is."""
    paths = (request.path, request.to) if isinstance(request, Move) else (request.path,)
    return "/" if all(path.startswith("/") for path in paths) else None


def _said(path: str, code: int) -> dict[str, str | int | None]:
    """What the exit record says of a stream that failed."""
    failure = file_helper.failure_of(code)
    return {"reason": failure.reason, "errno": failure.errno, "path": path}


def _outcome(request: FileRequest, record: ExitRecord, collected: Collected) -> file_helper.Outcome:
    if collected.limited:
        raise file_helper.error_of(request, file_helper.Outcome(file_helper.TOO_LARGE, 0, 0, "use `stream`", ""))
    if record.reason == "container_gone":
        raise ExecFailed("the environment has ended", "container_gone")
    outcome, path = file_helper.read_outcome(collected.stderr.head), request.path
    if outcome is None or record.exit_code is None or collected.incomplete:
        raise IoError(f"{path}: the file helper did not get to its end ({record.reason})", path=path, errno=None)
    if record.exit_code:
        raise file_helper.error_of(request, outcome)
    return outcome
