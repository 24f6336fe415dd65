"""What is told too fast: as much of it as there is room for, and the count of the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits
from fastclaw.progress import Progress, ProgressBuffer


def test_lines_add_up_and_the_last_counters_win() -> None:
    buffer = ProgressBuffer()
    assert buffer.take() is None
    for told in (Progress(text="a\nb\n"), Progress(done=1, total=9), Progress(text="c\n"), Progress(done=2, total=8)):
        buffer.add(told)
    assert buffer.take() == Progress(text="a\nb\nc\n", done=2, total=8)
    assert buffer.take() is None
    buffer.add(Progress(text="\n"))
    assert buffer.take() == Progress(text="\n")


def test_a_total_that_is_not_known_any_more() -> None:
    buffer = ProgressBuffer()
    buffer.add(Progress(done=1, total=9))
    buffer.add(Progress(done=2))
    assert buffer.take() == Progress(done=2)


def test_of_a_long_line_the_beginning_stays() -> None:
    buffer = ProgressBuffer()
    buffer.add(Progress(text="x" * 10 * limits.PROGRESS_LINE_CHARS + "\nshort\n"))
    told = buffer.take()
    assert told is not None
    assert told.text == "x" * limits.PROGRESS_LINE_CHARS + "…\nshort\n"


@given(st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 3))))
def test_no_line_is_lost_without_being_counted_and_there_is_never_more_than_room_for(
    given: list[tuple[int, int]],
) -> None:
    buffer, lines = ProgressBuffer(), []
    for number, (length, dropped) in enumerate(given):
        lines.append(f"{number:05} {'x' * (length % 2_000)}\n")
        buffer.add(Progress(text=lines[-1], dropped=dropped))
    told = buffer.take()
    if told is None:
        assert not lines
        return
    assert len(told.text) <= limits.PROGRESS_TEXT_CHARS
    kept = told.text.splitlines()
    assert len(kept) + told.dropped == len(lines) + sum(dropped for _, dropped in given)
    newest = [line[:5] for line in lines][len(lines) - len(kept) :]
    assert [line[:5] for line in kept] == newest
