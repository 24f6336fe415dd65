"""The runtime that does nothing answers each call that a load makes as it must be; a real one is beside it in
test_benchmark.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw.bench import null_main
from fastclaw.bench.calibration import NULL
from fastclaw.bench.job import Plan
from fastclaw.bench.session import up
from tests.bench.rig import ignored, job

if TYPE_CHECKING:
    from fastclaw.bench.job import LoadName


@pytest.mark.parametrize("load", ["exec", "run", "hold", "environments", "files"])
async def test_each_load_works_on_it(load: LoadName) -> None:
    one = job(NULL, load, live=4, size=100_000)
    async with up(one) as session:
        await session.begin()
        _, measured = await session.measure(one.plan, ignored)
    assert (measured.right, measured.failed) == (40, {})
    assert session.farewell is not None
    assert session.farewell.exit_code == 0
    assert session.farewell.leftovers.total == 0


async def test_it_keeps_up_with_requests_that_come_in_pieces() -> None:
    async with up(job(NULL, plan=Plan(burst=1_000, count=3_000))) as session:
        _, measured = await session.measure(Plan(burst=1_000, count=3_000), ignored)
    assert measured.right == 3_000


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; sys.argv = ['x']; import runpy; runpy.run_path(PATH, run_name='x'); print(*sys.modules)"
    code = code.replace("PATH", repr(str(Path(null_main.__file__))))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "select" in done.stdout.split()


def test_the_end_of_input_is_its_end() -> None:
    done = subprocess.run(NULL, input=b"", capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
