"""The README's program for supervisors; tests/test_code_blocks.py runs all that is on it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROGRAM = ROOT / "docs" / "hello.py"


def run(*program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, timeout=100, check=False, env=given
    )


def test_the_supervisors_program_is_the_file() -> None:
    assert f"```python\n{PROGRAM.read_text()}```" in README


def test_where_it_cannot_start_it_says_so_in_a_line() -> None:
    done = run(str(PROGRAM), CONTAINER_HOST="unix:///none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hello: start failed: no engine answers at unix:///none")
    assert done.stderr.count("\n") == 1
