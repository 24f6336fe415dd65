"""JSON-RPC 2.0: one line in, requests out; results and errors in, one line out.

Owns what counts as a request and how an answer is written. Knows no method and no parameter.
Specification: https://www.jsonrpc.org/specification; ids are restricted to integers and strings (docs/contract.md).
"""

from typing import Any

import msgspec
import orjson

from fastclaw import answer_limits, limits
from fastclaw.errors import FastclawError, InvalidRequest, ParseError

RequestId = int | str


class Request:
    """One call. `id` is None for a notification, which gets no answer."""

    __slots__ = ("id", "method", "params")

    def __init__(self, request_id: RequestId | None, method: str, params: Any) -> None:
        self.id = request_id
        self.method = method
        self.params = params

    def __repr__(self) -> str:
        return f"<Request {self.method} id={self.id!r}>"


Item = Request | FastclawError


def decode(line: bytes) -> Request | list[Item]:
    """Read one line: a request, or a batch as the list of its items (an item that is none is its error).

    Raises:
        ParseError: not JSON, not UTF-8, or nested too deeply.
        InvalidRequest: JSON, but neither a request nor a batch.
    """
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ParseError(f"not JSON: {error}") from error
    if type(message) is list:
        return _batch(message)
    return _request(message)


def _request(message: Any) -> Request:
    if type(message) is not dict:
        raise InvalidRequest("a request is an object")
    if message.get("jsonrpc") != "2.0":
        raise InvalidRequest('"jsonrpc" must be "2.0"')
    method = message.get("method")
    if type(method) is not str:
        raise InvalidRequest('"method" must be a string')
    request_id = message.get("id")
    if type(request_id) is not int and type(request_id) is not str and (request_id is not None or "id" in message):
        raise InvalidRequest('"id" must be an integer of 64 bits or a string; leave it out for a notification')
    if type(request_id) is str and len(request_id) > answer_limits.MAX_ID_CHARS:
        raise InvalidRequest(f'"id" has at most {answer_limits.MAX_ID_CHARS} characters')
    return Request(request_id, method, message.get("params"))


def _batch(messages: list[Any]) -> list[Item]:
    if not messages:
        raise InvalidRequest("a batch has at least one request")
    if len(messages) > limits.MAX_BATCH_ITEMS:
        raise InvalidRequest(f"a batch has at most {limits.MAX_BATCH_ITEMS} requests, this one {len(messages)}")
    return [_item(message) for message in messages]


def _item(message: Any) -> Item:
    try:
        return _request(message)
    except InvalidRequest as error:
        return error


def encode_result(request_id: RequestId, result: Any) -> bytes:
    """One answer as a line, its newline included. `result` may hold msgspec structs."""
    return orjson.dumps(
        {"jsonrpc": "2.0", "id": request_id, "result": result}, msgspec.to_builtins, orjson.OPT_APPEND_NEWLINE
    )


def encoded(value: Any) -> bytes:
    """A part of a result, to be seen how long it is."""
    return orjson.dumps(value, msgspec.to_builtins)


def array(parts: list[bytes]) -> Any:
    """For a result: a list of what `encoded` gave."""
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")


def encode_error(
    request_id: RequestId | None, error: FastclawError, room: int = answer_limits.MAX_ERROR_BYTES
) -> bytes:
    """One error answer as a line of at most `room` bytes. The id is null where the request could not be read.

    Whatever an error quotes, a name of 20 MB for example, is cut where it would not fit.
    """
    line = _error_line(request_id, error.to_wire())
    room = min(room, answer_limits.MAX_ERROR_BYTES)
    if len(line) <= room:
        return line
    around = len(orjson.dumps(request_id)) + answer_limits.MIN_ERROR_BYTES
    return _error_line(request_id, _cut(error, max(room - around, 0) // (2 * answer_limits.MOST_PER_CHARACTER)))


def _error_line(request_id: RequestId | None, error: dict[str, Any]) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}, None, orjson.OPT_APPEND_NEWLINE)


def _cut(error: FastclawError, most: int) -> dict[str, Any]:
    """What a program branches on, and the beginning of the two texts that say where and why."""
    told = error.to_wire()
    names = ("kind", "reason", "fault", "retryable")
    data: dict[str, Any] = {name: told["data"][name] for name in names}
    if "path" in told["data"]:
        data["path"] = str(told["data"]["path"])[:most]
    return {"code": told["code"], "message": told["message"][:most], "data": data}


def encode_batch(answers: list[bytes]) -> bytes:
    """The answers to one batch, each as `encode_result` or `encode_error` wrote it, as one line."""
    return b"[" + b",".join([answer[:-1] for answer in answers]) + b"]\n"
