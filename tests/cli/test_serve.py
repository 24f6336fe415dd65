"""`fastclaw serve` on the command line."""

import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastclaw", "serve", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_nothing_to_read_is_a_clean_end() -> None:
    done = run("--runtime", "memory")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("arguments", [("--runtime", "vm"), ("--log-format", "xml"), ("--nonsense",)])
def test_wrong_arguments_say_what_is_wrong(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_help() -> None:
    assert "--runtime" in run("--help").stdout
