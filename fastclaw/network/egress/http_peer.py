"""The two ends of a plain HTTP conversation, client and server: a socket each, and h11's view of it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import h11

from fastclaw import network_limits
from fastclaw.network.egress.addresses import plain
from fastclaw.network.egress.heads import has_head, refusal
from fastclaw.network.egress.targets import Rejected

if TYPE_CHECKING:
    from fastclaw.network.egress.addresses import Address
    from fastclaw.network.egress.policy import Refused
    from fastclaw.network.egress.socket_io import IdleTimeout, SocketReader
    from fastclaw.network.egress.tunnel import Meter

SPENT = "the sandbox has used up its bytes (options.network.max_bytes)"


class UpstreamFailed(Rejected):
    """The server speaks no HTTP, or the connection to it ended in the middle."""

    def __init__(self, text: str) -> None:
        super().__init__("unreachable", text)


class _Peer:
    """Owns its socket, non-blocking, unless somebody takes it over."""

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


class Client(_Peer):
    """Who asks.

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
            Rejected: it is none.
            OSError: the client is gone.
        """
        pending = self._pending
        while not has_head(pending):
            if not (data := await self._receive()):
                if pending:
                    raise Rejected("bad_request", "the connection was closed in the middle of a request's head")
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
            Rejected: it is none.
            OSError: the client is gone.
        """
        try:
            return await self._event()
        except h11.RemoteProtocolError as error:
            # Without the bytes that it quotes: they may be a password.
            raise Rejected("bad_request", f"not HTTP: {str(error).partition(': b')[0]}") from error

    async def send(self, event: h11.Event) -> None:
        """A piece of the answer; returns when the kernel has it.

        Raises:
            UpstreamFailed: no answer has such a piece.
            OSError: the client is gone.
        """
        try:
            data = self.http.send(event)
        except h11.LocalProtocolError as error:
            raise UpstreamFailed("the server's answer cannot be passed on") from error
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


class Upstream(_Peer):
    """Who answers.

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
            UpstreamFailed: it is none, or the server is gone.
            Rejected: the budget of bytes is used up.
        """
        try:
            return await self._event()
        except h11.RemoteProtocolError as error:
            raise UpstreamFailed("the server closed the connection, or speaks no HTTP/1.1") from error
        except OSError as error:
            raise _broken(error) from error

    async def send(self, event: h11.Event) -> None:
        """A piece of the request; returns when the kernel has it.

        Raises:
            UpstreamFailed: the server is gone, or does not want to read on.
            Rejected: the budget of bytes is used up.
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

    def finish(self) -> None:
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


def _broken(error: OSError) -> UpstreamFailed:
    return UpstreamFailed(f"the connection to the server broke: {error.strerror}")


def _check_budget(is_left: bool) -> None:
    if not is_left:
        raise Rejected("too_many_bytes", SPENT)
