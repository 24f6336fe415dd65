"""The lines of a journal: JSON objects, one for each call. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

if TYPE_CHECKING:
    from fastclaw.stages import Flight

Kind = Literal["exec", "run", "environment_start", "gone", "lost"]

Microseconds = Annotated[int, Meta(ge=0, le=2**53)]
"""Up to 285 years: what every reader of JSON has exactly."""


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line.

    Parameters:
        kind: a method: a call of it was answered, and what came of it was known. `gone`: nothing was left any more of
            the tree of a process whose line had come before. `lost`: more lines are missing by now.
        time: when the call's line was read, in seconds of Unix time.
        received_ns: the same by CLOCK_MONOTONIC, in nanoseconds.
        id: of the process; of the start of an environment, its name.
        environment: in which the process was.
        lane, outcome: as in `health.details.latency`.
        timings: microseconds from there to each stage that was reached; of `gone`, to that one.
        lines: how many are missing of all up to here.
    """

    kind: Kind
    time: float = 0.0
    received_ns: int = 0
    id: str = ""
    environment: str = ""
    lane: str = ""
    outcome: str = ""
    timings: dict[str, Microseconds] = field(default_factory=dict)
    lines: Annotated[int, Meta(ge=0)] = 0


_decoder = msgspec.json.Decoder(Line)


def of_call(flight: Flight, time: float) -> bytes:
    """The line of a call. `time`: when its line was read."""
    line = Line(
        kind=flight.method,
        time=round(time, 6),
        received_ns=flight.at[0],
        id=flight.subject,
        environment=flight.environment,
        lane=flight.lane,
        outcome=flight.outcome,
        timings=flight.timings(),
    )
    return encoded(line)


def encoded(line: Line) -> bytes:
    """With its end."""
    return msgspec.json.encode(line) + b"\n"


def decoded(data: bytes) -> Line | None:
    """None: it is no line of a journal, or not whole."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:  # of which a ValidationError is one
        return None
