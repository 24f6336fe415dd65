"""The image made from what is on this host: what is in the archive, and that the engine takes it."""

import io
import re
import tarfile
from pathlib import Path

import pytest
from podman import PodmanClient

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.podman.base_image import (
    LEFT_OUT,
    applets,
    busybox_archive,
    default_archive,
    image_source,
    make_image,
    programs_archive,
    static_busybox,
)
from fastclaw.podman.host_tools import Taken, host_programs
from fastclaw.podman.service import facts
from tests.podman.conftest import EngineService, unusable


@pytest.fixture(scope="module")
def busybox() -> Path:
    """The host's static busybox."""
    try:
        return static_busybox()
    except StartFailed as error:
        unusable(str(error))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory in which programs are looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(facts, "SYSTEM_PATH", "")
    monkeypatch.setattr(facts, "HELPER_DIRS", ())
    return tmp_path


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


def test_busybox_comes_first(busybox: Path, path: Path) -> None:
    (path / "busybox").symlink_to(busybox)
    assert image_source() == f"static {path}/busybox"
    assert "bin/busybox" in members(default_archive())


def test_without_a_static_busybox_the_host_s_own_programs_are_taken(path: Path) -> None:
    (path / "busybox").symlink_to(Path("/bin/ls").resolve())
    (path / "sh").symlink_to(Path("/bin/sh").resolve())
    with pytest.raises(StartFailed, match="apt-get install busybox-static"):
        static_busybox()
    assert re.fullmatch(r"1 programs? of this host, with .* libraries", image_source())
    assert {"bin/sh", "etc/passwd"} <= members(default_archive()).keys()


def test_where_there_is_nothing_it_says_what_to_do(path: Path) -> None:
    for call in (default_archive, image_source):
        with pytest.raises(StartFailed, match=r"apt-get install busybox-static, or set options\.image") as caught:
            call()
        assert caught.value.reason == "image_not_found"


def test_a_huge_program_is_refused(tmp_path: Path) -> None:
    huge = tmp_path / "sh"
    with huge.open("wb") as file:
        file.truncate(limits.MAX_IMAGE_BYTES + 1)
    taken = Taken()
    taken.add("bin/sh", huge)
    with pytest.raises(StartFailed, match=r"set options\.image"):
        programs_archive(taken)


@pytest.mark.podman
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
