"""Makes a small image from what is on this host, for machines without a registry.

Owns what is in that image: busybox where there is a static one, else this host's own shell and tools with the libraries
that they need to run in a root of their own. Each program's own loader is asked for them; none is run. Knows of the
engine only that it imports a tar archive.
"""

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from podman.api.client import APIClient

from fastclaw import engine_limits
from fastclaw.engine.service.facts import elf_loader, find_program, is_static_elf
from fastclaw.errors import StartFailed

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
            timeout=engine_limits.PROGRAM_ANSWER_MS / 1000,
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


PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"
DIRECTORIES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777, "work": 0o777} | dict.fromkeys(
    ("/", "bin", "etc", "usr", "usr/local", "usr/local/bin", "var", "proc", "sys", "dev", "run"), 0o755
)
"""The root is `/`: the engine skips an entry for `./`, and the root that it makes itself is 0555 (containers/storage,
pkg/archive/archive.go)."""
LINKS = {"usr/bin": "/bin", "sbin": "/bin", "usr/sbin": "/bin"}
LEFT_OUT = frozenset({"busybox", "wget", "ssl_client"})
"""busybox itself is no link. Its wget asks a proxy for https:// as it asks for http://, checks no certificate, and a
static one crashes where glibc resolves a name with another glibc's modules (JonathonReinhart/staticx#227). A shell that
is built to prefer its own applets (Debian's) runs it without a link all the same."""

CHANGES = ("ENV PATH=/usr/local/bin:/usr/bin:/bin", "WORKDIR /", 'CMD ["/bin/sh"]')


def make_image(client: APIClient, reference: str, archive: bytes) -> None:
    """Hand a root file system to the engine under `reference`.

    Raises:
        podman.errors.APIError: the engine refused it.
    """
    response = client.post(
        "/images/import",
        params={"reference": reference, "changes": list(CHANGES)},
        data=archive,
        headers={"Content-Type": "application/x-tar"},
    )
    response.raise_for_status()


def default_archive() -> bytes:
    """The root file system of the default image, from the best that there is here.

    Raises:
        StartFailed: `image_not_found`: there is nothing to make it from.
    """
    source = _source()
    return busybox_archive(source) if isinstance(source, Path) else programs_archive(source)


def image_source() -> str:
    """What the default image is made from here, in words.

    Raises:
        StartFailed: `image_not_found`: there is nothing.
    """
    source = _source()
    if isinstance(source, Path):
        return f"static {source}"
    return f"{len(source.programs)} programs of this host, with their libraries"


def _source() -> Path | Taken:
    with suppress(StartFailed):
        return static_busybox()
    taken = host_programs()
    if not taken.programs:
        raise StartFailed(
            "there is nothing to make the default image from, neither a static busybox nor a shell whose libraries "
            "can be found; run: apt-get install busybox-static, or set options.image",
            "image_not_found",
        )
    return taken


def static_busybox() -> Path:
    """The host's busybox, where it needs no libraries.

    Raises:
        StartFailed: `image_not_found`.
    """
    path = find_program("busybox")
    if path is None or not is_static_elf(Path(path)):
        raise StartFailed("there is no static busybox; run: apt-get install busybox-static", "image_not_found")
    return Path(path)


def busybox_archive(busybox: Path) -> bytes:
    """A root file system as a tar archive: busybox, a link per applet, and what a process expects to find.

    Parameters:
        busybox: a static one; its own `--list` says which applets it has.
    """
    taken = Taken()
    taken.add("bin/busybox", busybox)
    taken.links.update({f"bin/{applet}": "busybox" for applet in applets(busybox)})
    return programs_archive(taken)


def programs_archive(taken: Taken) -> bytes:
    """A root file system as a tar archive: these files, and what a process expects to find."""
    size = sum(path.stat().st_size for path in taken.files.values())
    if size > engine_limits.MAX_IMAGE_BYTES:
        raise StartFailed(f"the default image would have {size} bytes; set options.image", "image_not_found")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in sorted((dict.fromkeys(_parents(taken.files | taken.links), 0o755) | DIRECTORIES).items()):
            _add(archive, name, mode, tarfile.DIRTYPE)
        _add(archive, "etc/passwd", 0o644, data=PASSWD.encode())
        _add(archive, "etc/group", 0o644, data=GROUP.encode())
        for path, source in taken.files.items():
            _add(archive, path, 0o755, data=source.read_bytes())
        for path, target in (taken.links | LINKS).items():
            _add(archive, path, 0o777, tarfile.SYMTYPE, link=target)
    return buffer.getvalue()


def _parents(paths: Iterable[str]) -> set[str]:
    """Every directory on the way to these."""
    return {str(parent) for path in paths for parent in PurePosixPath(path).parents[:-1]}


def applets(busybox: Path) -> list[str]:
    """The names under which this busybox can be called, without its own and without those that are `LEFT_OUT`."""
    listed = subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True, timeout=engine_limits.PROGRAM_ANSWER_MS / 1000
    )
    return [name for name in listed.stdout.split() if name not in LEFT_OUT]


def _add(
    archive: tarfile.TarFile, name: str, mode: int, kind: bytes = tarfile.REGTYPE, *, data: bytes = b"", link: str = ""
) -> None:
    """One member, owned by root, dated 1970: the same busybox gives the same image."""
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.size, member.linkname = mode, kind, len(data), link
    archive.addfile(member, io.BytesIO(data))
