"""A runtime that does nothing, as a child process: what the generator takes for itself is measured against it.

Answers each call at once with what it must be, and reads of a request, which is always ours, no more than it needs. Its
processes have one socket, which gives back what comes, or greets. Standard library only, run by its path.
"""

import contextlib
import json
import os
import select
import socket
import tempfile

READ_BYTES = 65_536
HEAD_BYTES = 80
"""Of a request, within which its id and method are."""

OFFERED = ["run", "wait", "environments", "files"]
RECORD = {
    "process_id": "p",
    "state": "exited",
    "exit_code": 0,
    "signal": None,
    "reason": "exited",
    "timings": {},
    "usage": None,
}
RAN = {**RECORD, "stdout": "", "stderr": "", "dropped": {"stdout": 0, "stderr": 0}}


class Null:
    """The runtime, with its two sockets."""

    def __init__(self, directory: str) -> None:
        self._poll = select.epoll()
        self._poll.register(0, select.EPOLLIN)
        self._echo, self._greet = (self._listen(f"{directory}/{name}") for name in ("echo", "greet"))
        self._clients: dict[int, socket.socket] = {}
        self._held = bytearray()
        self._files: dict[bytes, bytes] = {}
        self._cat, self._hello = (self._process(one) for one in (self._echo, self._greet))
        self._fixed = {
            "run": json.dumps(RAN).encode(),
            "wait": json.dumps(RECORD).encode(),
            "initialize": json.dumps({"server": {"name": "null", "version": "0"}, "capabilities": OFFERED}).encode(),
            "health": b'{"status":"healthy"}',
            "environment_list": b'{"environments":[]}',
        }

    def _listen(self, path: str) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen(4096)
        self._poll.register(listening, select.EPOLLIN)
        return listening

    def _process(self, listening: socket.socket) -> bytes:
        path = listening.getsockname()
        return json.dumps({"process_id": "p", "stdio_addr": path, "stderr_addr": path}).encode()

    def serve(self) -> None:
        """Until the end of input."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == 0:
                    data = os.read(0, READ_BYTES)
                    if not data or not self._answer(data):
                        return
                elif fd in (self._echo.fileno(), self._greet.fileno()):
                    self._accept(self._echo if fd == self._echo.fileno() else self._greet)
                else:
                    self._give_back(fd)

    def _accept(self, listening: socket.socket) -> None:
        client, _ = listening.accept()
        if listening is self._greet:
            with contextlib.suppress(BrokenPipeError):
                client.sendall(b"hello\n")
        self._clients[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN)

    def _give_back(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            data = client.recv(READ_BYTES)
        except ConnectionResetError:
            data = b""
        if data:
            client.sendall(data)
        else:
            self._poll.unregister(fd)
            self._clients.pop(fd).close()

    def _answer(self, data: bytes) -> bool:
        """Whether there will be more."""
        self._held += data
        if b"\n" not in data:
            return True
        *lines, rest = bytes(self._held).split(b"\n")
        self._held = bytearray(rest)
        out = memoryview(b"".join([self._one(line) for line in lines]))
        while out:
            out = out[os.write(1, out) :]
        return not any(b'"method":"shutdown"' in line[:HEAD_BYTES] for line in lines)

    def _one(self, line: bytes) -> bytes:
        """Our own requests have their members in this order: jsonrpc, id, method, params."""
        head = line[:HEAD_BYTES].split(b'"', 9)
        number, method = head[6][1:-1], head[9].split(b'"', 1)[0].decode()
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (
            number,
            self._fixed.get(method) or self._other(method, line),
        )

    def _other(self, method: str, line: bytes) -> bytes:
        if method == "exec":
            return self._hello if b'"echo"' in line else self._cat
        if method == "environment_start":
            return b'{"environment":%b}' % line.split(b'"environment":', 1)[1].split(b",", 1)[0]
        if method in ("write_file", "read_file"):
            path = line.split(b'"path":', 1)[1].split(b",", 1)[0]
            if method == "read_file":
                return b'{"text":%b}' % self._files[path]
            self._files[path] = line[line.index(b'"text":') + len(b'"text":') : -len(b"}}")]
        return b"{}"


def main() -> None:
    """Serve."""
    with tempfile.TemporaryDirectory(prefix="fastclaw-null-") as directory:
        Null(directory).serve()


if __name__ == "__main__":
    main()
