"""Spans of OpenTelemetry: one of each exec, run and start of an environment, made of its flight when that is over.

Loads OpenTelemetry's SDK, so it is to be imported where spans are asked for only. Whether a call is sampled is decided
when it begins, since its process is told so; its span is made once it is answered, and sent by a thread of the SDK's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import posixpath
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from fastclaw import telemetry_limits
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.stages import ENVIRONMENT_STAGES, TraceContext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastclaw.stages import Flight

OPTION = "options.traces"

BY_ENVIRONMENT = "env"
"""In place of an URL: where the SDK's own variables say (`OTEL_EXPORTER_OTLP_ENDPOINT` and so on)."""


def endpoint_of(option: str) -> str | None:
    """The URL that spans are sent to; None: what the SDK's variables say.

    Raises:
        InvalidParams: it is none. A password in it would be shown by `health`.
    """
    if option == BY_ENVIRONMENT:
        return None
    try:
        parts = urlsplit(option)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or "@" in parts.netloc:
        form = f"neither {BY_ENVIRONMENT!r} nor an URL such as http://127.0.0.1:4318/v1/traces, without a password"
        raise InvalidParams(f"$.{OPTION}: {option!r} is {form}", path=f"$.{OPTION}")
    return option


class _Begun(NamedTuple):
    """A span that is to be made."""

    context: SpanContext
    parent: SpanContext | None
    attributes: dict[str, Any]


class Traces:
    """Makes the spans of a runtime; a `stages.Ledger`.

    Parameters:
        option: an URL, or `BY_ENVIRONMENT`.
        version: of fastclaw.
        on_trouble: told once, in one line, that spans are missing; by any thread.

    Raises:
        InvalidParams: as `endpoint_of`.
        StartFailed: `unsupported`: the SDK makes nothing of its variables.
    """

    def __init__(self, option: str, version: str, on_trouble: Callable[[str], None]) -> None:
        endpoint = endpoint_of(option)
        self._option, self._on_trouble = option, on_trouble
        self._begun = self._offered = self._sent = self._lost = 0
        self._once = _Once()
        try:
            provider = TracerProvider(resource=_resource(version), shutdown_on_exit=False)
            self._most = int(os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE) or telemetry_limits.TRACES_QUEUE)
            self._exporter = _Counting(OTLPSpanExporter(endpoint), self._told)
            self._processor: SpanProcessor = BatchSpanProcessor(self._exporter, self._most)
        except ValueError as error:
            raise StartFailed(f"{OPTION}: {error}", "unsupported") from error
        self._resource, self._sampler, self._ids = provider.resource, provider.sampler, provider.id_generator
        self._scope = InstrumentationScope("fastclaw", version)
        self._is_on = not isinstance(provider.get_tracer("fastclaw"), NoOpTracer)  # OTEL_SDK_DISABLED
        _logger.addFilter(self._once)

    def __repr__(self) -> str:
        return f"<Traces {self._option}>"

    def began(self, flight: Flight, program: str) -> None:
        """Decide whether it is sampled, and what its process is told."""
        if not self._is_on:
            return
        if flight.names is ENVIRONMENT_STAGES:
            name, kind = program, SpanKind.SERVER
            attributes = {"rpc.system.name": "jsonrpc", "rpc.method": program}
        else:
            name, kind = _shown(program), SpanKind.CLIENT
            attributes = {"process.executable.name": name}
        parent = None if flight.trace is None else _parsed(flight.trace)
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        above = Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())
        found = self._sampler.should_sample(above, trace_id, name, kind, attributes)
        is_sampled = found.decision is Decision.RECORD_AND_SAMPLE
        if parent is not None and not is_sampled:
            return  # what it is in may be: the caller's is handed on as it is
        flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
        context = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, found.trace_state)
        flight.trace = TraceContext(
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}", context.trace_state.to_header()
        )
        if is_sampled:
            self._begun += 1
            flight.span = _Begun(context, parent, dict(found.attributes or {}))

    def ended(self, flight: Flight) -> None:
        """Its span comes with its answer."""

    def gone(self, flight: Flight) -> None:
        """A span is made once: what comes later is in the journal."""

    def answered(self, flight: Flight) -> None:
        """Make its span. One that has no room is lost: nobody waits for a collector."""
        begun = flight.span
        if not isinstance(begun, _Begun):
            return
        flight.span = None
        self._offered += 1
        if self._offered - self._sent - self._lost > self._most:
            self._lose(1)
        else:
            self._processor.on_end(self._made(flight, begun))

    def _made(self, flight: Flight, begun: _Begun) -> ReadableSpan:
        to_wall = time.time_ns() - time.monotonic_ns()  # once for all of a span: no jump of the clock is in it
        is_start = flight.names is ENVIRONMENT_STAGES
        attributes = {**begun.attributes, "fastclaw.lane": flight.lane}
        if is_start:
            attributes["fastclaw.environment"] = flight.subject
        else:
            attributes |= {"fastclaw.environment": flight.environment, "fastclaw.process_id": flight.subject}
            attributes["fastclaw.method"] = flight.method
        if flight.exit_code is not None:
            attributes["process.exit.code"] = flight.exit_code
        status = Status()
        if flight.outcome not in ("exited", "ready") or flight.exit_code:
            attributes["error.type"] = str(flight.exit_code) if flight.outcome == "exited" else flight.outcome
            status = Status(StatusCode.ERROR)
        reached = sorted((at, name) for name, at in zip(flight.names[1:], flight.at[1:], strict=True) if at)
        return ReadableSpan(  # the SDK's own way, a span that is open meanwhile, takes three times as long
            begun.attributes["rpc.method" if is_start else "process.executable.name"],
            begun.context,
            begun.parent,
            self._resource,
            attributes,
            [Event(name, timestamp=at + to_wall) for at, name in reached],
            kind=SpanKind.SERVER if is_start else SpanKind.CLIENT,
            status=status,
            start_time=flight.at[0] + to_wall,
            end_time=reached[-1][0] + to_wall,
            instrumentation_scope=self._scope,
        )

    def _told(self, count: int, has_arrived: bool) -> None:
        """By the SDK's thread: what became of some spans."""
        if has_arrived:
            self._sent += count
        else:
            self._lose(count)

    def _lose(self, count: int) -> None:
        if not self._lost:
            self._on_trouble(f"{OPTION}: spans are lost; health.details.traces says how many")
        self._lost += count

    def health(self) -> dict[str, Any]:
        """Where they go, how many the collector has taken, and how many are missing."""
        return {"endpoint": self._option, "sent": self._sent, "lost": self._lost}

    async def aclose(self) -> None:
        """Send what waits, within `telemetry_limits.TRACES_FLUSH_MS`. Once."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def end() -> None:
            self._processor.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has gone on, and may be closed
                loop.call_soon_threadsafe(over.set)

        # Not the loop's own threads: the end of the program would wait for those.
        threading.Thread(target=end, name="fastclaw-traces", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(telemetry_limits.TRACES_FLUSH_MS / 1000):
                await over.wait()
        self._exporter.shutdown()
        _logger.removeFilter(self._once)
        self._lost = self._begun - self._sent
        if self._lost:
            self._on_trouble(f"{OPTION}: {self._lost} of {self._begun} spans are lost")


def _shown(program: str) -> str:
    """The base name of a program, as a collector can have it."""
    name = posixpath.basename(program)[: telemetry_limits.TRACES_NAME_CHARACTERS]
    return name.encode("utf-8", "replace").decode()


def _parsed(trace: TraceContext) -> SpanContext:
    """What was checked before."""
    _, trace_id, span_id, flags = trace.parent.split("-")
    state = TraceState.from_header([trace.state]) if trace.state else TraceState()
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)


def _resource(version: str) -> Resource:
    """What sends: a name that the SDK's variables give wins."""
    found = Resource.create({SERVICE_VERSION: version})
    is_named = not str(found.attributes[SERVICE_NAME]).startswith("unknown_service")
    return found if is_named else found.merge(Resource({SERVICE_NAME: "fastclaw"}))


class _Counting(SpanExporter):
    """An exporter that says what arrived.

    Parameters:
        told: how many spans, and whether they did.
    """

    def __init__(self, exporter: SpanExporter, told: Callable[[int, bool], None]) -> None:
        self._exporter, self._told = exporter, told
        self._has_ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._told(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Try nothing again. Idempotent."""
        if not self._has_ended:
            self._has_ended = True
            self._exporter.shutdown()


_logger = logging.getLogger(OTLPSpanExporter.__module__)
"""Where the SDK says why an attempt failed."""


class _Once(logging.Filter):
    """Lets each kind of line through once: a dead collector has some for each attempt, and what is lost is counted."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        is_new = record.msg not in self._said
        self._said.add(record.msg)
        return is_new
