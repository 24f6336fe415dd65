"""A bridge's names, its subnet, and the nftables rules that make it lead to the egress proxy and nowhere else.

    interface   fc<token>             table   inet fastclaw_<pid>_<start>_<pid namespace>_<token>
    veth        fc<token>v<n>, for the container with the n-th address of the subnet

A table's name says whose it is, so nothing else has to be written down: neither tables nor interfaces survive a boot.
Rules as of nft(8), hooks and priorities as of its table "Standard priority names". Takes facts, gives texts.
"""

import re
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from msgspec import Struct

from fastclaw import network_limits
from fastclaw.linux.proc import Owner

POOL = (IPv4Network("10.89.0.0/16").network_address, IPv4Network("10.255.255.0/24").network_address)
"""First and last subnet that a bridge may have: of this range Podman takes its own (containers.conf(5))."""

SUBNETS = (int(POOL[1]) - int(POOL[0])) // 256 + 1
SUBNET_PREFIX = 24
POOL_PREFIX = 8
"""A route that is no longer covers the whole pool, and so says nothing about one subnet."""

FIRST_HOST, LAST_HOST = 2, 254
"""What containers may have of a subnet; 1 is the gateway."""

HTTP_PORTS = (80, 443)
DNS_PORT = 53

TABLE = re.compile(r"fastclaw_(\d+)_(\d+)_(\d+)_([0-9a-f]{8})")


class Bridge(Struct, frozen=True, kw_only=True):
    """One network.

    Parameters:
        token: eight hexadecimal digits; unique on this host.
    """

    token: str
    subnet: IPv4Network

    @property
    def interface(self) -> str:
        """Its name on the host: 10 of the 15 characters that the kernel takes."""
        return f"fc{self.token}"

    @property
    def gateway(self) -> IPv4Address:
        """The host's address in it."""
        return self.subnet[1]

    @property
    def hardware_address(self) -> bytes:
        """Its own and locally administered: else it would change with the first container that comes and goes."""
        return bytes.fromhex(f"02fc{self.token}")

    def veth(self, number: int) -> str:
        """The host's end of a container's connection."""
        return f"{self.interface}v{number}"


class ListenerPorts(Struct, frozen=True, kw_only=True):
    """Where fastclaw listens on the gateway's address: any free ports, since containers see the customary ports and
    the host may have a proxy or a name server of its own."""

    proxy: int
    transparent: int
    dns_udp: int
    dns_tcp: int


class BridgeFacts(Struct, frozen=True, kw_only=True):
    """What a bridge needs.

    Parameters:
        nft: path of the program; None where it is missing.
        refused: what the kernel said to a bridge in a throw-away network namespace; None where it took it, or where
            it was not tried.
    """

    is_root: bool
    nft: str | None
    refused: str | None = None


def why_no_bridge(facts: BridgeFacts) -> str | None:
    """Why mode `bridge` cannot be had, in one line that says what to do; None where it can."""
    if not facts.is_root:
        return "network mode bridge needs root, to make interfaces and firewall rules; take mode proxy"
    if facts.nft is None:
        return "nft is not installed; run: apt-get install nftables"
    if facts.refused is not None:
        return f"this host refuses a bridge or its rules: {facts.refused}; take mode proxy"
    return None


def subnet_at(index: int) -> IPv4Network:
    """The subnet with this number, 0 to `SUBNETS` - 1."""
    return IPv4Network((int(POOL[0]) + 256 * index, SUBNET_PREFIX))


def next_host(number: int) -> int:
    """Which of a subnet's addresses the next container is given: all get their turn before one is given out anew."""
    return FIRST_HOST if number >= LAST_HOST else number + 1


def parse_routes(text: str) -> dict[str, list[IPv4Network]]:
    """Destinations by interface, from /proc/net/route: both as eight hexadecimal digits in the host's byte order."""
    routes: dict[str, list[IPv4Network]] = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7:
            prefix = int(fields[7], 16).bit_count()
            routes.setdefault(fields[0], []).append(IPv4Network((_host_order(fields[1]), prefix)))
    return routes


def _host_order(digits: str) -> int:
    return int.from_bytes(bytes.fromhex(digits), sys.byteorder)


def is_free(subnet: IPv4Network, routes: Iterable[IPv4Network]) -> bool:
    """Whether a subnet overlaps no network that is routed to already."""
    return not any(route.prefixlen > POOL_PREFIX and route.overlaps(subnet) for route in routes)


def table_name(owner: Owner, token: str) -> str:
    """Of the table with a bridge's rules."""
    return owner.table_prefix + token


def parse_table(name: str) -> tuple[Owner, str] | None:
    """Whose a table is, and the token of its bridge; None where it is not one of ours."""
    found = TABLE.fullmatch(name)
    if found is None:
        return None
    pid, start, namespace, token = found.groups()
    return Owner(int(pid), int(start), int(namespace)), token


def parse_tables(text: str) -> list[str]:
    """Names of our tables in what `nft list tables` prints."""
    words = (line.split() for line in text.splitlines())
    return [word[2] for word in words if word[:2] == ["table", "inet"] and len(word) == 3 and TABLE.fullmatch(word[2])]


def ruleset(table: str, bridge: Bridge, ports: ListenerPorts) -> str:
    """A transaction for `nft -f -`.

    A drop in any base chain is final, even where tables of others accept, so only the chain that turns connections
    must come before theirs (dstnat is -100; a nat chain may not come before connection tracking, -200).
    """
    return _RULES.format(
        table=table,
        ours=f"{bridge.interface}*",  # with its veths, should one ever stand alone
        subnet=bridge.subnet,
        gateway=bridge.gateway,
        first=bridge.subnet[FIRST_HOST],
        last=bridge.subnet[LAST_HOST],
        proxy=network_limits.EGRESS_PROXY_PORT,
        http=", ".join(map(str, HTTP_PORTS)),
        dns=DNS_PORT,
        ports=ports,
    )


def without_tables(names: Iterable[str]) -> str:
    """A transaction after which none of these is left, whether it was there or not."""
    return "".join(f"add table inet {name}\ndelete table inet {name}\n" for name in names)


_RULES = """\
add table inet {table}
delete table inet {table}
table inet {table} {{
    chain screen {{
        type filter hook prerouting priority -300; policy accept;
        iifname "lo" accept
        iifname "{ours}" goto screen_inside
        ip daddr {subnet} drop
    }}
    chain screen_inside {{
        meta nfproto != ipv4 drop
        ip saddr != {first}-{last} drop
        ip protocol != {{ tcp, udp }} drop
        meta pkttype != host drop
        fib daddr type {{ broadcast, multicast, anycast }} drop
    }}
    chain turn {{
        type nat hook prerouting priority -110; policy accept;
        iifname "{ours}" ip daddr {gateway} tcp dport {proxy} dnat ip to {gateway}:{ports.proxy}
        iifname "{ours}" tcp dport {{ {http} }} dnat ip to {gateway}:{ports.transparent}
        iifname "{ours}" udp dport {dns} dnat ip to {gateway}:{ports.dns_udp}
        iifname "{ours}" tcp dport {dns} dnat ip to {gateway}:{ports.dns_tcp}
    }}
    chain arrive {{
        type filter hook input priority 0; policy accept;
        iifname "{ours}" jump arrive_inside
    }}
    chain arrive_inside {{
        ip daddr != {gateway} drop
        ct status dnat tcp dport {{ {ports.proxy}, {ports.transparent}, {ports.dns_tcp} }} accept
        ct status dnat udp dport {ports.dns_udp} accept
        drop
    }}
    chain pass {{
        type filter hook forward priority 0; policy accept;
        iifname "{ours}" drop
        oifname "{ours}" drop
    }}
    chain leave {{
        type filter hook output priority 0; policy accept;
        oifname "{ours}" jump leave_inside
        ip daddr {subnet} drop
    }}
    chain leave_inside {{
        ip saddr != {gateway} drop
        tcp sport {{ {ports.proxy}, {ports.transparent}, {ports.dns_tcp} }} accept
        udp sport {ports.dns_udp} accept
        drop
    }}
}}
"""
"""`screen`: nothing gets as far as connection tracking but TCP and UDP of the subnet's own addresses; no other
interface leads to the subnet. `turn`: what is asked of any address is asked of fastclaw. `arrive`: and nothing else of
this host, the ports that it is turned to included. `pass`: nothing is forwarded. `leave`: the host says nothing by
itself, no multicast and no IPv6 either, and its own processes do not reach the listeners, whose secrets are not for
them."""
