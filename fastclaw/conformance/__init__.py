"""Public checks that any runtime extension, in any language, must pass over stdio."""

# The checks register themselves when imported.
from fastclaw.conformance import (
    check_cancel,
    check_clients,
    check_errors,
    check_exec,
    check_kill,
    check_lifecycle,
    check_records,
    check_run,
    check_run_ends,
    check_run_limits,
    check_sockets,
    check_streams,
    check_terminals,
    check_wire,
)
from fastclaw.conformance.promises import BY_ID, PROMISES, Promise
from fastclaw.conformance.report import Finding, Report
from fastclaw.conformance.runner import check
from fastclaw.conformance.vocabulary import MEMORY, POSIX, VOCABULARIES, Vocabulary

__all__ = [
    "BY_ID",
    "MEMORY",
    "POSIX",
    "PROMISES",
    "VOCABULARIES",
    "Finding",
    "Promise",
    "Report",
    "Vocabulary",
    "check",
    "check_cancel",
    "check_clients",
    "check_errors",
    "check_exec",
    "check_kill",
    "check_lifecycle",
    "check_records",
    "check_run",
    "check_run_ends",
    "check_run_limits",
    "check_sockets",
    "check_streams",
    "check_terminals",
    "check_wire",
]
