"""Which limit binds first."""

import pytest

from fastclaw import limits
from fastclaw.linux.own_limits import HostLimits
from fastclaw.processes.capacity import Capacity, capacity

FREE = HostLimits(None, None, None, None)
FILES = limits.RESERVED_FILES + 10 * limits.FILES_PER_PROCESS
"""For ten processes whose bytes are moved here."""


def test_a_host_without_limits_holds_what_was_asked_for() -> None:
    assert capacity(FREE, 5) == Capacity(5, "options.max_processes")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (FREE._replace(nofile=FILES), Capacity(10, "open files")),
        (
            FREE._replace(nproc=limits.RESERVED_PIDS + 7 * limits.PIDS_PER_PROCESS),
            Capacity(7, "processes of this user"),
        ),
        (FREE._replace(pid_max=limits.RESERVED_PIDS + 6 * limits.PIDS_PER_PROCESS), Capacity(6, "kernel.pid_max")),
        (FREE._replace(memory_bytes=3 * limits.MEMORY_PER_PROCESS), Capacity(3, "memory")),
    ],
)
def test_the_smallest_binds(host: HostLimits, expected: Capacity) -> None:
    assert capacity(host, 4096) == expected


def test_one_process_always_fits() -> None:
    assert capacity(HostLimits(1, 1, 1, 1), 4096).processes == 1


def test_a_lane_that_holds_less_of_each_holds_more_of_them() -> None:
    few = capacity(FREE._replace(nofile=FILES), 4096, limits.FILES_PER_PUMPED)
    assert few == Capacity(10 * limits.FILES_PER_PROCESS // limits.FILES_PER_PUMPED, "open files")
