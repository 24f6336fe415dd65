"""The output of a run: what is kept of each stream while it comes, and how it is given in the answer.

Owns the cuts: at the limit, between characters, and once more where the encoded answer would not fit its line. Knows
neither descriptors nor how a line is written, but for how long JSON makes a text.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

from msgspec import UNSET, UnsetType, structs

from fastclaw import limits
from fastclaw.limits import MOST_PER_CHARACTER
from fastclaw.processes.lane import Collected, Output
from fastclaw.runtime import ExitRecord, Keep, RunResult

_TWO = b'"\\\b\t\n\f\r'
_PLAIN = bytes(byte for byte in range(256) if byte >= 0x20 and byte not in b'"\\')
_NOT_SIX = bytes({*_PLAIN, *_TWO})
_STREAMS = ("stdout", "stderr")


def halves(limit: int, keep: Keep) -> tuple[int, int]:
    """How many bytes of a stream are kept of its beginning and of its end."""
    if keep == "head":
        return limit, 0
    return (0, limit) if keep == "tail" else (limit - limit // 2, limit // 2)


class OutputStore:
    """Keeps the beginning and the end of a stream while it comes, in memory that its limit bounds.

    Attributes:
        total: bytes that have come.
    """

    __slots__ = ("_head", "_head_limit", "_tail", "_tail_limit", "total")

    def __init__(self, limit: int, keep: Keep) -> None:
        self._head_limit, self._tail_limit = halves(limit, keep)
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    @property
    def held(self) -> int:
        """Bytes in memory: the limit, and at most as much again as is kept of the end."""
        return len(self._head) + len(self._tail)

    def add(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self.total += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data and self._tail_limit:
            self._tail += data[-self._tail_limit :]
            if len(self._tail) > 2 * self._tail_limit:  # now and then, so that each byte is moved about once
                del self._tail[: -self._tail_limit]

    def output(self) -> Output:
        """What was kept."""
        tail = self._tail[-self._tail_limit :] if self._tail_limit else b""
        return Output(bytes(self._head), bytes(tail), self.total)


def cut(output: Output, limit: int, keep: Keep) -> Output:
    """Less of what was kept of a stream by the same rule, with more room."""
    if output.total <= limit:
        return output
    head, tail = halves(limit, keep)
    return Output(output.head[:head], (output.head + output.tail)[-tail:] if tail else b"", output.total)


# --- the answer ---


class _Given(NamedTuple):
    """One stream as the answer has it."""

    text: str | None
    encoded: str | UnsetType
    dropped: int
    gap_at: int | None


_EMPTY = _Given("", UNSET, 0, None)
"""Of a stream to which nothing was written: of one of the two, most of the time."""


def result_of(record: ExitRecord, collected: Collected, keep: Keep) -> RunResult:
    """The answer of a run that has just ended."""
    out, err = _given(collected.stdout, keep), _given(collected.stderr, keep)
    gaps: dict[str, int] = {}
    if out.gap_at is not None:
        gaps["stdout"] = out.gap_at
    if err.gap_at is not None:
        gaps["stderr"] = err.gap_at
    return RunResult(
        process_id=record.process_id,
        state=record.state,
        exit_code=record.exit_code,
        signal=record.signal,
        reason=record.reason,
        timings=record.timings,
        usage=record.usage,
        gap=record.gap,
        oom_kills=record.oom_kills,
        memory=record.memory,
        group=record.group,
        stdout=out.text,
        stderr=err.text,
        stdout_base64=out.encoded,
        stderr_base64=err.encoded,
        dropped={"stdout": out.dropped, "stderr": err.dropped},
        gap_at=gaps or UNSET,
        incomplete=collected.incomplete or UNSET,
    )


def result_without_output(record: ExitRecord, written: tuple[int, int]) -> RunResult:
    """The answer to a key whose run was answered before. `written`: bytes of the two streams, none of them given."""
    dropped = dict(zip(_STREAMS, written, strict=True))
    return RunResult(**structs.asdict(record), dropped=dropped)


def _given(output: Output, keep: Keep) -> _Given:
    head, tail, total = output
    if not total:
        return _EMPTY
    if len(head) + len(tail) == total:
        return _whole(head + tail if tail else head)
    return _cut(head, tail, total, keep)


def _whole(data: bytes) -> _Given:
    try:
        return _Given(str(data, "utf-8"), UNSET, 0, None)
    except UnicodeDecodeError:
        return _Given(None, base64.b64encode(data).decode(), 0, None)


def _cut(head: bytes, tail: bytes, total: int, keep: Keep) -> _Given:
    """A stream without its middle, its beginning or its end, as text where it is UTF-8."""
    first, last = head[: whole_characters(head)], tail[_stray_bytes(tail) :]
    try:
        text, encoded = str(first, "utf-8") + str(last, "utf-8"), UNSET
    except UnicodeDecodeError:
        first, last = head, tail
        return _Given(None, base64.b64encode(head + tail).decode(), *_missing(first, last, total, keep))
    return _Given(text, encoded, *_missing(first, last, total, keep))


def _missing(head: bytes, tail: bytes, total: int, keep: Keep) -> tuple[int, int | None]:
    """How many bytes are not given, and where they were, if in the middle."""
    return total - len(head) - len(tail), len(head) if keep == "ends" else None


def whole_characters(data: bytes) -> int:
    """Length of `data` without a UTF-8 character that its end has cut."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return len(data) - back if back < _length(byte) else len(data)
        if byte < 0x80:
            break
    return len(data)


def _stray_bytes(data: bytes) -> int:
    """How many bytes at the beginning belong to a character that began before it."""
    for index in range(min(3, len(data))):
        if not 0x80 <= data[index] < 0xC0:
            return index
    return min(3, len(data))


def _length(first: int) -> int:
    """Of the character that begins with this byte; of what begins none, the same as of one that is whole."""
    if first >= 0xF8:
        return 1
    return 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2


# --- whether it fits ---


def may_be_too_long(result: RunResult, request_id: int | str, room: int) -> bool:
    """Whether its answer could take more than `room` bytes of JSON; said at once, and never wrongly no."""
    characters = len(result.stdout or "") + len(result.stderr or "")
    if isinstance(request_id, str):
        characters += len(request_id)
    size = limits.RUN_ANSWER_BYTES + MOST_PER_CHARACTER * characters
    if result.stdout_base64 is not UNSET:
        size += len(result.stdout_base64)
    if result.stderr_base64 is not UNSET:
        size += len(result.stderr_base64)
    return size > room


def without_output(result: RunResult) -> RunResult:
    """The same with both streams empty: the rest of the answer."""
    more = {f"{name}_base64": "" for name in _STREAMS if getattr(result, f"{name}_base64") is not UNSET}
    texts = {name: "" for name in _STREAMS if getattr(result, name) is not None}
    return structs.replace(result, **texts, **more)


def fitted(result: RunResult, keep: Keep, room: int) -> RunResult:
    """The same, its streams cut as by `output_limit` so that JSON makes no more than `room` bytes of both together.

    A stream that needs less than its half leaves the rest of it to the other.
    """
    streams = [_Encoded.of(result, name) for name in _STREAMS]
    sizes = [stream.size for stream in streams]
    room = max(0, room - limits.RUN_ANSWER_SLACK_BYTES)
    if sum(sizes) <= room:
        return result
    shares = [max(room // 2, room - sizes[1]), max(room - room // 2, room - sizes[0])]
    for stream, size, share in zip(streams, sizes, shares, strict=True):
        if size > share:
            result = stream.cut(result, keep, share)
    return result


class _Encoded(NamedTuple):
    """One stream of an answer, as bytes again."""

    name: str
    data: bytes
    is_text: bool
    gap_at: int | None

    @classmethod
    def of(cls, result: RunResult, name: str) -> _Encoded:
        gap_at = None if result.gap_at is UNSET else result.gap_at.get(name)
        encoded = getattr(result, f"{name}_base64")
        if encoded is not UNSET:
            return cls(name, base64.b64decode(encoded), False, gap_at)
        return cls(name, (getattr(result, name) or "").encode(), True, gap_at)

    @property
    def size(self) -> int:
        """Bytes of JSON, its quotes not counted."""
        return json_length(self.data) if self.is_text else (len(self.data) + 2) // 3 * 4

    def cut(self, result: RunResult, keep: Keep, share: int) -> RunResult:
        """The answer with so many bytes of JSON for this stream."""
        first, last = halves(share, keep)
        at = self.gap_at
        head = self._prefix(self.data if at is None else self.data[:at], first)
        tail = self._suffix(self.data[len(head) :] if at is None else self.data[at:], last)
        missing = len(self.data) - len(head) - len(tail)
        dropped = {**result.dropped, self.name: result.dropped[self.name] + missing}
        gaps = {} if result.gap_at is UNSET else result.gap_at
        if keep == "ends":
            gaps = {**gaps, self.name: len(head)}
        return structs.replace(result, dropped=dropped, gap_at=gaps or UNSET, **self._field(head + tail))

    def _field(self, data: bytes) -> dict[str, str]:
        if self.is_text:
            return {self.name: data.decode()}
        return {f"{self.name}_base64": base64.b64encode(data).decode()}

    def _prefix(self, data: bytes, room: int) -> bytes:
        if not self.is_text:
            return data[: room // 4 * 3]
        kept = data[: _longest(data, room, from_end=False)]
        return kept[: whole_characters(kept)]

    def _suffix(self, data: bytes, room: int) -> bytes:
        length = min(len(data), room // 4 * 3) if not self.is_text else _longest(data, room, from_end=True)
        kept = data[len(data) - length :]
        return kept[_stray_bytes(kept) :] if self.is_text else kept


def json_length(text: bytes) -> int:
    """How many bytes JSON makes of a text in UTF-8, its quotes not counted."""
    escaped = text.translate(None, _PLAIN)
    return len(text) + len(escaped) + 4 * len(escaped.translate(None, _NOT_SIX))


def _longest(data: bytes, room: int, *, from_end: bool) -> int:
    """How many bytes of the beginning or the end make at most `room` bytes of JSON. Looks at each byte about once."""
    low, high = 0, min(len(data), room)
    while low < high:
        middle = (low + high + 1) // 2
        piece = data[len(data) - middle : len(data) - low] if from_end else data[low:middle]
        needed = json_length(piece)
        if needed <= room:
            low, room = middle, room - needed
        else:
            high = middle - 1
    return low
