"""Public checks that any runtime extension, in any language, must pass over stdio."""

from fastclaw.conformance import (  # noqa: F401 - they register themselves
    check_environments,
    check_exec,
    check_files,
    check_images,
    check_lifecycle,
    check_run,
    check_run_limits,
    check_streams,
)
from fastclaw.conformance.promises import BY_ID, PROMISES, Promise
from fastclaw.conformance.rig import MEMORY, POSIX, VOCABULARIES, Vocabulary
from fastclaw.conformance.runner import Finding, Report, check

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
]
