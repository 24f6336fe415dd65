"""What a host is put through: the README as a newcomer types it, the promises on each lane, the acceptance tests."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tests.hosts.bounds import UnavailableError
from tests.hosts.report import Row
from tests.hosts.seat import TIMED_OUT, tell

if TYPE_CHECKING:
    from tests.hosts.seat import Output, Seat

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
LANES = ("spawn", "rest")
PARTS = ("README", *LANES, "acceptance")
"""In this order. There is no other without the first, which installs it."""
JOBS = 4
"""Promises that are checked at a time; most of it is waiting."""

LINE_S = 600.0
"""For a line of the README. The slowest is `make install`: 50 s, on busy cores three times that."""
CHECK_S = 900.0
"""For the promises of one lane. Measured: 60 to 100 s."""
ACCEPTANCE_S = 2_700.0
"""For the acceptance tests, which take 550 s on two busy cores, and up to 120 s for each that hangs."""

COMMAND = "fastclaw/.venv/bin/fastclaw"
"""In the home, where `make install` has made it."""
IN_CHECKOUT = "cd fastclaw; . .venv/bin/activate; "
BLOCK = re.compile(r"^```(?P<word>\w+)\n(?P<code>.*?)^```$", re.M | re.S)


# --- What a newcomer has from elsewhere ---


def provide_repository(seat: Seat) -> None:
    """Put this tree into the user's home, to be cloned: as it is now, without files that git does not know."""
    repository = seat.home / "fastclaw.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(repository)], check=True)
    subprocess.run(["git", "-C", str(repository), "config", "receive.shallowUpdate", "true"], check=True)
    here = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    stash = subprocess.run([*here, "stash", "create"], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([*here, "push", "--quiet", str(repository), f"{stash or 'HEAD'}:refs/heads/main"], check=True)
    seat.own(repository)


def provide_wheels(seat: Seat, cache: Path) -> None:
    """Put a folder of wheels there, and have pip ask nobody else.

    Raises:
        UnavailableError: they cannot be had.
    """
    asked = seat.type("python", "python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'", LINE_S)
    version = asked.text.strip().splitlines()[-1]
    shutil.copytree(_wheels(cache, version), seat.home / "wheels")
    settings = seat.home / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[global]\nno-index = true\nfind-links = {seat.home_inside}/wheels\n")
    seat.own(seat.home / ".config")


def requirements() -> list[str]:
    """What `make install` fetches: for the build, which is an editable one, for the package, for its tests."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = table["project"]
    of_build = [*table["build-system"]["requires"], "editables"]
    return [*of_build, *project["dependencies"], *project["optional-dependencies"]["dev"]]


def _wheels(cache: Path, version: str) -> Path:
    """A folder with the wheels of all that, for this version of Python; fetched where that is not there or is old."""
    wanted = requirements()
    folder, note = cache / f"wheels-{version}", cache / f"wheels-{version}" / "requirements"
    if note.is_file() and note.read_text().splitlines() == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--python-version", version]
    done = tell(f"wheels for Python {version}, once", [*pip, "--dest", str(folder), *wanted], folder / "pip.log")
    if done.code:
        raise UnavailableError(f"wheels for Python {version} cannot be had: {done.log}")
    note.write_text("\n".join(wanted))
    return folder


# --- The README ---


def readme_lines(text: str) -> list[str]:
    """What it has one type, each a line for a shell: the first two blocks of `sh`, and the first program."""
    blocks = [(found["word"], found["code"]) for found in BLOCK.finditer(text)]
    program = next(code for word, code in blocks if word == "python")
    set_up, commands = [code.splitlines() for word, code in blocks if word == "sh"][:2]
    lines = [line.partition(" #")[0].rstrip() for line in [*set_up, *commands]]
    return [line for line in lines if line] + [f"python -c {shlex.quote(program)}"]


def readme(seat: Seat, runtime: str) -> Row:
    """Clone it, and type what the README says. What runs on another runtime than the host is for is broken, too."""
    outputs = [seat.type("clone", "git clone --quiet fastclaw.git fastclaw", LINE_S)]
    if not outputs[0].code:
        for number, line in enumerate(readme_lines(README.read_text()), 1):
            before = "cd fastclaw; " if line.startswith("make ") else IN_CHECKOUT
            outputs.append(seat.type(f"readme-{number}", line, LINE_S, before=before))
    wrong = [told for output in outputs if (told := _other_runtime(output, runtime) or _failure(output))]
    return Row(
        host=seat.host, user=seat.user, lane="README", seconds=sum(output.seconds for output in outputs),
        kept=len(outputs) - len(wrong), broken=len(wrong), why=wrong,
    )  # fmt: skip


def _other_runtime(output: Output, runtime: str) -> str:
    """What the line says of one; `local` is what is taken where there is no engine, and ends well."""
    others = [
        line for line in output.text.splitlines() if line.startswith("Runtime: ") and runtime not in line.split(",")[0]
    ]
    return f"{output.log.stem}: {others[0]}" if others else ""


def _failure(output: Output) -> str:
    """Of a line that did not end well, its exit code and the last that it said; empty of one that did."""
    if not output.code:
        return ""
    said = [line.strip() for line in output.text.splitlines() if line.strip()]
    ended = "took too long" if output.code == TIMED_OUT else f"exit code {output.code}"
    return f"{output.log.stem}: {ended}: {said[-1] if said else 'said nothing'}"


# --- The promises ---


class _Promise(Struct):
    id: str


class _Finding(Struct):
    promise: _Promise
    verdict: str
    detail: str = ""


class _Report(Struct):
    """What of `fastclaw check --json` is read."""

    findings: list[_Finding] = []
    refused: str | None = None


def check(seat: Seat, runtime: str, lane: str) -> Row:
    """Have the promises of the contract checked on one lane."""
    told = f"check-{lane}.json"
    serve = f"fastclaw serve --runtime {runtime}"
    line = f"fastclaw check --json --jobs {JOBS} --option lane={lane} -- {serve} >{told}"
    output = seat.type(f"check-{lane}", line, CHECK_S, before=IN_CHECKOUT)
    row = Row(host=seat.host, user=seat.user, lane=lane, seconds=output.seconds)
    try:
        text = (seat.home / "fastclaw" / told).read_bytes()
        output.log.with_suffix(".json").write_bytes(text)
        report = msgspec.json.decode(text, type=_Report)
    except (OSError, msgspec.DecodeError):
        return replace(row, broken=1, why=[f"no report: {_failure(output)}"])
    if report.refused is not None:
        return replace(row, broken=1, why=[f"nothing was checked: {report.refused}"])
    counts = Counter(finding.verdict for finding in report.findings)
    order = [
        finding for verdict in ("broken", "not offered") for finding in report.findings if finding.verdict == verdict
    ]
    return replace(
        row, kept=counts["kept"], broken=counts["broken"], not_offered=counts["not offered"],
        why=[f"{finding.promise.id} {finding.verdict}: {finding.detail.partition(chr(10))[0]}" for finding in order],
    )  # fmt: skip


# --- The acceptance tests ---


def acceptance(seat: Seat) -> Row:
    """Run them; a test that is skipped is one that is not offered."""
    line = "python -m pytest -v --junitxml=acceptance.xml tests/acceptance"
    output = seat.type("acceptance", line, ACCEPTANCE_S, before=IN_CHECKOUT)
    row = Row(host=seat.host, user=seat.user, lane="acceptance", seconds=output.seconds)
    try:
        cases = list(ElementTree.parse(seat.home / "fastclaw" / "acceptance.xml").iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return replace(row, broken=1, why=[f"no report: {_failure(output)}"])
    broken = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case not in broken and case.find("skipped") is not None]
    return replace(
        row, kept=len(cases) - len(broken) - len(skipped), broken=len(broken), not_offered=len(skipped),
        why=[f"{case.get('name')} broken" for case in broken] + reasons(skipped),
    )  # fmt: skip


def reasons(skipped: list[ElementTree.Element]) -> list[str]:
    """Why tests were skipped, each reason once, the most frequent first."""
    counts = Counter(found.get("message") for case in skipped if (found := case.find("skipped")) is not None)
    return [f"{count} not offered: {reason}" for reason, count in counts.most_common()]
