"""The pool: what it lends, what it keeps, and what it does when there is nothing left."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.linux import splice
from fastclaw.network.egress.pipes import Pipe, PipePool
from tests.balance import descriptors_left, open_descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.linux.poller import Poller


@pytest.fixture
async def pool(poller: Poller) -> AsyncIterator[PipePool]:
    made = PipePool(poller)
    yield made
    made.close()


def lend(pool: PipePool) -> Pipe:
    pipe = pool.borrow()
    assert pipe is not None
    return pipe


async def test_a_pipe_is_large_and_blocks_nobody(pool: PipePool) -> None:
    pipe = lend(pool)
    assert fcntl.fcntl(pipe.write_end, fcntl.F_GETPIPE_SZ) == limits.TUNNEL_PIPE_BYTES
    assert not os.get_blocking(pipe.read_end)
    assert not os.get_blocking(pipe.write_end)
    assert not os.get_inheritable(pipe.read_end)
    pool.give_back(pipe)


async def test_an_empty_pipe_is_lent_again(pool: PipePool) -> None:
    pipe = lend(pool)
    pool.give_back(pipe)
    assert pool.borrow() is pipe
    pool.give_back(pipe)
    assert pool.lent == 0


async def test_nobody_gets_the_bytes_of_another(pool: PipePool) -> None:
    pipe = lend(pool)
    pipe.held = os.write(pipe.write_end, b"secret")
    pool.give_back(pipe)
    other = lend(pool)
    assert other is not pipe
    with pytest.raises(BlockingIOError):
        os.read(other.read_end, 10)
    pool.give_back(other)


async def test_there_are_so_many_and_no_more(poller: Poller) -> None:
    pool = PipePool(poller, 2)
    first, second = lend(pool), lend(pool)
    assert pool.borrow() is None
    pool.give_back(first)
    third = lend(pool)
    assert pool.borrow() is None
    for pipe in (second, third):
        pool.give_back(pipe)
    pool.close()


async def test_only_a_few_are_kept(pool: PipePool) -> None:
    before = len(open_descriptors())
    lent = [lend(pool) for _ in range(limits.TUNNEL_SPARE_PIPES + 3)]
    for pipe in lent:
        pool.give_back(pipe)
    assert len(open_descriptors()) == before + 2 * limits.TUNNEL_SPARE_PIPES


async def test_without_descriptors_there_is_none_until_there_are(pool: PipePool) -> None:
    with descriptors_left(0):
        with pytest.raises(OSError, match="Too many open files"):
            socket.socket()
        assert pool.borrow() is None
        assert pool.lent == 0
    pool.give_back(lend(pool))


async def test_where_splice_is_refused_there_are_none(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "kind", lambda: "copy")
    pool = PipePool(poller)
    assert pool.borrow() is None
    pool.close()
