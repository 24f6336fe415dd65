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

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["tests.docker_fixtures"]

RATIOS = pytest.StashKey[Ratios]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make bench` writes, `make bench-check` checks."""
    group = parser.getgroup("ratios")
    group.addoption("--ratios-write", action="store_true", help="write docs/benchmarks.md")
    group.addoption("--ratios-check", action="store_true", help="fail below bench/budgets.toml")


def pytest_configure(config: pytest.Config) -> None:
    """One collection for the whole run."""
    config.stash[RATIOS] = Ratios(*read_budgets())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep and judge what was measured; a run with failures has nothing to say."""
    config = session.config
    if exitstatus != pytest.ExitCode.OK:
        return
    if config.getoption("--ratios-write"):
        config.stash[RATIOS].write()
    if config.getoption("--ratios-check") and config.stash[RATIOS].missed():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The ratios, after everything else."""
    ratios = config.stash[RATIOS]
    if not ratios.rows:
        return
    terminalreporter.section("ratios in this run (rate of ours over the rival's)")
    for line in ratios.table():
        terminalreporter.line(line)
    if config.getoption("--ratios-check"):
        for line in ratios.missed():
            terminalreporter.line(f"below the goal: {line}", red=True)


@pytest.fixture
def ratios(request: pytest.FixtureRequest) -> Ratios:
    """Where a bench leaves its ratios."""
    return request.config.stash[RATIOS]


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """One production loop for all benches: making it is not measured."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(runner: asyncio.Runner) -> Iterator[Engine]:
    """One for the benches of a file."""
    yield from engine_or_skip(runner)


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    """The clients and rivals that are in C."""
    with tempfile.TemporaryDirectory(prefix="fcp") as directory:
        yield Programs(Path(directory))
