"""The screen of `fastclaw top`: what a key means, and the lines that are shown. Knows no terminal and no clock.

Lines are lists of texts with a style; none is wider than the screen.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from rich.cells import cell_len, set_cell_size

from fastclaw import telemetry_limits
from fastclaw.cli import columns
from fastclaw.control.protocol import AskProcesses, AskSnapshot, ProcessRow, ProcessRows, Snapshot, Sort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fastclaw.control.protocol import EnvironmentRow

Style = Literal["plain", "bold", "dim", "reverse", "warning"]
Line = list[tuple[str, Style]]
Mode = Literal["list", "filter", "sort", "kill", "help"]

SORTS: tuple[Sort, ...] = get_args(Sort)
BY_KEY: dict[str, Sort] = {"P": "cpu", "M": "memory", "T": "time", "N": "age"}
BARS = "▁▂▃▄▅▆▇█"
_OLD_S = 1.0
"""An order by usage that is older says so."""
HISTORY = 20
"""Latencies that the sparkline remembers, each of a look at which there were any."""
_HEAD_LINES = 5
"""Of the screen, at most, for what is above the processes: all of it at 40 columns."""
_LEAST_ROWS = 3
"""Of processes, for which what is above them makes room on a low screen."""
_LEAST_COMMAND = 12
"""Columns for a command, below which another column is left out."""
_MORE, _LESS = "next", "previous"
KEYS = (
    ("up down PgUp PgDn Home End", "move"),
    ("F6 < >", "choose what to sort by"),
    ("P M T N", "sort by CPU, memory, time, age"),
    ("I", "the other way round"),
    ("/ \\ F4", "only what has a text; Esc: all"),
    ("t F5", "by environment, with its figures"),
    ("e", "show ended ones too"),
    ("k F9", "end a process with its tree"),
    ("q F10", "leave"),
)
HELP = "q leave  ? keys"
_FILTER = "Filter: "


class Column(NamedTuple):
    """A column of the list.

    Parameters:
        width: in cells.
        text: of a row at a time.
    """

    heading: str
    width: int
    text: Callable[[ProcessRow, float], str]
    sort: Sort | None = None
    is_left: bool = False


def _state(row: ProcessRow, at: float) -> str:
    return "E" if row.state == "exited" else "B" if row.blocked else "R"


def _blocked(row: ProcessRow, at: float) -> str:
    return "both" if len(row.blocked) == 2 else row.blocked[0][3:] if row.blocked else ""


def _number(number: int | None) -> str:
    return columns.UNKNOWN if number is None else str(number)


COLUMNS = (
    Column("S", 1, _state),
    Column("CPU%", 6, lambda row, at: columns.percent(row.cpu_percent).rstrip("%"), "cpu"),
    Column("MEM", 6, lambda row, at: columns.size(row.memory_bytes), "memory"),
    Column("AGE", 6, lambda row, at: columns.duration(at - row.started_at), "age"),
    Column("ID", 14, lambda row, at: row.process_id, None, is_left=True),
    Column("TIME", 6, lambda row, at: columns.seconds(row.cpu_us), "time"),
    Column("BLOCKED", 7, _blocked, None, is_left=True),
    Column("ENVIRONMENT", 11, lambda row, at: row.environment, "environment", is_left=True),
    Column("OUT", 6, lambda row, at: columns.size(row.out_bytes), "bytes"),
    Column("IN", 6, lambda row, at: columns.size(row.in_bytes), "bytes"),
    Column("PROCS", 5, lambda row, at: _number(row.processes)),
)
"""The first ones are shown on the narrowest screen; each next one where there is room for it."""


class Screen:
    """What is looked at, and how.

    Parameters:
        sort: the order to begin with.

    Attributes:
        width, height: of the screen, in cells.
        wants: a process that its user has confirmed to end; whoever ends it sets this back.
        is_over: its user leaves.
        message: shown in the last line until the next key.
    """

    def __init__(self, sort: Sort = "age") -> None:
        self.width, self.height = 80, 24
        self.mode: Mode = "list"
        self.message = ""
        self.wants: str | None = None
        self.is_over = False
        self._sort: Sort = sort
        self._reverse = self._group = self._ended = False
        self._filter = ""
        self._offset = self._cursor = self._choice = 0
        self._doomed: ProcessRow | None = None
        self._snapshot: Snapshot | None = None
        self._environments: dict[str, EnvironmentRow] = {}
        self._rows: ProcessRows | None = None
        self._latencies: deque[float] = deque(maxlen=HISTORY)

    # --- what is asked of the runtime ---

    def asked(self) -> AskProcesses:
        """The page that is to be shown."""
        return AskProcesses(
            offset=self._offset,
            limit=self._page,
            sort=self._sort,
            reverse=self._reverse,
            group=self._group,
            filter=self._filter,
            ended=self._ended,
        )

    def asked_snapshot(self) -> AskSnapshot:
        """How the runtime is; in groups, with the environments of the page that is shown."""
        rows = self._rows.rows if self._group and self._rows is not None else []
        return AskSnapshot(names=list(dict.fromkeys(row.environment for row in rows)))

    @property
    def _page(self) -> int:
        head_lines = _HEAD_LINES if self._snapshot is None else len(self._head())
        return max(1, min(self.height - head_lines - 2, telemetry_limits.CONTROL_ROWS))

    def show_snapshot(self, snapshot: Snapshot) -> None:
        """How the runtime is now. It takes some lines; the others are for the page that is asked for next."""
        self._snapshot = snapshot
        self._environments = {row.environment: row for row in snapshot.environments}
        if snapshot.latency is not None:
            self._latencies.append(snapshot.latency.mean_us)

    def show_rows(self, rows: ProcessRows) -> None:
        """The page that was asked for."""
        self._rows, self._offset = rows, rows.offset
        self._cursor = min(self._cursor, max(0, len(rows.rows) - 1))

    # --- keys ---

    def press(self, key: str) -> None:
        """A key: a letter, or a name as `up`, `page down`, `f6`, `enter`, `escape`, `backspace`."""
        self.message = ""
        {
            "list": self._in_list,
            "filter": self._in_filter,
            "sort": self._in_sort,
            "kill": self._in_kill,
            "help": self._in_help,
        }[self.mode](key)

    def _in_list(self, key: str) -> None:
        if key in BY_KEY:
            self._take_order(BY_KEY[key])
        elif key in _MOVES:
            self._move(_MOVES[key](self._page))
        elif key in ("home", "end"):
            self._move(-(2**31) if key == "home" else 2**31)
        elif key in _ACTIONS:
            _ACTIONS[key](self)

    def _take_order(self, sort: Sort) -> None:
        self._sort, self._reverse = sort, False
        self._offset = self._cursor = 0

    def _move(self, by: int) -> None:
        """The cursor, and where it leaves the page, the page."""
        total = 0 if self._rows is None else self._rows.total
        at = max(0, min(self._offset + self._cursor + by, total - 1))
        first = max(0, min(self._offset, at), at - self._page + 1)
        self._offset, self._cursor = first, at - first

    def _invert(self) -> None:
        self._reverse = not self._reverse

    def _regroup(self) -> None:
        self._group = not self._group

    def _show_ended(self) -> None:
        self._ended = not self._ended

    def _leave(self) -> None:
        self.is_over = True

    def _begin_filter(self) -> None:
        self.mode = "filter"

    def _clear_filter(self) -> None:
        self._filter = ""

    def _begin_sort(self) -> None:
        self.mode, self._choice = "sort", SORTS.index(self._sort)

    def _begin_help(self) -> None:
        self.mode = "help"

    def _begin_kill(self) -> None:
        self._doomed = self.selected
        if self._doomed is not None and self._doomed.state == "running":
            self.mode = "kill"

    @property
    def selected(self) -> ProcessRow | None:
        """The process under the cursor."""
        rows = [] if self._rows is None else self._rows.rows
        return rows[self._cursor] if self._cursor < len(rows) else None

    def _in_filter(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.mode = "list"
            self._filter = "" if key == "escape" else self._filter
        elif key == "backspace":
            self._filter = self._filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self._filter = (self._filter + key)[: telemetry_limits.CONTROL_TEXT_CHARS]
        self._offset = self._cursor = 0

    def _in_sort(self, key: str) -> None:
        if key in ("up", "down"):
            self._choice = (self._choice + (1 if key == "down" else -1)) % len(SORTS)
        elif key == "enter":
            self._take_order(SORTS[self._choice])
            self.mode = "list"
        elif key in ("escape", "q"):
            self.mode = "list"

    def _in_kill(self, key: str) -> None:
        """Only a plain yes, and only for the process that was asked about, whatever is under the cursor by now."""
        self.mode = "list"
        if key in ("y", "Y") and self._doomed is not None:
            self.wants = self._doomed.process_id
            self.message = f"ending {self.wants}"

    def _in_help(self, key: str) -> None:
        self.mode = "list"

    # --- what is shown ---

    def lines(self) -> list[Line]:
        """The whole screen, from above."""
        head, room = [] if self.mode == "help" else self._head(), self.height - 1
        body = {"sort": self._choices, "help": self._keys}.get(self.mode, self._list)()
        shown = [*head, *body][:room]
        shown += [[]] * (room - len(shown))
        return [cut(line, self.width) for line in [*shown, self._foot()]][: self.height]

    def _head(self) -> list[Line]:
        if self._snapshot is None:
            return []
        most = max(0, min(_HEAD_LINES, self.height - 2 - _LEAST_ROWS))
        return flow(summary(self._snapshot, self._latencies), self.width)[:most]

    def _choices(self) -> list[Line]:
        lines: list[Line] = [[("Sort by", "bold")]]
        for at, sort in enumerate(SORTS):
            lines.append([(f" {sort} ", "reverse" if at == self._choice else "plain")])
        room = self.height - 1 - len(self._head())
        return lines[max(0, self._choice + 2 - room) :]

    def _keys(self) -> list[Line]:
        width = max(len(keys) for keys, _ in KEYS) if self.width >= 60 else 0
        return [[(f"{keys:<{width}}  ", "bold"), (meaning, "plain")] for keys, meaning in KEYS]

    def _list(self) -> list[Line]:
        if self._rows is None:
            return []
        chosen = self._chosen()
        lines: list[Line] = []
        selected = 0
        environment = None
        for at, row in enumerate(self._rows.rows):
            if self._group and row.environment != environment:
                environment = row.environment
                lines.append(self._group_heading(environment))
            if at == self._cursor:
                selected = len(lines)
            lines.append(self._row(row, chosen, is_selected=at == self._cursor))
        room = self.height - len(self._head()) - 2
        first = max(0, selected - room + 1)
        return [self._headings(chosen), *lines[first : first + room]]

    def _group_heading(self, name: str) -> Line:
        """An environment above its processes, with what it takes where that is known by now."""
        row = self._environments.get(name)
        if row is None or self._rows is None:
            return [(name, "bold")]
        return [(f"{name}  ", "bold"), ("  ".join(of_environment(row, self._rows.at)), "plain")]

    def _chosen(self) -> list[Column]:
        """The columns that there is room for."""
        chosen: list[Column] = []
        left = self.width - _LEAST_COMMAND
        for column in COLUMNS:
            left -= column.width + 1
            if left < 0:
                break
            chosen.append(column)
        return chosen

    def _headings(self, chosen: Sequence[Column]) -> Line:
        texts: Line = []
        for column in chosen:
            is_order = column.sort == self._sort
            texts.append((f"{_fitted(column, column.heading)} ", "reverse" if is_order else "bold"))
        return [*texts, ("COMMAND", "reverse" if self._sort == "command" else "bold")]

    def _row(self, row: ProcessRow, chosen: Sequence[Column], *, is_selected: bool) -> Line:
        at = 0.0 if self._rows is None else self._rows.at
        text = "".join(f"{_fitted(column, column.text(row, at))} " for column in chosen) + row.command
        if is_selected:
            return [(set_cell_size(text, self.width), "reverse")]
        return [(text, "warning" if row.blocked else "dim" if row.state == "exited" else "plain")]

    def _foot(self) -> Line:
        if self.mode == "filter":
            return [(_FILTER, "bold"), (end_of(f"{self._filter}_", self.width - len(_FILTER)), "plain")]
        if self.mode == "kill" and self._doomed is not None:
            return [(f"End {self._doomed.process_id} with its tree? y/n ", "warning"), (self._doomed.command, "plain")]
        if self.message:
            return [(self.message, "warning")]
        return [(self._where(), "bold"), (f"  {HELP}", "dim")]

    def _where(self) -> str:
        if self._rows is None:
            return ""
        first = min(self._offset + 1, self._rows.total)
        text = f"{first}-{self._offset + len(self._rows.rows)}/{self._rows.total} by {self._sort}"
        age_s = 0.0 if self._rows.measured_at is None else self._rows.at - self._rows.measured_at
        if age_s >= _OLD_S:
            text += f" {columns.duration(age_s)} ago"
        return text + (f" {self._filter!r}" if self._filter else "")


_MOVES: dict[str, Callable[[int], int]] = {
    "up": lambda page: -1,
    "down": lambda page: 1,
    "page up": lambda page: -page,
    "page down": lambda page: page,
}

_ACTIONS: dict[str, Callable[[Screen], None]] = {
    **dict.fromkeys(("q", "f10"), Screen._leave),
    **dict.fromkeys(("/", "\\", "f3", "f4"), Screen._begin_filter),
    **dict.fromkeys(("<", ">", ",", ".", "f6"), Screen._begin_sort),
    **dict.fromkeys(("t", "f5"), Screen._regroup),
    **dict.fromkeys(("k", "f9"), Screen._begin_kill),
    **dict.fromkeys(("?", "h", "f1"), Screen._begin_help),
    "escape": Screen._clear_filter,
    "I": Screen._invert,
    "e": Screen._show_ended,
}


def _fitted(column: Column, text: str) -> str:
    if column.is_left:
        return set_cell_size(text, column.width)
    return text.rjust(column.width)[: column.width]


def cut(line: Line, width: int) -> Line:
    """As much of a line as has room."""
    left, kept = width, []
    for text, style in line:
        if cell_len(text) > left:
            text = set_cell_size(text, left)
        left -= cell_len(text)
        kept.append((text, style))
    return kept


def end_of(text: str, width: int) -> str:
    """As much of a text's end as has room: there it is typed."""
    while text and cell_len(text) > width:
        text = text[1:]
    return text


def flow(texts: Iterable[tuple[str, Style]], width: int) -> list[Line]:
    """Texts side by side, two blanks apart, and on the next line where there is no room."""
    lines: list[Line] = [[]]
    left = width
    for text, style in texts:
        if lines[-1] and cell_len(text) + 2 > left:
            lines.append([])
            left = width
        if lines[-1]:
            lines[-1].append(("  ", "plain"))
            left -= 2
        lines[-1].append((text, style))
        left -= cell_len(text)
    return lines


def summary(snapshot: Snapshot, latencies: Sequence[float] | deque[float] = ()) -> list[tuple[str, Style]]:
    """How a runtime is, in a few words each."""
    states = ", ".join(f"{count} {state}" for state, count in snapshot.states.items())
    kinds = snapshot.pool.get("kinds", [])
    said: list[tuple[str, Style]] = [
        (f"{snapshot.namespace} (pid {snapshot.pid})", "bold"),
        (f"up {columns.duration(snapshot.at - snapshot.started_at)}", "plain"),
        (f"environments: {states or 'none'}", "plain"),
        (f"live {snapshot.live}", "plain"),
        (f"starting {snapshot.starting}", "plain"),
        (f"waiting {snapshot.waiting}", "warning" if snapshot.waiting else "plain"),
    ]
    if latencies:
        said.append((f"start {sparkline(latencies)} {latencies[-1] / 1000:.1f} ms", "plain"))
    if kinds:
        ready, size = (sum(kind[name] for kind in kinds) for name in ("ready", "size"))
        said.append((f"pool {ready}/{size} ready", "warning" if ready < size else "plain"))
    if snapshot.decisions:
        style: Style = "warning" if snapshot.decisions.get("denied") else "plain"
        said.append((f"egress: {_decided(snapshot.decisions)}", style))
    return said


def of_environment(row: EnvironmentRow, at: float) -> list[str]:
    """How an environment is, in a few words each. `at`: Unix time."""
    said = [
        row.state,
        columns.duration(at - row.started_at),
        f"{columns.percent(row.cpu_percent)} CPU",
        columns.pair(columns.size(row.memory_bytes), columns.size(row.memory_limit_bytes)),
        f"{row.live} live",
    ]
    if row.waiting:
        said.append(f"{row.waiting} waiting")
    if row.decisions is not None:
        said.append(f"egress: {_decided(row.decisions)}")
    return said


def _decided(decisions: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in decisions.items())


def sparkline(numbers: Sequence[float] | deque[float]) -> str:
    """Numbers as bars, the largest as high as can be."""
    most = max(numbers)
    return "".join(BARS[round(number / most * (len(BARS) - 1)) if most else 0] for number in numbers)


def plain(snapshot: Snapshot, rows: ProcessRows, width: int) -> str:
    """All of it as text, for where there is no terminal."""
    screen = Screen()
    screen.width, screen.height = width, _HEAD_LINES + len(rows.rows) + 3
    screen.show_snapshot(snapshot)
    screen.show_rows(rows)
    screen._cursor = -1
    lines = ["".join(text for text, _ in cut(line, width)).rstrip() for line in [*screen._head(), *screen._list()]]
    left = rows.total - len(rows.rows)
    return "\n".join([*lines, *([f"… and {left} more"] if left else [])])
