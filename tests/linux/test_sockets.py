"""What is ready, who the peer is, a listener that nobody else can use, and a reset."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from fastclaw.linux.sockets import (
    has_hung_up,
    is_readable,
    listen_privately,
    peer,
    ready_events,
    remove_dead,
    reset_on_close,
    wait_readable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_what_is_ready_is_known_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert not is_readable(ours.fileno())
    assert ready_events(ours.fileno(), select.POLLOUT) == select.POLLOUT
    theirs.send(b"x")
    assert is_readable(ours.fileno())
    assert await wait_readable(ours.fileno(), 10_000)
    theirs.shutdown(socket.SHUT_WR)
    assert not has_hung_up(ours.fileno())
    theirs.close()
    assert has_hung_up(ours.fileno())
    assert ready_events(ours.fileno(), 0) & select.POLLHUP


async def test_a_wait_that_times_out_leaves_no_reader(pair: tuple[socket.socket, socket.socket]) -> None:
    assert not await wait_readable(pair[0].fileno(), 1)
    assert not asyncio.get_running_loop().remove_reader(pair[0].fileno())


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_private_listener_knows_who_comes(short_dir: Path, kind: int) -> None:
    previous = os.umask(0)
    try:
        fd = listen_privately(f"{short_dir}/socket", kind, 1)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((short_dir / "socket").stat().st_mode) == 0o600
    assert not os.get_inheritable(fd)
    with socket.socket(fileno=fd) as listening, socket.socket(socket.AF_UNIX, kind) as client:
        with pytest.raises(BlockingIOError):
            listening.accept()
        client.connect(f"{short_dir}/socket")
        with listening.accept()[0] as connection:
            assert peer(connection) == (os.getpid(), os.geteuid())


def test_where_nothing_can_be_bound_no_listener_stays(short_dir: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        listen_privately(f"{short_dir}/gone/socket", socket.SOCK_STREAM, 1)
    assert os.listdir("/proc/self/fd") == before


def test_a_reset_tells_the_peer_that_there_was_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        connection, _ = server.accept()
        reset_on_close(connection)
        connection.close()
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
    reset_on_close(connection)  # closed by then


@pytest.mark.parametrize("kind", ["dead", "alive", "full", "file", "nothing"])
def test_only_a_socket_at_which_nobody_listens_is_taken_away(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as waiting:
        if kind == "file":
            path.write_text("mine")  # to connect to one is refused, too
        elif kind != "nothing":
            one.bind(str(path))
        if kind in ("alive", "full"):
            one.listen(0)
        if kind == "full":
            waiting.connect(str(path))
        if kind == "dead":
            one.close()
        remove_dead(str(path))
        assert path.exists() is (kind not in ("dead", "nothing"))
