"""The image made from what is on this host: what is in the archive, and that the engine takes it."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from podman import PodmanClient

from fastclaw import engine_limits
from fastclaw.engine.base_image import (
    LEFT_OUT,
    Taken,
    applets,
    busybox_archive,
    default_archive,
    host_programs,
    image_source,
    make_image,
    programs_archive,
    static_busybox,
)
from fastclaw.engine.service import facts
from fastclaw.errors import StartFailed
from tests.engine.conftest import EngineService, unusable


@pytest.fixture(scope="module")
def busybox() -> Path:
    """The host's static busybox."""
    try:
        return static_busybox()
    except StartFailed as error:
        unusable(str(error))


HERE = {name: Path(shutil.which(name) or name).resolve() for name in ("sh", "ls", "cat")}
Offer = Callable[..., None]


@pytest.fixture
def offer(programs: Path) -> Offer:
    """This host has these programs and no others; each is a path, or the text of a script."""

    def offered(**offers: str | Path) -> None:
        for name, program in offers.items():
            if isinstance(program, Path):
                (programs / name).symlink_to(program)
            else:
                (programs / name).write_text(program)
                (programs / name).chmod(0o755)

    return offered


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive}


def test_archive(busybox: Path) -> None:
    data = busybox_archive(busybox)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        program = archive.extractfile("bin/busybox")
        assert program is not None
        assert program.read() == busybox.read_bytes()
        passwd = archive.extractfile("etc/passwd")
        assert passwd is not None
        assert {line.split(b":")[0] for line in passwd} == {b"root", b"nobody"}
    found = members(data)
    assert (found["bin/sh"].linkname, found["bin/busybox"].mode) == ("busybox", 0o755)
    assert {f"bin/{name}" for name in applets(busybox)} <= found.keys()


@pytest.mark.parametrize("programs", [False, True])
def test_what_both_forms_have_in_common(busybox: Path, programs: bool) -> None:
    found = members(programs_archive(host_programs()) if programs else busybox_archive(busybox))
    assert next(iter(found)) == "", "the root itself comes first, and not as `./`, which the engine skips"
    modes = {"": 0o755, "tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "work": 0o777, "etc/passwd": 0o644}
    assert {name: found[name].mode for name in modes} == modes
    assert all(found[name].isdir() for name in ("proc", "sys", "dev", "run", "etc", "bin", "usr/local/bin"))
    assert found["usr/bin"].linkname == "/bin"
    assert all((member.uid, member.gid, member.mtime) == (0, 0, 0) for member in found.values())
    on_the_way = {str(parent) for name in found if name for parent in Path(name).parents} - {"."}
    assert on_the_way <= found.keys(), "what the engine would make on the way is not writable"


def test_the_same_host_makes_the_same_archive(busybox: Path) -> None:
    assert busybox_archive(busybox) == busybox_archive(busybox)
    assert programs_archive(host_programs()) == programs_archive(host_programs())


def test_a_command_that_cannot_do_its_work_is_left_out(busybox: Path) -> None:
    names = applets(busybox)
    assert "sh" in names
    assert LEFT_OUT.isdisjoint(names)


def test_busybox_comes_first(busybox: Path, programs: Path, offer: Offer) -> None:
    offer(busybox=busybox)
    assert image_source() == f"static {programs}/busybox"
    assert "bin/busybox" in members(default_archive())


def test_without_a_static_busybox_the_host_s_own_programs_are_taken(offer: Offer) -> None:
    offer(busybox=HERE["ls"], sh=HERE["sh"])
    with pytest.raises(StartFailed, match="apt-get install busybox-static"):
        static_busybox()
    assert re.fullmatch(r"1 programs? of this host, with .* libraries", image_source())
    assert {"bin/sh", "etc/passwd"} <= members(default_archive()).keys()


@pytest.mark.usefixtures("programs")
def test_where_there_is_nothing_it_says_what_to_do() -> None:
    for call in (default_archive, image_source):
        with pytest.raises(StartFailed, match=r"apt-get install busybox-static, or set options\.image") as caught:
            call()
        assert caught.value.reason == "image_not_found"


def test_a_huge_program_is_refused(tmp_path: Path) -> None:
    huge = tmp_path / "sh"
    with huge.open("wb") as file:
        file.truncate(engine_limits.MAX_IMAGE_BYTES + 1)
    taken = Taken()
    taken.add("bin/sh", huge)
    with pytest.raises(StartFailed, match=r"set options\.image"):
        programs_archive(taken)


def test_the_engine_takes_it(engine_service: EngineService, busybox: Path) -> None:
    reference = "localhost/fastclaw-test-image:one"
    with PodmanClient(base_url=engine_service.url) as client:
        make_image(client.api, reference, busybox_archive(busybox))
        try:
            config = client.images.get(reference).attrs["Config"]
            assert (config["Cmd"], config["WorkingDir"]) == (["/bin/sh"], "/")
            assert "PATH=/usr/local/bin:/usr/bin:/bin" in config["Env"]
        finally:
            client.images.remove(reference, force=True)


def test_programs_come_with_their_loader_and_libraries(offer: Offer) -> None:
    offer(sh=HERE["sh"], ls=HERE["ls"])
    taken = host_programs()
    assert taken.programs == ["ls", "sh"]
    assert taken.files["bin/ls"].samefile(HERE["ls"])
    loader = facts.elf_loader(HERE["sh"])
    assert loader is not None
    inside = {f"/{path}" for path in taken.files | taken.links}
    assert loader in inside
    assert any(Path(path).name.startswith("libc.so") for path in inside)
    assert all(source.is_absolute() and source.is_file() for source in taken.files.values())


def test_they_run_where_nothing_else_is(offer: Offer, tmp_path: Path) -> None:
    """The loader is told to look nowhere but among what was taken, as it must inside."""
    offer(sh=HERE["sh"], cat=HERE["cat"])
    taken, root = host_programs(), tmp_path / "root"
    for path, source in taken.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / path)
    loader = facts.elf_loader(HERE["cat"])
    folders = {str((root / path).parent) for path in taken.files if ".so" in path}
    command = [f"{root}{loader}", "--inhibit-cache", "--library-path", ":".join(folders), f"{root}/bin/cat"]
    done = subprocess.run(command, input=b"x", capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (0, b"x"), done.stderr


def test_one_file_under_two_names_is_taken_once(offer: Offer) -> None:
    offer(sh=HERE["sh"], bash=HERE["sh"])
    taken = host_programs()
    assert taken.links["bin/bash"] == "/bin/sh"


def test_scripts_of_the_shell_are_taken_and_others_are_not(offer: Offer) -> None:
    offer(sh=HERE["sh"], egrep="#!/bin/sh\nexec grep -E\n", which=f"#!{sys.executable}\n", zcat="nonsense")
    assert host_programs().programs == ["egrep", "sh"]


@pytest.mark.parametrize("shell", [None, "#!/usr/bin/python3\n", "nonsense"])
def test_without_a_shell_there_is_nothing(offer: Offer, shell: str | None) -> None:
    offer(ls=HERE["ls"], **({} if shell is None else {"sh": shell}))
    assert host_programs().programs == []


def test_a_program_whose_libraries_are_missing_is_left(offer: Offer, tmp_path: Path) -> None:
    """A loader that is not there, and one that says that it does not find a library."""
    broken = tmp_path / "broken"
    loader = facts.elf_loader(HERE["ls"])
    assert loader is not None
    broken.write_bytes(HERE["ls"].read_bytes().replace(loader.encode(), b"/none".ljust(len(loader), b"x")))
    missing = tmp_path / "missing"
    missing.write_bytes(HERE["ls"].read_bytes().replace(b"libc.so.6\0", b"libq.so.6\0"))
    offer(sh=HERE["sh"], cat=broken, ls=missing)
    assert host_programs().programs == ["sh"]


def test_what_this_environment_preloads_is_not_taken(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(sh=HERE["sh"])
    before = host_programs().files
    monkeypatch.setenv("LD_LIBRARY_PATH", os.path.dirname(__file__))
    monkeypatch.setenv("LD_PRELOAD", "/nonexistent.so")
    assert host_programs().files == before
