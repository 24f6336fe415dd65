"""Identity of processes."""

import os
import subprocess

import pytest

from fastclaw.linux.owner import boot_id, identity, own_label, own_start_time, pid_namespace, start_time
from fastclaw.podman.container_spec import Owner, parse_owner


def test_this_process_has_a_start_time() -> None:
    assert start_time(os.getpid()) == own_start_time()
    assert own_start_time() > 0


def test_a_reaped_process_has_none() -> None:
    done = subprocess.Popen(["true"])
    done.wait(10)
    assert start_time(done.pid) is None


def test_a_zombie_counts_as_gone() -> None:
    pid = os.posix_spawnp("true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert start_time(pid) is None
    finally:
        os.waitpid(pid, 0)


@pytest.mark.parametrize("name", ["x", "a b", ") R (", "((", "R 1 2 3"])
def test_a_program_may_have_any_name(name: str) -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    assert identity(f"77 ({name}) S {fields}\n") == (77, 22)


def test_boot_id_is_the_kernels() -> None:
    assert len(boot_id()) == 36


def test_what_we_own_says_so() -> None:
    assert parse_owner(own_label()) == Owner(
        pid=os.getpid(), start_time=own_start_time(), boot_id=boot_id(), pid_namespace=pid_namespace()
    )
