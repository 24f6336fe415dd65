"""A client, and a session of it that is up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from agents import set_tracing_disabled

from fastclaw.adapters.openai_agents import FastclawSandboxClient
from tests.adapters.suites import load_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agents.sandbox.session import SandboxSession

set_tracing_disabled(True)  # traces go to the network


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One with Python, and with what users are made by."""
    return load_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def client() -> FastclawSandboxClient:
    """One on the host that all tests share."""
    return FastclawSandboxClient()


@pytest.fixture
async def session(client: FastclawSandboxClient) -> AsyncIterator[SandboxSession]:
    """In a sandbox of its own, of the default image."""
    started = await client.create()
    async with started:
        yield started
    await client.delete(started)
