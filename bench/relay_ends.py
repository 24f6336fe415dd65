"""The processes at both ends of a stream and the one in between, each started as a program of its own.

    python -m bench.relay_ends write FD BYTES       sends a known pattern
    python -m bench.relay_ends read FD BYTES CHECK  reads to the end; CHECK 1 looks at every byte
    python -m bench.relay_ends relay IN OUT …       joins each pair of descriptors, as production does
    python -m bench.relay_ends echo IN OUT          sends back what comes
    python -m bench.relay_ends ping FD COUNT        measures round trips

What one measured it prints as a line of JSON.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

from fastclaw import limits
from fastclaw.transport import loop
from fastclaw.transport.relay import Relay
from fastclaw.transport.splice import mover

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_BYTES = 64 * limits.KIB
"""One read or write: what a pipe holds, and what fastclaw.client asks for."""

PATTERN = bytes(range(256)) * (BLOCK_BYTES // 256)
SOURCE_BYTES = 64 * limits.MIB
"""The writer goes round in so much memory: what a process has to say does not come from the CPU's cache."""

PING = bytes(range(200))
WARM_UP = 200


def report(**found: Any) -> None:
    sys.stdout.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE).decode())


def write(fd: int, total: int) -> None:
    source = memoryview(PATTERN * (SOURCE_BYTES // BLOCK_BYTES))
    written = 0
    while written < total:
        at = written % SOURCE_BYTES
        written += os.write(fd, source[at : at + min(BLOCK_BYTES, total - written)])


def read(fd: int, total: int, check: int) -> None:
    """Measures from the first byte, when everybody is up and running, to the end."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    count = os.readv(fd, [buffer])
    began = time.perf_counter()
    right = buffer[:count] == PATTERN[:count]
    while size := os.readv(fd, [buffer]):
        if check:
            right = right and buffer[:size] == (PATTERN + PATTERN)[count % 256 :][:size]
        count += size
    report(seconds=time.perf_counter() - began, count=count, right=right and count == total)


def relay(*descriptors: int) -> None:
    began = cpu_seconds()
    loop.run(_relay(list(zip(descriptors[::2], descriptors[1::2], strict=True))))
    report(cpu_seconds=cpu_seconds() - began)


async def _relay(pairs: list[tuple[int, int]]) -> None:
    ended = [asyncio.get_running_loop().create_future() for _ in pairs]
    relays = [_start(source, target, future) for (source, target), future in zip(pairs, ended, strict=True)]
    await asyncio.gather(*ended)
    del relays


def _start(source: int, target: int, ended: asyncio.Future[None]) -> Relay:
    def on_end(error: OSError | None) -> None:
        # A stream that ended is closed at once, so that the reader sees it; the ping-pong's is a socket both ways.
        if is_pipe(target):
            os.close(target)
        else:
            with socket.socket(fileno=os.dup(target)) as stream:
                stream.shutdown(socket.SHUT_WR)
        ended.set_result(None)

    os.set_blocking(source, False)
    os.set_blocking(target, False)
    started = Relay(source, target, source if is_pipe(source) else target, mover(), on_end)
    started.start()
    return started


def is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def echo(source: int, target: int) -> None:
    while data := os.read(source, BLOCK_BYTES):
        os.write(target, data)


def ping(fd: int, count: int) -> None:
    times = [_round_trip(fd) for _ in range(count + WARM_UP)][WARM_UP:]
    times.sort()
    report(p50_us=times[count // 2] * 1e6, p99_us=times[count * 99 // 100] * 1e6)


def _round_trip(fd: int) -> float:
    began = time.perf_counter()
    os.write(fd, PING)
    answer = os.read(fd, BLOCK_BYTES)
    took = time.perf_counter() - began
    while len(answer) < len(PING):
        answer += os.read(fd, BLOCK_BYTES)
    assert answer == PING
    return took


ROLES: dict[str, Callable[..., None]] = {"write": write, "read": read, "relay": relay, "echo": echo, "ping": ping}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*map(int, sys.argv[2:]))
