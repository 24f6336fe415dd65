"""The SDK's own tests of a client, with ours in the place of its unix-local one, and with that one itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from tests.adapters.conftest import Report

TESTS = {
    "tests/sandbox/test_run_cwd.py": (
        "concurrent_runs_scope_relative_paths_with_shared_live_session",
        "resumed_run_rebinds_cwd_to_pending_sandbox_tool",
        "resumed_apply_patch_uses_current_run_cwd",
    ),
    "tests/sandbox/test_runtime.py": (
        "unix_local_runner_cleanup_preserves_resumed_caller_owned_workspace_root",
        "unix_local_read_and_write_reject_paths_outside_workspace_root",
        "unix_local_rm_recursive_ignores_missing_paths",
        "unix_local_rm_non_recursive_still_errors_for_missing_paths",
        "wrapped_unix_local_helpers_reject_symlink_escape_paths",
        "runner_persists_workspace_and_tool_choice_state_across_sandbox_resume",
        "runner_restores_all_sandbox_agents_from_run_state_across_handoffs",
        "runner_serializes_unique_sandbox_resume_keys_for_duplicate_agent_names",
        "runner_restores_duplicate_name_sandbox_sessions_after_json_roundtrip",
        "runner_restores_legacy_current_sandbox_payload_after_json_roundtrip",
        "unix_local_exec_runs_without_wrapper_on_linux",
    ),
    "tests/sandbox/test_unix_local.py": (
        "unix_local_snapshot_resume_removes_stale_link_without_following_target",
        "pty_exec_write_poll_and_unknown_session_errors",
        "pty_ctrl_c_interrupts_long_running_process",
        "pty_terminal_signals_interrupt_even_if_parent_ignores_signal",
        "non_tty_pty_session_rejects_stdin_and_can_still_be_polled",
        "stop_terminates_active_pty_sessions",
        "move_to_an_existing_directory_keeps_the_source",
        "same_file_answers_for_real_paths",
    ),
}
"""Those that start sandboxes by the client and are not about what the unix-local one does to this host: its variables,
its mounts, where its default workspace is, its users that are none."""

DIFFERENT = {
    # 130 and 131, as the SDK's Docker client has it, where these want -2 and -3.
    "test_pty_terminal_signals_interrupt_even_if_parent_ignores_signal[sigint]",
    "test_pty_terminal_signals_interrupt_even_if_parent_ignores_signal[sigquit]",
}

NAME = "openai-agents"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the very release that is installed, which has the tests."""
    place = tmp_path_factory.mktemp("source")
    wanted = [f"{NAME}=={version(NAME)}", "--no-deps", "--no-binary", NAME, "--dest", str(place)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *wanted], check=True)
    (packed,) = place.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(place, filter="data")
    (found,) = (path for path in place.iterdir() if path.is_dir())
    return found


@pytest.mark.timeout(1200)
def test_what_passes_without_us_passes_with_us(source: Path, report: Report) -> None:
    without, ours = outcomes(source), outcomes(source, "-p", "stand_in")
    assert set(without.values()) == {"passed"}
    assert ours.keys() == without.keys()
    assert {name for name, outcome in ours.items() if outcome != "passed"} == DIFFERENT
    report("the SDK's own tests of a client", len(ours) - len(DIFFERENT), len(ours), (len(without), len(without)))


def outcomes(source: Path, *plugin: str) -> dict[str, str]:
    """How each of the tests went."""
    found = source / "report.xml"
    told = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", f"--junit-xml={found}", *plugin]
    names = " or ".join(f"test_{name}" for chosen in TESTS.values() for name in chosen)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "pytest", *told, "-k", names, *TESTS]
    assert subprocess.run(command, cwd=source, env=environ, check=False).returncode in (0, 1)
    cases = ElementTree.parse(found).iter("testcase")
    return {case.attrib["name"]: next((child.tag for child in case), "passed") for case in cases}
