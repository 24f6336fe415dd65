"""Containers that are cloned, on the engine of the session."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine.clones.clone_fleet import CloneFleet
from tests.engine_fixtures import EngineService
from tests.waiting import until


@pytest.fixture
async def clones(engine_service: EngineService, short_dir: Path) -> AsyncIterator[CloneFleet]:
    """Afterwards nothing of a clone may be left."""
    os.chmod(short_dir, 0o711)  # root inside may be another user of the host
    fleet = CloneFleet(engine_service.url, engine_service.image, short_dir)
    await fleet.open()
    yield fleet
    await fleet.aclose()
    await until(lambda: fleet.remains() == [])
