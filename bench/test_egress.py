"""What the egress proxy costs: bulk through a tunnel against a direct connection, new tunnels against proxy.py, memory.

Client, proxy and origin are processes of their own, joined by TCP on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from bench.egress_ends import connect
from bench.egress_proxies import Proxy, egress_proxy, listener, port_of, proxy_py
from bench.ratios import Ratios, in_turn, median_ratio
from fastclaw.linux.own_process import raise_file_limit

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

BULK_BYTES = 2 << 30
CHECKED_BYTES = 128 << 20
BULK_ROUNDS = 7
TUNNELS = 4_000
TUNNEL_ROUNDS = 5
IDLE = 2_000
ALLOWED_KB = 30
PER_CORE = 3_000
DEADLINE_S = 120


def role(name: str, *arguments: int, listening: socket.socket | None = None) -> subprocess.Popen[bytes]:
    """One end as a process; a listener comes as its first argument."""
    inherited = [] if listening is None else [listening.fileno()]
    command = [sys.executable, "-m", "bench.egress_ends", name, *map(str, [*inherited, *arguments])]
    return subprocess.Popen(command, pass_fds=inherited, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    found: dict[str, Any] = orjson.loads(output) if output else {}
    return found


def fetched(proxy: Proxy | None, sock: socket.socket, total: int, check: int = 0) -> dict[str, Any]:
    """Bulk from the origin to the client."""
    origin = role("serve", total, listening=sock)
    client = role("fetch", port_of(sock), proxy.port if proxy else 0, total, check)
    finish(origin)
    return finish(client)


def pushed(proxy: Proxy | None, sock: socket.socket, total: int, check: int = 0) -> dict[str, Any]:
    """Bulk from the client to the origin."""
    origin = role("take", total, check, listening=sock)
    client = role("push", port_of(sock), proxy.port if proxy else 0, total)
    finish(client)
    return finish(origin)


@pytest.mark.parametrize(
    ("way", "name"), [(fetched, "CONNECT tunnel bulk"), (pushed, "CONNECT tunnel bulk, upload")], ids=["down", "up"]
)
def test_bulk(benchmark: BenchmarkFixture, ratios: Ratios, way: Any, name: str) -> None:
    direct: list[float] = []
    tunnelled: list[float] = []
    with listener() as sock, egress_proxy(port_of(sock)) as proxy:

        def measure(through: Proxy | None, seconds: list[float]) -> None:
            found = way(through, sock, BULK_BYTES)
            assert found["count"] == BULK_BYTES
            seconds.append(found["seconds"])

        for through in (None, proxy):
            assert way(through, sock, CHECKED_BYTES, 1)["right"]
        before = proxy.cpu_seconds()
        in_turn(benchmark, lambda: measure(proxy, tunnelled), lambda: measure(None, direct), BULK_ROUNDS)
        cpu = (proxy.cpu_seconds() - before) / (len(tunnelled) * BULK_BYTES) * 1e9
    ratios.ratio(f"{name} / direct connection", median_ratio(direct, tunnelled))
    rates = [f"{BULK_BYTES / statistics.median(times) / 1e9:.2f} GB/s" for times in (tunnelled, direct)]
    ratios.fact(name, f"{rates[0]}, {cpu:.3f} CPU-s/GB (direct: {rates[1]})")


@contextlib.contextmanager
def echo_origin() -> Iterator[int]:
    """Its port."""
    with listener() as sock:
        process = role("echo", listening=sock)
        try:
            yield port_of(sock)
        finally:
            process.kill()
            process.communicate()


class Dialled:
    """What opening tunnels through one proxy took, round by round."""

    def __init__(self, proxy: Proxy, origin: int) -> None:
        self._proxy = proxy
        self._origin = origin
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def measure(self) -> None:
        before = self._proxy.cpu_seconds()
        self.seconds.append(finish(role("dial", self._origin, self._proxy.port, TUNNELS))["seconds"])
        self.cpu_seconds.append(self._proxy.cpu_seconds() - before)

    def told(self) -> str:
        per_s, per_cpu_s = (TUNNELS / statistics.median(times) for times in (self.seconds, self.cpu_seconds))
        return f"{per_s:.0f}/s, {per_cpu_s:.0f} per CPU-second of the proxy"


def test_new_tunnels(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    with echo_origin() as origin, egress_proxy(origin) as our_proxy, proxy_py() as rival:
        ours, theirs = Dialled(our_proxy, origin), Dialled(rival, origin)
        in_turn(benchmark, ours.measure, theirs.measure, TUNNEL_ROUNDS)
    ratios.ratio("new CONNECT tunnels / proxy.py", median_ratio(theirs.seconds, ours.seconds))
    ratios.ratio("new CONNECT tunnels per CPU-second / proxy.py", median_ratio(theirs.cpu_seconds, ours.cpu_seconds))
    per_core = statistics.median(TUNNELS / spent for spent in ours.cpu_seconds)
    ratios.ratio(f"new CONNECT tunnels per CPU-second / {PER_CORE}", per_core / PER_CORE)
    ratios.fact("new CONNECT tunnels", f"{ours.told()} (proxy.py: {theirs.told()})")


def test_idle_tunnels(ratios: Ratios) -> None:
    raise_file_limit()
    with echo_origin() as origin, egress_proxy(origin) as proxy, contextlib.ExitStack() as held:
        connect(origin, proxy.port).close()
        before = proxy.resident_kb()
        tunnels = [held.enter_context(connect(origin, proxy.port)) for _ in range(IDLE)]
        for sock in tunnels:  # each has been in use
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
        each = (proxy.resident_kb() - before) / IDLE
    ratios.ratio(f"allowed memory per idle tunnel ({ALLOWED_KB} KB) / used", ALLOWED_KB / each)
    ratios.fact(f"{IDLE} open idle tunnels", f"{each:.1f} KB each")
