"""Production runs on uvloop."""

import asyncio

import pytest
import uvloop

from fastclaw.linux import loop


async def kind_of_loop() -> type[asyncio.AbstractEventLoop]:
    return type(asyncio.get_running_loop())


def test_it_is_uvloop_and_gives_the_result() -> None:
    assert loop.run(kind_of_loop()) is uvloop.Loop


def test_it_raises_what_the_program_raises() -> None:
    async def fail() -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        loop.run(fail())
