"""`health` while commands hold the locks of their own pipes and a thousand exec calls are under way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from bench.lean_client import LeanClient, connected
from bench.processes import runs
from bench.wire import Command, Wire
from fastclaw.linux import proc
from fastclaw.linux.own_process import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.programs import Programs
    from bench.ratios import Ratios

LOCKS = 100
EXECS = 4_000
AT_ONCE = [16, 1_000]
"""What a supervisor has under way all the time; and a burst of it, behind which `health` must not queue either."""

TRUE = Command(["/bin/true"], [])
ALLOWED_MS = 50
DEADLINE_S = 40
"""For all of it, which takes some seconds: a runtime that touches a locked pipe hangs for ever, and so would this."""

LOCKING = b"locking\n"


def test_health(ratios: Ratios, programs: Programs) -> None:
    raise_file_limit()
    work = programs.path("work")
    with served(work) as client, contextlib.ExitStack() as held:
        for result in client.start([work, "lock"], LOCKS):
            errors = held.enter_context(connected(result["stderr_addr"]))
            assert errors.recv(len(LOCKING), socket.MSG_WAITALL) == LOCKING
            held.enter_context(connected(result["stdio_addr"]))  # last: with it the pump sleeps
        found = {at_once: Wire(programs, client).health_during_exec(TRUE, EXECS, at_once) for at_once in AT_ONCE}
    for at_once, times in found.items():
        what = f"{LOCKS} locked pipes, {at_once} exec calls under way"
        ratios.allowed(f"allowed p99 of health ({ALLOWED_MS} ms) / taken, {what}", [1000 * ALLOWED_MS / times.p99_us])
        ratios.figure(f"health, {what}, p50", [times.p50_us / 1e6], "s")
        ratios.figure(f"health, {what}, p99", [times.p99_us / 1e6], "s")


@contextlib.contextmanager
def served(work: str) -> Iterator[LeanClient]:
    """The local runtime, which is ended where it hangs: then the test fails, with that as its reason."""
    client = LeanClient("local", {})
    hangs = threading.Event()

    def end() -> None:
        hangs.set()
        release(work)
        client.process.kill()

    timer = threading.Timer(DEADLINE_S, end)
    timer.start()
    try:
        yield client
        client.close()
    except BaseException:
        release(work)
        client.end()
        if hangs.is_set():
            why = f"the runtime hangs: a command that locks its own pipe stops it ({DEADLINE_S} s)"
            raise pytest.fail.Exception(why, pytrace=False) from None
        raise
    finally:
        timer.cancel()


def release(work: str) -> None:
    """End every command that may hold a lock: nothing less lets go of a runtime that waits for one."""
    for pid in proc.pids():
        if runs(pid, work):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
