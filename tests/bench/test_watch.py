"""What is seen of a host: processor time of a tree, descriptors, and what a runtime calls its queue."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from fastclaw.bench.calls import Calls
from fastclaw.bench.watch import Watch, files_limit, ticks, waiting_in
from tests.bench.rig import evil

BUSY = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BUSY!r}])
print(flush=True)
sys.stdin.read()
"""


def test_the_time_of_children_that_have_ended_counts() -> None:
    before = ticks(os.getpid())
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        of_parent = ticks(parent.pid)
        parent.communicate()
    per_s = os.sysconf("SC_CLK_TCK")
    assert 0.4 * per_s < of_parent.tree < 5 * per_s
    assert of_parent.runtime < of_parent.tree
    assert ticks(os.getpid()).machine - before.machine >= 0.4 * per_s


def test_a_process_that_is_gone_took_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    gone = ticks(process.pid)
    assert (gone.tree, gone.runtime) == (0, 0)
    assert files_limit(process.pid) is None


def test_how_many_descriptors_a_process_may_have() -> None:
    script = "ulimit -n 123; read -r _"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 5
        while files_limit(process.pid) != 123:
            assert time.monotonic() < deadline
        process.communicate(b"\n")


@pytest.mark.parametrize(
    ("details", "waiting"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"processes": {"waiting": 3, "live": 9}}, 3),
        ({"queued": 2, "pool": {"queue_length": 5}}, 7),
        ({"waiting": True, "x": {"waiting": "3"}}, None),
        ({"a": {"b": {"c": {"d": {"waiting": 1}}}}}, None),
    ],
)
def test_a_queue_is_found_by_what_it_is_called(details: Any, waiting: int | None) -> None:
    assert waiting_in(details) == waiting


async def test_a_watch_sees_a_runtime_of_any_kind() -> None:
    calls = Calls(deadline_ms=5_000)
    try:
        await calls.start(evil("good"), dict(os.environ))
        await calls.call("initialize", b"{}")
        watch = Watch(calls)
        await calls.call("health", b"{}")
        await calls.call("health", b"{}")  # behind the one of its first look
        found = await watch.end()
    finally:
        await calls.aclose()
    assert found.processors == os.cpu_count()
    assert found.files >= 3
    assert found.files_limit is not None
    assert (found.waiting, found.status) == (None, "healthy")
    assert found.generator > 0
