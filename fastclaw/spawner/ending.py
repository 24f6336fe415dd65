"""TERM, a grace, KILL, and the proof: the same for one tree and for all that a spawner keeps."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.spawner.frames import LEVEL_KILL, LEVEL_TERM

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.processes.lane import Grace


async def end(order: Callable[[int], None], gone: asyncio.Event, grace: Grace) -> None:
    """Return when nothing is left.

    Parameters:
        order: has a spawner send TERM or KILL to all that is meant.
        gone: set when a spawner has said that nothing is left.

    Raises:
        ExecFailed: `engine_timeout`: something sits in an uninterruptible call.
    """
    loop = asyncio.get_running_loop()
    if loop.time() < grace.ends_at:
        order(LEVEL_TERM)
        while not gone.is_set() and (left := grace.ends_at - loop.time()) > 0:
            await _set_within(gone, min(left, limits.GRACE_LOOK_MS / 1000))
    if not gone.is_set():
        order(LEVEL_KILL)
        await _set_within(gone, limits.TREE_DEADLINE_MS / 1000)
    if not gone.is_set():
        raise ExecFailed(f"the process tree did not end within {limits.TREE_DEADLINE_MS} ms", "engine_timeout")


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
