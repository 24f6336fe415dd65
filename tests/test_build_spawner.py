"""The build hook: every compiler there is gives a small static program, and the package takes it along."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import pytest

from fastclaw import limits
from fastclaw.spawner.spawner_host import ARCHITECTURES

ROOT = Path(__file__).parent.parent
MACHINES = {"x86_64": 62, "aarch64": 183}
"""e_machine by architecture (elf(5))."""

SOURCES = sorted((ROOT / "fastclaw" / "spawner" / "c").rglob("*.[ch]"))

HERE = platform.machine()

needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="zig is not installed")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None or HERE not in MACHINES, reason="no C compiler for this")


Config = TypeVar("Config")


class Hook(Generic[Config]):
    """Stands in for hatchling's BuildHookInterface."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/build_spawner.py as a module. Only builds have hatchling, so its base class may need a stand-in."""
    if importlib.util.find_spec("hatchling") is None:
        stand_in = types.ModuleType("hatchling.builders.hooks.plugin.interface")
        monkeypatch.setattr(stand_in, "BuildHookInterface", Hook, raising=False)
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    spec = importlib.util.spec_from_file_location("build_spawner", ROOT / "scripts" / "build_spawner.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def without_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else find(name))


class Elf(NamedTuple):
    """The head of a program, and what its segments are for."""

    bits: int
    kind: int
    machine: int
    segments: dict[int, int]


PT_DYNAMIC, PT_INTERP, PT_GNU_STACK, PF_X, ET_EXEC = 2, 3, 0x6474E551, 1, 2


def read_elf(program: bytes) -> Elf:
    """By elf(5); segments are flags by type."""
    assert program[:4] == b"\x7fELF"
    kind, machine, _, _, table, _, _, _, size, count = struct.unpack_from("<HHIQQQIHHH", program, 16)
    headers = [struct.unpack_from("<II", program, table + number * size) for number in range(count)]
    return Elf(32 * program[4], kind, machine, dict(headers))


def check(program: Path, architecture: str) -> None:
    check_program(program.read_bytes(), architecture)
    assert os.access(program, os.X_OK)


def check_program(data: bytes, architecture: str) -> None:
    """A static program for that machine, and a small one."""
    elf = read_elf(data)
    assert (elf.bits, elf.kind, elf.machine) == (64, ET_EXEC, MACHINES[architecture])
    assert not {PT_INTERP, PT_DYNAMIC} & set(elf.segments), "it needs a loader"
    assert not elf.segments[PT_GNU_STACK] & PF_X
    assert len(data) <= 128 * limits.KIB


def test_the_architectures_are_those_that_are_looked_for(script: Any) -> None:
    assert tuple(script.KERNEL_HEADERS) == ARCHITECTURES == tuple(MACHINES)
    assert {path.parent for path in SOURCES} == {ROOT / script.SOURCES, ROOT / script.SOURCES / "files"}
    assert (ROOT / script.BINARIES).is_dir()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_source_says_what_it_is_and_is_no_longer_than_it_can_be_read(source: Path) -> None:
    lines = source.read_text().splitlines()
    assert lines[0].startswith("/* ")
    assert len(lines) <= 600


@needs_cc
def test_the_systems_compiler_builds_for_this_machine(script: Any, without_zig: None, tmp_path: Path) -> None:
    script.compile_spawner(script.compiler_for(HERE), ROOT / script.SOURCES, tmp_path / "spawner")
    check(tmp_path / "spawner", HERE)
    assert subprocess.run([tmp_path / "spawner"], check=False, timeout=10).returncode == 1
    assert os.listdir(tmp_path) == ["spawner"]


@needs_zig
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zig_builds_for_every_machine(script: Any, architecture: str, tmp_path: Path) -> None:
    script.compile_spawner(script.compiler_for(architecture), ROOT / script.SOURCES, tmp_path / "spawner")
    check(tmp_path / "spawner", architecture)


def test_cc_is_named_by_its_variable(
    script: Any, without_zig: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    mine = tmp_path / "my-cc"
    mine.touch(mode=0o755)
    monkeypatch.setenv("CC", str(mine))
    assert script.compiler_for("aarch64") == [str(mine), *script.FLAGS]
    assert script.compiler_for("x86_64") is None


@pytest.mark.parametrize(("cc", "machine"), [("/no/such/cc", "x86_64"), ("sh", "riscv64")])
def test_without_a_compiler_for_this_machine_there_is_none(
    cc: str, machine: str, script: Any, without_zig: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", cc)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert script.compiler_for(machine) is None
    said = run_hook(script, project(script, tmp_path))
    assert (said["artifacts"], "tag" in said) == ([], False)
    monkeypatch.setenv("FASTCLAW_MACHINE", "x86_64" if machine == "riscv64" else "riscv64")
    with pytest.raises(SystemExit, match="fastclaw: nothing here compiles for"):
        run_hook(script, tmp_path)


def project(script: Any, folder: Path) -> Path:
    """As much of this one as the hook looks at."""
    shutil.copytree(ROOT / script.SOURCES, folder / script.SOURCES)
    return folder


def run_hook(script: Any, root: Path) -> dict[str, Any]:
    """What it says of the package."""
    hook = script.SpawnerHook.__new__(script.SpawnerHook)
    hook.__dict__.update(root=str(root), _BuildHookInterface__root=str(root))
    build_data: dict[str, Any] = {"artifacts": [], "shared_data": {}}
    hook.initialize("standard", build_data)
    return build_data


@needs_cc
def test_the_hook_puts_the_program_where_it_is_looked_for(script: Any, without_zig: None, tmp_path: Path) -> None:
    root = project(script, tmp_path)
    for _ in range(2):  # an editable install is built again and again
        page = {str(root / "build" / "fastclaw.1"): "share/man/man1/fastclaw.1"}
        program = f"/fastclaw/spawner/bin/spawner-{HERE}"
        assert run_hook(script, root) == {"artifacts": [program], "tag": script.TAG.format(HERE), "shared_data": page}
    check(root / script.BINARIES / f"spawner-{HERE}", HERE)


@needs_cc
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can build in somebody else's tree")
def test_what_root_builds_is_his_who_has_the_tree(script: Any, without_zig: None, tmp_path: Path) -> None:
    root = project(script, tmp_path)
    os.chown(root, 65534, 65533)
    run_hook(script, root)
    made = [root / script.BINARIES, root / script.BINARIES / f"spawner-{HERE}"]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(65534, 65533)}


@needs_cc
def test_a_program_that_runs_is_replaced(script: Any, without_zig: None, tmp_path: Path) -> None:
    compiler = script.compiler_for(HERE)
    place = tmp_path / "spawner"
    shutil.copy(shutil.which("sleep") or "sleep", place)
    with subprocess.Popen([place, "1000"]) as running:
        script.compile_spawner(compiler, ROOT / script.SOURCES, place)
        check(place, HERE)
        running.kill()


@needs_cc
def test_a_source_that_does_not_compile_stops_the_build(
    script: Any, without_zig: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = project(script, tmp_path) / script.SOURCES
    (sources / "broken.c").write_text("int unused(void) { return missing; }\n")
    compiler = script.compiler_for(HERE)
    with pytest.raises(subprocess.CalledProcessError):
        script.compile_spawner(compiler, sources, tmp_path / "spawner")
    assert "missing" in capfd.readouterr().err
    assert not (tmp_path / "spawner").exists()
