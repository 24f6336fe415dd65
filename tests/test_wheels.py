"""The wheels that are published: one for each machine, and an install that compiles nothing."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import __version__
from fastclaw.spawner.spawner_host import ARCHITECTURES
from tests.test_build_spawner import check_program

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "LICENSE-MIT", "LICENSE-APACHE", "fastclaw", "scripts", "share")
DEADLINE_S = 100
PLATFORMS = ("manylinux_2_17", "manylinux2014", "musllinux_1_1")

USERS_PROGRAM = """
from fastclaw.client import RuntimeClient


async def main() -> None:
    async with RuntimeClient.spawn(["fastclaw", "serve"]) as runtime:
        done = await runtime.run({command})
        reveal_type(done.stdout)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By machine, built from a copy of what the tree has for it, as `make wheels` does."""
    root, dist = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("dist")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root)
    built = {}
    for machine in ARCHITECTURES:
        before = set(dist.iterdir())
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
        environment = {**os.environ, "FASTCLAW_MACHINE": machine}
        subprocess.run(build, cwd=root, env=environment, check=True, timeout=DEADLINE_S, capture_output=True)
        [built[machine]] = set(dist.iterdir()) - before
    return built


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a host with a shell and nothing that compiles."""
    tools = tmp_path_factory.mktemp("tools")
    for name in ("sh", "echo"):
        (tools / name).symlink_to(shutil.which(name) or name)
    kept = {name: value for name, value in os.environ.items() if name in {"HOME", "TMPDIR", "XDG_RUNTIME_DIR"}}
    return {**kept, "PATH": str(tools), "CC": "false", "CXX": "false"}


@pytest.fixture(scope="module")
def installed(
    wheels: dict[str, Path], bare: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """An empty environment into which this machine's wheel was installed, with what it needs, all of it as wheels."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=True)
    command = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    subprocess.run(
        [*command, str(wheels[platform.machine()])], env=bare, check=True, timeout=DEADLINE_S, capture_output=True
    )
    yield directory
    shutil.rmtree(directory)


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as packed:
        return packed.namelist()


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_a_wheel_says_what_it_runs_on(wheels: dict[str, Path], machine: str) -> None:
    *_, python, abi, platforms = wheels[machine].stem.split("-")
    assert (python, abi, platforms.split(".")) == ("py3", "none", [f"{name}_{machine}" for name in PLATFORMS])
    with zipfile.ZipFile(wheels[machine]) as packed:
        said = packed.read(f"fastclaw-{__version__}.dist-info/WHEEL").decode().splitlines()
    assert {line for line in said if line.startswith("Tag: ")} == {
        f"Tag: py3-none-{name}_{machine}" for name in PLATFORMS
    }


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_a_wheel_has_the_program_of_its_machine_and_no_sources_of_it(wheels: dict[str, Path], machine: str) -> None:
    binary = f"fastclaw/spawner/bin/spawner-{machine}"
    inside = names_in(wheels[machine])
    assert [name for name in inside if "/bin/" in name] == [binary]
    assert "fastclaw/py.typed" in inside
    shared = {str(path.relative_to(ROOT)) for path in (ROOT / "share").rglob("*.*")}
    shared |= {"share/man/man1/fastclaw.1"}
    assert {f"fastclaw-{__version__}.data/data/{name}" for name in shared} <= set(inside)
    assert [name for name in inside if name.endswith((".c", ".h")) or "tests" in name.split("/")] == []
    assert {name.partition("/")[0].removeprefix(f"fastclaw-{__version__}") for name in inside} == {
        "fastclaw",
        ".data",
        ".dist-info",
    }
    with zipfile.ZipFile(wheels[machine]) as packed:
        assert packed.getinfo(binary).external_attr >> 16 & 0o111
        check_program(packed.read(binary), machine)


def test_the_wheels_differ_in_the_program_only(wheels: dict[str, Path]) -> None:
    contents = [{name for name in names_in(wheel) if "/bin/" not in name} for wheel in wheels.values()]
    assert all(one == other for one, other in itertools.pairwise(contents))


def test_where_nothing_compiles_it_installs_and_runs(installed: Path, bare: dict[str, str]) -> None:
    environment = {**bare, "PATH": f"{installed / 'bin'}:{bare['PATH']}"}
    said = {}
    for words in ("--version", "run -n --runtime local -- echo hi"):
        command = [str(installed / "bin" / "fastclaw"), *words.split()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        said[words] = (done.returncode, done.stdout)
        assert done.returncode == 0, done.stderr
    assert [out for _, out in said.values()] == [f"fastclaw, version {__version__}\n", "hi\n"]


@pytest.mark.parametrize(("command", "says"), [('["true"]', 'Revealed type is "bytes"'), ("3", "[arg-type]")])
def test_a_users_type_checker_sees_our_types(installed: Path, tmp_path: Path, command: str, says: str) -> None:
    (tmp_path / "program.py").write_text(USERS_PROGRAM.format(command=command))
    mypy = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={installed / 'bin' / 'python'}"]
    done = subprocess.run(
        [*mypy, f"--cache-dir={installed / 'mypy'}", "program.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is ("Revealed" in says), done.stdout
    assert says in done.stdout
