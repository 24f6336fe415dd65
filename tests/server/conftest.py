"""A dispatcher to talk to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.server.wire import a_wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.server.wire import Wire


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with a_wire() as made:
        yield made
