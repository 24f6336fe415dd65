"""A stream whose helper is ended by somebody else; the rest is in test_environment_files.py."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.errors import IoError

if TYPE_CHECKING:
    from pathlib import Path

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", "--runtime", "local"]


async def test_a_helper_that_is_killed_is_an_error(tmp_path: Path) -> None:
    async with RuntimeClient.spawn(SERVE, namespace="streams") as rt:
        async with await rt.file_writer(str(tmp_path / "f"), atomic=True) as stream:
            assert repr(stream) == f"<FileStream to {tmp_path / 'f'}>"
            await stream.write(b"x")
            [process] = await rt.list()
            await rt.kill(process.process_id, 0)
            with pytest.raises(IoError) as raised:
                await stream.finish()
            assert "killed" in str(raised.value)
        assert os.listdir(tmp_path) == []


async def test_what_was_written_is_said_at_the_end(tmp_path: Path) -> None:
    async with RuntimeClient.spawn(SERVE, namespace="streams") as rt:
        async with await rt.file_writer(str(tmp_path / "f")) as stream:
            await stream.write(b"12")
            await stream.write(b"345")
            assert (await stream.finish()).size == 5
            assert (await stream.finish()).size == 5
        async with await rt.file_writer(str(tmp_path / "f"), size=9) as stream:
            await stream.write(b"12")
            with pytest.raises(IoError) as raised:
                await stream.finish()
        assert (raised.value.reason, raised.value.data["written"]) == ("wrong_size", 2)
