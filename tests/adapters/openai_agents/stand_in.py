"""A plugin for the SDK's own tests: where they make its unix-local client, they have ours.

They look at the files of a workspace on this host, too: one with a path of its own is a directory of this host.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agents.sandbox import sandboxes
from agents.sandbox.sandboxes import unix_local

from fastclaw.adapters.openai_agents import FastclawSandboxClient, FastclawSandboxClientOptions

if TYPE_CHECKING:
    from collections.abc import Generator

    from agents.sandbox import Manifest
    from agents.sandbox.session import SandboxSession, SandboxSessionState

SHARED = "/workspace"
"""The path of a workspace for which nobody said another."""

_started: list[str] = []


class StandIn(FastclawSandboxClient):
    """Our client under the name of the other, which the tests read in what is kept of a run."""

    backend_id = "unix_local"

    def __init__(self, *, inherit_host_environment: bool = True, **given: Any) -> None:
        super().__init__(**given)

    async def create(self, *, manifest: Manifest | None = None, **given: Any) -> SandboxSession:
        start = {}
        if manifest is not None and manifest.root != SHARED:
            await asyncio.to_thread(Path(manifest.root).mkdir, parents=True, exist_ok=True)
            start["workspace"] = {"source": manifest.root, "target": manifest.root}
        given["options"] = FastclawSandboxClientOptions(image=os.environ["IMAGE"], start=start)
        return await super().create(manifest=manifest, **given)

    async def resume(self, state: SandboxSessionState) -> SandboxSession:
        session = await super().resume(state)
        _started.append(session.state.sandbox)
        return session


unix_local.UnixLocalSandboxClient = sandboxes.UnixLocalSandboxClient = StandIn


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """A test that has started none says nothing about us."""
    _started.clear()
    result = yield
    assert _started, "no sandbox was started"
    return result
