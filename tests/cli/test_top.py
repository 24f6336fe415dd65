"""`fastclaw top` of real runtimes, on a real terminal and without one."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.programs import assert_one_line, fastclaw
from tests.cli.pseudo_terminal import OnTerminal
from tests.served import Served, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


ONLY_HERE = """
import sys
from fastclaw.processes import listeners
listeners._default_parents = lambda: ()
from fastclaw.cli.main import main
sys.argv[0] = "fastclaw"
main()
"""
"""`fastclaw` that finds no runtime which somebody else has started on this machine."""

FASTCLAW = [sys.executable, "-c", ONLY_HERE]


@pytest.fixture
def only_one(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes that are started go where no others are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))


@pytest.fixture
def running(tmp_path: Path, only_one: None) -> Iterator[Served]:
    """A runtime that can be looked at, the only one there is."""
    for one in served(tmp_path, "local", "--control"):
        one.initialize()
        yield one


def on_terminal(columns: int = 120, rows: int = 24, *arguments: str) -> OnTerminal:
    return OnTerminal([*FASTCLAW, "top", *arguments], columns, rows, os.environ)


def has(text: str, lines: list[str]) -> bool:
    return any(text in line for line in lines)


# --- without a terminal ---


def test_without_a_terminal_one_look_is_printed(running: Served) -> None:
    running.exec("sh", "-c", "while :; do :; done")
    for number in range(3):
        running.exec("sleep", str(1000 + number), request_id=number)
    done = fastclaw("top", command=FASTCLAW, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert "live 4" in lines[0]
    assert [line[-10:] for line in lines[-4:-1]] == ["sleep 1002", "sleep 1001", "sleep 1000"]
    assert is_busy(lines[-1])
    assert max(map(len, lines)) <= 100
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("term", ["dumb", "no-such-terminal"])
def test_a_terminal_that_has_no_cursor_is_none(running: Served, term: str) -> None:
    running.exec("sleep", "1000")
    with OnTerminal([*FASTCLAW, "top"], 100, 24, {**os.environ}, term=term) as terminal:
        terminal.until(lambda lines: has("sleep 1000", lines))
        assert terminal.until_end() == 0


@pytest.mark.parametrize("command", ["top", "stats"])
@pytest.mark.usefixtures("only_one")
def test_where_there_is_no_runtime_it_is_said_what_to_type(command: str) -> None:
    done = fastclaw(command, command=FASTCLAW)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "fastclaw serve --control" in assert_one_line(done.stderr)


def test_of_several_one_is_to_be_named(running: Served, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for other in served(tmp_path / "other", "memory", "--control"):
        paths = [other.initialize()["control"], running.call("health")["result"]["details"]["control"]]
        done = fastclaw("top", command=FASTCLAW)
        assert done.returncode == 1
        said = assert_one_line(done.stderr)
        assert all(path in said for path in paths)
        assert fastclaw("top", paths[0]).returncode == 0


# --- with one ---


@pytest.mark.parametrize(("columns", "rows"), [(40, 12), (120, 24)])
def test_it_is_looked_at_filtered_sorted_and_left(running: Served, columns: int, rows: int) -> None:
    running.exec("sh", "-c", "while :; do :; done", request_id="busy")
    for number in range(30):
        running.exec("sleep", str(1000 + number), request_id=number)
    with on_terminal(columns, rows, "--interval", "0.5") as terminal:
        lines = terminal.until(lambda lines: has("/31 by age", lines))
        assert has("live 31", lines)
        assert max(map(len, lines)) <= columns
        terminal.press("P")
        terminal.until(lambda lines: has("/31 by cpu", lines) and is_busy(first_row(lines)), "the busy one first")
        terminal.press("/1007\n")
        terminal.until(lambda lines: has("1-1/1 by cpu", lines) and has("'1007'", lines) and has("sleep 1007", lines))
        terminal.press("\x1b")
        terminal.until(lambda lines: has("/31 by cpu", lines))
        terminal.press("\x1b[17~")  # F6
        terminal.until(lambda lines: has("Sort by", lines))
        terminal.press("\x1b[A\n")
        terminal.until(lambda lines: has("/31 by environment", lines))
        terminal.press("t")
        terminal.until(lambda lines: "main" in lines)
        terminal.press("q")
        assert terminal.until_end() == 0


def first_row(lines: list[str]) -> str:
    at = next((at for at, line in enumerate(lines) if "COMMAND" in line), -2)
    return lines[at + 1]


def is_busy(row: str) -> bool:
    words = row.split()
    return "while" in row and words[1] != "-" and float(words[1]) > 5


def test_another_size_is_drawn_anew(running: Served) -> None:
    for number in range(30):
        running.exec("sleep", str(1000 + number), request_id=number)
    with on_terminal(120, 24) as terminal:
        terminal.until(lambda lines: has("1-21/30", lines) or has("1-20/30", lines))
        terminal.resize(40, 12)
        lines = terminal.until(lambda lines: lines[-1].startswith("1-7/30 by age"))
        assert max(map(len, lines)) <= 40
        terminal.resize(130, 50)
        terminal.until(lambda lines: lines[-1].startswith("1-30/30 by age") and has("ENVIRONMENT", lines))


def test_what_something_else_has_written_goes_with_control_l(running: Served) -> None:
    running.exec("sleep", "1000")
    with on_terminal(60, 12) as terminal:
        terminal.until(lambda lines: has("sleep 1000", lines))
        terminal.disturb("\x1b[8;1Hsome error")
        assert has("some error", terminal.lines)
        terminal.press("\x0c")
        terminal.until(lambda lines: not has("some error", lines) and has("sleep 1000", lines))


def test_a_process_is_ended_once_that_is_confirmed(running: Served) -> None:
    process = running.exec("sh", "-c", "sleep 1000 & sleep 1000")["process_id"]
    with on_terminal(40, 12) as terminal:
        terminal.until(lambda lines: has("1/1 by age", lines))
        terminal.press("k")
        terminal.until(lambda lines: has(f"End {process} with its tree? y/n", lines))
        terminal.press("n")
        terminal.until(lambda lines: has("1/1 by age", lines))
        assert running.call("wait", process_id=process, timeout_ms=0)["result"]["state"] == "running"
        terminal.press("ky")
        terminal.until(lambda lines: has(f"{process} has ended", lines) or has("0/0 by age", lines))
    record = running.call("wait", process_id=process)["result"]
    assert (record["state"], record["reason"]) == ("exited", "killed")


def test_the_end_of_the_runtime_is_that_of_the_look(running: Served) -> None:
    with on_terminal(100, 24, "--interval", "0.5") as terminal:
        terminal.until(lambda lines: has("0/0 by age", lines))
        running.call("shutdown")
        terminal.until(lambda lines: has("its runtime has ended", lines) or has("no control socket", lines))
        assert terminal.until_end() == 1
