"""The table in docs/gvisor.md: which promises hold in gVisor, as a run of the checks finds it.

python -m tests.engine.gvisor_table     (make gvisor-table) prints it; FASTCLAW_RUNSC says where runsc is
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastclaw import conformance
from fastclaw.conformance import VOCABULARIES, Report

SERVE = [sys.executable, "-m", "fastclaw", "serve"]
PAGE = Path(__file__).parent.parent.parent / "docs" / "gvisor.md"


def options_for(state_dir: str) -> dict[str, Any]:
    """Of an engine of these checks' own, in that directory, whose OCI runtime is gVisor."""
    runsc = os.environ.get("FASTCLAW_RUNSC")
    assert runsc, "make test-gvisor says where runsc is"
    return {"oci_runtime": runsc, "lane": "spawn", "state_dir": state_dir}


async def report_on(options: dict[str, Any]) -> Report:
    """A run of all checks."""
    return await conformance.check(SERVE, VOCABULARIES["posix"], options, None, jobs=2)


def table(report: Report, runsc: str) -> str:
    """The table of a run."""
    said = subprocess.run([runsc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"\d{8}", said)
    rows = [f"| promises | in release {release[0] if release else said.splitlines()[0]} |", "| --- | --- |"]
    kept = sum(finding.verdict == "kept" for finding in report.findings)
    rows.append(f"| kept | {kept} of {len(report.findings)} |")
    for verdict in ("broken", "not offered"):
        ids = [finding.promise.id for finding in report.findings if finding.verdict == verdict]
        rows.append(f"| {verdict} | {', '.join(ids)} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Check, and print the table; where a check found something else than the page says, all that it found."""
    with tempfile.TemporaryDirectory() as state_dir:
        options = options_for(state_dir)
        report = asyncio.run(report_on(options))
    found = table(report, options["oci_runtime"])
    print(found, end="")
    if found in PAGE.read_text():
        return 0
    print(f"\n{PAGE.name} says otherwise\n{report.to_text()}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
