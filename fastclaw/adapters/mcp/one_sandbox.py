"""The one sandbox behind the tools, for as long as a client is there."""

import asyncio
from typing import Any

from fastclaw.progress import Progress
from fastclaw.sandbox import Host, Sandbox


class OneSandbox:
    """The sandbox of all calls: started by the first one, and anew by the next one after its end.

    Parameters:
        host: for `Host`.
        start: for `Host.start`.
    """

    def __init__(self, host: dict[str, Any], start: dict[str, Any]) -> None:
        self._settings = host
        self._start_options = start
        self._host: Host | None = None
        self._starting: asyncio.Task[Sandbox] | None = None
        self._told = "starting the sandbox"

    @property
    def doing(self) -> str:
        """What whoever waits for a call is told."""
        is_up = self._starting is not None and self._starting.done()
        return "at work" if is_up else self._told

    def _hear(self, progress: Progress) -> None:
        self._told = progress.text.strip().rpartition("\n")[2] or self._told

    async def get(self) -> Sandbox:
        """The one there is; those who wait for its start wait for the same.

        Raises:
            FastclawError: it does not start; the next call tries again.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Sandbox:
        """A task that is kept has a sandbox once it is done: one that fails is forgotten before anybody sees it."""
        try:
            return await self._started()
        except BaseException:
            self._starting = None
            raise

    async def _started(self) -> Sandbox:
        if self._host is not None and self._host.has_ended:
            await self._host.close()
            self._host = None
        if self._host is None:
            self._host = await Host(**self._settings).__aenter__()
        return await self._host.start(**self._start_options, on_progress=self._hear)

    def lost(self, box: Sandbox) -> None:
        """This one has ended."""
        if self._starting is not None and self._starting.done() and self._starting.result() is box:
            self._starting = None

    async def close(self) -> None:
        """End it."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait((self._starting,))
        if self._host is not None:
            await self._host.close()
