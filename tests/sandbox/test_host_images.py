"""Images for sandboxes: built, loaded, and how that comes on, for a program and for people."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from podman import PodmanClient

from fastclaw.errors import StartFailed

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.sandbox import Progress
    from fastclaw.sandbox.sync import Host
    from tests.engine_fixtures import EngineService


def context(directory: Path, image: str, *steps: str) -> Path:
    directory.mkdir()
    (directory / "Containerfile").write_text("\n".join([f"FROM {image}", *steps, ""]))
    return directory


def test_a_containerfile_is_enough(podman_host: Host, engine_service: EngineService, tmp_path: Path) -> None:
    told: list[Progress] = []
    steps = "RUN echo from a step; id -u > /who", "COPY Containerfile /copied", "WORKDIR /here", "USER 1234"
    here = context(tmp_path / "c", engine_service.image, *steps)
    image = podman_host.build(here, on_progress=told.append)
    with podman_host.start(image) as box:
        assert box.run("cat /who; pwd; id -u").text == "0\n/here\n1234\n"
        assert box.read("/copied") == (here / "Containerfile").read_bytes()
    text = "".join(progress.text for progress in told)
    assert "from a step\n" in text
    assert any(progress.done for progress in told)
    again = podman_host.build(here, tag="localhost/of-a-test:1")
    assert again == "localhost/of-a-test:1"
    with podman_host.start(again, pull="never") as box:
        assert box.image == again


OTHER = """
FROM {image} AS first
ARG WORD
RUN echo $WORD > /word
FROM first
RUN rm /word
"""


def test_a_working_directory_that_no_step_made_is_roots(
    podman_host: Host, engine_service: EngineService, tmp_path: Path
) -> None:
    """In the engine's container and in clones of it. Podman gives it to nobody where root inside is another user."""
    image = podman_host.build(context(tmp_path / "c", engine_service.image, "WORKDIR /made/for-it"))
    for clone in ("never", "auto", "auto"):
        with podman_host.start(image, clone=clone) as box:
            box.write("own", "x")
            assert (box.working_dir, box.stat(".").uid, box.stat("own").uid) == ("/made/for-it", 0, 0)


def test_arguments_targets_and_files(podman_host: Host, engine_service: EngineService, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(OTHER.format(image=engine_service.image))
    with podman_host.start(podman_host.build(tmp_path, file="other", target="first", args={"WORD": "said"})) as box:
        assert box.run(["cat", "/word"]).text == "said\n"


def test_a_step_that_fails_is_told_with_its_last_words(
    podman_host: Host, engine_service: EngineService, tmp_path: Path
) -> None:
    here = context(tmp_path / "c", engine_service.image, "RUN echo almost; echo because of this >&2; exit 7")
    with pytest.raises(StartFailed, match="because of this") as failed:
        podman_host.build(here)
    assert failed.value.reason == "build_failed"
    assert "because of this" in failed.value.data["output"]
    assert "\n" not in str(failed.value)


def test_what_cannot_be_read_is_an_oserror_with_the_path(podman_host: Host, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed:
        podman_host.build(tmp_path / "none")
    assert failed.value.filename == str(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="Containerfile"):
        podman_host.build(tmp_path / "empty")
    (tmp_path / "no-archive").write_text("none")
    with pytest.raises(OSError, match="neither a docker-archive nor an oci-archive"):
        podman_host.load(tmp_path / "no-archive")


def test_an_archive_is_loaded(podman_host: Host, engine_service: EngineService, tmp_path: Path) -> None:
    with PodmanClient(base_url=engine_service.url) as client, (tmp_path / "a.tar").open("wb") as archive:
        archive.writelines(client.images.get(engine_service.image).save(named=engine_service.image))
    assert podman_host.load(tmp_path / "a.tar") == [engine_service.image]


def test_an_image_that_is_there_is_not_pulled(podman_host: Host, engine_service: EngineService) -> None:
    assert podman_host.pull(engine_service.image) == engine_service.image


PROGRAM = """
    import sys
    from fastclaw.sandbox.sync import Host
    url, directory = sys.argv[1:]
    with Host(url=url) as host:
        print(host.build(directory, no_cache=True))
"""


def test_people_see_a_line_while_it_goes_on(engine_service: EngineService, tmp_path: Path) -> None:
    here = context(tmp_path / "c", engine_service.image, "RUN echo one-of-the-lines; sleep 0.5")
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), engine_service.url, str(here)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment, text=True) as child:
        os.close(follower)
        shown = b""
        while piece := _read(leader):
            shown += piece
        assert child.stdout is not None
        assert len(child.stdout.read().strip()) == 64
        assert child.wait(20) == 0
    os.close(leader)
    assert f"building {here}".encode()[:20] in shown
    assert b"one-of-the-lines" in shown
    assert shown.rstrip().endswith((b"\x1b[2K", b"\x1b[?25h"))


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # EIO: the other side is closed
        return b""


def test_without_a_terminal_nothing_is_shown(engine_service: EngineService, tmp_path: Path) -> None:
    here = context(tmp_path / "c", engine_service.image, "RUN echo one-of-the-lines")
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), engine_service.url, str(here)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (len(done.stdout.strip()), done.stderr) == (64, "")
