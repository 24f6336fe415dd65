"""Plain HTTP requests on their way to a server: one client's, one after the other.

A peer is a socket and h11's view of it. Each request is decided anew, also where the connection to its server stands
already. Bodies flow both ways at once, a piece at a time: the next is read when the one before has been taken.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

import h11

from fastclaw import network_limits
from fastclaw.network.egress.addresses import plain
from fastclaw.network.egress.dialing import NAMED, WANTS_CREDENTIALS, answered, authorization
from fastclaw.network.egress.http_messages import (
    has_body,
    has_head,
    refusal,
    request_fields,
    response_fields,
    switch_fields,
    trailer_fields,
)
from fastclaw.network.egress.policy import SPENT, Refused

if TYPE_CHECKING:
    from fastclaw.network.egress.addresses import Address
    from fastclaw.network.egress.dialing import Dialled
    from fastclaw.network.egress.enforcement import AccessRequest, PolicyEnforcer
    from fastclaw.network.egress.http_messages import Fields, Injections, Target
    from fastclaw.network.egress.socket_io import IdleTimeout, SocketReader
    from fastclaw.network.egress.tunnel import Meter


class ServerFailed(Refused):
    """The server speaks no HTTP, or the connection to it ended in the middle."""

    def __init__(self, text: str) -> None:
        super().__init__("unreachable", text)


class _Peer:
    """One end of an HTTP conversation. Owns its socket, non-blocking, until it is handed off."""

    def __init__(self, sock: socket.socket, http: h11.Connection, idle: IdleTimeout, reader: SocketReader) -> None:
        self.sock = sock
        self.http = http
        self._idle = idle
        self._reader = reader
        self._loop = asyncio.get_running_loop()

    @property
    def unread(self) -> bytes:
        """What came and is no part of HTTP any more, or not yet."""
        return self.http.trailing_data[0]

    async def _event(self) -> Any:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self._receive())
            self._idle.moved()
        return event

    async def _receive(self) -> bytes:
        return await self._reader.receive(self.sock)

    async def _send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)
        self._idle.moved()


class ClientPeer(_Peer):
    """The client's end: requests come from it.

    Parameters:
        sock: accepted; taken over.
        early: what was read of it before.
    """

    def __init__(self, sock: socket.socket, idle: IdleTimeout, reader: SocketReader, early: bytes = b"") -> None:
        super().__init__(sock, h11.Connection(h11.SERVER, network_limits.EGRESS_HEAD_BYTES), idle, reader)
        self._pending = bytearray(early)
        self._method = b""
        self._has_asked = False

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request's head came."""
        return bool(self._pending)

    @property
    def is_unanswered(self) -> bool:
        """Whether an answer, or a refusal in its place, can still be given."""
        return self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    async def request(self) -> h11.Request | None:
        """The head of the next request; None: there is none, and the client has closed.

        Raises:
            Refused: it is none.
            OSError: the client is gone.
        """
        pending = self._pending
        while not has_head(pending):
            if not (data := await self._receive()):
                if pending:
                    raise Refused("bad_request", "the connection was closed in the middle of a request's head")
                return None
            if not pending and self._has_asked:  # the first request has its deadline from the start
                self._idle.within(network_limits.EGRESS_HEAD_MS / 1000)
            pending += data
        self.http.receive_data(bytes(pending))
        pending.clear()
        request: h11.Request = await self.next()
        self._method = request.method
        return request

    async def next(self) -> Any:
        """The next event of the request.

        Raises:
            Refused: it is none.
            OSError: the client is gone.
        """
        try:
            return await self._event()
        except h11.RemoteProtocolError as error:
            # Without the bytes that it quotes: they may be a password.
            raise Refused("bad_request", f"not HTTP: {str(error).partition(': b')[0]}") from error

    async def send(self, event: h11.Event) -> None:
        """A piece of the answer; returns when the kernel has it.

        Raises:
            ServerFailed: no answer has such a piece.
            OSError: the client is gone.
        """
        try:
            data = self.http.send(event)
        except h11.LocalProtocolError as error:
            raise ServerFailed("the server's answer cannot be passed on") from error
        if data:
            await self._send(data)

    def goes_on(self) -> bool:
        """Whether another request may follow; what came of it already is kept for `request`."""
        is_over = self.http.our_state is h11.DONE and self.http.their_state is h11.DONE
        if is_over:
            self._pending += self.unread
            self._method = b""
            self._has_asked = True
            self.http = h11.Connection(h11.SERVER, network_limits.EGRESS_HEAD_BYTES)
        return is_over

    async def refuse(self, refused: Refused) -> None:
        """Say why there is no other answer, and nothing more."""
        await self._loop.sock_sendall(self.sock, refusal(refused, has_body=self._method != b"HEAD"))


class ServerPeer(_Peer):
    """The server's end: answers come from it.

    Parameters:
        sock: connected; taken over.
        meter: told of all bytes.

    Attributes:
        has_served: an earlier request.
        has_spoken: something of the answer came.
    """

    def __init__(self, sock: socket.socket, idle: IdleTimeout, reader: SocketReader, meter: Meter) -> None:
        super().__init__(sock, h11.Connection(h11.CLIENT, network_limits.EGRESS_HEAD_BYTES), idle, reader)
        self._meter = meter
        self.has_served = self.has_spoken = False

    async def next(self) -> Any:
        """The next event of the answer.

        Raises:
            ServerFailed: it is none, or the server is gone.
            Refused: the budget of bytes is used up.
        """
        try:
            return await self._event()
        except h11.RemoteProtocolError as error:
            raise ServerFailed("the server closed the connection, or speaks no HTTP/1.1") from error
        except OSError as error:
            raise _broken(error) from error

    async def send(self, event: h11.Event) -> None:
        """A piece of the request; returns when the kernel has it.

        Raises:
            ServerFailed: the server is gone, or does not want to read on.
            Refused: the budget of bytes is used up.
        """
        if data := self.http.send(event):
            _check_budget(self._meter.sent(len(data)))
            try:
                await self._send(data)
            except OSError as error:
                raise _broken(error) from error

    async def _receive(self) -> bytes:
        data = await super()._receive()
        self.has_spoken = self.has_spoken or bool(data)
        _check_budget(self._meter.received(len(data)))
        return data

    def end_answer(self) -> None:
        """An answer is through: be ready for another request, if it stays."""
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE and not self.unread:
            self.http.start_next_cycle()
            self.has_spoken = False
            self.has_served = True

    def idle_at(self) -> Address | None:
        """The address at which it waits for another request; None: it does not, as far as can be told."""
        if self.http.our_state is not h11.IDLE:
            return None
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            with suppress(OSError):  # reset just now
                return plain(ip_address(self.sock.getpeername()[0]))
        except OSError:
            pass
        return None  # it has closed, or speaks unasked


def _broken(error: OSError) -> ServerFailed:
    return ServerFailed(f"the connection to the server broke: {error.strerror}")


def _check_budget(is_left: bool) -> None:
    if not is_left:
        raise Refused("too_many_bytes", SPENT)


_SWITCHING = 101
_REPEATABLE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))


class Handoff(NamedTuple):
    """The client is to be handoff with this socket, which is the receiver's to close.

    Parameters:
        to_far, to_near: what was read of each before, for the other.
    """

    far: socket.socket
    to_far: bytes = b""
    to_near: bytes = b""


class SandboxContext(NamedTuple):
    """What all connections of a sandbox share.

    Parameters:
        injections: what is added to which requests.
        rules: what a program inside is told of them.
        idle_s: how long nothing may move.
    """

    enforcer: PolicyEnforcer
    injections: Injections
    rules: bytes
    reader: SocketReader
    idle_s: float

    @property
    def idle_text(self) -> str:
        """Why an idle connection is cut."""
        return f"nothing has moved for {self.idle_s:g} s (options.network.idle_timeout_ms)"


class Forwarder:
    """Carries out one client's requests, over one connection to a server at a time.

    Parameters:
        client: whose requests they are; stays its owner's.
    """

    def __init__(self, client: ClientPeer, context: SandboxContext, idle: IdleTimeout) -> None:
        self._client = client
        self._context = context
        self._idle = idle
        self._upstream: ServerPeer | None = None
        self._serves: tuple[str | Address, int] | None = None
        self._injected: Fields = []
        self._is_proxy = False

    def close(self) -> None:
        """Close the connection to the server. Idempotent."""
        if self._upstream is not None:
            self._upstream.sock.close()
            self._upstream = None

    def adopt(self, dialled: Dialled, access: AccessRequest) -> None:
        """Use a connection that was made for `access`; takes it over."""
        self._upstream = ServerPeer(dialled.socket, self._idle, self._context.reader, self._context.enforcer.meter)
        self._serves = None if dialled.address is None else (access.host, access.port)
        self._is_proxy = dialled.is_proxy

    async def forward(self, request: h11.Request, access: AccessRequest, target: Target) -> Handoff | None:
        """Carry out a request whose head has been read; returns when it is answered.

        Returns:
            After an answer of 101: the server to join the client with.

        Raises:
            Refused: it may not be, no connection comes about, or it went wrong in another way.
            OSError: the client is gone.
        """
        self._injected = self._context.injections.of(target.host)
        if self._injected:
            if request.method == b"TRACE":
                raise Refused("unsafe_method", f"TRACE would show what is added to requests for {target.host}")
            access = access._replace(has_secret=True)
        if not has_body(request):
            await self._client.next()  # its end
        upstream = await self._reach(access)
        try:
            return await self._exchange(request, target, upstream)
        except ServerFailed:
            if not _may_repeat(request, upstream):
                raise
        self.close()
        return await self._exchange(request, target, await self._reach(access))

    async def _reach(self, access: AccessRequest) -> ServerPeer:
        """A connection to the server: the one that stands, if it is still one that may be."""
        self._idle.off()
        wanted = (access.host, access.port)
        if self._upstream is None or wanted != self._serves or not await self._may_serve(self._upstream, access):
            self.close()
            self.adopt(await self._context.enforcer.connect(access), access)
        self._idle.moved()
        assert self._upstream is not None
        return self._upstream

    async def _may_serve(self, upstream: ServerPeer, access: AccessRequest) -> bool:
        address = upstream.idle_at()
        return address is not None and address in map(plain, await self._context.enforcer.admit(access))

    async def _exchange(self, request: h11.Request, target: Target, upstream: ServerPeer) -> Handoff | None:
        fields, path = request_fields(request, target, self._injected), target.path
        if self._is_proxy and (outside := self._context.enforcer.upstream) is not None:
            fields, path = [*fields, *authorization(outside)], target.url
        await upstream.send(h11.Request(method=request.method, target=path, headers=fields))
        if not has_body(request):
            await upstream.send(h11.EndOfMessage())
            return await self._answer(upstream)
        try:
            async with asyncio.TaskGroup() as group:
                body = group.create_task(self._pass_body(upstream))
                handoff = await self._answer(upstream)
                body.cancel()  # a server that has answered early needs no more of it
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return handoff

    async def _pass_body(self, upstream: ServerPeer) -> None:
        event = None
        while not isinstance(event, h11.EndOfMessage):
            event = await self._client.next()
            if isinstance(event, h11.EndOfMessage):
                event = h11.EndOfMessage(headers=trailer_fields(event.headers.raw_items(), self._injected))
            try:
                await upstream.send(event)
            except ServerFailed:
                return  # it may have answered all the same: reading that will tell

    async def _answer(self, upstream: ServerPeer) -> Handoff | None:
        is_current = self._client.http.their_http_version == b"1.1"
        while isinstance(event := await upstream.next(), h11.InformationalResponse):
            if event.status_code == _SWITCHING:
                return await self._switch(event, upstream)
            if is_current:
                fields = response_fields(event)
                interim = h11.InformationalResponse(status_code=event.status_code, headers=fields, reason=event.reason)
                await self._client.send(interim)
        if self._is_proxy and event.status_code == WANTS_CREDENTIALS:
            raise ServerFailed(f"{NAMED}: {answered(event.status_code, 'a request')}")
        fields = response_fields(event)
        await self._client.send(h11.Response(status_code=event.status_code, headers=fields, reason=event.reason))
        while isinstance(event := await upstream.next(), h11.Data):
            await self._client.send(event)
        trailers = trailer_fields(event.headers.raw_items(), ()) if is_current else []
        await self._client.send(h11.EndOfMessage(headers=trailers))
        upstream.end_answer()
        return None

    async def _switch(self, answer: h11.InformationalResponse, upstream: ServerPeer) -> Handoff:
        fields = switch_fields(answer)
        await self._client.send(h11.InformationalResponse(status_code=_SWITCHING, headers=fields, reason=answer.reason))
        self._upstream = None
        return Handoff(upstream.sock, self._client.unread, upstream.unread)


def _may_repeat(request: h11.Request, upstream: ServerPeer) -> bool:
    """Whether the server closed a connection that had served before, without having seen this request, most likely
    (RFC 9112, 9.3.1)."""
    return upstream.has_served and not upstream.has_spoken and request.method in _REPEATABLE and not has_body(request)
