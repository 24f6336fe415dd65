"""What the proxy keeps account of: numbers in memory that fastclaw and its proxy share, and a log of decisions.

The proxy counts, fastclaw reads whenever `health` asks, without a question to the proxy; and the numbers outlive it.
Each is a slot of eight bytes that one store fills, so a reader never sees half of one. There is one writer at a time:
the proxy while it lives, fastclaw after that.

The log has one JSON line for each decision, in a file that is rotated by size. Where the disk does not keep up, handing
over waits: the proxy slows down, and no line is lost.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fastclaw.linux.rotating_log import RotatingLog
from fastclaw.network.egress.policy import REASONS, Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


_ALLOWED, _OPEN, _SENT, _RECEIVED, _LOST, _DENIED = range(6)
_FAILED = _DENIED + len(REASONS)
_SLOTS = _FAILED + len(REASONS)
_BYTES = _SLOTS * 8
_PLACE = {reason: place for place, reason in enumerate(REASONS)}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL  # a page that is gone would be a SIGBUS


class Counters:
    """The numbers of one sandbox's egress, in shared memory. Made by `create` or `attach`.

    Attributes:
        fd: the shared memory, to be passed on; owned.
    """

    __slots__ = ("_memory", "_slots", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _BYTES)
        self._slots = memoryview(self._memory).cast("@q")

    @classmethod
    def create(cls) -> Self:
        """All zero.

        Raises:
            OSError: no descriptor or no memory is left.
        """
        fd = os.memfd_create("fastclaw-egress-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(fd)
            raise
        return cls.attach(fd)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """The counters of an earlier `create`.

        Parameters:
            fd: taken over, also where it fails.

        Raises:
            OSError, ValueError: it is no such memory.
        """
        try:
            return cls(fd)
        except (OSError, ValueError):
            os.close(fd)
            raise

    def allowed(self) -> None:
        """A decision: yes."""
        self._slots[_ALLOWED] += 1

    def denied(self, reason: Reason) -> None:
        """A decision: no."""
        self._slots[_DENIED + _PLACE[reason]] += 1

    def failed(self, reason: Reason) -> None:
        """It was allowed, and could not be done."""
        self._slots[_FAILED + _PLACE[reason]] += 1

    def sent(self, count: int) -> None:
        """Bytes to the outside."""
        self._slots[_SENT] += count

    def received(self, count: int) -> None:
        """Bytes from the outside."""
        self._slots[_RECEIVED] += count

    def opened(self) -> None:
        """A connection of a client."""
        self._slots[_OPEN] += 1

    def closed(self) -> None:
        """A connection of a client is gone."""
        self._slots[_OPEN] -= 1

    def reset_open(self) -> None:
        """No connection is left: the proxy that had them is gone."""
        self._slots[_OPEN] = 0

    def logged_lost(self, count: int = 1) -> None:
        """Decisions that are missing from the log."""
        self._slots[_LOST] += count

    @property
    def moved(self) -> int:
        """Bytes in both directions, of all proxies that this sandbox has had."""
        return self._slots[_SENT] + self._slots[_RECEIVED]

    def decisions(self) -> dict[tuple[str, str], int]:
        """How often each was made, by its word in the log and its reason; without one where it was allowed."""
        slots = self._slots.tolist()
        counts = {("allowed", ""): slots[_ALLOWED]}
        for place, reason in enumerate(REASONS):
            counts["denied", reason], counts["failed", reason] = slots[_DENIED + place], slots[_FAILED + place]
        return {decision: count for decision, count in counts.items() if count}

    def snapshot(self) -> dict[str, Any]:
        """For `health`. Reasons that never came up are left out, as is `log_lost` where no decision is missing."""
        slots = self._slots.tolist()
        numbers: dict[str, Any] = {
            "allowed": slots[_ALLOWED],
            "denied": _named(slots[_DENIED:_FAILED]),
            "failed": _named(slots[_FAILED:]),
            "bytes": {"sent": slots[_SENT], "received": slots[_RECEIVED]},
            "open": slots[_OPEN],
        }
        if slots[_LOST]:
            numbers["log_lost"] = slots[_LOST]
        return numbers

    def close(self) -> None:
        """Give the memory back. Idempotent; nothing can be counted or read afterwards."""
        if self.fd >= 0:
            self._slots.release()
            self._memory.close()
            os.close(self.fd)
            self.fd = -1


def _named(slots: list[int]) -> dict[str, int]:
    return {reason: count for reason, count in zip(REASONS, slots, strict=True) if count}


def now() -> str:
    """The time as the log has it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One line.

    Parameters:
        reason: None where it was allowed and done.
        address: the one that was decided on or connected to, where one is known.
        rule: the deciding entry of `allow` or `deny`, as the user wrote it.
        text: for people.
    """

    time: str = msgspec.field(default_factory=now)
    decision: Literal["allowed", "denied", "failed"]
    reason: str | None = None
    how: Literal["connect", "http", "transparent", "dns"]
    host: str
    port: int
    address: str | None = None
    method: str | None = None
    rule: str | None = None
    text: str


class AuditLog(RotatingLog):
    """The log of decisions.

    Parameters:
        path, max_bytes, on_trouble: as for `RotatingLog`.
        counters: told how many decisions are missing.
    """

    def __init__(self, path: str, max_bytes: int, counters: Counters, on_trouble: Callable[[str], None]) -> None:
        super().__init__(path, max_bytes, "the decision log", counters.logged_lost, on_trouble)

    async def write(self, entry: Decision) -> None:
        """Hand a decision over. Waits where the disk does not keep up."""
        await self.put(_line(entry))


def _line(entry: Decision) -> bytes:
    try:
        return msgspec.json.encode(entry) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate has no form in JSON
        fields = {
            name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            for name, value in msgspec.structs.asdict(entry).items()
        }
        return msgspec.json.encode(fields) + b"\n"
