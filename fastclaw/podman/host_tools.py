"""Finds this host's shell and tools, with the libraries that they need to run in a root of their own.

Reads only, and asks each program's own loader for its libraries: no program is run. Knows nothing of images.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fastclaw import limits
from fastclaw.podman.service.facts import elf_loader, find_program

SHELLS = "sh bash"
COREUTILS = """
[ b2sum base32 base64 basename basenc cat chgrp chmod chown chroot cksum comm cp csplit cut date dd df dir dirname du
echo env expand expr factor false fmt fold groups head hostid id install join kill link ln logname ls md5sum mkdir
mkfifo mknod mktemp mv nice nl nohup nproc numfmt od paste pathchk pr printenv printf ptx pwd readlink realpath rm
rmdir seq sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep sort split stat stdbuf stty sum sync tac
tail tee test timeout touch tr true truncate tsort tty uname unexpand uniq unlink users vdir wc who whoami yes
"""
OTHERS = """
awk bunzip2 bzip2 cmp diff egrep fgrep find flock free getopt grep gunzip gzip hostname less mount mountpoint patch
pgrep pkill ps renice rev sed setsid tar taskset umount uptime which xargs xz zcat
"""
TOOLS = f"{SHELLS} {COREUTILS} {OTHERS}".split()
"""Taken where the host has them; a shell it must have. OTHERS are those that scripts take for granted besides."""

_LIBRARY = re.compile(r"^\s+(?:\S+ => )?(/.+) \(0x[0-9a-f]+\)$", re.MULTILINE)
"""One line of a loader's `--list` (ld.so(8)), in glibc's and in musl's spelling; the kernel's vDSO has no path."""

_SCRIPT = re.compile(rb"#! ?(/usr)?/bin/(sh|bash)\b")
_SCRIPT_LINE = 64
"""Bytes; such a line is shorter."""


class Taken:
    """Files of the new root, by their path in it without the leading `/`.

    Attributes:
        files: where each is on this host.
        links: symbolic ones, each with the path in the new root that it leads to.
    """

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self.links: dict[str, str] = {}
        self._known: dict[tuple[int, int], str] = {}

    def add(self, path: str, source: Path) -> None:
        """One file; what is the same file as another becomes a link to it. Many programs in one file tell by the name
        that they are called by which is meant."""
        status = source.stat()
        first = self._known.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            self.files[path] = source
        else:
            self.links[path] = f"/{first}"

    @property
    def programs(self) -> list[str]:
        """What can be called, by name."""
        return sorted(path.removeprefix("bin/") for path in (self.files | self.links) if path.startswith("bin/"))


def host_programs() -> Taken:
    """All of `TOOLS` that can be taken along; nothing where the shell cannot."""
    taken = Taken()
    for name in TOOLS:
        found = find_program(name)
        libraries = _libraries(Path(found)) if found is not None else None
        if found is not None and libraries is not None:
            taken.add(f"bin/{name}", Path(found))
            for library in sorted(libraries):
                taken.add(str(library).lstrip("/"), library)
        elif name == "sh":
            break
    return taken


def _libraries(program: Path) -> set[Path] | None:
    """Loader and shared libraries of a program, at the paths where it looks for them; None where it cannot be taken."""
    try:
        loader = elf_loader(program)
    except ValueError:
        with program.open("rb") as file:
            return set() if _SCRIPT.match(file.read(_SCRIPT_LINE)) else None
    if loader is None:
        return set()
    try:
        listed = subprocess.run(
            [loader, "--list", program],
            capture_output=True,
            text=True,
            env={},  # whatever LD_LIBRARY_PATH says here does not hold inside
            timeout=limits.PROGRAM_ANSWER_MS / 1000,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if listed.returncode != 0 or "not found" in listed.stdout:
        return None
    found = {Path(loader), *(Path(os.path.normpath(path)) for path in _LIBRARY.findall(listed.stdout))}
    return found.union(*map(_name_services, found))


def _name_services(library: Path) -> Iterator[Path]:
    """glibc before 2.34 loads what reads /etc/passwd when it is first asked (nsswitch.conf(5))."""
    if library.name.startswith("libc.so"):
        yield from library.parent.glob("libnss_files.so.*")
