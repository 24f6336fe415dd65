"""What a relay between a process's pipe and a client's socket costs, against a socket between the two.

Writer, relay and reader are processes of their own, as in production.
"""

from __future__ import annotations

import fcntl
import os
import socket
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson

from bench.ratios import Ratios, in_turn, median_ratio
from fastclaw import limits

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

BULK_BYTES = 2 << 30
CHECKED_BYTES = 128 << 20
BULK_ROUNDS = 7
PINGS = 5_000
PING_ROUNDS = 5
DEADLINE_S = 60


def role(name: str, *arguments: int, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """One end as a process; of our descriptors it has `fds` only, and we have them no more once all are started."""
    command = [sys.executable, "-m", "bench.relay_ends", name, *map(str, arguments)]
    return subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    found: dict[str, Any] = orjson.loads(output) if output else {}
    return found


def close_all(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def socket_pair() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def bulk_direct(total: int, check: int = 0) -> dict[str, Any]:
    near, far = socket_pair()
    reader = role("read", far, total, check, fds=(far,))
    writer = role("write", near, total, fds=(near,))
    close_all(near, far)
    finish(writer)
    return finish(reader)


def bulk_pipe(total: int, check: int = 0) -> dict[str, Any]:
    """What a process gets at most that writes to a pipe, as the contract has it: nobody in between."""
    stdout, process_stdout = os.pipe()
    fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, limits.BULK_PIPE_BYTES)
    reader = role("read", stdout, total, check, fds=(stdout,))
    writer = role("write", process_stdout, total, fds=(process_stdout,))
    close_all(stdout, process_stdout)
    finish(writer)
    return finish(reader)


def bulk_relayed(total: int, check: int = 0) -> dict[str, Any]:
    stdout, process_stdout = os.pipe()
    near, far = socket_pair()
    reader = role("read", far, total, check, fds=(far,))
    relay = role("relay", stdout, near, fds=(stdout, near))
    writer = role("write", process_stdout, total, fds=(process_stdout,))
    close_all(stdout, process_stdout, near, far)
    finish(writer)
    return finish(reader) | finish(relay)


def ping_direct() -> dict[str, Any]:
    near, far = socket_pair()
    echo = role("echo", far, far, fds=(far,))
    pinger = role("ping", near, PINGS, fds=(near,))
    close_all(near, far)
    found = finish(pinger)
    finish(echo)
    return found


def ping_relayed() -> dict[str, Any]:
    """Client socket to stdin pipe, stdout pipe to client socket: both relays of a process, in one loop."""
    near, far = socket_pair()
    process_stdin, stdin = os.pipe()
    stdout, process_stdout = os.pipe()
    echo = role("echo", process_stdin, process_stdout, fds=(process_stdin, process_stdout))
    back = os.dup(near)
    relay = role("relay", near, stdin, stdout, back, fds=(near, stdin, stdout, back))
    pinger = role("ping", far, PINGS, fds=(far,))
    close_all(near, far, back, process_stdin, stdin, stdout, process_stdout)
    found = finish(pinger)
    finish(echo)
    return found | finish(relay)


def test_bulk(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    ways = {"direct socketpair": bulk_direct, "direct pipe": bulk_pipe, "relayed": bulk_relayed}
    assert all(way(CHECKED_BYTES, 1)["right"] for way in ways.values())
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}

    def measure(name: str) -> None:
        found[name].append(ways[name](BULK_BYTES))

    def measure_rivals() -> None:
        for name in ("direct socketpair", "direct pipe"):
            measure(name)

    in_turn(benchmark, lambda: measure("relayed"), measure_rivals, BULK_ROUNDS)
    assert all(one["count"] == BULK_BYTES for runs in found.values() for one in runs)
    seconds = {name: [one["seconds"] for one in runs] for name, runs in found.items()}
    for name in ("direct socketpair", "direct pipe"):
        ratios.ratio(f"relay bulk / {name}", median_ratio(seconds[name], seconds["relayed"]))
    rates = {name: f"{BULK_BYTES / statistics.median(times) / 1e9:.2f} GB/s" for name, times in seconds.items()}
    cpu = statistics.median(one["cpu_seconds"] for one in found["relayed"]) / BULK_BYTES * 1e9
    ratios.fact("relay bulk", f"{rates['relayed']}, {cpu:.3f} CPU-s/GB (direct: {rates['direct socketpair']})")


def test_ping_pong(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    direct: list[dict[str, Any]] = []
    relayed: list[dict[str, Any]] = []
    in_turn(benchmark, lambda: relayed.append(ping_relayed()), lambda: direct.append(ping_direct()), PING_ROUNDS)
    for name in ("p50_us", "p99_us"):
        values = [[found[name] for found in side] for side in (direct, relayed)]
        ratios.ratio(f"round trip of 200 bytes, {name[:3]}, relayed / direct socketpair", median_ratio(*values))
        ratios.fact(f"round trip of 200 bytes, {name[:3]}, relayed", f"{statistics.median(values[1]):.0f} µs")
