"""A lane that does what the test says, a pool over it, and an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.processes.endpoint_rig import EndpointRig, endpoint
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


@pytest.fixture
async def rig() -> AsyncIterator[EndpointRig]:
    async with endpoint() as made:
        yield made
