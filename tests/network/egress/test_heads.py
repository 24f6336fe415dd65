"""The bytes of a head before h11 reads them, and those of a refusal."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.network.egress.heads import has_head, is_request, refusal
from fastclaw.network.egress.policy import REASONS, STATUS, Refused
from fastclaw.network.egress.targets import Rejected

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
    with pytest.raises(Rejected) as rejected:
        has_head(bytearray(data))
    assert rejected.value.reason == "bad_request"


def test_a_head_has_a_bound() -> None:
    start = b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nA: "
    fits = start + b"b" * (network_limits.EGRESS_HEAD_BYTES - len(start))
    assert not has_head(bytearray(fits))
    assert has_head(bytearray(fits + b"\r\n\r\n" + b"body" * network_limits.EGRESS_HEAD_BYTES))
    for more in (b"b", b"b\r\n\r\n"):
        with pytest.raises(Rejected, match="larger"):
            has_head(bytearray(fits + more))


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b"a", b"A: b", b"GET / HTTP/1.1"])))
def test_what_passes_has_only_whole_lines(parts: list[bytes]) -> None:
    pending = bytearray(b"GET http://a/ HTTP/1.1\r\n" + b"".join(parts) + b"\r\n\r\n")
    try:
        assert has_head(pending)
    except Rejected:
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
        except Rejected:
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
