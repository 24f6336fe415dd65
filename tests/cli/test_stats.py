"""`fastclaw stats` of real runtimes: what `podman stats` shows, once or again and again, as a table or as JSON."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
from typing import TYPE_CHECKING

import orjson
import pytest

from fastclaw.cli.stats import HEADINGS, Shown, cells
from fastclaw.control.protocol import EnvironmentRow
from tests.cli.programs import assert_one_line, fastclaw
from tests.cli.pseudo_terminal import OnTerminal
from tests.cli.test_top import FASTCLAW, only_one
from tests.served import Served, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["only_one"]

ROW = EnvironmentRow(environment="e1", state="running", started_at=90.0, runtime="podman")
DEADLINE_S = 30


@pytest.fixture
def two(tmp_path: Path, short_dir: Path, only_one: None) -> Iterator[list[Served]]:
    """Two runtimes, the first one with an environment more, the second one with a socket at a path of its own."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for first in served(tmp_path / "a", "local", "--control"):
        first.initialize()
        first.call("environment_start", environment="more")
        for second in served(tmp_path / "b", "memory", "--control", str(short_dir / "named")):
            second.initialize()
            yield [first, second]


def test_what_is_known_is_shown_as_podman_shows_it() -> None:
    row = EnvironmentRow(
        environment="e1",
        state="running",
        started_at=90.0,
        runtime="podman",
        container="fastclaw-n-1",
        cpu_us=2_500_000,
        cpu_percent=12.5,
        memory_bytes=64_000_000,
        memory_limit_bytes=256_000_000,
        network_in_bytes=1_500,
        network_out_bytes=0,
        block_in_bytes=0,
        block_out_bytes=8_192,
        pids=21,
    )
    shown = dict(zip(HEADINGS, cells(Shown("n", 7, row), 100.0, 10**10), strict=True))
    assert shown == {
        "ID": "e1",
        "NAME": "fastclaw-n-1",
        "CPU %": "12.50%",
        "MEM USAGE / LIMIT": "64.0MB / 256MB",
        "MEM %": "25.00%",
        "NET IO": "1.50kB / 0B",
        "BLOCK IO": "0B / 8.19kB",
        "PIDS": "21",
        "CPU TIME": "2.50s",
        "AVG CPU %": "25.00%",
    }


def test_what_is_not_known_is_a_dash_and_a_limit_is_the_host_s() -> None:
    assert cells(Shown("n", 7, ROW), 100.0, 10**10) == ["e1", "n", *["-"] * 8]
    with_memory = EnvironmentRow(environment="e", state="running", started_at=1.0, runtime="local", memory_bytes=10**9)
    assert cells(Shown("n", 7, with_memory), 100.0, 10**10)[3:5] == ["1.00GB / 10.0GB", "10.00%"]


def test_all_environments_of_all_runtimes_are_shown(two: list[Served]) -> None:
    two[0].exec("sh", "-c", "while :; do :; done")
    done = fastclaw("stats", "--no-stream", command=FASTCLAW)
    assert done.returncode == 0, done.stderr
    headings, *rows = done.stdout.decode().splitlines()
    assert headings.split("   ")[0].strip() == "ID"
    assert sorted(row.split()[0] for row in rows) == ["main", "main", "more"]
    busy = next(row.split() for row in rows if row.split()[2] not in ("-", "0.00%"))
    assert float(busy[2].rstrip("%")) > 5


def test_it_is_said_of_which_runtime_an_environment_is(two: list[Served]) -> None:
    done = fastclaw("stats", "--no-stream", "--format", "json", command=FASTCLAW)
    mains = [row for row in orjson.loads(done.stdout) if row["environment"] == "main"]
    assert {row["pid"] for row in mains} == {one.child.pid for one in two}
    assert all(row["namespace"] for row in mains)


def test_one_of_them_is_shown_as_json(two: list[Served]) -> None:
    path = two[0].call("health")["result"]["details"]["control"]
    done = fastclaw("stats", "--no-stream", "--format", "json", path)
    main, more = orjson.loads(done.stdout)
    assert (main["environment"], main["runtime"], main["lane"], main["live"]) == ("main", "local", "spawn", 0)
    assert (more["environment"], more["cpu_us"], more["pids"]) == ("more", 0, 0)


def test_more_environments_than_fit_a_page_are_shown(two: list[Served]) -> None:
    path = two[1].call("health")["result"]["details"]["control"]
    for number in range(510):
        two[1].post("environment_start", number, environment=f"n{number}")
    two[1].until(lambda: {*range(510)} <= {*two[1].answers})
    done = fastclaw("stats", "--no-stream", "--format", "json", path)
    assert [row["environment"] for row in orjson.loads(done.stdout)] == ["main", *(f"n{at}" for at in range(510))]


def test_it_goes_on_until_nobody_reads(two: list[Served]) -> None:
    command = [*FASTCLAW, "stats", "--interval", "0.5", "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for _ in range(2):
            readable, _, _ = select.select([child.stdout], [], [], DEADLINE_S)
            assert readable
            assert len(orjson.loads(child.stdout.readline())) == 3
        child.stdout.close()
        assert child.wait(DEADLINE_S) == 1
        assert b"Traceback" not in child.stderr.read()


@pytest.mark.parametrize(("term", "tables"), [("linux", 1), ("dumb", 2)])
def test_a_screen_is_cleared_where_it_is_one(two: list[Served], term: str, tables: int) -> None:
    path = two[0].call("health")["result"]["details"]["control"]
    with OnTerminal([*FASTCLAW, "stats", "--interval", "0.5", path], 120, 24, os.environ, term=term) as terminal:
        terminal.until(lambda lines: any("AVG CPU" in line for line in lines))
        for _ in range(3):
            two[0].exec("sleep", "1000")
        terminal.until(lambda lines: any(re.search(r"^main .* 3  ", line) for line in lines))
        seen = sum("AVG CPU" in line for line in terminal.lines)
        assert min(seen, 2) == tables
        assert not any("[J" in line for line in terminal.lines)


def test_one_that_ends_is_looked_at_no_more_and_with_the_last_one_it_is_over(two: list[Served]) -> None:
    command = [*FASTCLAW, "stats", "--interval", "0.5", "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert len(orjson.loads(child.stdout.readline())) == 3
        two[1].call("shutdown")
        while len(orjson.loads(child.stdout.readline())) == 3:
            pass
        two[0].call("shutdown")
        assert child.wait(DEADLINE_S) == 1
        left_out, over = child.stderr.read().decode().splitlines()
        assert left_out.startswith("Left out: ")
        assert over.startswith("Error: ")
        assert "has ended" in left_out
        assert "has ended" in over


def test_a_dead_socket_is_left_out_and_said(two: list[Served]) -> None:
    where = os.path.dirname(two[0].call("health")["result"]["details"]["control"])
    directory = os.path.join(os.path.dirname(where), "fastclaw-1-deadbeef")
    os.mkdir(directory)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{directory}/control.sock")
    done = fastclaw("stats", "--no-stream", command=FASTCLAW)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4
    assert "its runtime has ended" in assert_one_line(done.stderr)
    done = fastclaw("stats", "--no-stream", f"{directory}/control.sock")
    assert done.returncode == 1
    assert "its runtime has ended" in assert_one_line(done.stderr)
    os.unlink(f"{directory}/control.sock")
    os.rmdir(directory)


@pytest.mark.parametrize(
    "arguments", [("--format", "xml"), ("--interval", "0"), ("--interval", "nan"), ("--nonsense",)]
)
def test_wrong_arguments_say_what_is_wrong(arguments: tuple[str, ...]) -> None:
    done = fastclaw("stats", "--no-stream", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert arguments[0] in assert_one_line(done.stderr)
