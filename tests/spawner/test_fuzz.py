"""The short form of `make fuzz`: the spawner's sources under sanitizers, the same requests and stories each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.spawner.fuzz import __main__ as program
from tests.spawner.fuzz import harness

if TYPE_CHECKING:
    from pathlib import Path

REQUESTS, STORIES, ARCHIVES = 10_000, 250, 50_000
"""A few seconds' worth."""


@pytest.fixture(scope="module")
def programs() -> Path:
    lacking = harness.missing()
    if lacking is not None:
        pytest.skip(lacking)
    return harness.build()


def test_no_request_makes_the_parser_look_beyond_its_frame_or_a_failed_step_be_passed_over(programs: Path) -> None:
    done = harness.run(programs / "requests", 0, REQUESTS)
    assert done.returncode == 0, harness.failure(done)
    words = done.stdout.split()
    assert int(words[2]) > REQUESTS // 10, "hardly any is refused"
    assert int(words[6]) > REQUESTS // 10, "hardly any gets as far as its execve"


def test_no_archive_makes_its_reader_look_elsewhere_and_what_is_written_is_read_as_it_was(programs: Path) -> None:
    done = harness.run(programs / "archives", 0, ARCHIVES)
    assert done.returncode == 0, harness.failure(done)


def test_in_no_order_of_things_is_an_end_told_twice_or_never_a_byte_lost_or_a_client_left_hanging(
    programs: Path,
) -> None:
    done = harness.run(programs / "stories", 0, STORIES)
    assert done.returncode == 0, harness.failure(done)


def test_a_compiler_without_sanitizers_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'cannot find -lasan' >&2\nexit 1\n")
    compiler.chmod(0o755)
    for name, word in (("no-such-compiler", "install gcc"), (str(compiler), "cannot find -lasan")):
        monkeypatch.setenv("CC", name)
        lacking = harness.missing()
        assert lacking is not None
        assert word in lacking
        assert "\n" not in lacking
        assert program.main([]) == 1
