"""The egress proxy as production starts it, and a rival, each as processes of their own with a port on 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.egress_ends import HOST
from bench.processes import cpu_seconds, resident_kb
from fastclaw import network_limits
from fastclaw.linux import proc
from fastclaw.network.egress import proxy_frames as frames
from fastclaw.network.egress.accounting import Counters

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKLOG = 4_096
MANY = 1_000_000
DEADLINE_S = 30


class Proxy(NamedTuple):
    """Where it listens, and its processes.

    Parameters:
        pid: of the first; the others are its children.
    """

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """What all of them have used, without those that have ended."""
        return sum(map(cpu_seconds, self._pids()))

    def resident_kb(self) -> int:
        """What they have in memory."""
        return sum(map(resident_kb, self._pids()))

    def _pids(self) -> list[int]:
        return [self.pid, *(pid for pid, _ in proc.children(self.pid))]


def listener() -> socket.socket:
    """On a port of the kernel's choice."""
    return socket.create_server((HOST, 0), backlog=BACKLOG)


def port_of(sock: socket.socket) -> int:
    """Where it listens."""
    port: int = sock.getsockname()[1]
    return port


@contextlib.contextmanager
def egress_proxy(*origins: int) -> Iterator[Proxy]:
    """Ours, which lets everybody connect to these ports of this machine."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "fastclaw.network.egress.proxy_main", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        with ours, listener() as sock:
            ours.settimeout(DEADLINE_S)
            _configure(ours, _config(origins))
            socket.send_fds(ours, [frames.encode(frames.Listen(environment=1, id=1, role="proxy"))], [sock.fileno()])
            frames.parse_report(ours.recv(network_limits.EGRESS_FRAME_BYTES))
            yield Proxy(port_of(sock), process.pid)
    finally:
        process.wait(DEADLINE_S)


def _config(origins: tuple[int, ...]) -> frames.EgressConfig:
    return frames.EgressConfig(
        allow=[f"{HOST}/32:{port}" for port in origins],
        deny=[],
        inject=[],
        log=None,
        log_max_bytes=network_limits.EGRESS_LOG_BYTES,
        max_connections=MANY,
        max_connections_per_s=MANY,
        max_bytes=None,
        idle_timeout_ms=network_limits.EGRESS_IDLE_MS,
        connect_timeout_ms=network_limits.EGRESS_CONNECT_MS,
    )


def _configure(control: socket.socket, config: frames.EgressConfig) -> None:
    counters = Counters.create()
    file = os.memfd_create("config", os.MFD_CLOEXEC)
    try:
        os.write(file, frames.encode(config))
        os.lseek(file, 0, os.SEEK_SET)
        socket.send_fds(control, [frames.encode(frames.Open(1))], [file, counters.fd])
    finally:
        os.close(file)
        counters.close()


@contextlib.contextmanager
def proxy_py() -> Iterator[Proxy]:
    """The rival, on one core as ours is: its quickest way (bench/test_egress.py)."""
    with tempfile.TemporaryDirectory() as directory:
        port_file = Path(directory, "port")
        command = [sys.executable, "-m", "proxy", "--hostname", HOST, "--port", "0", "--port-file", str(port_file)]
        command += ["--num-acceptors", "1", "--num-workers", "1", "--backlog", str(BACKLOG), "--log-level", "ERROR"]
        process = subprocess.Popen(command)
        try:
            yield Proxy(_read_port(port_file), process.pid)
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def _read_port(file: Path) -> int:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(file.read_text())
        time.sleep(0.01)  # it tells nobody
    raise TimeoutError("proxy.py did not start")
