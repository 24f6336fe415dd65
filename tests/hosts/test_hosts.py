"""The rig of `make test-hosts`, and the host of it that every machine with root can have: an ordinary user.

The other hosts need minutes, and packages that the rest of the tests do not: `make test-hosts` is for them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from bench.rates import Rates
from tests.engine_fixtures import unusable
from tests.hosts import here, speed, steps
from tests.hosts.bounds import CGROUPS, MEMORY_BYTES, PIDS, PREFIX, UnavailableError, bounds
from tests.hosts.debian import apt_mirror
from tests.hosts.hosts import HOSTS, PLACES, put_through
from tests.hosts.report import Row, is_ok, to_json, to_text
from tests.hosts.seat import TIMED_OUT, Seat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.hosts.bounds import Bounds

USER = "this-user"
READY = "environment ready, by the engine, ms"
WHOLE_S = 900
"""For a test that installs fastclaw from nothing. Measured: 100 s; the wheels, which are kept, come from an index."""


@pytest.fixture
def groups() -> Iterator[Bounds]:
    try:
        with bounds() as made:
            yield made
    except UnavailableError as error:
        unusable(str(error))


@pytest.fixture
def seat(groups: Bounds, tmp_path: Path) -> Iterator[Seat]:
    """An ordinary user on this machine."""
    tmp_path.chmod(0o755)
    with ExitStack() as stack:
        init = stack.enter_context(here.enclosed(tmp_path, groups))
        enter = here.way_in(init, "dev", groups, {})
        yield Seat("here", "dev", tmp_path / "home" / "dev", enter, tmp_path / "logs")


# --- What decides, and what is told ---


def test_the_mirror_is_that_of_apt_in_either_form() -> None:
    new = "Types: deb\nURIs: http://mirror.test/debian-security\n\nTypes: deb\nURIs: http://mirror.test/debian/\n"
    old = "# deb http://wrong.test/debian x main\ndeb [signed-by=/k] https://old.test/debian bookworm main\n"
    assert apt_mirror([new, old]) == "http://mirror.test/debian/"
    assert apt_mirror([old]) == "https://old.test/debian"
    assert apt_mirror(["deb https://other.test/ubuntu noble main\n"]) is None


def test_what_is_typed_is_what_the_readme_says() -> None:
    lines = steps.readme_lines(steps.README.read_text())
    assert lines[:3] == ["make demo", "make install", "fastclaw doctor"]
    assert "fastclaw run -- sh -c 'echo hello'" in lines
    assert lines[-1].startswith("python -c 'from fastclaw.sandbox.sync import Host")


ROWS = [
    Row(host="a", engine="podman", version="5.4.2", user="dev", lane="spawn", kept=3, seconds=1.6),
    Row(
        host="a", engine="podman", version="5.4.2", user="dev", lane="rest", kept=2, broken=1, why=["X-KEY broken: no"]
    ),
    Row(host="b", user="root", why=["not offered: no dockerd"]),
]


def test_a_table_has_each_host_and_why_not() -> None:
    assert to_text(ROWS).splitlines()[2:] == [
        "| a | podman 5.4.2 | dev | spawn | 3 | 0 | 0 | 2 | - |",
        "| a | podman 5.4.2 | dev | rest | 2 | 1 | 0 | 0 | X-KEY broken: no |",
        "| b | - | root | - | 0 | 0 | 0 | 0 | not offered: no dockerd |",
    ]


def test_what_is_broken_anywhere_is_a_failure() -> None:
    assert not is_ok(ROWS)
    assert is_ok([ROWS[0], ROWS[2]])
    told = json.loads(to_json(ROWS))
    assert told["ok"] is False
    assert told["rows"][1] | {"lane": "rest", "broken": 1, "why": ["X-KEY broken: no"]} == told["rows"][1]


def test_a_reason_is_said_once_with_how_many_have_it() -> None:
    cases = [f'<testcase><skipped message="no {word}"/></testcase>' for word in "abb"]
    assert steps.reasons([*map(ElementTree.fromstring, cases)]) == ["2 not offered: no b", "1 not offered: no a"]


# --- What bounds a host, and what it leaves ---


def test_a_host_is_within_limits_before_it_runs_anything(seat: Seat, groups: Bounds) -> None:
    said = seat.type("cgroup", "cat /proc/self/cgroup", 10).text
    assert groups.name in said
    limits = [
        folder / file for folder in groups.folders for file in ("pids.max", "memory.max", "memory.limit_in_bytes")
    ]
    assert {int(file.read_text()) for file in limits if file.exists()} == {PIDS, MEMORY_BYTES}


def test_its_user_is_no_user_of_this_machine(seat: Seat) -> None:
    before = Path("/etc/passwd").read_text()
    said = seat.type("user", "id -un; pwd; grep ^dev: /etc/subuid; touch /tmp/mine; ip -br link", 10)
    assert said.code == 0
    assert said.text.splitlines()[:2] == ["dev", "/home/dev"]
    assert [line.split()[0] for line in said.text.splitlines()[3:]] == ["lo"]
    assert Path("/etc/passwd").read_text() == before
    assert not Path("/tmp/mine").exists()


def test_what_takes_too_long_is_ended_and_said(seat: Seat) -> None:
    assert seat.type("slow", "sleep 1000", 0.6).code == TIMED_OUT


def test_what_a_host_started_ends_with_it(groups: Bounds, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with here.enclosed(tmp_path, groups) as init:
        seat = Seat("here", "dev", tmp_path / "home" / "dev", here.way_in(init, "dev", groups, {}), tmp_path / "logs")
        left = seat.type("daemon", "setsid sleep 1000 >/dev/null 2>&1 & echo", 10)
        assert left.code == 0
        assert members(groups) >= {init}
    assert members(groups) == set()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_orphans_are_reaped(seat: Seat) -> None:
    seat.type("orphan", "(setsid true &) | cat", 10)
    assert "Z" not in seat.type("states", "ps -eo stat=", 10).text


def members(groups: Bounds) -> set[int]:
    return {int(line) for folder in groups.folders for line in (folder / "cgroup.procs").read_text().split()}


def leftovers(pid: int) -> list[Path]:
    return [*CGROUPS.glob(f"{PREFIX}{pid}"), *CGROUPS.glob(f"*/{PREFIX}{pid}"), *PLACES.glob(f"{PREFIX}{pid}")]


def test_who_interrupts_it_has_nothing_left(groups: Bounds) -> None:
    rig = subprocess.Popen(
        [sys.executable, "-m", "tests.hosts", "--short", USER], stdout=subprocess.PIPE, text=True, cwd=steps.ROOT,
    )  # fmt: skip
    assert rig.stdout is not None
    with rig, rig.stdout:
        assert "python3 -c" in rig.stdout.readline()
        assert len(leftovers(rig.pid)) > 1
        rig.send_signal(signal.SIGINT)
        assert "nothing is left behind" in rig.stdout.read()
    assert rig.returncode == 128 + signal.SIGINT
    assert leftovers(rig.pid) == []


# --- A whole host ---


def test_a_line_of_the_readme_that_fails_or_has_no_engine_is_broken(
    seat: Seat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "README.md"
    first, second = "make --version", "echo Runtime: local, just so\necho of all things; false   # not this"
    page.write_text(f"```python\n```\n```sh\n{first}\n```\n```sh\n{second}\n```\n")
    monkeypatch.setattr(steps, "README", page)
    steps.provide_repository(seat)
    row = steps.readme(seat, "podman")
    assert row.kept == 2  # it was cloned, and make is there
    assert row.why == [
        "here-readme-2: Runtime: local, just so",
        "here-readme-3: exit code 1: of all things",
        "here-readme-4: exit code 127: bash: line 1: python: command not found",
    ]


@pytest.mark.timeout(WHOLE_S)
def test_an_ordinary_user_has_what_the_readme_says_and_the_promises_of_the_spawn_lane() -> None:
    rows = put_through(USER, ("README", "spawn"))
    if not rows[0].engine:
        unusable(rows[0].why[0])
    assert [row.why for row in rows if row.broken] == []
    assert [row.lane for row in rows] == ["README", "spawn"]
    assert all(row.kept for row in rows)
    assert {row.user for row in rows} == {HOSTS[USER].user}


@pytest.mark.parametrize(
    ("dev", "missed"),
    [
        (Rates(execs_per_s={1: 90, 16: 900}, ready_ms=130), []),
        (Rates(execs_per_s={1: 89, 16: 900}, ready_ms=131), ["exec + wait, 1 at once, per second", READY]),
    ],
)
def test_what_is_left_of_roots_figures_is_judged(dev: Rates, missed: list[str]) -> None:
    """The median of three turns counts."""
    root = Rates(execs_per_s={1: 100, 16: 1_000}, ready_ms=100)
    slow = Rates(execs_per_s={1: 1, 16: 1}, ready_ms=10_000)
    found = speed.figures([{"root": root, "dev": dev}, {"root": slow, "dev": slow}, {"root": root, "dev": dev}])
    assert [figure.what for figure in found if not figure.is_met] == missed
    lines = speed.to_text(found).splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines if "**missed**" in line] == missed
