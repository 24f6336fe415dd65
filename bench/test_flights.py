"""What the flight record of a run costs, beside what it is of: all of it in fastclaw, from the line to the answer.

The spawner's part is five readings of the clock, a system call each.
"""

from __future__ import annotations

from time import monotonic_ns, process_time, thread_time
from typing import TYPE_CHECKING

from bench.ratios import Ratios, in_turn
from fastclaw import stages
from fastclaw.latency import Latency
from fastclaw.stages import Flight, TraceContext
from fastclaw.telemetry.traces import Traces
from tests.telemetry.collector import Collector

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

FLIGHTS = 20_000
ROUNDS = 9
ALLOWED_US = 8.0
"""What the design allows for all of it."""


def fly(ledger: Latency) -> None:
    """What a run's record takes, as the dispatcher, the pool, the lane and the link do it one after the other."""
    received = monotonic_ns()
    stages.begin(received)
    flight = stages.present()
    flight.subject, flight.environment, flight.lane, flight.ledger = "p-1", "main", "spawn", ledger
    flight.trace = None
    ledger.began(flight, "true")
    flight.reach(stages.ADMITTED)
    flight.reach(stages.SENT)
    flight.merge((received + 1, received + 2, received + 3, received + 4, received + 5))
    flight.reach(stages.STARTED)
    flight.reach(stages.EXITED)
    flight.end("exited")
    flight.timings()
    flight.answer()


def test_what_a_record_costs(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    ledger = Latency()
    taken: list[float] = []

    def flights() -> None:
        began = process_time()  # it waits for nothing, so what others take of the processor is not its affair
        for _ in range(FLIGHTS):
            fly(ledger)
        taken.append(process_time() - began)

    in_turn(benchmark, flights, lambda: None, ROUNDS)
    each = [seconds / FLIGHTS for seconds in taken[1:]]
    ratios.allowed("allowed time of a flight record (8 us) / taken", [ALLOWED_US / 1e6 / seconds for seconds in each])
    ratios.figure("flight record of a run", each, "s")


SPANS = 500
"""A round's: with those of the round before, and a batch whose arrival is not known yet, fewer than may wait."""


async def test_what_a_span_costs(ratios: Ratios) -> None:
    """In the thread of the calls alone; the sending goes on beside it, and takes the interpreter's lock."""
    taken: list[float] = []
    with Collector() as collector:
        traces = Traces(collector.endpoint, "1", print)
        for done in range(0, ROUNDS * SPANS, SPANS):
            flights = [Flight(monotonic_ns()) for _ in range(SPANS)]
            for flight in flights:
                flight.ledger, flight.at[1:-1] = traces, range(flight.at[0] + 1, flight.at[0] + 8)
                flight.trace = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            began = thread_time()
            for flight in flights:
                traces.began(flight, "/bin/true")
                flight.end("exited")
                flight.answer()
            taken.append(thread_time() - began)
            collector.until(spans=done)
        await traces.aclose()
        assert traces.health()["lost"] == 0
    ratios.figure("span of a run, where they are asked for", [seconds / SPANS for seconds in taken], "s")
