"""A client that uses the proxy as one: it asks for a tunnel with CONNECT, or for plain requests with absolute URLs.

In a tunnel nothing is decrypted, but its first words are looked at: a client that speaks TLS or plain HTTP says which
server it wants, and that must be the one that it was allowed to reach. A server that speaks first is heard at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11

from fastclaw.network.egress.addresses import BadHost, parse_host
from fastclaw.network.egress.enforcement import Asked
from fastclaw.network.egress.forward import Forwarder, Joined
from fastclaw.network.egress.policy import RULES_NAME
from fastclaw.network.egress.proxy_session import Session
from fastclaw.network.egress.targets import (
    HTTP_PORT,
    Rejected,
    absolute_target,
    connect_target,
    has_body,
    origin_target,
)
from fastclaw.network.egress.tls import may_be_tls

if TYPE_CHECKING:
    import socket

    from fastclaw.network.egress.addresses import Address

_SSL_REQUESTS = (bytes.fromhex("00000008 04d2162f"), bytes.fromhex("00000008 04d21630"))
"""SSLRequest and GSSENCRequest of PostgreSQL, whose clients ask in the clear whether they may begin with TLS ("Message
Formats" of its documentation)."""

_MAY_USE_TLS = b"S"

_RULES = (RULES_NAME, HTTP_PORT)

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Connection(Session):
    """Of a `proxy` listener."""

    async def _serve(self) -> Joined | None:
        return await self._converse()

    _tunnel: Asked | None = None
    """What was asked for, where requests are spoken in a tunnel; with the address that it leads to."""

    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Joined | None:
        method = request.method.decode("ascii")
        if self._tunnel is not None:
            target = origin_target(request, self._tunnel.host, self._tunnel.port)
            self.asked = self._tunnel._replace(host=target.host, method=method)
        elif request.method == b"CONNECT":
            return await self._connect(request)
        else:
            target = absolute_target(request)
            self.asked = Asked("http", target.host, target.port, method)
        if (target.host, target.port) == _RULES:
            await self._show_rules(request)
            return None
        return await forwarder.forward(request, self.asked, target)

    async def _connect(self, request: h11.Request) -> Joined | None:
        assert self._client is not None
        target = connect_target(request)
        self.asked = asked = Asked("connect", target.host, target.port, "CONNECT")
        if (target.host, target.port) == _RULES:
            self._tunnel = asked
            await self._loop.sock_sendall(self._near, ESTABLISHED)
            return await self._converse(self._client.unread)
        self._idle.off()
        far, address, _ = await self._gate.connect(asked)
        if address is None and not isinstance(asked.host, str):
            address = asked.host
        try:
            self._idle.moved()
            words = self._client.unread
            self._client = None  # no HTTP from here on
            await self._loop.sock_sendall(self._near, ESTABLISHED)
            return await self._first_words(far, address, words)
        except BaseException:
            far.close()
            raise

    async def _show_rules(self, request: h11.Request) -> None:
        assert self._client is not None
        if request.method not in (b"GET", b"HEAD") or has_body(request):
            raise Rejected("bad_target", f"http://{RULES_NAME}/ answers GET, and shows the rules")
        await self._client.next()  # its end
        fields = [("Content-Type", "application/json"), ("Content-Length", str(len(self._site.rules)))]
        await self._client.send(h11.Response(status_code=200, headers=fields, reason=b"OK"))
        if request.method == b"GET":
            await self._client.send(h11.Data(data=self._site.rules))
        await self._client.send(h11.EndOfMessage())

    async def _first_words(self, far: socket.socket, address: Address | None, words: bytes) -> Joined | None:
        """See what the client says first, if the server was not quicker, and join them if it may be.

        Parameters:
            address: where `far` leads; None: only a proxy outside knows.
            words: those that came with the request already.
        """
        assert self.asked is not None
        is_listed = address is not None and self._gate.policy.lists(address, self.asked.port)
        words = await self._negotiate(far, words or await self._unless_first(far))
        hello, words = await self._hello(words, is_listed=is_listed)
        if hello is not None:
            if hello.name is not None:
                self._check_name(hello.name)
            return await self._join_tls(far, hello, words)
        is_read = self._gate.policy.denies_names or self._site.injections.of(self.asked.host)
        if words and (is_read or not is_listed):
            is_request, words = await self._is_request(words)
            if is_request:
                self.asked = self._tunnel = self.asked._replace(address=address)
                return await self._converse(words, far)
        self._idle.moved()
        return Joined(far, words)

    async def _unless_first(self, far: socket.socket) -> bytes:
        """What the client says, or nothing where the server is quicker."""
        if await self._reader.first(self._near, far) is not self._near:
            return b""
        return await self._reader.receive(self._near)

    async def _negotiate(self, far: socket.socket, words: bytes) -> bytes:
        """Pass on a question whether TLS may begin, and return what the client says after the answer to it."""
        while words and any(ask.startswith(words[: len(ask)]) for ask in _SSL_REQUESTS):
            if words in _SSL_REQUESTS:
                await self._pass_on(far, words)
                answer = await self._reader.receive(far)
                self._gate.meter.received(len(answer))
                await self._loop.sock_sendall(self._near, answer)
                words = await self._reader.receive(self._near)
                if answer[:1] == _MAY_USE_TLS and words and not may_be_tls(words):
                    raise Rejected("bad_request", "what follows PostgreSQL's SSLRequest is no TLS")
            elif len(words) > len(_SSL_REQUESTS[0]):
                raise Rejected("bad_request", "PostgreSQL's SSLRequest is followed by more before its answer")
            elif more := await self._reader.receive(self._near):
                words += more
            else:
                break
        return words

    def _check_name(self, text: str) -> None:
        """That a TLS client wants the server that it asked for; of one asked for by its address, that the name is not
        denied.

        Raises:
            Rejected: it does not, or it is.
        """
        assert self.asked is not None
        asked = self.asked.host
        try:
            name = parse_host(text)
        except BadHost as error:
            raise Rejected("name_mismatch", f"the TLS server name is none: {error}") from error
        if name == asked:
            return
        if isinstance(asked, str) or not isinstance(name, str):
            raise Rejected("name_mismatch", f"the TLS server name is {name}, and CONNECT was for {asked}")
        verdict = self._gate.policy.judge_host(name, self.asked.port)
        if verdict.reason == "denied":
            raise Rejected("denied", verdict.text)
