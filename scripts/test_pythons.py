#!/usr/bin/env python3
"""Runs the tests under each Python that pyproject.toml names, in an environment of its own, and prints a table.

    scripts/test_pythons.py [PYTEST-ARGUMENT ...]

Without arguments everything but tests/acceptance, which takes longest and says least about a Python; `tests` is all.
The variable VERSIONS names some of them only ("3.13 3.14"). The environments are in `.pythons/`, with this tree
installed in place. A Python is taken from the path, from pyenv, or from the variable PYTHONS, which may name more of
them, or else got from Debian, where there is apt (get-python). One that cannot be had has a row that says what to do,
and is a failure.
"""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".pythons"
CLASSIFIER = "Programming Language :: Python :: 3."
WITHOUT = ["--ignore=tests/acceptance"]


def main() -> int:
    """Test under all that are here."""
    arguments = sys.argv[1:] or WITHOUT
    rows = [_test(version, arguments) for version in wanted()]
    print(f"\npytest {' '.join(arguments)}\n")
    print("| Python | passed | failed | skipped | seconds |\n| --- | --- | --- | --- | --- |")
    for row, _ in rows:
        print(row)
    return int(any(failed for _, failed in rows))


def wanted() -> list[str]:
    """The versions that the project says it runs on, as `3.11`, or those of them that VERSIONS names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [f"3.{one.removeprefix(CLASSIFIER)}" for one in project["classifiers"] if one.startswith(CLASSIFIER)]
    some = os.environ.get("VERSIONS", "").split() or every
    if unknown := set(some) - set(every):
        sys.exit(f"fastclaw: {', '.join(unknown)} in VERSIONS is none of {', '.join(every)}")
    return some


def find(version: str) -> str | None:
    """The newest Python of a version that can make environments."""
    names = [*os.environ.get("PYTHONS", "").split(), f"python{version}", *_pyenv(version)]
    return next((path for name in names if (path := shutil.which(name)) and _is(path, version)), None)


def get(version: str) -> str | None:
    """One out of Debian's packages, if they have that version."""
    script = [str(ROOT / "scripts" / "get-python"), version, str(PLACE / f"debian-{version}")]
    done = subprocess.run(
        script, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHON": sys.executable}
    )
    path = done.stdout.strip()
    return path if done.returncode == 0 and _is(path, version) else None


def _pyenv(version: str) -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    patches = sorted((int(path.name.rpartition(".")[2]) for path in root.glob(f"versions/{version}.*")), reverse=True)
    return [str(root / "versions" / f"{version}.{patch}" / "bin" / "python3") for patch in patches]


def _is(path: str, version: str) -> bool:
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def _test(version: str, arguments: list[str]) -> tuple[str, bool]:
    """A row of the table, and whether it is a failure."""
    python = find(version) or get(version)
    if python is None:
        return f"| {version} | none here: `pyenv install {version}`, or name one in PYTHONS | | | |", True
    venv, results = PLACE / version, PLACE / f"{version}.xml"
    results.unlink(missing_ok=True)
    print(f"== {python}", flush=True)
    if why := _make(python, venv):
        return f"| {version} | {why} | | | |", True
    begun = time.monotonic()
    pytest = [str(venv / "bin" / "python"), "-m", "pytest", f"--junitxml={results}", *arguments]
    code = subprocess.run(pytest, cwd=ROOT, check=False).returncode
    return f"| {_exactly(venv)} | {_counted(results, code)} | {time.monotonic() - begun:.0f} |", code != 0


def _make(python: str, venv: Path) -> str:
    """Why there is no environment; empty where there is one."""
    if not (venv / "bin" / "pip").exists():
        made = subprocess.run([python, "-m", "venv", "--clear", str(venv)], check=False)
        if made.returncode:
            return f"{python} cannot make an environment"
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    installed = subprocess.run([*pip, "-e", f"{ROOT}[dev]"], check=False)
    return "what it needs cannot be installed" if installed.returncode else ""


def _exactly(venv: Path) -> str:
    said = subprocess.run([str(venv / "bin" / "python"), "-V"], capture_output=True, text=True, check=True).stdout
    return said.split()[1]


def _counted(results: Path, code: int) -> str:
    if not results.exists():
        return f"ended with {code} | | "
    suite = ElementTree.parse(results).getroot()[0].attrib
    total, failures, errors, skipped = (int(suite[name]) for name in ("tests", "failures", "errors", "skipped"))
    return f"{total - failures - errors - skipped} | {failures + errors} | {skipped}"


if __name__ == "__main__":
    sys.exit(main())
