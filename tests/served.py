"""`fastclaw serve` as a real child, driven by blocking calls with deadlines."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator

DEADLINE_S = 30


def serve_command(runtime: str = "memory", *options: str) -> list[str]:
    """argv of a served runtime."""
    return [sys.executable, "-m", "fastclaw", "serve", "--runtime", runtime, *options]


class Served:
    """A child with both ends of its stdio in our hands; its stderr goes to a file.

    Attributes:
        answers: by id, as they came.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
            )
        self.answers: dict[Any, Any] = {}
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_input()
        try:
            self.child.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait(DEADLINE_S)
            raise
        finally:
            assert self.child.stdout is not None
            self.child.stdout.close()

    @property
    def input_fd(self) -> int:
        """Write end of its stdin."""
        assert self.child.stdin is not None
        return self.child.stdin.fileno()

    @property
    def output_fd(self) -> int:
        """Read end of its stdout."""
        assert self.child.stdout is not None
        return self.child.stdout.fileno()

    def send(self, data: bytes) -> None:
        """All of it, reading answers meanwhile so that neither side waits for the other."""
        os.set_blocking(self.input_fd, False)
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select([self.output_fd], [self.input_fd], [], DEADLINE_S)
            assert readable or writable, "the runtime neither reads nor writes"
            if readable:
                self._read()
            if writable:
                view = view[os.write(self.input_fd, view) :]

    def post(self, method: str, request_id: Any, **params: Any) -> None:
        """One request."""
        self.send(line(method, request_id, **params))

    def call(self, method: str, request_id: Any = "call", **params: Any) -> Any:
        """One request and its answer."""
        self.answers.pop(request_id, None)
        self.post(method, request_id, **params)
        return self.answer(request_id)

    def answer(self, request_id: Any) -> Any:
        """The answer with this id, once it has come."""
        self.until(lambda: request_id in self.answers)
        return self.answers[request_id]

    def until(self, condition: Any) -> None:
        """Read answers until `condition()`."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            readable, _, _ = select.select([self.output_fd], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"no answer; its log: {self.log.read_text()}"
            assert self._read(), f"it ended; its log: {self.log.read_text()}"

    def _read(self) -> bool:
        data = os.read(self.output_fd, 1 << 20)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for text in lines:
            message = orjson.loads(text)
            self.answers[message["id"]] = message
        return bool(data)

    def initialize(self, **options: Any) -> Any:
        """Bring it up."""
        answer = self.call("initialize", "initialize", namespace="test", options=options)
        assert "result" in answer, answer
        return answer["result"]

    def exec(self, *cmd: str, request_id: Any = "exec", **fields: Any) -> Any:
        """Start a process."""
        answer = self.call("exec", request_id, cmd=[*cmd], **fields)
        assert "result" in answer, answer
        return answer["result"]

    def end_input(self) -> None:
        """EOF on its stdin."""
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()

    def exit_code(self, timeout_s: float = DEADLINE_S) -> int:
        """Read to the end of its stdout, then its exit code."""
        deadline = time.monotonic() + timeout_s
        while True:
            readable, _, _ = select.select([self.output_fd], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"it does not end; its log: {self.log.read_text()}"
            if not self._read():
                return self.child.wait(max(0.1, deadline - time.monotonic()))

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to it."""
        self.child.send_signal(signum)


def line(method: str, request_id: Any, **params: Any) -> bytes:
    """One request."""
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}) + b"\n"


def marked_processes(mark: str) -> list[int]:
    """Processes with `mark` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def resident_bytes(pid: int) -> int:
    """Memory that a process holds (proc_pid_statm(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def served(tmp_path: Path, runtime: str = "memory", *options: str) -> Iterator[Served]:
    """For fixtures."""
    with Served(serve_command(runtime, *options), tmp_path / "log") as child:
        yield child
