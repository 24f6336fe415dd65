"""No text that a resolver takes as an address passes for a name or for another address; and what is special."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.network.egress.addresses import (
    MAX_PORT,
    Address,
    BadHost,
    Network,
    embedded_v4,
    is_special,
    is_wholly_special,
    parse_authority,
    parse_host,
    plain,
    plain_network,
    show,
    special_kind,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# --- texts ---

LOCALHOST = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0X7F.1",
    "0x7f.0x0.0x0.0x1",
    "0177.0.0.1",
    "0177.0x0.0.1",
    "0000000000177.0.0.01",
    "0x00000000000000007f.1.",
]


@pytest.mark.parametrize("text", LOCALHOST)
def test_every_numeric_form_is_the_same_address(text: str) -> None:
    assert parse_host(text) == IPv4Address("127.0.0.1")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("4294967295", "255.255.255.255"),
        ("1.0xffffff", "1.255.255.255"),
        ("1.2.65535", "1.2.255.255"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("::FFFF:127.0.0.1", "::ffff:127.0.0.1"),
        ("[::ffff:7f00:1]", "::ffff:127.0.0.1"),
        ("64:FF9B::7f00:1", "64:ff9b::127.0.0.1"),
    ],
)
def test_other_addresses(text: str, address: str) -> None:
    assert parse_host(text) == ip_address(address)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("localhost", "localhost"),
        ("_srv._tcp.example.com", "_srv._tcp.example.com"),
        ("a_b", "a_b"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("ends-.example.com", "ends-.example.com"),
        ("r1---sn-x.example", "r1---sn-x.example"),
        ("1password.com", "1password.com"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("0x7f.0.0.g", "0x7f.0.0.g"),
        ("a" * 63 + ".b", "a" * 63 + ".b"),
        (".".join(["a" * 62] * 4) + ".", ".".join(["a" * 62] * 4)),
    ],
)
def test_names(text: str, name: str) -> None:
    assert parse_host(text) == name
    assert parse_host(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a..b",
        "a..",
        ".a",
        "127.0.0.1..",
        "-a.example",
        "a.-b",
        "a" * 64 + ".example",
        "a." * 127 + "a",
        "a." * 126 + "ab",
        "a" * 300,
        "a b",
        " a",
        "a\n",
        "a\0",
        "127.0.0.1\0",
        "127.0.0.1 ",
        "127.0.0.1\tx",
        "\t127.0.0.1",
        "127.0.0.1/8",
        "user@example.com",
        "example.com/path",
        "example.com#",
        "example.com?",
        "example.com\\x",
        "*.example.com",
        # What ends in a number is an address or nothing.
        "1.2.3.4.5",
        "example.1",
        "example.0x1f",
        "256.0.0.1",
        "1.256.1",
        "1.2.65536",
        "1.16777216",
        "4294967296",
        "0x100000000",
        "040000000000",
        "1" * 200,
        "08.0.0.1",
        "0x7g.1",
        "127..1",
        "0b1",
        "a.0b11",
        "127.0.0.0o1",
        "+127.0.0.1",
        "-1",
        "127.0.0.+1",
        # Letters and digits that a resolver's IDNA would turn into plain ones.
        "\uff11\uff12\uff17.0.0.1",
        "127。0。0。1",
        "①②⑦.0.0.1",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "ⓔxample.com",
        "bücher.example",
        "exam\N{SOFT HYPHEN}ple.com",
        "\N{KELVIN SIGN}.com",
        "\ud800",
        # Encoded, zoned, badly bracketed.
        "127%2e0.0.1",
        "%31%32%37.0.0.1",
        "fe80::1%eth0",
        "[fe80::1%25eth0]",
        "::1%lo",
        "[::1",
        "::1]",
        "[[::1]]",
        "[]",
        "[127.0.0.1]",
        "[example.com]",
        "[v1.fe80::a+en1]",
        "::ffff:127.0.0.01",
        "::ffff:0x7f.0.0.1",
        "1::2::3",
        ":",
        ":::",
        "::1.",
        "::1/128",
        "example.com:80",
        "127.0.0.1:80",
    ],
)
def test_no_host(text: str) -> None:
    with pytest.raises(BadHost) as refused:
        parse_host(text)
    assert str(refused.value).isprintable()
    assert str(refused.value).isascii()


def test_other_letters_are_refused_with_advice() -> None:
    with pytest.raises(BadHost, match="write the name in punycode"):
        parse_host("bücher.example")


# --- whatever a resolver takes ---


def by_inet_aton(text: str) -> Address | None:
    try:
        return IPv4Address(socket.inet_aton(text))
    except (OSError, ValueError):
        return None


def by_getaddrinfo(text: str) -> list[str]:
    """The addresses that a text is, zones included; nothing is looked up."""
    try:
        found = socket.getaddrinfo(text, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        return []
    return [str(address[0]) for *_, address in found]


def hosts(text: str) -> str | Address | None:
    try:
        return parse_host(text)
    except BadHost:
        return None


FULLWIDTH = {ord(digit): chr(0xFF10 + int(digit)) for digit in "0123456789"}
number = st.integers(0, 2**33) | st.integers(0, 300) | st.sampled_from([0, 127, 255, 256, 65535, 65536, 2**24, 2**32])
spelling: st.SearchStrategy[Callable[[int], str]] = st.sampled_from(
    [
        str,
        lambda n: f"0{n:o}",
        lambda n: f"{n:#x}",
        lambda n: f"{n:#X}",
        lambda n: f"0x000{n:x}",
        lambda n: f"000{n:o}",
        lambda n: f"00{n}",
        lambda n: f"{n:#o}",
        lambda n: f"{n:#b}",
        lambda n: f"+{n}",
        lambda n: str(n).translate(FULLWIDTH),
        lambda n: "".join(f"%{ord(digit):02x}" for digit in str(n)),
    ]
)
part = st.builds(lambda spell, n: spell(n), spelling, number)
plain_part = st.builds(lambda spell, n: spell(n), st.sampled_from([str, hex, lambda n: f"0{n:o}"]), st.integers(0, 255))
end = st.sampled_from(["", "", "", ".", "..", " ", "\n", " x", "\0", "%lo", ":80", "/8", "a"])
v4_text = st.builds(
    lambda parts, dot, end: dot.join(parts) + end,
    st.lists(plain_part, min_size=1, max_size=4) | st.lists(part, min_size=1, max_size=5),
    st.sampled_from([".", ".", ".", "。", ".", "\uff0e"]),
    end,
)
group = st.integers(0, 0xFFFF).map(lambda n: f"{n:x}") | st.sampled_from(
    ["0", "ffff", "FFFF", "64", "ff9b", "", "5efe"]
)
v6_text = st.builds(
    lambda groups, tail, before, after: before + ":".join([*groups, *tail]) + after,
    st.lists(group, max_size=8),
    st.lists(v4_text, max_size=1),
    st.sampled_from(["", "", "[", "::", "[::", "::ffff:", "64:ff9b::"]),
    st.sampled_from(["", "", "]", "%lo", "%1", "%25lo", ".", "]:80"]),
) | st.integers(0, 2**128 - 1).map(lambda n: str(IPv6Address(n)))
noise = st.text(st.sampled_from("0123456789abcdefxXoO.:%[]-+_ \t。\uff11\uff10"), max_size=24)


@given(v4_text | v6_text | noise | st.text(max_size=12))
@example("1.2.3.4 anything")
@example("127.0.0.1\n")
@example("0b1")
def test_what_a_resolver_takes_for_an_address_is_that_address_or_refused(text: str) -> None:
    host = hosts(text)
    taken = by_inet_aton(text)
    assert taken is None or host in (None, taken)
    for address in by_getaddrinfo(text):
        assert host is None or (not isinstance(host, str) and host == ip_address(address))


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
    st.lists(st.sampled_from("dox"), min_size=4, max_size=4),
)
def test_the_forms_of_inet_aton_are_all_read(numbers: list[int], bases: list[str]) -> None:
    """Not only not misread: whoever allows 10.0.0.1 may be asked for 0xa000001."""
    *parts, last = numbers
    values = [*(value & 0xFF for value in parts), last >> 8 * len(parts)]
    spelt = {"d": "{:d}", "o": "0{:o}", "x": "{:#x}"}
    text = ".".join(spelt[base].format(value) for base, value in zip(bases, values, strict=False))
    assert parse_host(text) == by_inet_aton(text)


@given(st.integers(0, 2**128 - 1))
def test_ipv6_is_read(number: int) -> None:
    address = IPv6Address(number)
    for text in (str(address), address.exploded, address.exploded.upper(), f"[{address}]"):
        assert parse_host(text) == address


labels = st.from_regex(r"[a-z0-9_][a-z0-9_-]{0,20}", fullmatch=True)


@given(st.lists(labels, max_size=4), st.from_regex(r"[a-z_][a-z0-9_-]{0,20}", fullmatch=True), st.booleans())
def test_a_name_is_itself_in_any_case_and_never_an_address(labels: list[str], last: str, dot: bool) -> None:
    name = ".".join([*labels, last])
    assert parse_host(name.upper() + "." * dot) == name
    assert by_inet_aton(name) is None
    assert by_getaddrinfo(name) == []


@given(v4_text | v6_text | noise | st.text())
def test_reading_twice_changes_nothing(text: str) -> None:
    host = hosts(text)
    assert host is None or parse_host(str(host)) == host


# --- host and port ---


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.com:443", "example.com", 443),
        ("EXAMPLE.com.:1", "example.com", 1),
        ("127.1:65535", IPv4Address("127.0.0.1"), 65535),
        ("[::1]:80", IPv6Address("::1"), 80),
        ("example.com:0080", "example.com", 80),
        ("example.com", "example.com", 80),
        ("example.com:", "example.com", 80),
        ("[::1]", IPv6Address("::1"), 80),
        ("[::1]:", IPv6Address("::1"), 80),
    ],
)
def test_authorities(text: str, host: str | Address, port: int) -> None:
    assert parse_authority(text, 80) == (host, port)


@pytest.mark.parametrize("text", ["example.com", "example.com:", "[::1]", "127.0.0.1", ""])
def test_without_a_default_a_port_must_be_there(text: str) -> None:
    with pytest.raises(BadHost, match="no port"):
        parse_authority(text, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "example.com:0",
        "example.com:65536",
        "example.com:000080",
        "example.com:-1",
        "example.com:+80",
        "example.com: 80",
        "example.com:80 ",
        "example.com:\uff18\uff10",
        "example.com:http",
        "example.com:80:80",
        "::1:80",
        "::1",
        "[::1]80",
        "[::1",
        "[::1]]:80",
        "user@example.com:80",
        "user:password@example.com:80",
        "example.com:80/",
        "http://example.com:80",
        "example.com:" + "1" * 10_000,
        "a" * 10_000,
    ],
)
def test_no_authority(text: str) -> None:
    with pytest.raises(BadHost) as refused:
        parse_authority(text, 80)
    assert len(str(refused.value)) < 2 * network_limits.EGRESS_RULE_BYTES


addresses = st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address)


@given(labels.map(lambda label: f"{label}.example") | addresses, st.integers(1, MAX_PORT))
def test_what_is_shown_can_be_read(host: str | Address, port: int) -> None:
    assert parse_authority(show(host, port), None) == (host, port)


@given(noise | st.text())
def test_any_text_is_an_authority_or_none(text: str) -> None:
    read = None
    try:
        read = parse_authority(text, 80)
    except BadHost:
        return
    assert 1 <= read[1] <= MAX_PORT


# --- what is special ---


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("0.0.0.0", "unspecified"),
        ("10.1.2.3", "private"),
        ("100.64.0.1", "shared within a provider's network"),
        ("100.100.100.200", "shared within a provider's network"),
        ("127.255.255.255", "loopback"),
        ("168.63.129.16", "a cloud's service for its machines"),
        ("169.254.169.254", "link-local"),
        ("172.31.255.255", "private"),
        ("192.0.0.192", "reserved for protocols"),
        ("192.168.0.1", "private"),
        ("198.19.255.255", "for benchmarks"),
        ("203.0.113.1", "for documentation"),
        ("239.255.255.255", "multicast"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::2", "unspecified by the IPv4 address in it"),
        ("::8.8.8.8", "reserved"),
        ("::ffff:0:8.8.8.8", "reserved"),
        ("::ffff:127.0.0.1", "loopback by the IPv4 address in it"),
        ("64:ff9b::169.254.169.254", "link-local by the IPv4 address in it"),
        ("64:ff9b:1::1", "reserved"),
        ("100::1", "reserved"),
        ("2001::1", "reserved for protocols"),
        ("2001:db8::1", "for documentation"),
        ("2002:808:808::1", "reserved for 6to4"),
        ("2600::5efe:10.0.0.1", "private by the IPv4 address in it"),
        ("3fff::1", "for documentation"),
        ("4000::", "reserved"),
        ("5f00::1", "reserved"),
        ("fd00:ec2::254", "private"),
        ("fe80::1", "link-local"),
        ("fec0::1", "reserved"),
        ("ff02::1", "multicast"),
        ("8.8.8.8", None),
        ("172.32.0.0", None),
        ("100.128.0.0", None),
        ("223.255.255.255", None),
        ("::ffff:8.8.8.8", None),
        ("64:ff9b::8.8.8.8", None),
        ("2606:4700::1111", None),
        ("2600::5efe:8.8.8.8", None),
    ],
)
def test_special_addresses(address: str, kind: str | None) -> None:
    assert special_kind(ip_address(address)) == kind
    assert is_special(ip_address(address)) == (kind is not None)


registered = st.sampled_from(
    [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    ]
).map(IPv4Network)
"""IANA, "IPv4 Special-Purpose Address Registry", what is not globally reachable; and multicast."""


def some_address(network: Network) -> st.SearchStrategy[Address]:
    first, last = int(network.network_address), int(network.broadcast_address)
    kind = IPv4Address if network.version == 4 else IPv6Address
    return (st.sampled_from([first, last]) | st.integers(first, last)).map(kind)


special_v4 = registered.flatmap(some_address)
any_v4 = special_v4 | st.integers(0, 2**32 - 1).map(IPv4Address)
v6_networks = st.sampled_from(
    ["::/96", "::/8", "64:ff9b::/32", "2000::/3", "2001::/16", "2002::/16", "3fff::/16", "f000::/4"]
)
any_address = any_v4 | addresses | v6_networks.map(IPv6Network).flatmap(some_address)

EMBEDDINGS: dict[str, Callable[[int, int], int]] = {
    "mapped": lambda v4, _: 0xFFFF << 32 | v4,
    "compatible": lambda v4, _: v4,
    "NAT64": lambda v4, _: 0x64_FF9B << 96 | v4,
    "6to4": lambda v4, rest: 0x2002 << 112 | v4 << 80 | rest & (1 << 80) - 1,
    "Teredo": lambda v4, rest: 0x2001_0000 << 96 | (rest & (1 << 64) - 1) << 32 | v4 ^ 0xFFFF_FFFF,
    "ISATAP": lambda v4, rest: 0x2600 << 112 | (rest & (1 << 48) - 1) << 64 | 0x5EFE << 32 | v4,
    "ISATAP, universal": lambda v4, rest: 0x2600 << 112 | (rest & (1 << 48) - 1) << 64 | 0x200_5EFE << 32 | v4,
}


@given(special_v4)
def test_the_registry_is_heeded(address: Address) -> None:
    assert is_special(address)


@given(any_address)
def test_what_the_standard_library_calls_not_global_is_special(address: Address) -> None:
    assert address.is_global or is_special(address)
    assert not (address.is_loopback or address.is_link_local or address.is_multicast) or is_special(address)


@pytest.mark.parametrize("form", EMBEDDINGS)
@given(inner=any_v4.filter(lambda v4: int(v4) > 1), rest=st.integers(0, 2**128 - 1))
def test_an_address_is_special_by_what_it_embeds(form: str, inner: IPv4Address, rest: int) -> None:
    outer = IPv6Address(EMBEDDINGS[form](int(inner), rest))
    assert embedded_v4(outer) == inner
    assert is_special(outer) or not is_special(inner)
    if form in ("mapped", "NAT64"):
        assert is_special(outer) == is_special(inner)


@given(any_address)
def test_an_embedded_address_that_is_special_makes_it_special(address: Address) -> None:
    inner = embedded_v4(address)
    assert inner is None or not is_special(inner) or is_special(address)


def test_nothing_is_embedded_in_plain_ones() -> None:
    for text in ("8.8.8.8", "::", "::1", "2606:4700::1111", "fe80::1"):
        assert embedded_v4(ip_address(text)) is None


@given(any_v4)
def test_a_mapped_address_is_plainly_the_ipv4_one(address: IPv4Address) -> None:
    assert plain(IPv6Address(f"::ffff:{address}")) == plain(address) == address


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("10.0.0.0/8", True),
        ("10.1.0.0/16", True),
        ("127.0.0.1/32", True),
        ("224.0.0.0/3", True),
        ("0.0.0.0/0", False),
        ("10.0.0.0/7", False),
        ("128.0.0.0/1", False),
        ("8.8.8.0/24", False),
        ("192.0.0.0/16", False),
        ("::/0", False),
        ("::/96", True),
        ("::/80", False),
        ("fc00::/7", True),
        ("f000::/4", True),
        ("4000::/2", True),
        ("2001:db8::/32", True),
        ("2000::/3", False),
        ("64:ff9b::/96", False),
        ("64:ff9b::/64", False),
        ("64:ff9b::a00:0/104", True),
        ("64:ff9b::808:0/112", False),
        ("::ffff:0:0/96", False),
        ("::ffff:10.0.0.0/104", True),
    ],
)
def test_wholly_special_networks(network: str, expected: bool) -> None:
    assert is_wholly_special(ip_network(network)) == expected


@given(any_address, st.integers(0, 128), st.data())
def test_a_wholly_special_network_has_only_special_addresses(inside: Address, length: int, data: st.DataObject) -> None:
    network = ip_network(f"{inside}/{min(length, inside.max_prefixlen)}", strict=False)
    address = data.draw(some_address(network))
    assert is_special(address) or not is_wholly_special(network)
    if network.prefixlen == network.max_prefixlen and embedded_v4(inside) is None:
        assert is_wholly_special(network) == is_special(inside)


def test_a_network_of_mapped_addresses_is_plainly_one_of_ipv4() -> None:
    assert plain_network(ip_network("::ffff:10.0.0.0/104")) == ip_network("10.0.0.0/8")
    assert plain_network(ip_network("::fffe:0:0/95")) == ip_network("::fffe:0:0/95")
