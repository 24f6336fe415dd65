"""What many tests of the egress proxy begin with."""

from collections.abc import AsyncIterator

import pytest

from fastclaw.linux.poller import Poller
from tests.network.egress.rig import Client, Rig, a_proxy


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    made = Poller()
    yield made
    made.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A proxy that allows all ports of this host."""
    async with a_proxy() as made:
        yield made


@pytest.fixture
async def client(rig: Rig) -> Client:
    """A client that has connected to it."""
    return await rig.connect()
