"""mini-swe-agent's own tests of environments, where there is a checkout of it, on ours and on its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.adapters.suites import figures, load_image, outcomes, passed

if TYPE_CHECKING:
    from tests.adapters.conftest import Report

SUITE = ("test_docker.py", "test_local.py")
PLUGIN = ("-p", "tests.adapters.mini_swe_agent.redirect", "-W", "ignore::pytest.PytestUnknownMarkWarning")


def test_its_suite_passes(tmp_path: Path, report: Report) -> None:
    checkout = os.environ.get("MINI_SWE_AGENT_CHECKOUT")
    if checkout is None:
        pytest.skip("its tests/environments are in no distribution: MINI_SWE_AGENT_CHECKOUT names a checkout of it")
    for name in SUITE:
        shutil.copy(Path(checkout, "tests", "environments", name), tmp_path)
    control = outcomes(tmp_path, SUITE[1], *PLUGIN)  # its `docker` would need a registry
    found = outcomes(tmp_path, *SUITE, *PLUGIN, FASTCLAW_TEST_IMAGE=load_image(tmp_path))
    report("tests/environments", *figures(found), control=figures(control))
    assert passed(control) - passed(found) == set()
    assert set(found.values()) <= {"passed", "skipped"}  # they skip what needs the docker command
