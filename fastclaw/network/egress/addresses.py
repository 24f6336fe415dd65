"""Hosts as clients write them, and which addresses are not the public Internet's.

A text that *any* resolver would take as an address must never pass for a name: `0x7f.1`, `2130706433` and `0177.0.0.1`
are 127.0.0.1 to inet_aton(3) and to browsers (WHATWG URL, 3.5 "Host parsing"). So what ends in a number is an address
or is refused, and a name consists of what host names may consist of (RFC 952, RFC 1123 2.1; and `_`, which is in use).

What is special is said by the IANA special-purpose address registries (RFC 6890). An IPv6 address is public only within
2000::/3 (RFC 4291, 2.4), or by the IPv4 address in it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from fastclaw import network_limits

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

HOST_NAMES = frozenset(("host.fastclaw.internal", "host.docker.internal", "host.containers.internal"))
"""What fastclaw's host is called inside: by us, and by the two engines whose word for it programs know. They are
not resolved: they are the host's loopback."""

HOST_ADDRESSES: tuple[IPv4Address | IPv6Address, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
"""Where they lead."""

MAX_PORT = 2**16 - 1
"""A port has 16 bits (RFC 9293, 3.1)."""

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*|0b[01]*|0o[0-7]*")
_PARTS = {16: re.compile(r"0x([0-9a-f]*)"), 8: re.compile(r"0([0-7]*)"), 10: re.compile(r"([1-9][0-9]*)")}
_PORT = re.compile(r"[0-9]{1,5}")

_V4_BYTES = 4
_LOW_32 = 2**32 - 1

_SPECIAL = {
    "0.0.0.0/8": "unspecified",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared within a provider's network",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "a cloud's service for its machines",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved for protocols",
    "192.0.2.0/24": "for documentation",
    "192.88.99.0/24": "reserved for 6to4",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "for benchmarks",
    "198.51.100.0/24": "for documentation",
    "203.0.113.0/24": "for documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "::/128": "unspecified",
    "::1/128": "loopback",
    "2001::/23": "reserved for protocols",
    "2001:db8::/32": "for documentation",
    "2002::/16": "reserved for 6to4",
    "3fff::/20": "for documentation",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "ff00::/8": "multicast",
}
"""What is special, and what to call it, in order of the addresses. 168.63.129.16 is Azure's, and public in form only
(its documentation, "What is IP address 168.63.129.16"); other clouds' services have link-local, shared or private
addresses. IPv6 outside of 2000::/3 is "reserved" where it is not here."""

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_ISATAP = (0x00005EFE, 0x02005EFE)


class BadHost(ValueError):
    """No host, or one that two readers might read differently. The message is one line for people."""


class _Ranges:
    """The special ranges of one IP version."""

    def __init__(self, version: int) -> None:
        networks = [(ip_network(text), kind) for text, kind in _SPECIAL.items()]
        mine = [(network, kind) for network, kind in networks if network.version == version]
        self._first = [int(network.network_address) for network, _ in mine]
        self._last = [int(network.broadcast_address) for network, _ in mine]
        self._kind = [kind for _, kind in mine]

    def at(self, number: int) -> tuple[int, str] | None:
        """The last number of the range that has this one, and the range's kind."""
        at = bisect_right(self._first, number) - 1
        return (self._last[at], self._kind[at]) if at >= 0 and number <= self._last[at] else None

    def cover(self, number: int, last: int) -> bool:
        """Whether every number from the one to the other is in a range."""
        while number <= last:
            found = self.at(number)
            if found is None:
                return False
            number = found[0] + 1
        return True


_RANGES = {4: _Ranges(4), 6: _Ranges(6)}


# --- What a text means ---


@lru_cache(network_limits.EGRESS_HOSTS)
def parse_host(text: str) -> str | Address:
    """A name in lower case without its trailing dot, or the address that any resolver could take the text for.

    Raises:
        BadHost: it is no host; or readers would differ about it (zone, percent-encoding, letters beyond ASCII).
    """
    if len(text) > network_limits.EGRESS_NAME_BYTES + 1:
        raise BadHost(
            f"a host of {len(text)} characters is too long; a name has {network_limits.EGRESS_NAME_BYTES} at most"
        )
    if not text.isascii():
        raise BadHost(f"{text!a} has letters beyond ASCII; write the name in punycode (xn--...)")
    if ":" in text or text.startswith("["):
        return _parse_v6(text)
    name = text.lower().removesuffix(".")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return _parse_v4(name, text)
    if len(name) > network_limits.EGRESS_NAME_BYTES or not _NAME.fullmatch(name):
        raise BadHost(f"{text!a} is no host name; write letters, digits, '-', '_' and single dots, nothing else")
    return name


def _parse_v6(text: str) -> IPv6Address:
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if "%" in inner:
        raise BadHost(f"{text!a} has a zone, which means something on one host only; write the address without it")
    try:
        return IPv6Address(inner)
    except ValueError:
        raise BadHost(f"{text!a} is no IPv6 address") from None


def _parse_v4(name: str, text: str) -> IPv4Address:
    """One to four numbers, each decimal, octal or hexadecimal; the last one fills what is left (inet_aton(3))."""
    numbers = [_number(part) for part in name.split(".")]
    *parts, last = numbers
    if len(numbers) > _V4_BYTES or None in numbers or any(part > 0xFF for part in parts if part is not None):
        raise BadHost(f"{text!a} ends in a number and is no IPv4 address")
    value = 0
    for part in parts:
        value = value << 8 | (part or 0)
    left = 8 * (_V4_BYTES - len(parts))
    if last is None or last >> left:
        raise BadHost(f"{text!a} is no IPv4 address: a number is too large")
    return IPv4Address(value << left | last)


def _number(part: str) -> int | None:
    """`0x` alone is 0, as browsers have it; to inet_aton it is none."""
    for base, form in _PARTS.items():
        if found := form.fullmatch(part):
            return int(found[1] or "0", base)
    return None


def parse_authority(text: str, default_port: int | None) -> tuple[str | Address, int]:
    """`host:port`, IPv6 addresses in brackets.

    Parameters:
        default_port: for a text without one; None: then it is refused.

    Raises:
        BadHost: it is none.
    """
    host, port = _split_port(text)
    if port:
        return parse_host(host), parse_port(port)
    if default_port is None:
        raise BadHost(f"{text[: network_limits.EGRESS_RULE_BYTES]!a} has no port; write host:port")
    return parse_host(host), default_port


def _split_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        if rest and not rest.startswith(":"):
            raise BadHost(f"{text[: network_limits.EGRESS_RULE_BYTES]!a} has something between ']' and the port")
        return host + bracket, rest[1:]
    if text.count(":") > 1:
        raise BadHost(f"{text[: network_limits.EGRESS_RULE_BYTES]!a} is ambiguous; write an IPv6 address in brackets")
    host, _, port = text.partition(":")
    return host, port


def parse_port(text: str) -> int:
    """A port, from 1.

    Raises:
        BadHost: it is none.
    """
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= MAX_PORT:
        raise BadHost(f"{text[: network_limits.EGRESS_RULE_BYTES]!a} is no port; write a number from 1 to {MAX_PORT}")
    return int(text)


def show(host: str | Address, port: int) -> str:
    """`host:port`, IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"


# --- What an address is ---


def plain(address: Address) -> Address:
    """The IPv4 address of an IPv4-mapped one, since the kernel sends IPv4 to it (ipv6(7)); else the address itself."""
    if isinstance(address, IPv6Address) and (mapped := address.ipv4_mapped) is not None:
        return mapped
    return address


def embedded_v4(address: Address) -> IPv4Address | None:
    """The IPv4 address that a gateway, or the kernel, could send to instead: of an IPv4-mapped or -compatible address
    (RFC 4291, 2.5.5), of NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo (RFC 4380; the client's) and ISATAP (RFC 5214)."""
    if isinstance(address, IPv4Address):
        return None
    number = int(address)
    if address in _MAPPED or address in _NAT64 or (address in _COMPATIBLE and number > 1):
        return IPv4Address(number & _LOW_32)
    if address in _6TO4:
        return IPv4Address(number >> 80 & _LOW_32)
    if address in _TEREDO:
        return IPv4Address(~number & _LOW_32)
    if number >> 32 & _LOW_32 in _ISATAP:
        return IPv4Address(number & _LOW_32)
    return None


def special_kind(address: Address) -> str | None:
    """What an address is that is not plain public unicast, in words that follow "is"; None: it is public."""
    found = _RANGES[address.version].at(int(address))
    if found is not None:
        return found[1]
    if isinstance(address, IPv4Address):
        return None
    inner = embedded_v4(address)
    kind = None if inner is None else special_kind(inner)
    if kind is not None:
        return f"{kind} by the IPv4 address in it"
    public = address in _GLOBAL_UNICAST or address in _MAPPED or address in _NAT64
    return None if public else "reserved"


def is_special(address: Address) -> bool:
    """Whether an address is anything but plain public unicast, also by the IPv4 address that it embeds."""
    return special_kind(address) is not None


def is_wholly_special(network: Network) -> bool:
    """Whether there is no public address in a network."""
    inner = plain_network(network)
    if isinstance(inner, IPv6Network):
        if inner.subnet_of(_NAT64):
            inner = _low_network(inner)
        elif not inner.overlaps(_GLOBAL_UNICAST) and not inner.overlaps(_NAT64) and not inner.overlaps(_MAPPED):
            return True
    return _RANGES[inner.version].cover(int(inner.network_address), int(inner.broadcast_address))


def plain_network(network: Network) -> Network:
    """The IPv4 network of one that has IPv4-mapped addresses only; else the network itself."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return _low_network(network)
    return network


def _low_network(network: IPv6Network) -> IPv4Network:
    return IPv4Network((int(network.network_address) & _LOW_32, network.prefixlen - _MAPPED.prefixlen))
