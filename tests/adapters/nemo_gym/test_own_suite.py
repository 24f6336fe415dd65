"""NeMo Gym's own tests of its local provider, with ours in the place of that, and with that one itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.adapters.suites import figures, load_image, outcomes, source_of

if TYPE_CHECKING:
    import pytest

    from tests.adapters.conftest import Report

FILE = "tests/unit_tests/test_local_provider.py"
TESTS = (
    "exec_runs_in_the_workspace_with_layered_env",
    "command_failure_is_reported_not_raised",
    "timeout_kills_the_whole_process_tree",
    "timeout_returns_even_when_a_child_escapes_the_process_group",
    "file_transfer_resolves_relative_paths_against_the_workspace",
    "registered_provider_drives_the_public_sandbox_api",
)
"""Those that are not about how the local one starts processes on this host, which of a spec it ignores, and that it has
no users."""


def test_what_passes_without_us_passes_with_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setenv("PIP_IGNORE_REQUIRES_PYTHON", "1")  # as the file `install` has it
    source = source_of("nemo-gym", tmp_path)
    chosen = [str(source / FILE), "-k", " or ".join(f"test_{name}" for name in TESTS)]
    without = outcomes(source, *chosen)
    here = str(Path(__file__).parent)
    ours = outcomes(source, *chosen, "-p", "stand_in", IMAGE=load_image(tmp_path), PYTHONPATH=here)
    assert set(without.values()) == set(ours.values()) == {"passed"}
    assert len(without) == len(ours) == len(TESTS)
    report("NeMo Gym's own tests of a provider", *figures(ours), control=figures(without))
