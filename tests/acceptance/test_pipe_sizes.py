"""A pipe holds 64 KiB, also where thousands of processes have three each.

The kernel gives a user's first 1 024 pipes that much, and further ones 8 KiB (pipe(7), pipe-user-pages-soft), unless
who makes them is privileged on the host: the pumps of a container are several users (spawner/c/confine.c).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from tests.acceptance.slow_files import compile_static

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine_fixtures import EngineService

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
PROCESSES = 600
"""With 1 800 pipes: three quarters more than the first user's share."""
AT_ONCE = 50


@pytest.fixture
def place() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        compile_static("pipe_sizes", Path(directory))
        Path(directory).chmod(0o755)
        yield directory


@pytest.mark.podman
async def test_thousands_of_pipes_in_a_container_have_their_full_size(
    engine_service: EngineService, place: str
) -> None:
    workspace = {"source": place, "target": "/w"}
    options = {"url": engine_service.url, "image": engine_service.image, "workspace": workspace}
    async with RuntimeClient.spawn(SERVE, namespace="pipe-sizes", options=options) as runtime:
        places = asyncio.Semaphore(AT_ONCE)

        async def said() -> bytes:
            async with places, await runtime.exec(["/w/pipe_sizes"], on_disconnect="hold") as process:
                return await process.stdout_read()

        sizes = await asyncio.gather(*(said() for _ in range(PROCESSES)))
    assert set(sizes) == {b"%d %d %d\n" % ((limits.PIPE_BYTES,) * 3)}
