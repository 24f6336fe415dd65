"""A network for the containers of one environment, with a firewall that leads to the egress proxy and nowhere else.

    listeners, firewall, bridge ─> attach(container) … ─> bridge, firewall        (made in this order, and removed)

The bridge is never there without its rules, and a fastclaw that is killed at any point leaves a table whose name says
whose it was and what to remove. Podman gives the containers a network namespace with a loopback device; the rest is
made here.

Why not a network of Podman's own (measured, 4.3.1 with netavark 1.4): it keeps a container's namespace mounted in the
engine's mount namespace, so that every other engine on the same storage, and the janitor, fails to list its
containers; it turns on net.ipv4.ip_forward for the whole host; and without iptables it does not start at all.

---

The program nft(8): transactions go in, names of tables come out. Blocking, each call with a deadline.

Knows no rules (network/bridge/firewall.py) and whose they are.
"""

import asyncio
import logging
import os
import secrets
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from fastclaw import network_limits
from fastclaw.engine.container_spec import ContainerNetwork
from fastclaw.engine.service.facts import find_program
from fastclaw.errors import FastclawError, StartFailed
from fastclaw.linux.proc import is_dead, this_process
from fastclaw.network.bridge import firewall, links
from fastclaw.network.bridge.firewall import Bridge, BridgeFacts, ListenerPorts, parse_tables
from fastclaw.network.egress.proxy_frames import Role

logger = logging.getLogger(__name__)

_IP_FREEBIND = 15  # include/uapi/linux/in.h
_EXAMPLE = Bridge(token="00000000", subnet=firewall.subnet_at(0))


class FirewalledBridge:
    """A bridge for the containers of one environment, its firewall, and listeners on its gateway's address.

    Parameters:
        directory: gets the containers' resolv.conf; the caller removes it.

    Attributes:
        spec: for the containers' create calls.
        interface: the bridge's name on this host.
        gateway: the host's address in it; the proxy is on its port `network_limits.EGRESS_PROXY_PORT`.
        subnet: where the containers' addresses are from, as `a.b.c.d/n`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nft = find_program("nft")
        self._bridge: Bridge | None = None
        self._next_host = firewall.FIRST_HOST
        self._listeners: list[tuple[Role, socket.socket]] = []
        self._working: asyncio.Future[None] | None = None
        self.spec = ContainerNetwork()
        self.interface = self.gateway = self.subnet = ""

    def __repr__(self) -> str:
        return f"<FirewalledBridge {self.interface or 'not made'} {self.subnet}>"

    async def start(self) -> None:
        """Make listeners, firewall and bridge.

        Raises:
            StartFailed: `network_failed`; nothing is left then.
        """
        reason = firewall.why_no_bridge(BridgeFacts(is_root=os.geteuid() == 0, nft=self._nft))
        if reason is not None:
            raise StartFailed(reason, "network_failed")
        self._working = asyncio.ensure_future(links.in_own_thread(self._make))
        try:
            await asyncio.shield(self._working)
        except BaseException:
            await self.aclose()
            raise

    def take_listeners(self) -> list[tuple[Role, socket.socket]]:
        """The sockets on the gateway's address, and what each is for. The caller owns them; a second call gets none."""
        listeners, self._listeners = self._listeners, []
        return listeners

    async def attach(self, container: str, init: int) -> None:
        """Connect a container that has come up, and prove that it gets through to the gateway.

        Parameters:
            container: its full id.
            init: pid of its init.

        Raises:
            StartFailed: `network_failed`.
        """
        if self._bridge is None:
            raise StartFailed("the environment's network is gone", "network_failed")
        bridge, first_host = self._bridge, self._next_host
        self._next_host = firewall.next_host(first_host)
        await links.in_own_thread(lambda: links.connect(bridge, container, init, first_host))

    async def aclose(self) -> None:
        """Remove everything, the containers' connections too. Idempotent; what fails is left to the next start."""
        if self._working is not None:
            await asyncio.wait((self._working,))  # it has deadlines of its own, and must not make what we remove
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            self._working = asyncio.ensure_future(links.in_own_thread(lambda: self._unmake(bridge)))
            await asyncio.shield(self._working)

    def _make(self) -> None:
        """In a thread. Whether a subnet is free shows only once it was tried."""
        for _ in range(network_limits.BRIDGE_TRIES):
            subnet = firewall.subnet_at(secrets.randbelow(firewall.SUBNETS))
            bridge = Bridge(token=secrets.token_hex(4), subnet=subnet)
            try:
                if not links.is_taken(bridge) and self._try(bridge):
                    return
            except OSError as error:
                raise StartFailed(f"cannot make a network: {error.strerror}", "network_failed") from error
        raise StartFailed(f"no free subnet for a network in {network_limits.BRIDGE_TRIES} tries", "network_failed")

    def _try(self, bridge: Bridge) -> bool:
        """Whether the bridge is there and its subnet is no other's. If not, nothing is left.

        Listeners come first, since the rules name their ports; rules before what they are for.
        """
        with ExitStack() as undo:
            undo.callback(self._close_listeners)
            ports = self._listen(bridge)
            apply_rules(
                self._nft or "", firewall.ruleset(firewall.table_name(this_process(), bridge.token), bridge, ports)
            )
            undo.callback(self._unmake, bridge)
            links.make_bridge(bridge)
            if links.is_taken(bridge):
                return False
            self._resolv_conf(bridge).write_text(f"nameserver {bridge.gateway}\n", encoding="ascii")
            undo.pop_all()
        self._bridge = bridge
        self.interface, self.gateway, self.subnet = bridge.interface, str(bridge.gateway), str(bridge.subnet)
        self.spec = ContainerNetwork(resolv_conf=str(self._resolv_conf(bridge)))
        return True

    def _resolv_conf(self, bridge: Bridge) -> Path:
        return self._directory / f"{bridge.interface}.resolv"

    def _listen(self, bridge: Bridge) -> ListenerPorts:
        for role in get_args(Role):
            self._listeners.append((role, _open(role)))
            _bind(self._listeners[-1][1], role, str(bridge.gateway))
        return ListenerPorts(**{role: listener.getsockname()[1] for role, listener in self._listeners})

    def _close_listeners(self) -> None:
        for _, listener in self.take_listeners():
            listener.close()

    def _unmake(self, bridge: Bridge) -> None:
        """In a thread."""
        self._close_listeners()
        try:
            remove(self._nft or "", {firewall.table_name(this_process(), bridge.token): bridge.token})
            self._resolv_conf(bridge).unlink(missing_ok=True)
        except (OSError, StartFailed) as error:
            logger.warning("network %s is not removed (%s); the next start does it", bridge.interface, error)


async def why_no_bridge() -> str | None:
    """Why mode `bridge` cannot be had here, in one line; None where it can: it was tried in a network namespace of its
    own, of which nothing is left."""
    facts = BridgeFacts(is_root=os.geteuid() == 0, nft=find_program("nft"))
    if (reason := firewall.why_no_bridge(facts)) is not None:
        return reason
    refused = await links.in_own_thread(lambda: _refusal(facts.nft or ""))
    return firewall.why_no_bridge(BridgeFacts(is_root=facts.is_root, nft=facts.nft, refused=refused))


async def remove_abandoned_networks() -> None:
    """Remove the networks of every fastclaw that was killed on this host."""
    program = find_program("nft")
    if program is not None and os.geteuid() == 0:
        await links.in_own_thread(lambda: _remove_abandoned(program))


def remove(program: str, tables: dict[str, str]) -> None:
    """Remove networks: first what the rules are for, then the rules.

    Parameters:
        tables: the token of each one's bridge by the name of its table.

    Raises:
        OSError, StartFailed: not all could be removed.
    """
    for token in tables.values():
        links.remove_interfaces(f"fc{token}")
    apply_rules(program, firewall.without_tables(tables))


def _remove_abandoned(program: str) -> None:
    try:
        found = {name: parsed for name in our_tables(program) if (parsed := firewall.parse_table(name)) is not None}
        dead = {name: token for name, (owner, token) in found.items() if is_dead(owner)}
        if dead:
            logger.info("removing %d networks that a dead owner left", len(dead))
            remove(program, dead)
    except (OSError, StartFailed) as error:  # a user that may not list tables has made none
        logger.debug("networks of dead owners are not looked for: %s", error)


def _refusal(program: str) -> str | None:
    """In a thread that ends afterwards."""
    ports = ListenerPorts(proxy=1, transparent=2, dns_udp=3, dns_tcp=4)
    try:
        links.enter_new()
        apply_rules(program, firewall.ruleset(firewall.table_name(this_process(), _EXAMPLE.token), _EXAMPLE, ports))
        links.make_bridge(_EXAMPLE)
        inside = links.open_netns("thread-self")
        try:
            links.plug(_EXAMPLE, inside, firewall.FIRST_HOST)
        finally:
            os.close(inside)
    except (OSError, FastclawError) as error:
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return None


def _open(role: Role) -> socket.socket:
    kind = socket.SOCK_DGRAM if role == "dns_udp" else socket.SOCK_STREAM
    return socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _bind(listener: socket.socket, role: Role, address: str) -> None:
    """The address comes later than its listener, with the bridge."""
    listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if role == "transparent":  # only a client that speaks is accepted (tcp(7)); `links.connect` relies on that
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, network_limits.EGRESS_HEAD_MS // 1000)
    listener.bind((address, 0))
    if role != "dns_udp":
        listener.listen(network_limits.BRIDGE_BACKLOG)


def apply_rules(program: str, text: str) -> None:
    """Carry out a transaction: all of it or nothing.

    Parameters:
        program: path of nft.
        text: in nft's language.

    Raises:
        StartFailed: `network_failed`, with what nft says.
    """
    _run([program, "-f", "-"], text)


def our_tables(program: str) -> list[str]:
    """Names of our tables in this network namespace.

    Raises:
        StartFailed: `network_failed`, with what nft says.
    """
    return parse_tables(_run([program, "list", "tables"], ""))


def _run(argv: list[str], text: str) -> str:
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=network_limits.NFT_MS / 1000, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StartFailed(f"nft does not answer within {network_limits.NFT_MS} ms", "network_failed") from error
    except OSError as error:
        raise StartFailed(f"cannot run {argv[0]}: {error.strerror}", "network_failed") from error
    if done.returncode != 0:
        raise StartFailed(f"nft: {_first_line(done.stderr)}", "network_failed")
    return done.stdout


def _first_line(text: str) -> str:
    """nft says what is wrong, and below it where: `Error: Could not process rule: Operation not permitted`."""
    lines = text.strip().splitlines()
    return lines[0].removeprefix("Error: ") if lines else "it gives no reason"
