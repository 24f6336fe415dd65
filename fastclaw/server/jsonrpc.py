"""JSON-RPC 2.0 on lines: bytes in, lines, requests out; results and errors in, one line out.

Owns the partial line between two reads and its bound, what counts as a request, and how an answer is written. Knows no
method and no parameter.
Specification: https://www.jsonrpc.org/specification; ids are restricted to integers and strings (docs/contract.md).
"""

from typing import Any, Final

import msgspec
import orjson

from fastclaw import limits
from fastclaw.errors import FastclawError, InvalidRequest, ParseError
from fastclaw.params import NO_PARAMS

RequestId = int | str

_ID_BITS = range(-(2**63), 2**64)
"""Of 64 bits, signed or not: what orjson writes."""


class Request:
    """One call.

    Parameters:
        request_id: None for a notification, which gets no answer.
        params: JSON as it came; it is decoded once, into the shape of its method.
    """

    __slots__ = ("id", "method", "params")

    def __init__(self, request_id: RequestId | None, method: str, params: msgspec.Raw) -> None:
        self.id = request_id
        self.method = method
        self.params = params

    def __repr__(self) -> str:
        return f"<Request {self.method} id={self.id!r}>"


Item = Request | FastclawError


class _Message(msgspec.Struct):
    """A request as it came. Its members are checked afterwards, so that each has an error message of its own."""

    jsonrpc: Any = None
    method: Any = None
    id: Any = msgspec.UNSET
    params: msgspec.Raw = NO_PARAMS


_message = msgspec.json.Decoder(_Message).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def decode(line: bytes) -> Request | list[Item]:
    """Read one line: a request, or a batch as the list of its items (an item that is none is its error).

    Raises:
        ParseError: not JSON, not UTF-8, or nested too deeply.
        InvalidRequest: JSON, but neither a request nor a batch.
    """
    try:
        if not line.isascii():
            line.decode()  # what no field takes is not looked at otherwise
        return _batch(_items(line)) if line.lstrip()[:1] == b"[" else _request(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ParseError(f"not JSON: {error}") from error


def _request(line: bytes | msgspec.Raw) -> Request:
    try:
        message = _message(line)
    except msgspec.ValidationError as error:
        raise InvalidRequest("a request is an object") from error
    if message.jsonrpc != "2.0":
        raise InvalidRequest('"jsonrpc" must be "2.0"')
    if type(message.method) is not str:
        raise InvalidRequest('"method" must be a string')
    return Request(_request_id(message.id), message.method, message.params)


def _request_id(given: Any) -> RequestId | None:
    if type(given) is int and given in _ID_BITS:
        return given
    if type(given) is str:
        if len(given) > limits.MAX_ID_CHARS:
            raise InvalidRequest(f'"id" has at most {limits.MAX_ID_CHARS} characters')
        return given
    if given is msgspec.UNSET:
        return None
    raise InvalidRequest('"id" must be an integer of 64 bits or a string; leave it out for a notification')


def _batch(items: list[msgspec.Raw]) -> list[Item]:
    if not items:
        raise InvalidRequest("a batch has at least one request")
    if len(items) > limits.MAX_BATCH_ITEMS:
        raise InvalidRequest(f"a batch has at most {limits.MAX_BATCH_ITEMS} requests, this one {len(items)}")
    return [_item(item) for item in items]


def _item(item: msgspec.Raw) -> Item:
    try:
        return _request(item)
    except InvalidRequest as error:
        return error


encoded = msgspec.json.Encoder().encode
"""JSON of a result or a part of one, made once; a part that is encoded already is `msgspec.Raw`."""


def encode_result(request_id: RequestId, result: Any) -> bytes:
    """One answer as a line, its newline included. `result` may hold msgspec structs."""
    answer = {"jsonrpc": "2.0", "id": request_id, "result": orjson.Fragment(encoded(result))}
    return orjson.dumps(answer, None, orjson.OPT_APPEND_NEWLINE)


def array(parts: list[bytes]) -> msgspec.Raw:
    """For a result: a list of what `encoded` gave."""
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


def encode_error(request_id: RequestId | None, error: FastclawError, room: int = limits.MAX_ERROR_BYTES) -> bytes:
    """One error answer as a line of at most `room` bytes. The id is null where the request could not be read.

    Whatever an error quotes, a name of 20 MB for example, is cut where it would not fit.
    """
    line = _error_line(request_id, error.to_wire())
    room = min(room, limits.MAX_ERROR_BYTES)
    if len(line) <= room:
        return line
    around = len(orjson.dumps(request_id)) + limits.MIN_ERROR_BYTES
    return _error_line(request_id, _cut(error, max(room - around, 0) // (2 * limits.MOST_PER_CHARACTER)))


def _error_line(request_id: RequestId | None, error: dict[str, Any]) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}, None, orjson.OPT_APPEND_NEWLINE)


def _cut(error: FastclawError, most: int) -> dict[str, Any]:
    """The fields that programs branch on, and the beginnings of path and message."""
    told = error.to_wire()
    names = ("kind", "reason", "fault", "retryable")
    data: dict[str, Any] = {name: told["data"][name] for name in names}
    if "path" in told["data"]:
        data["path"] = str(told["data"]["path"])[:most]
    return {"code": told["code"], "message": told["message"][:most], "data": data}


def encode_notice(method: str, params: dict[str, Any]) -> bytes:
    """One notification as a line."""
    return orjson.dumps({"jsonrpc": "2.0", "method": method, "params": params}, None, orjson.OPT_APPEND_NEWLINE)


def encode_batch(answers: list[bytes]) -> bytes:
    """The answers to one batch, each as `encode_result` or `encode_error` wrote it, as one line."""
    return b"[" + b",".join([answer[:-1] for answer in answers]) + b"]\n"


class Oversized:
    """Stands for a line over the limit: what had come of it is dropped, and so is the rest up to its newline."""


OVERSIZED: Final = Oversized()


class LineFramer:
    """Splits a byte stream into lines: LF, one trailing CR dropped, blank lines skipped.

    Parameters:
        limit: the longest line in bytes, its newline not counted.
    """

    __slots__ = ("_dropping", "_held", "_limit")

    def __init__(self, limit: int = limits.MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._held = bytearray()  # not a list of pieces: 16 million of two bytes each would take a GiB
        self._dropping = False

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """Take what one read brought, give back the lines that it completed, in order."""
        pieces = data.split(b"\n")
        tail = pieces.pop()
        lines: list[bytes | Oversized] = []
        if pieces:
            self._finish(pieces[0], lines)
            for piece in pieces[1:]:
                if piece[:1] == b"{" and piece[-1:] == b"}" and len(piece) <= self._limit:
                    lines.append(piece)  # what nearly all lines look like, without a call
                else:
                    self._keep(piece, lines)
        if tail:
            self._hold(tail, lines)
        return lines

    def _finish(self, piece: bytes, lines: list[bytes | Oversized]) -> None:
        """The newline of the held line has come, `piece` before it."""
        if self._dropping:
            self._dropping = False
            return
        if self._held:
            self._held += piece
            piece = bytes(self._held)
            self._held.clear()
        self._keep(piece, lines)

    def _keep(self, line: bytes, lines: list[bytes | Oversized]) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if len(line) > self._limit:
            lines.append(OVERSIZED)
        elif line and not line.isspace():
            lines.append(line)

    def _hold(self, tail: bytes, lines: list[bytes | Oversized]) -> None:
        if self._dropping:
            return
        self._held += tail
        # One more than the limit may still be the CR.
        if len(self._held) > self._limit + 1:
            self._held.clear()
            self._dropping = True
            lines.append(OVERSIZED)
