"""The generator's end of the wire: lean calls to a runtime that may lie, and what it said that was no answer.

A call is one future and a few bytes; the client's own has a deadline, a slot and a way back besides (docs/bench.md says
what each costs). One timer looks after the deadlines of all.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from fastclaw import bench_limits, limits
from fastclaw.bench.recorder import Failed
from fastclaw.client.rpc import Child, Stderr
from fastclaw.server.jsonrpc import LineFramer, Oversized

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastclaw.errors import FastclawError

_NS_PER_MS = 1_000_000

Answered = tuple[int, Any, str | None]
"""When it came (monotonic, nanoseconds), the result, and why there is none."""


class Calls:
    """A runtime as a child process, and the calls that are open.

    Parameters:
        deadline_ms: within which a call is answered.

    Attributes:
        oddities: what it said besides answers that were asked for, counted by kind.
        example: the first of it.
        messages: of errors, the first one by its reason.
        end: what to say of its end; None while it lives.
        on_end: called then.
    """

    def __init__(self, deadline_ms: int) -> None:
        self.oddities: Counter[str] = Counter()
        self.example = ""
        self.messages: dict[str, str] = {}
        self.end: str | None = None
        self.on_end: Callable[[], None] | None = None
        self._deadline_ns = deadline_ms * _NS_PER_MS
        self._loop = asyncio.get_running_loop()
        self._child = Child(self._feed, self._lose)
        self._framer = LineFramer()
        self._open: dict[int, tuple[asyncio.Future[Answered], int]] = {}
        self._given_up: dict[int, None] = {}
        self._last_id = 0
        self._batch: list[bytes] = []
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self, command: Sequence[str], env: Mapping[str, str], stderr: Stderr = None) -> None:
        """Start the runtime.

        Raises:
            IoError: it cannot be started.
        """
        await self._child.start(command, env, stderr)
        self._sweep()

    @property
    def pid(self) -> int:
        """Of the runtime."""
        return self._child.pid

    # --- Calls ---

    def call(self, method: str, params: bytes, within_ms: int | None = None) -> asyncio.Future[Answered]:
        """Send a request. Its future has a result and never an exception.

        Parameters:
            params: as JSON.
            within_ms: instead of the common deadline; only while nothing else is under way.
        """
        answer: asyncio.Future[Answered] = self._loop.create_future()
        now = time.monotonic_ns()
        if self.end is not None:
            answer.set_result((now, None, "runtime_exited"))
            return answer
        self._last_id += 1
        within_ns = self._deadline_ns if within_ms is None else within_ms * _NS_PER_MS
        self._open[self._last_id] = (answer, now + within_ns)
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(
            b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}\n' % (self._last_id, method.encode(), params)
        )
        return answer

    async def result(self, method: str, params: bytes, within_ms: int | None = None) -> tuple[int, dict[str, Any]]:
        """When a call was answered, and its result.

        Raises:
            Failed: there is none, or it is no object.
        """
        arrived, result, reason = await self.call(method, params, within_ms)
        if reason is not None:
            raise Failed(reason)
        if not isinstance(result, dict):
            raise Failed("wrong_result")
        return arrived, result

    def _flush(self) -> None:
        """One write for a turn of the loop, whatever number of calls it brought."""
        data = b"".join(self._batch)
        self._batch.clear()
        if self.end is None:
            self._child.write(data)

    # --- Answers ---

    def _feed(self, data: bytes) -> None:
        arrived = time.monotonic_ns()
        for line in self._framer.feed(data):
            self._take(line, arrived)

    def _take(self, line: bytes | Oversized, arrived: int) -> None:
        if isinstance(line, Oversized):
            self._note("line_too_long", b"")
            return
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError:
            self._note("not_json", line)
            return
        if not isinstance(message, dict) or ("result" in message) == ("error" in message):
            is_notice = isinstance(message, dict) and "method" in message and "id" not in message
            self._note("notification" if is_notice else "no_answer_object", line)
            return
        call_id = message.get("id")
        waiting = self._open.pop(call_id, None) if type(call_id) is int else None
        if waiting is None:
            self._unasked(call_id, line)
        elif not waiting[0].done():  # cut off meanwhile
            reason = self._reason(message["error"]) if "error" in message else None
            waiting[0].set_result((arrived, message.get("result"), reason))

    def _reason(self, error: Any) -> str:
        reason = reason_of(error)
        if reason not in self.messages and len(self.messages) < bench_limits.BENCH_REASONS:
            said = error.get("message") if isinstance(error, dict) else error
            self.messages[reason] = " ".join(str(said)[: limits.CHECK_ENTRY_CHARS].split())
        return reason

    def _unasked(self, call_id: Any, line: bytes) -> None:
        if type(call_id) is not int or not 0 < call_id <= self._last_id:
            self._note("unknown_id", line)
        elif call_id in self._given_up:
            del self._given_up[call_id]
            self._note("late_answer", line)
        else:
            self._note("answered_twice", line)

    def _note(self, kind: str, line: bytes) -> None:
        self.oddities[kind] += 1
        if not self.example and kind != "late_answer":
            self.example = line[: limits.CHECK_ENTRY_CHARS].decode(errors="backslashreplace")

    def _sweep(self) -> None:
        """The oldest are first in the table."""
        now = time.monotonic_ns()
        passed = []
        for call_id, (_, deadline) in self._open.items():
            if deadline > now:
                break
            passed.append(call_id)
        for call_id in passed:
            answer, _ = self._open.pop(call_id)
            if len(self._given_up) >= bench_limits.BENCH_LATE_IDS:
                del self._given_up[next(iter(self._given_up))]
            self._given_up[call_id] = None
            if not answer.done():
                answer.set_result((now, None, "no_answer"))
        self._sweeping = self._loop.call_later(bench_limits.BENCH_SWEEP_MS / 1000, self._sweep)

    # --- The end ---

    def _lose(self, why: Callable[[], FastclawError]) -> None:
        now = time.monotonic_ns()
        self.end = str(why()).removeprefix("io error: ")
        waiting, self._open = self._open, {}
        for answer, _ in waiting.values():
            if not answer.done():
                answer.set_result((now, None, "runtime_exited"))
        if self.on_end is not None:
            self.on_end()

    async def exit_code(self, within_ms: int) -> int | None:
        """How it ended, negative for a signal; None where it has not, within this."""
        return self._child.code if await self._child.ended(within_ms) else None

    async def aclose(self) -> None:
        """End it, the hard way where it does not go by itself."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self._child.aclose()


def reason_of(error: Any) -> str:
    """The word for an error of a runtime, which may be of any shape."""
    if not isinstance(error, dict):
        return "wrong_error"
    data = error.get("data")
    reason = data.get("reason") if isinstance(data, dict) else None
    if isinstance(reason, str) and reason:
        return reason[: bench_limits.BENCH_REASON_CHARS]
    code = error.get("code")
    return f"error {code}" if type(code) is int else "wrong_error"
