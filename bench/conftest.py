"""The run's ratios, its loop, and what happens with the ratios in the end."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from bench.engine import Engine, engine_or_skip
from bench.programs import Programs
from bench.ratios import Ratios, read_budgets
from bench.report import PAGE, page, tables
from bench.results import default_path, write

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["tests.docker_fixtures"]

RATIOS = pytest.StashKey[Ratios]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make bench` writes, `make bench-check` checks."""
    group = parser.getgroup("ratios")
    group.addoption("--ratios-write", action="store_true", help="write .bench/DATE-COMMIT.jsonl and docs/benchmarks.md")
    group.addoption("--results", type=Path, help="write what was measured to this file")
    group.addoption("--ratios-check", action="store_true", help="fail below bench/budgets.toml")


def pytest_configure(config: pytest.Config) -> None:
    """One collection for the whole run."""
    config.stash[RATIOS] = Ratios()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep what was measured, and judge it; a run with failures has nothing to say, but its values are kept."""
    config = session.config
    results, budgets = config.stash[RATIOS].results(), read_budgets()
    if config.getoption("--ratios-write") or config.getoption("--results"):
        write(config.getoption("--results") or default_path(results.header), results.header, results.rows)
    if exitstatus != pytest.ExitCode.OK:
        return
    if config.getoption("--ratios-write"):
        PAGE.write_text(page(results, budgets))
    if config.getoption("--ratios-check") and budgets.missed(results.series()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The ratios, after everything else."""
    results, budgets = config.stash[RATIOS].results(), read_budgets()
    if not results.rows:
        return
    terminalreporter.section("ratios in this run (rate of ours over the rival's)")
    for line in tables(results, budgets):
        terminalreporter.line(line)
    if config.getoption("--ratios-check"):
        for line in budgets.missed(results.series()):
            terminalreporter.line(f"below the goal: {line}", red=True)


@pytest.fixture(scope="session")
def ratios(request: pytest.FixtureRequest) -> Ratios:
    """Where a bench leaves what it has measured."""
    return request.config.stash[RATIOS]


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """One production loop for all benches: making it is not measured."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(runner: asyncio.Runner, ratios: Ratios) -> Iterator[Engine]:
    """One for the benches of a file."""
    yield from engine_or_skip(runner, ratios.header.versions)


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    """The clients and rivals that are in C."""
    with tempfile.TemporaryDirectory(prefix="fcp") as directory:
        yield Programs(Path(directory))
