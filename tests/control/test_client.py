"""Who looks: what is found, and what is said of sockets that are dead, foreign or something else."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import telemetry_limits
from fastclaw.control.client import ControlClient, find_sockets
from fastclaw.control.protocol import AskProcesses, AskSnapshot, Killed, line_of
from fastclaw.errors import FastclawError, IoError, ProtocolError
from fastclaw.processes.listeners import SocketDirectory
from tests.control.rig import a_socket, asking
from tests.spawner.rig import needs_root
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def answering(path: Path, answer: bytes, *, leaves: bool = False) -> Iterator[str]:
    """Somebody who says this to whoever connects, and then nothing, or leaves."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(telemetry_limits.CONTROL_LINE_BYTES)
                connection.sendall(answer)
                while not leaves and connection.recv(1):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield str(path)
        thread.join()


async def test_pages_are_asked_for_and_given() -> None:
    async with a_socket() as control:
        rows = await asking(control, lambda client: client.processes(AskProcesses()))
        assert [row.process_id for row in rows.rows] == ["a-1"]


def test_where_there_is_none_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(IoError, match="fastclaw serve --control"):
        ControlClient(str(tmp_path / "c.sock"))


def test_a_dead_one_is_called_so(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "c.sock"))
    with pytest.raises(IoError, match="its runtime has ended"):
        ControlClient(str(tmp_path / "c.sock"))


async def test_who_is_one_too_many_is_told_so_though_he_was_cut_off_before_he_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry_limits, "CONTROL_CLIENTS", 0)
    async with a_socket() as control:
        with await asyncio.to_thread(ControlClient, control.path) as client:
            await until_readable(client)
            await until(lambda: not control._clients)
            with pytest.raises(ProtocolError, match="0 clients look already"):
                await asyncio.to_thread(client.snapshot, AskSnapshot())


async def until_readable(client: ControlClient) -> None:
    readable, _, _ = await asyncio.to_thread(select.select, [client._socket], [], [], 10)
    assert readable


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket_is_called_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.sock"
    path.touch() if kind == "file" else path.mkdir()
    with pytest.raises(IoError, match="is no socket; start it with"):
        ControlClient(str(path))


ASKS_S = """
import os, sys
from fastclaw.control.client import ControlClient
from fastclaw.errors import IoError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    ControlClient(sys.argv[1])
except IoError as error:
    print(error)
"""


@needs_root
async def test_who_may_not_connect_is_told_whose_it_is() -> None:
    async with a_socket() as control:
        command = [sys.executable, "-c", ASKS_S, control.path]
        done = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, text=True, check=True)
        assert "another user's; look as the user whose runtime it is" in done.stdout


NOBODY_S = """
import os, socket, sys
one = socket.socket(socket.AF_UNIX)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
one.bind(sys.argv[1]); one.listen(); print("up", flush=True)
sys.stdin.read()
"""


@needs_root
def test_one_of_another_user_is_not_believed(tmp_path: Path) -> None:
    """He could show what he likes, and be told what to kill."""
    directory = Path("/tmp", f"fcc-{os.getpid()}")
    directory.mkdir()
    directory.chmod(0o777)
    path = str(directory / "c.sock")
    command = [sys.executable, "-c", NOBODY_S, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with pytest.raises(IoError, match="another user, with uid 65534; look as the user whose runtime it is"):
            ControlClient(path)
        child.communicate(timeout=10)
    os.unlink(path)
    directory.rmdir()


@pytest.mark.parametrize(
    ("answer", "leaves", "error", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, ProtocolError, "no fastclaw"),
        (b"", False, IoError, "no answer at .* within 200 ms"),
        (b'{"answer":', False, IoError, "no answer at .* within 200 ms"),
        (b"", True, IoError, "has ended"),
        (b'{"answer":"snap', True, IoError, "has ended"),
        (b"x" * 1_000_000, False, ProtocolError, "answers without an end"),
        (line_of(Killed(process_id="a")), False, ProtocolError, "something else than was asked"),
    ],
)
def test_what_is_something_else_is_told_in_a_line(
    answer: bytes, leaves: bool, error: type[FastclawError], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_limits, "CONTROL_ANSWER_MS", 200)
    monkeypatch.setattr(telemetry_limits, "CONTROL_ANSWER_BYTES", 500_000)
    with answering(tmp_path / "c.sock", answer, leaves=leaves) as path, ControlClient(path) as client:
        with pytest.raises(error, match=words) as raised:
            client.snapshot(AskSnapshot())
        assert "\n" not in str(raised.value)


def test_those_of_this_user_s_runtimes_are_found() -> None:
    before = find_sockets()
    directories = [SocketDirectory() for _ in range(3)]
    try:
        for directory in directories[1:]:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(directory.path / "control.sock"))
        (directories[0].path / "control.sock").touch()  # is none
        expected = sorted(str(directory.path / "control.sock") for directory in directories[1:])
        assert [path for path in find_sockets() if path not in before] == expected
        if os.geteuid() == 0:
            os.chown(os.path.dirname(expected[0]), 65_534, -1)  # another user's
            assert [path for path in find_sockets() if path not in before] == expected[1:]
            os.chown(os.path.dirname(expected[0]), 0, -1)
    finally:
        for directory in directories:
            directory.close()
