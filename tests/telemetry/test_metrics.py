"""The endpoint for Prometheus: of a real runtime, by the parser of prometheus_client; and of who is up to no good."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastclaw import __version__, telemetry_limits
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.telemetry.metrics import MetricsEndpoint, parse
from tests.served import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def asked(address: str | tuple[str, int], request: bytes = GET) -> bytes:
    """All that is answered, to its end."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(20)
        client.connect(address)
        client.sendall(request)
        answer = b""
        while data := client.recv(65_536):
            answer += data
    return answer


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_a_runtime_tells_what_it_counts(tmp_path: Path, short_dir: Path) -> None:
    path = str(short_dir / "metrics")
    for runtime in served(tmp_path, "local"):
        runtime.initialize(metrics=path)
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        assert runtime.call("health")["result"]["details"]["metrics"] == {"address": path}
        for _ in range(5):
            runtime.call("run", cmd=["true"])
        runtime.call("run", cmd=["no-such-program"])
        runtime.exec("cat")
        found = samples(asked(path))
        runtime.end_input()
        assert runtime.exit_code() == 0
    assert not Path(path).exists()
    assert found["fastclaw_execs_total", (("method", "run"), ("reason", "exited"))] == 5
    assert found["fastclaw_execs_total", (("method", "run"), ("reason", "not_found"))] == 1
    assert found["fastclaw_environments", (("state", "running"),)] == 1
    assert (found["fastclaw_processes", ()], found["fastclaw_queue_length", ()]) == (1, 0)
    assert found["fastclaw_build_info", (("version", __version__),)] == 1
    labels = (("lane", "spawn"), ("method", "run"), ("stage", "started"))
    assert found["fastclaw_exec_duration_seconds_count", labels] == 5
    assert 0 < found["fastclaw_exec_duration_seconds_sum", labels] < 5 * 20
    bucket = "fastclaw_exec_duration_seconds_bucket"
    upto = [value for (name, of), value in found.items() if name == bucket and {*labels} < {*of}]
    assert upto == sorted(upto)
    assert upto[-1] == 5
    ready = (("lane", "local"), ("stage", "ready"))
    assert found["fastclaw_environment_start_duration_seconds_count", ready] == 1


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for runtime in served(tmp_path, "local"):
            error = runtime.call("initialize", namespace="n", options={"metrics": place})["error"]
            assert error["data"]["reason"] == "io_error"
            told = f"options.metrics: cannot listen at {place}: Address already in use; take another place"
            assert error["message"] == f"start failed: {told}"
            too_long = "/" + "s" * 200
            error = runtime.call("initialize", namespace="n", options={"metrics": too_long})["error"]
            assert error["message"].endswith(f"{too_long}: AF_UNIX path too long; take another place")
            runtime.initialize(metrics="127.0.0.1:0")
            host, _, port = runtime.call("health")["result"]["details"]["metrics"]["address"].rpartition(":")
            assert samples(asked((host, int(port))))["fastclaw_processes", ()] == 0


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("/run/x", "/run/x"),
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:0", ("::1", 0)),
        ("127.1.2.3:1", ("127.1.2.3", 1)),
    ],
)
def test_a_path_or_a_loopback_address(address: str, where: Any) -> None:
    assert parse(address) == where


@pytest.mark.parametrize(
    "address",
    ["", "x", "9464", "0.0.0.0:9464", "192.0.2.1:1", "localhost:9464", "127.0.0.1:65536", "127.0.0.1:-1", "::1"],
)
def test_nothing_else_is_taken(address: str) -> None:
    with pytest.raises(InvalidParams, match=r"\$\.options\.metrics"):
        parse(address)


@pytest.fixture
async def endpoint(short_dir: Path) -> AsyncIterator[MetricsEndpoint]:
    one = await MetricsEndpoint.open(str(short_dir / "m"), lambda accepted: (b"all of it\n", "text/plain"))
    yield one
    await one.aclose()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"HEAD /metrics HTTP/1.1", b"200"),
        (b"GET /metrics?a=b HTTP/1.0", b"200"),
    ],
)
async def test_other_requests(endpoint: MetricsEndpoint, request_line: bytes, status: bytes) -> None:
    answer = await asyncio.to_thread(asked, endpoint.address, request_line + b"\r\nHost: x\r\n\r\n")
    assert answer.split()[1] == status
    assert answer.endswith(b"all of it\n") == (status == b"200" and not request_line.startswith(b"HEAD"))


@pytest.mark.parametrize(
    "nonsense", [b"\0\0\0\r\n\r\n", b"x" * 2 * telemetry_limits.METRICS_REQUEST_BYTES, b"GET /metrics HTTP/1.1\r\n\r\n"]
)
async def test_nonsense_is_disconnected(endpoint: MetricsEndpoint, nonsense: bytes) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        assert await asyncio.to_thread(asked, endpoint.address, nonsense) == b""
    assert b"all of it" in await asyncio.to_thread(asked, endpoint.address)


async def test_who_says_nothing_is_disconnected_and_too_many_are_turned_away(
    endpoint: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_limits, "METRICS_MS", 300)
    silent = [await asyncio.open_unix_connection(endpoint.address) for _ in range(telemetry_limits.METRICS_CLIENTS)]
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            assert await asyncio.to_thread(asked, endpoint.address) == b"", "there is no room"
        for reader, writer in silent:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
    assert b"all of it" in await asyncio.to_thread(asked, endpoint.address)


async def test_a_dead_socket_is_replaced_and_nothing_else_is(short_dir: Path) -> None:
    path = short_dir / "m"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    one = await MetricsEndpoint.open(str(path), lambda accepted: (b"", ""))
    with pytest.raises(StartFailed, match="Address already in use"):
        await MetricsEndpoint.open(str(path), lambda accepted: (b"", ""))
    await one.aclose()
    await one.aclose()
    path.write_text("mine")
    with pytest.raises(StartFailed):
        await MetricsEndpoint.open(str(path), lambda accepted: (b"", ""))
    assert path.read_text() == "mine"
