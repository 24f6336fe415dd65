"""What the egress proxy costs: bulk through a tunnel against a direct connection, new tunnels against proxy.py, memory.

Client, proxy and origin are processes of their own, joined by TCP on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from bench.egress_ends import connect
from bench.egress_proxies import Proxy, egress_proxy, listener, port_of, proxy_py
from bench.ratios import Pairs, Ratios, compare_told
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
    with listener() as sock, egress_proxy(port_of(sock)) as proxy:

        def measure(through: Proxy | None) -> float:
            told = way(through, sock, BULK_BYTES)
            assert told["count"] == BULK_BYTES
            return float(told["seconds"])

        for through in (None, proxy):
            assert way(through, sock, CHECKED_BYTES, 1)["right"]
        before = proxy.cpu_seconds()
        found = compare_told(benchmark, lambda: measure(proxy), {"direct": lambda: measure(None)}, BULK_ROUNDS)
        cpu = (proxy.cpu_seconds() - before) / ((BULK_ROUNDS + 1) * BULK_BYTES) * 1e9
    ratios.compared(name, "direct connection", found.rates("direct", BULK_BYTES / 1e9, unit="GB/s"))
    ratios.figure(f"{name}, processor", [cpu], "s/GB")


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
    """Opening tunnels through one proxy, and how many it opened for a second of its processor time, round by round."""

    def __init__(self, proxy: Proxy, origin: int) -> None:
        self._proxy = proxy
        self._origin = origin
        self.per_cpu_s: list[float] = []

    def measure(self) -> float:
        before = self._proxy.cpu_seconds()
        seconds = finish(role("dial", self._origin, self._proxy.port, TUNNELS))["seconds"]
        self.per_cpu_s.append(TUNNELS / (self._proxy.cpu_seconds() - before))
        return float(seconds)


def test_new_tunnels(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    with echo_origin() as origin, egress_proxy(origin) as our_proxy, proxy_py() as rival:
        ours, theirs = Dialled(our_proxy, origin), Dialled(rival, origin)
        found = compare_told(benchmark, ours.measure, {"proxy.py": theirs.measure}, TUNNEL_ROUNDS)
    per_cpu_s = Pairs("/s", ours.per_cpu_s[1:], theirs.per_cpu_s[1:], found.at)
    ratios.compared("new CONNECT tunnels", "proxy.py", found.rates("proxy.py", TUNNELS))
    ratios.compared("new CONNECT tunnels per CPU-second", "proxy.py", per_cpu_s)
    ratios.allowed(f"new CONNECT tunnels per CPU-second / {PER_CORE}", [rate / PER_CORE for rate in per_cpu_s.ours])


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
    ratios.allowed(f"allowed memory per idle tunnel ({ALLOWED_KB} KB) / used", [ALLOWED_KB / each])
    ratios.figure(f"each of {IDLE} open idle tunnels", [each], "KB")
