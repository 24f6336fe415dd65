"""Calls and their answers: ids, pipelining, deadlines, and the end of the connection.

Owns the table of open calls. Knows no method and no process.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import orjson

from fastclaw import limits
from fastclaw.errors import FastclawError, InvalidParams, InvalidRequest, IoError, ProtocolError
from fastclaw.server.framing import LineFramer, Oversized

log = logging.getLogger(__name__)

_TAKEN_BACK = frozenset({"exec", "run", "wait"})
"""Methods whose calls are cancelled at the runtime too where they are cancelled here."""


class Calls:
    """The table of open calls of one client.

    Parameters:
        write: takes the bytes of one or more requests.
        writable: cleared while the other side does not read fast enough.
    """

    def __init__(self, write: Callable[[bytes], None], writable: asyncio.Event) -> None:
        self._write = write
        self._writable = writable
        self._loop = asyncio.get_running_loop()
        self._framer = LineFramer()
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._taken_back: set[int] = set()
        self._late: dict[int, Any] = {}
        self._slots = asyncio.Semaphore(limits.CLIENT_PENDING)
        self._batch: list[bytes] = []
        self._last_id = 0
        self._lost: Callable[[], FastclawError] | None = None

    async def call(self, method: str, params: dict[str, Any] | None, timeout_s: float | None) -> Any:
        """Send one request and await its result.

        Raises:
            FastclawError: what the other side answered, in its own words.
            IoError: `no_answer` within `timeout_s` seconds, or `runtime_exited`.
            InvalidParams, InvalidRequest: the params are no JSON, or a line too long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answered(method, params)
        except TimeoutError as error:
            raise IoError(f"no answer to {method} within {timeout_s} s", "no_answer") from error

    async def _answered(self, method: str, params: dict[str, Any] | None) -> Any:
        async with self._slots:
            if not self._writable.is_set():
                await self._writable.wait()
            if self._lost is not None:
                raise self._lost()
            self._last_id += 1
            call_id = self._last_id
            self._queue(_encode(call_id, method, params))
            answer = self._open[call_id] = self._loop.create_future()
            try:
                return await answer
            except asyncio.CancelledError:
                self._take_back(call_id, method, answer)
                raise
            finally:
                self._open.pop(call_id, None)

    def _take_back(self, call_id: int, method: str, answer: asyncio.Future[Any]) -> None:
        """The caller has given up: what an exec or a run has started is ended. A process that was waited for lives on;
        only the waiting ends."""
        was_late = call_id in self._late
        result = self._late.pop(call_id, None)
        if method not in _TAKEN_BACK or self._lost is not None:
            return
        if method == "exec":
            self._taken_back.add(call_id)
        if not answer.cancelled():  # it came in this very turn of the loop, before the cancellation
            self._end_untold(call_id, None if answer.exception() else answer.result())
        elif was_late:
            self._end_untold(call_id, result)
        else:
            self._queue(_encode(None, "cancel", {"id": call_id}))

    def _queue(self, line: bytes) -> None:
        """One write per turn of the loop, whatever number of calls it brought."""
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(line)

    def _flush(self) -> None:
        data = b"".join(self._batch)
        self._batch.clear()
        if self._lost is None:
            self._write(data)

    def feed(self, data: bytes) -> None:
        """Take what one read brought."""
        if self._lost is not None:
            return
        for line in self._framer.feed(data):
            try:
                self._take(line)
            except ProtocolError as error:
                self.lose(partial(ProtocolError, str(error).removeprefix(ProtocolError.prefix)))
                return

    def _take(self, line: bytes | Oversized) -> None:
        if isinstance(line, Oversized):
            raise ProtocolError(f"the runtime sent a line over {limits.MAX_LINE_BYTES} bytes")
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the runtime sent a line that is not JSON: {line[:80]!r}") from error
        for answer in message if isinstance(message, list) else (message,):
            self._settle(answer)

    def _settle(self, answer: Any) -> None:
        if not isinstance(answer, dict) or ("result" in answer) == ("error" in answer):
            raise ProtocolError(f"the runtime sent no JSON-RPC answer: {str(answer)[:80]}")
        call_id: Any = answer.get("id")
        waiting = self._open.pop(call_id, None) if type(call_id) is int else None
        if self._taken_back and type(call_id) is int:
            self._end_untold(call_id, answer.get("result"))
        if waiting is not None and waiting.cancelled():
            self._late[call_id] = answer.get("result")  # its call is taken back in the next turn of the loop
        elif waiting is None or waiting.done():
            # Timed out or cancelled meanwhile; a null id is an error about a line that was not ours.
            log.debug("dropped an answer with id %r", call_id)
        elif "error" in answer:
            waiting.set_exception(FastclawError.from_wire(answer["error"]))
        else:
            waiting.set_result(answer["result"])

    def _end_untold(self, call_id: int, result: Any) -> None:
        """Kill the process of an exec that was answered before its cancel came: its caller does not know its id."""
        if call_id not in self._taken_back:
            return
        self._taken_back.remove(call_id)
        if isinstance(result, dict) and "process_id" in result:
            self._queue(_encode(None, "kill", {"process_id": result["process_id"], "grace_ms": 0}))

    def lose(self, reason: Callable[[], FastclawError]) -> None:
        """Nothing more will come: every open call and every later one fails with `reason()`. The first one stays."""
        if self._lost is not None:
            return
        self._lost = reason
        self._writable.set()
        waiting, self._open = self._open, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(reason())


def _encode(call_id: int | None, method: str, params: dict[str, Any] | None) -> bytes:
    """A request, or a notification where there is no id."""
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": call_id, "method": method}
    if call_id is None:
        del request["id"]
    if params is not None:
        request["params"] = params
    try:
        line = orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        path = next(_paths_of_other_text(params, "$"), "$")
        raise InvalidParams(f"the params of {method} are no JSON: {path}: {error}", path=path) from error
    if len(line) > limits.MAX_LINE_BYTES:
        raise InvalidRequest(f"{method} makes a line of {len(line)} bytes", "line_too_long")
    return line


def _paths_of_other_text(value: Any, path: str) -> Iterator[str]:
    """Where there is text that is no UTF-8, such as an argument or a file's name that Python could not decode."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield path
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _paths_of_other_text(name, f"{path}.{name!a}")
            yield from _paths_of_other_text(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _paths_of_other_text(inner, f"{path}[{index}]")
