"""What root inside may (docs/rights.md), on a real Podman, on both lanes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.engine.container_spec import DEFAULT, mask
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.options import FIRST_ID
from tests.acceptance.hostile import need_root_for
from tests.engine_fixtures import unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.engine.conftest import EngineService

pytestmark = pytest.mark.timeout(120)

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
AS_ROOT = """
set -e
chown 5:6 /file; stat -c %u:%g /file
mkdir -m 0 /shut; ls /shut
mkdir /from /to; touch /from/a; chown 42:43 /from/a; tar -C /from -c a | tar -C /to -x; stat -c %u:%g /to/a
su -s /bin/sh nobody -c 'id -u'
chroot / true
"""
"""Complaint: CopilotKit/OpenBot PR 262, opencontainers/runc#2517, mviereck/x11docker#111, cilium/cilium PR 19903."""


OWNER = (12_345, 12_346)
ENDS_S = 2.0
"""For an environment to end of itself: it takes some 10 ms."""
NOBODY = "65534 65534 /\n"
WRITABLE = "nobody:nogroup:755\nnobody:nogroup:644\n"


@pytest.fixture
def workspace() -> Iterator[Path]:
    """Of somebody else than root, where root inside gets at it."""
    if os.geteuid() != 0:
        unusable("only root has a workspace that is another user's")
    directory = Path(tempfile.mkdtemp(prefix="fcw", dir="/tmp"))
    os.chown(directory, *OWNER)
    yield directory
    shutil.rmtree(directory)


@asynccontextmanager
async def served(service: EngineService, lane: str, **options: Any) -> AsyncIterator[RuntimeClient]:
    """With capabilities: on the REST lane root's engine, and an ordinary user's on both, give them to who asks."""
    asked: dict[str, Any] = {}
    if os.geteuid() != 0:
        asked = {"capabilities": "default"}
    elif lane == "rest":
        asked = {"user_namespace": "private"}
    options = {"url": service.url, "image": service.image, "lane": lane, **asked, **options}
    async with RuntimeClient.spawn(SERVE, namespace="rights", options=options) as client:
        yield client


async def said(runtime: RuntimeClient, script: str, **request: Any) -> tuple[int | None, str]:
    ran = await runtime.run(["sh", "-c", script], merge_stderr=True, **request)
    return ran.exit_code, ran.stdout.decode()


async def capabilities_of(runtime: RuntimeClient, user: str) -> set[int]:
    """The sets that count for a command, which has no inheritable and no ambient one."""
    _, status = await said(runtime, "grep -E 'Cap(Prm|Eff)' /proc/self/status", user=user)
    return {int(line.split()[1], 16) for line in status.splitlines()}


@pytest.mark.parametrize("lane", ["spawn", "rest"])
async def test_with_capabilities_root_does_what_root_does_and_nobody_else_has_any(
    engine_service: EngineService, lane: str
) -> None:
    """opencontainers/runc#2517: the first thing that agents try, and the error names setgroups and not the cause."""
    async with served(engine_service, lane) as runtime:
        assert await said(runtime, f"touch /file; {AS_ROOT}") == (0, "5:6\n42:43\n65534\n")
        assert await capabilities_of(runtime, "0") == {mask(DEFAULT)}
        assert await capabilities_of(runtime, "1000") == {0}
        who = "echo $(id -u) $(id -g) $HOME"
        told = [await said(runtime, who, user=user) for user in ("2000", "2000:7", "0", "root", "nobody")]
        assert [text for _, text in told] == ["2000 0 /\n", "2000 7 /\n", "0 0 /root\n", "0 0 /root\n", NOBODY]
        code, text = await said(runtime, "grep NoNewPrivs /proc/self/status; mknod /null c 1 3")
        assert (code, text.split()[:2]) == (1, ["NoNewPrivs:", "1"])


async def test_who_may_kill_everybody_ends_the_environment_and_is_not_believed_to_have_ended_well(
    engine_service: EngineService,
) -> None:
    async with served(engine_service, "spawn", capabilities=["KILL"]) as runtime:
        neighbour = await runtime.exec(["sleep", "1000"], user="1000", stdin=False)
        async with asyncio.timeout(ENDS_S):
            with pytest.raises(ExecFailed):
                await runtime.run(["sh", "-c", "kill -9 -1"])
            record = await neighbour.wait(20_000)
        assert (record.exit_code, record.signal, record.reason) == (None, None, "container_gone")
        assert await said(runtime, "echo on") == (0, "on\n")


@pytest.mark.parametrize("lane", ["spawn", "rest"])
@pytest.mark.parametrize(("user", "seen"), [("0", "0:0"), ("1000:1000", "1000:1000"), ("nobody", "65534:65534")])
async def test_a_workspace_belongs_to_the_environments_user_and_to_its_owner(
    engine_service: EngineService, workspace: Path, lane: str, user: str, seen: str
) -> None:
    """SREGym/SREGym PR 1018, mattpocock/sandcastle#237, microsoft/vscode#336048, packit/sandcastle#85."""
    (workspace / "before").write_text("")
    os.chown(workspace / "before", *OWNER)
    async with served(
        engine_service, lane, user=user, workspace={"source": str(workspace), "target": "/work"}
    ) as runtime:
        code, text = await said(runtime, "stat -c %u:%g /work before; echo x > inside; chmod 4755 inside")
        assert (code, text) == (0, f"{seen}\n{seen}\n")
        if user == "0":
            assert ("reopen_stdio" in runtime.capabilities) == (lane == "spawn")
            assert await said(runtime, "touch other; chown 5:6 other; stat -c %u:%g other") == (0, "5:6\n")
            found = (workspace / "other").stat()
            first = (await rights_of(runtime))["user_namespace"]["first"]
            assert (found.st_uid, found.st_gid) == (first + 5, first + 6)
    found = (workspace / "inside").stat()
    assert (found.st_uid, found.st_gid) == OWNER


@pytest.mark.parametrize(("owner", "user"), [(0, 0), (3, 0), (3, 1000), (1000, 1000)])
async def test_a_workspace_may_belong_to_who_wrote_in_one_before(
    engine_service: EngineService, workspace: Path, owner: int, user: int
) -> None:
    ranges = {"first": FIRST_ID + 2**25, "count": 1}
    written = (ranges["first"] + owner, 1000)
    os.chown(workspace, *written)
    place = {"source": str(workspace), "target": "/work"}
    async with served(engine_service, "spawn", user=f"{user}:{user}", workspace=place, id_ranges=ranges) as runtime:
        assert (await rights_of(runtime))["workspace"]["is_mapped"]
        assert await said(runtime, "touch mine; stat -c %u:%g . mine") == (0, f"{user}:{user}\n" * 2)
    found = (workspace / "mine").stat()
    assert (found.st_uid, found.st_gid) == written


@pytest.mark.parametrize("lane", ["spawn", "rest"])
@pytest.mark.parametrize("namespace", ["private", "host"])
async def test_a_workspace_that_is_a_volume_belongs_to_the_environments_user(
    engine_service: EngineService, lane: str, namespace: str
) -> None:
    need_root_for(namespace)
    async with served(
        engine_service, lane, user="nobody", user_namespace=namespace, workspace={"target": "/work"}
    ) as runtime:
        assert await said(runtime, "echo x > file; stat -c %U:%G:%a . file") == (0, WRITABLE)


@pytest.mark.parametrize("lane", ["spawn", "rest"])
async def test_a_user_without_an_entry_has_the_same_groups_on_both_lanes(
    engine_service: EngineService, lane: str
) -> None:
    """The engine wrote an entry for PID 1's user into the container's files, and a group 1234 that it was in."""
    async with served(engine_service, lane, user="1234") as runtime:
        script = "grep -E '^(Uid|Gid|Groups):' /proc/self/status | xargs; grep -c 1234 /etc/passwd /etc/group"
        code, text = await said(runtime, script)
        assert text == "Uid: 1234 1234 1234 1234 Gid: 0 0 0 0 Groups:\n/etc/passwd:0\n/etc/group:0\n"
        assert code == 1  # grep has found none


async def test_a_workspace_of_roots_is_not_mapped_and_who_cannot_write_in_it_is_told(
    engine_service: EngineService, workspace: Path
) -> None:
    os.chown(workspace, 0, 0)
    place = {"source": str(workspace), "target": "/work"}
    with pytest.raises(StartFailed, match=r"no user namespace: the workspace belongs to 0:0 .*chown"):
        async with served(engine_service, "spawn", workspace=place, user_namespace="private"):
            pass
    async with served(engine_service, "spawn", workspace=place, user="nobody") as runtime:
        rights = await rights_of(runtime)
        assert rights["capabilities"] == []
        assert rights["workspace"] == {"owner": "0:0", "user": "65534:65534", "is_mapped": False}


async def test_ranges_of_ids_are_each_environments_own_and_refused_when_there_are_none_left(
    engine_service: EngineService,
) -> None:
    need_root_for("private")
    ranges = {"first": FIRST_ID + 2**24, "count": 2}
    async with (
        served(engine_service, "spawn", id_ranges=ranges) as one,
        served(engine_service, "spawn", id_ranges=ranges) as other,
    ):
        firsts = {(await rights_of(each))["user_namespace"]["first"] for each in (one, other)}
        assert firsts == {ranges["first"], ranges["first"] + limits.IDS}
        with pytest.raises(StartFailed, match=r"all 2 ranges of ids are taken .*options.id_ranges"):
            async with served(engine_service, "spawn", id_ranges=ranges):
                pass
    async with served(engine_service, "spawn", id_ranges=ranges) as again:
        assert (await rights_of(again))["user_namespace"] == {"first": ranges["first"], "count": limits.IDS}


async def rights_of(runtime: RuntimeClient) -> dict[str, Any]:
    details = (await runtime.health()).details
    assert details is not None
    rights: dict[str, Any] = details["rights"]
    return rights
