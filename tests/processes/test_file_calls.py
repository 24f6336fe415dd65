"""Calls for files over a real pool, spawner and helper, on this host."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from fastclaw import environment_limits, limits
from fastclaw.errors import ExecFailed, InvalidParams, IoError
from fastclaw.files import (
    FileContent,
    ListDir,
    MakeDir,
    Move,
    ReadFile,
    ReadTar,
    Remove,
    StatFile,
    TarContent,
    Unpacked,
    WriteFile,
    WriteTar,
    Written,
)
from fastclaw.runtime import ExecResult, InitializeParams
from fastclaw.runtimes.host import EnvironmentHost
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[EnvironmentHost]:
    """Its workspace is the test's directory."""
    runtime = EnvironmentHost("local")
    workspace = {"target": str(tmp_path), "source": str(tmp_path)}
    await runtime.start(InitializeParams(namespace="n", options={"workspace": workspace, "kill_grace_ms": 500}))
    yield runtime
    await runtime.stop()


async def test_small_files_go_in_and_out_in_one_call(local: EnvironmentHost, tmp_path: Path) -> None:
    assert "files" in local.capabilities
    assert await local.files().write_file(WriteFile(path="a/b", text="é", parents=True)) == Written(size=2)
    assert await local.files().read_file(ReadFile(path="a/b")) == FileContent(text="é", size=2)
    assert await local.files().read_file(ReadFile(path=str(tmp_path / "a" / "b"))) == FileContent(text="é", size=2)
    big = os.urandom(environment_limits.FILE_INLINE_BYTES)
    assert await local.files().write_file(WriteFile(path="a/b", base64=base64.b64encode(big).decode())) == Written(
        size=len(big)
    )
    read = await local.files().read_file(ReadFile(path="a/b"))
    assert isinstance(read, FileContent)
    assert base64.b64decode(str(read.base64)) == big


async def test_the_largest_answer_is_whole(local: EnvironmentHost, tmp_path: Path) -> None:
    big = os.urandom(environment_limits.MAX_FILE_INLINE_BYTES)
    (tmp_path / "f").write_bytes(big)
    read = await local.files().read_file(ReadFile(path="f", limit=environment_limits.MAX_FILE_INLINE_BYTES))
    assert isinstance(read, FileContent)
    assert base64.b64decode(str(read.base64)) == big
    with pytest.raises(IoError) as raised:
        await local.files().read_file(ReadFile(path="f"))
    assert (raised.value.reason, raised.value.data["size"]) == ("too_large", len(big))


async def test_nothing_of_a_small_call_is_kept_or_listed(local: EnvironmentHost) -> None:
    for _ in range(20):
        await local.files().write_file(WriteFile(path="f", text="x"))
        with pytest.raises(IoError):
            await local.files().read_file(ReadFile(path="missing"))
    assert await local.list_processes() == []
    assert local.pool().table.counts() == {"live": 0, "lingering": 0, "kept": 0}


async def test_names_are_listed_made_moved_and_removed(local: EnvironmentHost, tmp_path: Path) -> None:
    await local.files().make_dir(MakeDir(path="d/e", parents=True))
    await local.files().write_file(WriteFile(path="d/f", text="x"))
    page = await local.files().list_dir(ListDir(path="d", limit=1))
    assert [entry.name for entry in page.entries] == ["e"]
    page = await local.files().list_dir(ListDir(path="d", limit=1, after=str(page.next)))
    assert [(entry.name, entry.type, entry.size) for entry in page.entries] == [("f", "file", 1)]
    await local.files().move(Move(path="d/f", to=str(tmp_path / "g")))
    assert (await local.files().stat(StatFile(path="g"))).size == 1
    await local.files().remove(Remove(path="d", recursive=True))
    assert os.listdir(tmp_path) == ["g"]


async def test_a_directory_goes_in_and_out_as_an_archive(local: EnvironmentHost, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"content")
    archive = await local.files().read_tar(ReadTar(path="d"))
    assert isinstance(archive, TarContent)
    assert archive.members == 1
    await local.files().make_dir(MakeDir(path="copy"))
    assert await local.files().write_tar(WriteTar(path="copy", base64=archive.base64)) == Unpacked(size=7, members=1)
    assert (tmp_path / "copy" / "f").read_bytes() == b"content"


async def test_an_archive_too_large_for_an_answer_is_refused(local: EnvironmentHost, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(os.urandom(environment_limits.MAX_FILE_INLINE_BYTES))
    with pytest.raises(IoError) as raised:
        await local.files().read_tar(ReadTar(path="f"))
    assert raised.value.reason == "too_large"
    assert local.pool().table.live() == []


async def test_errors_have_the_path_as_it_was_asked_for(local: EnvironmentHost) -> None:
    with pytest.raises(IoError) as raised:
        await local.files().read_file(ReadFile(path="./no//such"))
    assert (raised.value.reason, raised.value.data["path"]) == ("not_found", "./no//such")
    with pytest.raises(ExecFailed) as refused:
        await local.files().read_file(ReadFile(path="f", user="no-such-user"))
    assert refused.value.reason == "unknown_user"
    with pytest.raises(InvalidParams):
        await local.files().read_file(ReadFile(path="a\0b"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is several users")
async def test_a_user_may_what_that_user_may_wherever_the_program_is(local: EnvironmentHost, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0o600)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and not path.stat().st_mode & 1:
            path.chmod(path.stat().st_mode | 1)
    with pytest.raises(IoError) as raised:
        await local.files().read_file(ReadFile(path=str(tmp_path / "f"), user="65534"))
    assert raised.value.reason == "permission_denied"
    assert (await local.files().stat(StatFile(path=str(tmp_path / "f"), user="65534"))).size == 1


async def test_an_absolute_path_needs_no_default_directory(local: EnvironmentHost, tmp_path: Path) -> None:
    aside = tmp_path.with_name(f"{tmp_path.name}-aside")
    os.rename(tmp_path, aside)
    try:
        assert (await local.files().stat(StatFile(path=str(aside)))).type == "directory"
        with pytest.raises(ExecFailed) as raised:
            await local.files().stat(StatFile(path="."))
        assert raised.value.reason == "bad_working_dir"
    finally:
        os.rename(aside, tmp_path)


# --- streams ---


async def connected(result: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    assert isinstance(result, ExecResult)
    reader, writer = await asyncio.open_unix_connection(result.stdio_addr)
    return reader, writer, result.process_id


async def test_a_large_file_goes_in_and_out_by_a_socket(local: EnvironmentHost, tmp_path: Path) -> None:
    big = os.urandom(5 * limits.MIB)
    request = WriteFile(path="f", stream=True, size=len(big), atomic=True)
    _, writer, process_id = await connected(await local.files().write_file(request))
    writer.write(big)
    writer.write_eof()
    record = await local.wait(process_id)
    assert (record.exit_code, record.error) == (0, record.error)
    writer.close()
    assert (tmp_path / "f").read_bytes() == big
    reader, writer, process_id = await connected(await local.files().read_file(ReadFile(path="f", stream=True)))
    assert await reader.read(-1) == big
    writer.close()
    assert (await local.wait(process_id)).exit_code == 0


async def test_a_stream_that_fails_says_so_in_its_record(local: EnvironmentHost) -> None:
    reader, writer, process_id = await connected(await local.files().read_file(ReadFile(path="./missing", stream=True)))
    assert await reader.read(-1) == b""
    writer.close()
    record = await local.wait(process_id)
    assert record.error == {"reason": "not_found", "errno": 2, "path": "./missing"}


async def test_a_stream_without_its_end_leaves_the_old_content(local: EnvironmentHost, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    request = WriteFile(path="f", stream=True, size=100, atomic=True)
    _, writer, process_id = await connected(await local.files().write_file(request))
    writer.write(b"half")
    await writer.drain()
    writer.close()  # the client is gone
    record = await local.wait(process_id)
    assert record.reason in ("killed", "exited")
    assert record.exit_code != 0
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


async def test_archives_go_by_sockets_both_ways(local: EnvironmentHost, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "d" / str(number)).mkdir(parents=True)
        (tmp_path / "d" / str(number) / "f").write_bytes(os.urandom(100_000))
    reader, writer, _ = await connected(await local.files().read_tar(ReadTar(path="d", stream=True, exclude=["19"])))
    archive = await reader.read(-1)
    writer.close()
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert len(opened.getnames()) == 38
    await local.files().make_dir(MakeDir(path="copy"))
    _, writer, process_id = await connected(await local.files().write_tar(WriteTar(path="copy", stream=True)))
    writer.write(archive)
    writer.write_eof()
    assert (await local.wait(process_id)).exit_code == 0
    writer.close()
    assert (tmp_path / "copy" / "18" / "f").read_bytes() == (tmp_path / "d" / "18" / "f").read_bytes()


async def test_a_call_that_is_cancelled_leaves_no_process(local: EnvironmentHost, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number in range(20_000):
        os.mknod(tmp_path / "d" / str(number))
    task = asyncio.create_task(local.files().remove(Remove(path="d", recursive=True)))
    await until(lambda: bool(local.pool().table.live()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert local.pool().table.live() == []
    left = len(os.listdir(tmp_path / "d"))
    assert left > 0, "it was through before it was cancelled"
    assert len(os.listdir(tmp_path / "d")) == left
