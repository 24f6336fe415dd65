"""The commands of a fresh machine: what the Makefile offers, and the one line that says what is missing."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOBODY = 65534

TARGETS = {"install", "test", "check", "fmt", "demo", "bench", "bench-check", "soak", "fuzz", "wheels", "clean"}


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **more}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=environment)


def test_help_is_the_default_and_lists_every_target() -> None:
    done = run("make", "--no-print-directory", MAKEFLAGS="")
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert listed >= TARGETS
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY"))
    assert listed == set(phony.split()[1:])


def test_ci_runs_tests_and_checks() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    steps = re.findall(r"^step make ([\w-]+)", script.read_text(), re.MULTILINE)
    assert steps == ["test", "check", "bench-short"]


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_a_python_that_does_not_run_is_one_line(tmp_path: Path, python: str) -> None:
    done = run(str(ROOT / "scripts" / "make-venv"), python, str(tmp_path / "venv"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"fastclaw: {python} does not run; install Python 3.11")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_an_environment_that_is_whole_is_kept_and_half_of_one_is_made_anew(tmp_path: Path) -> None:
    """`make install` without a network would else leave an empty one in its place."""
    venv = tmp_path / "venv"
    make = (str(ROOT / "scripts" / "make-venv"), sys.executable, str(venv))
    assert run(*make).returncode == 0
    (venv / "mine").touch()
    assert run(*make).returncode == 0
    assert (venv / "mine").exists()
    pip = run(str(venv / "bin" / "python"), "-m", "pip", "--version").stdout.split()[3]
    shutil.rmtree(pip)
    assert run(*make).returncode == 0
    assert not (venv / "mine").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave what is root's")
@pytest.mark.parametrize("left", ["fastclaw/spawner/bin", "fastclaw/spawner", ".venv", "."])
def test_what_root_left_in_the_tree_is_said_in_one_line(left: str) -> None:
    script = (ROOT / "scripts" / "make-venv").read_text()
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        (tree / left).mkdir(parents=True, exist_ok=True)
        for path in (tree, *tree.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        os.chown(tree / left, 0, 0)
        tree.chmod(0o755)
        done = subprocess.run(
            ["/bin/sh", "-s", sys.executable, ".venv"],
            input=script, capture_output=True, text=True, timeout=60, check=False, user=NOBODY, cwd=directory,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"fastclaw: {left} belongs to somebody else; as root: chown -hR {NOBODY} {left}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave what is root's")
@pytest.mark.parametrize("owner", [0, NOBODY])
def test_what_root_runs_in_somebody_elses_tree_leaves_no_caches_there(owner: int, tmp_path: Path) -> None:
    """After root's `make check` and `make test`, the owner's mypy crashed, tests failed, and `make clean` did."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    os.chown(tmp_path, owner, owner)
    (tmp_path / "test_it.py").write_text("def test_it(): pass")
    uses = "; ".join(f"{sys.executable} -m {tool}" for tool in ("ruff check -q .", "mypy --strict .", "pytest -q ."))
    make = ["make", "-C", str(tmp_path), "PYTHON=true", "--eval", f"uses: ; {uses}", "uses"]
    home = tmp_path.with_name("home")
    done = subprocess.run(make, capture_output=True, timeout=100, check=False, env={**os.environ, "HOME": str(home)})
    assert b"1 passed" in done.stdout
    left = {path.name for path in tmp_path.iterdir()} - {"Makefile", "test_it.py"}
    assert bool(left) is (owner == 0), left


def test_the_python_that_is_found_is_new_enough() -> None:
    done = run(str(ROOT / "scripts" / "find-python"))
    check = [done.stdout.strip(), "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    assert subprocess.run(check, check=False, timeout=60).returncode == 0


def engine_packages(path: str) -> subprocess.CompletedProcess[str]:
    """The script as somebody who is not root; read from stdin, for the project may lie where only its owner looks."""
    script = (ROOT / "scripts" / "engine-packages").read_text()
    user = NOBODY if os.geteuid() == 0 else None
    return subprocess.run(
        ["/bin/sh", "-s", "true"],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=user,
        cwd="/",
        env={"PATH": path},
    )


def test_without_root_or_apt_what_is_missing_is_said_in_one_line_and_things_go_on() -> None:
    done = engine_packages("/nonexistent")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    assert "podman" in done.stderr
    assert "busybox-static" in done.stderr


def test_without_root_the_one_command_is_printed() -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get on this system: the other message is the right one")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        for name in ("id", "apt-get"):
            Path(directory, name).symlink_to(shutil.which(name) or name)
        done = engine_packages(directory)
    assert done.returncode == 0
    assert done.stderr.startswith("fastclaw: the engine tests need more: sudo apt-get install podman crun ")
    assert done.stderr.count("\n") == 1
