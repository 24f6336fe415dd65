"""Makes a small image from the host's static busybox, for machines without a registry.

Owns what is in that image. Knows of the engine only that it imports a tar archive.
"""

import io
import os
import subprocess
import tarfile
from pathlib import Path

from podman.api.client import APIClient

from fastclaw import limits
from fastclaw.decisions.service import DEFAULT_IMAGE
from fastclaw.engine.host import find_program, is_static_elf
from fastclaw.errors import StartFailed

PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"
DIRECTORIES = {"bin": 0o755, "etc": 0o755, "root": 0o700, "tmp": 0o1777, "work": 0o777} | dict.fromkeys(
    ("proc", "sys", "dev", "run"), 0o755
)
CHANGES = ("ENV PATH=/bin", "WORKDIR /", 'CMD ["/bin/sh"]')


def make_busybox_image(client: APIClient, reference: str = DEFAULT_IMAGE) -> None:
    """Build the image and hand it to the engine under `reference`.

    Raises:
        StartFailed: `image_not_found`: this host has no static busybox.
        podman.errors.APIError: the engine refused it.
    """
    archive = busybox_archive(static_busybox())
    response = client.post(
        "/images/import",
        params={"reference": reference, "changes": list(CHANGES)},
        data=archive,
        headers={"Content-Type": "application/x-tar"},
    )
    response.raise_for_status()


def static_busybox() -> Path:
    """The host's busybox, where it needs no libraries.

    Raises:
        StartFailed: `image_not_found`.
    """
    path = find_program("busybox")
    if path is None or not is_static_elf(Path(path)):
        raise StartFailed(
            "there is no static busybox to make the default image from; "
            "run: apt-get install busybox-static, or set options.image",
            "image_not_found",
        )
    return Path(path)


def busybox_archive(busybox: Path) -> bytes:
    """A root file system as a tar archive: busybox, a link per applet, and what a process expects to find.

    Parameters:
        busybox: a static one; its own `--list` says which applets it has.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in DIRECTORIES.items():
            _add(archive, name, mode, tarfile.DIRTYPE)
        _add(archive, "etc/passwd", 0o644, data=PASSWD.encode())
        _add(archive, "etc/group", 0o644, data=GROUP.encode())
        _add(archive, "bin/busybox", 0o755, data=_program(busybox))
        for applet in applets(busybox):
            _add(archive, f"bin/{applet}", 0o777, tarfile.SYMTYPE, link="busybox")
    return buffer.getvalue()


def applets(busybox: Path) -> list[str]:
    """The names under which this busybox can be called, without its own."""
    listed = subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True, timeout=limits.PROGRAM_ANSWER_MS / 1000
    )
    return [name for name in listed.stdout.split() if name != "busybox"]


def _program(path: Path) -> bytes:
    size = os.stat(path).st_size
    if size > limits.MAX_BUSYBOX_BYTES:
        raise StartFailed(f"{path} has {size} bytes and cannot be a busybox; install busybox-static", "image_not_found")
    return path.read_bytes()


def _add(
    archive: tarfile.TarFile, name: str, mode: int, kind: bytes = tarfile.REGTYPE, *, data: bytes = b"", link: str = ""
) -> None:
    """One member, owned by root, dated 1970: the same busybox gives the same image."""
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.size, member.linkname = mode, kind, len(data), link
    archive.addfile(member, io.BytesIO(data))
