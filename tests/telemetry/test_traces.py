"""Spans of real runtimes, as a collector gets them; and collectors that are dead, silent, or say no."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from fastclaw import __version__, telemetry_limits
from fastclaw.errors import InvalidParams
from fastclaw.stages import Flight, TraceContext
from fastclaw.telemetry import traces
from fastclaw.telemetry.traces import Traces, endpoint_of
from tests.served import served
from tests.telemetry.collector import Collector, now_ns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.served import Served

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACEPARENT", "TRACESTATE", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)


def told(runtime: Served, **params: Any) -> list[str]:
    """What a command has as its trace."""
    ran = runtime.call("run", cmd=["sh", "-c", 'echo "$TRACEPARENT,$TRACESTATE"'], **params)["result"]
    traceparent, tracestate = ran["stdout"].strip().split(",", 1)
    return [traceparent, tracestate]


def ended(runtime: Served) -> None:
    runtime.end_input()
    assert runtime.exit_code() == 0


def test_a_run_is_a_span_in_its_caller_s_trace_and_its_command_s_parent(tmp_path: Path, collector: Collector) -> None:
    before = now_ns()
    for runtime in served(tmp_path, "local"):
        runtime.initialize(traces=collector.endpoint)
        child, state = told(runtime, traceparent=PARENT, tracestate="a=b")
        ended(runtime)
    (one,) = collector.named("sh")
    assert one.ids[:2] == (TRACE, CALLER)
    assert (child, state) == (one.traceparent, "a=b")
    assert one.span.trace_state == "a=b"
    assert one.span.kind == Span.SPAN_KIND_CLIENT
    assert one.span.status.code == Status.STATUS_CODE_UNSET
    assert one.attributes == {
        "process.executable.name": "sh",
        "process.exit.code": 0,
        "fastclaw.method": "run",
        "fastclaw.lane": "spawn",
        "fastclaw.environment": "main",
        "fastclaw.process_id": one.attributes["fastclaw.process_id"],
    }
    names = [event.name for event in one.span.events]
    assert set(names) == {"admitted", "sent", "taken", "started", "first_byte", "exited", "gone", "answered"}
    times = [one.span.start_time_unix_nano, *(event.time_unix_nano for event in one.span.events)]
    assert times == sorted(times)
    assert one.span.end_time_unix_nano == times[-1]
    assert before < times[0] <= times[-1] < now_ns()
    assert (one.resource["service.name"], one.resource["service.version"]) == ("fastclaw", __version__)


def test_an_exec_s_span_ends_with_it_and_what_goes_wrong_is_an_error(tmp_path: Path, collector: Collector) -> None:
    for runtime in served(tmp_path, "local"):
        runtime.initialize(traces=collector.endpoint)
        process = runtime.exec("cat", traceparent=PARENT)["process_id"]
        runtime.call("kill", process_id=process, grace_ms=0)
        runtime.call("run", cmd=["sh", "-c", "exit 7"])
        runtime.call("run", cmd=["/bin/no-such-program"], traceparent=PARENT)
        runtime.call("run", cmd=["sleep", "30"], timeout_ms=50)
        ended(runtime)
    seen = {one.span.name: one for one in collector.spans}
    errors = {name: one.attributes["error.type"] for name, one in seen.items() if "error.type" in one.attributes}
    assert errors == {"cat": "killed", "sh": "7", "no-such-program": "not_found", "sleep": "timeout"}
    assert all(seen[name].span.status.code == Status.STATUS_CODE_ERROR for name in errors)
    codes = {name: one.attributes.get("process.exit.code") for name, one in seen.items()}
    assert codes == {"cat": None, "sh": 7, "no-such-program": None, "sleep": None, "environment_start": None}
    assert seen["cat"].attributes["fastclaw.method"] == "exec"
    assert seen["cat"].attributes["fastclaw.process_id"] == process
    assert {seen["cat"].ids[0], seen["no-such-program"].ids[0]} == {TRACE}
    assert seen["sh"].ids[1] == ""


def test_a_start_of_an_environment_is_a_span_and_is_handed_on_to_nobody(tmp_path: Path, collector: Collector) -> None:
    for runtime in served(tmp_path, "local"):
        runtime.initialize(traces=collector.endpoint)
        assert "result" in runtime.call("environment_start", environment="other", traceparent=PARENT)
        error = runtime.call("environment_start", environment="third", traceparent="00-0-0-0")["error"]
        child, _ = told(runtime, environment="other")
        ended(runtime)
    assert (error["code"], error["data"]["path"]) == (-32602, "$.traceparent")
    (of_it,) = [
        one for one in collector.named("environment_start") if one.attributes["fastclaw.environment"] == "other"
    ]
    assert of_it.ids[:2] == (TRACE, CALLER)
    assert of_it.span.kind == Span.SPAN_KIND_SERVER
    assert of_it.attributes == {
        "rpc.system.name": "jsonrpc",
        "rpc.method": "environment_start",
        "fastclaw.lane": "local",
        "fastclaw.environment": "other",
    }
    assert [event.name for event in of_it.span.events] == ["admitted", "made", "ready", "answered"]
    (of_run,) = collector.named("sh")
    assert child == of_run.traceparent
    assert of_run.ids[0] != TRACE


@pytest.mark.parametrize("names_its_trace", [True, False])
def test_two_hundred_at_once_have_their_own_parents(
    tmp_path: Path, collector: Collector, names_its_trace: bool
) -> None:
    count = 200
    parents = [f"00-{number:032x}-{number:016x}-01" for number in range(1, count + 1)]
    for runtime in served(tmp_path, "local"):
        runtime.initialize(traces=collector.endpoint)
        script = ["sh", "-c", "echo $TRACEPARENT"]
        for number, parent in enumerate(parents):
            params = {"traceparent": parent} if names_its_trace else {}
            runtime.post("run", number, cmd=script, **params)
        children = [runtime.answer(number)["result"]["stdout"].strip() for number in range(count)]
        ended(runtime)
    spans = {one.traceparent: one for one in collector.named("sh")}
    assert len(collector.named("sh")) == len(spans) == count
    assert set(children) == set(spans)
    if names_its_trace:
        assert [spans[child].ids[:2] for child in children] == [tuple(parent.split("-")[1:3]) for parent in parents]
    else:
        assert len({one.ids[0] for one in spans.values()}) == count


@pytest.mark.parametrize("traced", [True, False])
def test_what_its_caller_does_not_sample_is_no_span(tmp_path: Path, collector: Collector, traced: bool) -> None:
    parent = PARENT[:-1] + "0"
    for runtime in served(tmp_path, "local"):
        runtime.initialize(**({"traces": collector.endpoint} if traced else {}))
        assert told(runtime, traceparent=parent, tracestate="a=b") == [parent, "a=b"]
        if traced:
            runtime.call("run", cmd=["true"])
        else:
            assert told(runtime) == ["", ""]
            assert told(runtime, traceparent=PARENT) == [PARENT, ""]
        ended(runtime)
    assert len(collector.named("sh")) == 0
    assert len(collector.named("true")) == traced


def test_its_own_variables_configure_the_sdk(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.removesuffix("/v1/traces"))
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    for runtime in served(tmp_path, "local"):
        runtime.initialize(traces="env")
        runtime.call("run", cmd=["true"])
        collector.until(spans=2)  # while it runs
        ended(runtime)
    assert {one.resource["service.name"] for one in collector.spans} == {"mine"}
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    for runtime in served(tmp_path, "local"):
        runtime.initialize(traces="env")
        child, _ = told(runtime)
        assert child.endswith("-00")
        assert told(runtime, traceparent=PARENT)[0].startswith(f"00-{TRACE}-")
        ended(runtime)
    (one,) = collector.named("sh")
    assert one.ids[:2] == (TRACE, CALLER)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    for runtime in served(tmp_path, "local"):
        runtime.initialize(traces="env")
        assert told(runtime, traceparent=PARENT) == [PARENT, ""]
        ended(runtime)
    assert len(collector.named("sh")) == 1


def test_what_the_sdk_makes_nothing_of_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "many")
    for runtime in served(tmp_path, "local"):
        error = runtime.call("initialize", namespace="n", options={"traces": "env"})["error"]
        assert error["data"]["reason"] == "unsupported"
        assert "options.traces: " in error["message"]
        assert "many" in error["message"]
        ended(runtime)


# --- Collectors that are no use ---


def dead_endpoint() -> str:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces"


def test_a_dead_collector_holds_nobody_up_and_what_is_lost_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    for runtime in served(tmp_path, "local"):
        runtime.initialize(traces=dead_endpoint())
        for _ in range(20):
            assert runtime.call("run", cmd=["true"])["result"]["exit_code"] == 0
        began = time.monotonic()
        ended(runtime)
        assert time.monotonic() - began < telemetry_limits.TRACES_FLUSH_MS / 1000 + 3
        log = runtime.log.read_text()
    said = [line for line in log.splitlines() if "spans are lost" in line]
    assert said[-1].endswith("options.traces: 21 of 21 spans are lost")
    assert len(log.splitlines()) < 8, log


def test_a_collector_that_never_answers_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with Collector(answers=False) as silent:
        for runtime in served(tmp_path, "local"):
            runtime.initialize(traces=silent.endpoint)
            silent.until(requests=1)
            for _ in range(20):
                assert runtime.call("run", cmd=["true"])["result"]["exit_code"] == 0
            began = time.monotonic()
            ended(runtime)
            assert time.monotonic() - began < telemetry_limits.TRACES_FLUSH_MS / 1000 + 3
            assert "options.traces: 21 of 21 spans are lost" in runtime.log.read_text()


def test_one_that_refuses_is_counted_in_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with Collector(status=401) as strict:
        for runtime in served(tmp_path, "local"):
            runtime.initialize(traces=strict.endpoint)
            strict.until(requests=1)
            deadline = time.monotonic() + 20
            while not (health := runtime.call("health")["result"]["details"]["traces"])["lost"]:
                assert time.monotonic() < deadline
            assert health == {"endpoint": strict.endpoint, "sent": 0, "lost": 1}
            ended(runtime)
            assert "401" in runtime.log.read_text()


def a_flight(one: Traces, number: int = 1) -> Flight:
    """One that has begun."""
    flight = Flight(time.monotonic_ns())
    flight.ledger, flight.trace = one, TraceContext(f"00-{TRACE}-{number:016x}-01")
    one.began(flight, "true")
    return flight


async def test_more_than_there_is_room_for_is_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "20")
    said: list[str] = []
    with Collector(answers=False) as silent:
        one = Traces(silent.endpoint, "1", said.append)
        for number in range(1, 51):
            flight = a_flight(one, number)
            flight.end("exited")
            flight.answer()
        assert one.health() == {"endpoint": silent.endpoint, "sent": 0, "lost": 30}
        assert said == ["options.traces: spans are lost; health.details.traces says how many"]
        a_flight(one)  # is never answered
        monkeypatch.setattr(telemetry_limits, "TRACES_FLUSH_MS", 100)
        await one.aclose()
        assert said[1:] == ["options.traces: 51 of 51 spans are lost"]


async def test_a_clock_that_jumps_is_in_no_span(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    one = Traces(collector.endpoint, "1", print)
    flight = a_flight(one)
    flight.at[1:] = [flight.at[0] + 1_000 * stage for stage in range(1, 9)]
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3_600_000_000_000)
    flight.end("exited")
    await one.aclose()
    (span,) = collector.spans
    assert [event.time_unix_nano - span.span.start_time_unix_nano for event in span.span.events] == [
        1_000 * stage for stage in range(1, 9)
    ]
    assert real() - span.span.start_time_unix_nano >= 3_600_000_000_000


@given(st.text())
def test_a_name_is_one_that_a_collector_can_have(program: str) -> None:
    traces._shown(program + "\udc80").encode()
    assert len(traces._shown("x" * 9_000 + program)) <= telemetry_limits.TRACES_NAME_CHARACTERS


# --- The option ---


@pytest.mark.parametrize(
    "option",
    [
        "",
        "otlp",
        "127.0.0.1:4318",
        "ftp://x/",
        "http://",
        "http:///v1",
        "http://x:99999/",
        "http://x:0/",
        "http://a:b@x/",
    ],
)
def test_what_is_no_endpoint(option: str) -> None:
    with pytest.raises(InvalidParams, match=r"^\$\.options\.traces") as raised:
        endpoint_of(option)
    assert raised.value.data["path"] == "$.options.traces"


@pytest.mark.parametrize(
    "option", ["http://127.0.0.1:4318/v1/traces", "https://[::1]/x", "http://collector:4318/v1/traces"]
)
def test_an_endpoint(option: str) -> None:
    assert endpoint_of(option) == option
    assert endpoint_of("env") is None
