"""A pipe holds 64 KiB, also where thousands of processes have three each.

The kernel gives a user's first 1 024 pipes that much, and further ones 8 KiB (pipe(7), pipe-user-pages-soft), unless
who makes them is privileged on the host: the pumps of a container are several users (spawner/c/confine.c).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from tests.acceptance.hostile import SERVE, a_workspace

if TYPE_CHECKING:
    from tests.engine_fixtures import EngineService

PROCESSES = 600
"""With 1 800 pipes: three quarters more than the first user's share."""
AT_ONCE = 50


@pytest.mark.podman
async def test_thousands_of_pipes_in_a_container_have_their_full_size(
    engine_service: EngineService,
) -> None:
    with a_workspace("pipe_sizes") as directory:
        workspace = {"source": str(directory), "target": "/w"}
        options = {"url": engine_service.url, "image": engine_service.image, "workspace": workspace}
        sizes = await sizes_in(options)
    assert sizes == {b"%d %d %d\n" % ((limits.PIPE_BYTES,) * 3)}


async def sizes_in(options: dict[str, Any]) -> set[bytes]:
    """What so many processes say of their pipes."""
    async with RuntimeClient.spawn(SERVE, namespace="pipe-sizes", options=options) as runtime:
        places = asyncio.Semaphore(AT_ONCE)

        async def said() -> bytes:
            async with places, await runtime.exec(["/w/pipe_sizes"], on_disconnect="hold") as process:
                return await process.stdout_read()

        return set(await asyncio.gather(*(said() for _ in range(PROCESSES))))
