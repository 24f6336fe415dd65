"""A round finds nothing wrong where nothing is wrong, and everything that is."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from fastclaw.cli.demo_round import MARKER, Leftovers, Result, leftovers, run_round
from fastclaw.errors import ExecFailed, StartFailed

WORKERS = 5
LINES = 4


async def run(runtime: str, seen: Counter[str]) -> Result:
    with tempfile.TemporaryFile() as log:
        return await run_round(runtime, WORKERS, LINES, log, lambda kind: seen.update([kind]))


async def test_a_good_round() -> None:
    seen: Counter[str] = Counter()
    result = await run("local", seen)
    assert result.is_good
    assert (result.runtime, result.workers, result.lines) == ("local", WORKERS, WORKERS * LINES)
    assert result.right_exit_codes == WORKERS
    assert result.starts_per_s > 0
    assert 0 < result.start.p50_ms <= result.start.p99_ms
    assert 0 < result.round_trip.p50_ms <= result.round_trip.p99_ms
    assert seen == {"start": WORKERS, "line": WORKERS * LINES}


async def test_a_worker_that_cannot_start_is_the_error_that_is_raised() -> None:
    with pytest.raises((ExecFailed, StartFailed)) as caught:
        await run("memory", Counter())
    assert caught.value.reason == "not_found"


def test_leftovers_are_found(tmp_path: Path) -> None:
    path = tmp_path / "worker.io"
    path.touch()
    token = f"demo-test-{os.getpid()}"
    command = [sys.executable, "-c", "print('ready', flush=True); input()"]
    env = {**os.environ, MARKER: token}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"  # Popen returns before the kernel has laid out the environment
        found = leftovers(token, [str(path)])
        assert found == Leftovers(processes=1, sockets=1, directories=1)
        assert found.total == 3
        process.communicate(b"\n")
    path.unlink()
    tmp_path.rmdir()
    assert leftovers(token, [str(path)]).total == 0


@pytest.mark.parametrize(
    "change",
    [{"wrong": ["a line"]}, {"right_exit_codes": 1}, {"leftovers": Leftovers(processes=0, sockets=1, directories=0)}],
)
async def test_a_round_with_any_fault_is_bad(change: dict[str, object]) -> None:
    good = await run("local", Counter())
    fields = {name: getattr(good, name) for name in good.__struct_fields__}
    assert good.is_good
    assert not Result(**(fields | change)).is_good
