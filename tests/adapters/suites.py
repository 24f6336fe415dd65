"""Suites that the tools bring themselves, from their source distributions, run by pytest in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox.loop_thread import loop_thread
from tests.adapters.image import image_archive

IMAGE = "localhost/fastclaw-debian:adapters"
ROOT = Path(__file__).parents[2]


def load_image(directory: Path) -> str:
    """Have the tests' image in the storage of every host with the default options; its reference."""

    async def load(archive: Path) -> None:
        await (await shared_host()).load(archive)

    loop_thread().call(load(image_archive(directory / "image.tar", IMAGE)))
    return IMAGE


def source_of(distribution: str, directory: Path) -> Path:
    """The source distribution of the very release that is installed, unpacked."""
    wanted = [f"{distribution}=={version(distribution)}", "--no-deps", "--no-binary", ":all:", "--dest", str(directory)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *wanted], check=True)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    (source,) = (path for path in directory.iterdir() if path.is_dir())
    return source


def outcomes(directory: Path, *arguments: str, **environ: str) -> dict[str, str]:
    """Run tests; `passed`, `failed`, `error` or `skipped` for each by its name.

    Parameters:
        directory: where they are.
        arguments: of pytest: at least a file.
        environ: variables besides those of this process.
    """
    report, settings = directory / "report.xml", directory / "pytest.ini"
    settings.write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    how = ["-q", "--tb=short", "-p", "no:cacheprovider", "-c", str(settings), f"--junit-xml={report}"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    ran = subprocess.run([sys.executable, "-m", "pytest", *how, *arguments], cwd=directory, env=variables, check=False)
    assert ran.returncode in (0, 1), "pytest could not run the suite"
    return {case.attrib["name"]: _outcome(case) for case in ElementTree.parse(report).iter("testcase")}


def _outcome(case: ElementTree.Element) -> str:
    words = {"failure": "failed", "error": "error", "skipped": "skipped"}
    return next((words[child.tag] for child in case if child.tag in words), "passed")


def program_of(page: Path, image: str) -> str:
    """The first program on a page, with the tests' image for what it has from a registry."""
    program = page.read_text().partition("```python\n")[2].partition("```")[0]
    assert '"python:3.12"' in program
    return program.replace('"python:3.12"', repr(image))


def figures(found: dict[str, str]) -> tuple[int, int]:
    """How many passed, and how many did not want to be skipped or to fail."""
    return len(passed(found)), sum(outcome != "skipped" for outcome in found.values())


def passed(found: dict[str, str]) -> set[str]:
    """The names of those that passed."""
    return {name for name, outcome in found.items() if outcome == "passed"}
