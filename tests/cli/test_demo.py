"""`fastclaw demo` as it is called: what it prints, and its exit code."""

import io
import subprocess
import sys

import orjson
import pytest
from rich.console import Console

from fastclaw.cli import demo
from fastclaw.cli.demo_round import Leftovers, Percentiles, Result
from fastclaw.options import Options
from fastclaw.podman.service.facts import why_no_engine
from tests.cli.programs import assert_one_line

SMALL = ["--runtime", "local", "--workers", "3", "--lines", "2"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastclaw", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_json_is_all_there_is_on_stdout() -> None:
    done = run(*SMALL, "--json", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    rounds = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert [(one["runtime"], one["workers"], one["lines"]) for one in rounds] == [("local", 3, 6)] * 2
    assert rounds[0]["leftovers"] == {"processes": 0, "sockets": 0, "directories": 0}


def test_the_table_and_the_reason() -> None:
    done = run(*SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Runtime: local, as you asked.\n")
    for words in ("3/3", "6/6", "starts", "round trip p50 / p99", "3 of 3 right", "0 processes, 0 sockets"):
        assert words in done.stdout


def test_an_engine_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", "unix:///none")
    done = run("--workers", "1")
    assert done.returncode == 1
    assert assert_one_line(done.stderr.encode()).startswith("Error: start failed: no engine answers at unix:///none")


def test_auto_says_which_and_why() -> None:
    chosen, why = demo.choose("auto")
    reason = why_no_engine(Options())
    assert chosen == ("podman" if reason is None else "local")
    assert reason is None or reason in why
    assert why


def test_a_bad_round_is_explained() -> None:
    result = Result(
        runtime="local",
        workers=1,
        lines=1,
        starts_per_s=1.0,
        start=Percentiles(p50_ms=1.0, p99_ms=1.0),
        round_trip=Percentiles(p50_ms=1.0, p99_ms=1.0),
        right_exit_codes=1,
        leftovers=Leftovers(processes=2, sockets=0, directories=0),
        wrong=["[worker] 0: 'x' instead of 'y'"],
    )
    shown = Console(file=io.StringIO(), width=100)
    demo.explain(result, shown)
    shown.print(demo.table(result))
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    assert "[worker] 0: 'x' instead of 'y'" in text
    assert "2 processes" in text


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--runtime", "nope"]])
def test_nonsense_is_a_usage_error(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
