"""A pytest plugin: which tests may run at the same time where there are several workers (pytest-xdist, `-n`).

Those of a file run one after the other, in one worker; so do those of files that use the same thing of this machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from collections.abc import Generator

    from xdist.remote import Producer

TOGETHER = {"tests/acceptance/test_egress": "routes", "tests/network/": "routes"}
"""Beginnings of files' names, and what they share: the routes of this machine, its interfaces and firewall."""


def group_of(nodeid: str) -> str:
    """Tests of the same group are never run at the same time."""
    file = nodeid.partition("::")[0]
    return next((group for beginning, group in TOGETHER.items() if file.startswith(beginning)), file)


class _ByGroup(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands a group to a worker as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByGroup:
    """As xdist's own, by group."""
    return _ByGroup(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A log may have what is no Unicode, which no worker can send."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
