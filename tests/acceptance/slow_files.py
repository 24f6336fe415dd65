"""Files that answer late, for the processes of this host or of an engine that has its mounts for itself.

Serves with slow_file.c. Knows no test and no runtime.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastclaw.linux import proc

if TYPE_CHECKING:
    from collections.abc import Iterator

END_S = 20
"""For a server to end: it unmounts and goes."""


@contextmanager
def slow_files(directory: Path, delay_s: int, mounts: str | None = None) -> Iterator[bool]:
    """Serve `directory`, for as long as the block lasts; gives whether this machine lets us.

    Parameters:
        directory: empty; the program slow_file is beside it.
        delay_s: seconds until a page comes.
        mounts: the mount namespace to serve in; None is our own.
    """
    command = [str(directory.parent / "slow_file"), str(directory), str(delay_s), *([mounts] if mounts else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline() == b"up\n"
        finally:
            server.stdin.close()
            server.wait(END_S)


def mounts_of(run_dir: Path) -> str | None:
    """The mount namespace of the engine that runs there, where that is not our own."""
    own = os.readlink("/proc/self/ns/mnt")
    for pid in proc.pids():
        path = f"/proc/{pid}/ns/mnt"
        with suppress(OSError):
            if f"{run_dir}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and os.readlink(path) != own:
                return path
    return None
