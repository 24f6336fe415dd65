"""HTTP over raw non-blocking sockets: a small LIFO pool of keep-alive connections, and switches to raw streams.

Owns connections towards one `unix://` or `tcp://` address and the rule when one may be used again: only after a
complete answer. Raises what the system says (OSError, TimeoutError) and ProtocolError; what that means for an exec
is decided elsewhere. It does not know of engines, sessions or JSON. No transport of the loop is used: uvloop's and
asyncio's transports drop unread input once a write fails, and a switched connection must keep it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from fastclaw.limits import ENGINE_IDLE_CONNECTIONS, HTTP_READ_BYTES
from fastclaw.podman.rest_lane.http1 import Headers, ResponseParser, render_request


class Response(NamedTuple):
    """A complete answer."""

    status: int
    headers: Headers
    body: bytes


class Upgraded(NamedTuple):
    """A connection that is a raw stream now; the caller closes it. `leftover` are its first bytes."""

    sock: socket.socket
    leftover: bytes


class Address(NamedTuple):
    """Where to connect: what `socket.socket` and `sock_connect` want."""

    family: socket.AddressFamily
    target: str | tuple[str, int]


def parse_url(url: str) -> Address:
    """The address behind `unix:///path` or `tcp://host:port`.

    Raises:
        ValueError: another scheme, or a part is missing.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return Address(socket.AF_UNIX, parts.path)
    if parts.scheme == "tcp" and parts.hostname and parts.port:
        family = socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET
        return Address(family, (parts.hostname, parts.port))
    raise ValueError(f"not an engine address (unix:///path or tcp://host:port): {url!r}")


class HttpPool:
    """Connections to one address. Belongs to one event loop.

    Parameters:
        url: `unix:///path` or `tcp://host:port`.

    Raises:
        ValueError: the URL is of no such form.
    """

    __slots__ = ("_address", "_closed", "_idle")

    def __init__(self, url: str) -> None:
        self._address = parse_url(url)
        self._idle: list[socket.socket] = []
        self._closed = False

    async def request(self, method: str, path: str, body: bytes | None, timeout_ms: int) -> Response:
        """One request and its whole answer, on a kept connection where there is one.

        A kept connection that the peer closed before its answer began is replaced once, for GET only: any other method
        may have taken effect.

        Raises:
            TimeoutError: no complete answer within `timeout_ms`.
            OSError: no connection, or it broke.
            ProtocolError: the answer is not HTTP.
        """
        async with asyncio.timeout(timeout_ms / 1000):
            kept = self._take_idle()
            if kept is not None:
                parser = ResponseParser()
                try:
                    return await self._exchange(kept, parser, render_request(method, path, body))
                except ConnectionError:
                    if method != "GET" or parser.touched:
                        raise
            sock = await self._connect()
            return await self._exchange(sock, ResponseParser(), render_request(method, path, body))

    async def beginning(self, path: str, enough: int, timeout_ms: int) -> Response:
        """The answer to a GET of which the first bytes do, on a connection of its own.

        Parameters:
            enough: bytes of its body after which no more is read.

        Raises:
            TimeoutError, OSError, ProtocolError: as `request`.
        """
        parser = ResponseParser(enough=enough)
        async with asyncio.timeout(timeout_ms / 1000):
            sock = await self._connect()
            try:
                await _converse(sock, parser, render_request("GET", path, None))
            finally:
                sock.close()
        return Response(parser.status, parser.headers, parser.body)

    async def upgrade(self, method: str, path: str, body: bytes | None, timeout_ms: int) -> Upgraded | Response:
        """Ask for a raw stream on a connection of its own. A refusal comes back as the answer it is.

        Raises:
            TimeoutError, OSError, ProtocolError: as `request`.
        """
        parser = ResponseParser(upgrade=True)
        async with asyncio.timeout(timeout_ms / 1000):
            sock = await self._connect()
            try:
                await _converse(sock, parser, render_request(method, path, body, upgrade=True))
            except BaseException:
                sock.close()
                raise
        if parser.upgraded:
            return Upgraded(sock, parser.leftover)
        sock.close()
        return Response(parser.status, parser.headers, parser.body)

    def idle(self) -> int:
        """Connections that are kept for later."""
        return len(self._idle)

    def close(self) -> None:
        """Close what is kept. Requests under way close their own connection as they end."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _take_idle(self) -> socket.socket | None:
        while self._idle:
            sock = self._idle.pop()
            if _is_quiet(sock):
                return sock
            sock.close()
        return None

    async def _connect(self) -> socket.socket:
        sock = socket.socket(self._address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if self._address.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, self._address.target)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _exchange(self, sock: socket.socket, parser: ResponseParser, request: bytes) -> Response:
        reusable = False
        try:
            await _converse(sock, parser, request)
            reusable = parser.keep_alive and not parser.leftover
        finally:
            self._put_back(sock, reusable)
        return Response(parser.status, parser.headers, parser.body)

    def _put_back(self, sock: socket.socket, reusable: bool) -> None:
        if reusable and not self._closed and len(self._idle) < ENGINE_IDLE_CONNECTIONS:
            self._idle.append(sock)
        else:
            sock.close()


async def _converse(sock: socket.socket, parser: ResponseParser, request: bytes) -> None:
    """Send, then read until the answer is complete."""
    loop = asyncio.get_running_loop()
    await _send_all(loop, sock, request)
    while True:
        data = await loop.sock_recv(sock, HTTP_READ_BYTES)
        if not data:
            if not parser.touched:
                raise ConnectionResetError("the engine closed the connection without an answer")
            parser.feed_eof()
            return
        if parser.feed(data):
            return


async def _send_all(loop: asyncio.AbstractEventLoop, sock: socket.socket, data: bytes) -> None:
    """Almost every request fits the socket's buffer: try that before the loop gets involved."""
    sent = 0
    with suppress(BlockingIOError):
        sent = sock.send(data)
    if sent < len(data):
        await loop.sock_sendall(sock, memoryview(data)[sent:])


def _is_quiet(sock: socket.socket) -> bool:
    """Neither closed by the peer nor with bytes nobody asked for: fit for another request."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
