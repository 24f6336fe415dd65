"""Which processes wait for somebody to read their output, as far as can be found out without waiting for them.

Owns nothing. The answers are their streams'.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastclaw.processes.process import Process
    from fastclaw.runtime import StreamName

_STREAMS: dict[int, StreamName] = {1: "stdout", 2: "stderr"}
"""By bit, as `Streams.blocked` names them."""


class BlockedOutputs:
    """Finds outputs that are full while no client takes from them, and remembers who did not answer."""

    def __init__(self) -> None:
        self._silent: set[asyncio.Future[int]] = set()

    async def look(self, processes: Iterable[Process], most: int, wait_ms: int) -> dict[Process, list[StreamName]]:
        """The blocked outputs of the first `most` live processes.

        An answer that did not come in `wait_ms` is not waited for again: a command can lock its pipe for ever.
        """
        held = (one for one in processes if one.is_running and not one.is_run)
        asked = {one: one.streams.blocked() for one in itertools.islice(held, most)}
        waited_for = [answer for answer in asked.values() if not answer.done() and answer not in self._silent]
        if waited_for:
            await asyncio.wait(waited_for, timeout=wait_ms / 1000)
        self._silent = {answer for answer in (*self._silent, *waited_for) if not answer.done()}
        said = {one: answer.result() for one, answer in asked.items() if answer.done()}
        return {one: [name for bit, name in _STREAMS.items() if bits & bit] for one, bits in said.items() if bits}
