"""One command's stream with a client at its end, both in C: directly joined, or through a served runtime."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from bench.processes import cpu_seconds, descendants, runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.lean_client import LeanClient
    from bench.programs import Programs

DEADLINE_S = 60


class Bulk(NamedTuple):
    """What reading a known number of bytes took.

    Parameters:
        runtime_cpu: seconds of processor time of the runtime itself meanwhile.
        beside_cpu: the same of everything below it that is not the command.
    """

    seconds: float
    right: bool
    runtime_cpu: float = 0.0
    beside_cpu: float = 0.0


class Reader:
    """The reading end: connected, and waiting for a word to begin. The stream stays open until `close`."""

    def __init__(self, programs: Programs, end: str | int, total: int, *, check: bool) -> None:
        command = [programs.path("stream_ends"), "read", str(end), str(total), str(int(check))]
        fds = (end,) if isinstance(end, int) else ()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=fds
        )
        assert self._line() == b"ready\n"

    def read(self) -> dict[str, Any]:
        """All of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        found: dict[str, Any] = orjson.loads(self._line())
        return found

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        """Leave."""
        self._process.communicate(timeout=DEADLINE_S)
        assert self._process.returncode == 0


class Streams:
    """Ways to join a command with its client.

    Parameters:
        client: of a runtime on this host, with nothing else going on.
    """

    def __init__(self, programs: Programs, client: LeanClient) -> None:
        self._programs, self._client = programs, client
        self._work = programs.path("work")

    def bulk_direct(self, total: int, *, check: bool = False) -> Bulk:
        """What a command gets at most that writes to a pipe, as the contract has it: nobody in between.

        A pipe as the kernel makes it, of 64 KiB: a larger one is no faster (2 cores, Linux 6.18; 16 KiB are slower).
        """
        stdout, theirs = os.pipe()
        with self._command("flood", str(total), stdin=subprocess.PIPE, stdout=theirs):
            os.close(theirs)
            with contextlib.closing(Reader(self._programs, stdout, total, check=check)) as reader:
                os.close(stdout)
                return Bulk(**reader.read())

    def bulk_relayed(self, total: int, *, check: bool = False) -> Bulk:
        """Through the runtime. What it used is read while command and client are there: an ended task tells nothing."""
        (result,) = self._client.start([self._work, "flood", str(total)], 1)
        with contextlib.closing(Reader(self._programs, result["stdio_addr"], total, check=check)) as reader:
            self._client.call("health")  # the connection was accepted before it
            before = self._used()
            found = reader.read()
            after = self._used()
        return Bulk(**found, runtime_cpu=after[0] - before[0], beside_cpu=after[1] - before[1])

    def _used(self) -> tuple[float, float]:
        own = self._client.process.pid
        beside = [pid for pid in descendants(own) if not runs(pid, self._work)]
        return cpu_seconds(own), sum(map(cpu_seconds, beside))

    def ping_direct(self, count: int) -> dict[str, float]:
        """The command's stdin and stdout are one end of a socketpair, the client has the other."""
        ours, theirs = socket.socketpair()
        with theirs, self._command("cat", stdin=theirs, stdout=theirs), ours:
            return self._ping(ours.fileno(), count, (ours.fileno(),))

    def ping_relayed(self, count: int) -> dict[str, float]:
        """The command has pipes, the client its socket. The command ends when the client leaves."""
        (result,) = self._client.start([self._work, "cat"], 1)
        return self._ping(result["stdio_addr"], count)

    def _ping(self, end: str | int, count: int, fds: tuple[int, ...] = ()) -> dict[str, float]:
        return self._programs.measure("stream_ends", "ping", end, count, fds=fds)[0]

    @contextlib.contextmanager
    def _command(self, *words: str, stdin: Any, stdout: Any) -> Iterator[None]:
        """The command by itself; it ends when its stdin does."""
        process = subprocess.Popen([self._work, *words], stdin=stdin, stdout=stdout)
        try:
            yield
        finally:
            if process.stdin is not None:
                process.stdin.close()
        assert process.wait(DEADLINE_S) == 0
