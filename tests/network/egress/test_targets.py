"""Whom a request is for, and which requests are none."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.network.egress.targets import (
    Rejected,
    Target,
    absolute_target,
    check,
    connect_target,
    has_body,
    origin_target,
)

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
    with pytest.raises(Rejected) as rejected:
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
    with pytest.raises(Rejected) as rejected:
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
    with pytest.raises(Rejected) as rejected:
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
    with pytest.raises(Rejected) as rejected:
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
        except Rejected:
            continue
        assert 1 <= found.port <= 65535
        assert b"\r" not in found.authority


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_is_found_again_in_what_the_host_field_says(address: object, port: int) -> None:
    target = Target(ip_address(str(address)), port, b"/")
    again = absolute_target(a_request("GET", f"http://{target.authority.decode()}/"))
    assert again == target
