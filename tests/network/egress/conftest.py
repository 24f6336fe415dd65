"""What many tests of the egress proxy begin with."""

from collections.abc import AsyncIterator

import pytest

from fastclaw.linux.poller import Poller


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    made = Poller()
    yield made
    made.close()
