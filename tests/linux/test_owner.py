"""Identity of processes."""

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.linux.owner import Owner, boot_id, identity, is_dead, parse_label, start_time, this_process


def test_this_process_has_a_start_time() -> None:
    assert start_time(os.getpid()) == this_process().start_time > 0


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
    assert parse_label(this_process().label) == this_process()
    assert not is_dead(this_process())
    assert not is_dead(None)
    assert is_dead(this_process()._replace(start_time=1))


@given(pid=st.integers(1, 2**22), start=st.integers(0, 2**60), boot=st.uuids())
def test_owner_label_round_trip(pid: int, start: int, boot: object) -> None:
    owner = Owner(pid, start, start + 1, str(boot))
    assert parse_label(owner.label) == owner


@given(st.text(max_size=40))
def test_any_text_is_an_owner_or_not(text: str) -> None:
    owner = parse_label(text)
    assert owner is None or owner.label.partition(":")[2]


@pytest.mark.parametrize(
    ("label", "dead"),
    [
        ("12:345:boot-a:7", False),
        ("12:346:boot-a:7", True),
        ("13:345:boot-a:7", True),
        ("12:345:boot-b:7", True),
        # In another PID namespace 12 is somebody else: nobody here can know whether that one lives.
        ("12:346:boot-a:8", False),
        ("13:345:boot-a:8", False),
        ("12:345:boot-b:8", True),
        ("", False),
        ("12:345", False),
        ("12:346:boot-a", False),
        ("12:346:boot-a:", False),
        ("12:346:boot-a:7:7", False),
        ("-12:345:boot-a:7", False),
        ("x:345:boot-a:7", False),
    ],
)
def test_dead_owners(label: str, dead: bool) -> None:
    here, started = Owner(1, 1, 7, "boot-a"), {12: 345}
    owner = parse_label(label)
    assert (owner is not None and owner.is_gone(here, started.get(owner.pid))) is dead


@pytest.mark.parametrize(
    ("start", "namespace", "dead"), [(345, 7, False), (346, 7, True), (None, 7, True), (None, 8, False)]
)
def test_an_owner_of_this_boot_needs_no_boot_id(start: int | None, namespace: int, dead: bool) -> None:
    assert Owner(12, 345, namespace).is_gone(Owner(1, 1, 7, "boot-a"), start) is dead
