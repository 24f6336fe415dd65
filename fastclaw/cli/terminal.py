"""The terminal of `fastclaw top`: keys in, lines out, by the standard library's curses.

It draws only what has changed, takes nothing while nothing happens, and is there with Python, so that the base install
needs nothing more.
"""

from __future__ import annotations

import curses
import locale
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw.control.client import ControlClient
from fastclaw.control.protocol import AskKill
from fastclaw.errors import IoError

if TYPE_CHECKING:
    from fastclaw.cli.screen import Line, Screen, Style

_NAMES = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_BACKSPACE: "backspace",
    curses.KEY_ENTER: "enter",
    **{curses.KEY_F0 + number: f"f{number}" for number in range(1, 13)},
}
_CHARACTERS = {"\n": "enter", "\r": "enter", "\x1b": "escape", "\x7f": "backspace", "\b": "backspace", "\x03": "q"}
_REDRAW = "\x0c"
"""Ctrl-L: something else has written on this terminal."""
_ESCAPE_MS = 25
"""For the rest of a key that begins with Esc: a terminal sends all of it at once."""
_ASK_S = 0.1
"""Between two questions while keys are held down."""


class Terminal:
    """One look, from the first line to the last.

    Parameters:
        path: of the control socket.
        screen: what is shown.
        interval_s: between two looks.
    """

    def __init__(self, path: str, screen: Screen, interval_s: float) -> None:
        self._path, self._screen, self._interval_s = path, screen, interval_s
        self._client = ControlClient(path)
        self._killers = ThreadPoolExecutor(max_workers=4)
        self._kills: dict[str, Future[None]] = {}
        self._styles: dict[Style, int] = {}

    def run(self) -> None:
        """Until its user leaves.

        Raises:
            IoError: the runtime has ended.
            curses.error: there is no such terminal.
        """
        _use_unicode()
        curses.set_escdelay(_ESCAPE_MS)
        try:
            curses.wrapper(self._run)
        finally:
            self.close()

    def close(self) -> None:
        """Leave. An end that was ordered goes on in the runtime. Idempotent."""
        self._client.close()
        self._killers.shutdown(wait=False, cancel_futures=True)

    def _run(self, window: curses.window) -> None:
        self._styles = _styles()
        with suppress(curses.error):
            curses.curs_set(0)
        next_at = 0.0
        while not self._screen.is_over:
            self._screen.height, self._screen.width = window.getmaxyx()
            if time.monotonic() >= next_at:
                self._look()
                next_at = time.monotonic() + self._interval_s
            self._draw(window)
            if self._keys(window, max(0.0, next_at - time.monotonic())):
                next_at = min(next_at, time.monotonic() + _ASK_S)
            self._end_wanted()

    def _look(self) -> None:
        try:
            self._ask()
        except IoError:  # stopped for long (Ctrl-Z), and cut off
            self._client.close()
            self._client = ControlClient(self._path)
            self._ask()

    def _ask(self) -> None:
        self._screen.show_rows(self._client.processes(self._screen.asked()))
        self._screen.show_snapshot(self._client.snapshot(self._screen.asked_snapshot()))

    def _keys(self, window: curses.window, wait_s: float) -> bool:
        """Whether there were any: all that are there."""
        window.timeout(max(1, round(wait_s * 1000)))
        is_any = False
        while (key := _key(window)) is not None:
            if key == _REDRAW:
                window.clearok(True)
            elif key:
                self._screen.press(key)
            is_any = True
            window.timeout(0)
        return is_any

    # --- ends ---

    def _end_wanted(self) -> None:
        """End what is to be ended, in a thread: TERM has its grace."""
        wanted, self._screen.wants = self._screen.wants, None
        if wanted is not None and wanted not in self._kills:
            self._kills[wanted] = self._killers.submit(self._kill, wanted)
        for process_id, kill in list(self._kills.items()):
            if kill.done():
                del self._kills[process_id]
                error = kill.exception()
                self._screen.message = f"{process_id} has ended" if error is None else str(error)

    def _kill(self, process_id: str) -> None:
        with ControlClient(self._path) as client:
            client.kill(AskKill(process_id=process_id))

    # --- drawing ---

    def _draw(self, window: curses.window) -> None:
        window.erase()
        for at, line in enumerate(self._screen.lines()):
            self._draw_line(window, at, line)
        window.refresh()

    def _draw_line(self, window: curses.window, at: int, line: Line) -> None:
        with suppress(curses.error):  # the last cell of the last line is drawn, and then there is no next one
            window.move(at, 0)
            for text, style in line:
                window.addstr(text, self._styles[style])


def _key(window: curses.window) -> str | None:
    """The next key by its name; empty for one that means nothing; None: there is none."""
    try:
        key = window.get_wch()
    except curses.error:
        return None
    if isinstance(key, int):
        return _NAMES.get(key, "")
    return _CHARACTERS.get(key, key)


def _styles() -> dict[Style, int]:
    warning = curses.A_BOLD
    with suppress(curses.error):
        curses.start_color()
        curses.use_default_colors()
        curses.init_pair(1, curses.COLOR_YELLOW, -1)
        warning |= curses.color_pair(1)
    return {
        "plain": curses.A_NORMAL,
        "bold": curses.A_BOLD,
        "dim": curses.A_DIM,
        "reverse": curses.A_REVERSE,
        "warning": warning,
    }


def _use_unicode() -> None:
    """Where the locale is none, or of bytes, curses would write question marks."""
    with suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "")
    if locale.nl_langinfo(locale.CODESET) != "UTF-8":
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
