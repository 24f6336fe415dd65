"""Compiles the spawner, and prints the manual page, when the package is built: a hatch build hook, so for wheels and
editable installs alike.

For this machine, or for the one that FASTCLAW_MACHINE names: with zig (the build requirement ziglang) for any that the
spawner knows, else with the system's C compiler (CC, else cc) for this one. Where both are missing the package is built
without, and `fastclaw doctor` says so: the REST lane works.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "fastclaw/spawner/c"
BINARIES = "fastclaw/spawner/bin"
KERNEL_HEADERS = {"x86_64": "x86", "aarch64": "aarch64"}
"""The architectures, and what zig calls the folder with the kernel's headers for each."""

FLAGS = [
    *("-Os", "-std=gnu11", "-Wall", "-Wextra", "-Werror"),
    *("-ffreestanding", "-fno-builtin", "-nostdlib", "-static", "-s", "-fno-pic", "-no-pie"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wl,-z,noexecstack"),
]
"""Freestanding and static: it needs nothing but its own sources."""


TAG = "py3-none-manylinux_2_17_{0}.manylinux2014_{0}.musllinux_1_1_{0}"
"""What a wheel with a binary runs on: the oldest Linux that there are tags for, since the binary is static and Python
itself wants a newer one (PEP 600, PEP 656)."""


class SpawnerHook(BuildHookInterface[Any]):
    """Puts the binary where spawner/spawner_host.py looks for it, and into the wheel, which is for one machine then."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it packs a wheel or makes an editable install."""
        root = Path(self.root)
        machine = os.environ.get("FASTCLAW_MACHINE") or platform.machine()
        (root / BINARIES).mkdir(exist_ok=True)
        made = [root / BINARIES]
        if compiler := compiler_for(machine):
            made.append(root / BINARIES / f"spawner-{machine}")
            compile_spawner(compiler, root / SOURCES, made[-1])
            build_data["artifacts"].append(f"/{BINARIES}/{made[-1].name}")
            build_data["tag"] = TAG.format(machine)
        elif "FASTCLAW_MACHINE" in os.environ:
            raise SystemExit(f"fastclaw: nothing here compiles for {machine}; install ziglang")
        if page := manual_page(root):
            made += [page.parent, page]
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"
        give_to_owner(root, made)


def manual_page(root: Path) -> Path | None:
    """What `fastclaw man` prints, where all that it needs is there, as for `make wheels`; none where pip isolates."""
    printed = subprocess.run([sys.executable, "-m", "fastclaw", "man"], cwd=root, capture_output=True, check=False)
    if printed.returncode != 0:
        return None
    page = root / "build" / "fastclaw.1"
    page.parent.mkdir(exist_ok=True)
    page.write_bytes(printed.stdout)
    return page


def give_to_owner(root: Path, made: list[Path]) -> None:
    """Where root builds in somebody's tree, what it made is theirs: they could not build anew beside it."""
    if os.geteuid() == 0:
        owner = root.stat()
        for path in made:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def compiler_for(machine: str) -> list[str] | None:
    """A command line without files, or None where nothing here compiles for that machine."""
    if machine not in KERNEL_HEADERS:
        return None
    if importlib.util.find_spec("ziglang") is not None:
        return zig(machine)
    system = shutil.which(os.environ.get("CC", "cc"))
    return [system, *FLAGS] if system and machine == platform.machine() else None


def zig(architecture: str) -> list[str]:
    """Without a libc there are no default headers, so they are named: musl's for the C side, the kernel's own."""
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    headers = Path(spec.submodule_search_locations[0]) / "lib" / "libc" / "include"
    kernel = f"{KERNEL_HEADERS[architecture]}-linux-any"
    folders = (f"{architecture}-linux-musl", "generic-musl", kernel, "any-linux-any")
    includes = [word for folder in folders for word in ("-isystem", str(headers / folder))]
    return [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-none", *FLAGS, *includes]


def compile_spawner(compiler: list[str], sources: Path, binary: Path) -> None:
    """Beside its place first: a binary that runs cannot be written to, but it can be replaced."""
    fresh = binary.with_suffix(".new")
    subprocess.run([*compiler, *map(str, sorted(sources.rglob("*.c"))), "-o", str(fresh)], check=True)
    fresh.chmod(0o755)
    fresh.replace(binary)
