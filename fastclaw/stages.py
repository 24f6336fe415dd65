"""The flight record: when each stage of an exec, a run or the start of an environment was reached.

Made where the stage is: each time is the one at which it happened, in nanoseconds of CLOCK_MONOTONIC, which all
processes of a machine share, also those in containers. Knows neither processes nor what is done with the times
(`Ledger`).
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from time import monotonic_ns
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from fastclaw.errors import FastclawError

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGES = ("received", "admitted", "sent", "taken", "started", "first_byte", "exited", "gone", "answered")
"""Of an exec and a run: its line was read; its turn had come; the lane was asked; the spawner's pump took it (on the
REST lane: the engine had made its session); the command ran; its first byte of output went out; it ended; nothing of
its tree was left; its answer was written."""

RECEIVED, ADMITTED, SENT, TAKEN, STARTED, FIRST_BYTE, EXITED, GONE, ANSWERED = range(len(STAGES))

ENVIRONMENT_STAGES = ("received", "admitted", "prepared", "made", "up", "ready", "answered")
"""Of the start of an environment: its line was read; its options were read, and its name was free; what its container
is made of was there; that was made, or a sandbox was taken from the pool; its init ran; processes could be started in
it; its answer was written. Of several containers it is the first."""

PREPARED, MADE, UP, READY = range(2, 6)


class TraceContext(NamedTuple):
    """Where something belongs in a distributed trace, by the words of W3C Trace Context.

    Parameters:
        parent: a `traceparent`: the trace, and the span that it is in.
        state: its `tracestate`; empty: there is none.
    """

    parent: str
    state: str = ""

    def variables(self) -> dict[str, str]:
        """For a process's environment, by OpenTelemetry's names; both, or an inherited state might pass for its own."""
        return {"TRACEPARENT": self.parent, "TRACESTATE": self.state}


class Ledger(Protocol):
    """Where what flights took is summed up, and written down."""

    def began(self, flight: Flight, program: str) -> None:
        """What it is of is known: `program`, or its method. Its `trace` becomes what its process is told."""

    def ended(self, flight: Flight) -> None:
        """Its outcome is known, and so are the stages before it."""

    def gone(self, flight: Flight) -> None:
        """It had ended before, and now nothing of its tree is left."""

    def answered(self, flight: Flight) -> None:
        """It is answered, and its outcome is known: all but `gone` is there."""


class Ledgers:
    """Several ledgers as one."""

    def __init__(self, *ledgers: Ledger) -> None:
        self._ledgers = ledgers

    def began(self, flight: Flight, program: str) -> None:
        for ledger in self._ledgers:
            ledger.began(flight, program)

    def ended(self, flight: Flight) -> None:
        for ledger in self._ledgers:
            ledger.ended(flight)

    def gone(self, flight: Flight) -> None:
        for ledger in self._ledgers:
            ledger.gone(flight)

    def answered(self, flight: Flight) -> None:
        for ledger in self._ledgers:
            ledger.answered(flight)


Method = Literal["exec", "run", "environment_start"]


class Flight:
    """When one call came how far.

    Parameters:
        received: when its line was read.
        names: of its stages, the first and the last of which are `received` and `answered`.

    Attributes:
        at: when each stage was reached; 0: it was not, or that is not known.
        ledger: where it counts; None: nowhere, or not yet.
        lane: by which it is started.
        outcome: how it ended: the reason of its record, or of its refusal; empty until then.
        subject: what it is about: the id of a process, the name of an environment.
        environment: in which the process is.
        method: that was called.
        waits_for: the stage that its answer waits for.
        exit_code: of its command, where that has one.
        trace: where it belongs.
        span: what a ledger that makes spans keeps with it until it is answered.
    """

    __slots__ = (
        *("at", "environment", "exit_code", "lane", "ledger", "method", "names", "outcome", "span", "subject"),
        *("trace", "waits_for"),
    )

    def __init__(self, received: int, names: tuple[str, ...] = STAGES) -> None:
        self.names = names
        self.at = [0] * len(names)
        self.at[RECEIVED] = received
        self.ledger: Ledger | None = None
        self.lane = self.outcome = self.subject = self.environment = ""
        self.exit_code: int | None = None
        self.trace: TraceContext | None = None
        self.span: object = None
        self.method: Method = "run" if names is STAGES else "environment_start"
        self.waits_for = EXITED if names is STAGES else READY

    def __repr__(self) -> str:
        return f"<Flight {self.subject} {self.outcome} {self.timings()}>"

    def reach(self, stage: int, at: int = 0) -> None:
        """It has come so far: now, or `at`. Where that is known already, nothing changes."""
        if not self.at[stage]:
            self.at[stage] = at or monotonic_ns()

    def merge(self, reached: Sequence[int]) -> None:
        """What a spawner says of the stages from `TAKEN` to `GONE`; 0: nothing."""
        at = self.at
        if not (at[TAKEN] or at[STARTED] or at[EXITED]):  # of a short run all comes at once
            at[TAKEN:ANSWERED] = reached
            return
        was_gone = at[GONE]
        for stage, when in enumerate(reached, TAKEN):
            if when and not at[stage]:
                at[stage] = when
        if self.outcome and self.ledger is not None and at[GONE] and not was_gone:
            self.ledger.gone(self)

    def end(self, outcome: str) -> None:
        """What came of it. The first word counts."""
        if self.outcome:
            return
        self.outcome = outcome
        if self.ledger is not None:
            self.ledger.ended(self)
            if self.at[-1]:
                self.ledger.answered(self)

    def answer(self) -> None:
        """Its answer is written."""
        self.reach(len(self.at) - 1)
        if self.outcome and self.ledger is not None:
            self.ledger.answered(self)

    def timings(self) -> dict[str, int]:
        """Microseconds from the first stage to each that was reached."""
        first = self.at[RECEIVED]
        told = {}
        for name, at in zip(self.names, self.at, strict=True):  # a third faster than as one expression
            if at:
                told[name] = (at - first) // 1000
        del told[self.names[RECEIVED]]
        return told


def outcome_of(error: BaseException) -> str:
    """The word for a call that came to nothing."""
    if isinstance(error, FastclawError):
        return error.reason
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "internal"


_flight: ContextVar[Flight | None] = ContextVar("flight", default=None)
"""Of the call that is served in this context."""


def begin(received: int, names: tuple[str, ...] = STAGES) -> Flight:
    """The flight of a call that is served now, in this context."""
    flight = Flight(received, names)
    _flight.set(flight)
    return flight


def present(names: tuple[str, ...] = STAGES) -> Flight:
    """That of the call that is served in this context; a new one where there is none with these stages, or it was given
    before: a call starts one thing."""
    flight = _flight.get()
    if flight is None or flight.names is not names or flight.ledger is not None:
        return Flight(monotonic_ns(), names)
    return flight


def unseen(names: tuple[str, ...] = STAGES) -> Flight:
    """A flight that counts nowhere, of a start of our own."""
    return Flight(monotonic_ns(), names)
