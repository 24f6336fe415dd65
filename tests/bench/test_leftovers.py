"""What is left is found: processes by their mark and by their tree, sockets, monitors of containers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from fastclaw import bench_limits
from fastclaw.bench.leftovers import Leftovers, Traces, command_lines, existing, running, tree

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SLEEP = ["sleep", "300"]


PARENT = """
import subprocess, sys
child = subprocess.Popen(['sleep', '300'], env={})
print(child.pid, flush=True)
sys.stdin.read()
"""


def sleeping(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, env=environment, start_new_session=True)


def parent_of_one() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_a_process_is_found_by_its_mark_wherever_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_limits, "BENCH_GONE_MS", 50)
    traces = Traces()
    process = sleeping(traces.environment)
    try:
        assert await traces.gone() == 1
        assert await Traces().gone() == 0
    finally:
        process.kill()
        process.wait()
    assert await traces.gone() == 0


async def test_a_process_is_found_by_the_tree_it_was_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wiped its environment, and its parent is gone."""
    monkeypatch.setattr(bench_limits, "BENCH_GONE_MS", 50)
    traces = Traces()
    parent = parent_of_one()
    assert parent.stdout is not None
    assert parent.stdin is not None
    child = int(parent.stdout.readline())
    try:
        assert set(tree(parent.pid)) == {parent.pid, child}
        traces.see(parent.pid)
        parent.stdin.close()
        parent.wait()
        parent.stdout.close()
        assert await traces.gone() == 1
    finally:
        os.kill(child, signal.SIGKILL)
    monkeypatch.setattr(bench_limits, "BENCH_GONE_MS", 5_000)
    assert await traces.gone() == 0


def test_a_process_that_is_gone_has_no_tree() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert tree(process.pid) == {}


def test_sockets_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    there = str(tmp_path / "there")
    assert existing([there, there, str(tmp_path / "dangling"), str(tmp_path / "gone"), "a\0b", "x" * 5_000]) == 2


def test_a_container_is_known_by_its_monitor() -> None:
    script = "echo up; sleep 300; : fastclaw-bench-monitor"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        assert running(["fastclaw-bench-monitor", "fastclaw-bench-" + "other"]) == 1
        assert running([]) == 0
        assert any(b"sleep 300" in line for line in command_lines())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_total() -> None:
    assert Leftovers(processes=1, sockets=2, containers=3, environments=4).total == 10
