"""SWE-ReX's own tests of a runtime (tests/test_execution.py of its source distribution) with ours, and with its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.adapters.suites import figures, load_image, outcomes, passed, source_of

if TYPE_CHECKING:
    from tests.adapters.conftest import Report

SUITE = ("test_execution.py", "--deselect", "test_execution.py::test_server_dead")
"""The one that is left out looks for a server that is none, with neither runtime."""


def test_its_suite_passes(tmp_path: Path, report: Report) -> None:
    downloads, suite = tmp_path / "source", tmp_path / "suite"
    downloads.mkdir()
    suite.mkdir()
    shutil.copy(source_of("swe-rex", downloads) / "tests" / SUITE[0], suite)
    shutil.copy(Path(__file__).with_name("suite_conftest.py"), suite / "conftest.py")
    (suite / "__init__.py").touch()
    control = outcomes(suite, *SUITE, TERM="dumb")  # with another its sessions say more than its tests await
    found = outcomes(suite, *SUITE, SWE_REX_IMAGE=load_image(tmp_path))
    report("tests/test_execution.py", *figures(found), control=figures(control))
    assert passed(control) - passed(found) == set()
    assert set(found.values()) <= {"passed", "skipped"}  # it expects one to fail, which is skipped in a report
