"""The end of an endpoint while somebody is connected, and what shows whether that one reads; with both movers."""

import asyncio
import errno
import os
import random
import socket

import pytest

from fastclaw import limits
from fastclaw.linux import splice
from tests.linux.rig import PipeEnd, endpoint, until


@pytest.fixture(params=["splice", "copy"], autouse=True)
def mover(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(splice, "kind", lambda: request.param)
    return str(request.param)


async def test_released_without_a_client_it_is_closed() -> None:
    async with endpoint() as rig:
        rig.endpoint.release()
        rig.endpoint.release()
        with pytest.raises(FileNotFoundError):
            rig.connect_blind()
        with pytest.raises(BrokenPipeError):
            await rig.stdout.write(b"x")
        assert await rig.stdin.read() == b""


async def test_released_its_client_is_served_to_the_end() -> None:
    async with endpoint() as rig:
        client = await rig.connect()
        rig.endpoint.release()
        with pytest.raises(FileNotFoundError):
            rig.connect_blind()
        await client.send(b"in")
        assert await rig.stdin.read() == b"in"
        data = random.Random(1).randbytes(1 << 20)
        reading = asyncio.create_task(client.read_to_end())
        await rig.stdout.write(data)
        rig.stdout.close()
        assert await reading == data
        await rig.vacant()
        assert rig.drained == 1
        assert await rig.stdin.read() == b""


async def test_released_a_client_that_leaves_closes_it() -> None:
    async with endpoint() as rig:
        client = await rig.connect()
        rig.endpoint.release()
        client.close()
        await rig.vacant()
        with pytest.raises(BrokenPipeError):
            await rig.stdout.write(b"x")
        assert (rig.abandoned, rig.drained) == (0, 0)


async def test_released_when_its_output_was_at_its_end_there_is_nothing_to_wait_for() -> None:
    async with endpoint() as rig:
        client = await rig.connect()
        rig.stdout.close()
        assert await client.read() == b""
        rig.endpoint.release()
        assert not rig.endpoint.connected
        assert await rig.stdin.read() == b""


async def test_released_while_it_is_out_of_descriptors_it_does_not_listen_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_RETRY_MS", 5)
    async with endpoint() as rig:
        client = await rig.connect()
        with monkeypatch.context() as patch:
            patch.setattr(type(rig.listener), "accept", _refuse)
            late = rig.connect_blind()
            await until(lambda: rig.endpoint._retry is not None)
            rig.endpoint.release()
            await asyncio.sleep(0.02)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await late.send(b"x")
        await rig.stdout.write(b"still")
        assert await client.read() == b"still"


def _refuse(listener: object) -> socket.socket:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def flood(end: PipeEnd) -> None:
    """Write until nobody takes any more for a while."""
    while end.fill():  # noqa: ASYNC110 - the pipe is watched from outside
        await asyncio.sleep(0.01)


async def test_what_its_client_has_taken_shows() -> None:
    async with endpoint() as rig:
        assert rig.endpoint.progress() == (0, 0)
        client = await rig.connect()
        await flood(rig.stdout)
        before = rig.endpoint.progress()
        assert before[0] > 0
        assert rig.endpoint.progress() == before
        await client.read_exactly(before[0] // 4)
        assert rig.endpoint.progress() != before


async def test_clients_are_told_of() -> None:
    async with endpoint() as rig:
        for number in range(2):
            client = await rig.connect()
            assert rig.changes == 2 * number + 1
            client.close()
            await rig.vacant()
            assert rig.changes == 2 * number + 2
