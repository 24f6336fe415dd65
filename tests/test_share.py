"""The units for systemd, as systemd heeds them: a socket, and for each of its connections a `fastclaw serve` on it."""

from __future__ import annotations

import configparser
import json
import shlex
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.served import DEADLINE_S, line

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = Path(__file__).parent.parent / "share" / "systemd" / "user"


def unit(name: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser(interpolation=None)
    read.optionxform = str  # type: ignore[assignment, method-assign]  # keys are told apart by case, as in systemd.syntax(7)
    read.read(UNITS / name)
    return read


SOCKET, SERVICE = unit("fastclaw.socket"), unit("fastclaw@.service")


class Activated:
    """The units in force: for each connection to the socket, the service with it as stdin and stdout."""

    def __init__(self, runtime_dir: Path, home: Path) -> None:
        self.path = SOCKET["Socket"]["ListenStream"].replace("%t", str(runtime_dir))
        self._command = shlex.split(SERVICE["Service"]["ExecStart"].replace("%h", str(home)))
        self._log = runtime_dir / "log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def connect(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE_S)
        client.connect(self.path)
        connection, _ = self._listener.accept()
        with connection, self._log.open("ab") as log:
            ends = connection.fileno()
            return client, subprocess.Popen(self._command, stdin=ends, stdout=ends, stderr=log)


@pytest.fixture
def activated(tmp_path: Path) -> Iterator[Activated]:
    programs = tmp_path / ".local" / "bin"
    programs.mkdir(parents=True)
    (programs / "fastclaw").symlink_to(Path(sys.executable).parent / "fastclaw")
    with Activated(tmp_path, tmp_path) as units:
        yield units


def call(client: socket.socket, method: str, **params: Any) -> Any:
    client.sendall(line(method, method, **params))
    answer = b""
    while not answer.endswith(b"\n"):
        answer += client.recv(1 << 16)
    return json.loads(answer)["result"]


def test_the_socket_starts_a_service_for_each_connection() -> None:
    assert (SOCKET["Socket"]["Accept"], SOCKET["Socket"]["SocketMode"]) == ("yes", "0600")
    assert {SERVICE["Service"][name] for name in ("StandardInput", "StandardOutput")} == {"socket"}
    assert [path.name for path in sorted(UNITS.iterdir())] == ["fastclaw.socket", "fastclaw@.service"]


def test_supervisors_on_the_socket_have_each_a_runtime_of_their_own(activated: Activated) -> None:
    clients = [activated.connect() for _ in range(2)]
    for number, (client, _) in enumerate(clients):
        call(client, "initialize", namespace=f"unit-{number}", options={"runtime": "local"})
    for number, (client, _) in enumerate(clients):
        assert call(client, "run", cmd=["echo", str(number)])["stdout"] == f"{number}\n"
    for client, serve in clients:
        with closing(client):
            client.shutdown(socket.SHUT_WR)  # EOF on its stdin
            assert client.recv(1) == b""
            assert serve.wait(DEADLINE_S) == 0


def test_a_supervisor_that_is_gone_ends_its_runtime(activated: Activated) -> None:
    client, serve = activated.connect()
    call(client, "initialize", namespace="unit", options={"runtime": "local"})
    client.close()
    assert serve.wait(DEADLINE_S) == 0
