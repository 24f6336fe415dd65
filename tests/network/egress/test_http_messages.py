"""What is a request and for whom, which fields go on, and how a refusal is told."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.network.egress.addresses import parse_host
from fastclaw.network.egress.http_messages import (
    Fields,
    Injections,
    Target,
    absolute_target,
    check,
    connect_target,
    has_body,
    has_head,
    is_request,
    origin_target,
    refusal,
    request_fields,
    response_fields,
    switch_fields,
    trailer_fields,
)
from fastclaw.network.egress.policy import REASONS, STATUS, Refused
from fastclaw.network.egress.proxy_frames import Injection

HERE = IPv4Address("127.0.0.1")


def a_request(method: str, target: str, version: str = "1.1", **fields: str) -> h11.Request:
    headers = [(name.replace("_", "-"), value) for name, value in {"host": "h", **fields}.items()]
    return h11.Request(method=method, target=target, headers=headers, http_version=version)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://a.test", Target("a.test", 80, b"/")),
        ("HTTP://A.Test./x?y=http://z/", Target("a.test", 80, b"/x?y=http://z/")),
        ("http://a.test:/x:y@", Target("a.test", 80, b"/x:y@")),
        ("http://a.test?q", Target("a.test", 80, b"/?q")),
        ("http://a.test:8080//x", Target("a.test", 8080, b"//x")),
        ("http://0x7f.1:1/", Target(HERE, 1, b"/")),
        ("http://[2001:db8::1]:81/", Target(IPv6Address("2001:db8::1"), 81, b"/")),
        ("http://a.test/%0d%0aHost:%20evil", Target("a.test", 80, b"/%0d%0aHost:%20evil")),
    ],
)
def test_an_absolute_url(target: str, expected: Target) -> None:
    assert absolute_target(a_request("GET", target)) == expected


@pytest.mark.parametrize(("method", "path"), [("OPTIONS", b"*"), ("GET", b"/")])
def test_the_whole_server_is_an_asterisk_to_itself(method: str, path: bytes) -> None:
    assert absolute_target(a_request(method, "http://a.test")).path == path


@pytest.mark.parametrize(
    "target",
    ["/", "*", "a.test:80", "https://a.test/", "ftp://a.test/", "http:/a.test", "//a.test/", "http://", "http:///x",
     "http://u@a.test/", "http://a.test@b.test/", "http://a.test/#f", "http://a.test#f", "http://a test/",
     "http://a.test:99999/", "http://[::1/", "http://a.test\\x/", "http://a%2etest/"],
)  # fmt: skip
def test_what_is_no_url_for_a_proxy(target: str) -> None:
    if " " in target:
        with pytest.raises(h11.LocalProtocolError):
            a_request("GET", target)
        return
    with pytest.raises(Refused) as rejected:
        absolute_target(a_request("GET", target))
    assert rejected.value.reason == "bad_target"


@pytest.mark.parametrize(
    ("target", "expected"),
    [("a.test:443", ("a.test", 443)), ("[::1]:1", (IPv6Address("::1"), 1)), ("2130706433:22", (HERE, 22))],
)
def test_connect(target: str, expected: tuple[object, int]) -> None:
    assert connect_target(a_request("CONNECT", target))[:2] == expected


@pytest.mark.parametrize(
    "target", ["a.test", "a.test:", "a.test:0", ":443", "a:1:2", "http://a.test:1", "a.test:1/", "/"]
)
def test_what_is_no_target_of_connect(target: str) -> None:
    with pytest.raises(Refused) as rejected:
        connect_target(a_request("CONNECT", target))
    assert rejected.value.reason == "bad_target"


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        ("/x", "A.test", Target("a.test", 80, b"/x")),
        ("/x", "a.test:80", Target("a.test", 80, b"/x")),
        ("*", "a.test", Target("a.test", 80, b"*")),
        ("http://b.test/y", "a.test", Target("b.test", 80, b"/y")),
        ("/", "", Target(HERE, 80, b"/")),
        ("//evil.test/", "a.test", Target("a.test", 80, b"//evil.test/")),
    ],
)
def test_a_request_that_was_meant_for_the_server(target: str, host: str, expected: Target) -> None:
    assert origin_target(a_request("GET", target, host=host), HERE, 80) == expected


@pytest.mark.parametrize(
    ("method", "target", "host", "reason"),
    [
        ("CONNECT", "a.test:80", "a.test", "bad_target"),
        ("GET", "/", "a.test:81", "name_mismatch"),
        ("GET", "http://a.test:81/", "a.test", "name_mismatch"),
        ("GET", "/", "a.test, b.test", "bad_target"),
        ("GET", "/", "u@a.test", "bad_target"),
        ("GET", "/", "ä.test", "bad_target"),
        ("GET", "x", "a.test", "bad_target"),
    ],
)
def test_what_no_server_is_asked(method: str, target: str, host: str, reason: str) -> None:
    request = h11.Request(method=method, target=target, headers=[(b"host", host.encode())])
    with pytest.raises(Refused) as rejected:
        origin_target(request, HERE, 80)
    assert rejected.value.reason == reason


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        (Target("a.test", 80, b"/"), b"a.test"),
        (Target("a.test", 8080, b"/"), b"a.test:8080"),
        (Target(IPv6Address("2001:db8::80"), 80, b"/"), b"[2001:db8::80]"),
        (Target(IPv6Address("::1"), 443, b"/"), b"[::1]:443"),
    ],
)
def test_what_the_host_field_says(target: Target, authority: bytes) -> None:
    assert target.authority == authority


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"content_length": "0"}, False),
        ({"content_length": "000"}, False),
        ({"content_length": "10"}, True),
        ({"transfer_encoding": "chunked"}, True),
    ],
)
def test_whether_a_body_follows(fields: dict[str, str], expected: bool) -> None:
    assert has_body(a_request("POST", "http://a/", **fields)) is expected


@pytest.mark.parametrize(
    "request_",
    [
        a_request("GET", "http://a/", "2.0"),
        a_request("GET", "http://a/", "0.9"),
        a_request("POST", "http://a/", content_length="1", transfer_encoding="chunked"),
        a_request("POST", "http://a/", "1.0", transfer_encoding="chunked"),
        a_request("CONNECT", "a:1", content_length="1"),
        a_request("CONNECT", "a:1", transfer_encoding="chunked"),
    ],
)
def test_what_may_not_pass_although_h11_reads_it(request_: h11.Request) -> None:
    with pytest.raises(Refused) as rejected:
        check(request_)
    assert rejected.value.reason == "bad_request"


def test_what_may_pass() -> None:
    check(a_request("POST", "http://a/", "1.0", content_length="5"))
    check(a_request("CONNECT", "a:1", content_length="0"))


@given(st.lists(st.integers(0x21, 0x7E), min_size=1, max_size=80).map(bytes))
def test_any_target_is_one_or_is_refused(target: bytes) -> None:
    for method, parse in (("GET", absolute_target), ("CONNECT", connect_target)):
        request = h11.Request(method=method, target=target, headers=[("host", "h")])
        try:
            found = parse(request)
        except Refused:
            continue
        assert 1 <= found.port <= 65535
        assert b"\r" not in found.authority


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_is_found_again_in_what_the_host_field_says(address: object, port: int) -> None:
    target = Target(ip_address(str(address)), port, b"/")
    again = absolute_target(a_request("GET", f"http://{target.authority.decode()}/"))
    assert again == target


GOOD = b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nA: b\r\n\r\n"


def test_a_head_is_there_when_its_last_byte_is() -> None:
    for end in range(len(GOOD)):
        assert not has_head(bytearray(GOOD[:end]))
    assert has_head(bytearray(GOOD))
    assert has_head(bytearray(GOOD + b"\0\n\rbody"))


def test_empty_lines_before_are_taken_away() -> None:
    pending = bytearray(b"\r\n\r\n" + GOOD)
    assert has_head(pending)
    assert pending == GOOD
    assert not has_head(bytearray(b"\r"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [(b"", None), (b"\r\n", None), (b"G", None), (b"x-ANY_1 ", None), (b"GET / HTTP/1.1", None), (b"hello", None),
     (b"GET / HTTP/1.1\r", True), (b"\n\r\nget / http/1.1 \n", True), (b"GET /\r\n", True), (b"X y HTTP/9\n", True),
     (b"PRI * HTTP/2.0\r\n", True), (b"GET /\xc3\xa4\tx", None), (b"\0", False), (b" GET", False), (b"{", False),
     (b"hello\n", False), (b"SSH-2.0-x\r\n", False), (b"OPTIONS rtsp://x RTSP/1.0\r\n", False), (b"AMQP\0", False),
     (b"0032git-upload-pack /x\0host=y", False), (b"EHLO x\r\n", False), (b"\x16\x03", False)],
)  # fmt: skip
def test_what_a_server_may_take_for_a_request(words: bytes, expected: bool | None) -> None:
    assert is_request(words) is expected


@pytest.mark.parametrize(
    "data",
    [b"\n", b"\0", b"\x16\x03", b"\x05\x01", b" GET", b"\xff", b"GET / HTTP/1.1\n", b"GET /\r\n", b"GET / HTTP/1.2\r\n",
     b"GET / HTTP/2.0\r\n", b"x\rx", b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\n A: b", b"GET / HTTP/1.1\r\nA: b\r\n\tc"],
)  # fmt: skip
def test_what_can_be_no_request_is_not_waited_for(data: bytes) -> None:
    with pytest.raises(Refused) as rejected:
        has_head(bytearray(data))
    assert rejected.value.reason == "bad_request"


def test_a_head_has_a_bound() -> None:
    start = b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nA: "
    fits = start + b"b" * (network_limits.EGRESS_HEAD_BYTES - len(start))
    assert not has_head(bytearray(fits))
    assert has_head(bytearray(fits + b"\r\n\r\n" + b"body" * network_limits.EGRESS_HEAD_BYTES))
    for more in (b"b", b"b\r\n\r\n"):
        with pytest.raises(Refused, match="larger"):
            has_head(bytearray(fits + more))


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b"a", b"A: b", b"GET / HTTP/1.1"])))
def test_what_passes_has_only_whole_lines(parts: list[bytes]) -> None:
    pending = bytearray(b"GET http://a/ HTTP/1.1\r\n" + b"".join(parts) + b"\r\n\r\n")
    try:
        assert has_head(pending)
    except Refused:
        return
    head = bytes(pending).partition(b"\r\n\r\n")[0]
    assert head.replace(b"\r\n", b"").isascii()
    assert not set(head.replace(b"\r\n", b"")) & set(b"\r\n\0")
    assert b"\r\n " not in head
    assert b"\r\n\t" not in head


@given(st.binary(max_size=200), st.integers(0, 200))
def test_it_does_not_matter_in_which_pieces_a_head_comes(data: bytes, cut: int) -> None:
    def read(*pieces: bytes) -> bool | None:
        pending = bytearray()
        try:
            for piece in pieces:
                pending += piece
                if has_head(pending):
                    return True
        except Refused:
            return None
        return False

    assert read(data) == read(data[:cut], data[cut:])


@pytest.mark.parametrize("reason", REASONS)
def test_every_refusal_is_a_whole_answer(reason: str) -> None:
    assert reason in STATUS
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    http.send(h11.EndOfMessage())
    http.receive_data(refusal(Refused(reason, "two\r\nlines, ümlaut"), has_body=True))
    answer, body = http.next_event(), http.next_event()
    assert isinstance(answer, h11.Response)
    assert isinstance(body, h11.Data)
    assert answer.status_code == STATUS[reason]
    assert (b"x-fastclaw-reason", reason.encode()) in list(answer.headers)
    assert (b"connection", b"close") in list(answer.headers)
    assert body.data.count(b"\n") == 1
    assert isinstance(http.next_event(), h11.EndOfMessage)


def test_a_refusal_of_head_has_its_length_only() -> None:
    text = refusal(Refused("too_fast", "no"), has_body=False)
    assert text.endswith(b"\r\n\r\n")
    assert b"Content-Length: 3\r\n" in text


TARGET = Target("a.test", 8080, b"/")
OURS: Fields = [(b"Host", b"a.test:8080"), (b"Via", b"1.1 fastclaw")]


def passed(*fields: tuple[str, str], version: str = "1.1", injected: Fields | None = None) -> Fields:
    """What becomes of a request with these fields, without what is always there."""
    request = h11.Request(method="POST", target="/", headers=[("Host", "x"), *fields], http_version=version)
    found = request_fields(request, TARGET, injected or [])
    return [field for field in found if field not in OURS]


def test_end_to_end_fields_pass_as_they_are() -> None:
    assert passed(("Accept", "a"), ("X-Odd_Name", "1"), ("Accept", "b"), ("Via", "1.0 other")) == [
        (b"Accept", b"a"),
        (b"X-Odd_Name", b"1"),
        (b"Accept", b"b"),
        (b"Via", b"1.0 other"),
    ]


@pytest.mark.parametrize(
    "field",
    ["Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Anything", "TE", "Upgrade"],
)
def test_fields_of_this_hop_end_here(field: str) -> None:
    assert passed((field, "x")) == []


def test_fields_that_connection_names_end_here() -> None:
    assert passed(("Connection", "X-A, close"), ("connection", "x-b"), ("X-A", "1"), ("X-B", "2"), ("X-C", "3")) == [
        (b"X-C", b"3")
    ]


def test_connection_does_not_take_the_length_of_a_body_away() -> None:
    assert passed(("Connection", "content-length, host"), ("Content-Length", "5")) == [(b"Content-Length", b"5")]
    assert passed(("Connection", "transfer-encoding"), ("Transfer-Encoding", "chunked")) == [
        (b"Transfer-Encoding", b"chunked")
    ]


def test_via_names_the_version_that_was_received() -> None:
    assert (b"Via", b"1.0 fastclaw") in passed(version="1.0")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            [("Connection", "Upgrade"), ("Upgrade", "WebSocket")],
            [(b"Upgrade", b"WebSocket"), (b"Connection", b"Upgrade")],
        ),
        ([("Upgrade", "websocket")], []),
        ([("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "x")], []),
        ([("Connection", "Upgrade"), ("Upgrade", "H2C, foo")], [(b"Upgrade", b"foo"), (b"Connection", b"Upgrade")]),
        ([("TE", "trailers, gzip")], [(b"TE", b"trailers"), (b"Connection", b"TE")]),
        (
            [("Connection", "TE, Upgrade"), ("TE", "Trailers"), ("Upgrade", "a")],
            [(b"Upgrade", b"a"), (b"TE", b"trailers"), (b"Connection", b"Upgrade, TE")],
        ),
        ([("Connection", "Upgrade"), ("Upgrade", "a"), ("Content-Length", "1")], [(b"Content-Length", b"1")]),
    ],
)
def test_wishes_are_said_anew_for_the_next_hop(fields: list[tuple[str, str]], expected: Fields) -> None:
    assert passed(*fields) == expected


def test_an_old_client_wishes_for_no_switch() -> None:
    assert (b"Upgrade", b"a") not in passed(("Connection", "Upgrade"), ("Upgrade", "a"), version="1.0")


def test_an_added_field_replaces_the_clients_and_cannot_be_named_away() -> None:
    added = [(b"Authorization", b"s3cret")]
    found = passed(("AUTHORIZATION", "mine"), ("Connection", "authorization"), ("X", "1"), injected=added)
    assert found == [(b"X", b"1"), (b"Authorization", b"s3cret")]


@pytest.mark.parametrize("name", ["X_Api_Key", "x-api_key", "X.Api.Key", "X-API-KEY"])
def test_no_spelling_that_a_server_may_take_for_an_added_field_passes(name: str) -> None:
    """CGI makes HTTP_X_API_KEY of all of them (RFC 3875, 4.1.18)."""
    added = [(b"X-Api-Key", b"s3cret")]
    assert passed((name, "mine"), ("X_Api", "1"), injected=added) == [(b"X_Api", b"1"), *added]
    assert passed((name, "mine")) == [(name.encode(), b"mine")]
    assert trailer_fields([(name.encode(), b"mine")], added) == []


def test_trailers_change_neither_framing_nor_what_is_added() -> None:
    trailers = [
        (b"Content-Length", b"5"),
        (b"Transfer-Encoding", b"x"),
        (b"Host", b"evil"),
        (b"authorization", b"mine"),
        (b"Connection", b"X-Sum"),
        (b"X-Kept", b"1"),
        (b"X-Sum", b"2"),
    ]
    assert trailer_fields(trailers, [(b"Authorization", b"s3cret")]) == [(b"X-Kept", b"1")]


def an_answer(status: int, *fields: tuple[str, str]) -> h11.Response:
    return h11.Response(status_code=status, headers=list(fields))


def test_an_answers_fields() -> None:
    found = response_fields(
        an_answer(200, ("Content-Length", "5"), ("Keep-Alive", "5"), ("Set-Cookie", "a"), ("Upgrade", "x"))
    )
    assert found == [(b"Content-Length", b"5"), (b"Set-Cookie", b"a"), (b"Via", b"1.1 fastclaw")]


@pytest.mark.parametrize(
    ("answer", "keeps"),
    [
        (an_answer(204, ("Content-Length", "5")), False),
        (an_answer(304, ("Content-Length", "5")), True),
        (an_answer(200, ("Content-Length", "5"), ("Transfer-Encoding", "chunked")), False),
    ],
)
def test_a_length_that_is_none_does_not_pass(answer: h11.Response, keeps: bool) -> None:
    assert ((b"Content-Length", b"5") in response_fields(answer)) is keeps


def test_a_switch_says_to_what() -> None:
    switch = h11.InformationalResponse(
        status_code=101, headers=[("Connection", "upgrade"), ("Upgrade", "Echo"), ("X", "1")]
    )
    assert switch_fields(switch) == [
        (b"X", b"1"),
        (b"Via", b"1.1 fastclaw"),
        (b"Upgrade", b"Echo"),
        (b"Connection", b"Upgrade"),
    ]


TOKENS = st.text("abcXYZ-", min_size=1, max_size=8)


@given(st.lists(st.tuples(TOKENS, TOKENS)), st.lists(TOKENS))
def test_nothing_that_connection_names_passes_and_all_else_does(
    fields: list[tuple[str, str]], named: list[str]
) -> None:
    found = [name.lower() for name, _ in passed(*fields, ("Connection", ", ".join(named) or "x"))]
    gone = {name.lower().encode() for name in named or ["x"]}
    assert found == [name for name, _ in ((n.lower().encode(), v) for n, v in fields) if name not in gone]


# --- what is added ---


def _injections(*of: tuple[str, str, str]) -> Injections:
    return Injections([Injection(host=host, header=header, value=value) for host, header, value in of])


def test_a_field_is_for_its_host_and_no_other() -> None:
    found = _injections(("API.test.", "X-A", "1"), ("*.b.test", "X-B", "2"), ("0x7f.1", "X-C", "3"))
    assert found.of("api.test") == [(b"X-A", b"1")]
    assert found.of("x.api.test") == found.of("b.test") == found.of("test") == []
    assert found.of("x.b.test") == found.of("y.x.b.test") == [(b"X-B", b"2")]
    assert found.of(parse_host("127.0.0.1")) == [(b"X-C", b"3")]


def test_the_closer_name_counts() -> None:
    found = _injections(
        ("*.test", "X-A", "far"), ("*.b.test", "x-a", "near"), ("a.b.test", "X-a", "this"), ("*.test", "Y", "1")
    )
    assert found.of("a.b.test") == [(b"X-a", b"this"), (b"Y", b"1")]
    assert found.of("c.b.test") == [(b"x-a", b"near"), (b"Y", b"1")]


@pytest.mark.parametrize(
    ("header", "value"),
    [("X-A", "a\r\nX-B: c"), ("X-A", "a\nb"), ("X-A", ""), ("X A", "a"), ("", "a"), ("X-A:", "a"), ("Host", "evil"),
     ("Content-Length", "1"), ("transfer-encoding", "chunked"), ("Connection", "close"), ("X-A", "a\0"), ("X-Ä", "a"),
     ("X-A", " a")],
)  # fmt: skip
def test_what_is_no_field_is_refused_without_saying_its_value(header: str, value: str) -> None:
    with pytest.raises(ValueError, match="added") as refused:
        _injections(("a.test", header, value))
    assert len(value) < 3 or value not in str(refused.value)
