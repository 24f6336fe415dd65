"""What is taken along of this host's programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastclaw.podman.host_tools import host_programs
from fastclaw.podman.service import facts

HERE = {name: Path(shutil.which(name) or name).resolve() for name in ("sh", "ls", "cat")}
Offer = Callable[..., None]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """This host has these programs and no others; each is a path, or the text of a script."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(facts, "SYSTEM_PATH", "")
    monkeypatch.setattr(facts, "HELPER_DIRS", ())

    def offered(**programs: str | Path) -> None:
        for name, program in programs.items():
            if isinstance(program, Path):
                (tmp_path / name).symlink_to(program)
            else:
                (tmp_path / name).write_text(program)
                (tmp_path / name).chmod(0o755)

    return offered


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
