"""The file helper, run as a command by the tests themselves."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

from fastclaw.processes.file_helper import Outcome, read_outcome
from fastclaw.spawner.spawner_host import find_spawner

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534


class Said(NamedTuple):
    """What came of one operation."""

    code: int
    out: bytes
    outcome: Outcome


def helper(folder: Path, *words: object, data: bytes | None = b"", user: int | None = None, **more: Any) -> Said:
    """One operation, in a directory.

    Parameters:
        data: its stdin.
        user: whose, with no other group; None is ours.
    """
    binary = find_spawner()
    assert binary is not None
    who: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    with binary.open("rb") as file:
        done = subprocess.run(
            [f"/proc/self/fd/{file.fileno()}", "--file", *map(str, words)],
            cwd=folder,
            input=data,
            capture_output=True,
            check=False,
            timeout=30,
            pass_fds=[file.fileno()],
            **who,
            **more,
        )
    outcome = read_outcome(done.stderr)
    assert outcome is not None, done
    assert done.returncode == outcome.code
    return Said(done.returncode, done.stdout, outcome)
