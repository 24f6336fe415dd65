"""LangChain's own tests of sandboxes: what passes without fastclaw passes with it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.adapters.suites import figures, load_image, outcomes, passed

if TYPE_CHECKING:
    from tests.adapters.conftest import Report


def test_what_passes_without_fastclaw_passes_with_it(tmp_path: Path, report: Report) -> None:
    for suite in Path(__file__).parent.glob("suite_*.py"):  # away from this tree's own conftest.py
        shutil.copy(suite, tmp_path)
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # has the `python` that they call
    control = outcomes(tmp_path, "suite_control.py", PATH=here)
    found = outcomes(tmp_path, "suite_fastclaw.py", FASTCLAW_TEST_IMAGE=load_image(tmp_path))
    report("langchain_tests SandboxIntegrationTests", *figures(found), control=figures(control))
    assert passed(control)
    assert passed(control) - passed(found) == set()
