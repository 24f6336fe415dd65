"""The one place where it is decided what leaves the sandbox; each decision is counted and written down here.

A name that no rule allows is refused before it is resolved, for a query is a message too. Of an allowed name each
address is checked, and the connection goes to an address that was: nothing is resolved twice on the way.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, NamedTuple

from fastclaw import network_limits, telemetry_limits
from fastclaw.network.egress.accounting import AuditLog, Decision
from fastclaw.network.egress.addresses import HOST_ADDRESSES, HOST_NAMES, is_special, parse_host, show
from fastclaw.network.egress.dialing import NAMED, Dialled, LocalAddresses, Resolver, dial, open_tunnel
from fastclaw.network.egress.policy import ANY_PORT, SPENT, Policy, Quota, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastclaw.network.egress.accounting import Counters
    from fastclaw.network.egress.addresses import Address
    from fastclaw.network.egress.dialing import Lookup
    from fastclaw.network.egress.policy import Reason, Verdict
    from fastclaw.network.egress.proxy_frames import EgressConfig, Upstream
    from fastclaw.network.egress.shares import Share

_FAILURES = frozenset({"unresolved", "unreachable", "connect_timeout", "idle_timeout"})
"""What was allowed and could not be done. Every other reason is a refusal."""


class AccessRequest(NamedTuple):
    """What a client in the sandbox wants to reach.

    Parameters:
        host: a name as `addresses.parse_host` gives it, or an address; for `transparent` without a name the original
            destination; empty where the client named none.
        port: `ANY_PORT` for `dns`, and only for that.
        method: of an HTTP request.
        address: for `transparent`: the original destination; for a request inside a tunnel: where that leads.
        has_secret: a secret is added to it: then the name has to be allowed and, access for now, to be the address's,
            also where a rule lists the address or an answer named it.
    """

    how: Literal["connect", "http", "transparent", "dns"]
    host: str | Address
    port: int
    method: str | None = None
    address: Address | None = None
    has_secret: bool = False


class _Admitted(NamedTuple):
    """What may be connected to.

    Parameters:
        addresses: none where only a proxy outside can resolve the name.
        upstream: the proxy outside through which it goes; None: straight.
    """

    addresses: list[Address]
    verdict: Verdict
    upstream: Upstream | None = None

    @property
    def address(self) -> Address | None:
        """For the log."""
        return self.addresses[0] if self.addresses and self.upstream is None else None


class ByteMeter:
    """Counts the bytes of all tunnels and requests of a sandbox, and says when its budget is used up."""

    __slots__ = ("_counters", "_quota")

    def __init__(self, counters: Counters, quota: Quota) -> None:
        self._counters, self._quota = counters, quota

    def sent(self, n: int) -> bool:
        """Bytes to the outside. False: the budget is used up."""
        self._counters.sent(n)
        return self._quota.spend(n)

    def received(self, n: int) -> bool:
        """Bytes from the outside. False: the budget is used up."""
        self._counters.received(n)
        return self._quota.spend(n)


class PolicyEnforcer:
    """Decides what leaves one sandbox, makes the connections, and counts and writes down each decision.

    Parameters:
        on_trouble: told once, in one line, that the audit log is incomplete.
        lookup: how names are resolved.
        files: descriptors for its connections.

    Attributes:
        policy: the rules.
        closed_ports: of this host, to which none of its names leads.
        upstream: the proxy outside, if there is one.
        meter: for all tunnels and requests of the sandbox.

    Raises:
        InvalidParams: a rule is none.
        OSError: the kernel gives no socket to ask for local addresses.
    """

    def __init__(
        self,
        config: EgressConfig,
        counters: Counters,
        on_trouble: Callable[[str], None],
        lookup: Lookup,
        files: Share,
    ) -> None:
        self.policy = Policy(config.allow, config.deny)
        self.closed_ports = set(config.closed_ports)
        self._counters = counters
        self._quota = Quota(config.max_connections, config.max_connections_per_s, config.max_bytes)
        self._quota.spend(counters.moved)  # by a proxy before this one
        self.meter = ByteMeter(counters, self._quota)
        self.upstream = config.upstream
        self._hint = config.hint
        self._timeout_s = config.connect_timeout_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._answered: OrderedDict[tuple[str, Address], float] = OrderedDict()  # its end in loop time; soonest first
        self._turned_away: dict[tuple[Reason, str], int] = {}
        self._files = files
        self._writing: asyncio.Task[None] | None = None
        self._local = LocalAddresses()
        self._resolver = Resolver(self._timeout_s, lookup)
        log = config.log
        self._audit_log = None if log is None else AuditLog(log, config.log_max_bytes, counters, on_trouble)

    async def aclose(self) -> None:
        """End lookups, and write what is not written yet. Idempotent; no request may be under way."""
        deadline = self._loop.time() + telemetry_limits.LOG_FLUSH_MS / 1000
        await self._resolver.aclose()
        if (writing := self._writing) is not None:
            await asyncio.wait((writing,), timeout=deadline - self._loop.time())
            writing.cancel()
            await asyncio.wait((writing,))
        if self._audit_log is not None:
            await self._audit_log.aclose(deadline - self._loop.time())
        self._local.close()

    # --- connections of clients ---

    def enter(self) -> None:
        """A client has connected. If this returns, `leave` must follow.

        Raises:
            Refused: `too_many_connections` or `too_fast`; counted, and written down.
        """
        reason = self._quota.enter(self._loop.time())
        if reason is not None:
            raise self._turn_away(reason, _TURNED_AWAY[reason])
        if not self._files.take(network_limits.EGRESS_CONNECTION_FILES):
            self._quota.leave()
            raise self._turn_away("too_many_connections", _NO_FILES)
        self._counters.opened()

    def _turn_away(self, reason: Reason, text: str) -> Refused:
        """Count it, and have it written down."""
        self._counters.denied(reason)
        if self._audit_log is not None:
            self._turned_away[reason, text] = self._turned_away.get((reason, text), 0) + 1
            if self._writing is None:
                self._writing = self._loop.create_task(self._write_turned_away(self._audit_log))
        refused = Refused(reason, text)
        refused.is_recorded = True
        return refused

    def leave(self) -> None:
        """A client that entered is gone."""
        self._quota.leave()
        self._files.give_back(network_limits.EGRESS_CONNECTION_FILES)
        self._counters.closed()

    # --- decisions ---

    async def admit(self, access: AccessRequest) -> list[Address]:
        """The addresses that may be connected to for this, best first; empty only where a proxy outside knows them.

        Raises:
            Refused: none may; or the name has none. Counted, and written down.
        """
        try:
            admitted = await self._decide(access)
        except Refused as refused:
            await self.record(refused, access)
            raise
        await self._note_allowed(access, admitted.verdict, admitted.address)
        return admitted.addresses

    async def connect(self, access: AccessRequest) -> Dialled:
        """A connection to one of the addresses that are admitted: non-blocking, and the caller's to close. Through a
        proxy outside it is a tunnel, but for plain requests (`access.method`), which that proxy has to be asked for.

        All of it within the configured `connect_timeout_ms`.

        Raises:
            Refused: it may not be, or could not be done. Counted, and written down.
        """
        deadline = self._loop.time() + self._timeout_s
        try:
            admitted = await self._decide(access)
            if admitted.upstream is None:
                dialled = await self._dial(access, admitted, deadline - self._loop.time())
            else:
                dialled = await self._dial_upstream(access, admitted.upstream, deadline)
        except Refused as refused:
            if refused.reason in _FAILURES:
                refused.text += self._hint
            await self.record(refused, access)
            raise
        try:
            await self._note_allowed(access, admitted.verdict, dialled.address)
        except BaseException:
            dialled.socket.close()
            raise
        return dialled

    async def record(self, refused: Refused, access: AccessRequest | None) -> Refused:
        """Count a refusal or failure and write it down, unless that was done, and return it.

        Parameters:
            access: None: the client named nothing that could be understood.
        """
        if refused.is_recorded:
            return refused
        refused.is_recorded = True
        has_failed = refused.reason in _FAILURES
        (self._counters.failed if has_failed else self._counters.denied)(refused.reason)
        about = access or _NOTHING
        decision: Literal["failed", "denied"] = "failed" if has_failed else "denied"
        await self._write(about, about.address, refused.rule, refused.text, decision, refused.reason)
        return refused

    # --- what our own answers have said ---

    def remember(self, name: str, addresses: Iterable[Address]) -> None:
        """A question for `name` was answered with these, so a connection to one of them may call itself by the name."""
        end = self._loop.time() + network_limits.EGRESS_ANSWERED_MS / 1000
        for address in addresses:
            self._answered[name, address] = end
            self._answered.move_to_end((name, address))
        while len(self._answered) > network_limits.EGRESS_ANSWERED:
            self._answered.popitem(last=False)

    def agrees(self, name: str, address: Address) -> bool:
        """Whether `address` was an answer to a question for `name`, not too long ago."""
        return self._answered.get((name, address), 0) > self._loop.time()

    # --- how it is decided ---

    async def _decide(self, access: AccessRequest) -> _Admitted:
        if not self._quota.spend(0):
            raise Refused("too_many_bytes", SPENT)
        host, port = access.host, access.port
        if (port == ANY_PORT) != (access.how == "dns"):
            raise Refused("bad_target", f"{port} is no port to connect to")
        if access.how == "transparent" or access.address is not None:
            return await self._decide_turned(access, access.address)
        if not isinstance(host, str):
            return self._outwards(self._checked(host, [host], port))
        _pass(self.policy.judge_host(host, port))
        if access.how == "dns" and host in HOST_NAMES:
            raise Refused("special_address", f"{host} is reached through the proxy, by its name")
        if self.upstream is None or access.how == "dns":
            return self._checked(host, await self._addresses(host, port), port)
        return await self._decide_upstream(host, port)

    async def _decide_upstream(self, host: str, port: int) -> _Admitted:
        """An allowed name, with a proxy outside. Its addresses are judged where this host can resolve it."""
        try:
            async with asyncio.timeout(network_limits.EGRESS_UPSTREAM_LOOKUP_MS / 1000):
                found = await self._addresses(host, port)
        except TimeoutError:
            found = []
        except Refused as refused:
            if refused.reason not in _FAILURES:
                raise
            found = []
        if not found:
            return _Admitted([], self.policy.judge_host(host, port), self.upstream)
        return self._outwards(self._checked(host, found, port))

    def _outwards(self, admitted: _Admitted) -> _Admitted:
        """What a rule lists as a special address is this side of the proxy outside, the host's loopback among it."""
        if self.upstream is None or any(is_special(one) or self._local.has(one) for one in admitted.addresses):
            return admitted
        return admitted._replace(upstream=self.upstream)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        if host not in HOST_NAMES:
            return await self._resolver.resolve(host)
        if port in self.closed_ports:
            raise Refused("special_address", f"{show(host, port)} is fastclaw's own, or its engine's")
        return list(HOST_ADDRESSES)

    async def _decide_turned(self, access: AccessRequest, address: Address | None) -> _Admitted:
        """A connection that was meant for `address` and turned to us, by a client that says it is for `access.host`.

        An address that a rule lists needs no name, or may go by any that is not denied, unless a secret goes along.
        Else the name has to be allowed and to be the address's.
        """
        if address is None:
            raise Refused("no_name", "nobody knows where the connection was meant to go")
        host, port = access.host, access.port
        listed = self.policy.lists(address, port)
        if isinstance(host, str):
            if access.has_secret or not listed:
                _pass(self.policy.judge_host(host, port))
                is_known = not access.has_secret and self.agrees(host, address)
                if not is_known and address not in await self._addresses(host, port):
                    raise Refused("name_mismatch", f"{address} is none of the addresses of {host}")
        elif host != address:
            raise Refused("name_mismatch", f"a request for {host} was sent to {address}")
        elif not listed and self.policy.judge_host(address, port).reason in (None, "not_allowed"):
            raise Refused("no_name", f"the connection to {show(address, port)} names no host, and no rule lists it")
        return self._outwards(self._checked(host, [address], port))

    def _checked(self, host: str | Address, found: list[Address], port: int) -> _Admitted:
        """Those addresses of `host` that the policy lets through.

        Raises:
            Refused: it lets none; with what it says of the first.
        """
        judge = self.policy.judge_address
        judged = [(address, judge(host, address, port, is_local=self._local.has(address))) for address in found]
        passed = [(address, verdict) for address, verdict in judged if verdict.reason is None]
        _, first = (passed or judged)[0]
        _pass(first)
        return _Admitted([address for address, _ in passed], first)

    async def _dial(self, access: AccessRequest, admitted: _Admitted, timeout_s: float) -> Dialled:
        try:
            return await dial(admitted.addresses, access.port, timeout_s, self._files)
        except asyncio.CancelledError:  # the client has left; it was allowed all the same
            await self._note_allowed(access, admitted.verdict, admitted.address)
            raise

    async def _dial_upstream(self, access: AccessRequest, upstream: Upstream, deadline: float) -> Dialled:
        """A tunnel through the proxy outside, or for a plain request a connection to it."""
        sock = None
        try:
            async with asyncio.timeout_at(deadline):
                host = parse_host(upstream.host)
                found = await self._resolver.resolve(host) if isinstance(host, str) else [host]
                sock = (await dial(found, upstream.port, self._timeout_s, self._files)).socket
                if access.method in (None, "CONNECT"):
                    await open_tunnel(sock, upstream, show(access.host, access.port))
                    return Dialled(sock, None)
                return Dialled(sock, None, is_proxy=True)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, TimeoutError):
                raise Refused("connect_timeout", f"{NAMED}: no answer within {self._timeout_s:g} s") from error
            if isinstance(error, Refused):
                raise Refused(error.reason, f"{NAMED}: {error.text}") from error
            raise

    # --- how it is written down ---

    async def _note_allowed(self, access: AccessRequest, verdict: Verdict, address: Address | None) -> None:
        self._counters.allowed()
        await self._write(access, address, verdict.rule, verdict.text)

    async def _write(
        self,
        access: AccessRequest,
        address: Address | None,
        rule: str | None,
        text: str,
        decision: Literal["allowed", "denied", "failed"] = "allowed",
        reason: Reason | None = None,
    ) -> None:
        if self._audit_log is not None:
            await self._audit_log.write(
                Decision(
                    decision=decision,
                    reason=reason,
                    how=access.how,
                    host=str(access.host),
                    port=access.port,
                    address=None if address is None else str(address),
                    method=access.method,
                    rule=rule,
                    text=text,
                )
            )

    async def _write_turned_away(self, audit_log: AuditLog) -> None:
        """Write down clients that were turned away: a line for all that came while the line before was written."""
        while self._turned_away:
            (reason, why), count = self._turned_away.popitem()
            text = f"{why}; {count} turned away"
            await audit_log.write(Decision(decision="denied", reason=reason, how="connect", host="", port=0, text=text))
        self._writing = None


_NOTHING = AccessRequest("connect", "", 0)

_TURNED_AWAY: dict[Reason, str] = {
    "too_many_connections": "too many connections are open (options.network.max_connections)",
    "too_fast": "too many new connections in a second (options.network.max_connections_per_s)",
}
_NO_FILES = "no descriptor is left for it (each environment has a share of what fastclaw's RLIMIT_NOFILE allows)"


def _pass(verdict: Verdict) -> None:
    """Go on if the verdict is a yes.

    Raises:
        Refused: it is a no.
    """
    if verdict.reason is not None:
        raise Refused(verdict.reason, verdict.text, verdict.rule)
