"""One environment in the egress proxy's process: what it listens on, what came over that, and their end.

Environments have nothing of each other's here: each has its own rules and secrets, quotas, connections, answers of name
servers, log and counters.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import msgspec

from fastclaw import network_limits
from fastclaw.linux.poller import Poller
from fastclaw.network.egress.dialing import HostResolver
from fastclaw.network.egress.dns_server import DnsServer
from fastclaw.network.egress.enforcement import PolicyEnforcer
from fastclaw.network.egress.forward import SandboxContext
from fastclaw.network.egress.http_messages import Injections, refusal
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.sessions import ProxyDialect, Session, TransparentDialect
from fastclaw.network.egress.shares import Pool, Share
from fastclaw.network.egress.socket_io import Listener, SocketReader, close_gently
from fastclaw.network.egress.tunnel import PipePool, PipeShare, Tunnel

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable

    from fastclaw.network.egress.accounting import Counters
    from fastclaw.network.egress.dialing import Lookup
    from fastclaw.network.egress.enforcement import AccessRequest
    from fastclaw.network.egress.forward import Handoff
    from fastclaw.network.egress.proxy_frames import EgressConfig, Role
    from fastclaw.network.egress.sessions import Dialect

_DIALECTS: dict[Role, Callable[[Session], Dialect]] = {"proxy": ProxyDialect, "transparent": TransparentDialect}


class Commons:
    """What all environments of the process share: pipes, threads for lookups, descriptors of connections and of clients
    that are being turned away.

    Parameters:
        files: descriptors for connections of all environments, those of pipes apart.
    """

    def __init__(self, files: int) -> None:
        self.pipes = PipePool()
        self.lookups = HostResolver()
        self.files, self.leaving = Pool(files), Pool(network_limits.EGRESS_LEAVING)

    def close(self) -> None:
        """Give back what nobody holds; the environments are closed before. Idempotent."""
        self.pipes.close()
        self.lookups.close()


class Server:
    """Serves the listeners of one sandbox, and ends what came over a listener with it.

    Parameters:
        counters: stay their owner's.
        on_trouble: told what a person should know, in one line.
        commons: of which it gets a share; stays its owner's.
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
        commons: Commons,
        lookup: Lookup | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._subnet = None if config.subnet is None else ip_network(config.subnet)
        injections, rules = Injections(config.inject), _rules(config)
        self._leaving = Share(commons.leaving)
        self._poller = Poller(network_limits.EGRESS_EVENTS)
        lookup = lookup or commons.lookups.share()
        try:
            self.enforcer = PolicyEnforcer(config, counters, on_trouble, lookup, Share(commons.files))
        except BaseException:
            self._poller.close()
            raise
        reader, idle_s = SocketReader(self._poller), config.idle_timeout_ms / 1000
        self._context = SandboxContext(self.enforcer, injections, rules, reader, idle_s)
        self._tasks: set[Task[Any]] = set()
        self._dns = DnsServer(self.enforcer, self.is_inside, self._tasks)
        self._pipes = PipeShare(commons.pipes, self._poller)
        self._listeners: dict[int, Listener] = {}
        self._tunnels: dict[Tunnel, tuple[Listener, AccessRequest | None]] = {}
        self._addresses: set[str] = set()
        self._is_closed = False
        self._commons = commons
        commons.files.free -= network_limits.EGRESS_ENVIRONMENT_FILES
        self._sweeper = self._loop.call_later(idle_s / network_limits.EGRESS_SWEEPS, self._sweep)

    def add(self, id: int, role: Role, sock: socket.socket) -> None:
        """Serve a socket, from now on.

        Parameters:
            sock: listening (a bound one for `dns_udp`); taken over.
        """
        address, port = sock.getsockname()[:2]
        self._addresses.add(address)
        self.enforcer.closed_ports.add(port)
        if role == "dns_udp":
            on_ready = self._dns.on_datagrams
        elif role == "dns_tcp":
            on_ready = self._dns.on_connections
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it
            on_ready = partial(self._on_connections, _DIALECTS[role])
        self._listeners[id] = Listener(sock, on_ready, self._tasks)

    def remove(self, id: int) -> None:
        """Stop serving a socket, and end what came over it. Idempotent."""
        closing = self._listeners.pop(id, None)
        if closing is None:
            return
        closing.close()
        for tunnel in [tunnel for tunnel, (listener, _) in self._tunnels.items() if listener is closing]:
            tunnel.close()

    async def aclose(self) -> None:
        """End everything, within `EGRESS_TASKS_MS` twice and `telemetry_limits.LOG_FLUSH_MS`. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._sweeper.cancel()
        for id in list(self._listeners):
            self.remove(id)
        await self._end_tasks()
        await self._dns.aclose()
        await self.enforcer.aclose()
        self._poller.close()
        self._commons.files.free += network_limits.EGRESS_ENVIRONMENT_FILES

    async def _end_tasks(self) -> None:
        """Those that wait for a disk, to write down what they were about, are cancelled once more."""
        for _ in range(2):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=network_limits.EGRESS_TASKS_MS / 1000)
            for task in self._tasks:
                task.cancel()

    # --- taking in ---

    def is_inside(self, peer: str) -> bool:
        """Whether a client's address is the sandbox's: of its subnet, and not this host's address in it."""
        if self._subnet is None:
            return True
        return ip_address(peer) in self._subnet and peer not in self._addresses

    def _on_connections(self, dialect: Callable[[Session], Dialect], listener: Listener) -> None:
        for near, peer in listener.accept(network_limits.EGRESS_ACCEPT_BURST):
            try:
                if not self.is_inside(peer):
                    raise Refused("not_from_sandbox", f"{peer} is not the sandbox's")
                self.enforcer.enter()
            except Refused as refused:
                self._turn_away(listener, near, refused)
            else:
                session = Session(near, self._context, dialect)
                listener.spawn(session.run(), partial(self._on_served, listener, session))

    # --- serving ---

    def _on_served(self, listener: Listener, session: Session, handoff: Handoff | None) -> None:
        """A session is over, also one that was ended before it began."""
        if handoff is None:
            session.near.close()
            self.enforcer.leave()
            return

        def on_end(tunnel: Tunnel) -> None:
            del self._tunnels[tunnel]
            self.enforcer.leave()

        tunnel = Tunnel(session.near, handoff.far, self._pipes, self.enforcer.meter, on_end)
        self._tunnels[tunnel] = listener, session.access
        tunnel.start(to_far=handoff.to_far, to_near=handoff.to_near)
        if listener.is_closed:
            tunnel.close()

    def _turn_away(self, listener: Listener, near: socket.socket, refused: Refused) -> None:
        if self._leaving.take():
            listener.spawn(self._see_out(near, refused), partial(self._on_seen_out, near))
        else:
            near.close()

    async def _see_out(self, near: socket.socket, refused: Refused) -> None:
        """Tell a client why it is not served, without reading its request."""
        await self.enforcer.record(refused, None)
        with suppress(OSError):  # it is gone
            near.send(refusal(refused, has_body=True))
            await close_gently(near, self._context.reader)

    def _on_seen_out(self, near: socket.socket, _: None) -> None:
        near.close()
        self._leaving.give_back()

    def _sweep(self) -> None:
        """Cut the tunnels in which nothing has moved for too long, and say so."""
        self._sweeper = self._loop.call_later(self._context.idle_s / network_limits.EGRESS_SWEEPS, self._sweep)
        oldest = self._loop.time() - self._context.idle_s
        for tunnel, (listener, access) in list(self._tunnels.items()):
            if tunnel.last_moved < oldest:
                tunnel.close()
                refused = Refused("idle_timeout", self._context.idle_text)
                listener.spawn(self.enforcer.record(refused, access), _nothing)


def _rules(config: EgressConfig) -> bytes:
    """What a program inside may know: no secret."""
    inject = [{"host": injection.host, "header": injection.header} for injection in config.inject]
    return msgspec.json.encode({"allow": config.allow, "deny": config.deny, "inject": inject}) + b"\n"


def _nothing(_: Refused | None) -> None:
    """What is to be done once it is written down."""
