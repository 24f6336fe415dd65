"""Docker's API with no library around it, create, start and inspect: COUNT AT_ONCE SOCKET CONTAINER."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from bench.rivals.measuring import arguments, measure_threads

API = "/v1.41"
JSON = {"Content-Type": "application/json"}

count, at_once, (path, container) = arguments()


class Connection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def connect(self) -> None:
        """To the daemon."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)


def call(connection: Connection, method: str, where: str, body: Any = None) -> bytes:
    """One call; the body of the answer, which for an exec is its output, up to its end."""
    connection.request(method, API + where, None if body is None else json.dumps(body), JSON)
    answer = connection.getresponse()
    read = answer.read()
    assert answer.status < 300, read
    return read


connections = [Connection("docker") for _ in range(at_once)]


def run_one(place: int) -> None:
    """One command: two calls on the connection of its place, and one on a new connection, which is its stream."""
    kept = connections[place]
    asked = {"AttachStdout": True, "AttachStderr": True, "Cmd": ["true"]}
    name = json.loads(call(kept, "POST", f"/containers/{container}/exec", asked))["Id"]
    stream = Connection("docker")
    assert call(stream, "POST", f"/exec/{name}/start", {"Detach": False, "Tty": False}) == b""
    stream.close()
    assert json.loads(call(kept, "GET", f"/exec/{name}/json"))["ExitCode"] == 0


if __name__ == "__main__":
    version = json.loads(call(connections[0], "GET", "/version"))["Version"]
    measure_threads(version, count, at_once, run_one)
