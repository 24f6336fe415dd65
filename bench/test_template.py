"""Start to first byte of a Python worker with heavy imports on the local runtime: forked from a template, and cold."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from bench.execs import served
from bench.ratios import Ratios, compare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from fastclaw.client import RuntimeClient

MODULES = [
    *("asyncio", "json", "decimal", "http.client", "http.server", "email.mime.multipart", "ssl", "xml.dom.minidom"),
    *("unittest", "multiprocessing", "concurrent.futures", "sqlite3", "argparse", "logging.config", "urllib.request"),
    *("zipfile", "tarfile", "tempfile", "subprocess", "dataclasses", "typing", "uuid", "csv", "statistics"),
]
"""What an agent's worker has before it does anything, of the standard library."""

CODE = f"import {', '.join(MODULES)}, sys; print('ready', flush=True); sys.stdin.read()"
BYTE = b"r"
COUNT = 12
ROUNDS = 9
AT_ONCE = [1, 8]


@pytest.fixture
def client(runner: asyncio.Runner) -> Iterator[RuntimeClient]:
    preload = [word for module in MODULES for word in ("-i", module)]
    template = {"cmd": [sys.executable, "-m", "fastclaw.template", *preload]}
    with served(runner, "local", templates={"warm": template}) as client:
        yield client


async def first_byte(client: RuntimeClient, template: str | None) -> None:
    """One worker until it has said its first word, and its end, which costs both kinds the same."""
    async with await client.exec([sys.executable, "-c", CODE], template=template) as process:
        assert (await process.stdout_read()).startswith(BYTE)
        await process.kill(0)


async def workers(client: RuntimeClient, template: str | None, at_once: int) -> None:
    """`COUNT` of them."""
    left = iter(range(COUNT))

    async def some() -> None:
        for _ in left:
            await first_byte(client, template)

    await asyncio.gather(*(some() for _ in range(at_once)))


@pytest.mark.parametrize("at_once", AT_ONCE)
def test_first_byte(
    benchmark: BenchmarkFixture, ratios: Ratios, runner: asyncio.Runner, client: RuntimeClient, at_once: int
) -> None:
    found = compare(
        benchmark,
        lambda: runner.run(workers(client, "warm", at_once)),
        {"cold": lambda: runner.run(workers(client, None, at_once))},
        ROUNDS,
    )
    ratios.compared(f"template, {at_once} at once", "cold start of a Python worker", found.rates("cold", COUNT))
