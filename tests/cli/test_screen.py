"""What keys mean, and what is shown, on screens of any size: without a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from rich.cells import cell_len

from fastclaw import telemetry_limits
from fastclaw.cli.screen import BARS, COLUMNS, KEYS, SORTS, Screen, cut, flow, plain, sparkline
from fastclaw.control.protocol import EnvironmentRow, ProcessRow, ProcessRows, Snapshot, StartLatency

if TYPE_CHECKING:
    from collections.abc import Sequence

from fastclaw.cli.screen import Line

SNAPSHOT = Snapshot(
    at=100.0,
    pid=7,
    version="1",
    namespace="box",
    started_at=40.0,
    states={"running": 2, "starting": 1},
    environments=[],
    total=3,
    live=41,
    starting=2,
)


def row(number: int, **more: Any) -> ProcessRow:
    given: dict[str, Any] = {
        "environment": "main",
        "command": f"sleep {number}",
        "state": "running",
        "started_at": 50.0,
    }
    return ProcessRow(process_id=f"p-{number}", **given | more)


def page(total: int = 100, offset: int = 0, count: int = 20, **more: Any) -> ProcessRows:
    return ProcessRows(at=100.0, total=total, offset=offset, rows=[row(offset + at) for at in range(count)], **more)


def a_screen(width: int = 120, height: int = 24, snapshot: Snapshot = SNAPSHOT) -> Screen:
    screen = Screen()
    screen.width, screen.height = width, height
    screen.show_snapshot(snapshot)
    screen.show_rows(page(count=screen.asked().limit))
    return screen


def follow(screen: Screen, total: int = 100) -> None:
    """Show what is asked for."""
    asked = screen.asked()
    screen.show_rows(page(total, min(asked.offset, max(0, total - asked.limit)), min(asked.limit, total)))


def press(screen: Screen, *keys: str, total: int = 100) -> None:
    for key in keys:
        screen.press(key)
        follow(screen, total)


def texts(lines: Sequence[Line]) -> list[str]:
    return ["".join(text for text, _ in line).rstrip() for line in lines]


def selected(screen: Screen) -> str:
    [text] = [text for line in screen.lines() for text, style in line if style == "reverse" and "sleep" in text]
    return text


# --- what is shown ---


def test_what_there_is_room_for_on_a_wide_screen() -> None:
    rows = [
        row(1, cpu_percent=12.5, memory_bytes=2_500_000, cpu_us=1_500_000, processes=3, in_bytes=7, out_bytes=1_000),
        row(2, blocked=["stdout", "stderr"], environment="e1"),
        row(3, state="exited", exit_code=0),
    ]
    screen = a_screen(width=130, height=9)
    screen.show_rows(ProcessRows(at=100.0, total=3, offset=0, rows=rows))
    assert texts(screen.lines()) == [
        "box (pid 7)  up 60.0s  environments: 2 running, 1 starting  live 41  starting 2  waiting 0",
        "S   CPU%    MEM    AGE ID               TIME BLOCKED ENVIRONMENT    OUT     IN PROCS COMMAND",
        "R  12.50 2.50MB  50.0s p-1             1.50s         main        1.00kB     7B     3 sleep 1",
        "B      -      -  50.0s p-2                 - both    e1               -      -     - sleep 2",
        "E      -      -  50.0s p-3                 -         main             -      -     - sleep 3",
        *[""] * 3,
        "1-3/3 by age  q leave  ? keys",
    ]


def test_what_there_is_room_for_on_a_narrow_screen() -> None:
    assert texts(a_screen(width=40, height=8).lines()) == [
        "box (pid 7)  up 60.0s",
        "environments: 2 running, 1 starting",
        "live 41  starting 2  waiting 0",
        "S   CPU%    MEM    AGE COMMAND",
        "R      -      -  50.0s sleep 0",
        "R      -      -  50.0s sleep 1",
        "R      -      -  50.0s sleep 2",
        "1-3/100 by age  q leave  ? keys",
    ]


def test_on_a_low_screen_what_is_above_the_processes_makes_room_for_them() -> None:
    lines = texts(a_screen(width=40, height=5).lines())
    assert [line[:10] for line in lines[:4]] == ["S   CPU%  ", *["R      -  "] * 3]
    assert lines[4].startswith("1-3/100")


@given(
    st.integers(1, 200),
    st.integers(1, 60),
    st.text(min_size=0, max_size=60),
    st.lists(
        st.sampled_from([*"PMTIte?y/kq>あ", "up", "down", "page down", "end", "enter", "escape", "f9", "f6", "x"]),
        max_size=8,
    ),
)
def test_no_line_is_wider_than_the_screen_whatever_is_pressed(
    width: int, height: int, command: str, keys: list[str]
) -> None:
    screen = a_screen(width, height)
    for key in keys:
        screen.press(key)
        asked = screen.asked()
        assert asked.limit >= 1
        follow(screen)
        rows = [structs.replace(row(at), command=command, environment=command) for at in range(asked.limit)]
        screen.show_rows(ProcessRows(at=100.0, total=100, offset=0, rows=rows))
        lines = screen.lines()
        assert len(lines) == height
        assert all(cell_len("".join(text for text, _ in line)) <= width for line in lines)


def test_pool_queue_egress_and_latency_are_shown_where_there_are_any() -> None:
    snapshot = structs.replace(
        SNAPSHOT,
        waiting=9,
        pool={"kinds": [{"size": 3, "ready": 1, "starting": 2}, {"size": 1, "ready": 1, "starting": 0}]},
        decisions={"allowed": 10, "denied": 2, "failed": 0},
        latency=StartLatency(count=5, mean_us=700.0),
    )
    screen = a_screen(width=200, snapshot=snapshot)
    screen.show_snapshot(structs.replace(snapshot, latency=StartLatency(count=1, mean_us=1400.0)))
    head = texts(screen.lines())[0]
    for part in ("waiting 9", "pool 2/4 ready", "egress: 10 allowed, 2 denied, 0 failed", "start ▅█ 1.4 ms"):
        assert part in head
    styles = dict(screen.lines()[0])
    assert [styles[text] for text in ("live 41", "waiting 9", "pool 2/4 ready")] == ["plain", "warning", "warning"]
    narrow = a_screen(40, 12, snapshot)
    assert "start █ 0.7 ms" in " ".join(texts(narrow.lines()))
    assert narrow.asked().limit == 12 - 5 - 2


def test_bars_are_as_high_as_their_numbers() -> None:
    assert sparkline([0, 0]) == BARS[0] * 2
    assert sparkline([1, 2, 4, 8]) == "▂▃▅█"


def test_a_line_is_cut_and_texts_flow() -> None:
    assert cut([("abc", "plain"), ("def", "bold")], 4) == [("abc", "plain"), ("d", "bold")]
    assert cut([("あい", "plain")], 3) == [("あ ", "plain")]
    assert texts(flow([("ab", "plain"), ("cd", "plain"), ("ef", "plain")], 6)) == ["ab  cd", "ef"]


def test_without_a_terminal_all_of_it_is_text() -> None:
    text = plain(SNAPSHOT, page(total=25, count=20), 120).splitlines()
    assert (len(text), text[-1]) == (1 + 1 + 20 + 1, "… and 5 more")
    assert text[2].endswith("sleep 0")


# --- moving ---


def test_the_cursor_moves_and_takes_the_page_along() -> None:
    screen = a_screen(height=13)
    assert screen.asked().limit == 10
    press(screen, "down", "down")
    assert "sleep 2" in selected(screen)
    press(screen, "page down")
    assert ("sleep 12" in selected(screen), screen.asked().offset) == (True, 3)
    press(screen, "end")
    assert ("sleep 99" in selected(screen), screen.asked().offset) == (True, 90)
    press(screen, "down", "up")
    assert "sleep 98" in selected(screen)
    press(screen, "page up", "page up")
    assert "sleep 78" in selected(screen)
    press(screen, "home", "up")
    assert ("sleep 0" in selected(screen), screen.asked().offset) == (True, 0)


def test_where_there_are_fewer_than_before_the_cursor_is_on_the_last() -> None:
    screen = a_screen(height=13)
    press(screen, "end")
    follow(screen, total=4)
    assert "sleep 3" in selected(screen)
    follow(screen, total=0)
    press(screen, "down", "up", "k", total=0)
    assert (screen.selected, screen.mode) == (None, "list")


def test_a_group_begins_with_its_environment_and_the_selected_row_is_always_seen() -> None:
    screen = a_screen(height=9)
    rows = [row(at, environment=f"e{at // 2}") for at in range(6)]
    screen.press("t")
    assert screen.asked().group
    screen.show_rows(ProcessRows(at=100.0, total=6, offset=0, rows=rows))
    assert [line[:1] for line in texts(screen.lines())[2:8]] == ["e", "R", "R", "e", "R", "R"]
    for _ in range(5):
        screen.press("down")
        assert "sleep" in selected(screen)


def test_a_group_is_headed_by_what_its_environment_takes_once_that_is_known() -> None:
    screen = a_screen()
    screen.show_rows(ProcessRows(at=100.0, total=2, offset=0, rows=[row(0, environment="e0"), row(1)]))
    assert screen.asked_snapshot().names == []
    screen.press("t")
    assert screen.asked_snapshot().names == ["e0", "main"]
    shown = EnvironmentRow(
        environment="e0",
        state="running",
        started_at=40.0,
        runtime="podman",
        live=1,
        waiting=2,
        decisions={"allowed": 3, "denied": 1, "failed": 0},
        cpu_percent=3.0,
        memory_bytes=10**6,
        memory_limit_bytes=2 * 10**9,
    )
    screen.show_snapshot(structs.replace(SNAPSHOT, environments=[shown]))
    said = "e0  running  60.0s  3.00% CPU  1.00MB / 2.00GB  1 live  2 waiting  egress: 3 allowed, 1 denied, 0 failed"
    assert [line for line in texts(screen.lines()) if "sleep" not in line][2:4] == [said, "main"]


# --- orders ---


@pytest.mark.parametrize(("key", "sort"), [("P", "cpu"), ("M", "memory"), ("T", "time"), ("N", "age")])
def test_a_letter_chooses_the_order(key: str, sort: str) -> None:
    screen = a_screen()
    press(screen, "end", "I", key)
    asked = screen.asked()
    assert (asked.sort, asked.reverse, asked.offset) == (sort, False, 0)
    press(screen, "I")
    assert screen.asked().reverse


@pytest.mark.parametrize("key", ["f6", *"<>,."])
def test_an_order_is_chosen_of_a_list(key: str) -> None:
    screen = a_screen()
    press(screen, key)
    assert texts(screen.lines())[1 : 2 + len(SORTS)] == ["Sort by", *(f" {sort}" for sort in SORTS)]
    press(screen, "down", "enter")
    assert (screen.asked().sort, screen.mode) == (SORTS[1], "list")
    press(screen, key, "up", "escape")
    assert screen.asked().sort == SORTS[1]


@pytest.mark.parametrize("height", [4, 6, 12, 24])
def test_what_is_chosen_is_seen_on_a_low_screen(height: int) -> None:
    screen = a_screen(40, height)
    screen.press("f6")
    for sort in [*SORTS, SORTS[0]]:
        assert (f" {sort} ", "reverse") in [part for line in screen.lines() for part in line]
        screen.press("down")


def test_no_more_rows_are_asked_for_than_may_be() -> None:
    assert a_screen(height=2_000).asked().limit == telemetry_limits.CONTROL_ROWS


def test_the_column_of_the_order_is_marked_and_an_old_order_says_so() -> None:
    screen = a_screen()
    press(screen, "P")
    screen.show_rows(structs.replace(page(), measured_at=96.5))
    assert ("  CPU% ", "reverse") in screen.lines()[1]
    assert texts(screen.lines())[-1].startswith("1-20/100 by cpu 3.50s ago")


def test_every_column_that_can_be_an_order_is_one() -> None:
    assert {column.sort for column in COLUMNS} - {None} | {"command"} == set(SORTS)


@pytest.mark.parametrize("key", [*"/\\", "f3", "f4"])
def test_what_is_typed_filters_until_escape(key: str) -> None:
    screen = a_screen()
    press(screen, key, *"slqp", "backspace", "k")
    assert (screen.asked().filter, texts(screen.lines())[-1]) == ("slqk", "Filter: slqk_")
    press(screen, "enter")
    assert (screen.mode, screen.asked().filter) == ("list", "slqk")
    assert "'slqk'" in texts(screen.lines())[-1]
    press(screen, "escape")
    assert screen.asked().filter == ""
    press(screen, "/", "x", "escape")
    assert screen.asked().filter == ""


def test_a_filter_has_no_more_than_can_be_asked_for() -> None:
    screen = a_screen()
    press(screen, "/", *"x" * 300)
    assert len(screen.asked().filter) == telemetry_limits.CONTROL_TEXT_CHARS


def test_the_end_of_a_long_filter_is_seen_where_it_is_typed() -> None:
    screen = a_screen(width=40)
    press(screen, "/", *"x" * 60, *"あend")
    assert texts(screen.lines())[-1] == f"Filter: {'x' * 26}あend_"


def test_ended_ones_are_shown_on_demand() -> None:
    screen = a_screen()
    press(screen, "e")
    assert screen.asked().ended


# --- ends ---


@pytest.mark.parametrize("key", ["k", "f9"])
def test_only_a_yes_ends_a_process(key: str) -> None:
    screen = a_screen()
    for answer in ("n", "enter", "escape", "k"):
        press(screen, key, answer)
        assert (screen.wants, screen.mode) == (None, "list")
    press(screen, "down", key)
    assert texts(screen.lines())[-1] == "End p-1 with its tree? y/n sleep 1"
    press(screen, "y")
    assert (screen.wants, screen.mode) == ("p-1", "list")


def test_the_one_that_was_asked_about_is_ended_though_the_list_has_changed() -> None:
    screen = a_screen()
    press(screen, "down")
    screen.press("k")
    screen.show_rows(page(offset=50))
    screen.press("y")
    assert screen.wants == "p-1"


def test_one_that_has_ended_is_not_asked_about() -> None:
    screen = a_screen()
    screen.show_rows(ProcessRows(at=1.0, total=1, offset=0, rows=[row(1, state="exited")]))
    screen.press("k")
    assert screen.mode == "list"


def test_a_message_stays_until_the_next_key() -> None:
    screen = a_screen()
    screen.message = "p-1 has ended"
    assert texts(screen.lines())[-1] == "p-1 has ended"
    press(screen, "up")
    assert "p-1 has ended" not in texts(screen.lines())[-1]


@pytest.mark.parametrize("key", ["q", "f10"])
def test_leaving(key: str) -> None:
    screen = a_screen()
    screen.press("あ")
    assert not screen.is_over
    screen.press(key)
    assert screen.is_over


@pytest.mark.parametrize(("width", "height"), [(120, 24), (40, 12)])
def test_the_keys_are_shown_until_the_next_one(width: int, height: int) -> None:
    screen = a_screen(width, height)
    screen.press("?")
    assert all(meaning in "\n".join(texts(screen.lines())) for _, meaning in KEYS)
    screen.press("q")
    assert (screen.mode, screen.is_over) == ("list", False)
