"""Everything that a sandbox's listeners bring: connections are taken in, served, and ended with their listener.

A connection has one task until it is closed or becomes a tunnel, and is known here all the time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from fastclaw import limits, network_limits
from fastclaw.linux.poller import Poller
from fastclaw.network.egress.dns_server import Names
from fastclaw.network.egress.enforcement import Gate
from fastclaw.network.egress.forward import Site
from fastclaw.network.egress.http_messages import Injections, refusal
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.sessions import Connection, Transparent
from fastclaw.network.egress.socket_io import SocketReader, close_gently
from fastclaw.network.egress.tunnel import PipePool, Tunnel

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable, Coroutine

    from fastclaw.network.egress.accounting import Counters
    from fastclaw.network.egress.dialing import Lookup
    from fastclaw.network.egress.enforcement import Asked
    from fastclaw.network.egress.forward import Joined
    from fastclaw.network.egress.proxy_frames import EgressConfig, Role
    from fastclaw.network.egress.sessions import Session

Done = TypeVar("Done")

logger = logging.getLogger(__name__)

_SESSIONS: dict[str, type[Session]] = {"proxy": Connection, "transparent": Transparent}


class _Place:
    """A listener, and what came over it."""

    def __init__(self, sock: socket.socket, session: type[Session]) -> None:
        self.socket = sock
        self.session = session
        self.retry: asyncio.TimerHandle | None = None
        self.tasks: set[Task[Any]] = set()
        self.tunnels: dict[Tunnel, Asked | None] = {}
        self.is_closed = False


class Server:
    """Parameters:
    counters: stay their owner's.
    on_trouble: told what a person should know, in one line.
    lookup: instead of the host's resolver.

    Raises:
        InvalidParams: a rule is none.
        ValueError: a field to be added, or the subnet, is none.
        OSError: a socket of the kernel's that is needed is not to be had.
    """

    def __init__(
        self,
        config: EgressConfig,
        counters: Counters,
        on_trouble: Callable[[str], None],
        lookup: Lookup | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._subnet = None if config.subnet is None else ip_network(config.subnet)
        injections = Injections(config.inject)
        self.gate = Gate(config, counters, on_trouble, lookup)
        self._poller = Poller()
        self._reader = SocketReader(self._poller)
        self._site = Site(self.gate, injections, _rules(config), self._reader, config.idle_timeout_ms / 1000)
        self._names = Names(self.gate, self.is_inside)
        self._pipes = PipePool(self._poller)
        self._places: dict[int, _Place] = {}
        self._tasks: set[Task[Any]] = set()
        self._addresses: set[str] = set()
        self._leaving = 0
        self._is_closed = False
        self._sweeper = self._loop.call_later(self._site.idle_s / network_limits.EGRESS_SWEEPS, self._sweep)

    def add(self, id: int, role: Role, sock: socket.socket) -> None:
        """Serve a socket, from now on.

        Parameters:
            sock: listening (a bound one for `dns_udp`); taken over.
        """
        sock.setblocking(False)
        address, port = sock.getsockname()[:2]
        self._addresses.add(address)
        self.gate.closed_ports.add(port)
        if role == "dns_udp":
            self._names.serve_udp(id, sock)
        elif role == "dns_tcp":
            self._names.serve_tcp(id, sock)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it
            place = self._places[id] = _Place(sock, _SESSIONS[role])
            self._loop.add_reader(sock, self._on_ready, place)

    def remove(self, id: int) -> None:
        """Stop serving a socket, and end what came over it. Idempotent."""
        self._names.remove(id)
        if (place := self._places.pop(id, None)) is not None:
            self._close(place)

    def _close(self, place: _Place) -> None:
        if place.retry is not None:
            place.retry.cancel()
        self._loop.remove_reader(place.socket)
        place.socket.close()
        place.is_closed = True
        for task in place.tasks:
            task.cancel()
        for tunnel in list(place.tunnels):
            tunnel.close()

    async def aclose(self) -> None:
        """End everything. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._sweeper.cancel()
        for id in list(self._places):
            self.remove(id)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._names.aclose()
        await self.gate.aclose()
        self._pipes.close()
        self._poller.close()

    # --- taking in ---

    def is_inside(self, peer: str) -> bool:
        """Whether a client's address is the sandbox's: of its subnet, and not this host's address in it."""
        if self._subnet is None:
            return True
        return ip_address(peer) in self._subnet and peer not in self._addresses

    def _on_ready(self, place: _Place) -> None:
        for _ in range(network_limits.EGRESS_ACCEPT_BURST):
            try:
                near, peer = place.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor, no memory: the backlog stays ready meanwhile
                self._pause(place, error)
                return
            near.setblocking(False)
            self._take_in(place, near, peer[0])

    def _pause(self, place: _Place, error: OSError) -> None:
        logger.warning("no connection can be accepted at the moment: %s", error)
        self._loop.remove_reader(place.socket)
        resume = (place.socket, self._on_ready, place)
        place.retry = self._loop.call_later(limits.ACCEPT_RETRY_MS / 1000, self._loop.add_reader, *resume)

    def _take_in(self, place: _Place, near: socket.socket, peer: str) -> None:
        try:
            if self.is_inside(peer):
                self.gate.enter()
                session = place.session(near, self._site)
                self._own(place, session.run(), partial(self._on_served, place, session, near))
            else:
                self._turn_away(place, near, self.gate.refuse(None, "not_from_sandbox", f"{peer} is not the sandbox's"))
        except Refused as refused:
            self._turn_away(place, near, _known(refused))

    def _own(self, place: _Place, work: Coroutine[Any, Any, Done], on_done: Callable[[Done | None], None]) -> None:
        task = self._loop.create_task(work)
        place.tasks.add(task)
        self._tasks.add(task)

        def on_end(task: Task[Done]) -> None:
            place.tasks.discard(task)
            self._tasks.discard(task)
            on_done(_result(task))

        task.add_done_callback(on_end)

    # --- serving ---

    def _on_served(self, place: _Place, session: Session, near: socket.socket, joined: Joined | None) -> None:
        """A session is over, also one that was ended before it began."""
        if joined is None:
            near.close()
            self.gate.leave()
            return

        def on_end(tunnel: Tunnel) -> None:
            del place.tunnels[tunnel]
            self.gate.leave()

        tunnel = Tunnel(near, joined.far, self._pipes, self.gate.meter, on_end)
        place.tunnels[tunnel] = session.asked
        tunnel.start(to_far=joined.to_far, to_near=joined.to_near)
        if place.is_closed:
            tunnel.close()

    def _turn_away(self, place: _Place, near: socket.socket, why: Coroutine[Any, Any, Refused]) -> None:
        if self._leaving < network_limits.EGRESS_LEAVING:
            self._leaving += 1
            self._own(place, _see_out(near, self._reader, why), partial(self._on_seen_out, near))
        else:
            why.close()
            near.close()

    def _on_seen_out(self, near: socket.socket, _: None) -> None:
        near.close()
        self._leaving -= 1

    def _sweep(self) -> None:
        """Cut the tunnels in which nothing has moved for too long, and say so."""
        self._sweeper = self._loop.call_later(self._site.idle_s / network_limits.EGRESS_SWEEPS, self._sweep)
        oldest = self._loop.time() - self._site.idle_s
        for place in self._places.values():
            for tunnel, asked in [found for found in place.tunnels.items() if found[0].last_moved < oldest]:
                tunnel.close()
                self._own(place, self.gate.refuse(asked, "idle_timeout", self._site.idle_text), _nothing)


async def _see_out(near: socket.socket, reader: SocketReader, why: Coroutine[Any, Any, Refused]) -> None:
    """Tell a client that is not served why, whatever it may have asked for."""
    refused = await why
    with suppress(OSError):  # it is gone
        near.send(refusal(refused, has_body=True))
        await close_gently(near, reader)


def _rules(config: EgressConfig) -> bytes:
    """What a program inside may know: no secret."""
    inject = [{"host": injection.host, "header": injection.header} for injection in config.inject]
    return msgspec.json.encode({"allow": config.allow, "deny": config.deny, "inject": inject}) + b"\n"


def _nothing(_: Refused | None) -> None:
    """What is to be done once it is written down."""


async def _known(refused: Refused) -> Refused:
    return refused


def _result(task: Task[Done]) -> Done | None:
    """What a task has come to; a bug is written down, and the others go on."""
    if task.cancelled():
        return None
    if (error := task.exception()) is not None:
        logger.error("a connection through the egress proxy failed", exc_info=error)
        return None
    return task.result()
