"""The image of the adapters' tests: Debian's essential packages, adduser and its like, and Debian's python3.

It is made from the files of the packages that this host has installed, with no registry and no network, by root or by
anybody.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGES = ("adduser", "bash", "coreutils", "grep", "less", "passwd", "procps", "python3", "sed", "tar")
"""With what they depend on, and what Debian calls essential."""

WORKING_DIR = "/work"
USER = "agent"
"""Has the number 1000 and a home, besides root, nobody and Debian's others."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_LEFT_OUT = re.compile(r"usr/share/(bash-completion|doc|info|lintian|locale|man|zoneinfo)/")
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Links into /usr, though packages still list some of their files there."""

_DIRECTORIES = {
    "/": 0o755,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
    "root": 0o700,
    "work": 0o777,
    f"home/{USER}": 0o755,
}
"""The root is `/`: the engine skips an entry for `./`, and the root that it makes itself is 0555."""

_LINKS = {
    "usr/bin/awk": "mawk",
    "usr/bin/pager": "less",
    "usr/bin/python": "python3",
    "usr/bin/which": "which.debianutils",
}
_PAM = {"auth": "pam_unix.so", "account": "pam_unix.so", "password": "pam_unix.so", "session": "pam_permit.so"}
"""What the packages' scripts would make on installation: links of update-alternatives, files of pam-auth-update."""

_AGENT = {
    "passwd": f"{USER}:x:1000:1000::/home/{USER}:/bin/bash\n",
    "group": f"{USER}:x:1000:\n",
}


def build_context(directory: Path, user: str | None = None) -> Path:
    """Write a directory that any engine can build an image from.

    Parameters:
        directory: made if missing.
        user: the image's default user; without one it is root.
    """
    directory.mkdir(parents=True, exist_ok=True)
    archive = root_file_system()
    (directory / "rootfs.tar").write_bytes(archive.read_bytes())
    lines = ["FROM scratch", "ADD rootfs.tar /", f"ENV PATH={PATH}", f"WORKDIR {WORKING_DIR}", 'CMD ["/bin/bash"]']
    lines += [f"USER {user}"] if user else []
    (directory / "Containerfile").write_text("\n".join(lines) + "\n")
    return directory


def image_archive(path: Path, reference: str, user: str | None = None) -> Path:
    """Write the image as an archive for `podman load`, under a name with a tag."""
    layer = root_file_system()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Cmd": ["/bin/bash"], "Env": [f"PATH={PATH}"], "User": user or "", "WorkingDir": WORKING_DIR},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest_of(layer)}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        archive.add(layer, "layer.tar")
        for name, content in (("config.json", config), ("manifest.json", manifest)):
            _add(archive, name, 0o644, data=json.dumps(content).encode())
    return path


def root_file_system() -> Path:
    """The image's files as a tar archive. It is made once for each state of the packages, and kept in the user's cache.

    Raises:
        RuntimeError: this host has not all of the packages; the message says what to do.
    """
    packages = _with_dependencies(_installed())
    state = [f"{package.name} {package.version}" for package in packages]
    key = hashlib.sha256("\n".join([*state, Path(__file__).read_text()]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastclaw" / "test-images"
    path = cache / f"{key}.tar"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            _write(unfinished, [package.name for package in packages])
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return path


class _Package(NamedTuple):
    """A package that is installed here.

    Parameters:
        needs: for each dependency, the packages that would do.
        provides: other names that it goes by.
    """

    name: str
    version: str
    is_essential: bool
    needs: list[list[str]]
    provides: list[str]


def _installed() -> list[_Package]:
    fields = "${db:Status-Status}|${binary:Package}|${Version}|${Essential}|${Pre-Depends},${Depends}|${Provides}\n"
    fields = fields.replace("|", "\t")  # a dependency has bars of its own
    try:
        listed = subprocess.run(
            ["dpkg-query", "-W", "-f", fields], capture_output=True, text=True, check=True, timeout=60
        )
    except FileNotFoundError:
        raise RuntimeError("the test image is made of Debian's packages: it needs Debian or Ubuntu") from None
    rows = (line.split("\t") for line in listed.stdout.splitlines())
    return [
        _Package(
            name,
            version,
            essential == "yes",
            [_names(one.split("|")) for one in needs.split(",")],
            _names(provides.split(",")),
        )
        for status, name, version, essential, needs, provides in rows
        if status == "installed"
    ]


def _names(words: Iterable[str]) -> list[str]:
    """`libc6:any (>= 2.36)` is libc6."""
    return [name for word in words if (name := re.sub(r"[\s:(].*", "", word.strip()))]


def _with_dependencies(installed: list[_Package]) -> list[_Package]:
    by_name: dict[str, _Package] = {}
    for package in installed:
        for name in package.provides:
            by_name.setdefault(name, package)
    by_name |= {package.name.partition(":")[0]: package for package in installed}
    missing = [name for name in PACKAGES if name not in by_name]
    if missing:
        raise RuntimeError(f"the test image needs packages of this host; run: apt-get install {' '.join(missing)}")
    waiting = [package for package in installed if package.is_essential] + [by_name[name] for name in PACKAGES]
    taken: dict[str, _Package] = {}
    while waiting:
        package = waiting.pop()
        if package.name not in taken:
            taken[package.name] = package
            waiting += [found for names in package.needs if (found := _first(names, by_name)) is not None]
    return sorted(taken.values())


def _first(names: list[str], by_name: dict[str, _Package]) -> _Package | None:
    return next((by_name[name] for name in names if name in by_name), None)


def _write(path: Path, packages: list[str]) -> None:
    listed = subprocess.run(["dpkg-query", "-L", *packages], capture_output=True, text=True, check=True, timeout=60)
    sources = {_merged(line[1:]): Path(line) for line in listed.stdout.splitlines() if line.count("/") > 1}
    sources |= dict(_compiled(sources))
    sources = {
        name: source for name, source in sources.items() if not _LEFT_OUT.match(name) and os.path.lexists(source)
    }
    with tarfile.open(path, "w") as archive:
        for name, mode in (dict.fromkeys(_parents([*sources, *_DIRECTORIES]), 0o755) | _DIRECTORIES).items():
            _add(archive, name, mode, tarfile.DIRTYPE, owner=1000 if name == f"home/{USER}" else 0)
        for name in sorted(set(_MERGED).intersection(PurePosixPath(one).parts[1] for one in sources if "/" in one)):
            _add(archive, name, 0o777, tarfile.SYMTYPE, link=f"usr/{name}")
        for name, source in sorted(sources.items()):
            if source.is_symlink() or not source.is_dir():
                _take(archive, name, source)
        for name, target in _LINKS.items():
            _add(archive, name, 0o777, tarfile.SYMTYPE, link=target)
        for name, text in _configuration().items():
            _add(archive, name, 0o640 if name.endswith("shadow") else 0o644, data=text.encode())


def _merged(name: str) -> str:
    return f"usr/{name}" if PurePosixPath(name).parts[0] in _MERGED else name


def _compiled(sources: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """What Python made of its modules when they were installed; nobody but root could do so inside."""
    for name, source in sources.items():
        if source.suffix == ".py":
            for compiled in source.parent.glob(f"__pycache__/{source.stem}.cpython-*.pyc"):
                yield str(PurePosixPath(name).parent / "__pycache__" / compiled.name), compiled


def _parents(names: Iterable[str]) -> list[str]:
    return sorted({str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."})


def _take(archive: tarfile.TarFile, name: str, source: Path) -> None:
    """A file as it is here: its owner's number, its mode, and its time, by which Python tells whether a module was
    compiled from it."""
    member = archive.gettarinfo(source, name)
    member.uname = member.gname = ""
    if member.isreg():
        with source.open("rb") as file:
            archive.addfile(member, file)
    else:
        archive.addfile(member)


def _configuration() -> dict[str, str]:
    users, groups = (Path(f"/usr/share/base-passwd/{name}.master").read_text() for name in ("passwd", "group"))
    users = users.replace(":*:", ":x:") + _AGENT["passwd"]
    names = [line.partition(":")[0] for line in users.splitlines()]
    pam = {f"etc/pam.d/common-{kind}": f"{kind} required {module}\n" for kind, module in _PAM.items()}
    return (
        {
            "etc/passwd": users,
            "etc/group": groups.replace(":*:", ":x:") + _AGENT["group"],
            "etc/shadow": "".join(f"{name}:*:19000:0:99999:7:::\n" for name in names),
            "etc/gshadow": "",
            "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
            "etc/subuid": "",
            "etc/subgid": "",
        }
        | pam
        | {"etc/pam.d/common-session-noninteractive": "session required pam_permit.so\n"}
    )


def _add(
    archive: tarfile.TarFile,
    name: str,
    mode: int,
    kind: bytes = tarfile.REGTYPE,
    *,
    data: bytes = b"",
    link: str = "",
    owner: int = 0,
) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.size, member.linkname, member.uid, member.gid = (
        mode,
        kind,
        len(data),
        link,
        owner,
        owner,
    )
    archive.addfile(member, io.BytesIO(data))


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    build_context(Path(sys.argv[1]), *sys.argv[2:])
