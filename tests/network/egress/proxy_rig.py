"""Environments of an egress proxy that is a process of its own, each with a listener, an origin and clients."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastclaw.network.egress.proxy import EgressProcess, EgressProxy
from tests.network.egress.rig import HERE, Client, Origin, config, listening, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from fastclaw.network.egress.proxy_frames import EgressConfig


class Served:
    """An environment with one listener, and an origin.

    Parameters:
        process: with other environments; None: with no other, and it ends with this one.

    Attributes:
        port: of the listener.
        number: the listener's.
    """

    def __init__(self, settings: EgressConfig, process: EgressProcess | None = None) -> None:
        self.process = process or EgressProcess()
        self._is_alone = process is None
        self.proxy = EgressProxy(settings, self.process)
        self.number, self.port = self.listens()
        self.origin = Origin()
        self._clients: list[Client] = []

    def listens(self) -> tuple[int, int]:
        """One more listener: its number and its port."""
        sock = listening()
        port: int = sock.getsockname()[1]
        return self.proxy.listen("proxy", sock), port

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    async def asks(self, port: int | None = None) -> Client:
        """A client that asks for a tunnel to the origin."""
        client = Client(*await asyncio.open_connection(HERE, port or self.port))
        self._clients.append(client)
        await client.say(request(f"CONNECT {HERE}:{self.origin.port} HTTP/1.1\nHost: x"))
        return client

    async def tunnel(self, port: int | None = None) -> Client:
        """A client with a tunnel to the origin."""
        client = await self.asks(port)
        await has_tunnel(client)
        return client

    def health(self, *names: str) -> list[Any]:
        found = self.proxy.health()
        return [found[name] for name in names]

    async def aclose(self) -> None:
        for client in self._clients:
            await client.close()
        await self.proxy.aclose()
        if self._is_alone:
            await self.process.aclose()
        await self.origin.aclose()


async def has_tunnel(client: Client) -> None:
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


@asynccontextmanager
async def served(
    allow: Sequence[str] = (f"{HERE}:*",), process: EgressProcess | None = None, **options: Any
) -> AsyncIterator[Served]:
    made = Served(config(allow, **options), process)
    await made.origin.start(listening())
    try:
        yield made
    finally:
        await made.aclose()
