"""Looking at 5 000 live processes: what is shown of them, and what that costs, in processor time."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.cli.pseudo_terminal import OnTerminal
from tests.pids import command_line, descendants_of
from tests.served import Served, serve_command

PROCESSES = 5_000
AT_A_TIME = 200
LOOK_S = 10.0
TOP = [sys.executable, "-m", "fastclaw", "top"]
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(*pids: int) -> float:
    """Processor time so far (proc_pid_stat(5)); of whoever has ended meanwhile, none."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(fields[11]) + int(fields[12])
    return total * TICK_S


def start_all(runtime: Served) -> int:
    """As many as this host bears of those that are wanted."""
    runtime.initialize(max_processes=PROCESSES)
    most: int = min(PROCESSES, runtime.call("health")["result"]["details"]["processes"]["max_processes"])
    for first in range(0, most, AT_A_TIME):
        numbers = range(first, min(most, first + AT_A_TIME))
        for number in numbers:
            runtime.post("exec", number, cmd=["sleep", str(100_000 + number)])
        runtime.until(partial(runtime.answers.keys().__ge__, {*numbers}))
    assert runtime.call("health")["result"]["details"]["processes"]["live"] == most
    return most


def is_command(pid: int) -> bool:
    return command_line(pid).startswith(b"sleep\0")


def shows(text: str, lines: list[str]) -> bool:
    return text in lines[-1]


@pytest.mark.timeout(240)
def test_5000_processes_are_looked_at_for_next_to_nothing(tmp_path: Path) -> None:
    with Served(serve_command("local", "--control"), tmp_path / "log") as runtime:
        most = start_all(runtime)
        control = runtime.call("health")["result"]["details"]["control"]
        ours = [runtime.child.pid, *(pid for pid in descendants_of(runtime.child.pid) if not is_command(pid))]
        before = cpu_s(*ours)
        time.sleep(LOOK_S)
        assert cpu_s(*ours) - before <= 0.01 * LOOK_S, "nobody looks"
        for sort, columns in (("age", 40), ("cpu", 120)):
            with OnTerminal([*TOP, "--sort", sort, control], columns, 40, os.environ) as terminal:
                terminal.until(partial(shows, f"/{most} by {sort}"))
                terminal.watch(1.0)
                before, began = cpu_s(*ours), time.monotonic()
                terminal.watch(LOOK_S)
                cost = (cpu_s(*ours) - before) / (time.monotonic() - began)
                assert cost <= 0.03, f"by {sort}: {cost:.3f} of a core, spawner included"
                terminal.press("\x1b[4~")  # End
                terminal.until(partial(shows, f"-{most}/{most} by"))
                terminal.press(f"/{100_000 + most - 1}\n")
                terminal.until(partial(shows, "1-1/1 by"))
