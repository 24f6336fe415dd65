"""A sandbox of NeMo Gym that is up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from nemo_gym.sandbox import AsyncSandbox, SandboxSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def sandbox() -> AsyncIterator[AsyncSandbox]:
    """Of the default image, on the host that all tests share; its provider is found by its entry point."""
    async with AsyncSandbox({"fastclaw": {}}, SandboxSpec(workdir="/work/task")) as started:
        yield await started.start()
