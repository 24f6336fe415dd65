"""A bridge's names, subnets and rules. That the rules hold is proven in tests/network/bridge/test_walls.py."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.linux.proc import Owner
from fastclaw.network.bridge.firewall import (
    FIRST_HOST,
    LAST_HOST,
    SUBNETS,
    Bridge,
    BridgeFacts,
    ListenerPorts,
    is_free,
    next_host,
    parse_routes,
    parse_table,
    parse_tables,
    ruleset,
    subnet_at,
    table_name,
    why_no_bridge,
    without_tables,
)

BRIDGE = Bridge(token="0123abcd", subnet=IPv4Network("10.90.7.0/24"))
OWNER = Owner(12, 345, 678)
PORTS = ListenerPorts(proxy=40_000, transparent=40_001, dns_udp=40_002, dns_tcp=40_003)
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
*\t4D7100CB\t00000000\t0205\t0\t0\t0\tFFFFFFFF\t0\t0\t0
"""


def test_names_and_addresses() -> None:
    assert (BRIDGE.interface, BRIDGE.veth(254)) == ("fc0123abcd", "fc0123abcdv254")
    assert len(BRIDGE.veth(LAST_HOST)) < 16  # IFNAMSIZ, with its NUL
    assert BRIDGE.gateway == IPv4Address("10.90.7.1")
    assert BRIDGE.hardware_address == b"\x02\xfc\x01\x23\xab\xcd"


@given(st.builds(Owner, *[st.integers(0, 2**63)] * 3, st.none()))
def test_a_tables_name_says_whose_it_is(owner: Owner) -> None:
    name = table_name(owner, "0123abcd")
    assert parse_table(name) == (owner, "0123abcd")
    assert name.startswith(owner.table_prefix)


@pytest.mark.parametrize(
    "name", ["", "fastclaw", "fastclaw_1_2_3", "fastclaw_1_2_3_0123abcz", "fastclaw_1_2_x_0123abcd"]
)
def test_another_table_is_nobodys(name: str) -> None:
    assert parse_table(name) is None


@given(st.text())
def test_nothing_is_made_of_any_text(text: str) -> None:
    assert parse_table(text) is None or text.startswith("fastclaw_")
    assert all(name in text for name in parse_tables(text))


def test_our_tables_in_a_list() -> None:
    ours = table_name(OWNER, "0123abcd")
    listed = f"table inet {ours}\ntable ip nat\ntable inet firewalld\ntable ip {ours}\n"
    assert parse_tables(listed) == [ours]


def test_the_pool() -> None:
    assert str(subnet_at(0)) == "10.89.0.0/24"
    assert str(subnet_at(SUBNETS - 1)) == "10.255.255.0/24"


@given(st.integers(0, SUBNETS - 1))
def test_subnets_are_private_and_do_not_overlap(index: int) -> None:
    subnet = subnet_at(index)
    assert subnet.is_private
    assert index == SUBNETS - 1 or not subnet.overlaps(subnet_at(index + 1))


def test_every_address_gets_its_turn() -> None:
    number, seen = FIRST_HOST, []
    for _ in range(LAST_HOST - FIRST_HOST + 1):
        seen.append(number)
        number = next_host(number)
    assert seen == list(range(2, 255))
    assert number == FIRST_HOST


@pytest.mark.skipif(sys.byteorder != "little", reason="the example is of a little-endian machine")
def test_routes_of_proc() -> None:
    assert parse_routes(ROUTES) == {
        "eth0": [IPv4Network("0.0.0.0/0"), IPv4Network("192.0.2.0/24")],
        "tun0": [IPv4Network("10.0.0.0/8")],
        "*": [IPv4Network("203.0.113.77/32")],
    }
    assert parse_routes("") == {}


@pytest.mark.parametrize(
    ("routes", "free"),
    [
        ([], True),
        (["0.0.0.0/0", "10.0.0.0/8", "192.168.0.0/16"], True),
        (["10.90.0.0/16"], False),
        (["10.90.7.0/24"], False),
        (["10.90.7.128/25"], False),
        (["10.90.7.9/32"], False),
        (["10.90.8.0/24"], True),
    ],
)
def test_a_subnet_takes_nothing_from_anybody(routes: list[str], free: bool) -> None:
    """What covers the whole pool cannot be avoided."""
    assert is_free(BRIDGE.subnet, map(IPv4Network, routes)) is free


def test_the_rules() -> None:
    text = ruleset("t", BRIDGE, PORTS)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[:3] == ["add table inet t", "delete table inet t", "table inet t {"]
    turned = [line for line in lines if "dnat ip to" in line]
    assert turned == [
        'iifname "fc0123abcd*" ip daddr 10.90.7.1 tcp dport 3128 dnat ip to 10.90.7.1:40000',
        'iifname "fc0123abcd*" tcp dport { 80, 443 } dnat ip to 10.90.7.1:40001',
        'iifname "fc0123abcd*" udp dport 53 dnat ip to 10.90.7.1:40002',
        'iifname "fc0123abcd*" tcp dport 53 dnat ip to 10.90.7.1:40003',
    ]
    assert text.count("{") == text.count("}")


def test_removing_is_the_same_where_nothing_is() -> None:
    assert without_tables(["a", "b"]) == (
        "add table inet a\ndelete table inet a\nadd table inet b\ndelete table inet b\n"
    )
    assert without_tables([]) == ""


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (BridgeFacts(is_root=False, nft="/usr/sbin/nft"), "needs root"),
        (BridgeFacts(is_root=True, nft=None), "apt-get install nftables"),
        (BridgeFacts(is_root=True, nft="/usr/sbin/nft", refused="Operation not supported"), "not supported; take mode"),
    ],
)
def test_why_there_is_no_bridge(facts: BridgeFacts, says: str) -> None:
    reason = why_no_bridge(facts)
    assert reason is not None
    assert says in reason
    assert "\n" not in reason


def test_a_host_that_can() -> None:
    assert why_no_bridge(BridgeFacts(is_root=True, nft="/usr/sbin/nft")) is None
