"""Both movers: what they move, what they raise, and that nothing is lost between calls."""

import os
import socket
from collections.abc import Iterator

import pytest

from fastclaw import limits
from fastclaw.linux import splice
from fastclaw.linux.splice import Copy, Move


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=["splice", "copy"])
def move(request: pytest.FixtureRequest) -> Move:
    return splice.splice if request.param == "splice" else Copy()


def test_this_machine_splices() -> None:
    splice.kind.cache_clear()
    assert splice.kind() == "splice"
    assert splice.mover() is splice.splice


def test_where_splice_is_refused_bytes_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(38, "no splice here")

    splice.kind.cache_clear()
    monkeypatch.setattr(os, "splice", refuse)
    try:
        assert splice.kind() == "copy"
        assert isinstance(splice.mover(), Copy)
    finally:
        splice.kind.cache_clear()


def test_it_moves_both_ways(move: Move, pipe: tuple[int, int], pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    os.write(pipe[1], b"out")
    assert move(pipe[0], ours.fileno()) == 3
    assert theirs.recv(9) == b"out"
    theirs.send(b"in")
    assert move(ours.fileno(), pipe[1]) == 2
    assert os.read(pipe[0], 9) == b"in"


def test_an_empty_source_blocks_and_an_ended_one_is_zero(
    move: Move, pipe: tuple[int, int], pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    with pytest.raises(BlockingIOError):
        move(ours.fileno(), pipe[1])
    theirs.shutdown(socket.SHUT_WR)
    assert move(ours.fileno(), pipe[1]) == 0


def test_a_target_that_is_gone_is_an_error(
    move: Move, pipe: tuple[int, int], pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.close()
    os.write(pipe[1], b"x")
    with pytest.raises(BrokenPipeError):
        move(pipe[0], ours.fileno())


def test_copy_holds_what_a_full_target_did_not_take(
    pipe: tuple[int, int], pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    room = limits.PIPE_BYTES - 4096
    os.write(pipe[1], b"-" * room)
    theirs.send(b"x" * 10_000)
    move = Copy()
    moved = move(ours.fileno(), pipe[1])
    assert moved == 4096
    assert splice.is_holding(move)
    with pytest.raises(BlockingIOError):
        move(ours.fileno(), pipe[1])
    assert os.read(pipe[0], limits.PIPE_BYTES) == b"-" * room + b"x" * 4096
    assert move(ours.fileno(), pipe[1]) == 10_000 - 4096
    assert not splice.is_holding(move)
    assert not splice.is_holding(splice.splice)
