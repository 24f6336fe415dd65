"""Which fields pass, which end here, and which are added."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.network.egress.addresses import parse_host
from fastclaw.network.egress.fields import (
    Fields,
    Injections,
    request_fields,
    response_fields,
    switch_fields,
    trailer_fields,
)
from fastclaw.network.egress.proxy_frames import Injection
from fastclaw.network.egress.targets import Target

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
