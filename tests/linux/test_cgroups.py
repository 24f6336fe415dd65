"""Limits of control groups, and how often they were hit: by files as the kernel makes them. Real ones are in
tests/acceptance/test_oom.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.linux.cgroups import (
    MemoryWatch,
    OomKills,
    count_in,
    count_in_file,
    group_in,
    group_of,
    held_limits,
    limit_in,
    pressure_in,
    processors,
    throttled_in,
    words_in,
)

if TYPE_CHECKING:
    from pathlib import Path

V1, V2 = "4:memory:/a/b/c\n3:cpu,pids:/a\n0::/elsewhere\n", "0::/a/b/c\n"
UNLIMITED = "9223372036854771712\n"
V1_COUNTS = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2_COUNTS = "low 0\nhigh 0\nmax 12\noom {0}\noom_kill {0}\n"


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_a_group_is_found_in_both_versions(tmp_path: Path) -> None:
    for mounted in ("memory", "pids"):
        (tmp_path / mounted).mkdir()
    for text, controller, folder, is_unified in (
        (V1, "memory", "memory/a/b/c", False),
        (V1, "pids", "pids/a", False),
        (V1, "io", "elsewhere", True),
        (V1, "cpu", "elsewhere", True),  # of version 1, and not mounted
        (V2, "memory", "a/b/c", True),
    ):
        group = group_in(text, controller, tmp_path)
        assert group is not None
        assert (group.folder, group.is_unified) == (tmp_path / folder, is_unified)


@pytest.mark.parametrize("text", ["", "0::/../a\n", "4:memory:/a/../..\n"])
def test_none_is_found_outside(text: str, tmp_path: Path) -> None:
    assert group_in(text, "memory", tmp_path) is None


def test_no_process_has_none() -> None:
    assert group_of(2**22 + 1, "memory") is None


def test_the_nearest_limit_that_is_a_number_counts(tmp_path: Path) -> None:
    put(tmp_path, pids__max="1")
    put(tmp_path / "a", pids__max="7")
    put(tmp_path / "a/b", pids__max="64")
    put(tmp_path / "a/b/c", pids__max="max")
    group = group_in(V2, "pids", tmp_path)
    assert group is not None
    assert group.nearest("pids.max") == tmp_path / "a/b/pids.max"
    assert group.nearest("pids.none") is None
    put(tmp_path / "a/b/c", pids__max=UNLIMITED)
    assert limit_in(tmp_path / "a/b/c/pids.max") is None


def test_what_is_no_count_is_0(tmp_path: Path) -> None:
    assert [count_in(text, "oom_kill") for text in ("max 3\noom_kill 2\n", "oom_kill x\n", "")] == [2, 0, 0]
    assert count_in_file(tmp_path / "none", "max") == 0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("limit", ["64", None])
def test_what_was_killed_in_a_commands_life_is_its_own(tmp_path: Path, version: int, limit: str | None) -> None:
    folder = tmp_path / ("memory/a/b/c" if version == 1 else "a/b/c")
    names = ("memory__oom_control", "memory__limit_in_bytes", "memory__max_usage_in_bytes", "memory__failcnt")
    if version == 2:
        names = ("memory__events", "memory__max", "memory__peak", "memory__other")
    counts, given, peak, hits = names
    text = V1_COUNTS if version == 1 else V2_COUNTS
    none = UNLIMITED if version == 1 else "max\n"
    put(folder, **{counts: text.format(3), given: limit or none, peak: "50\n", hits: "12\n"})
    watch = MemoryWatch(group_in(V1 if version == 1 else V2, "memory", tmp_path))
    before = watch.mark()
    assert watch.since(before, is_killed=True) is None
    put(folder, **{counts: text.format(5)})
    memory = {"peak_bytes": 50} if limit is None else {"limit_bytes": 64, "peak_bytes": 50}
    assert watch.since(before, is_killed=False) == (None if limit is None else OomKills(2, memory))
    assert watch.since(before, is_killed=True) == OomKills(2, memory)
    assert watch.since(watch.mark(), is_killed=True) is None
    assert watch.health() == {**memory, "hits": 12, "oom_kills": 5}
    watch.close()
    assert watch.since(before, is_killed=True) == OomKills(2, memory)  # what is known is not forgotten
    watch.close()


def test_who_is_killed_long_after_a_neighbour_is_no_victim(tmp_path: Path) -> None:
    folder = put(tmp_path / "a/b/c", memory__events=V2_COUNTS.format(3), memory__max="64")
    now = 100.0
    watch = MemoryWatch(group_in(V2, "memory", tmp_path), lambda: now)
    server = watch.mark()
    put(folder, memory__events=V2_COUNTS.format(4))
    neighbour = watch.since(server, is_killed=True)
    assert neighbour is not None
    assert neighbour.is_recent
    now += limits.OOM_VICTIM_MS / 1000 + 1
    later = watch.since(server, is_killed=True)
    assert later is not None
    assert (later.kills, later.is_recent) == (1, False)
    watch.close()


def test_where_nothing_is_to_be_seen_nothing_is_made_up(tmp_path: Path) -> None:
    for watch in (MemoryWatch(None), MemoryWatch(group_in(V2, "memory", tmp_path))):
        assert watch.since(watch.mark(), is_killed=True) is None
        watch.close()
    assert MemoryWatch(None).health() == {}


@pytest.mark.parametrize(
    ("version", "files"),
    [
        ("0::/user/libpod-abc.scope/container\n", {"user/libpod-abc.scope": ("pids.max", "memory.max")}),
        (
            "2:pids:/libpod-abc\n1:memory:/libpod-abc\n",
            {"pids/libpod-abc": ("pids.max",), "memory/libpod-abc": ("memory.limit_in_bytes",)},
        ),
    ],
)
def test_a_limit_is_held_where_its_own_group_has_one(
    version: str, files: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    """Further up it is another's: as a session's, where an ordinary user's engine may make no groups."""
    put(tmp_path / "user", pids__max="4915")
    assert held_limits(version, "abc", tmp_path) == frozenset()
    for folder, names in files.items():
        put(tmp_path / folder, **{name.replace(".", "__"): "64" for name in names})
    assert held_limits(version, "abc", tmp_path) == {"pids", "memory"}
    assert held_limits("0::/user\n", "abc", tmp_path) == held_limits("", "abc", tmp_path) == frozenset()


def test_the_nearest_limit_of_processor_time_is_told(tmp_path: Path) -> None:
    put(tmp_path / "a/b", cpu__max="150000 100000\n", cpu__stat="nr_throttled 3\nthrottled_usec 7000\n")
    put(tmp_path / "a/b/c", cpu__max="max 100000\n")
    assert processors(group_in(V2, "cpu", tmp_path)) == {"limit_percent": 150, "throttled_us": 7_000}
    put(tmp_path / "cpu/a", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n", cpu__stat="throttled_time 9000\n")
    group = group_in("1:cpu:/a\n", "cpu", tmp_path)
    assert processors(group) == {}
    put(tmp_path / "cpu/a", cpu__cfs_quota_us="25000\n")
    assert processors(group) == {"limit_percent": 25, "throttled_us": 9}
    assert processors(None) == {}
    assert throttled_in("") == 0


def test_pressure_is_what_some_have_waited(tmp_path: Path) -> None:
    some = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
    put(tmp_path, cpu__pressure=some.format(12), io__pressure=some.format(7))
    assert pressure_in(tmp_path) == {"cpu_pressure_us": 12, "io_pressure_us": 7}
    put(tmp_path, cpu__pressure="", memory__pressure="")
    assert pressure_in(tmp_path) == {"io_pressure_us": 7}
    assert words_in(tmp_path / "none") == []
