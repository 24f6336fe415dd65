"""The checker's end of the wire: sends any bytes, keeps every answer and the exchange, and unpacks answers.

Owns one runtime's child process during a check. Does not use the client's call table: that one hides what breaks rules.
"""

import asyncio
import base64
import binascii
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import orjson

from fastclaw import limits
from fastclaw.client.rpc import Child, Stderr
from fastclaw.errors import FastclawError
from fastclaw.server.jsonrpc import LineFramer, Oversized

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
EXEC_FAILED, START_FAILED, INVALID_STATE, IO_ERROR, CANCELLED = -32000, -32001, -32002, -32004, -32800


class Broken(Exception):
    """A promise does not hold; the text says what was seen instead."""


class NotOffered(Exception):
    """A promise that this runtime, vocabulary or machine cannot be asked for; the text says why."""


def expect(holds: bool, seen: str) -> None:
    """Raise `Broken(seen)` unless it holds."""
    if not holds:
        raise Broken(seen)


def refused(answer: dict[str, Any], code: int, reason: str | None = None) -> dict[str, Any]:
    """The error of an answer that must be one.

    Raises:
        Broken: it is none, or another one.
    """
    error = answer.get("error")
    if not isinstance(error, dict):
        raise Broken(f"expected the error {code}, got {answer.get('result')!r}")
    expect(error.get("code") == code, f"expected the error {code}, got {error}")
    expect(reason is None or data_of(error).get("reason") == reason, f"expected the reason {reason!r}, got {error}")
    return error


def data_of(error: dict[str, Any]) -> dict[str, Any]:
    """`error.data`, or an empty object where it is none."""
    data = error.get("data")
    return data if isinstance(data, dict) else {}


class Wire:
    """A runtime started as a child, spoken to in raw lines. What is awaited and does not come in time is `Broken`.

    Attributes:
        exchange: what went over it, the last entries.
        foul: what it said that is no protocol.
        lost: it says nothing any more.
    """

    def __init__(self) -> None:
        self._child = Child(self._feed, self._lose)
        self._framer = LineFramer()
        self._inbox: deque[Any] = deque()
        self._news = asyncio.Event()
        self._last_id = 0
        self.exchange: deque[str] = deque(maxlen=limits.CHECK_EXCHANGE_ENTRIES)
        self.foul: list[str] = []
        self.lost = False

    @classmethod
    async def start(cls, command: Sequence[str], stderr: Stderr = None) -> Self:
        """Start the runtime.

        Raises:
            IoError: it cannot be started.
        """
        wire = cls()
        await wire._child.start(command, stderr=stderr)
        return wire

    # --- Sending ---

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._record("->", data)
        self._child.write(data)

    def post(self, method: str, params: Any = None, **members: Any) -> Any:
        """Send one request and return its id; `members` replace the request's own."""
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params, **members}
        if params is None:
            del request["params"]
        self.send(orjson.dumps(request) + b"\n")
        return request["id"]

    def close_stdin(self) -> None:
        """EOF for the runtime."""
        self._record("->", b"(EOF)")
        self._child.write_eof()

    def signal(self, signum: int) -> None:
        """Send a signal to the runtime."""
        self._record("->", f"(signal {signum})".encode())
        self._child.send_signal(signum)

    # --- Receiving ---

    async def request(self, method: str, params: Any = None) -> dict[str, Any]:
        """Send a request and await its answer."""
        return await self.answer(self.post(method, params))

    async def answer(self, request_id: Any, timeout_ms: int | None = None) -> dict[str, Any]:
        """The answer with this id; others stay for their own reader.

        Parameters:
            timeout_ms: None is `limits.CHECK_ANSWER_MS`.
        """
        deadline_ms = limits.CHECK_ANSWER_MS if timeout_ms is None else timeout_ms
        what = f"the answer to id {request_id!r}"
        found = await self.take(lambda message: _answers(message, request_id), deadline_ms, what)
        assert isinstance(found, dict)
        return found

    async def next(self) -> Any:
        """The oldest message not yet taken, whatever it is."""
        return await self.take(lambda message: True, limits.CHECK_ANSWER_MS, "a message")

    async def take(self, wanted: Callable[[Any], bool], timeout_ms: int, what: str) -> Any:
        """The oldest message that is `wanted`."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._take(wanted, what)
        except TimeoutError as error:
            raise Broken(f"{what} did not come within {timeout_ms} ms") from error

    async def _take(self, wanted: Callable[[Any], bool], what: str) -> Any:
        while True:
            for index, message in enumerate(self._inbox):
                if wanted(message):
                    del self._inbox[index]
                    return message
            if self.foul:
                raise Broken(f"stdout carried something else than the protocol: {self.foul[0]}")
            if self.lost:
                raise Broken(f"{what} did not come: the runtime ended with code {self._child.code}")
            self._news.clear()
            await self._news.wait()

    async def rest(self) -> list[Any]:
        """What else has come once the runtime has answered another `health`."""
        await self.request("health")
        others = list(self._inbox)
        self._inbox.clear()
        return others

    async def exit_code(self, timeout_ms: int) -> int | None:
        """How the runtime ended, negative for a signal."""
        if not await self._child.ended(timeout_ms):
            raise Broken(f"the runtime still runs after {timeout_ms} ms")
        return self._child.code

    async def finished(self) -> list[Any]:
        """After the runtime's end: the messages that were not taken."""
        try:
            async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
                while not self.lost:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise Broken(f"stdout did not end within {limits.CHECK_SOON_MS} ms") from error
        return list(self._inbox)

    async def aclose(self) -> None:
        """End the runtime, the hard way where it does not go by itself."""
        await self._child.aclose()

    # --- What the child tells ---

    def _feed(self, data: bytes) -> None:
        for line in self._framer.feed(data):
            self._take_in(line)
        self._news.set()

    def _take_in(self, line: bytes | Oversized) -> None:
        if isinstance(line, Oversized):
            self.foul.append("a line over the limit")
            return
        self._record("<-", line)
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError:
            self.foul.append(_clip(line))
            return
        items = message if isinstance(message, list) and message else [message]
        if not all(_is_answer(item) for item in items) and not is_notice(message):
            self.foul.append(_clip(line))
        self._inbox.append(message)

    def _lose(self, why: Callable[[], FastclawError]) -> None:
        self._record("<-", f"({why()})".encode())
        self.lost = True
        self._news.set()

    def _record(self, direction: str, data: bytes) -> None:
        self.exchange.append(f"{direction} {_clip(data)}")


def _answers(message: Any, request_id: Any) -> bool:
    if not isinstance(message, dict) or "id" not in message:
        return False
    told = message["id"]
    # 1 == True == 1.0 in Python, not on the wire.
    return type(told) is type(request_id) and bool(told == request_id)


def _is_answer(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("jsonrpc") == "2.0"
        and "id" in message
        and ("result" in message) != ("error" in message)
    )


def is_notice(message: Any) -> bool:
    """Whether it tells how a request comes on."""
    return (
        isinstance(message, dict)
        and message.get("jsonrpc") == "2.0"
        and message.get("method") == "progress"
        and "id" not in message
        and isinstance(message.get("params"), dict)
    )


def _clip(data: bytes) -> str:
    shown = data[: limits.CHECK_ENTRY_CHARS].decode(errors="backslashreplace").rstrip("\n")
    more = len(data) - limits.CHECK_ENTRY_CHARS
    return shown + (f" … ({more} bytes more)" if more > 0 else "")


# --- What an answer of run gives. Each of these raises `Broken` where it is of another shape. ---


def given(ran: dict[str, Any], stream: str) -> bytes:
    """The bytes that are given of a stream."""
    text, encoded = ran.get(stream), ran.get(f"{stream}_base64")
    if isinstance(text, str) and encoded is None:
        return text.encode("utf-8", "surrogatepass")
    expect(text is None and isinstance(encoded, str), f"{stream} comes as {type(text)} and {type(encoded)}")
    try:
        data = base64.b64decode(str(encoded), validate=True)
    except binascii.Error as error:
        raise Broken(f"{stream}_base64 is no base64: {error}") from error
    expect(not _is_text(data), f"{stream} is text, and comes as base64")
    return data


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def outputs(ran: dict[str, Any]) -> tuple[bytes, bytes]:
    """Both streams of a run that lost nothing."""
    expect(ran.get("dropped") == {"stdout": 0, "stderr": 0}, f"`dropped` is {ran.get('dropped')}")
    expect(not ran.get("gap_at"), f"`gap_at` is {ran.get('gap_at')} where nothing is missing")
    expect(not ran.get("incomplete"), "the answer is `incomplete`")
    return given(ran, "stdout"), given(ran, "stderr")


def dropped(ran: dict[str, Any], stream: str) -> int:
    """How many bytes of a stream are said to be missing."""
    told = ran.get("dropped")
    number = told.get(stream) if isinstance(told, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise Broken(f"`dropped` is {told!r}")
    return number


def around_gap(ran: dict[str, Any], stream: str) -> tuple[bytes, bytes]:
    """What is given before the gap, and after it."""
    got, told = given(ran, stream), ran.get("gap_at")
    at = told.get(stream) if isinstance(told, dict) else None
    if not isinstance(at, int) or not 0 <= at <= len(got):
        raise Broken(f"`gap_at` is {told!r}, of {len(got)} bytes of {stream}")
    return got[:at], got[at:]


def ending(ran: dict[str, Any]) -> tuple[Any, Any, Any]:
    """State, exit code and reason."""
    return ran.get("state"), ran.get("exit_code"), ran.get("reason")
