"""What counts as a request, and how an answer is written."""

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits
from fastclaw.errors import ExecFailed, InvalidRequest, ParseError
from fastclaw.runtime import HealthStatus
from fastclaw.server import jsonrpc


def request(**members: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "method": "health", **members})


def one(line: bytes) -> jsonrpc.Request:
    decoded = jsonrpc.decode(line)
    assert isinstance(decoded, jsonrpc.Request)
    return decoded


@pytest.mark.parametrize("request_id", [0, 1, -1, 2**63 - 1, -(2**63), 2**64 - 1, "", "a", "1", "\u0000", "ü"])
def test_ids_come_back_exactly(request_id: int | str) -> None:
    decoded = one(request(id=request_id))
    assert decoded.id == request_id
    assert type(decoded.id) is type(request_id)
    assert orjson.loads(jsonrpc.encode_result(decoded.id, {}))["id"] == request_id


def test_a_string_id_has_a_bound() -> None:
    longest = "é" * limits.MAX_ID_CHARS
    assert one(request(id=longest)).id == longest
    with pytest.raises(InvalidRequest, match="256 characters"):
        jsonrpc.decode(request(id=longest + "é"))


@given(st.text(max_size=limits.MAX_ID_CHARS), st.text(), st.text(), st.integers(1, 50_000))
def test_an_error_fits_its_room(request_id: str, text: str, path: str, times: int) -> None:
    room = (limits.MAX_LINE_BYTES - 1) // limits.MAX_BATCH_ITEMS - 1
    line = jsonrpc.encode_error(request_id, ExecFailed(text * times, "template_gone", path=path * times), room)
    assert len(line) <= room
    error = orjson.loads(line)["error"]
    assert error["data"]["reason"] == "template_gone"
    assert ("exec failed: " + text * times).startswith(error["message"])


@pytest.mark.parametrize("request_id", [None, 1.5, 1.0, True, False, [], [1], {}, {"a": 1}])
def test_ids_of_other_types_are_refused(request_id: object) -> None:
    with pytest.raises(InvalidRequest, match="id"):
        jsonrpc.decode(request(id=request_id))


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "1e400", "1" * 400])
def test_an_id_beyond_64_bits_is_refused(number: str) -> None:
    with pytest.raises((InvalidRequest, ParseError)):
        jsonrpc.decode(b'{"jsonrpc":"2.0","method":"health","id":' + number.encode() + b"}")


def test_without_an_id_it_is_a_notification() -> None:
    assert one(request()).id is None


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"nonsense",
        b'{"jsonrpc":"2.0",}',
        b'"\xff"',
        b'{"a":NaN}',
        b'"\\ud800"',
        b"\x00",
        b'{"jsonrpc":"2.0","id":1,"method":"health"} x',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xef\xbb\xbf{}",
    ],
)
def test_not_json(line: bytes) -> None:
    with pytest.raises(ParseError) as raised:
        jsonrpc.decode(line)
    assert len(jsonrpc.encode_error(None, raised.value)) < 1000


@pytest.mark.parametrize(
    "document",
    [
        1,
        "x",
        None,
        True,
        {},
        [],
        {"jsonrpc": "2.0"},
        {"jsonrpc": "1.0", "method": "health", "id": 1},
        {"jsonrpc": 2.0, "method": "health", "id": 1},
        {"method": "health", "id": 1},
        {"jsonrpc": "2.0", "method": 1, "id": 1},
        {"jsonrpc": "2.0", "method": None, "id": 1},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
    ],
)
def test_no_requests(document: object) -> None:
    with pytest.raises(InvalidRequest):
        jsonrpc.decode(orjson.dumps(document))


def test_the_items_of_a_batch_stand_for_themselves() -> None:
    items = jsonrpc.decode(b"[" + request(id=1) + b",1,[]," + request() + b"]")
    assert isinstance(items, list)
    assert [type(item) for item in items] == [jsonrpc.Request, InvalidRequest, InvalidRequest, jsonrpc.Request]


def test_a_batch_is_bounded() -> None:
    assert len(jsonrpc.decode(orjson.dumps([1] * limits.MAX_BATCH_ITEMS))) == limits.MAX_BATCH_ITEMS  # type: ignore[arg-type]  # a list, as asserted
    with pytest.raises(InvalidRequest, match="at most"):
        jsonrpc.decode(orjson.dumps([1] * (limits.MAX_BATCH_ITEMS + 1)))


def test_answers_are_lines() -> None:
    result = jsonrpc.encode_result(1, HealthStatus(status="healthy"))
    error = jsonrpc.encode_error("x", ExecFailed("no\nnewline", "not_found"))
    for line in (result, error, jsonrpc.encode_batch([result, error])):
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
    assert orjson.loads(result) == {"jsonrpc": "2.0", "id": 1, "result": {"status": "healthy"}}
    assert orjson.loads(jsonrpc.encode_batch([result, error])) == [orjson.loads(result), orjson.loads(error)]


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8)
JSON: st.SearchStrategy[Any] = st.deferred(
    lambda: SCALARS | st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=8), JSON, max_size=3)
)
MEMBERS = st.fixed_dictionaries(
    {}, optional={"jsonrpc": st.just("2.0") | JSON, "id": JSON, "method": st.text() | JSON, "params": JSON}
)


@given(st.binary(max_size=64) | (MEMBERS | JSON).map(lambda value: repr(value).replace("'", '"').encode()))
def test_any_bytes_are_a_request_or_an_error(line: bytes) -> None:
    with suppress(ParseError, InvalidRequest):
        assert jsonrpc.decode(line) is not None
