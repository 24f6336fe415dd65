"""ClientHellos: those of OpenSSL as they are, cut and spread over records, and others that nobody should send."""

from __future__ import annotations

import contextlib
import ssl
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.network.egress.tls import HANDSHAKE, ClientHello, asks_again, may_be_tls, sniff, sniff_again

NAME = "Files.Example.org"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
LABEL = st.text("abcxyz0189_-", min_size=1, max_size=30)
HOST = st.lists(LABEL, min_size=1, max_size=5).map(".".join)
MOST_BYTES = network_limits.TLS_HELLO_BYTES + 4 + 5 * network_limits.TLS_HELLO_RECORDS


@cache
def real(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, name: str | None = NAME) -> bytes:
    """What OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def heard(data: bytes | bytearray) -> list[str | None] | None:
    """The name, in a list: it may be None."""
    found = sniff(data)
    return None if found is None else [found.name]


def vector(data: bytes, width: int = 2) -> bytes:
    return len(data).to_bytes(width) + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2) + vector(data)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(b"".join(bytes([kind]) + vector(name) for name in names)))


def hello(*extensions: bytes, ciphers: bytes = b"\x13\x01", session: bytes = b"") -> bytes:
    """The body of a ClientHello."""
    head = b"\x03\x03" + bytes(32) + vector(session, 1) + vector(ciphers) + vector(b"\0", 1)
    return head + vector(b"".join(extensions))


def record(data: bytes, kind: int = HANDSHAKE, version: bytes = b"\x03\x01") -> bytes:
    return bytes([kind]) + version + vector(data)


def sent(body: bytes, kind: int = 1) -> bytes:
    """A handshake message in as few records as it takes."""
    message = bytes([kind]) + vector(body, 3)
    pieces = [message[at : at + 16_384] for at in range(0, len(message), 16_384)]
    return b"".join(map(record, pieces))


def respread(flight: bytes, sizes: list[int]) -> bytes:
    """The same message, in records of these sizes and one for the rest."""
    message, records = flight[5:], b""
    for size in sizes:
        records += record(message[:size]) if message[:size] else b""
        message = message[size:]
    return records + (record(message) if message else b"")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "told"), [(NAME, NAME.lower()), ("xn--bcher-kva.example", "xn--bcher-kva.example")])
def test_a_real_one_names_its_server(version: ssl.TLSVersion, name: str, told: str) -> None:
    assert heard(real(version, name)) == [told]
    found = sniff(bytearray(real(version, name)) + b"\x17anything")
    assert found == ClientHello(told, len(real(version, name)))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [None, "192.0.2.1"])
def test_a_real_one_without_a_name(version: ssl.TLSVersion, name: str | None) -> None:
    assert heard(real(version, name)) == [None]


@pytest.mark.parametrize("version", VERSIONS)
def test_cut_anywhere_it_is_waited_for(version: ssl.TLSVersion) -> None:
    flight = real(version)
    assert {sniff(flight[:size]) for size in range(len(flight))} == {None}


@given(st.sampled_from(VERSIONS), st.lists(st.integers(0, 90), max_size=60), st.data())
def test_how_it_is_spread_over_records_does_not_matter(
    version: ssl.TLSVersion, sizes: list[int], data: st.DataObject
) -> None:
    flight = respread(real(version), sizes)
    assert heard(flight) == [NAME.lower()]
    assert sniff(flight[: data.draw(st.integers(0, len(flight) - 1))]) is None


def test_what_follows_in_the_same_record_is_refused_and_not_waited_for() -> None:
    """It could be a second ClientHello."""
    message = real()[5:] + bytes(1_000)
    with pytest.raises(ProtocolError, match="behind it"):
        sniff(record(message)[: len(message) - 500])


RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def answer(random: bytes) -> bytes:
    return sent(b"\x03\x03" + random + vector(b"", 1) + b"\x13\x01\0" + vector(extension(43, b"\x03\x04")), kind=2)


def test_a_server_that_asks_for_another_greeting_is_told_from_one_that_does_not() -> None:
    assert asks_again(answer(RETRY) + b"\x14\x03\x03\0\x01\x01") is True
    assert asks_again(answer(bytes(32))) is False
    assert {asks_again(answer(RETRY)[:size]) for size in range(len(answer(RETRY)))} == {None}
    assert asks_again(respread(answer(RETRY), [1, 20])) is True
    assert [asks_again(data) for data in (record(b"\x02\x28", kind=21), b"HTTP/1.1 400 ", real())] == [False] * 3


@given(st.lists(st.tuples(st.sampled_from([0x14, 0x17]), st.binary(max_size=300)), max_size=4))
def test_the_second_greeting_comes_behind_what_a_client_may_say_before(between: list[tuple[int, bytes]]) -> None:
    before = b"".join(record(data, kind) for kind, data in between)
    assert sniff_again(before + real() + b"more") == ClientHello(NAME.lower(), len(before + real()))
    assert {sniff_again((before + real())[:size]) for size in range(0, len(before + real()), 97)} == {None}


@pytest.mark.parametrize("data", [record(bytes(16_000), 0x17) * 5, record(b"\x02\x28", kind=21), b"G"])
def test_anything_else_in_its_place_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        sniff_again(data)


@pytest.mark.parametrize(
    ("data", "may"),
    [(b"", False), (b"\x16", True), (b"\x15\x03", True), (b"\x16\x03\x01", True), (b"\x16\x01\0\0", False),
     (b"GET", False), (b"\x80\x03", False)],
)  # fmt: skip
def test_two_bytes_tell_what_no_server_takes_for_tls(data: bytes, may: bool) -> None:
    """mandiant/flare-fakenet-ng#57; `16 01 00 00` is the length of a message of MongoDB's."""
    assert may_be_tls(data) == may


@given(
    st.from_regex(r"[a-z0-9_-]{1,30}(\.[a-z0-9_-]{1,30}){0,4}", fullmatch=True), st.booleans(), st.binary(max_size=99)
)
def test_every_host_name_comes_through(name: str, has_dot: bool, other: bytes) -> None:
    asked = name.upper().encode() + b"." * has_dot
    body = hello(extension(0x0A0A, other), server_name(asked), extension(0xFE0D, other), session=other[:32])
    assert heard(sent(body)) == [name]


@pytest.mark.parametrize("name", [b"192.0.2.1", b"2001:db8::1"])
def test_an_address_is_passed_on_as_it_is(name: bytes) -> None:
    assert heard(sent(hello(server_name(name)))) == [name.decode()]


def test_no_extensions_at_all() -> None:
    assert heard(sent(hello()[:-2])) == [None]
    assert heard(sent(hello())) == [None]


def test_a_large_one_is_read() -> None:
    padding = extension(21, bytes(network_limits.TLS_HELLO_BYTES - len(hello(server_name(b"a.example"))) - 4))
    flight = sent(hello(padding, server_name(b"a.example")))
    assert heard(flight) == ["a.example"]
    assert sniff(flight[:-1]) is None


HOSTILE = {
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "SSL 2": b"\x80\x2e\x01\x03\x01",
    "major version 2": record(b"\x01", version=b"\x02\x00"),
    "an alert": record(b"\x02\x28", kind=21),
    "early data first": record(b"x", kind=23),
    "an empty record": record(b""),
    "a record that is too long": b"\x16\x03\x01\x40\x01",
    "another handshake message": sent(hello(), kind=2),
    "a message that is too long": record(b"\x01" + (network_limits.TLS_HELLO_BYTES + 1).to_bytes(3)),
    "a message that is much too long": record(b"\x01\x01\0\0"),
    "an alert in the middle": respread(real(), [50])[:55] + record(b"\x02\x28", kind=21),
    "too many records": b"".join(record(real()[5:][at : at + 1]) for at in range(network_limits.TLS_HELLO_RECORDS)),
    "two names": sent(hello(server_name(b"a.example", b"b.example"))),
    "the same name twice": sent(hello(server_name(b"a.example", b"a.example"))),
    "two extensions": sent(hello(server_name(b"a.example"), server_name(b"a.example"))),
    "a name of another type": sent(hello(server_name(b"a.example", kind=1))),
    "no name in the list": sent(hello(server_name())),
    "an empty extension": sent(hello(extension(0, b""))),
    "bytes after the list": sent(hello(extension(0, vector(b"\0" + vector(b"a.example")) + b"x"))),
    "bytes after the extensions": sent(hello(server_name(b"a.example")) + b"x"),
    "extensions that are cut off": sent(hello(server_name(b"a.example"))[:-1]),
    "an extension that is longer than the rest": sent(hello(b"\0\0\0\x63" + vector(b"\0" + vector(b"a.example")))),
    "half an extension": sent(hello(b"\0")),
    "ciphers that are cut off": sent(b"\x03\x03" + bytes(32) + b"\0\xff\xff\x13\x01"),
    "nothing": sent(b""),
    "half a random": sent(bytes(20)),
}


@pytest.mark.parametrize("flight", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_servers_would_not_read_alike_is_refused(flight: bytes) -> None:
    with pytest.raises(ProtocolError):
        sniff(flight)


@pytest.mark.parametrize(
    "name", [b"", b".", b"a\0.example", "bücher.example".encode(), b"a example", b"a.example/", b"[::1]", b"a" * 300]
)
def test_a_name_that_is_none_is_refused(name: bytes) -> None:
    with pytest.raises(ProtocolError, match="name"):
        sniff(sent(hello(server_name(name))))


@pytest.mark.parametrize("flight", [b"\x17", b"G", b"\x16\x02", b"\x16\x03\x01\0\0", b"\x16\x03\x01\0\x10\x02"])
def test_a_refusal_waits_for_nothing(flight: bytes) -> None:
    with pytest.raises(ProtocolError):
        sniff(flight)


@given(st.binary(max_size=400))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for prefix in (b"", b"\x16\x03\x01", record(b"\x01\0\0\x40")[:9]):
        with contextlib.suppress(ProtocolError):
            sniff(prefix + data)


@given(st.integers(0, 516), st.integers(1, 255))
def test_a_byte_that_is_wrong_does_no_harm(at: int, change: int) -> None:
    flight = bytearray(real())
    flight[at % len(flight)] ^= change
    with contextlib.suppress(ProtocolError):
        assert isinstance(sniff(flight), ClientHello | None)


@given(st.tuples(*[st.integers(1, 16_384)] * network_limits.TLS_HELLO_RECORDS))
def test_waiting_has_an_end(sizes: tuple[int, ...]) -> None:
    message = b"\x01" + network_limits.TLS_HELLO_BYTES.to_bytes(3) + bytes(network_limits.TLS_HELLO_BYTES)
    flight = b""
    for size in sizes:
        flight += record((message[:size] or b"x").ljust(size))
        message = message[size:]
    with pytest.raises(ProtocolError):
        sniff(flight.ljust(MOST_BYTES, b"\x16")[: max(MOST_BYTES, len(flight))])
