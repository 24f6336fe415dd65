"""A plugin for NeMo Gym's own tests: where they make its local provider, they have ours.

They look at the files of a workspace on this host, too: where these are is a directory of this host.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_gym.sandbox.providers import local

from fastclaw.adapters import nemo_gym

if TYPE_CHECKING:
    from nemo_gym.sandbox import SandboxHandle, SandboxSpec


class Box(nemo_gym._Box):
    """Ours, which says besides where its workspace is on this host, as theirs does."""

    def __getitem__(self, name: Any) -> Any:
        return Path(self.working_dir) if name == "workspace" else super().__getitem__(name)


class StandIn(nemo_gym.Provider):
    """Our provider with the parameters of the other."""

    def __init__(self, workspace_root: str) -> None:
        super().__init__()
        self._root = workspace_root

    async def create(self, spec: SandboxSpec) -> SandboxHandle:
        workspace = await asyncio.to_thread(tempfile.mkdtemp, dir=self._root)
        shared = {"source": self._root, "target": self._root}
        here = replace(spec, image=os.environ["IMAGE"], workdir=workspace, provider_options={"workspace": shared})
        handle = await super().create(here)
        handle.raw = Box(*handle.raw)
        return handle

    async def close(self, handle: SandboxHandle) -> None:
        await super().close(handle)
        await asyncio.to_thread(shutil.rmtree, handle.raw["workspace"])


local.LocalProvider = local.provider.LocalProvider = StandIn
