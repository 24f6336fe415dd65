"""One entry of `allow` or `deny`, and a book of many in which those that fit are found without reading the others.

    HOST[:PORTS]
    HOST   name | *.suffix (any depth, not the suffix itself) | * | IPv4 | IPv6 | CIDR; IPv6 in brackets before ports
    PORTS  443 | 8000-8100 | 80,443 | *

An entry is refused where two readers could take it for different things, and where it could never match.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import network_limits
from fastclaw.engine.container_spec import HOSTNAME
from fastclaw.network.egress.addresses import (
    HOST_NAMES,
    MAX_PORT,
    Address,
    BadHost,
    Network,
    is_wholly_special,
    parse_host,
    parse_port,
    plain,
    plain_network,
    special_kind,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Span = tuple[int, int]
"""Ports from the first to the last, both included."""

WEB: tuple[Span, ...] = ((80, 80), (443, 443))
"""What an allow rule without ports means."""

ALL: tuple[Span, ...] = ((1, MAX_PORT),)
"""What `*` means, and a deny rule without ports."""

_PREFIX = re.compile(r"[0-9]{1,3}")
_PORTS_LIKE = re.compile(r"[0-9][0-9,-]*|\*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Rule(NamedTuple):
    """One entry.

    Parameters:
        host: a name, `*.suffix` or `*` in lower case, or a network (an address is one of its own).
        text: as the user wrote it.
    """

    host: str | Network
    ports: tuple[Span, ...]
    text: str


# --- One entry ---


def parse_rule(text: str, *, deny: bool = False) -> Rule:
    """A rule.

    Parameters:
        deny: it denies, so that without ports it means all.

    Raises:
        BadHost: it is none, or it is ambiguous, or it could never match; the message says what to write instead.
    """
    if len(text) > network_limits.EGRESS_RULE_BYTES:
        raise BadHost(
            f"a rule of {len(text)} characters is too long; {network_limits.EGRESS_RULE_BYTES} are enough for any"
        )
    if not text.strip():
        raise BadHost("the rule is empty; write HOST or HOST:PORTS")
    if text != "".join(text.split()):
        raise BadHost(f"{text!a} has white space in it; write {''.join(text.split())!a}")
    if found := _SCHEME.match(text):
        raise BadHost(f"{text!a} is a URL; write HOST:PORT, without {found[0]!a} and without a path")
    host, ports = _split(text)
    rule = Rule(_parse_target(host), (ALL if deny else WEB) if ports is None else _parse_ports(ports), text)
    if not deny:
        _refuse_unreachable(rule)
    return rule


def _split(text: str) -> tuple[str, str | None]:
    """The host without brackets, and the ports."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadHost(f"{text!a}: write [ADDRESS]:PORTS, or [ADDRESS/PREFIX]:PORTS for a network")
        if ":" not in host:
            raise BadHost(f"{text!a}: brackets are for IPv6 only; write {host + rest!a}")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        return _whole_v6(text), None
    host, colon, ports = text.partition(":")
    return host, ports if colon else None


def _whole_v6(text: str) -> str:
    """An IPv6 address or network without ports; refused where its end could be meant as a port."""
    host, _, end = text.rpartition(":")
    if _is_v6(host) and _PORTS_LIKE.fullmatch(end):
        whole = f"[{text}] if all of it is the address, " if _is_v6(text) else ""
        raise BadHost(f"{text!a} is ambiguous; write {whole}[{host}]:{end} if its end is a port")
    address, slash, prefix = text.partition("/")
    if not _is_v6(address) and "%" not in address:
        raise BadHost(f"{text!a} has several ':' and is no IPv6 address; write several ports as HOST:80,443")
    if slash and ":" in prefix:
        raise BadHost(f"{text!a} is ambiguous; write [{address}/{prefix.replace(':', ']:', 1)}")
    return text


def _is_v6(text: str) -> bool:
    try:
        parse_host(f"[{text}]")
    except ValueError:
        return False
    return True


def _parse_target(text: str) -> str | Network:
    if not text:
        raise BadHost("there is no host before the ':'; write * for any public host")
    if "/" in text:
        return _parse_network(text)
    if text == "*":
        return text
    if "*" in text:
        return _parse_suffix(text)
    if text.startswith("."):
        raise BadHost(f"{text!a} begins with a dot; write {'*' + text!a} for all names below, {text[1:]!a} for itself")
    host = parse_host(text)
    if isinstance(host, str):
        return host
    if host.version == 4 and str(host) != text:
        raise BadHost(f"{text!a} can be read in several ways; write {str(host)!a} if that is meant")
    return ip_network(plain(host))


def _parse_suffix(text: str) -> str:
    suffix = text.removeprefix("*.")
    if suffix in (text, "") or "*" in suffix:
        raise BadHost(f"{text!a}: a * stands for the whole host or for all names below another, as in '*.example.com'")
    name = parse_host(suffix)
    if not isinstance(name, str):
        raise BadHost(f"{text!a}: there are no names below an address; write a network, as in '192.0.2.0/24'")
    pattern = f"*.{name}"
    if len(pattern) > network_limits.EGRESS_NAME_BYTES:
        raise BadHost(f"{text!a} can never match: a name has {network_limits.EGRESS_NAME_BYTES} bytes at most")
    return pattern


def _parse_network(text: str) -> Network:
    host, _, prefix = text.partition("/")
    address = _network_address(host, text)
    if not _PREFIX.fullmatch(prefix) or int(prefix) > address.max_prefixlen:
        raise BadHost(
            f"{text!a}: after '/' comes the length of a network's prefix, 0 to {address.max_prefixlen}, as in "
            "'192.0.2.0/24'; leave the path of a URL out"
        )
    network = ip_network(f"{address}/{int(prefix)}", strict=False)
    if network.network_address != address:
        raise BadHost(f"{text!a} has bits behind its prefix; write {str(network)!a}, or {str(address)!a} for the one")
    return plain_network(network)


def _network_address(host: str, text: str) -> Address:
    try:
        address = parse_host(host)
    except BadHost as error:
        raise BadHost(f"{text!a}: {error}") from None
    if isinstance(address, str):
        raise BadHost(f"{text!a}: only an address has a prefix; a rule has no path, write {address!a}")
    if address.version == 4 and str(address) != host:
        raise BadHost(f"{text!a} can be read in several ways; write its address as {str(address)!a} if that is meant")
    return address


def _parse_ports(text: str) -> tuple[Span, ...]:
    if text == "*":
        return ALL
    if not text:
        raise BadHost("there is nothing after the ':'; write HOST:443, or HOST:* for all ports")
    return tuple(_parse_span(part) for part in text.split(","))


def _parse_span(text: str) -> Span:
    first, dash, last = text.partition("-")
    try:
        span = parse_port(first), parse_port(last if dash else first)
    except BadHost:
        raise BadHost(
            f"{text!a} is no port; write 443, 8000-8100, 80,443 or *, with numbers from 1 to {MAX_PORT}"
        ) from None
    if span[0] > span[1]:
        raise BadHost(f"{text!a} can never match; write {span[1]}-{span[0]}")
    return span


def _refuse_unreachable(rule: Rule) -> None:
    """No TCP connection leads to a multicast or unspecified address (0.0.0.0 is this host itself to the kernel)."""
    if isinstance(rule.host, str):
        return
    ends = {special_kind(rule.host.network_address), special_kind(rule.host.broadcast_address)}
    if len(ends) == 1 and ends <= {"unspecified", "multicast"}:
        raise BadHost(
            f"{rule.text!a} can never match: nobody connects to {ends.pop()} addresses; write * for any public host"
        )


_ONESELF = frozenset(("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback", HOSTNAME))
_NOTHING_BELOW = {f"*{name.removeprefix('host')}" for name in HOST_NAMES}
_LOOPBACKS = (ip_network("127.0.0.0/8"), ip_network("::1"))


def refuse_oneself(rule: Rule) -> None:
    """Refuse what a program inside never asks a proxy for, since to it that is the sandbox.

    Raises:
        BadHost: with what to write instead.
    """
    if isinstance(rule.host, str):
        is_oneself = rule.host in _ONESELF or rule.host.endswith(".localhost")
    else:
        is_oneself = lists_special(rule.host) and _has_loopback(rule.host)
    if rule.host in _NOTHING_BELOW:
        name = f"host{str(rule.host)[1:]}"
        raise BadHost(f"{rule.text!a} can never take effect: no pattern fits {name!a}, and nothing else is there")
    if is_oneself:
        ports = ",".join("*" if (span,) == ALL else "-".join(map(str, dict.fromkeys(span))) for span in rule.ports)
        raise BadHost(
            f"{rule.text!a} can never take effect: inside, that is the sandbox itself; write "
            f"'host.fastclaw.internal:{ports}' for a port of this host's loopback"
        )


def lists_special(network: Network) -> bool:
    """Whether a rule for a network lists the special addresses in it."""
    return network.prefixlen == network.max_prefixlen or is_wholly_special(network)


def _has_loopback(network: Network) -> bool:
    ends = (network.network_address, network.broadcast_address)
    return any(network.overlaps(other) for other in _LOOPBACKS if other.version == network.version) or any(
        (special_kind(end) or "").startswith("loopback") for end in ends
    )


# --- Many ---


class Ports:
    """The ports of all rules for one host, each with the rule that names it. The order of the rules does not matter."""

    __slots__ = ("_firsts", "_lasts", "_texts")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._texts: list[str] = []
        told = 0
        for first, negative_last, text in sorted(
            (span[0], -span[1], rule.text) for rule in rules for span in rule.ports
        ):
            if -negative_last > told:
                self._firsts.append(max(first, told + 1))
                self._lasts.append(-negative_last)
                self._texts.append(text)
                told = -negative_last

    def rule(self, port: int) -> str | None:
        """The rule that names a port."""
        at = bisect_right(self._firsts, port) - 1
        return self._texts[at] if at >= 0 and port <= self._lasts[at] else None

    def masks(self) -> Iterator[tuple[int, str]]:
        """For each rule's ports a number in which they are bits."""
        for first, last, text in zip(self._firsts, self._lasts, self._texts, strict=True):
            yield (1 << last + 1) - (1 << first), text


class RuleIndex:
    """Rules by what they name: a look-up takes as long among ten thousand as among ten."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        names: dict[str, list[Rule]] = {}
        networks: dict[tuple[int, int], dict[int, list[Rule]]] = {}
        for rule in rules:
            if isinstance(rule.host, str):
                names.setdefault(rule.host, []).append(rule)
            else:
                shift = rule.host.max_prefixlen - rule.host.prefixlen
                same = networks.setdefault((rule.host.version, shift), {})
                same.setdefault(int(rule.host.network_address) >> shift, []).append(rule)
        self._names = {host: Ports(some) for host, some in names.items()}
        self._networks: dict[int, list[tuple[int, dict[int, Ports]]]] = {4: [], 6: []}
        for (version, shift), same in sorted(networks.items()):
            self._networks[version].append((shift, {number: Ports(some) for number, some in same.items()}))

    @property
    def has_names(self) -> bool:
        """Whether a rule is for a name, or for all."""
        return bool(self._names)

    def of_any(self) -> Iterator[Ports]:
        """Those for `*`."""
        if (found := self._names.get("*")) is not None:
            yield found

    def of_name(self, name: str) -> Iterator[Ports]:
        """Those that fit a name, `*` too; the closest first."""
        yield from self.of_exactly(name)
        at = name.find(".")
        while at >= 0:
            if (found := self._names.get(f"*{name[at:]}")) is not None:
                yield found
            at = name.find(".", at + 1)
        yield from self.of_any()

    def of_exactly(self, name: str) -> Iterator[Ports]:
        """Those that name a name itself."""
        if (found := self._names.get(name)) is not None:
            yield found

    def of_address(self, address: Address) -> Iterator[Ports]:
        """Those with a network that has an address, `*` aside; the smallest network first."""
        return self._having(address, 0)

    def of_network(self, network: Network) -> Iterator[Ports]:
        """The same, with all of a network."""
        return self._having(network.network_address, network.max_prefixlen - network.prefixlen)

    def _having(self, address: Address, bits: int) -> Iterator[Ports]:
        number = int(address)
        for shift, same in self._networks[address.version]:
            if shift >= bits and (found := same.get(number >> shift)) is not None:
                yield found
