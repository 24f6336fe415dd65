"""What the engine tests share; more fixtures are in tests/engine_fixtures.py and, for the REST lane, in rest_rig.py."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastclaw.engine.service import facts
from tests.engine.fleet import Fleet
from tests.engine.rest_lane.rest_rig import any_lane, lane, rest_engine
from tests.engine_fixtures import EngineService, unusable

__all__ = ["EngineService", "any_lane", "lane", "rest_engine", "unusable"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory in which programs of this host are looked for; empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(facts, "SYSTEM_PATH", "")
    monkeypatch.setattr(facts, "HELPER_DIRS", ())
    return tmp_path


@pytest.fixture
async def fleet(engine_service: EngineService, short_dir: Path) -> AsyncIterator[Fleet]:
    """Afterwards the engine must have none of its containers left, and nobody may await a spawner."""
    one = Fleet(engine_service, short_dir)
    yield one
    assert await one.containers() == set()
    await one.engine.aclose()
    assert os.listdir(short_dir) == []
