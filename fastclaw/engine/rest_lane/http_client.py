"""A small HTTP/1.1 client over raw non-blocking sockets: keep-alive connections, and switches to raw streams.

Owns connections towards one `unix://` or `tcp://` address and the rule when one may be used again: only after a
complete answer. h11 has the grammar. Raises what the system says (OSError, TimeoutError) and ProtocolError; what that
means for an exec is decided elsewhere. It does not know of engines, sessions or JSON. No transport of the loop is used:
uvloop's and asyncio's transports drop unread input once a write fails, and a switched connection must keep it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import h11

from fastclaw.errors import ProtocolError
from fastclaw.limits import ENGINE_IDLE_CONNECTIONS, HTTP_READ_BYTES, MAX_HTTP_BODY_BYTES, MAX_HTTP_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping


class Response(NamedTuple):
    """A complete answer. Names of headers are in lower case."""

    status: int
    body: bytes
    headers: Mapping[bytes, bytes]


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


class HttpClient:
    """A client of one address, with the connections that it keeps. Belongs to one event loop.

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

    def __repr__(self) -> str:
        return f"<HttpClient {self._address.target} {'closed' if self._closed else 'open'} idle={len(self._idle)}>"

    async def request(
        self, method: str, path: str, body: bytes | None, timeout_ms: int, *, enough: int | None = None
    ) -> Response:
        """One request and its answer, on a kept connection where there is one.

        A kept connection that the peer closed before its answer began is replaced once, for GET only: any other method
        may have taken effect.

        Parameters:
            path: origin form, already percent-encoded.
            body: JSON, sent with its exact Content-Length (a chunked body's trailer would be read as stdin by Podman
                after the switch; see register_exec.go and compat/exec.go of podman 4.3.1).
            enough: bytes of the answer's body after which no more of it is read, however long it is.

        Raises:
            TimeoutError: no complete answer within `timeout_ms`.
            OSError: no connection, or it broke.
            ProtocolError: the answer is not HTTP, or over a bound.
            ValueError, h11.LocalProtocolError: the path cannot be put on a request line.
        """
        async with asyncio.timeout(timeout_ms / 1000):
            exchange, kept = _Exchange(method, path, body, enough=enough), self._take_idle()
            if kept is not None:
                try:
                    return await self._answer(kept, exchange)
                except ConnectionError:
                    if method != "GET" or exchange.answered:
                        raise
                    exchange = _Exchange(method, path, body, enough=enough)
            return await self._answer(await self._connect(), exchange)

    async def upgrade(self, method: str, path: str, body: bytes | None, timeout_ms: int) -> Upgraded | Response:
        """Ask for a raw stream on a connection of its own. A refusal comes back as the answer it is.

        Raises:
            TimeoutError, OSError, ProtocolError, ValueError, h11.LocalProtocolError: as `request`.
        """
        exchange = _Exchange(method, path, body, upgrade=True)
        async with asyncio.timeout(timeout_ms / 1000):
            sock = await self._connect()
            await exchange.run(sock)
        if exchange.upgraded:
            return Upgraded(sock, exchange.leftover)
        sock.close()
        return exchange.response

    def idle(self) -> int:
        """Connections that are kept for later."""
        return len(self._idle)

    def close(self) -> None:
        """Close what is kept. Requests under way close their own connection as they end. Idempotent."""
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

    async def _answer(self, sock: socket.socket, exchange: _Exchange) -> Response:
        await exchange.run(sock)
        if exchange.is_over and not self._closed and len(self._idle) < ENGINE_IDLE_CONNECTIONS:
            self._idle.append(sock)
        else:
            sock.close()
        return exchange.response


class _Exchange:
    """One request and what has come of its answer.

    Parameters:
        upgrade: ask for a raw stream. 101, or a 200 without a length as Podman sends it, switches to one.

    Attributes:
        answered: at least one byte has come.
        upgraded: the connection is a raw stream now.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_enough",
        "_headers",
        "_request",
        "_size",
        "_status",
        "_upgrade",
        "answered",
        "upgraded",
    )

    def __init__(
        self, method: str, path: str, body: bytes | None, *, upgrade: bool = False, enough: int | None = None
    ) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HTTP_HEADER_BYTES)
        self._request = self._render(method, path, body, upgrade)
        self._upgrade = upgrade
        self._enough = enough
        self._status = self._size = 0
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self.answered = self.upgraded = False

    @property
    def response(self) -> Response:
        return Response(self._status, b"".join(self._body), self._headers)

    @property
    def leftover(self) -> bytes:
        """What came after the answer; after a switch the first bytes of the stream."""
        return self._connection.trailing_data[0]

    @property
    def is_over(self) -> bool:
        """The whole answer is here and nothing behind it, not even an end: the connection may carry another request."""
        http = self._connection
        return (http.our_state, http.their_state, http.trailing_data) == (h11.DONE, h11.DONE, (b"", False))

    async def run(self, sock: socket.socket) -> None:
        """Send the request, then read until the answer is complete. Closes the socket where that fails."""
        try:
            await _send_all(sock, self._request)
            await self._read_answer(sock)
        except h11.RemoteProtocolError as error:
            sock.close()
            raise ProtocolError(f"not an HTTP answer: {error}") from error
        except BaseException:
            sock.close()
            raise

    async def _read_answer(self, sock: socket.socket) -> None:
        is_complete = False
        while not is_complete:
            data = await asyncio.get_running_loop().sock_recv(sock, HTTP_READ_BYTES)
            if not data and not self.answered:
                raise ConnectionResetError("the engine closed the connection without an answer")
            self.answered = True
            self._connection.receive_data(data)
            is_complete = self._take_in()

    def _render(self, method: str, path: str, body: bytes | None, upgrade: bool) -> bytes:
        headers = [("Host", "engine")]
        if upgrade:
            headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")]  # Podman wants exactly this word
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        head = self._connection.send(h11.Request(method=method, target=path, headers=headers)) or b""
        if body is not None:
            self._connection.send(h11.Data(body))
        self._connection.send(h11.EndOfMessage())
        return head + (body or b"")

    def _take_in(self) -> bool:
        """Take in what has come."""
        while True:
            event = self._connection.next_event()
            match event:
                case h11.InformationalResponse(status_code=101):
                    self.upgraded = True  # h11 refuses it unless it was asked for
                case h11.Response():
                    self._begin(event)
                case h11.Data():
                    self._take(event.data)
            if event is h11.NEED_DATA:
                return False
            if self.upgraded or isinstance(event, h11.EndOfMessage) or self._has_enough():
                return True

    def _begin(self, event: h11.Response) -> None:
        self._status = event.status_code
        headers = self._headers = dict(event.headers)
        length = headers.get(b"content-length")
        self._check(int(length or 0))
        self.upgraded = (
            self._upgrade and event.status_code == 200 and length is None and b"transfer-encoding" not in headers
        )

    def _take(self, data: bytes) -> None:
        self._body.append(data)
        self._size += len(data)
        self._check(self._size)

    def _check(self, size: int) -> None:
        if size > MAX_HTTP_BODY_BYTES and self._enough is None:
            raise ProtocolError(f"the engine's answer is larger than {MAX_HTTP_BODY_BYTES} bytes")

    def _has_enough(self) -> bool:
        return self._enough is not None and self._size >= self._enough


async def _send_all(sock: socket.socket, data: bytes) -> None:
    """Almost every request fits the socket's buffer: try that before the loop gets involved."""
    sent = 0
    with suppress(BlockingIOError):
        sent = sock.send(data)
    if sent < len(data):
        await asyncio.get_running_loop().sock_sendall(sock, memoryview(data)[sent:])


def _is_quiet(sock: socket.socket) -> bool:
    """Neither closed by the peer nor with bytes that came unasked: fit for another request."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
