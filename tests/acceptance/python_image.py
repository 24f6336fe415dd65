"""An image with a Python, for machines without a registry: this interpreter, its library, and what both link to."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from podman import PodmanClient

from fastclaw.engine.base_image import busybox_archive, static_busybox

HOME = "opt/python"
SYSTEM = ("/lib", "/usr/lib")
"""Where the dynamic loader looks: libraries from elsewhere go there too."""

REFERENCE = "localhost/fastclaw-python:test"
LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "idlelib", "ensurepip", "__pycache__", "lib2to3"}
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")


def import_python_image(url: str) -> str:
    """Make it and hand it to an engine; returns its name."""
    with PodmanClient(base_url=url) as client:
        response = client.api.post(
            "/images/import",
            params={"reference": REFERENCE, "changes": ["ENV PATH=/bin", "WORKDIR /"]},
            data=python_archive(),
            headers={"Content-Type": "application/x-tar"},
        )
        response.raise_for_status()
    return REFERENCE


def python_archive() -> bytes:
    """The busybox image's files and this Python in a place where everybody may read it, `/bin/python3` among others."""
    buffer = io.BytesIO(busybox_archive(static_busybox()))
    python = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]  # of the virtual environment, if it is one
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})).resolve()
    extensions = [*library.glob("lib-dynload/*.so")]
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for directory in (HOME, f"{HOME}/bin", f"{HOME}/lib"):
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        archive.add(python, f"{HOME}/bin/python3")
        archive.add(library, f"{HOME}/lib/{library.name}", filter=_is_needed)
        for linked in sorted(_libraries([python, *extensions])):
            _add_followed(archive, linked, str(linked) if str(linked).startswith(SYSTEM) else f"usr/lib/{linked.name}")
        link = tarfile.TarInfo("bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, f"/{HOME}/bin/python3"
        archive.addfile(link)
    return buffer.getvalue()


def _is_needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = Path(member.name).parts
    return None if LEFT_OUT.intersection(parts) or parts[-1].startswith("config-") else member


def _libraries(programs: list[Path]) -> set[Path]:
    """Shared libraries and the dynamic loader, as ldd(1) finds them."""
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False, timeout=60).stdout
    return {Path(path) for path in _LIBRARY.findall(listed)}


def _add_followed(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """A file under the name that is asked for, whatever links lead there."""
    member = archive.gettarinfo(os.path.realpath(path), name)
    with open(os.path.realpath(path), "rb") as file:
        archive.addfile(member, file)
