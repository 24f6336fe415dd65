"""The image made from the host's busybox: what is in the archive, and that the engine can run it."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from podman import PodmanClient

from fastclaw.engine.image import applets, busybox_archive, make_busybox_image, static_busybox
from fastclaw.errors import StartFailed
from tests.engine.conftest import EngineService, unusable


@pytest.fixture(scope="module")
def busybox() -> Path:
    """The host's static busybox."""
    try:
        return static_busybox()
    except StartFailed as error:
        unusable(str(error))


def test_archive(busybox: Path) -> None:
    data = busybox_archive(busybox)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive}
        program = archive.extractfile("bin/busybox")
        assert program is not None
        assert program.read() == busybox.read_bytes()
        passwd = archive.extractfile("etc/passwd")
        assert passwd is not None
        assert {line.split(b":")[0] for line in passwd} == {b"root", b"nobody"}
    assert (members["tmp"].mode, members["root"].mode) == (0o1777, 0o700)
    assert all(members[name].isdir() for name in ("work", "proc", "sys", "dev", "run", "etc", "bin"))
    assert (members["bin/sh"].linkname, members["bin/busybox"].mode) == ("busybox", 0o755)
    assert {f"bin/{name}" for name in applets(busybox)} <= members.keys()
    assert all((member.uid, member.gid, member.mtime) == (0, 0, 0) for member in members.values())


def test_same_busybox_same_archive(busybox: Path) -> None:
    assert busybox_archive(busybox) == busybox_archive(busybox)


def test_applets_are_without_busybox_itself(busybox: Path) -> None:
    names = applets(busybox)
    assert "sh" in names
    assert "busybox" not in names


def test_a_dynamic_busybox_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclaw.engine.image.find_program", lambda name: os.path.realpath("/bin/ls"))
    with pytest.raises(StartFailed, match="apt-get install busybox-static") as caught:
        static_busybox()
    assert caught.value.reason == "image_not_found"


def test_a_huge_program_is_no_busybox(tmp_path: Path) -> None:
    huge = tmp_path / "busybox"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(StartFailed, match="cannot be a busybox"):
        busybox_archive(huge)


@pytest.mark.podman
def test_the_engine_runs_it(engine_service: EngineService) -> None:
    reference = "localhost/fastclaw-test-image:one"
    with PodmanClient(base_url=engine_service.url) as client:
        make_busybox_image(client.api, reference)
        try:
            config = client.images.get(reference).attrs["Config"]
            assert (config["Cmd"], config["WorkingDir"]) == (["/bin/sh"], "/")
            assert "PATH=/bin" in config["Env"]
        finally:
            client.images.remove(reference, force=True)
