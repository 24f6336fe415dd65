"""Answers the sandbox's questions for addresses, of names that it may reach and of no others.

A question for any other name goes nowhere: it is refused here, for the question itself tells whoever serves that name
what is in it. What is answered are addresses that were checked, as for a connection; the gate remembers them, so that a
connection to one of them may call itself by the name.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fastclaw import limits, network_limits
from fastclaw.errors import ProtocolError
from fastclaw.network.egress import dns
from fastclaw.network.egress.addresses import BadHost, parse_host
from fastclaw.network.egress.dialing import Missing
from fastclaw.network.egress.dns import Rcode
from fastclaw.network.egress.enforcement import Asked
from fastclaw.network.egress.policy import Quota, Refused

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine
    from typing import Any

    from fastclaw.network.egress.enforcement import Gate
    from fastclaw.network.egress.policy import Reason

_LENGTH_BYTES = 2  # before each message over TCP (RFC 1035, 4.2.2)
_MOST_BYTES = 2 ** (8 * _LENGTH_BYTES) - 1

_RCODES: dict[Reason, Rcode] = {"unresolved": Rcode.SERVFAIL, "connect_timeout": Rcode.SERVFAIL}
"""What is said instead of REFUSED; of a name that there is not, NXDOMAIN."""


class Names:
    """Parameters:
    is_inside: whether a client's address is the sandbox's; questions of others are not answered.
    """

    def __init__(self, gate: Gate, is_inside: Callable[[str], bool]) -> None:
        self._gate, self._is_inside = gate, is_inside
        self._loop = asyncio.get_running_loop()
        self._quota = Quota(network_limits.DNS_QUESTIONS, network_limits.DNS_QUESTIONS_PER_S, None)
        self._sockets: dict[int, socket.socket] = {}
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._clients = 0
        self._dropped = 0
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._telling: asyncio.TimerHandle | None = None

    def serve_udp(self, id: int, sock: socket.socket) -> None:
        """Answer what comes over a bound socket; takes it over."""
        self._serve(id, sock, self._on_datagrams)

    def serve_tcp(self, id: int, sock: socket.socket) -> None:
        """Answer what comes over connections to a listening socket; takes it over."""
        self._serve(id, sock, self._on_connections)

    def remove(self, id: int) -> None:
        """Close a socket, and end what came over it. Idempotent."""
        sock = self._sockets.pop(id, None)
        if sock is None:
            return
        timer = self._timers.pop(id, None)
        if timer is not None:
            timer.cancel()
        self._loop.remove_reader(sock)
        sock.close()
        for task, origin in self._tasks.items():
            if origin == id:
                task.cancel()

    async def aclose(self) -> None:
        """Close all, and wait until nothing asks the gate any more. Idempotent."""
        for id in list(self._sockets):
            self.remove(id)
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
            await self._tell_of_dropped()

    def _serve(self, id: int, sock: socket.socket, on_readable: Callable[[int, socket.socket], None]) -> None:
        sock.setblocking(False)
        self._sockets[id] = sock
        self._loop.add_reader(sock, on_readable, id, sock)

    def _spawn(self, id: int, work: Coroutine[Any, Any, None], on_end: Callable[[], None]) -> None:
        """Parameters:
        on_end: called also if `work` is cancelled before it began.
        """
        task = self._loop.create_task(work, name="names")
        self._tasks[task] = id
        task.add_done_callback(partial(self._on_end, on_end))

    def _on_end(self, on_end: Callable[[], None], task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        on_end()

    # --- questions ---

    async def _answer(self, message: bytes, peer: str, max_bytes: int | None = None) -> bytes | None:
        """What to say to a message; None: nothing.

        Parameters:
            max_bytes: of the answer; None: what suits a datagram.
        """
        try:
            query = dns.parse(message)
        except ProtocolError:
            return None
        if not self._is_inside(peer):
            await self._gate.refuse(_asked(query), "not_from_sandbox", f"a question for a name came from {peer}")
            return None
        if query.fault is not None:
            await self._gate.refuse(_asked(query), "bad_request", f"a question for a name that is a {query.fault.name}")
            return dns.failure(query, query.fault)
        return await self._look_up(query, dns.udp_bytes(query) if max_bytes is None else max_bytes)

    async def _look_up(self, query: dns.Query, max_bytes: int) -> bytes:
        try:
            name = await self._host_name(query)
            addresses = await self._gate.admit(Asked("dns", name, 0))
        except Missing:
            return dns.failure(query, Rcode.NXDOMAIN)
        except Refused as refused:
            return dns.failure(query, _RCODES.get(refused.reason, Rcode.REFUSED))
        self._gate.remember(name, addresses)
        return dns.answer(query, addresses, max_bytes)

    async def _host_name(self, query: dns.Query) -> str:
        """The name as the policy knows it. One that a resolver would take for an address is none.

        Raises:
            Refused: `bad_target`.
        """
        with suppress(BadHost):
            if query.name is not None and isinstance(host := parse_host(query.name), str):
                return host
        raise await self._gate.refuse(_asked(query), "bad_target", "a question for a name that no host can have")

    def _may_ask(self) -> bool:
        """Whether one more question is taken up: then `_quota.leave` must follow. Else it is told of later."""
        if self._quota.enter(self._loop.time()) is None:
            return True
        self._dropped += 1
        if self._telling is None:
            self._telling = self._loop.call_later(network_limits.DNS_DROPPED_MS / 1000, self._on_dropped)
        return False

    def _on_dropped(self) -> None:
        self._telling = None
        self._spawn(_NOBODY, self._tell_of_dropped(), _nothing)

    async def _tell_of_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        await self._gate.refuse(Asked("dns", "", 0), "too_fast", f"{dropped} questions for names were dropped")

    # --- over UDP ---

    def _on_datagrams(self, id: int, sock: socket.socket) -> None:
        for _ in range(network_limits.DNS_BURST):
            try:
                message, peer = sock.recvfrom(network_limits.DNS_QUERY_BYTES)
            except OSError:  # there is no more for now, or a report on an answer that did not arrive
                return
            if self._may_ask():
                self._spawn(id, self._on_datagram(sock, message, peer), self._quota.leave)

    async def _on_datagram(self, sock: socket.socket, message: bytes, peer: tuple[Any, ...]) -> None:
        answer = await self._answer(message, peer[0])
        if answer is not None:
            with suppress(OSError):  # who cannot be reached asks again
                sock.sendto(answer, peer)

    # --- over TCP ---

    def _on_connections(self, id: int, sock: socket.socket) -> None:
        for _ in range(network_limits.DNS_BURST):
            try:
                client, peer = sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor is left
                self._pause(id, sock)
                return
            if self._may_connect():
                client.setblocking(False)
                self._spawn(id, self._on_client(client, peer[0]), partial(self._on_client_gone, client))
            else:
                client.close()

    def _pause(self, id: int, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        resume = partial(self._loop.add_reader, sock, self._on_connections, id, sock)
        self._timers[id] = self._loop.call_later(limits.ACCEPT_RETRY_MS / 1000, resume)

    def _may_connect(self) -> bool:
        """Whether one more client is served: then `_on_client_gone` must follow."""
        if self._clients >= network_limits.DNS_CLIENTS:
            return False
        try:
            self._gate.enter()
        except Refused:
            return False
        self._clients += 1
        return True

    async def _on_client(self, client: socket.socket, peer: str) -> None:
        with suppress(OSError, EOFError):
            while await self._converse(client, peer):
                pass

    def _on_client_gone(self, client: socket.socket) -> None:
        client.close()
        self._clients -= 1
        self._gate.leave()

    async def _converse(self, client: socket.socket, peer: str) -> bool:
        """One question and its answer. False: no more.

        Raises:
            OSError, EOFError, TimeoutError: the client is gone, or too slow.
        """
        async with asyncio.timeout(network_limits.DNS_IDLE_MS / 1000):
            length = int.from_bytes(await self._read(client, _LENGTH_BYTES))
            if length > network_limits.DNS_QUERY_BYTES:
                return False
            message = await self._read(client, length)
        if not self._may_ask():
            return False
        try:
            answer = await self._answer(message, peer, _MOST_BYTES)
        finally:
            self._quota.leave()
        if answer is None:
            return False
        async with asyncio.timeout(network_limits.DNS_IDLE_MS / 1000):
            await self._loop.sock_sendall(client, len(answer).to_bytes(_LENGTH_BYTES) + answer)
        return True

    async def _read(self, client: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._loop.sock_recv(client, size - len(data))
            if not more:
                raise EOFError
            data += more
        return data


_NOBODY = -1
"""Where work comes from that no socket has brought."""


def _nothing() -> None:
    """What is to be done at the end of work that holds nothing."""


def _asked(query: dns.Query) -> Asked:
    return Asked("dns", query.name or "", 0)
