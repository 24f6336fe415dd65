"""Where a container's pids limit is found, and that it follows the reapers."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.errors import ExecFailed
from fastclaw.linux.cgroups import Group
from fastclaw.podman.container import PidsLimit
from fastclaw.podman.container_spec import spawner_pids

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine_fixtures import EngineService

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
LIMIT = 100
"""Of commands: each `sleep` is one."""


CONTAINER = "0123abcd"


def group(root: Path, limit: str) -> Group:
    """A container's, below one with a limit of its own."""
    folder = root / "above" / f"libpod-{CONTAINER}"
    folder.mkdir(parents=True)
    (folder / "pids.max").write_text(limit)
    (folder.parent / "pids.max").write_text("4915")
    return Group(folder, root, is_unified=True)


def test_what_cannot_be_written_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = PidsLimit(group(tmp_path, str(LIMIT)), CONTAINER, LIMIT)
    shutil.rmtree(tmp_path / "above")
    limit.make_room(5)
    limit.make_room(6)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_it_is_raised_by_what_is_ours(tmp_path: Path) -> None:
    own = group(tmp_path, str(LIMIT))
    limit = PidsLimit(own, CONTAINER, LIMIT)
    limit.make_room(5)
    assert (own.folder / "pids.max").read_text() == str(LIMIT + spawner_pids(5)) == str(LIMIT + 11)
    assert limit.health() == {"limit": LIMIT, "hits": 0}


def test_a_limit_further_up_is_not_the_containers(tmp_path: Path) -> None:
    """As where the pids controller is not delegated: the next limit is that of the user's session."""
    limit = PidsLimit(group(tmp_path, "max"), CONTAINER, LIMIT)
    limit.make_room(5)
    assert (tmp_path / "above" / "pids.max").read_text() == "4915"
    assert limit.health() == {}


@pytest.mark.podman
async def test_commands_have_all_of_their_limit(engine_service: EngineService) -> None:
    options = {"url": engine_service.url, "image": engine_service.image, "pids_limit": LIMIT}
    async with RuntimeClient.spawn(SERVE, namespace="pids-limit", options=options) as runtime:
        sleepers = await asyncio.gather(*(runtime.exec(["sleep", "1000"]) for _ in range(LIMIT - 1)))
        assert (await runtime.run(["true"])).exit_code == 0
        last = await runtime.exec(["sleep", "1000"])

        async def too_many() -> None:
            for _ in range(LIMIT):  # some reapers are idle: their room is taken first
                await runtime.exec(["sleep", "1000"])

        with pytest.raises(ExecFailed, match="no room for one more process"):
            await too_many()
        told = (await runtime.health()).details["limits"]["pids"]
        assert (told["limit"], told["hits"] > 0) == (LIMIT, True)
        await asyncio.gather(*(process.kill(0) for process in (*sleepers, last)))
