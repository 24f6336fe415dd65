"""Who may look, what each may hold up, and what is left afterwards."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits, telemetry_limits
from fastclaw.control.protocol import AskKill, AskProcesses, AskSnapshot, Refusal, Snapshot, line_of, read_answer
from fastclaw.control.socket import ControlSocket
from fastclaw.errors import IoError, ProtocolError
from tests.control.rig import Box, a_socket, asking
from tests.spawner.rig import needs_root
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable

SNAPSHOT = line_of(AskSnapshot())
PATIENCE_S = 20


async def connected(control: ControlSocket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(control.path)


async def in_time(work: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await work


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the other side leaves, without a word."""
    try:
        return await in_time(reader.read()) == b""
    except ConnectionError:
        return True


# --- what is answered ---


async def test_each_request_has_its_answer_in_order() -> None:
    async with a_socket() as control:
        reader, writer = await connected(control)
        writer.write(SNAPSHOT + line_of(AskProcesses()) + SNAPSHOT)
        said = [read_answer(await in_time(reader.readline())) for _ in range(3)]
        assert [type(answer).__name__ for answer in said] == ["Snapshot", "ProcessRows", "Snapshot"]
        writer.close()


async def test_a_kill_is_the_runtime_s_own_and_answered_at_its_end() -> None:
    box = Box()
    box.release = asyncio.Event()
    async with a_socket(box) as control:
        killing = asyncio.ensure_future(
            asking(control, lambda client: client.kill(AskKill(process_id="a-1", grace_ms=7)))
        )
        assert isinstance(await asking(control, lambda client: client.snapshot(AskSnapshot())), Snapshot)
        await until(lambda: box.killed)
        assert not killing.done()
        box.release.set()
        await killing
        assert box.killed == [("a-1", 7)]
        with pytest.raises(ProtocolError, match="no process 'b-1'") as raised:
            await asking(control, lambda client: client.kill(AskKill(process_id="b-1")))
        assert raised.value.reason == "unknown_process"


async def test_a_kill_that_takes_too_long_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_limits, "CONTROL_KILL_MS", 20)
    box = Box()
    box.release = asyncio.Event()
    async with a_socket(box) as control:
        with pytest.raises(ProtocolError, match="has not ended within 20 ms"):
            await asking(control, lambda client: client.kill(AskKill(process_id="a-1")))


# --- who ---


async def test_nobody_else_has_a_way_to_it() -> None:
    async with a_socket() as control:
        assert stat.S_IMODE(os.stat(control.path).st_mode) == 0o600


AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
one = socket.socket(socket.AF_UNIX)
try:
    one.connect(sys.argv[1])
    one.sendall(b'{"ask":"snapshot"}\\n')
    print("read", one.recv(100))
except OSError as error:
    print(type(error).__name__)
"""


@needs_root
async def test_another_user_is_turned_away_even_where_he_can_reach_it() -> None:
    async with a_socket() as control:
        Path(control.path).parent.chmod(0o755)
        command = [sys.executable, "-c", AS_NOBODY, control.path]

        def run() -> str:
            return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout

        assert await asyncio.to_thread(run) == "PermissionError\n"
        os.chmod(control.path, 0o666)
        assert await asyncio.to_thread(run) in ("read b''\n", "ConnectionResetError\n", "BrokenPipeError\n")
        assert isinstance(await asking(control, lambda client: client.snapshot(AskSnapshot())), Snapshot)


# --- bad input ---


async def test_who_does_not_read_is_cut_off_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_limits, "CONTROL_WRITE_MS", 200)
    box = Box()
    async with a_socket(box) as control:
        box.command_bytes = telemetry_limits.CONTROL_ANSWER_BYTES // 2  # more than a socket takes
        stalled = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in stalled:
            one.connect(control.path)
            one.sendall(line_of(AskProcesses()) * 100)
        assert isinstance(await asking(control, lambda client: client.snapshot(AskSnapshot())), Snapshot)
        rows = await asking(control, lambda client: client.processes(AskProcesses()))
        assert len(rows.rows[0].command) == box.command_bytes
        await until(lambda: not control._clients)
        for one in stalled:
            one.close()


async def test_who_asks_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_limits, "CONTROL_IDLE_MS", 50)
    async with a_socket() as control:
        reader, writer = await connected(control)
        writer.write(SNAPSHOT[:-1])  # and never its end
        assert await ended(reader)
        writer.close()


async def test_who_comes_when_there_are_many_is_told_so_and_finds_room_later() -> None:
    async with a_socket() as control:
        held = [await connected(control) for _ in range(telemetry_limits.CONTROL_CLIENTS)]
        for reader, writer in held:
            writer.write(SNAPSHOT)
            assert b"snapshot" in await in_time(reader.readline())
        reader, writer = await connected(control)
        answer = read_answer(await in_time(reader.readline()))
        assert isinstance(answer, Refusal)
        assert answer.reason == "overloaded"
        assert await ended(reader)
        for _, other in [*held, (reader, writer)]:
            other.close()
        await until(lambda: not control._clients)
        assert isinstance(await asking(control, lambda client: client.snapshot(AskSnapshot())), Snapshot)


async def test_a_line_without_an_end_is_refused() -> None:
    async with a_socket() as control:
        reader, writer = await connected(control)
        writer.write(b"x" * (4 * telemetry_limits.CONTROL_LINE_BYTES))
        answer = read_answer(await in_time(reader.readline()))
        assert isinstance(answer, Refusal)
        assert answer.reason == "line_too_long"
        assert await ended(reader)
        writer.close()


async def test_after_nonsense_the_next_request_is_answered() -> None:
    async with a_socket() as control:
        reader, writer = await connected(control)
        writer.write(b"GET / HTTP/1.1\r\n\0\n" + SNAPSHOT)
        said = [type(read_answer(await in_time(reader.readline()))) for _ in range(3)]
        assert said == [Refusal, Refusal, Snapshot]
        writer.close()


async def test_a_bug_is_logged_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    box = Box()
    async with a_socket(box) as control:
        box.command_bytes = -1
        with pytest.raises(ProtocolError, match="internal error") as raised:
            await asking(control, lambda client: client.processes(AskProcesses()))
        assert raised.value.reason == "internal"
        assert "a bug" in caplog.text


async def test_who_leaves_in_the_middle_leaves_nothing() -> None:
    box = Box()
    async with a_socket(box) as control:
        box.command_bytes = limits.MIB
        for sent in (b"", SNAPSHOT[:5], SNAPSHOT, line_of(AskProcesses())):
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(control.path)
                one.sendall(sent)
        await until(lambda: not control._clients)


# --- where it is ---


async def test_a_socket_whose_runtime_was_killed_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "c.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    control = ControlSocket(path, Box())
    await control.start()
    assert isinstance(await asking(control, lambda client: client.snapshot(AskSnapshot())), Snapshot)
    await control.aclose()
    assert not os.path.exists(path)  # noqa: ASYNC240 - one stat


async def test_one_that_is_in_use_is_left_alone() -> None:
    async with a_socket() as control:
        other = ControlSocket(control.path, Box())
        with pytest.raises(IoError, match="Address already in use"):
            await other.start()
        await other.aclose()
        assert isinstance(await asking(control, lambda client: client.snapshot(AskSnapshot())), Snapshot)


@pytest.mark.parametrize("kind", ["file", "directory", "no directory", "too long"])
async def test_what_is_no_place_for_a_socket_is_named_and_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120 if kind == "too long" else "c.sock")
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    elif kind == "no directory":
        path = path / "c.sock"
    control = ControlSocket(str(path), Box())
    with pytest.raises(IoError, match="no control socket at"):
        await control.start()
    await control.aclose()
    if kind == "file":
        assert path.read_text() == "mine"


async def test_its_end_is_that_of_all_who_look() -> None:
    box = Box()
    box.release = asyncio.Event()
    async with a_socket(box) as control:
        idle, killing = await connected(control), await connected(control)
        killing[1].write(line_of(AskKill(process_id="a-1")))
        await until(lambda: box.killed)
        assert repr(control) == f"<ControlSocket {control.path} 2 clients>"
        await control.aclose()
        assert not os.path.exists(control.path)  # noqa: ASYNC240 - one stat
        for reader, writer in (idle, killing):
            assert await ended(reader)
            writer.close()
        await control.aclose()
