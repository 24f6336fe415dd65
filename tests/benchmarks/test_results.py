"""Files of results: what is written is read again, what is cut is said, and page and comparison follow from them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from bench import compare, report
from bench.figures import quantity
from bench.ratios import Budgets, Pairs, Ratios
from bench.report import page
from bench.results import Header, Results, Row, Side, read, write

if TYPE_CHECKING:
    from pathlib import Path

HEADER = Header(
    date="2026-11-30",
    commit="6e7fe66",
    machine="2 CPUs, 24 GiB, x86_64",
    kernel="Linux 6.18",
    load=0.5,
    python="3.11.7",
    versions={"uvloop": "0.23.0"},
    missing={"bubblewrap": "apt-get install bubblewrap"},
)
NO_BUDGETS = Budgets({}, {})


def results(ours: list[float], theirs: list[float], unit: str = "/s") -> Results:
    """Of one comparison."""
    ratios = Ratios()
    ratios.compared("run", "posix_spawn", Pairs(unit, ours, theirs, [1.0] * len(ours)))
    return Results(HEADER, ratios.rows)


def line_of(text: str, what: str) -> list[str]:
    """The cells of a row of a table."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {what} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = results([1, 2, 3], [2, 2, 2])
    write(tmp_path / "new" / "a.jsonl", *found)
    assert read(tmp_path / "new" / "a.jsonl") == found


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, *results([1, 2, 3], [2, 2, 2]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 7"):
        read(path)


def test_a_file_that_was_cut_between_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, *results([1, 2, 3], [2, 2, 2]))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"3 rounds of ours and 2 of the rival"):
        read(path)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([1, 0], [2, 2], "run / posix_spawn: a value that is not above 0"),
        ([], [], "nothing was measured"),
    ],
)
def test_a_file_of_which_no_ratios_can_be_made(
    tmp_path: Path, ours: list[float], theirs: list[float], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page of the last run stays: it is not written over with half of one."""
    sides: tuple[tuple[Side, list[float]], ...] = (("ours", ours), ("rival", theirs))
    rows = [
        Row(what="run", rival="posix_spawn", side=side, unit="/s", value=value, round=0, at=1)
        for side, values in sides
        for value in values
    ]
    write(tmp_path / "a", HEADER, rows)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "a")
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "a")]) == 1
    before = report.PAGE.read_bytes()
    assert report.main([str(tmp_path / "a")]) == 1
    assert report.PAGE.read_bytes() == before
    assert capsys.readouterr().err.count(said) == 2


@pytest.mark.parametrize("text", ["", "\n", "[]", '{"what": "run"}'])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match="line 1"):
        read(tmp_path / "a.jsonl")


def test_a_rate_is_better_when_higher_and_a_time_when_lower() -> None:
    assert results([30, 20], [10, 10]).series()[0].values == [3, 2]
    assert results([30, 20], [10, 10], "s").series()[0].values == [1 / 3, 1 / 2]


def test_a_name_stands_for_one_series() -> None:
    ratios = Ratios()
    ratios.figure("memory", [1.0], "KB")
    with pytest.raises(AssertionError):
        ratios.figure("memory", [2.0], "KB")


def test_page() -> None:
    """Ratios by pairs, goals and aims, both sides, who was not measured."""
    found = results([90, 100, 80, 95, 85], [100, 100, 100, 100, 100])
    found.rows.append(Row(what="memory", unit="KB", value=12.5, round=0, at=1))
    text = page(found, Budgets({"run / posix_spawn": 0.95}, {"run / posix_spawn": 0.8}))
    assert line_of(text, "run / posix_spawn") == (
        ["run / posix_spawn", "0.9", "0.85 to 0.95", "5", "0.025", "90/s", "100/s", "≥ 0.95 **missed**", "≥ 0.8"]
    )
    assert line_of(text, "memory") == ["memory", "12.5 KB", "", "1"]
    assert "- Not measured: bubblewrap; apt-get install bubblewrap" in text
    assert page(found, NO_BUDGETS) == page(found, NO_BUDGETS)


def test_goals_that_nothing_was_measured_for_are_missed() -> None:
    budgets = Budgets({"run / posix_spawn": 0.8, "exec / posix_spawn": 0.8}, {})
    assert budgets.missed(results([9], [10]).series()) == ["exec / posix_spawn: not measured"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.00085, "s", "850 µs"), (0, "s", "0 ns"), (1442.4, "/s", "1,442/s"), (1.66, "GB/s", "1.66 GB/s")],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_what_noise_explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The machine was half as fast: ours, too."""
    write(tmp_path / "a", *results([90, 92, 88, 91, 89, 90.5], [100] * 6))
    write(tmp_path / "b", *results([45, 46.1, 43, 45.2, 45.9, 44.9], [50] * 6))
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "n 6 + 6: no difference that noise does not explain" in capsys.readouterr().out


def test_what_noise_does_not_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", *results([90, 92, 88, 91, 89, 93], [100] * 6))
    write(tmp_path / "b", *results([75, 77, 74, 76, 73, 78], [100] * 6))
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    line = "run / posix_spawn: 0.905 -> 0.755, n 6 + 6: 0.834 times (p 0.0022)"
    assert capsys.readouterr().out == f"load before the runs: 0.5; 0.5\n{line}\n"


def test_another_machine_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = results([1, 2], [1, 2])
    write(tmp_path / "a", *first)
    write(tmp_path / "b", structs.replace(HEADER, kernel="Linux 6.1", versions={"uvloop": "0.22.1"}), first.rows)
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert "not the same kernel: Linux 6.18; Linux 6.1\n" in told
    assert "not the same uvloop: 0.23.0; 0.22.1\n" in told


def test_rows_that_only_one_has_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = Row(what="memory", unit="KB", value=12.5, round=0, at=1)
    write(tmp_path / "a", *results([1, 2], [1, 2]))
    write(tmp_path / "b", HEADER, [figure])
    write(tmp_path / "c", HEADER, [*results([1, 2], [1, 2]).rows, figure])
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "c")]) == 0
    assert capsys.readouterr().out.startswith("load before the runs: 0.5; 0.5\nonly in B: 1 rows, as memory\n")
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    told = capsys.readouterr()
    assert (
        told.out
        == "load before the runs: 0.5; 0.5\nonly in A: 1 rows, as run / posix_spawn\nonly in B: 1 rows, as memory\n"
    )
    assert told.err == "bench-compare: no row is in both\n"


@pytest.mark.parametrize("paths", [[], ["a", "b"]])
def test_how_the_page_is_made(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(paths) == 2
    assert capsys.readouterr().err.startswith("usage: python -m bench.report FILE")


@pytest.mark.parametrize("paths", [[], ["a"], ["a", "b", "c"]])
def test_how_it_is_used(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(paths) == 2
    assert capsys.readouterr().err.startswith("usage: make bench-compare A=FILE B=FILE")


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path / "a"), sys.executable]) == 1
    assert "No such file" in capsys.readouterr().err
