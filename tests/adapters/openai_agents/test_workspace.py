"""Files of the workspace, and the workspace of a session that ended and is resumed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from agents.editor import ApplyPatchOperation
from agents.sandbox import LocalSnapshotSpec, Manifest, SandboxPathGrant
from agents.sandbox.entries import Dir, File
from agents.sandbox.errors import (
    InvalidManifestPathError,
    WorkspaceArchiveReadError,
    WorkspaceArchiveWriteError,
    WorkspaceReadNotFoundError,
)
from agents.sandbox.session import BaseSandboxClientOptions

from fastclaw.adapters.openai_agents import FastclawSandboxClientOptions

if TYPE_CHECKING:
    from agents.sandbox.session import SandboxSession

    from fastclaw.adapters.openai_agents import FastclawSandboxClient

MANIFEST = Manifest(entries={"src": Dir(children={"main.py": File(content=b"print('v1')\n")})})


async def read(session: SandboxSession, path: str) -> bytes:
    return cast("bytes", (await session.read(Path(path))).read())


async def test_a_file_is_read_as_it_was_written(session: SandboxSession) -> None:
    content = bytes(range(256)) * 20_000
    await session.write(Path("new/dir/blob"), io.BytesIO(content))
    assert await read(session, "new/dir/blob") == content
    assert await session.read_bounded(Path("new/dir/blob"), max_bytes=300) == content[:300]
    assert [entry.path for entry in await session.ls("new/dir")] == ["/workspace/new/dir/blob"]


async def test_what_cannot_be_read_or_written_is_told_as_the_sdk_tells_it(session: SandboxSession) -> None:
    await session.mkdir("dir")
    await session.write(Path("root.txt"), io.BytesIO(b"root's"))
    with pytest.raises(WorkspaceReadNotFoundError):
        await session.read(Path("missing"))
    with pytest.raises(WorkspaceArchiveReadError):
        await session.read(Path("dir"))
    with pytest.raises(WorkspaceArchiveWriteError):
        await session.write(Path("dir"), io.BytesIO(b""))
    with pytest.raises(WorkspaceArchiveWriteError):
        await session.write(Path("root.txt"), io.BytesIO(b""), user="65534")


async def test_files_outside_of_the_workspace_are_refused(session: SandboxSession) -> None:
    await session.exec("ln -s /etc/passwd link")
    for path in ("../etc/passwd", "/etc/passwd", "link"):
        with pytest.raises(InvalidManifestPathError):
            await session.read(Path(path))
        with pytest.raises(InvalidManifestPathError):
            await session.write(Path(path), io.BytesIO(b""))


async def test_patches_and_archives_of_the_sdk_come_into_it(session: SandboxSession) -> None:
    await session.apply_patch(ApplyPatchOperation(type="create_file", path="a/notes.txt", diff="+one\n+two\n"))
    await session.apply_patch(ApplyPatchOperation(type="update_file", path="a/notes.txt", diff="@@\n one\n-two\n+2\n"))
    assert await read(session, "a/notes.txt") == b"one\n2"
    await session.extract("packed/bundle.tar", archive({"inside.txt": b"packed"}))
    assert await read(session, "packed/inside.txt") == b"packed"


async def test_a_workspace_is_packed_and_unpacked_without_tar_in_the_image(session: SandboxSession) -> None:
    await session.exec("mkdir -p 'odd*name' oddXname sub && echo 1 | tee 'odd*name/f' oddXname/f sub/keep sub/skip")
    await session.exec("ln -s sub/keep link; chmod 755 sub/keep; rm -f $(which tar)")
    for path in ("odd*name", "sub/skip"):
        session.register_persist_workspace_skip_path(path)
    packed = await session.persist_workspace()
    with tarfile.open(fileobj=packed) as tar:
        assert sorted(tar.getnames()) == ["link", "oddXname", "oddXname/f", "sub", "sub/keep"]
    packed.seek(0)
    await session.exec("rm -rf ./*")
    await session.hydrate_workspace(packed)
    assert (await session.exec("./link 2>&1; find . | sort | xargs")).stdout.endswith(
        b". ./link ./oddXname ./oddXname/f ./sub ./sub/keep\n"
    )


async def test_what_is_no_archive_is_refused(session: SandboxSession) -> None:
    with pytest.raises(WorkspaceArchiveWriteError):
        await session.hydrate_workspace(io.BytesIO(b"no archive"))
    with pytest.raises(WorkspaceArchiveWriteError):
        await session.hydrate_workspace(archive({"../../outside": b""}))


async def test_a_session_goes_on_in_its_own_sandbox(client: FastclawSandboxClient, tmp_path: Path) -> None:
    state = await ended_session(client, tmp_path)
    async with await client.resume(client.deserialize_session_state(state)) as session:
        assert await read(session, "src/main.py") == b"print('v2')\n"
        assert (await session.exec("cat /tmp/mark; cat /proc/[0-9]*/comm | grep -cx sleep")).stdout == b"here\n1\n"
    await client.delete(session)


async def test_a_session_whose_sandbox_is_gone_has_another_with_its_snapshot(
    client: FastclawSandboxClient, tmp_path: Path
) -> None:
    state = await ended_session(client, tmp_path)
    await client.delete(await client.resume(client.deserialize_session_state(dict(state))))
    async with await client.resume(client.deserialize_session_state(state)) as session:
        assert await read(session, "src/main.py") == b"print('v2')\n"
        assert not (await session.exec("cat /tmp/mark")).ok()
        assert session.state.sandbox != state["sandbox"]
    await client.delete(session)


async def test_without_a_snapshot_another_sandbox_begins_with_the_manifest(client: FastclawSandboxClient) -> None:
    state = await ended_session(client, None)
    await client.delete(await client.resume(client.deserialize_session_state(dict(state))))
    async with await client.resume(client.deserialize_session_state(state)) as session:
        assert await read(session, "src/main.py") == b"print('v1')\n"
    await client.delete(session)


async def test_a_directory_of_this_host_is_not_granted(client: FastclawSandboxClient, tmp_path: Path) -> None:
    grant = SandboxPathGrant(path="/mnt/data", host_path=str(tmp_path))
    with pytest.raises(ValueError, match="workspace"):
        await client.create(manifest=Manifest(extra_path_grants=(grant,)))


def test_options_come_back_from_json() -> None:
    options = FastclawSandboxClientOptions(image="python:3.12", start={"memory": "1g"})
    assert BaseSandboxClientOptions.parse(json.loads(options.model_dump_json())) == options


async def ended_session(client: FastclawSandboxClient, snapshots: Path | None) -> dict[str, Any]:
    """What JSON keeps of a session that ended, and was not deleted."""
    snapshot = None if snapshots is None else LocalSnapshotSpec(base_path=snapshots)
    async with await client.create(manifest=MANIFEST, snapshot=snapshot) as session:
        await session.exec("sed -i s/v1/v2/ src/main.py; echo here > /tmp/mark; sleep 1000 &")
    kept: dict[str, Any] = json.loads(json.dumps(client.serialize_session_state(session.state)))
    return kept


def archive(members: dict[str, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    packed.seek(0)
    return packed
