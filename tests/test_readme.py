"""The README's programs print what the README says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROGRAM = ROOT / "docs" / "hello.py"


def block(after: str, page: str = README) -> str:
    """The first code block behind a text."""
    return page.split(after, 1)[1].split("```", 1)[0]


def run(*program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, timeout=100, check=False, env=given
    )


def test_the_first_program_prints_what_the_readme_says() -> None:
    done = run("-c", block("```python\n"))
    seconds = re.compile(r"\d\.\d{3} s")
    assert done.returncode == 0, done.stderr
    assert seconds.sub("", done.stdout) == seconds.sub("", block("```\n\n```\n"))


SUPERVISOR = README.split("## For a supervisor", 1)[1]


def test_the_supervisors_program_is_the_file() -> None:
    assert block("```python\n", SUPERVISOR) == PROGRAM.read_text()


def test_the_supervisors_program_prints_what_the_readme_says() -> None:
    done = run(str(PROGRAM))
    assert (done.returncode, done.stdout) == (0, block("```\n\n```\n", SUPERVISOR)), done.stderr


def test_where_it_cannot_start_it_says_so_in_a_line() -> None:
    done = run(str(PROGRAM), CONTAINER_HOST="unix:///none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hello: start failed: no engine answers at unix:///none")
    assert done.stderr.count("\n") == 1


def test_commands_that_need_no_terminal_can_be_typed_as_they_are() -> None:
    """`fastclaw run -n -- make test` was there, and no image of fastclaw's has make."""
    words = [shlex.split(line, comments=True) for line in README.splitlines() if line.startswith("fastclaw run ")]
    typed = [line[1:] for line in words if not {"-t", "…"} & {*line}]
    assert len(typed) == 2
    for line in typed:
        subprocess.run([sys.executable, "-m", "fastclaw", *line], stdin=subprocess.DEVNULL, check=True, timeout=100)


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [part.split(")")[0] for part in README.split("](")[1:]]
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
