"""Two mappings of one memory: what one counts, the other reads."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from contextlib import closing

import pytest

from fastclaw.network.egress.counters import Counters
from fastclaw.network.egress.policy import REASONS
from tests.balance import open_descriptors

ZERO = {"allowed": 0, "denied": {}, "failed": {}, "bytes": {"sent": 0, "received": 0}, "open": 0}


def test_what_is_counted_here_is_read_there() -> None:
    with closing(Counters.create()) as ours, closing(Counters.attach(os.dup(ours.fd))) as theirs:
        assert ours.snapshot() == ZERO
        theirs.allowed()
        theirs.denied("not_allowed")
        theirs.denied("not_allowed")
        theirs.denied("special_address")
        theirs.failed("unreachable")
        theirs.sent(2**40)
        theirs.received(3)
        theirs.opened()
        theirs.opened()
        theirs.closed()
        assert ours.snapshot() == {
            "allowed": 1,
            "denied": {"not_allowed": 2, "special_address": 1},
            "failed": {"unreachable": 1},
            "bytes": {"sent": 2**40, "received": 3},
            "open": 1,
        }
        assert ours.moved == 2**40 + 3


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_has_a_place_of_its_own(reason: str) -> None:
    with closing(Counters.create()) as counters:
        counters.denied(reason)  # type: ignore[arg-type]
        counters.failed(reason)  # type: ignore[arg-type]
        assert counters.snapshot() == {**ZERO, "denied": {reason: 1}, "failed": {reason: 1}}


def test_a_killed_process_leaves_its_numbers_and_no_open_connection() -> None:
    code = (
        "import os, signal, sys; from fastclaw.network.egress.counters import Counters\n"
        "counters = Counters.attach(int(sys.argv[1])); counters.allowed(); counters.opened(); counters.sent(7)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with closing(Counters.create()) as counters:
        argv = [sys.executable, "-c", code, str(counters.fd)]
        done = subprocess.run(argv, pass_fds=[counters.fd], check=False, timeout=60)
        assert done.returncode == -9
        assert counters.snapshot() == {**ZERO, "allowed": 1, "bytes": {"sent": 7, "received": 0}, "open": 1}
        counters.reset_open()
        assert counters.snapshot()["open"] == 0
        assert counters.snapshot()["allowed"] == 1


def test_missing_log_lines_are_shown_where_there_are_some() -> None:
    with closing(Counters.create()) as counters:
        counters.logged_lost()
        counters.logged_lost(4)
        assert counters.snapshot() == {**ZERO, "log_lost": 5}


def test_nobody_can_cut_the_memory_off_under_the_others() -> None:
    with closing(Counters.create()) as counters:
        seals = fcntl.fcntl(counters.fd, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.ftruncate(counters.fd, 0)


def test_a_file_that_is_no_such_memory_is_refused_and_closed() -> None:
    before = open_descriptors()
    with tempfile.TemporaryFile() as file, pytest.raises(ValueError, match="length"):
        Counters.attach(os.dup(file.fileno()))
    assert open_descriptors() == before


def test_closed_twice_it_leaves_no_descriptor() -> None:
    before = open_descriptors()
    counters = Counters.create()
    counters.close()
    counters.close()
    assert open_descriptors() == before
