"""A pytest plugin: how long each folder of tests took, beside the budget that pyproject.toml gives it.

A run of the whole suite where CI=true fails where a folder took more than `FACTOR` budgets. Elsewhere it only tells.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FACTOR = 2.0
"""A busy machine makes a run half as long again; what takes twice its budget has become slower itself."""


def read_budgets(root: Path) -> dict[str, int]:
    """Seconds by folder."""
    table: dict[str, int] = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["fastclaw"]["test-seconds"]
    return table


def folder_of(nodeid: str) -> str:
    """The folder right below `tests`, or `tests` itself for what lies in none."""
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 else "tests"


def too_slow(taken: Mapping[str, float], budgets: Mapping[str, int]) -> list[str]:
    """The folders that took more than noise explains."""
    return [folder for folder, seconds in taken.items() if seconds > FACTOR * budgets.get(folder, 0)]


class FolderSeconds:
    """Sums what set-up, call and end of each test took."""

    def __init__(self, budgets: Mapping[str, int], *, is_strict: bool) -> None:
        self._budgets, self._is_strict = budgets, is_strict
        self._taken: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._taken[folder_of(report.nodeid)] += report.duration  # type: ignore[assignment] # whole numbers, it says

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._is_strict and too_slow(self._taken, self._budgets):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("seconds by folder, of its budget")
        for folder, seconds in self._taken.most_common():
            slow = folder in too_slow(self._taken, self._budgets)
            line = f"{folder} {seconds:.0f} of {self._budgets.get(folder, 0)}{', TOO SLOW' if slow else ''}"
            terminalreporter.write_line(line, red=slow)


def pytest_configure(config: pytest.Config) -> None:
    """Strict only where everything runs."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    plugin = FolderSeconds(read_budgets(config.rootpath), is_strict=is_whole and os.environ.get("CI") == "true")
    config.pluginmanager.register(plugin, "folder-seconds")
