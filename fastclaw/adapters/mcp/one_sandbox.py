"""The one sandbox behind the tools, for as long as a client is there."""

import asyncio
from typing import Any

from fastclaw.errors import FastclawError
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

    @property
    def is_up(self) -> bool:
        """Whether it is there already."""
        return self._starting is not None and self._starting.done()

    async def get(self) -> Sandbox:
        """The one there is; those who wait for its start wait for the same.

        Raises:
            FastclawError: it does not start; the next call tries again.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._started())
        starting = self._starting
        try:
            return await asyncio.shield(starting)
        except FastclawError:
            self._forget(starting)
            raise

    async def _started(self) -> Sandbox:
        if self._host is None or self._host.has_ended:
            self._host = await Host(**self._settings).__aenter__()
        return await self._host.start(**self._start_options)

    def lost(self, box: Sandbox) -> None:
        """This one has ended."""
        starting = self._starting
        if starting is not None and starting.done() and starting.result() is box:
            self._forget(starting)

    def _forget(self, starting: asyncio.Task[Sandbox]) -> None:
        if self._starting is starting:
            self._starting = None

    async def close(self) -> None:
        """End it."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait((self._starting,))
        if self._host is not None:
            await self._host.close()
