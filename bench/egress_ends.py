"""The processes at both ends of a connection through the egress proxy, each started as a program of its own.

    python -m bench.egress_ends serve LISTENER BYTES              sends a known pattern to who connects
    python -m bench.egress_ends fetch ORIGIN PROXY BYTES CHECK    reads it; PROXY is a port, 0 for a direct connection
    python -m bench.egress_ends take LISTENER BYTES CHECK         reads what comes
    python -m bench.egress_ends push ORIGIN PROXY BYTES           sends it
    python -m bench.egress_ends echo LISTENER                     sends back what comes, to everybody
    python -m bench.egress_ends dial ORIGIN PROXY COUNT           opens so many tunnels, a word through each

All on 127.0.0.1. What one measured it prints as a line of JSON.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

from fastclaw import limits
from fastclaw.linux.own_process import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
AT_ONCE = 50
"""Tunnels of `dial` that are open at the same time."""

WORD = b"hello"
HEAD_END = b"\r\n\r\n"
HEAD_BYTES = 4096
BLOCK_BYTES = 64 * limits.KIB
"""One read or write."""

PATTERN = bytes(range(256)) * (BLOCK_BYTES // 256)
SOURCE_BYTES = 64 * limits.MIB
"""The writer goes round in so much memory: what somebody has to say does not come from the CPU's cache."""


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


def connect(origin: int, proxy: int) -> socket.socket:
    """A connection to a port: a tunnel of the proxy, or a direct one when `proxy` is 0."""
    sock = socket.create_connection((HOST, proxy or origin))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if proxy:
        ask(sock, origin)
        established(sock)
    return sock


def ask(sock: socket.socket, origin: int) -> None:
    sock.sendall(f"CONNECT {HOST}:{origin} HTTP/1.1\r\nHost: {HOST}:{origin}\r\n\r\n".encode())


def established(sock: socket.socket) -> None:
    """Read the answer's head, and nothing after it.

    Raises:
        ConnectionError: it is a refusal.
    """
    head = b""
    while HEAD_END not in head:  # all of it comes at once
        head = sock.recv(HEAD_BYTES, socket.MSG_PEEK)
        if not head:
            raise ConnectionError("the proxy closed the connection")
    sock.recv(head.index(HEAD_END) + len(HEAD_END))
    if b" 200 " not in head.partition(b"\n")[0]:
        raise ConnectionError(head.decode())


def accepted(listener: int) -> socket.socket:
    with socket.socket(fileno=listener) as listening:
        return listening.accept()[0]


def serve(listener: int, total: int) -> None:
    with accepted(listener) as sock:
        write(sock.fileno(), total)


def fetch(origin: int, proxy: int, total: int, check: int) -> None:
    with connect(origin, proxy) as sock:
        read(sock.fileno(), total, check)


def take(listener: int, total: int, check: int) -> None:
    with accepted(listener) as sock:
        read(sock.fileno(), total, check)


def push(origin: int, proxy: int, total: int) -> None:
    with connect(origin, proxy) as sock:
        write(sock.fileno(), total)


def echo(listener: int) -> None:
    """Until it is killed."""
    raise_file_limit()
    listening = socket.socket(fileno=listener)
    open_ones: dict[int, socket.socket] = {}
    epoll = select.epoll()
    epoll.register(listening, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            if fd == listening.fileno():
                sock = listening.accept()[0]
                open_ones[sock.fileno()] = sock
                epoll.register(sock, select.EPOLLIN)
            elif data := _received(open_ones[fd]):
                open_ones[fd].sendall(data)
            else:
                open_ones.pop(fd).close()


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""


def dial(origin: int, proxy: int, count: int) -> None:
    began = time.perf_counter()
    for _ in range(0, count, AT_ONCE):
        _dial_some(origin, proxy)
    report(seconds=time.perf_counter() - began)


def _dial_some(origin: int, proxy: int) -> None:
    """Each step for all of them before the next: nobody waits for this process."""
    socks = [socket.create_connection((HOST, proxy)) for _ in range(AT_ONCE)]
    for sock in socks:
        ask(sock, origin)
    for sock in socks:
        established(sock)
        sock.sendall(WORD)
    for sock in socks:
        answer = sock.recv(len(WORD), socket.MSG_WAITALL)
        if answer != WORD:
            raise ConnectionError(f"{answer!r} came back")
        sock.close()


ROLES: dict[str, Callable[..., None]] = {
    "serve": serve, "fetch": fetch, "take": take, "push": push, "echo": echo, "dial": dial,
}  # fmt: skip

if __name__ == "__main__":
    ROLES[sys.argv[1]](*map(int, sys.argv[2:]))
