"""Where the spawner's binary is for this machine.

It is compiled when the package is built (scripts/build_spawner.py), never at run time.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

BINARIES = Path(__file__).parent / "bin"

ARCHITECTURES = ("x86_64", "aarch64")
"""Those that spawner.c has system calls for, as uname(2) names them."""


def path_for(architecture: str) -> Path:
    """Where the binary for an architecture belongs, whether it is there or not."""
    return BINARIES / f"spawner-{architecture}"


def find_spawner() -> Path | None:
    """The binary for this machine, or None: `why_no_spawner` says why."""
    path = path_for(platform.machine())
    return path if os.access(path, os.X_OK) else None


def why_no_spawner() -> str | None:
    """Why there is no spawner for this machine, in one line; None where there is one."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return f"the spawner knows {' and '.join(ARCHITECTURES)}, and this machine is {machine}"
    if find_spawner() is None:
        again = "install it again: make install, or pip install --force-reinstall fastclaw"
        return f"{path_for(machine).name} was not built with this package; {again}"
    return None
