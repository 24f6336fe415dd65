"""A backend of LangChain's deepagents: `create_deep_agent(backend=FastclawSandbox(box))`."""

from collections.abc import Coroutine
from typing import Any, Final

from deepagents.backends.protocol import (
    FILE_NOT_FOUND,
    INVALID_PATH,
    IS_DIRECTORY,
    PERMISSION_DENIED,
    ExecuteResponse,
    FileDownloadResponse,
    FileUploadResponse,
)
from deepagents.backends.sandbox import BaseSandbox

from fastclaw import limits
from fastclaw.sandbox.loop_thread import loop_thread
from fastclaw.sandbox.sync import Sandbox

TIMEOUT_S: Final = 1800
"""For a command that is given none: builds and test suites take minutes."""

OUTPUT_BYTES: Final = 10 * limits.MIB
"""What is kept of an output, its head, which is what deepagents can parse: its own scripts write less than 1 MiB."""

_TIMED_OUT = 124
"""As timeout(1) has it."""


class FastclawSandbox(BaseSandbox):
    """A sandbox as a backend: commands, files, and what deepagents makes of them with the image's python3 and grep.

    Parameters:
        box: a sandbox of `fastclaw.sandbox.sync`; it is the caller's to close.
        timeout: seconds for a command that is given none.
    """

    def __init__(self, box: Sandbox, *, timeout: float = TIMEOUT_S) -> None:
        self._box = box.asynchronous
        self._timeout = timeout

    @property
    def id(self) -> str:
        """Name of the sandbox's container."""
        return self._box.container or self._box.id

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """Run shell text. `timeout`: seconds; 0 is no end."""
        return loop_thread().call(self._execute(command, timeout))

    async def aexecute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """As `execute`; the command ends with its task."""
        return await loop_thread().bring(self._execute(command, timeout))

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Write files, with an error for each that could not be."""
        return loop_thread().call(self._upload(files))

    async def aupload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """As `upload_files`."""
        return await loop_thread().bring(self._upload(files))

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """Read files, with an error for each that could not be."""
        return loop_thread().call(self._download(paths))

    async def adownload_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """As `download_files`."""
        return await loop_thread().bring(self._download(paths))

    async def _execute(self, command: str, timeout: float | None) -> ExecuteResponse:
        seconds = self._timeout if timeout is None else timeout
        done = await self._box.run(
            command, timeout=seconds or None, merge_stderr=True, output_limit=OUTPUT_BYTES, keep="head"
        )
        if done.reason == "timeout":
            said = f"{done.text}\nError: command timed out after {seconds} seconds"
            return ExecuteResponse(said, _TIMED_OUT, done.truncated)
        return ExecuteResponse(done.error or done.text, done.exit_code, done.truncated)

    async def _upload(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        outcomes = [await _tried(path, self._box.write(path, content)) for path, content in files]
        return [FileUploadResponse(path, error) for (path, _), (_, error) in zip(files, outcomes, strict=True)]

    async def _download(self, paths: list[str]) -> list[FileDownloadResponse]:
        outcomes = [await _tried(path, self._box.read(path)) for path in paths]
        return [FileDownloadResponse(path, *outcome) for path, outcome in zip(paths, outcomes, strict=True)]


async def _tried(path: str, call: Coroutine[Any, Any, Any]) -> tuple[Any, str | None]:
    """What a call brings that is about a file, and deepagents' word for what is wrong with it."""
    if not path.startswith("/") or "\0" in path:
        call.close()
        return None, INVALID_PATH
    try:
        return await call, None
    except FileNotFoundError:
        return None, FILE_NOT_FOUND
    except IsADirectoryError:
        return None, IS_DIRECTORY
    except PermissionError:
        return None, PERMISSION_DENIED
    except NotADirectoryError:
        return None, INVALID_PATH
    except OSError as error:
        return None, str(error)
