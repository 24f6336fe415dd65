"""Journals that were cut, mixed with other things, or rotated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastclaw import telemetry_limits
from fastclaw.telemetry.lines import Line, encoded
from fastclaw.telemetry.reading import Reading

if TYPE_CHECKING:
    from pathlib import Path


def a_line(number: int) -> bytes:
    return encoded(Line(kind="run", id=f"p-{number}", timings={"exited": number}))


def test_files_that_were_rotated_come_first_the_oldest_before_all(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for number, name in enumerate(["journal.3", "journal.2", "journal.1", "journal"]):
        (tmp_path / name).write_bytes(a_line(number))
    (tmp_path / "journal.4").write_bytes(a_line(9))
    reading = Reading(path)
    assert [line.id for line in reading] == ["p-0", "p-1", "p-2", "p-3"]
    assert (reading.bad, reading.read_bytes) == (0, reading.total_bytes)


def test_what_is_rotated_while_it_is_read_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    (tmp_path / "journal.1").write_bytes(a_line(0))
    path.write_bytes(a_line(1))
    lines = iter(Reading(path))
    first = next(lines)
    (tmp_path / "journal.1").rename(tmp_path / "journal.2")
    path.rename(tmp_path / "journal.1")
    path.write_bytes(a_line(2))
    assert [first.id, *(line.id for line in lines)] == ["p-0", "p-1"]


@pytest.mark.parametrize("cut", range(1, len(a_line(7))))
def test_a_line_that_was_cut_anywhere_is_counted_and_the_others_are_read(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    path.write_bytes(a_line(1) + a_line(7)[:cut] + b"\n" + a_line(2) + a_line(7)[: -cut - 1])
    reading = Reading(path)
    ids = [line.id for line in reading]
    assert [id for id in ids if id != "p-7"] == ["p-1", "p-2"]
    assert reading.bad == 2 - ids.count("p-7") - (cut == len(a_line(7)) - 1)


def test_what_is_no_journal_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"x" * (3 * telemetry_limits.JOURNAL_LINE_BYTES) + b"\n\0\xff\n" + a_line(1))
    reading = Reading(path)
    assert [line.id for line in reading] == ["p-1"]
    assert reading.bad == 5


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reading(tmp_path / "journal")
