"""What is answered before anything is loaded, what that costs, and the table of commands as text."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import __version__
from fastclaw.cli.main import COMMANDS, OPTIONS, help_text
from tests.cli.programs import DEADLINE_S, FASTCLAW, assert_one_line, fastclaw

if TYPE_CHECKING:
    from tests.cli.programs import Call


SCRIPT = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "fastclaw")]
"""As it is installed, but for its first line."""

ROUNDS = 21
WITHIN = {
    "--version": (SCRIPT, 1.5),
    "--help": (SCRIPT, 2.5),
    "-h": (FASTCLAW, 2.5),  # -m alone loads runpy, which is 1.6 by itself
}
"""The CPU time that each may take, in that of a Python that does nothing."""


def test_version_and_help(call: Call) -> None:
    assert call("--version").stdout.decode() == f"fastclaw, version {__version__}\n"
    assert call("--help").stdout == call("-h").stdout == help_text().encode() + b"\n"


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_click_says_the_same(call: Call, option: str) -> None:
    """`--debug` is click's, and so is all that comes with it."""
    assert call("--debug", option).stdout == call(option).stdout


def cpu_s(command: list[str]) -> float:
    nothing = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=[nothing])
    _, status, used = os.wait4(pid, 0)
    assert status == 0
    return used.ru_utime + used.ru_stime


def test_they_cost_little_more_than_python_itself() -> None:
    commands = {"": [sys.executable, "-c", "pass"]} | {name: [*words, name] for name, (words, _) in WITHIN.items()}
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            took[name].append(cpu_s(command))
    floor = statistics.median(took[""])
    ratios = {name: statistics.median(took[name]) / floor for name in WITHIN}
    assert {name: ratio for name, ratio in ratios.items() if ratio > WITHIN[name][1]} == {}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; from fastclaw.cli.main import main; sys.argv[1:] = {statement}\ntry: main()\n"
    code += "except SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    return set(fastclaw(code, command=[sys.executable, "-c"]).stderr.decode().split())


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_they_load_nothing(arguments: list[str]) -> None:
    loaded = loaded_by(repr(arguments))
    assert loaded.isdisjoint({"re", "typing", "click", "asyncio", "podman", "rich", "uvloop", "importlib.metadata"})
    ours = {name for name in loaded if name.partition(".")[0] == "fastclaw"}
    assert ours == {"fastclaw", "fastclaw.cli", "fastclaw.cli.main"}


@pytest.mark.parametrize("arguments", [["serve", "--runtime=local"], ["run", "--help"], ["check", "--help"]])
def test_a_command_loads_nothing_that_it_does_not_use(arguments: list[str]) -> None:
    loaded = loaded_by(repr(arguments))
    assert loaded.isdisjoint({"podman", "requests", "rich", "fastclaw.cli.demo"})
    assert "fastclaw.runtimes" not in loaded or arguments[0] == "serve", "the others start it as a child"


@pytest.mark.parametrize("module", ["click", "msgspec", "uvloop"])
def test_what_is_not_installed_is_said_in_one_line(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv[1:] = ['doctor']; from fastclaw.cli.main import main"
    done = fastclaw(f"{code}; main()", command=[sys.executable, "-c"])
    assert done.returncode == 1
    assert assert_one_line(done.stderr).startswith(f"Error: {module} is not installed; ")


@pytest.mark.parametrize("command", [SCRIPT, FASTCLAW])
def test_output_that_nobody_reads_or_nobody_can_write_is_no_traceback(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = fastclaw("--help", command=command, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
    full = ["sh", "-c", '"$@" >/dev/full', "sh", *command, "--version"]
    done = subprocess.run(full, capture_output=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stderr) == (1, b"Error: No space left on device\n")
    closed = ["sh", "-c", '"$@" >&-', "sh", *command, "--version"]
    done = subprocess.run(closed, capture_output=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_everything_is_in_it_and_fits_a_terminal() -> None:
    lines = help_text().splitlines()
    assert all(len(line) <= 80 for line in lines)
    for name, text in (COMMANDS | OPTIONS).items():
        [line] = [line for line in lines if line.strip().startswith(f"{name} ")]
        assert line.endswith(f"  {text}")
