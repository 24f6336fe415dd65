"""What every sandbox has in common."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import StartFailed
from fastclaw.options import Options
from fastclaw.runtimes.sandbox import Sandbox, SandboxFacts

if TYPE_CHECKING:
    import contextlib


class FullSandbox(Sandbox):
    """One whose host has no room."""

    is_alive = False

    async def _bring_up(self, setup: contextlib.AsyncExitStack) -> SandboxFacts:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm/x")


async def test_what_the_host_refuses_is_a_start_that_failed() -> None:
    """Else the pool of ready ones would end with it, and the wire would say that fastclaw has a defect."""
    with pytest.raises(StartFailed, match="No space left on device: /dev/shm/x"):
        await FullSandbox(Options()).start()
