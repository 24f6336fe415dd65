"""Where the spawner is for a machine, and what is said where there is none."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import pytest

from fastclaw.spawner import binary
from fastclaw.spawner.binary import ARCHITECTURES, find_spawner, path_for, why_no_spawner


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder instead of the package's."""
    monkeypatch.setattr(binary, "BINARIES", tmp_path)
    return tmp_path


def machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: name)


def test_the_one_for_this_machine_is_there() -> None:
    found = find_spawner()
    assert found == path_for(platform.machine())
    assert os.access(found, os.X_OK)
    assert why_no_spawner() is None


def test_the_source_has_system_calls_for_each_architecture_and_no_other() -> None:
    sources = sorted((Path(binary.__file__).parent / "c").glob("*.[ch]"))
    named = [re.findall(r"defined\(__(\w+)__\)", source.read_text()) for source in sources]
    assert {name for names in named for name in names} == set(ARCHITECTURES)
    calls = next(source.read_text() for source in sources if source.name == "spawner.h")
    assert tuple(re.findall(r"if defined\(__(\w+)__\)", calls)) == ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_has_its_own(name: str, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, name)
    for architecture in ARCHITECTURES:
        path_for(architecture).touch(mode=0o755)
    assert find_spawner() == built / f"spawner-{name}"
    assert why_no_spawner() is None


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_package_without_it_says_how_to_get_it(
    mode: int | None, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "aarch64")
    if mode is not None:
        path_for("aarch64").touch(mode=mode)
    assert find_spawner() is None
    assert why_no_spawner() == (
        "spawner-aarch64 was not built with this package; "
        "install it again: make install, or pip install --force-reinstall fastclaw"
    )


def test_another_machine_is_told_what_there_is(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "riscv64")
    assert find_spawner() is None
    assert why_no_spawner() == "the spawner knows x86_64 and aarch64, and this machine is riscv64"
