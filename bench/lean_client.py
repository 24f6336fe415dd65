"""The least that a supervisor can do: exec, then wait, as raw lines over the stdio of a served runtime.

What a client of this package costs on top (connecting, streams, futures) is measured elsewhere; here it would hide what
the runtime costs. Where a client in Python would hide that too, rpc_client.c takes over its descriptors (bench.wire).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_READ_BYTES = 65_536
_END_S = 60


class LeanClient:
    """A served runtime of its own, up once it is made.

    Parameters:
        runtime: `local` or `podman`.
        options: of `initialize`.
    """

    def __init__(self, runtime: str, options: Mapping[str, Any]) -> None:
        command = [sys.executable, "-m", "fastclaw", "serve", "--runtime", runtime, "--log-level", "error"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._out, self._in = self.process.stdin, self.process.stdout
        self._rest = b""
        try:
            self.call("initialize", {"namespace": "bench", "options": dict(options)})
        except BaseException:
            self.end()
            raise

    @property
    def descriptors(self) -> tuple[int, int]:
        """The runtime's stdin and stdout, for a client in C that takes over while nothing is under way."""
        return self._out.fileno(), self._in.fileno()

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """One call, while nothing else is under way."""
        self._send([_request(0, method, params or {})])
        (answer,) = self._answers()
        return answer["result"]

    def start(self, cmd: Sequence[str], count: int, at_once: int = 64) -> list[dict[str, str]]:
        """Start processes that live on; the results of exec."""
        results: list[dict[str, str]] = []
        for first in range(0, count, at_once):
            batch = range(first, min(first + at_once, count))
            self._send([_request(number, "exec", {"cmd": list(cmd)}) for number in batch])
            missing = len(batch)
            while missing:
                answers = self._answers()
                results += [answer["result"] for answer in answers]
                missing -= len(answers)
        return results

    def run(self, cmd: Sequence[str], count: int, at_once: int, exit_code: int) -> None:
        """Start `count` commands, so many at once, and learn each one's exit code. Odd ids are exec, even ones wait."""
        request = orjson.dumps({"cmd": list(cmd), "stdin": False})
        started = min(at_once, count)
        self._send([_exec(2 * number + 1, request) for number in range(started)])
        done = 0
        while done < count:
            lines = []
            for answer in self._answers():
                if answer["id"] % 2:
                    lines.append(_request(answer["id"] + 1, "wait", {"process_id": answer["result"]["process_id"]}))
                    continue
                assert answer["result"]["exit_code"] == exit_code
                done += 1
                if started < count:
                    lines.append(_exec(2 * started + 1, request))
                    started += 1
            if lines:
                self._send(lines)

    def _send(self, lines: list[bytes]) -> None:
        data = memoryview(b"".join(lines))
        while data:
            data = data[os.write(self._out.fileno(), data) :]

    def _answers(self) -> list[dict[str, Any]]:
        """What one or more reads bring, up to the end of a line."""
        while not self._rest.endswith(b"\n"):
            data = os.read(self._in.fileno(), _READ_BYTES)
            if not data:
                raise ConnectionError("the runtime has ended")
            self._rest += data
        lines, self._rest = self._rest.splitlines(), b""
        return [orjson.loads(line) for line in lines]

    def end(self) -> None:
        """Without a word, for a runtime that does not answer as it should."""
        self.process.kill()
        self._out.close()
        self.process.wait(_END_S)
        self._in.close()

    def close(self) -> None:
        """EOF is a shutdown."""
        self._out.close()
        assert self.process.wait(_END_S) == 0
        self._in.close()


def connected(address: str) -> socket.socket:
    """A client of one of a process's sockets."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(_END_S)
    client.connect(address)
    return client


def _exec(number: int, params: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"method":"exec","params":%b}\n' % (number, params)


def _request(number: int, method: str, params: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + b"\n"
