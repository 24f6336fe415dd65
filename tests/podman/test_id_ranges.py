"""Ranges of ids, taken and given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.podman.id_ranges import IdRange, take_id_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FIRST = 2 * limits.IDS
HOLDER = """
import sys
from pathlib import Path
from fastclaw.podman.id_ranges import take_id_range
print(take_id_range(Path(sys.argv[1]), int(sys.argv[2]), 3).first, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def take(tmp_path: Path) -> Iterator[Callable[[], IdRange]]:
    taken: list[IdRange] = []

    def one() -> IdRange:
        taken.append(take_id_range(tmp_path / "ids", FIRST, 3))
        return taken[-1]

    yield one
    for each in taken:
        each.release()


def test_no_two_have_the_same_and_the_last_is_refused(take: Callable[[], IdRange]) -> None:
    assert [take().first for _ in range(3)] == [FIRST, FIRST + limits.IDS, FIRST + 2 * limits.IDS]
    with pytest.raises(StartFailed, match=r"all 3 ranges .*options.id_ranges") as refused:
        take()
    assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)


def test_one_that_is_given_back_is_taken_again(take: Callable[[], IdRange], tmp_path: Path) -> None:
    first = take_id_range(tmp_path / "ids", FIRST, 3)
    assert take().first == FIRST + limits.IDS
    first.release()
    assert take().first == FIRST


def test_one_goes_with_the_process_that_has_it(take: Callable[[], IdRange], tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "ids"), str(FIRST)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) == FIRST
        assert take().first == FIRST + limits.IDS
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert take().first == FIRST


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartFailed, match=f"{tmp_path}/file"):
        take_id_range(tmp_path / "file" / "ids", FIRST, 1)
    assert os.listdir(tmp_path) == ["file"]
