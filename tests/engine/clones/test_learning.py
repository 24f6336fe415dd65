"""The first container of a kind is looked at: what the engine has put into it, and what no clone could have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import engine_limits
from fastclaw.engine.clones import learning
from fastclaw.engine.clones.bundles import Unclonable
from fastclaw.engine.clones.learning import Learned, learn
from fastclaw.linux.file_trees import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.engine.podman_client import InspectedFiles
    from tests.engine.clones.clone_fleet import CloneFleet


async def learned(
    clones: CloneFleet, change: Callable[[InspectedFiles], Any] | None = None, **options: Any
) -> tuple[Learned, dict[str, str]]:
    """From a container of these options; and the seed."""
    spec = clones.spec(**options)
    async with clones.up(clones.over(spec)) as container:
        found = await clones.engine.inspect_files(container.id)
        if change is not None:
            change(found)
        seed = str(clones.directory / "seed")
        try:
            return learn(container.id, spec, found, seed), listing(seed)
        finally:
            remove_tree(seed)


def listing(top: str) -> dict[str, str]:
    found = {}
    for folder, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            stat = os.lstat(path)
            link = os.readlink(path) if os.path.islink(path) else ""
            found[os.path.relpath(path, top)] = f"{stat.st_mode:o} {stat.st_uid} {stat.st_gid} {link}"
    return found


@pytest.mark.parametrize("is_mapped", [False, True])
async def test_what_podman_puts_into_a_container_is_taken_over(clones: CloneFleet, is_mapped: bool) -> None:
    found, seed = await learned(clones, ids=is_mapped)
    assert seed["etc/mtab"] == "120777 0 0 /proc/mounts"
    assert seed["run/fastclaw-init"].startswith("100")
    assert all(" 0 0 " in entry for entry in seed.values())
    assert found.upper == (0, 0, 0o755)
    assert found.filter is not None
    assert [Path(layer.path).name for layer in found.layers] == ["diff"]
    assert [os.readlink(layer.witness).startswith("../") for layer in found.layers] == [True]


def without_overlay(found: InspectedFiles) -> None:
    found.graph_driver.name = "vfs"


def ended(found: InspectedFiles) -> None:
    found.state.running = False


def put(found: InspectedFiles, name: str, make: Callable[[str], Any]) -> None:
    assert found.graph_driver.data is not None
    make(f"{found.graph_driver.data['UpperDir']}/{name}")


def with_a_file(found: InspectedFiles) -> None:
    put(found, "file", lambda path: Path(path).write_text("x"))


def with_a_pipe(found: InspectedFiles) -> None:
    put(found, "pipe", os.mkfifo)


def with_too_many(found: InspectedFiles) -> None:
    for number in range(engine_limits.CLONE_SEED_ENTRIES):
        put(found, f"{number}", os.mkdir)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without_overlay, "storage is vfs"),
        (ended, "has ended"),
        (with_a_file, "puts file into"),
        (with_a_pipe, "puts pipe into"),
        (with_too_many, "too many files"),
    ],
)
async def test_what_no_clone_could_have(clones: CloneFleet, change: Callable[[InspectedFiles], Any], why: str) -> None:
    with pytest.raises(Unclonable, match=why):
        await learned(clones, change)


@pytest.mark.parametrize(("data", "why"), [(b"x" * 65_537, "has 65537 bytes"), (b"\xff", "is no text")])
def test_a_file_of_the_engines_that_is_no_small_text(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(Unclonable, match=why):
        learning._small_text(str(tmp_path / "file"))


async def test_without_the_runtimes_record_there_is_no_filter(
    clones: CloneFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_RECORDS", tmp_path)
    found, _ = await learned(clones)
    assert found.filter is None
