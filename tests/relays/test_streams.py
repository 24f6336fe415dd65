"""The streams of one process behave alike wherever they are held: here, and in a relay worker."""

from __future__ import annotations

import asyncio
import functools
import os
import select
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.relays.rig import Owned, a_yard
from tests.transport.rig import Client, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.runtime import OnDisconnect

pytestmark = pytest.mark.parametrize("here", [1, 0], ids=["here", "worker"])

BULK = bytes(range(256)) * 8192


@asynccontextmanager
async def streams(here: int, on_disconnect: OnDisconnect = "eof") -> AsyncIterator[Owned]:
    async with a_yard(here) as yard:
        yield await yard.place(on_disconnect)


async def test_both_streams_both_ways_with_an_end_each(here: int) -> None:
    async with streams(here) as owned:
        await owned.stdout.write(b"early")
        stdio, errors = owned.connect(owned.sockets.stdio.path), owned.connect(owned.sockets.stderr.path)
        await stdio.send(b"input")
        stdio.end_input()
        assert await owned.stdin.read() == b"input"
        assert await owned.stdin.read() == b""
        owned.stderr.close()
        assert await errors.read() == b""
        await owned.stdout.write(b" late")
        owned.stdout.close()
        assert await stdio.read_to_end() == b"early late"
        await owned.hears("drained")
        assert owned.streams.drained
        assert owned.said == ["drained"]


async def test_not_a_byte_is_lost_or_changed(here: int) -> None:
    async with streams(here) as owned:
        client = owned.connect(owned.sockets.stdio.path)
        _, found = await asyncio.gather(owned.stdout.write(BULK), client.read_exactly(len(BULK)))
        assert found == BULK


async def test_a_client_that_leaves_may_mean_the_end(here: int) -> None:
    async with streams(here, "kill") as owned:
        client = owned.connect(owned.sockets.stdio.path)
        await owned.stdout.write(b"x")
        assert await client.read() == b"x"
        client.close()
        await owned.hears("abandoned")


async def test_what_a_client_left_unread_is_a_gap_that_is_told_once(here: int) -> None:
    async with streams(here, "hold") as owned:
        for _ in range(2):
            client = owned.connect(owned.sockets.stdio.path)
            await owned.stdout.write(b"never read")
            await until(functools.partial(_is_readable, client))
            client.close()
            await owned.hears("gap")
        other = owned.connect(owned.sockets.stderr.path)
        owned.stderr.close()
        assert await other.read() == b""
        assert set(owned.said) == {"gap"}
        if not here:
            assert owned.said == ["gap"]


async def test_output_that_waits_is_known(here: int) -> None:
    async with streams(here) as owned:
        await until(lambda: not owned.streams.has_pending_output())
    async with streams(here) as owned:
        await owned.stdout.write(b"x")
        assert owned.streams.has_pending_output()


async def test_closing_unlinks_and_ends_everything_once(here: int) -> None:
    async with streams(here) as owned:
        client = owned.connect(owned.sockets.stdio.path)
        await owned.stdout.write(b"served")
        assert await client.read() == b"served"
        owned.streams.close()
        owned.streams.close()
        await until(lambda: not any(os.path.exists(listener.path) for listener in owned.sockets))
        assert await client.read() == b""
        assert await owned.stdin.read() == b""


def _is_readable(client: Client) -> bool:
    return bool(select.select([client.socket], [], [], 0)[0])
