"""Where a sandbox may connect to: every decision of the egress proxy, with its reason and the rule that made it.

Deny wins over allow, by name and by address. A name that no rule allows is never resolved, since the question itself
would carry data out. What a name resolves to is judged again, address by address: what is not plain public unicast is
refused unless a rule lists it as an address or network, so that no name leads inside (DNS rebinding).

A network lists the special addresses in it, and the host's own, only where all of it is special: `10.0.0.0/8` does,
`0.0.0.0/0` opens what is public. A single address always lists itself. The host's loopback has names of its own
(`HOST_NAMES`), and is allowed by a rule for one of these.

`Quota` says how much one sandbox may take: connections at a time and by the second, and bytes in all.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from fastclaw import network_limits
from fastclaw.errors import InvalidParams
from fastclaw.network.egress.addresses import (
    HOST_NAMES,
    Address,
    BadHost,
    embedded_v4,
    is_special,
    parse_host,
    plain,
    show,
    special_kind,
)
from fastclaw.network.egress.rules import Ports, Rule, RuleIndex, lists_special, parse_rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


Reason = Literal[
    "not_allowed",
    "denied",
    "special_address",
    "bad_target",
    "no_name",
    "name_mismatch",
    "bad_request",
    "unsafe_method",
    "too_many_connections",
    "too_fast",
    "too_many_bytes",
    "unresolved",
    "unreachable",
    "connect_timeout",
    "idle_timeout",
    "not_from_sandbox",
]
"""Why a connection or request was refused, or failed: a stable word that a program may branch on."""

REASONS: tuple[Reason, ...] = get_args(Reason)
"""All of them, in the order of the counters."""

STATUS: dict[Reason, int] = {
    "not_allowed": 403,
    "denied": 403,
    "special_address": 403,
    "bad_target": 400,
    "no_name": 403,
    "name_mismatch": 403,
    "bad_request": 400,
    "unsafe_method": 403,
    "too_many_connections": 429,
    "too_fast": 429,
    "too_many_bytes": 403,
    "unresolved": 502,
    "unreachable": 502,
    "connect_timeout": 504,
    "idle_timeout": 504,
    "not_from_sandbox": 403,
}
"""The HTTP status of each (RFC 9110, 15.5 and 15.6; 429: RFC 6585)."""

RULES_NAME = "rules.fastclaw.internal"
"""A name that the proxy answers for itself, over plain HTTP: with the rules."""

ANY_PORT = 0
"""Asks whether there is a port at all on which a host may be reached: no connection goes to port 0 (RFC 6335, 6)."""

HTTPS_PORT = 443
"""Where nothing can be added to a request, since it is encrypted."""


SPENT = "the sandbox has used up its bytes (options.network.max_bytes)"
"""The text of `too_many_bytes`."""


class Verdict(NamedTuple):
    """A decision.

    Parameters:
        reason: why not; None: it is allowed.
        rule: the entry that decided, as the user wrote it; None: none did.
        text: one line for people.
    """

    reason: Reason | None
    rule: str | None
    text: str


class Refused(Exception):
    """A connection or request that is not to be, or could not be made.

    Parameters:
        text: one line for people.
        rule: the entry that decided; None: none did.

    Attributes:
        is_recorded: it is counted and written down, which `PolicyEnforcer` does.
    """

    def __init__(self, reason: Reason, text: str, rule: str | None = None) -> None:
        super().__init__(text)
        self.reason: Reason = reason
        self.text = text
        self.rule = rule
        self.is_recorded = False


class Policy:
    """The rules of one sandbox. Nothing is allowed without one.

    Parameters:
        allow, deny: rules, as network/egress/rules.py reads them.

    Raises:
        InvalidParams: an entry is no rule; `path` names it.
    """

    def __init__(self, allow: Sequence[str], deny: Sequence[str] = ()) -> None:
        self._allowed = allowed = _parse(allow, "allow")
        self._allow = RuleIndex(allowed)
        self._listed = RuleIndex(
            rule for rule in allowed if not isinstance(rule.host, str) and lists_special(rule.host)
        )
        self._deny = RuleIndex(_parse(deny, "deny"))
        self._verdicts: dict[tuple[object, ...], Verdict] = {}

    def judge_host(self, host: str | Address, port: int) -> Verdict:
        """Whether a target may be tried, before anything is resolved.

        Parameters:
            host: as `addresses.parse_host` gives it.
            port: or `ANY_PORT`.
        """
        target = (host, port)
        return self._verdicts.get(target) or self._remember(target, self._judge_host(host, port))

    def judge_address(self, host: str | Address, address: Address, port: int, *, is_local: bool) -> Verdict:
        """Whether one address of a target may be connected to: it is listed, or it is public and the target is allowed.

        Parameters:
            host: the name that has this address, or the address.
            port: or `ANY_PORT`.
            is_local: it is one of this host's own.
        """
        target = (host, address, port, is_local)
        known = self._verdicts.get(target)
        return known or self._remember(target, self._judge_address(host, address, port, is_local=is_local))

    def _remember(self, target: tuple[object, ...], verdict: Verdict) -> Verdict:
        """Clients come back to the same few targets."""
        if len(self._verdicts) >= network_limits.EGRESS_VERDICTS:
            self._verdicts.clear()
        self._verdicts[target] = verdict
        return verdict

    def _judge_host(self, host: str | Address, port: int) -> Verdict:
        if not isinstance(host, str):
            return self.judge_address(host, host, port, is_local=False)
        return _verdict(*_decide(self._deny.of_name(host), self._allowing_name(host), port), _where(host, port))

    def _judge_address(self, host: str | Address, address: Address, port: int, *, is_local: bool) -> Verdict:
        kind = special_kind(address) or ("this host's own" if is_local else None)
        denying, allowing = self._denying(address), self._allowing(address, is_closed=kind is not None)
        where = _where(host, port)
        if isinstance(host, str):
            where = f"{where} ({address})"
            denying = chain(self._deny.of_name(host), denying)
            if host in HOST_NAMES:
                allowing = self._allowing_name(host)
            elif kind is None:
                allowing = chain(self._allow.of_name(host), self._naming(address))
        reason, rule = _decide(denying, allowing, port)
        if reason == "not_allowed" and kind is not None:
            way = _BY_NAME if kind.startswith("loopback") else _LIST_IT
            return Verdict("special_address", None, f"{where} is {kind}; {way}")
        return _verdict(reason, rule, where)

    @property
    def denies_names(self) -> bool:
        """Whether a rule denies a name, so that also where an address is listed it matters what it is called."""
        return self._deny.has_names

    def lists(self, address: Address, port: int) -> bool:
        """Whether a rule lists an address, by itself or in a network. It may be denied all the same."""
        return _decide((), self._naming(address, is_closed=is_special(address)), port)[0] is None

    def overruled(self) -> Iterator[tuple[str, str]]:
        """The entries of `allow` that can never take effect, each with the one of `deny` that takes its last port."""
        for rule in self._allowed:
            if isinstance(rule.host, str):
                denying = self._deny.of_name(rule.host)
            else:
                denying = chain(self._deny.of_network(rule.host), self._deny.of_any())
            reason, denier = _decide_any(denying, (Ports([rule]),))
            if reason == "denied" and denier is not None:
                yield rule.text, denier

    def allows_plain_http(self, host: str | Address) -> bool:
        """Whether a host may be reached on a port other than 443, so that a header can be added to its requests.

        Parameters:
            host: a text may be as a user wrote it; what is no host is not reached.
        """
        try:
            target = parse_host(host) if isinstance(host, str) else host
        except BadHost:
            return False
        if isinstance(target, str):
            denying, allowing = self._deny.of_name(target), self._allowing_name(target)
        else:
            denying, allowing = self._denying(target), self._allowing(target, is_closed=is_special(target))
        return _decide_any(denying, allowing, closed=1 << HTTPS_PORT)[0] is None

    def _allowing_name(self, name: str) -> Iterator[Ports]:
        """The host itself is meant by its own names only, never by a pattern that happens to fit."""
        return (self._allow.of_exactly if name in HOST_NAMES else self._allow.of_name)(name)

    def _naming(self, address: Address, *, is_closed: bool = False) -> Iterator[Ports]:
        """The allow rules that list an address; of a closed one those that do so on purpose."""
        return (self._listed if is_closed else self._allow).of_address(plain(address))

    def _allowing(self, address: Address, *, is_closed: bool) -> Iterator[Ports]:
        named = self._naming(address, is_closed=is_closed)
        return named if is_closed else chain(named, self._allow.of_any())

    def _denying(self, address: Address) -> Iterator[Ports]:
        """An address is denied in either form, and by the address within it."""
        inner = embedded_v4(address)
        within = () if inner is None else self._deny.of_address(inner)
        return chain(self._deny.of_address(address), within, self._deny.of_any())


_BY_NAME = "a port of the host's own is reached as host.fastclaw.internal, by a rule for that"
_LIST_IT = "only a rule for this address, or for a network of nothing else, allows it"

Decided = tuple[Literal["denied", "not_allowed"] | None, str | None]
"""Why not, and the rule that says so or allows it."""


def _decide(denying: Iterable[Ports], allowing: Iterable[Ports], port: int) -> Decided:
    """Deny wins, in any order of the rules."""
    if port == ANY_PORT:
        return _decide_any(denying, allowing)
    if (rule := _find(denying, port)) is not None:
        return "denied", rule
    rule = _find(allowing, port)
    return ("not_allowed" if rule is None else None), rule


def _decide_any(denying: Iterable[Ports], allowing: Iterable[Ports], closed: int = 0) -> Decided:
    """The same for any port but those that are `closed`, as bits."""
    denier = None
    for ports in denying:
        for mask, rule in ports.masks():
            closed |= mask
            denier = denier or rule
    for ports in allowing:
        for mask, rule in ports.masks():
            if mask & ~closed:
                return None, rule
    return ("not_allowed" if denier is None else "denied"), denier


def _find(candidates: Iterable[Ports], port: int) -> str | None:
    """The first rule for a port."""
    for ports in candidates:
        if (rule := ports.rule(port)) is not None:
            return rule
    return None


def _where(host: str | Address, port: int) -> str:
    return str(host) if port == ANY_PORT else show(host, port)


def _verdict(reason: Literal["denied", "not_allowed"] | None, rule: str | None, where: str) -> Verdict:
    if reason == "not_allowed":
        return Verdict(reason, None, f"no rule allows {where}")
    return Verdict(reason, rule, f"{where} is {reason or 'allowed'} by {rule!a}")


def _parse(texts: Sequence[str], field: str) -> list[Rule]:
    path = f"$.options.network.{field}"
    if len(texts) > network_limits.EGRESS_RULES:
        raise InvalidParams(f"{path} has {len(texts)} rules; {network_limits.EGRESS_RULES} is the most", path=path)
    rules = []
    for number, text in enumerate(texts):
        try:
            rules.append(parse_rule(text, deny=field == "deny"))
        except BadHost as error:
            raise InvalidParams(f"{path}[{number}]: {error}", path=f"{path}[{number}]") from None
    return rules


class Quota:
    """The bounds of one sandbox and what is used of them.

    Parameters:
        max_connections: open at the same time.
        max_per_s: new ones in a second, and as many at once.
        max_bytes: both directions together, for the sandbox's whole life; None is no limit.
    """

    def __init__(self, max_connections: int, max_per_s: int, max_bytes: int | None) -> None:
        self.open = 0
        self._max_connections = max_connections
        self._max_per_s = max_per_s
        self._left = max_bytes
        self._tokens = float(max_per_s)
        self._filled_s: float | None = None

    def enter(self, now_s: float) -> Reason | None:
        """A new connection: why not, or None. Then `leave` is to be called once it has ended.

        Parameters:
            now_s: of a clock that does not go back.
        """
        self._fill(now_s)
        if self.open >= self._max_connections:
            return "too_many_connections"
        if self._tokens < 1:
            return "too_fast"
        self._tokens -= 1
        self.open += 1
        return None

    def leave(self) -> None:
        """A connection that entered has ended."""
        self.open -= 1

    def spend(self, count: int) -> bool:
        """Bytes were moved, in either direction; with 0 it only asks. False: nothing is left, move no more."""
        if self._left is None:
            return True
        self._left -= count
        return self._left > 0

    def _fill(self, now_s: float) -> None:
        passed = 0.0 if self._filled_s is None else max(0.0, now_s - self._filled_s)
        self._tokens = min(float(self._max_per_s), self._tokens + passed * self._max_per_s)
        self._filled_s = now_s
