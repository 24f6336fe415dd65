"""A user's login on a host: where commands are typed, and what it was that they said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TELL_S = 30.0
"""How often a command that takes long is told of, where the output is no terminal."""
LOOK_S = 0.5
"""How often a terminal is told of it."""
WHAT_CHARS = 100
"""Of a command in what is told of it."""
LINE_CHARS = 160
"""Of a line that tells of a command, where the output is no terminal."""
LAST_BYTES = 4_096
"""Of an output, where its last line is looked for."""
GRACE_S = 10
"""From the signal that ends a command which took too long to the one that kills it."""


TIMED_OUT = 124
"""The exit code of such a one, as timeout(1) has it."""


class Output(NamedTuple):
    """What came of a command. `log` has all that it wrote."""

    code: int
    seconds: float
    log: Path

    @property
    def text(self) -> str:
        """What it wrote."""
        return self.log.read_text(errors="replace")


class Seat:
    """A user on a host, as logged in.

    Parameters:
        host, user: their names; the user has a home of its own, which is empty.
        home: this home, as this machine sees it.
        enter: makes of a command one that this machine can start, and that is run there as this user.
        logs: where the output of what is typed is kept.
    """

    def __init__(self, host: str, user: str, home: Path, enter: Callable[[list[str]], list[str]], logs: Path) -> None:
        self.host, self.user, self.home = host, user, home
        self._enter, self._logs = enter, logs

    @property
    def home_inside(self) -> str:
        """The home as the user knows it."""
        return "/root" if self.user == "root" else f"/home/{self.user}"

    def type(self, name: str, line: str, deadline_s: float, *, before: str = "") -> Output:
        """Have a line run by a login shell in the user's home, to its end; tell of it while it takes.

        Parameters:
            name: of the log.
            deadline_s: after which it is ended.
            before: what is typed first, and not told of.
        """
        argv = ["timeout", f"--kill-after={GRACE_S}", str(round(deadline_s)), "bash", "-lc", before + line]
        return tell(f"{self.host}: {line}", self._enter(argv), self._logs / f"{self.host}-{name}.log")

    def own(self, path: Path) -> None:
        """Give the user what was put into its home."""
        owner = self.home.stat()
        for each in (path, *path.rglob("*")):
            os.chown(each, owner.st_uid, owner.st_gid)


def tell(what: str, argv: list[str], log: Path) -> Output:
    """Run a command on this machine, with its output in a file and a line about it on stdout."""
    told = _Told(what, log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        # In a session of its own: Ctrl-C is for who runs this, who then ends all there is, in its order.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, env=_plain_environ()
        )
        try:
            while (code := _code_within(process, LOOK_S)) is None:
                told.goes_on()
        finally:
            process.kill()
            process.wait()
    told.is_done(code)
    return Output(code, told.seconds, log)


class _Told:
    """A line about a command: rewritten on a terminal, and elsewhere said again now and then."""

    def __init__(self, what: str, log: Path) -> None:
        self._what = what.partition("\n")[0][:WHAT_CHARS]
        self._log = log
        self._is_terminal = sys.stdout.isatty()
        self._begun = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def goes_on(self) -> None:
        line = f"{self._what} … {self.seconds:.0f} s: {_last_line(self._log)}"
        if self._is_terminal:
            print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)
        elif time.monotonic() - self._last > TELL_S:
            self._last = time.monotonic()
            print(line[:LINE_CHARS], flush=True)

    def is_done(self, code: int) -> None:
        clear = "\r\x1b[K" if self._is_terminal else ""
        print(f"{clear}{self._what}: exit code {code}, {self.seconds:.1f} s", flush=True)


def _code_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _plain_environ() -> dict[str, str]:
    """That of this machine, without what would tell a command of the virtual environment that this runs in."""
    return {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
