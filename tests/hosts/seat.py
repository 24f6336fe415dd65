"""A user's login on a host: where commands are typed, and what it was that they said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

TELL_S = 30.0
"""How often a command that takes long is told of, where the output is no terminal."""
LOOK_S = 0.5
"""How often a terminal is told of it."""
GRACE_S = 10
"""From the signal that ends a command which took too long to the one that kills it."""


TIMED_OUT = 124
"""The exit code of such a one, as timeout(1) has it."""


class Output(NamedTuple):
    """What came of a command. `log` has all that it wrote;"""

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

    def type(self, name: str, line: str, deadline_s: float) -> Output:
        """Have a line run by a login shell in the user's home, to its end; tell of it while it takes.

        Parameters:
            name: of the log.
            deadline_s: after which it is ended.
        """
        argv = ["timeout", f"--kill-after={GRACE_S}", str(round(deadline_s)), "bash", "-lc", line]
        return tell(f"{self.host}: {line}", self._enter(argv), self._logs / f"{self.host}-{name}.log")

    def own(self, path: Path) -> None:
        """Give the user what was put into its home, without what is in files that have other names too."""
        owner = self.home.stat()
        for folder, _, files in os.walk(path):
            for each in (Path(folder), *(Path(folder, file) for file in files)):
                if each.stat().st_nlink == 1 or each.is_dir():
                    os.chown(each, owner.st_uid, owner.st_gid)


def tell(what: str, argv: list[str], log: Path) -> Output:
    """Run a command on this machine, with its output in a file and a line about it on stdout."""
    width = shutil.get_terminal_size().columns - 1
    is_terminal = sys.stdout.isatty()
    what = what if len(what) < 100 else f"{what[:97]}..."
    begun = told = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        # In a session of its own: Ctrl-C is for who runs this, who then ends all there is, in its order.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, env=_plain_environ()
        )
        try:
            while (code := _code_within(process, LOOK_S)) is None:
                now = time.monotonic()
                line = f"{what} … {now - begun:.0f} s"
                if is_terminal:
                    print(f"\r\x1b[K{line}"[: width + 4], end="", flush=True)
                elif now - told > TELL_S:
                    told = now
                    print(f"{line}: {_last_line(log)}"[:160], flush=True)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    seconds = time.monotonic() - begun
    print(f"{chr(13) + chr(27) + '[K' if is_terminal else ''}{what}: exit code {code}, {seconds:.1f} s", flush=True)
    return Output(code, seconds, log)


def _code_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def _plain_environ() -> dict[str, str]:
    """That of this machine, without what would tell a command of the virtual environment that this runs in."""
    return {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
