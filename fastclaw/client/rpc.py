"""Calls and their answers: ids, pipelining, deadlines, and what becomes of calls when the other side goes.

Owns the table of open calls. Knows no method and no process.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from fastclaw import limits
from fastclaw.errors import FastclawError, InvalidParams, InvalidRequest, IoError, ProtocolError
from fastclaw.protocol.framing import LineFramer, Oversized

log = logging.getLogger(__name__)


class Calls:
    """The open calls of one client.

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
            finally:
                self._open.pop(call_id, None)

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
        call_id = answer.get("id")
        waiting = self._open.pop(call_id, None) if type(call_id) is int else None
        if waiting is None or waiting.done():
            # Timed out or cancelled meanwhile; a null id is an error about a line that was not ours.
            log.debug("dropped an answer with id %r", call_id)
        elif "error" in answer:
            waiting.set_exception(FastclawError.from_wire(answer["error"]))
        else:
            waiting.set_result(answer["result"])

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


def _encode(call_id: int, method: str, params: dict[str, Any] | None) -> bytes:
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": call_id, "method": method}
    if params is not None:
        request["params"] = params
    try:
        line = orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise InvalidParams(f"the params of {method} are no JSON: {error}", path="$") from error
    if len(line) > limits.MAX_LINE_BYTES:
        raise InvalidRequest(f"{method} makes a line of {len(line)} bytes", "line_too_long")
    return line
