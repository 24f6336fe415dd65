#!/usr/bin/env python3
"""Runs the tests of adapters, each in an environment of its own with its tool from PyPI, and prints a table.

    scripts/test_adapters.py [TOOL ...]

The environments are in `.adapters/`, with the wheel of this tree installed as a user would: `fastclaw[TOOL]`. A tool
that needs a newer Python than this one has a file `requires-python` beside its tests. One of whose requirements only a
few are to be had has a file `install` with what pip is told instead, and those few in its `requirements.txt`.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".adapters"
TESTS = ROOT / "tests" / "adapters"


def main() -> int:
    """Test those that are named, or all."""
    known = sorted(path.name for path in TESTS.iterdir() if (path / "requirements.txt").exists())
    asked = sys.argv[1:] or known
    if unknown := set(asked) - set(known):
        print(f"test-adapters: there is no adapter {', '.join(sorted(unknown))}; there are: {' '.join(known)}")
        return 2
    PLACE.mkdir(exist_ok=True)
    wheel = _wheel()
    codes = {tool: _test(tool, wheel) for tool in asked}
    _print_table(codes)
    return int(any(codes.values()))


def _wheel() -> Path:
    wheels = PLACE / "wheels"
    for old in wheels.glob("*.whl"):
        old.unlink()
    _pip(Path(sys.prefix), "wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT))
    return next(wheels.glob("*.whl"))


def _test(tool: str, wheel: Path) -> int:
    print(f"== {tool}", flush=True)
    report = PLACE / f"{tool}.json"
    report.unlink(missing_ok=True)
    (PLACE / f"{tool}.xml").unlink(missing_ok=True)
    environ = {**os.environ, "FASTCLAW_ADAPTER_REPORT": str(report)}
    here = TESTS / tool
    venv = PLACE / tool
    _make_venv(venv, tool, wheel)
    pytest = [str(venv / "bin" / "python"), "-m", "pytest", "-c", str(TESTS / "pytest.ini")]
    places = ["--rootdir", str(ROOT), "--confcutdir", str(TESTS), f"--junitxml={PLACE / tool}.xml", str(here)]
    return subprocess.run([*pytest, *places], cwd=ROOT, env=environ, check=False).returncode


def _make_venv(venv: Path, tool: str, wheel: Path) -> None:
    if not (venv / "bin" / "python").exists():
        subprocess.run([_python(tool), "-m", "venv", str(venv)], check=True)
    alone = TESTS / tool / "install"
    extra = "" if alone.exists() else f"[{tool.replace('_', '-')}]"
    _pip(venv, "install", "--quiet", f"fastclaw{extra} @ {wheel.as_uri()}")
    if alone.exists():
        _pip(venv, "install", "--quiet", *alone.read_text().split())
    _pip(venv, "install", "--quiet", "--force-reinstall", "--no-deps", str(wheel))
    _pip(venv, "install", "--quiet", "-r", str(TESTS / tool / "requirements.txt"))


def _python(tool: str) -> str:
    wanted = TESTS / tool / "requires-python"
    if not wanted.exists():
        return sys.executable
    version = wanted.read_text().strip()
    found = subprocess.run([ROOT / "scripts" / "find-python", version], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(f"test-adapters: {tool} needs Python {version} or later, and none is here; install one")
    return found.stdout.strip()


def _pip(venv: Path, *arguments: str) -> None:
    subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def _print_table(codes: dict[str, int]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    print("\n| tool | suite | passed | without fastclaw | lines of the adapter |\n| --- | --- | --- | --- | --- |")
    for tool, code in codes.items():
        needs = ", ".join(project["optional-dependencies"][tool.replace("_", "-")])
        adapter = sorted((ROOT / "fastclaw" / "adapters").glob(f"{tool}*.py"))
        lines = " + ".join(str(len(path.read_text().splitlines())) for path in adapter) or "-"
        report = PLACE / f"{tool}.json"
        rows = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        for row in rows:
            control = "-" if row["control"] is None else "{} of {}".format(*row["control"])
            print(f"| {needs} | {row['suite']} | {row['passed']} of {row['total']} | {control} | {lines} |")
        print(f"| {needs} | tests/adapters/{tool} | {_counted(tool, code)} | - | {lines} |")


def _counted(tool: str, code: int) -> str:
    """Of our own tests, how many passed."""
    results = PLACE / f"{tool}.xml"
    if not results.exists():
        return "FAILED" if code else "passed"
    suite = ElementTree.parse(results).getroot()[0].attrib
    total, *bad = (int(suite[name]) for name in ("tests", "failures", "errors", "skipped"))
    return f"{total - sum(bad)} of {total}{', FAILED' if code else ''}"


if __name__ == "__main__":
    sys.exit(main())
