"""A client that uses the proxy as one: it asks for a tunnel with CONNECT, or for plain requests with absolute URLs.

In a tunnel nothing is decrypted, but its first words are looked at: a client that speaks TLS says which server it
wants, and that must be the one that it was allowed to reach. A server that speaks first is heard at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclaw.decisions.addresses import BadHost, parse_host
from fastclaw.egress.forward import Forwarder, Joined
from fastclaw.egress.gate import Asked
from fastclaw.egress.session import Session
from fastclaw.egress.targets import Rejected, absolute_target, connect_target

if TYPE_CHECKING:
    import socket

    import h11

_TLS_RECORDS = range(0x14, 0x18)
"""The types of TLS records (RFC 8446, 5.1). Some servers read on behind a record that they do not want."""

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Connection(Session):
    """Of a `proxy` listener."""

    async def _serve(self) -> Joined | None:
        return await self._converse()

    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Joined | None:
        if request.method == b"CONNECT":
            return await self._connect(request)
        target = absolute_target(request)
        self._asked = Asked("http", target.host, target.port, request.method.decode("ascii"))
        return await forwarder.forward(request, self._asked, target)

    async def _connect(self, request: h11.Request) -> Joined:
        assert self._client is not None
        target = connect_target(request)
        self._asked = asked = Asked("connect", target.host, target.port, "CONNECT")
        self._patience.off()
        far = await self._gate.connect(asked)
        try:
            self._patience.moved()
            words = self._client.unread
            self._client = None  # no HTTP from here on
            await self._loop.sock_sendall(self._near, ESTABLISHED)
            return Joined(far, await self._first_words(far, words))
        except BaseException:
            far.close()
            raise

    async def _first_words(self, far: socket.socket, words: bytes) -> bytes:
        """What the client says first, checked; nothing where the server was quicker.

        Parameters:
            words: those that came with the request already.
        """
        if not words and await self._waiting.first(self._near, far) is self._near:
            words = await self._waiting.receive(self._near)
        if words and words[0] in _TLS_RECORDS:
            hello, words = await self._hello(words)
            if hello.name is not None:
                self._check_name(hello.name)
        return words

    def _check_name(self, text: str) -> None:
        """That a TLS client wants the server that it asked for; of one asked for by its address, that the name is not
        denied.

        Raises:
            Rejected: it does not, or it is.
        """
        assert self._asked is not None
        asked = self._asked.host
        try:
            name = parse_host(text)
        except BadHost as error:
            raise Rejected("name_mismatch", f"the TLS server name is none: {error}") from error
        if name == asked:
            return
        if isinstance(asked, str) or not isinstance(name, str):
            raise Rejected("name_mismatch", f"the TLS server name is {name}, and CONNECT was for {asked}")
        verdict = self._gate.policy.judge_host(name, self._asked.port)
        if verdict.reason == "denied":
            raise Rejected("denied", verdict.text)
