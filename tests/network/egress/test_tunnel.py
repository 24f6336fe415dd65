"""A tunnel between two sockets: every byte in order, both ways, and an end for every way to end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import socket
import weakref
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits, network_limits
from fastclaw.linux import splice
from tests.balance import descriptors_left, open_descriptors
from tests.network.egress.tunnel_rig import (
    MIB,
    Kind,
    LonePipes,
    Rig,
    at_end,
    count_borrowing,
    fill,
    pour,
    receive,
    reset,
    send,
)
from tests.waiting import turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.linux.poller import Poller


@pytest.fixture(params=["splice", "copy"])
async def pool(request: pytest.FixtureRequest, poller: Poller) -> AsyncIterator[LonePipes]:
    made = LonePipes(poller) if request.param == "splice" else LonePipes(poller, 0)
    yield made
    assert made.lent == 0
    made.close()


@pytest.fixture(params=["tcp", "unix"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
async def rig(kind: Kind, pool: LonePipes) -> AsyncIterator[Rig]:
    made = Rig(kind, pool)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(4))
async def test_everything_arrives_both_ways_at_once_whatever_the_chunks(rig: Rig, seed: int) -> None:
    rng = random.Random(seed)
    request, answer = rng.randbytes(rng.randrange(3 * MIB)), rng.randbytes(rng.randrange(3 * MIB))

    def size() -> int:
        return rng.choice((1_000, 65_536, 300_000))

    rig.tunnel.start()
    got_there, got_back, *_ = await asyncio.gather(
        receive(rig.origin, len(request), size),
        receive(rig.client, len(answer), size),
        pour(rig.client, request, random.Random(seed + 1)),
        pour(rig.origin, answer, random.Random(seed + 2)),
    )
    assert got_there == request
    assert got_back == answer
    assert await at_end(rig.origin) == b""
    assert await at_end(rig.client) == b""
    await rig.has_ended()
    assert (rig.meter.forth, rig.meter.back) == (len(request), len(answer))


async def test_a_bulk_transfer_is_whole(pool: LonePipes) -> None:
    total, block = 128 * MIB, random.Random(7).randbytes(MIB)
    rig = Rig("tcp", pool)
    rig.tunnel.start()

    async def send_all() -> None:
        for _ in range(total // MIB):
            await send(rig.client, block)
        rig.client.shutdown(socket.SHUT_WR)

    async def hash_all() -> bytes:
        digest, buffer = hashlib.blake2b(), bytearray(MIB)
        async with asyncio.timeout(60):
            while count := await asyncio.get_running_loop().sock_recv_into(rig.origin, buffer):
                digest.update(memoryview(buffer)[:count])
        return digest.digest()

    found, _ = await asyncio.gather(hash_all(), send_all())
    expected = hashlib.blake2b()
    for _ in range(total // MIB):
        expected.update(block)
    assert found == expected.digest()
    assert rig.meter.forth == total
    rig.close()


async def test_the_rest_of_a_stream_arrives_while_its_sender_stays(poller: Poller) -> None:
    pool = LonePipes(poller)
    rig = Rig("tcp", pool)
    rig.tunnel.start()
    seen = set()
    total = 5 * network_limits.TUNNEL_STREAM_BYTES
    sending = asyncio.create_task(send(rig.client, bytes(total)))
    for _ in range(total // MIB):
        assert len(await receive(rig.origin, MIB)) == MIB
        seen.add(rig.near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT))
    await sending
    assert network_limits.TUNNEL_BATCH_BYTES in seen  # it was taken for one
    for size in (1, 1000, network_limits.TUNNEL_BATCH_BYTES - 1):
        await send(rig.client, bytes(size))
        assert len(await receive(rig.origin, size)) == size
    rig.close()
    pool.close()


async def test_a_half_close_is_passed_on_and_the_other_way_goes_on(rig: Rig) -> None:
    rig.tunnel.start()
    await send(rig.client, b"question")
    rig.client.shutdown(socket.SHUT_WR)
    assert await receive(rig.origin, 100) == b"question"
    await send(rig.origin, b"answer")
    assert await receive(rig.client, 6) == b"answer"
    assert rig.ends == 0
    rig.origin.close()
    assert await at_end(rig.client) == b""
    await rig.has_ended()


async def test_a_half_close_of_the_origin_too(rig: Rig) -> None:
    rig.tunnel.start()
    rig.origin.shutdown(socket.SHUT_WR)
    assert await at_end(rig.client) == b""
    await send(rig.client, b"still listening?")
    assert await receive(rig.origin, 16) == b"still listening?"
    assert rig.ends == 0
    rig.client.close()
    assert await at_end(rig.origin) == b""
    await rig.has_ended()


@pytest.mark.parametrize("who", ["client", "origin"])
async def test_a_reset_is_passed_on_as_one(pool: LonePipes, who: str) -> None:
    rig = Rig("tcp", pool)
    rig.tunnel.start()
    breaker, other = (rig.client, rig.origin) if who == "client" else (rig.origin, rig.client)
    await send(breaker, b"half of i")
    assert await receive(other, 9) == b"half of i"
    reset(breaker)
    with pytest.raises(ConnectionResetError):
        await receive(other, 1)
    await rig.has_ended()
    rig.close()


@pytest.mark.parametrize("who", ["client", "origin"])
async def test_a_reset_after_a_half_close_ends_it_at_once(pool: LonePipes, who: str) -> None:
    rig = Rig("tcp", pool)
    rig.tunnel.start()
    breaker, other = (rig.client, rig.origin) if who == "client" else (rig.origin, rig.client)
    breaker.shutdown(socket.SHUT_WR)
    assert await at_end(other) == b""
    reset(breaker)
    await rig.has_ended()  # nobody has to write before it is known that nobody reads
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await pour(other, bytes(MIB), random.Random(1))
    rig.close()


async def test_an_answer_is_whole_though_its_sender_resets_after_its_end(pool: LonePipes) -> None:
    """It does not read on (RFC 9112, 9.6); what it said waits for a slow reader in the meantime."""
    rig = Rig("tcp", pool)
    rig.tunnel.start()
    answer = random.Random(1).randbytes(MIB)
    await send(rig.origin, answer)
    rig.origin.shutdown(socket.SHUT_WR)
    await turns()
    await send(rig.client, b"more of the body")
    await turns()
    reset(rig.origin)
    assert await receive(rig.client, 2 * MIB) == answer
    await rig.has_ended()
    rig.close()


async def test_what_came_before_a_reset_arrives(pool: LonePipes) -> None:
    """Even when the reset is noticed by a failing write, while bytes can still be read."""
    rig = Rig("tcp", pool)
    await send(rig.origin, b"413 too large")
    reset(rig.origin)
    rig.tunnel.start(to_far=b"more of the body")
    assert await receive(rig.client, 13) == b"413 too large"
    with pytest.raises(ConnectionResetError):
        await receive(rig.client, 1)
    await rig.has_ended()
    rig.close()


async def test_an_answer_is_whole_though_a_write_to_its_sender_fails(pool: LonePipes) -> None:
    rig = Rig("tcp", pool)
    rig.tunnel.start()
    await send(rig.origin, b"answer")
    rig.origin.shutdown(socket.SHUT_WR)
    assert await receive(rig.client, 10) == b"answer"
    rig.client.send(b"more of the body")  # the loop sees both at once, this one first
    reset(rig.origin)
    assert await at_end(rig.client) == b""
    await rig.has_ended()
    assert rig.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # it was not reset
    rig.close()


async def test_a_client_that_has_gone_for_good_ends_it(rig: Rig) -> None:
    rig.tunnel.start()
    rig.client.close()
    assert await at_end(rig.origin) == b""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while not rig.ended.is_set():
            await send(rig.origin, b"nobody reads this")
            await asyncio.sleep(0)
    await rig.has_ended()


async def test_a_reader_that_stops_stops_the_writer(rig: Rig) -> None:
    for end in (rig.client, rig.near):  # else they grow by megabytes (tcp(7))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * limits.KIB)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * limits.KIB)
    rig.tunnel.start()
    taken = await fill(rig.client)
    assert rig.pool.lent <= 1
    in_sockets = rig.meter.forth
    assert taken - in_sockets <= network_limits.TUNNEL_PIPE_BYTES + 4 * 128 * limits.KIB
    rig.client.shutdown(socket.SHUT_WR)  # the end waits behind everything that waits
    assert len(await receive(rig.origin, taken + 1)) == taken
    assert rig.pool.lent == 0


async def test_the_last_bytes_reach_a_slow_reader_while_the_writer_stays(rig: Rig) -> None:
    rig.tunnel.start()
    taken = await fill(rig.origin)
    assert len(await receive(rig.client, taken, lambda: 30_000)) == taken
    await turns()
    assert rig.pool.lent == 0
    assert rig.ends == 0


async def test_one_way_does_not_wait_for_the_other(rig: Rig) -> None:
    rig.tunnel.start()
    await fill(rig.client)
    await send(rig.origin, b"hello")
    assert await receive(rig.client, 5) == b"hello"


async def test_heads_go_first_however_large(rig: Rig) -> None:
    to_far, to_near = random.Random(1).randbytes(9 * MIB), random.Random(2).randbytes(9 * MIB)
    await send(rig.client, b"second")
    await send(rig.origin, b"second")
    rig.client.shutdown(socket.SHUT_WR)
    rig.tunnel.start(to_far=to_far, to_near=to_near)
    assert await receive(rig.origin, 20 * MIB) == to_far + b"second"
    assert await receive(rig.client, len(to_near) + 6) == to_near + b"second"
    rig.origin.close()
    assert await at_end(rig.client) == b""
    await rig.has_ended()
    assert rig.meter.back == len(to_near) + 6


async def test_heads_wait_for_nothing(rig: Rig) -> None:
    rig.tunnel.start(to_far=b"there", to_near=b"back")
    assert await receive(rig.origin, 5) == b"there"
    assert await receive(rig.client, 4) == b"back"


async def test_after_a_burst_it_goes_on_without_another_event(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "TUNNEL_BURST", 1)
    data = random.Random(4).randbytes(2 * network_limits.TUNNEL_BUFFER_BYTES + 1000)
    await send(rig.client, data)
    rig.client.shutdown(socket.SHUT_WR)
    await turns()
    rig.tunnel.start()
    assert await receive(rig.origin, len(data) + 1) == data


@pytest.mark.parametrize("way", ["forth", "back"])
async def test_the_meter_cuts_it(pool: LonePipes, way: str) -> None:
    rig = Rig("tcp", pool, budget=100_000)
    rig.tunnel.start()
    source, target = (rig.client, rig.origin) if way == "forth" else (rig.origin, rig.client)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await asyncio.gather(send(source, bytes(64 * MIB)), receive(target, 64 * MIB))
    await rig.has_ended()
    spent = rig.meter.forth + rig.meter.back
    assert 100_000 <= spent < 100_000 + network_limits.TUNNEL_PIPE_BYTES
    rig.close()


async def test_its_meter_may_close_it(rig: Rig) -> None:
    rig.meter.on_count = rig.tunnel.close
    rig.tunnel.start(to_far=b"x" * 1000)
    await send(rig.client, b"y")
    await rig.has_ended()


@pytest.mark.parametrize("after", range(0, 60, 4))
async def test_it_can_be_closed_at_any_moment(pool: LonePipes, after: int) -> None:
    rig = Rig("tcp", pool)
    rig.tunnel.start(to_far=bytes(100_000))
    sending = asyncio.create_task(send(rig.client, bytes(32 * MIB)))
    receiving = asyncio.create_task(receive(rig.origin, 33 * MIB))
    await turns(after)
    rig.tunnel.close()
    rig.tunnel.close()
    assert rig.ends == 1
    await rig.has_ended()
    results = await asyncio.gather(sending, receiving, return_exceptions=True)
    assert isinstance(results[1], ConnectionError)  # cut, and not ended: the origin must not take it for all
    rig.close()


async def test_closed_before_its_start_it_ends_once(pool: LonePipes) -> None:
    rig = Rig("tcp", pool)
    rig.tunnel.close()
    await rig.has_ended()
    rig.close()


async def test_without_descriptors_for_pipes_it_copies(kind: Kind, poller: Poller) -> None:
    pool = LonePipes(poller)
    rig = Rig(kind, pool)
    rig.tunnel.start()
    data = random.Random(3).randbytes(4 * MIB)
    with descriptors_left(0):
        received, _ = await asyncio.gather(receive(rig.origin, len(data)), send(rig.client, data))
    assert received == data
    borrowed = count_borrowing(pool)
    received, _ = await asyncio.gather(receive(rig.origin, len(data)), send(rig.client, data))
    assert received == data
    assert borrowed
    rig.close()
    pool.close()


async def test_pipes_are_bounded_and_all_slow_readers_get_everything(poller: Poller) -> None:
    pool = LonePipes(poller, 3)
    rigs = [Rig("unix", pool) for _ in range(8)]
    taken = []
    for rig in rigs:
        rig.tunnel.start()
        taken.append(await fill(rig.client))
    assert pool.lent == 3
    for rig, count in zip(rigs, taken, strict=True):
        assert len(await receive(rig.origin, count)) == count
    await turns()
    assert pool.lent == 0
    for rig in rigs:
        rig.close()
    pool.close()


async def test_little_needs_no_pipe_and_an_idle_one_holds_two_descriptors(rig: Rig) -> None:
    before = len(open_descriptors())
    rig.tunnel.start()
    for _ in range(3):
        await send(rig.client, b"ping")
        assert await receive(rig.origin, 4) == b"ping"
        await send(rig.origin, b"pong")
        assert await receive(rig.client, 4) == b"pong"
    assert len(open_descriptors()) == before


async def test_after_bulk_little_goes_without_a_pipe_again(kind: Kind, poller: Poller) -> None:
    pool = LonePipes(poller)
    rig = Rig(kind, pool)
    rig.tunnel.start()
    borrowed = count_borrowing(pool)
    await asyncio.gather(send(rig.client, bytes(4 * MIB)), receive(rig.origin, 4 * MIB))
    assert borrowed
    for _ in range(2):  # with the first, it finds out
        borrowed.clear()
        await send(rig.client, b"ping")
        assert await receive(rig.origin, 4) == b"ping"
    assert not borrowed
    rig.close()
    pool.close()


async def test_one_that_has_ended_is_freed_at_once(pool: LonePipes) -> None:
    """Thousands a second must not wait for the garbage collector."""
    rig = Rig("tcp", pool)
    meter = weakref.ref(rig.meter)
    rig.tunnel.start()
    await asyncio.gather(send(rig.client, bytes(MIB)), receive(rig.origin, MIB))
    rig.client.close()
    rig.origin.close()
    await rig.has_ended()
    gc.disable()
    try:
        del rig
        await turns()
        assert meter() is None
    finally:
        gc.enable()


async def test_a_bulk_tunnel_gives_the_loop_back(pool: LonePipes) -> None:
    """While one moves as much as it can, another's ping takes a few turns, not the whole transfer."""
    busy, quick = Rig("unix", pool), Rig("unix", pool)
    busy.tunnel.start()
    quick.tunnel.start()
    moving = asyncio.gather(send(busy.client, bytes(64 * MIB)), receive(busy.origin, 64 * MIB))
    await turns()
    for _ in range(5):
        await send(quick.client, b"ping")
        assert await receive(quick.origin, 4) == b"ping"
    assert not moving.done()
    await moving
    busy.close()
    quick.close()


async def test_it_says_when_it_last_moved(rig: Rig) -> None:
    began = asyncio.get_running_loop().time()
    rig.tunnel.start()
    rig.tunnel.last_moved = 0
    await send(rig.client, b"x")
    await receive(rig.origin, 1)
    assert rig.tunnel.last_moved >= began


async def test_two_hundred_tunnels_at_once(pool: LonePipes) -> None:
    rigs = [Rig("unix", pool) for _ in range(200)]
    for number, rig in enumerate(rigs):
        rig.tunnel.start(to_far=str(number).encode())
    for number, rig in enumerate(rigs):
        await send(rig.client, b"!")
        rig.client.shutdown(socket.SHUT_WR)
        assert await receive(rig.origin, 100) == f"{number}!".encode()
        rig.origin.close()
    for rig in rigs:
        await rig.has_ended()
        rig.close()


async def test_what_the_kernel_refuses_to_watch_ends(pool: LonePipes, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig("tcp", pool)

    def refuse(*_: object) -> None:
        raise OSError(28, "no watch left")

    monkeypatch.setattr(pool.poller, "watch", refuse)
    rig.tunnel.start()
    assert rig.ends == 0
    await rig.has_ended()
    rig.close()


def test_this_machine_splices() -> None:
    assert splice.kind() == "splice"
