"""The calls for files by a real engine. What they share with the file helper is in the conformance suite."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

import pytest

from fastclaw import environment_limits
from fastclaw.engine.rest_lane.archives import new_member, packed
from fastclaw.errors import ExecFailed, InvalidParams, IoError, MethodNotFound
from fastclaw.files import (
    FileContent,
    ListDir,
    MakeDir,
    Move,
    ReadFile,
    ReadTar,
    Remove,
    StatFile,
    WriteFile,
    WriteTar,
)
from fastclaw.runtime import InitializeParams, RunRequest
from fastclaw.runtimes.host import EnvironmentHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.files import Files
    from tests.engine_fixtures import EngineService

pytestmark = pytest.mark.podman


@pytest.fixture
async def host(engine_service: EngineService) -> AsyncIterator[EnvironmentHost]:
    host = EnvironmentHost("podman")
    options = {"url": engine_service.url, "lane": "rest"}
    await host.start(InitializeParams(namespace="archivetest", options=options))
    yield host
    await host.stop()


@pytest.fixture
def files(host: EnvironmentHost) -> Files:
    return host.files()


async def test_contents_and_their_bounds(host: EnvironmentHost, files: Files) -> None:
    assert {"files", "file_helper"} & set(host.capabilities) == {"files"}
    big = os.urandom(environment_limits.FILE_INLINE_BYTES + 1)
    await files.write_file(WriteFile(path="/d/e/f", base64=base64.b64encode(big).decode(), parents=True, mode=0o604))
    with pytest.raises(IoError) as raised:
        await files.read_file(ReadFile(path="/d/e/f"))
    assert (raised.value.reason, raised.value.data["size"]) == ("too_large", len(big))
    read = await files.read_file(ReadFile(path="/d/e/f", limit=len(big)))
    assert isinstance(read, FileContent)
    assert base64.b64decode(str(read.base64)) == big
    part = await files.read_file(ReadFile(path="/d/e/f", offset=7, limit=5))
    assert isinstance(part, FileContent)
    assert (part.size, (part.text or "").encode() or base64.b64decode(str(part.base64))) == (len(big), big[7:12])
    seen = await host.run(RunRequest(cmd=["sh", "-c", "wc -c < /d/e/f; stat -c %a /d/e/f"]))
    assert (seen.stdout or "").split() == [str(len(big)), "604"]


async def test_a_directory_that_is_there_keeps_its_mode(host: EnvironmentHost, files: Files) -> None:
    await files.make_dir(MakeDir(path="/shared", mode=0o1777))
    await files.write_file(WriteFile(path="/shared/a/f", text="x", parents=True))
    assert (await files.stat(StatFile(path="/shared"))).mode == 0o1777
    archive = packed([new_member("f", 0o600, b"y")])
    await files.write_tar(WriteTar(path="/shared", base64=base64.b64encode(archive).decode()))
    assert (await files.stat(StatFile(path="/shared"))).mode == 0o1777
    page = await files.list_dir(ListDir(path="/shared"))
    assert [(entry.name, entry.type) for entry in page.entries] == [("a", "directory"), ("f", "file")]


async def test_what_is_not_offered_is_said(files: Files) -> None:
    for call in (
        files.read_file(ReadFile(path="f", user="0")),
        files.read_file(ReadFile(path="f", stream=True)),
        files.write_file(WriteFile(path="f", atomic=True)),
        files.stat(StatFile(path="f", follow=False)),
        files.read_tar(ReadTar(path="f", stream=True)),
        files.write_tar(WriteTar(path="f", stream=True)),
        files.remove(Remove(path="f")),
        files.move(Move(path="f", to="g")),
        files.read_file(ReadFile(path="f", offset=environment_limits.MAX_FILE_INLINE_BYTES + 1)),
    ):
        with pytest.raises(InvalidParams) as raised:
            await call
        assert raised.value.reason == "unsupported"


async def test_what_is_too_large_for_memory_is_refused(host: EnvironmentHost, files: Files) -> None:
    await host.run(RunRequest(cmd=["sh", "-c", "mkdir /l && head -c 17000000 /dev/zero > /l/f"]))
    for call in (files.read_tar(ReadTar(path="/l")), files.list_dir(ListDir(path="/l"))):
        with pytest.raises(IoError) as raised:
            await call
        assert raised.value.reason == "too_large"
    assert (await files.stat(StatFile(path="/l/f"))).size == 17_000_000


async def test_several_containers_have_no_files(engine_service: EngineService) -> None:
    host = EnvironmentHost("podman")
    options = {"url": engine_service.url, "lane": "rest", "containers": 2}
    await host.start(InitializeParams(namespace="archivetest", options=options))
    try:
        assert "files" not in host.capabilities
        with pytest.raises((InvalidParams, MethodNotFound)):
            await host.files().read_file(ReadFile(path="f"))
    finally:
        await host.stop()


async def test_a_container_that_is_gone_is_no_missing_file(host: EnvironmentHost, files: Files) -> None:
    with pytest.raises(ExecFailed) as raised:
        await files._calls.get_archive("no-such-container", "/f", 1000)  # type: ignore[attr-defined]
    assert raised.value.reason == "container_gone"
