"""Splice each payload of the multiplexed stream, or read it in bulk and gather it into the pipe?

Prints throughput and CPU of both for Podman's frames of 8 KiB and for small ones; every byte that arrives is checked.
Splice needs two system calls per frame (header, payload), gathering two per read of many frames, and it copies.

Run: python bench/relay_frames.py
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

from fastclaw.engine.rest_lane.demux import HEADER_BYTES, Demultiplexer

if TYPE_CHECKING:
    from collections.abc import Callable

TOTAL_BYTES = 192 * 1024 * 1024
PIPE_BYTES = 1024 * 1024
PATTERN = bytes(range(256)) * 8192


def splice_frames(sock: socket.socket, pipe: int) -> None:
    """Header by recv, payload by splice, blocking: the best case for splice, with no event loop in between."""
    header = bytearray(HEADER_BYTES)
    while sock.recv_into(header, HEADER_BYTES, socket.MSG_WAITALL) == HEADER_BYTES:
        remaining = struct.unpack(">xxxxI", header)[0]
        while remaining:
            remaining -= os.splice(sock.fileno(), pipe, remaining)


def gather(read_bytes: int) -> Callable[[socket.socket, int], None]:
    """recv_into a reused buffer, one writev per read."""
    buffer = memoryview(bytearray(read_bytes))

    def relay(sock: socket.socket, pipe: int) -> None:
        demultiplexer = Demultiplexer()
        while size := sock.recv_into(buffer):
            slices = [payload for _, payload in demultiplexer.feed(buffer[:size])]
            total = sum(map(len, slices))
            written = os.writev(pipe, slices) if len(slices) <= 64 else os.write(pipe, b"".join(slices))
            if written < total:
                raise RuntimeError("a blocking pipe took less than all")

    return relay


def _feed(sock: socket.socket, payload_bytes: int, total: int) -> None:
    frame = struct.pack(">BxxxI", 1, payload_bytes) + PATTERN[:payload_bytes]
    block = frame * max(1, 65536 // len(frame))
    count = total // (payload_bytes * (len(block) // len(frame)))
    with sock:
        for _ in range(count):
            sock.sendall(block)


def _drain(pipe: int, counted: list[int]) -> None:
    """Read to the end; the payloads repeat 0..255, so every byte's value is known from its place."""
    count = 0
    while data := os.read(pipe, 1 << 20):
        phase = count % 256
        if data != PATTERN[phase : phase + len(data)]:
            break
        count += len(data)
    os.close(pipe)
    counted.append(count)


def measure(relay: Callable[[socket.socket, int], None], payload_bytes: int, total: int) -> tuple[float, float]:
    """MB/s and CPU-s/GB of one relay; the bytes are asserted."""
    engine, ours = socket.socketpair()
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    counted: list[int] = []
    feeder = threading.Thread(target=_feed, args=(engine, payload_bytes, total))
    drain = threading.Thread(target=_drain, args=(read_end, counted))
    began, cpu = time.perf_counter(), time.thread_time()
    feeder.start()
    drain.start()
    relay(ours, write_end)
    cpu = time.thread_time() - cpu
    os.close(write_end)
    drain.join()
    took = time.perf_counter() - began
    feeder.join()
    ours.close()
    per_block = payload_bytes * max(1, 65536 // (payload_bytes + HEADER_BYTES))
    if counted != [total // per_block * per_block]:
        raise AssertionError(f"bytes were lost or changed: {counted}")
    return counted[0] / took / 1e6, cpu / counted[0] * 1e9


def main() -> None:
    """Print the table."""
    ways = [("splice", splice_frames), ("gather 64 KiB", gather(65536)), ("gather 256 KiB", gather(262144))]
    sys.stdout.write(f"{'payload':>8}" + "".join(f"{name:>24}" for name, _ in ways) + "   (MB/s, CPU-s/GB)\n")
    for payload_bytes in (8192, 1024, 256):
        total = TOTAL_BYTES if payload_bytes == 8192 else TOTAL_BYTES // 4
        speeds = [measure(relay, payload_bytes, total) for _, relay in ways]
        sys.stdout.write(f"{payload_bytes:>8}" + "".join(f"{speed:>16.0f} {cpu:>7.2f}" for speed, cpu in speeds) + "\n")


if __name__ == "__main__":
    main()
