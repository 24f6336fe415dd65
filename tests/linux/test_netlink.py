"""Messages about interfaces. That the kernel takes them for what they are is proven in test_links.py."""

from __future__ import annotations

import struct
from contextlib import suppress
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.errors import ProtocolError
from fastclaw.linux import netlink

MESSAGES = [
    netlink.new_bridge("fc0123abcd", bytes(6)),
    netlink.new_veth("fc0123abcdv2", 7, "eth0", 9),
    netlink.isolate("fc0123abcdv2"),
    netlink.up("eth0"),
    netlink.del_link(7),
    netlink.new_address(7, IPv4Address("10.90.7.2"), 24, IPv4Address("10.90.7.255")),
    netlink.default_route(IPv4Address("10.90.7.1")),
]
QUESTIONS = [
    netlink.get_link("eth0"),
    netlink.get_route(ip_address("10.90.7.1"), 1),
    netlink.get_route(ip_address("::1"), 2),
]


@pytest.mark.parametrize("message", [*MESSAGES, *QUESTIONS])
def test_a_message_has_its_own_length_and_is_aligned(message: bytes) -> None:
    length, _, flags, _, _ = struct.unpack_from("=IHHII", message)
    assert length == len(message)
    assert length % 4 == 0
    assert flags & 0x1  # NLM_F_REQUEST


@pytest.mark.parametrize("message", MESSAGES)
def test_what_changes_something_is_acknowledged(message: bytes) -> None:
    assert struct.unpack_from("=IHH", message)[2] & 0x4  # NLM_F_ACK


def test_a_message_byte_by_byte() -> None:
    """RTM_DELLINK of interface 7, netlink(7) and rtnetlink(7)."""
    assert netlink.del_link(7) == struct.pack("=IHHII", 32, 17, 0x5, 0, 0) + struct.pack("=BxHiII", 0, 0, 7, 0, 0)


def test_a_question_for_a_route_byte_by_byte() -> None:
    """RTM_GETROUTE, netlink(7) and rtnetlink(7)."""
    head = struct.pack("=IHHII", 36, 26, 0x1, 7, 0)
    route = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 0, 0, 0, 0, 0)
    message = netlink.get_route(ip_address("10.90.7.1"), 7)
    assert message == head + route + struct.pack("=HH", 8, 1) + bytes([10, 90, 7, 1])
    assert netlink.sequence_of(message) == 7


def ack(errno: int, kind: int = 2) -> bytes:
    return struct.pack("=IHHIIi", 36, kind, 0, 0, 0, -errno) + bytes(16)


def test_acknowledgements() -> None:
    assert netlink.parse_ack(ack(0)) == 0
    assert netlink.parse_ack(ack(17)) == 17


@pytest.mark.parametrize("frame", [b"", bytes(15), bytes(64), ack(0, kind=16), ack(-5)])
def test_what_is_no_acknowledgement(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        netlink.parse_ack(frame)


def link(*attributes: bytes, kind: int = 16) -> bytes:
    body = bytes(16) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


NAME = struct.pack("=HH", 9, 3) + b"eth0\0\0\0\0"
UP = struct.pack("=HHB3x", 5, 16, 6)
DOWN = struct.pack("=HHB3x", 5, 16, 2)


@pytest.mark.parametrize(
    ("frame", "operational"),
    [
        (link(NAME, UP), True),
        (link(UP), True),
        (link(NAME, DOWN), False),
        (link(NAME), False),
        (link(), False),
        (link(bytes(4), UP), False),  # an attribute that is shorter than its own head
    ],
)
def test_whether_an_interface_passes_packets(frame: bytes, operational: bool) -> None:
    assert netlink.is_operational(frame) is operational


@pytest.mark.parametrize("frame", [b"", ack(19), bytes(40)])
def test_an_answer_that_is_about_no_interface(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        netlink.is_operational(frame)


def route(type: int, kind: int = 24) -> bytes:
    return struct.pack("=IHHII", 28, kind, 0, 0, 0) + struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 2, 0, type, 0)


@pytest.mark.parametrize(
    ("frame", "away"),
    [
        (route(1), True),  # RTN_UNICAST
        (route(2), False),  # RTN_LOCAL
        (route(3), False),  # RTN_BROADCAST
        (route(1, kind=16), False),
        (route(1)[:16], False),
        (ack(101), True),  # ENETUNREACH
        (ack(1), False),  # EPERM: the kernel does not say
    ],
)
def test_where_packets_would_go(frame: bytes, away: bool) -> None:
    assert netlink.is_routed_away(frame) is away


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_an_error(frame: bytes) -> None:
    for parse in (netlink.parse_ack, netlink.is_operational, netlink.sequence_of, netlink.is_routed_away):
        with suppress(ProtocolError):
            parse(frame)
    with suppress(ProtocolError):
        netlink.is_operational(link(frame))
