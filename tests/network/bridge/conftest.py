"""Fixtures of the tests that have a bridge of this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.network.bridge.rig import started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.network.bridge.rig import Started


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Started]:
    async with started(tmp_path) as one:
        yield one
