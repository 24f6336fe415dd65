"""The hot path's HTTP parser: any split of the bytes gives the same answer, and h11 agrees."""

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.errors import ProtocolError
from fastclaw.limits import MAX_HTTP_BODY_BYTES, MAX_HTTP_HEADER_BYTES
from fastclaw.podman.rest_lane.http1 import ResponseParser, render_request

bodies = st.binary(max_size=300)
names = st.sampled_from(["Server", "X-Reference-Id", "Api-Version", "Date"])
values = st.text(alphabet="abcXYZ 0123/:;.", max_size=20).map(str.strip)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A response as a Go server sends them, and what follows it on the connection."""
    status = draw(st.sampled_from([200, 201, 404, 409, 500]))
    head = f"HTTP/1.1 {status} Some Words\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in draw(st.lists(st.tuples(names, values), max_size=4)))
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    body = draw(bodies)
    if draw(st.booleans()):
        return interim + f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, draw(bodies)
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return interim + f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + coded + b"0\r\n\r\n", draw(bodies)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data`, cut at these places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def told(parser: ResponseParser) -> tuple[object, ...]:
    """Everything a caller may look at."""
    return parser.status, parser.headers, parser.body, parser.leftover, parser.keep_alive, parser.complete


def oracle(data: bytes) -> tuple[int, bytes]:
    """Status and body as h11 reads them."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "engine")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body = 0, b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            assert isinstance(event, h11.InformationalResponse)
    return status, body


@given(responses(), st.lists(st.integers(min_value=0), max_size=8))
def test_any_split_reads_the_same_and_h11_agrees(response: tuple[bytes, bytes], cuts: list[int]) -> None:
    wire, after = response
    whole = ResponseParser()
    assert whole.feed(wire + after)
    split = ResponseParser()
    done = [split.feed(piece) for piece in pieces(wire + after, cuts)]
    assert done[-1]
    assert told(split) == told(whole)
    assert (whole.status, whole.body) == oracle(wire)
    assert whole.leftover == after
    assert whole.keep_alive


@given(bodies, st.lists(st.integers(min_value=0), max_size=6), st.sampled_from([b"101 UPGRADED", b"200 OK"]))
def test_bytes_after_a_switch_belong_to_the_stream(stream: bytes, cuts: list[int], line: bytes) -> None:
    parser = ResponseParser(upgrade=True)
    for piece in pieces(b"HTTP/1.1 " + line + b"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + stream, cuts):
        parser.feed(piece)
    assert parser.upgraded
    assert parser.leftover == stream
    assert not parser.keep_alive


def test_a_refused_switch_is_a_plain_answer() -> None:
    parser = ResponseParser(upgrade=True)
    assert parser.feed(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}")
    assert (parser.upgraded, parser.status, parser.body) == (False, 500, b"{}")


def test_a_body_without_a_length_runs_until_the_close() -> None:
    parser = ResponseParser()
    assert not parser.feed(b"HTTP/1.1 200 OK\r\n\r\nabc")
    parser.feed_eof()
    assert (parser.body, parser.keep_alive) == (b"abc", False)


@pytest.mark.parametrize(
    ("wire", "persists"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.0 204 No Content\r\n\r\n", False),
        (b"HTTP/1.0 204 No Content\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_whether_the_connection_may_be_used_again(wire: bytes, persists: bool) -> None:
    parser = ResponseParser()
    assert parser.feed(wire)
    assert parser.keep_alive is persists


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        b"HTTP/1.1 101 UPGRADED\r\n\r\n",
        b"x" * (MAX_HTTP_HEADER_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_HTTP_BODY_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (MAX_HTTP_BODY_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
    ],
)
def test_garbage_is_refused_at_once(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseParser().feed(wire)


@given(st.binary(max_size=200))
def test_no_input_makes_anything_but_an_answer_or_a_protocol_error(data: bytes) -> None:
    parser = ResponseParser()
    try:
        parser.feed(data)
        parser.feed_eof()
    except ProtocolError:
        return
    assert parser.complete


@pytest.mark.parametrize("wire", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"])
def test_an_answer_cut_short_is_an_error(wire: bytes) -> None:
    parser = ResponseParser()
    parser.feed(wire)
    with pytest.raises(ProtocolError, match="middle"):
        parser.feed_eof()


def test_requests() -> None:
    assert render_request("GET", "/a") == b"GET /a HTTP/1.1\r\nHost: engine\r\n\r\n"
    wire = render_request("POST", "/a", b'{"\xc3\xa9":1}', upgrade=True)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(wire)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert dict(request.headers)[b"connection"] == b"Upgrade"
    data = connection.next_event()
    assert isinstance(data, h11.Data)
    assert bytes(data.data) == b'{"\xc3\xa9":1}'


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/ä", "/a\0"])
def test_a_path_that_would_break_the_request_line_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        render_request("GET", path)
