"""A lane that does what the test says, and a pool over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.processes.lanes import ScriptedLane, a_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.processes.pool import ProcessPool


@pytest.fixture
async def lane() -> ScriptedLane:
    return ScriptedLane()


@pytest.fixture
async def pool(lane: ScriptedLane) -> AsyncIterator[ProcessPool]:
    async with a_pool(lane) as made:
        yield made
