"""`fastclaw demo` as it is called, and its rounds: a fault is found, and nothing where there is none."""

import io
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import orjson
import pytest
from msgspec import structs
from rich.console import Console

from fastclaw.cli import demo
from fastclaw.cli.demo import MARKER, Leftovers, Percentiles, Result, leftovers, run_round
from fastclaw.cli.demo import _percentiles as percentiles
from fastclaw.engine.service.facts import why_no_docker, why_no_engine
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.options import Options
from tests.cli.programs import assert_one_line, fastclaw

SMALL = ["--runtime", "local", "--workers", "3", "--lines", "2"]


def test_json_is_all_there_is_on_stdout() -> None:
    done = fastclaw("demo", *SMALL, "--json", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    rounds = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert [(one["runtime"], one["workers"], one["lines"]) for one in rounds] == [("local", 3, 6)] * 2
    assert rounds[0]["leftovers"] == {"processes": 0, "sockets": 0, "directories": 0}


def test_the_table_and_the_reason() -> None:
    done = fastclaw("demo", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"Runtime: local, as you asked.\n")
    for words in ("3/3", "6/6", "starts", "round trip p50 / p99", "3 of 3 right", "0 processes, 0 sockets"):
        assert words in done.stdout.decode()


def test_an_engine_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", "unix:///none")
    done = fastclaw("demo", "--workers", "1")
    assert done.returncode == 1
    assert assert_one_line(done.stderr).startswith("Error: start failed: no engine answers at unix:///none")


def test_auto_says_which_and_why() -> None:
    chosen, why = demo.choose("auto")
    reason = why_no_engine(Options())
    other = "docker" if why_no_docker(Options()) is None else "local"
    assert chosen == ("podman" if reason is None else other)
    assert reason is None or reason in why
    assert why


GOOD = Result(
    runtime="local",
    workers=1,
    lines=1,
    starts_per_s=1.0,
    start=Percentiles(p50_ms=1.0, p99_ms=1.0),
    round_trip=Percentiles(p50_ms=1.0, p99_ms=1.0),
    right_exit_codes=1,
    leftovers=Leftovers(processes=0, sockets=0, directories=0),
)


def test_a_bad_round_is_explained() -> None:
    left = Leftovers(processes=2, sockets=0, directories=0)
    result = structs.replace(GOOD, leftovers=left, wrong=["[worker] 0: 'x' instead of 'y'"])
    shown = Console(file=io.StringIO(), width=100)
    demo.explain(result, shown)
    shown.print(demo.table(result))
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    assert "[worker] 0: 'x' instead of 'y'" in text
    assert "2 processes" in text


# --- Rounds ---


WORKERS = 5
LINES = 4


async def a_round(runtime: str, seen: Counter[str]) -> Result:
    with tempfile.TemporaryFile() as log:
        return await run_round(runtime, WORKERS, LINES, log, lambda kind: seen.update([kind]))


async def test_a_good_round() -> None:
    seen: Counter[str] = Counter()
    result = await a_round("local", seen)
    assert result.is_good
    assert (result.runtime, result.workers, result.lines) == ("local", WORKERS, WORKERS * LINES)
    assert result.right_exit_codes == WORKERS
    assert result.starts_per_s > 0
    assert 0 < result.start.p50_ms <= result.start.p99_ms
    assert 0 < result.round_trip.p50_ms <= result.round_trip.p99_ms
    assert seen == {"start": WORKERS, "line": WORKERS * LINES}


async def test_a_worker_that_cannot_start_is_the_error_that_is_raised() -> None:
    with pytest.raises((ExecFailed, StartFailed)) as caught:
        await a_round("memory", Counter())
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
    [{"wrong": ["a line"]}, {"right_exit_codes": 0}, {"leftovers": Leftovers(processes=0, sockets=1, directories=0)}],
)
def test_a_round_with_any_fault_is_bad(change: dict[str, object]) -> None:
    assert GOOD.is_good
    assert not structs.replace(GOOD, **change).is_good


def test_percentiles_are_by_nearest_rank() -> None:
    assert percentiles([number / 1000 for number in range(100, 0, -1)]) == Percentiles(p50_ms=50, p99_ms=99)
    assert percentiles([0.0012345]) == Percentiles(p50_ms=1.234, p99_ms=1.234)
