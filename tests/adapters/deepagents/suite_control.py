"""LangChain's tests of sandboxes without any: for commands and files of this host."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deepagents.backends.protocol import ExecuteResponse, FileDownloadResponse, FileUploadResponse
from deepagents.backends.sandbox import BaseSandbox
from langchain_tests.integration_tests import SandboxIntegrationTests

if TYPE_CHECKING:
    from collections.abc import Callable


class Subprocesses(BaseSandbox):
    """The least backend: subprocess.run and pathlib."""

    id = "control"

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        done = subprocess.run(
            command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False
        )
        return ExecuteResponse(done.stdout.decode(errors="replace"), done.returncode)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        return [FileUploadResponse(path, _error(path, lambda p, data=data: _write(p, data))) for path, data in files]

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        return [self._download(path) for path in paths]

    def _download(self, path: str) -> FileDownloadResponse:
        error = _error(path, Path.read_bytes)
        return FileDownloadResponse(path, None if error else Path(path).read_bytes(), error)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _error(path: str, does: Callable[[Path], object]) -> str | None:
    if not path.startswith("/"):
        return "invalid_path"
    try:
        does(Path(path))
    except FileNotFoundError:
        return "file_not_found"
    except IsADirectoryError:
        return "is_directory"
    except PermissionError:
        return "permission_denied"
    return None


class TestControl(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    def sandbox(self) -> Subprocesses:
        return Subprocesses()

    @pytest.fixture(autouse=True)
    def sandbox_test_root(self, tmp_path: Path) -> str:
        return str(tmp_path)
