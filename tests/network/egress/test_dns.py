"""Queries as stub resolvers send them, and everything else that can arrive on port 53."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.network.egress import dns
from fastclaw.network.egress.dns import Rcode
from tests.network.egress.dns_rig import AAAA, ANY, AXFR, HTTPS, OPT, TXT, A, opt, query, read, wire_name

V4 = [IPv4Address(f"192.0.2.{n}") for n in range(1, 101)]
V6 = [IPv6Address(f"2001:db8::{n:x}") for n in range(1, 101)]
LONGEST = ".".join(["a" * 63] * 3 + ["a" * 61])
LABEL = st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=8).map(".".join)


def texts(addresses: list[IPv4Address] | list[IPv6Address]) -> list[str]:
    return [str(address) for address in addresses]


@given(NAME, st.sampled_from([A, AAAA, HTTPS, TXT, ANY]), st.integers(0, 65_535), st.booleans())
def test_a_query_says_what_was_asked(name: str, type: int, id: int, is_loud: bool) -> None:
    asked = name.upper() if is_loud else name
    parsed = dns.parse(query(wire_name(asked), type, id=id))
    assert parsed[:6] == (id, 0x0100, wire_name(asked) + struct.pack(">2H", type, 1), name, type, None)
    assert parsed.edns is None


@given(st.lists(st.sampled_from([*V4, *V6]), max_size=40), st.sampled_from([A, AAAA]), st.booleans())
def test_an_answer_has_the_addresses_that_were_asked_for(
    addresses: list[IPv4Address | IPv6Address], type: int, has_edns: bool
) -> None:
    asked = dns.parse(query(type=type, additional=(opt(),) * has_edns))
    answer = dns.answer(asked, addresses, 65_535)
    flags, code, found, told_edns = read(answer)
    wanted = [str(address) for address in addresses if address.version == (4 if type == A else 6)]
    assert (code, found, told_edns) == (0, wanted[: network_limits.DNS_ANSWERS], has_edns)
    assert flags == 0x8180  # QR, RD as asked, RA
    assert answer[:2] + answer[12 : 12 + len(asked.question)] == (77).to_bytes(2) + asked.question


@pytest.mark.parametrize("type", [HTTPS, TXT, ANY, 6])
def test_a_type_that_we_have_not_is_an_empty_answer(type: int) -> None:
    assert read(dns.answer(dns.parse(query(type=type)), [*V4, *V6], 512))[1:3] == (0, [])


@pytest.mark.parametrize("code", [Rcode.NXDOMAIN, Rcode.REFUSED, Rcode.SERVFAIL])
def test_a_failure_echoes_the_question(code: Rcode) -> None:
    asked = dns.parse(query(wire_name("A.eXample")))
    answer = dns.failure(asked, code)
    assert read(answer)[1:] == (code, [], False)
    assert answer.endswith(wire_name("A.eXample") + b"\0\x01\0\x01")


@pytest.mark.parametrize(("flags", "echoed"), [(0, 0x8080), (0x0110, 0x8190), (0x0732, 0x8190)])
def test_flags_of_the_query_that_an_answer_repeats(flags: int, echoed: int) -> None:
    assert read(dns.answer(dns.parse(query(flags=flags)), [], 512))[0] == echoed


@pytest.mark.parametrize(
    ("additional", "most"),
    [
        ((), 512),
        ((opt(0),), 512),
        ((opt(700),), 700),
        ((opt(65_535),), network_limits.DNS_UDP_BYTES),
        ((opt(700, options=b"\0\x0a\0\x08" + bytes(8)),), 700),
    ],
)
def test_a_client_says_how_much_it_takes(additional: tuple[bytes, ...], most: int) -> None:
    assert dns.udp_bytes(dns.parse(query(additional=additional))) == most


@pytest.mark.parametrize("name", ["a.example", LONGEST])
@pytest.mark.parametrize("type", [A, AAAA])
@pytest.mark.parametrize("has_edns", [False, True])
def test_what_does_not_fit_is_left_out_and_said(name: str, type: int, has_edns: bool) -> None:
    asked = dns.parse(query(wire_name(name), type, additional=(opt(512),) * has_edns))
    wanted = texts(V4 if type == A else V6)[: network_limits.DNS_ANSWERS]
    whole = len(dns.answer(asked, [*V4, *V6], 65_535))
    for most in (512, whole - 1, whole):
        answer = dns.answer(asked, [*V4, *V6], most)
        flags, _, found, _ = read(answer)
        assert len(answer) <= most
        assert found == wanted[: len(found)]
        assert bool(flags & 0x0200) == (len(found) < len(wanted)) == (most < whole)
        assert most - len(answer) < 28  # no more is left out than has to be


@given(NAME, st.lists(st.sampled_from(V6), max_size=100), st.integers(0, 65_535))
def test_an_answer_is_never_much_more_than_its_question(name: str, addresses: list[IPv6Address], size: int) -> None:
    asked = dns.parse(query(wire_name(name), AAAA, additional=(opt(size),)))
    answer = dns.answer(asked, addresses, dns.udp_bytes(asked))
    assert len(answer) <= max(512, min(size, network_limits.DNS_UDP_BYTES))


def test_codes_are_those_of_the_standards() -> None:
    assert list(map(int, Rcode)) == [0, 1, 2, 3, 4, 5, 16]


@pytest.mark.parametrize("type", [251, AXFR, 253, 254])
def test_transfers_are_refused(type: int) -> None:
    assert dns.parse(query(type=type)).fault is Rcode.REFUSED


def test_dnssec_ok_is_repeated() -> None:
    answer = dns.answer(dns.parse(query(additional=(opt(flags=0xFFFF),))), V4, 512)
    assert answer.endswith(b"\0" + struct.pack(">2HIH", OPT, network_limits.DNS_UDP_BYTES, 0x8000, 0))


@pytest.mark.parametrize("code", range(1, 16))
def test_other_operations_are_not_implemented(code: int) -> None:
    asked = dns.parse(query(flags=code << 11)[: 12 + code])
    assert asked.fault is Rcode.NOTIMP
    flags, told, _, _ = read(dns.failure(asked, asked.fault))
    assert (flags >> 11 & 0xF, told) == (code, Rcode.NOTIMP)


FAULTS = {
    "no question": (query(b"", counts=(0, 0, 0))[:12], Rcode.FORMERR),
    "two questions": (query(counts=(2, 0, 0)) + wire_name("b.example") + b"\0\x01\0\x01", Rcode.FORMERR),
    "with an answer": (query(counts=(1, 1, 0)) + b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04abcd", Rcode.FORMERR),
    "with an authority": (query(counts=(1, 0, 1)), Rcode.FORMERR),
    "a pointer to itself": (query(b"\xc0\x0c"), Rcode.FORMERR),
    "a pointer after a label": (query(b"\x01a\xc0\x0c"), Rcode.FORMERR),
    "a label of the reserved kind": (query(b"\x40" + b"a" * 64 + b"\0"), Rcode.FORMERR),
    "a name of 256 bytes": (query(wire_name(LONGEST + "a")), Rcode.FORMERR),
    "no end of the name": (query(b"\x3faaa"), Rcode.FORMERR),
    "no type": (query()[:-4], Rcode.FORMERR),
    "half a class": (query()[:-1], Rcode.FORMERR),
    "bytes after its end": (query() + b"x", Rcode.FORMERR),
    "OPT that is cut off": (query(additional=(opt(),))[:-1], Rcode.FORMERR),
    "OPT with options that are cut off": (query(additional=(opt(options=b"abcd"),))[:-1], Rcode.FORMERR),
    "OPT that is said only": (query(additional=(b"",)), Rcode.FORMERR),
    "two OPT": (query(additional=(opt(), opt())), Rcode.FORMERR),
    "OPT with a name": (query(additional=(b"\x01a" + opt(),)), Rcode.FORMERR),
    "three records": (query(additional=(opt(), b"\0" * 11, b"\0" * 11)), Rcode.FORMERR),
    "a question for OPT": (query(type=OPT), Rcode.FORMERR),
    "a transfer": (query(type=AXFR), Rcode.REFUSED),
    "CHAOS": (query(wire_name("version.bind"), 16, klass=3), Rcode.REFUSED),
    "any class": (query(klass=255), Rcode.REFUSED),
    "EDNS of the future": (query(additional=(opt(version=1),)), Rcode.BADVERS),
}


@pytest.mark.parametrize(("message", "code"), FAULTS.values(), ids=FAULTS.keys())
def test_what_cannot_be_answered(message: bytes, code: Rcode) -> None:
    asked = dns.parse(message)
    assert asked.fault is code
    assert read(dns.failure(asked, code))[1] == code
    assert len(dns.failure(asked, code)) <= len(message)


def test_other_records_after_the_question_are_passed_over() -> None:
    signature = b"\xc0\x0c" + struct.pack(">2HIH", 250, 255, 0, 3) + b"abc"
    asked = dns.parse(query(additional=(signature, opt(900))))
    assert (asked.fault, asked.edns) == (None, dns.Edns(900, 0, 0))
    assert dns.parse(query(additional=(wire_name("key") + signature[2:],))).fault is None


@pytest.mark.parametrize("name", [b"\0", b"\x03a.b\0", b"\x02a\0\0", b"\x02\xc3\xbc\0", b"\x01*\0", b"\x01 \0"])
def test_a_name_that_is_no_host_name(name: bytes) -> None:
    asked = dns.parse(query(name))
    assert (asked.name, asked.fault) == (None, None)


def test_the_longest_name() -> None:
    assert dns.parse(query(wire_name(LONGEST))).name == LONGEST


@pytest.mark.parametrize("message", [b"", query()[:11], query(flags=0x8180), query(flags=0x8000)[:12]])
def test_what_must_not_be_answered(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        dns.parse(message)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for message in (data, query()[:12] + data, query(additional=(b"",)) + data, query(b"", 1)[:12] + b"\x3f" + data):
        with contextlib.suppress(ProtocolError):
            asked = dns.parse(message)
            assert read(dns.failure(asked, asked.fault or Rcode.REFUSED))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_byte_that_is_wrong_does_no_harm(at: int, change: int) -> None:
    message = bytearray(query(additional=(opt(options=bytes(12)),)))
    message[at % len(message)] ^= change
    with contextlib.suppress(ProtocolError):
        asked = dns.parse(bytes(message))
        assert len(dns.answer(asked, [*V4, *V6], dns.udp_bytes(asked))) <= network_limits.DNS_UDP_BYTES
