"""Sandboxes without `await`: from any thread, beside any loop, and at the end of the program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest

import fastclaw.sandbox as with_await
from fastclaw.sandbox import sync
from fastclaw.sandbox.loop_thread import loop_thread
from tests.pids import has_not_ended


def test_from_a_loop_that_runs_already() -> None:
    """As a notebook's."""

    async def cell() -> str:
        with sync.Host(runtime="local") as host, host.start() as box:
            return box.run(["echo", "cell"]).text

    assert asyncio.run(cell()) == "cell\n"


PROGRAM = """
    from fastclaw.sandbox.sync import Host
    host = Host(runtime="local").__enter__()
    box = host.start()
    print(host._of.client.pid, flush=True)
    {then}
"""


def program(then: str) -> subprocess.Popen[str]:
    source = textwrap.dedent(PROGRAM.format(then=then))
    return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_program_that_just_ends_leaves_nothing() -> None:
    with program("") as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert child.wait(20) == 0
    assert not has_not_ended(pid)


def test_ctrl_c_ends_what_is_waited_for() -> None:
    with program('print(box.run("echo x > /dev/stderr; sleep 100"))') as child:
        assert child.stdout is not None
        assert child.stderr is not None
        pid = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(20) == -signal.SIGINT
        assert "KeyboardInterrupt" in child.stderr.read()
    assert not has_not_ended(pid)


def test_its_own_loop_cannot_wait_for_itself() -> None:
    async def inside() -> None:
        sync.Host(runtime="local").__enter__()

    with pytest.raises(RuntimeError, match="fastclaw's own event loop"):
        loop_thread().call(inside())


def test_both_have_the_same_names() -> None:
    assert sync.__all__ == with_await.__all__
    for name in ("Host", "Sandbox", "Process"):
        public = {entry for entry in dir(getattr(with_await, name)) if not entry.startswith("_")}
        without = {entry for entry in dir(getattr(sync, name)) if not entry.startswith("_")}
        assert public - without <= {"client", "has_ended"}, name
        assert without - public <= {"asynchronous", "warnings"}, name  # the latter is an attribute there


FORKS = """
    import sys
    with Host(runtime="local") as host, host.start() as box:
        child = os.fork()
        if not child:
            try:
                box.run("true")
            except RuntimeError as error:
                print(error, flush=True)
            with Host(runtime="local") as other, other.start() as its:
                print(its.run("echo its own").text, end="", flush=True)
            sys.exit(7)  # leaves the parent's blocks, too
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), box.run("echo alive").text, end="")
"""


def test_a_child_of_fork_leaves_its_parents_sandboxes_alone() -> None:
    source = "import os\nfrom fastclaw.sandbox.sync import Host" + textwrap.dedent(FORKS)
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    said, own, alive = ran.stdout.splitlines()
    assert "fork()" in said
    assert (own, alive) == ("its own", "7 alive")


def test_a_host_is_entered_once_at_a_time() -> None:
    with sync.Host(runtime="local") as host:
        with pytest.raises(RuntimeError, match="entered already"):
            host.__enter__()
        assert host.list() == []
    with host:  # again, when it has been left
        assert host.list() == []
