"""The README's first program is a real file, and prints what the README says."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROGRAM = ROOT / "docs" / "hello.py"


def block(after: str) -> str:
    """The first code block behind a text."""
    return README.split(after, 1)[1].split("```", 1)[0]


def test_the_first_program_is_the_file() -> None:
    assert block("```python\n") == PROGRAM.read_text()


def first_program(**environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=100, check=False, env=given
    )


def test_the_first_program_prints_what_the_readme_says() -> None:
    done = first_program()
    assert (done.returncode, done.stdout) == (0, block("```\n\n```\n")), done.stderr


def test_where_it_cannot_start_it_says_so_in_a_line() -> None:
    done = first_program(CONTAINER_HOST="unix:///none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hello: start failed: no engine answers at unix:///none")
    assert done.stderr.count("\n") == 1


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [part.split(")")[0] for part in README.split("](")[1:]]
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
