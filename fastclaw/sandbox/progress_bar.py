"""How a pull or a build comes on, for people: a line on the terminal for each, while there is something to tell."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from fastclaw.progress import Progress, Tell

_TEXT_CHARS = 60
"""Of the last line of output that is shown beside the bar, so that the bar has room on a terminal of 100 columns."""


class Display:
    """The lines of all that goes on, on stderr. There is one, since a terminal has one last line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Bars | None = None
        self._shown = 0

    def add(self, what: str) -> TaskID:
        """Begin a line."""
        from rich.console import Console  # not for who has no terminal: it takes a tenth of a second
        from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        with self._lock:
            if self._bars is None:
                columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20))
                more = (DownloadColumn(), TimeElapsedColumn(), TextColumn("{task.fields[text]}", markup=False))
                self._bars = Bars(*columns, *more, console=Console(stderr=True), transient=True)
                self._bars.start()
            self._shown += 1
            return self._bars.add_task(what, total=None, text="")

    def tell(self, task: TaskID, told: Progress) -> None:
        """What there is to tell of one."""
        with self._lock:
            if self._bars is None:
                return
            last = told.text.rstrip().rpartition("\n")[2]
            self._bars.update(task, completed=told.done, total=told.total)
            if last:
                self._bars.update(task, text=last[:_TEXT_CHARS])

    def remove(self, task: TaskID) -> None:
        """End a line."""
        with self._lock:
            assert self._bars is not None
            self._bars.remove_task(task)
            self._shown -= 1
            if not self._shown:
                self._bars.stop()
                self._bars = None


_DISPLAY = Display()


@contextmanager
def listening(on_progress: Tell | None, what: str) -> Iterator[Tell | None]:
    """Who is told of what may take long: whoever was given, else the terminal where stderr is one, else nobody.

    Parameters:
        what: in a few words, what goes on.
    """
    if on_progress is not None or not sys.stderr.isatty():
        yield on_progress
        return
    task: TaskID | None = None

    def tell(told: Progress) -> None:
        nonlocal task
        if task is None:
            task = _DISPLAY.add(what)
        _DISPLAY.tell(task, told)

    try:
        yield tell
    finally:
        if task is not None:
            _DISPLAY.remove(task)
