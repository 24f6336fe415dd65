"""One client's connection, from its first byte to its end or to a tunnel.

A client of a `proxy` listener asks for a tunnel with CONNECT, or for plain requests with absolute URLs. In a tunnel
nothing is decrypted, but its first words are looked at: a client that speaks TLS or plain HTTP says which server it
wants, and that must be the one that it was allowed to reach. A server that speaks first is heard at once.

A client of a `transparent` listener knows of no proxy: the firewall has turned its connection to us (DNAT). The kernel
says where it was going; the client names its server, in its TLS greeting or in the Host field of its request. That
has to agree with the address, and the connection goes to that address.

Nothing is decided here: requests are read, decided elsewhere and carried out, and the client is told what became of
them in words that it understands.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Protocol

import h11

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.linux.sockets import reset_on_close
from fastclaw.network.egress import tls
from fastclaw.network.egress.addresses import Address, BadHost, parse_host
from fastclaw.network.egress.dialing import Dialled
from fastclaw.network.egress.enforcement import AccessRequest
from fastclaw.network.egress.forward import ClientPeer, Forwarder, Handoff, SandboxContext
from fastclaw.network.egress.http_messages import (
    HTTP_PORT,
    absolute_target,
    check,
    connect_target,
    has_body,
    is_request,
    origin_target,
)
from fastclaw.network.egress.policy import RULES_NAME, SPENT, Refused
from fastclaw.network.egress.socket_io import IdleTimeout, close_gently

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    CarryOut = Callable[[h11.Request, Forwarder], Awaitable[Handoff | None]]
    """Does one request whose head has been read; returns the server to join the client with, where no HTTP follows."""

TLS_DENIED = bytes.fromhex("15 0303 0002 02 31")
"""A fatal alert, access_denied (RFC 8446, 6.2), in a record of its own."""

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

_SSL_REQUESTS = (bytes.fromhex("00000008 04d2162f"), bytes.fromhex("00000008 04d21630"))
"""SSLRequest and GSSENCRequest of PostgreSQL, whose clients ask in the clear whether they may begin with TLS ("Message
Formats" of its documentation)."""

_MAY_USE_TLS = b"S"

_RULES = (RULES_NAME, HTTP_PORT)

_SO_ORIGINAL_DST = 80  # include/uapi/linux/netfilter_ipv4.h, and for IPv6 netfilter_ipv6/ip6_tables.h
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


class Dialect(Protocol):
    """How a client speaks to the proxy."""

    async def serve(self) -> Handoff | None:
        """All of one connection; the server to join it with in the end, or None."""


class Session:
    """One client's connection, and what both kinds of clients have in common.

    Parameters:
        near: accepted, non-blocking; closed by `run` unless the client is to be joined with a server.
        dialect: `ProxyDialect` or `TransparentDialect`.

    Attributes:
        access: what the client wants, as far as it is known.
        client: its side of HTTP, while it speaks that.
        idle: when the connection is given up.
    """

    idle: IdleTimeout

    def __init__(self, near: socket.socket, context: SandboxContext, dialect: Callable[[Session], Dialect]) -> None:
        self.near = near
        self.context = context
        self.enforcer = context.enforcer
        self.access: AccessRequest | None = None
        self.client: ClientPeer | None = None
        self.receive = context.reader.receive
        self.send_all = asyncio.get_running_loop().sock_sendall
        self._dialect = dialect
        self._is_tls = self._has_greeted = False

    async def run(self) -> Handoff | None:
        """Serve the client.

        Returns:
            The server to join it with; None: it is closed.
        """
        handoff = None
        try:
            handoff = await self._guarded()
            if handoff is None:
                await close_gently(self.near, self.context.reader)
        except (OSError, TimeoutError):
            pass  # the client is gone, or does not read what it is told
        finally:
            if handoff is None:
                self.near.close()
        return handoff

    async def _guarded(self) -> Handoff | None:
        try:
            async with asyncio.timeout(network_limits.EGRESS_HEAD_MS / 1000) as timeout:
                self.idle = IdleTimeout(timeout, self.context.idle_s)
                return await self._dialect(self).serve()
        except Refused as refused:
            await self._tell(await self.enforcer.record(refused, self.access))
        except TimeoutError:
            await self._give_up()
        return None

    async def converse(
        self, carry_out: CarryOut, early: bytes = b"", far: socket.socket | None = None
    ) -> Handoff | None:
        """Requests and their answers, one after the other.

        Parameters:
            early: what was read before.
            far: to the server that was asked for last, where there is a connection already; taken over.
        """
        self.client = client = ClientPeer(self.near, self.idle, self.context.reader, early)
        forwarder = Forwarder(client, self.context, self.idle)
        if far is not None and self.access is not None:
            forwarder.adopt(Dialled(far, self.access.address), self.access)
        try:
            while (request := await client.request()) is not None:
                check(request)
                handoff = await carry_out(request, forwarder)
                if handoff is not None or not client.goes_on():
                    return handoff
                self.access = None
        finally:
            forwarder.close()
        return None

    async def hello(self, words: bytes, *, is_listed: bool) -> tuple[tls.ClientHello | None, bytes]:
        """A client's TLS greeting, or None where it speaks something else; with all bytes that were read.

        Parameters:
            words: its beginning.
            is_listed: the address is one that a rule lists: what looks like TLS and is none is for its server to judge.

        Raises:
            Refused: it looks like TLS and cannot be read as a greeting, or ends in its middle.
        """
        if tls.may_be_tls(words):
            self.idle.within(network_limits.EGRESS_HEAD_MS / 1000)
        try:
            while tls.may_be_tls(words):
                self._is_tls = True
                if (hello := tls.sniff(words)) is not None:
                    return hello, words
                if not (more := await self.receive(self.near)):
                    raise ProtocolError("the connection was closed in the middle of a TLS ClientHello")
                words += more
        except ProtocolError as error:
            if not is_listed:
                raise _unreadable(error) from error
        self._is_tls = False
        return None, words

    async def is_request(self, words: bytes) -> tuple[bool, bytes]:
        """Whether a client speaks plain HTTP; with all bytes that were read.

        Parameters:
            words: its first ones.

        Raises:
            Refused: it cannot be told.
        """
        self.idle.within(network_limits.EGRESS_HEAD_MS / 1000)
        while (found := is_request(words)) is None:
            if len(words) > network_limits.EGRESS_HEAD_BYTES:
                raise Refused("bad_request", "the first line has no end")
            if not (more := await self.receive(self.near)):
                return False, words
            words += more
        return found, words

    async def join_tls(self, far: socket.socket, hello: tls.ClientHello, words: bytes) -> Handoff:
        """Join a client whose greeting was checked with its server.

        A server may ask for another greeting (HelloRetryRequest); that has to name the same server. So what comes
        behind the first one waits until the server has answered.

        Parameters:
            words: the greeting and what came behind it.
        """
        self._has_greeted = True
        self.idle.moved()
        await self.pass_on(far, words[: hello.size])
        words, said = await self._hear_server(far, words[hello.size :])
        if not tls.asks_again(said):
            return Handoff(far, words, said)
        self.enforcer.meter.received(len(said))
        await self.send_all(self.near, said)
        self.idle.within(network_limits.EGRESS_HEAD_MS / 1000)
        try:
            while (again := tls.sniff_again(words)) is None:
                if not (more := await self.receive(self.near)):
                    raise ProtocolError("the connection was closed before the second TLS ClientHello")
                words += more
        except ProtocolError as error:
            raise _unreadable(error) from error
        if again.name != hello.name:
            raise Refused("name_mismatch", f"the second TLS ClientHello names {again.name}, the first {hello.name}")
        return Handoff(far, words)

    async def _hear_server(self, far: socket.socket, words: bytes) -> tuple[bytes, bytes]:
        """What the client and the server said until it is clear what the server answers, or until it ends.

        Parameters:
            words: what the client has said already.
        """
        said, heard = b"", [far, self.near]
        while tls.asks_again(said) is None:
            if await self.context.reader.first(*heard) is far:
                if not (more := await self.receive(far)):
                    break
                said += more
                continue
            more = await self.receive(self.near)
            words += more
            if not more or len(words) > network_limits.TLS_EARLY_BYTES:
                heard = [far]
            if not more:  # it has left, most likely
                self.idle.within(network_limits.EGRESS_HEAD_MS / 1000)
        return words, said

    async def pass_on(self, far: socket.socket, data: bytes) -> None:
        """Send to the server what the client said.

        Raises:
            Refused: the budget of bytes is used up.
        """
        if not self.enforcer.meter.sent(len(data)):
            raise Refused("too_many_bytes", SPENT)
        await self.send_all(far, data)

    async def _tell(self, refused: Refused) -> None:
        """Answer with a refusal, if the client still waits for an answer; else see that what it has looks cut off."""
        async with asyncio.timeout(network_limits.EGRESS_PART_MS / 1000):
            if self._is_tls:
                await self.send_all(self.near, TLS_DENIED)
            elif self.client is not None and self.client.is_unanswered:
                await self.client.refuse(refused)
            else:
                reset_on_close(self.near)
                self.near.close()

    async def _give_up(self) -> None:
        """Nothing moved for too long. A client that has not begun to ask gets no answer."""
        is_greeting = self._is_tls and not self._has_greeted
        if is_greeting or (self.client is not None and self.client.has_begun):
            text = f"the first words took longer than {network_limits.EGRESS_HEAD_MS} ms"
            refused = Refused("bad_request", text)
        elif self.access is not None:
            refused = Refused("idle_timeout", self.context.idle_text)
        else:
            return
        await self._tell(await self.enforcer.record(refused, self.access))


def _unreadable(error: ProtocolError) -> Refused:
    return Refused("bad_request", str(error).removeprefix(error.prefix))


class ProxyDialect:
    """A client that uses the proxy as one: it asks for tunnels, or for requests with absolute URLs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tunnel: AccessRequest | None = None
        """What was asked for, where requests are spoken in a tunnel; with the address that it leads to."""

    async def serve(self) -> Handoff | None:
        """All of one connection."""
        return await self._session.converse(self._carry_out)

    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Handoff | None:
        session, method = self._session, request.method.decode("ascii")
        if self._tunnel is not None:
            target = origin_target(request, self._tunnel.host, self._tunnel.port)
            session.access = self._tunnel._replace(host=target.host, method=method)
        elif request.method == b"CONNECT":
            return await self._connect(request)
        else:
            target = absolute_target(request)
            session.access = AccessRequest("http", target.host, target.port, method)
        if (target.host, target.port) == _RULES:
            await self._show_rules(request)
            return None
        return await forwarder.forward(request, session.access, target)

    async def _connect(self, request: h11.Request) -> Handoff | None:
        session = self._session
        assert session.client is not None
        target = connect_target(request)
        session.access = access = AccessRequest("connect", target.host, target.port, "CONNECT")
        if (target.host, target.port) == _RULES:
            self._tunnel = access
            await session.send_all(session.near, ESTABLISHED)
            return await session.converse(self._carry_out, session.client.unread)
        session.idle.off()
        far, address, _ = await session.enforcer.connect(access)
        if address is None and not isinstance(access.host, str):
            address = access.host
        try:
            session.idle.moved()
            words = session.client.unread
            session.client = None  # no HTTP from here on
            await session.send_all(session.near, ESTABLISHED)
            return await self._first_words(access, far, address, words)
        except BaseException:
            far.close()
            raise

    async def _show_rules(self, request: h11.Request) -> None:
        client, rules = self._session.client, self._session.context.rules
        assert client is not None
        if request.method not in (b"GET", b"HEAD") or has_body(request):
            raise Refused("bad_target", f"http://{RULES_NAME}/ answers GET, and shows the rules")
        await client.next()  # its end
        fields = [("Content-Type", "application/json"), ("Content-Length", str(len(rules)))]
        await client.send(h11.Response(status_code=200, headers=fields, reason=b"OK"))
        if request.method == b"GET":
            await client.send(h11.Data(data=rules))
        await client.send(h11.EndOfMessage())

    async def _first_words(
        self, access: AccessRequest, far: socket.socket, address: Address | None, words: bytes
    ) -> Handoff | None:
        """See what the client says first, if the server was not quicker, and join them if it may be.

        Parameters:
            address: where `far` leads; None: only a proxy outside knows.
            words: those that came with the request already.
        """
        session, policy = self._session, self._session.enforcer.policy
        is_listed = address is not None and policy.lists(address, access.port)
        words = await self._negotiate(far, words or await self._unless_first(far))
        hello, words = await session.hello(words, is_listed=is_listed)
        if hello is not None:
            if hello.name is not None:
                self._check_name(access, hello.name)
            return await session.join_tls(far, hello, words)
        is_read = policy.denies_names or session.context.injections.of(access.host)
        if words and (is_read or not is_listed):
            is_http, words = await session.is_request(words)
            if is_http:
                session.access = self._tunnel = access._replace(address=address)
                return await session.converse(self._carry_out, words, far)
        session.idle.moved()
        return Handoff(far, words)

    async def _unless_first(self, far: socket.socket) -> bytes:
        """What the client says, or nothing where the server is quicker."""
        near = self._session.near
        if await self._session.context.reader.first(near, far) is not near:
            return b""
        return await self._session.receive(near)

    async def _negotiate(self, far: socket.socket, words: bytes) -> bytes:
        """Pass on a question whether TLS may begin, and return what the client says after the answer to it."""
        session, near = self._session, self._session.near
        while words and any(ask.startswith(words[: len(ask)]) for ask in _SSL_REQUESTS):
            if words in _SSL_REQUESTS:
                await session.pass_on(far, words)
                answer = await session.receive(far)
                session.enforcer.meter.received(len(answer))
                await session.send_all(near, answer)
                words = await session.receive(near)
                if answer[:1] == _MAY_USE_TLS and words and not tls.may_be_tls(words):
                    raise Refused("bad_request", "what follows PostgreSQL's SSLRequest is no TLS")
            elif len(words) > len(_SSL_REQUESTS[0]):
                raise Refused("bad_request", "PostgreSQL's SSLRequest is followed by more before its answer")
            elif more := await session.receive(near):
                words += more
            else:
                break
        return words

    def _check_name(self, access: AccessRequest, text: str) -> None:
        """That a TLS client wants the server that it asked for; of one asked for by its address, that the name is not
        denied.

        Raises:
            Refused: it does not, or it is.
        """
        name = _tls_name(text)
        if name == access.host:
            return
        if isinstance(access.host, str) or not isinstance(name, str):
            raise Refused("name_mismatch", f"the TLS server name is {name}, and CONNECT was for {access.host}")
        verdict = self._session.enforcer.policy.judge_host(name, access.port)
        if verdict.reason == "denied":
            raise Refused("denied", verdict.text)


def _tls_name(text: str) -> str | Address:
    try:
        return parse_host(text)
    except BadHost as error:
        raise Refused("name_mismatch", f"the TLS server name is none: {error}") from error


def original_destination(connection: socket.socket) -> tuple[Address, int] | None:
    """Where a redirected connection was going to; None: to us."""
    try:
        if connection.family == socket.AF_INET6:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, packed = _SOCKADDR_IN6.unpack(raw)
            address: Address = IPv6Address(packed)
        else:
            raw = connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
            port, packed = _SOCKADDR_IN.unpack(raw)
            address = IPv4Address(packed)
    except OSError:  # the kernel has tracked no such connection
        return None
    ours = connection.getsockname()
    return None if (str(address), port) == (ours[0], ours[1]) else (address, port)


class TransparentDialect:
    """A client that knows of no proxy: the firewall has turned its connection to us."""

    _address: Address
    _port: int

    def __init__(self, session: Session) -> None:
        self._session = session

    async def serve(self) -> Handoff | None:
        """All of one connection."""
        session = self._session
        words = await session.receive(session.near)
        if not words:
            return None
        destination = original_destination(session.near)
        if destination is None:
            session.client = ClientPeer(session.near, session.idle, session.context.reader)
            raise Refused("bad_target", "this port is for connections that the firewall turns to it")
        self._address, self._port = destination
        is_listed = session.enforcer.policy.lists(*destination)
        hello, words = await session.hello(words, is_listed=is_listed)
        if hello is not None:
            return await self._join(hello, words)
        if is_listed:
            is_http, words = await session.is_request(words)
            if not is_http:  # neither: an address that a rule lists needs no name
                return Handoff(await self._connect(self._address), words)
        return await session.converse(self._carry_out, words)

    async def _connect(self, host: str | Address) -> socket.socket:
        session = self._session
        session.access = AccessRequest("transparent", host, self._port, None, self._address)
        session.idle.off()
        return (await session.enforcer.connect(session.access)).socket

    async def _join(self, hello: tls.ClientHello, words: bytes) -> Handoff:
        far = await self._connect(self._address if hello.name is None else _tls_name(hello.name))
        try:
            return await self._session.join_tls(far, hello, words)
        except BaseException:
            far.close()
            raise

    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Handoff | None:
        target = origin_target(request, self._address, self._port)
        method = request.method.decode("ascii")
        self._session.access = AccessRequest("transparent", target.host, self._port, method, self._address)
        return await forwarder.forward(request, self._session.access, target)
