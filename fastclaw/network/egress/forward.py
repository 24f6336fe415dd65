"""Plain HTTP requests on their way to a server: one client's, one after the other.

Each is decided anew, also where the connection to its server stands already. Bodies flow both ways at once, a piece at
a time: the next is read when the one before has been taken.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import h11

from fastclaw.network.egress.addresses import plain
from fastclaw.network.egress.fields import request_fields, response_fields, switch_fields, trailer_fields
from fastclaw.network.egress.http_peer import Upstream, UpstreamFailed
from fastclaw.network.egress.targets import Rejected, has_body
from fastclaw.network.egress.upstream import NAMED, WANTS_CREDENTIALS, answered, authorization

if TYPE_CHECKING:
    import socket

    from fastclaw.network.egress.addresses import Address
    from fastclaw.network.egress.dial import Dialled
    from fastclaw.network.egress.enforcement import Asked, Gate
    from fastclaw.network.egress.fields import Fields, Injections
    from fastclaw.network.egress.http_peer import Client
    from fastclaw.network.egress.socket_io import IdleTimeout, SocketReader
    from fastclaw.network.egress.targets import Target

_SWITCHING = 101
_REPEATABLE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))


class Joined(NamedTuple):
    """The client is to be joined with this socket, which is the receiver's to close.

    Parameters:
        to_far, to_near: what was read of each before, for the other.
    """

    far: socket.socket
    to_far: bytes = b""
    to_near: bytes = b""


class Site(NamedTuple):
    """What all connections of a sandbox share.

    Parameters:
        injections: what is added to which requests.
        rules: what a program inside is told of them.
        idle_s: how long nothing may move.
    """

    gate: Gate
    injections: Injections
    rules: bytes
    reader: SocketReader
    idle_s: float

    @property
    def idle_text(self) -> str:
        return f"nothing has moved for {self.idle_s:g} s (options.network.idle_timeout_ms)"


class Forwarder:
    """Parameters:
    client: whose requests they are; stays its owner's.
    """

    def __init__(self, client: Client, site: Site, idle: IdleTimeout) -> None:
        self._client = client
        self._site = site
        self._idle = idle
        self._upstream: Upstream | None = None
        self._serves: tuple[str | Address, int] | None = None
        self._injected: Fields = []
        self._is_proxy = False

    def close(self) -> None:
        """Close the connection to the server. Idempotent."""
        if self._upstream is not None:
            self._upstream.sock.close()
            self._upstream = None

    def adopt(self, dialled: Dialled, asked: Asked) -> None:
        """Use a connection that was made for `asked`; takes it over."""
        self._upstream = Upstream(dialled.socket, self._idle, self._site.reader, self._site.gate.meter)
        self._serves = None if dialled.address is None else (asked.host, asked.port)
        self._is_proxy = dialled.is_proxy

    async def forward(self, request: h11.Request, asked: Asked, target: Target) -> Joined | None:
        """Carry out a request whose head has been read; returns when it is answered.

        Returns:
            After an answer of 101: whom to join the client with.

        Raises:
            Refused: it may not be, or no connection comes about; counted.
            Rejected: it went wrong in another way; not counted.
            OSError: the client is gone.
        """
        self._injected = self._site.injections.of(target.host)
        if self._injected:
            if request.method == b"TRACE":
                raise Rejected("unsafe_method", f"TRACE would show what is added to requests for {target.host}")
            asked = asked._replace(has_secret=True)
        if not has_body(request):
            await self._client.next()  # its end
        upstream = await self._reach(asked)
        try:
            return await self._exchange(request, target, upstream)
        except UpstreamFailed:
            if not _may_repeat(request, upstream):
                raise
        self.close()
        return await self._exchange(request, target, await self._reach(asked))

    async def _reach(self, asked: Asked) -> Upstream:
        """A connection to the server: the one that stands, if it is still one that may be."""
        self._idle.off()
        whom = (asked.host, asked.port)
        if self._upstream is None or whom != self._serves or not await self._may_serve(self._upstream, asked):
            self.close()
            self.adopt(await self._site.gate.connect(asked), asked)
        self._idle.moved()
        assert self._upstream is not None
        return self._upstream

    async def _may_serve(self, upstream: Upstream, asked: Asked) -> bool:
        address = upstream.idle_at()
        return address is not None and address in map(plain, await self._site.gate.admit(asked))

    async def _exchange(self, request: h11.Request, target: Target, upstream: Upstream) -> Joined | None:
        fields, path = request_fields(request, target, self._injected), target.path
        if self._is_proxy and (outside := self._site.gate.upstream) is not None:
            fields, path = [*fields, *authorization(outside)], target.url
        await upstream.send(h11.Request(method=request.method, target=path, headers=fields))
        if not has_body(request):
            await upstream.send(h11.EndOfMessage())
            return await self._answer(upstream)
        try:
            async with asyncio.TaskGroup() as group:
                body = group.create_task(self._pass_body(upstream))
                joined = await self._answer(upstream)
                body.cancel()  # who has answered early needs no more of it
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return joined

    async def _pass_body(self, upstream: Upstream) -> None:
        event = None
        while not isinstance(event, h11.EndOfMessage):
            event = await self._client.next()
            if isinstance(event, h11.EndOfMessage):
                event = h11.EndOfMessage(headers=trailer_fields(event.headers.raw_items(), self._injected))
            try:
                await upstream.send(event)
            except UpstreamFailed:
                return  # it may have answered all the same: reading that will tell

    async def _answer(self, upstream: Upstream) -> Joined | None:
        is_current = self._client.http.their_http_version == b"1.1"
        while isinstance(event := await upstream.next(), h11.InformationalResponse):
            if event.status_code == _SWITCHING:
                return await self._switch(event, upstream)
            if is_current:
                fields = response_fields(event)
                interim = h11.InformationalResponse(status_code=event.status_code, headers=fields, reason=event.reason)
                await self._client.send(interim)
        if self._is_proxy and event.status_code == WANTS_CREDENTIALS:
            raise UpstreamFailed(f"{NAMED}: {answered(event.status_code, 'a request')}")
        fields = response_fields(event)
        await self._client.send(h11.Response(status_code=event.status_code, headers=fields, reason=event.reason))
        while isinstance(event := await upstream.next(), h11.Data):
            await self._client.send(event)
        trailers = trailer_fields(event.headers.raw_items(), ()) if is_current else []
        await self._client.send(h11.EndOfMessage(headers=trailers))
        upstream.finish()
        return None

    async def _switch(self, answer: h11.InformationalResponse, upstream: Upstream) -> Joined:
        fields = switch_fields(answer)
        await self._client.send(h11.InformationalResponse(status_code=_SWITCHING, headers=fields, reason=answer.reason))
        self._upstream = None
        return Joined(upstream.sock, self._client.unread, upstream.unread)


def _may_repeat(request: h11.Request, upstream: Upstream) -> bool:
    """Whether the server closed a connection that had served before, without having seen this request, most likely
    (RFC 9112, 9.3.1)."""
    return upstream.has_served and not upstream.has_spoken and request.method in _REPEATABLE and not has_body(request)
