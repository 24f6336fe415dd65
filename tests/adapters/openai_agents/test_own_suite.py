"""The SDK's own tests of a client, with ours in the place of its unix-local one, and with that one itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.adapters.suites import figures, outcomes, passed, source_of

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
"""Those that start sandboxes by the client and are not about this host, where the unix-local one has its sandboxes: its
variables, its programs, its mounts, where a default workspace is, that it has no users."""

DIFFERENT = {
    # 130 and 131, as the SDK's Docker client has it, where these want -2 and -3.
    "test_pty_terminal_signals_interrupt_even_if_parent_ignores_signal[sigint]",
    "test_pty_terminal_signals_interrupt_even_if_parent_ignores_signal[sigquit]",
}


@pytest.mark.timeout(1200)
def test_what_passes_without_us_passes_with_us(tmp_path: Path, image: str, report: Report) -> None:
    source = source_of("openai-agents", tmp_path)
    names = " or ".join(f"test_{name}" for chosen in TESTS.values() for name in chosen)
    chosen = [*(str(source / file) for file in TESTS), "-k", names]
    environ = {"PYTHONPATH": str(Path(__file__).parent), "OPENAI_API_KEY": "none"}
    without = outcomes(source, *chosen, **environ)
    ours = outcomes(source, *chosen, "-p", "stand_in", IMAGE=image, **environ)
    assert passed(without) == without.keys() == ours.keys()
    assert ours.keys() - passed(ours) == DIFFERENT
    report("the SDK's own tests of a client", *figures(ours), control=figures(without))
