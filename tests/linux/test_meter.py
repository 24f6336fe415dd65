"""What a container takes: by files as the kernel makes them. Real ones are in tests/runtimes/test_watched.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastclaw.linux.meter import Meter, Takes, device_bytes, disk_bytes, legacy_disk_bytes, together

if TYPE_CHECKING:
    from pathlib import Path

DEVICES = """Inter-|   Receive    |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo:  999   1 0 0 0 0 0 0  999   1 0 0 0 0 0 0
  eth0:   10   1 0 0 0 0 0 0   20   1 0 0 0 0 0 0
  eth1:    1   1 0 0 0 0 0 0    2   1 0 0 0 0 0 0
"""
NO_DEVICES = "".join(DEVICES.splitlines(keepends=True)[:3])


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_all_is_read_of_version_2(tmp_path: Path) -> None:
    put(tmp_path / "proc/7/cgroup", "0::/pod/box-1\n")
    put(tmp_path / "proc/7/net/dev", DEVICES)
    group = tmp_path / "root/pod/box-1"
    put(group / "cpu.stat", "usage_usec 1500\nuser_usec 1\n")
    put(group / "memory.current", "4096\n")
    put(group / "memory.max", "max\n")
    put(group.parent / "memory.max", "8192\n")
    put(group / "io.stat", "8:0 rbytes=5 wbytes=6 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n")
    put(group / "pids.current", "3\n")
    meter = Meter(7, "box-1", tmp_path / "root", tmp_path / "proc")
    assert meter.read() == Takes(1500, 4096, 8192, 11, 22, 6, 8, 3)


def test_all_is_read_of_version_1(tmp_path: Path) -> None:
    names = ("cpuacct", "memory", "blkio", "pids")
    put(tmp_path / "proc/7/cgroup", "".join(f"{at}:{name}:/box-1\n" for at, name in enumerate(names, 2)))
    put(tmp_path / "proc/7/net/dev", NO_DEVICES)
    root = tmp_path / "root"
    put(root / "cpuacct/box-1/cpuacct.usage", "1500999\n")
    put(root / "memory/box-1/memory.usage_in_bytes", "4096\n")
    put(root / "memory/box-1/memory.limit_in_bytes", "9223372036854771712\n")
    put(root / "blkio/box-1/blkio.throttle.io_service_bytes", "8:0 Read 5\n8:0 Write 6\n8:0 Total 11\nTotal 11\n")
    put(root / "pids/box-1/pids.current", "3\n")
    assert Meter(7, "box-1", root, tmp_path / "proc").read() == Takes(1500, 4096, None, None, None, 5, 6, 3)


@pytest.mark.parametrize("memberships", ["", "0::/\n", "0::/user.slice\n", "0::/../elsewhere\n"])
def test_the_groups_of_others_are_not_a_container_s(tmp_path: Path, memberships: str) -> None:
    """A rootless engine without a systemd of its user's makes none."""
    put(tmp_path / "proc/7/cgroup", memberships)
    put(tmp_path / "root/user.slice/memory.current", "4096\n")
    assert Meter(7, "box-1", tmp_path / "root", tmp_path / "proc").read() == Takes()


def test_what_is_gone_is_not_known(tmp_path: Path) -> None:
    put(tmp_path / "proc/7/cgroup", "0::/box-1\n")
    assert Meter(7, "box-1", tmp_path / "root", tmp_path / "proc").read() == Takes()


def test_numbers_of_devices_and_disks() -> None:
    assert device_bytes("") == device_bytes(NO_DEVICES) == (None, None)
    assert device_bytes(DEVICES) == (11, 22)
    assert disk_bytes("") == legacy_disk_bytes("Total 0\n") == (0, 0)


def test_a_sum_is_known_where_all_of_it_is() -> None:
    one, two = Takes(cpu_us=1, pids=2), Takes(cpu_us=3, pids=4, memory_bytes=5)
    assert together([one, two]) == Takes(cpu_us=4, pids=6)
    assert together([two]) == two
