"""`make fuzz`: all programs, for so many seconds, from a number on that is another each time."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.spawner.fuzz import harness

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SECONDS = 600
AT_ONCE = {"requests": 20_000, "stories": 500, "archives": 200_000}
"""How many of each one process does: some seconds' worth."""


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code. `words`: the command line's, where they are not given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--first", type=int, default=int(time.time()) * 1_000_000)
    arguments = parser.parse_args(words)
    lacking = harness.missing()
    if lacking is not None:
        return _say(lacking)
    folder = harness.build()
    until = time.monotonic() + arguments.seconds
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shares = pool.map(
            lambda number: _search(folder, arguments.first + number * 10**9, until), range(os.cpu_count() or 1)
        )
        found = [one for one in shares if one is not None]
    return _say("\n".join(found)) if found else 0


def _search(folder: Path, first: int, until: float) -> str | None:
    """What went wrong; None: nothing until its time was over."""
    done = dict.fromkeys(AT_ONCE, 0)
    while time.monotonic() < until:
        for name, count in AT_ONCE.items():
            ran = harness.run(folder / name, first + done[name], count)
            if ran.returncode:
                return f"{folder / name} {first + done[name]} {count}: {harness.failure(ran)}"
            done[name] += count
    sys.stdout.write(f"from {first}: " + ", ".join(f"{count} {name}" for name, count in done.items()) + "\n")
    return None


def _say(text: str) -> int:
    sys.stderr.write(text + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
