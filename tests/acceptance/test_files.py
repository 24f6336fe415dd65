"""Files of real containers: an image with nothing in it, users, walls between inside and outside, and a full disk."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.errors import ExecFailed, IoError
from tests.acceptance.test_images import imported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.engine_fixtures import EngineService

pytestmark = [pytest.mark.timeout(120), pytest.mark.podman]

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman", "--log-level", "error"]


def empty() -> bytes:
    """A root directory with two directories in it: no program, no /etc.

    It is named `/`: an entry `./` Podman 5 leaves out, and makes a root directory that only capabilities write to.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in (("/", 0o755), ("tmp", 0o1777), ("root-only", 0o700)):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            archive.addfile(info)
    return buffer.getvalue()


@pytest.fixture(params=["auto", "never"])
async def rt(request: pytest.FixtureRequest, engine_service: EngineService) -> AsyncIterator[RuntimeClient]:
    """In a clone, and in a container of the engine's own making."""
    image = imported(engine_service.url, "empty", empty())
    options = {"url": engine_service.url, "lane": "spawn", "clone": request.param}
    async with (
        RuntimeClient.spawn(SERVE, namespace="filesin", options={"environment": False}) as client,
        await client.environment_start(image=image, **options) as first,
    ):
        client.environment = first.environment
        yield client


async def test_nothing_is_needed_in_the_image(rt: RuntimeClient) -> None:
    with pytest.raises(ExecFailed):
        await rt.run(["/bin/sh", "-c", "true"])
    big = os.urandom(3 * limits.MIB)
    await rt.write_file("/work/a/f", big, parents=True)
    assert await rt.read_file("/work/a/f") == big
    archive = await rt.read_tar("/work")
    await rt.make_dir("/copy")
    assert await rt.write_tar("/copy", archive) == 2
    assert await rt.read_file("/copy/a/f") == big
    assert [entry.name for entry in await rt.list_dir("/copy")] == ["a"]
    await rt.move("/copy/a", "/copy/b")
    await rt.remove("/copy", recursive=True)


async def test_a_user_may_what_that_user_may_inside(rt: RuntimeClient) -> None:
    await rt.write_file("/root-only/f", b"secret")
    for call in (rt.read_file("/root-only/f", user="1000"), rt.write_file("/new", b"x", user="1000")):
        with pytest.raises(IoError) as raised:
            await call
        assert raised.value.reason == "permission_denied"
    await rt.write_file("/tmp/f", b"x", user="1000:2000")
    stat = await rt.stat("/tmp/f")
    assert (stat.uid, stat.gid) == (1000, 2000)
    await rt.make_dir("/tmp/d", user="1000")
    info = tarfile.TarInfo("f")
    info.uid, info.gid = 5, 6
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        opened.addfile(info)
    await rt.write_tar("/tmp/d", archive.getvalue(), user="1000")
    assert (await rt.stat("/tmp/d/f")).uid == 1000


async def test_links_lead_nowhere_but_inside(rt: RuntimeClient, tmp_path: Path) -> None:
    """A path of this host means nothing inside, whatever way there is to it."""
    (tmp_path / "f").write_bytes(b"outside")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        for name, target in (("out", str(tmp_path)), ("up", "../" * 30 + str(tmp_path)[1:]), ("root", "/proc/1/root")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            opened.addfile(info)
    await rt.write_tar("/tmp", archive.getvalue())
    for way in ("/tmp/out", "/tmp/up", f"/tmp/root{tmp_path}", f"/proc/self/root{tmp_path}"):
        with pytest.raises(IoError):
            await rt.read_file(f"{way}/f")
        with pytest.raises(IoError):
            await rt.write_file(f"{way}/g", b"x")
    assert os.listdir(tmp_path) == ["f"]


async def test_what_is_mounted_is_not_removed_and_is_read_only_where_it_is(rt: RuntimeClient) -> None:
    for call in (rt.remove("/run", recursive=True), rt.write_file("/run/fastclaw-init", b"x")):
        with pytest.raises(IoError) as raised:
            await call
        assert raised.value.reason in ("busy", "read_only", "permission_denied", "file_busy")
    assert len(await rt.read_file("/run/fastclaw-init")) > 10_000
    assert (await rt.stat("/run/fastclaw-init")).size <= 128 * limits.KIB


async def test_a_full_file_system_is_no_space_and_harms_nobody(rt: RuntimeClient) -> None:
    """/dev/shm has 64 MiB."""
    await rt.write_file("/dev/shm/kept", b"kept")
    big: Any = os.urandom(limits.MIB) * 70
    for atomic in (False, True):
        with pytest.raises(IoError) as raised:
            await rt.write_file("/dev/shm/big", big, atomic=atomic)
        assert raised.value.reason == "no_space"
        names = [entry.name for entry in await rt.list_dir("/dev/shm")]
        assert names == (["kept"] if atomic else ["big", "kept"])
        if not atomic:
            await rt.remove("/dev/shm/big")
    assert await rt.read_file("/dev/shm/kept") == b"kept"
