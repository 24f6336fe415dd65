"""Where a container's pids limit is found, and that it follows the keepers."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.decisions.container import spawner_pids
from fastclaw.engine.pids_limit import PidsLimit
from fastclaw.errors import ExecFailed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine_fixtures import EngineService

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
LIMIT = 100
"""Of commands: each `sleep` is one."""


def make(root: Path, *parts: str, limit: str) -> Path:
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pids.max").write_text(f"{limit}\n")
    return folder / "pids.max"


def test_what_cannot_be_written_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = PidsLimit(2**22 + 1, LIMIT)
    limit._file = tmp_path / "gone" / "pids.max"
    limit.make_room(5)
    limit.make_room(6)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_it_is_raised_by_what_is_ours(tmp_path: Path) -> None:
    limit = PidsLimit(2**22 + 1, LIMIT)
    limit._file = make(tmp_path, "a", limit=str(LIMIT))
    limit.make_room(5)
    assert limit._file.read_text() == str(LIMIT + spawner_pids(5)) == str(LIMIT + 11)


@pytest.mark.podman
async def test_commands_have_all_of_their_limit(engine_service: EngineService) -> None:
    options = {"url": engine_service.url, "image": engine_service.image, "pids_limit": LIMIT}
    async with RuntimeClient.spawn(SERVE, namespace="pids-limit", options=options) as runtime:
        sleepers = await asyncio.gather(*(runtime.exec(["sleep", "1000"]) for _ in range(LIMIT - 1)))
        assert (await runtime.run(["true"])).exit_code == 0
        last = await runtime.exec(["sleep", "1000"])

        async def too_many() -> None:
            for _ in range(LIMIT):  # some keepers are idle: their room is taken first
                await runtime.exec(["sleep", "1000"])

        with pytest.raises(ExecFailed, match="no room for one more process"):
            await too_many()
        told = (await runtime.health()).details["limits"]["pids"]
        assert (told["limit"], told["hits"] > 0) == (LIMIT, True)
        await asyncio.gather(*(process.kill(0) for process in (*sleepers, last)))
