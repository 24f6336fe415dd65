"""What a container takes: what the kernel has counted in its control groups and on its network devices.

Both versions of control groups: cgroup-v2.rst, cgroup-v1/{cpuacct,memory,blkio-controller,pids}.rst; proc_pid_net(5).
Reads files that the kernel makes in memory, some 10 µs each, and only when asked.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastclaw.linux.cgroups import CGROUPS, Group, count_in, group_in, limit_in, read, text_in

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEVICES_AT = 2
"""Lines of headings in /proc/PID/net/dev."""
_SENT_AT = 8
"""Where a device's sent bytes are, counted from its received ones."""
_MEMORY_FILES = (("memory.usage_in_bytes", "memory.limit_in_bytes"), ("memory.current", "memory.max"))


class Takes(NamedTuple):
    """What an environment takes; None where that is not known.

    Parameters:
        cpu_us: processor time so far, in microseconds.
        memory_limit_bytes: None: no limit, either.
        network_in_bytes, network_out_bytes: so far, of devices other than the loopback; None: there are none.
        block_in_bytes, block_out_bytes: read from and written to disks so far.
        pids: processes and threads.
    """

    cpu_us: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    network_in_bytes: int | None = None
    network_out_bytes: int | None = None
    block_in_bytes: int | None = None
    block_out_bytes: int | None = None
    pids: int | None = None


def together(takes: Iterable[Takes]) -> Takes:
    """The sums, each where all of them are known."""
    columns = list(zip(*takes, strict=True))
    return Takes(*(None if None in column else sum(column) for column in columns))


class Meter:
    """Reads what a container takes.

    Parameters:
        init: pid of its init on this host; the container is alive while this is read.
        owner: is in the names of its own groups: one further up is another's.
    """

    def __init__(self, init: int, owner: str, root: Path = CGROUPS, proc: Path = Path("/proc")) -> None:
        self._owner, self._root = owner, root
        self._process = proc / str(init)

    def read(self) -> Takes:
        """As it is now."""
        memory, limit = self._memory()
        block_in, block_out = self._blocks()
        network_in, network_out = device_bytes(text_in(self._process / "net/dev"))
        return Takes(
            cpu_us=self._cpu_us(),
            memory_bytes=memory,
            memory_limit_bytes=limit,
            network_in_bytes=network_in,
            network_out_bytes=network_out,
            block_in_bytes=block_in,
            block_out_bytes=block_out,
            pids=None if (group := self._groups["pids"]) is None else limit_in(group.folder / "pids.current"),
        )

    @cached_property
    def _groups(self) -> dict[str, Group | None]:
        """Looked up at the first reading: most containers are never looked at."""
        memberships = text_in(self._process / "cgroup")
        found = {name: group_in(memberships, name, self._root) for name in ("cpuacct", "memory", "blkio", "pids")}
        return {name: group if self._owner in str(group) else None for name, group in found.items()}

    def _cpu_us(self) -> int | None:
        group = self._groups["cpuacct"]
        if group is None:
            return None
        if group.is_unified:
            text = text_in(group.folder / "cpu.stat")
            return count_in(text, "usage_usec") if text else None
        nanoseconds = limit_in(group.folder / "cpuacct.usage")
        return None if nanoseconds is None else nanoseconds // 1_000

    def _memory(self) -> tuple[int | None, int | None]:
        group = self._groups["memory"]
        if group is None:
            return None, None
        now, most = _MEMORY_FILES[group.is_unified]
        nearest = group.nearest(most)
        return limit_in(group.folder / now), None if nearest is None else limit_in(nearest)

    def _blocks(self) -> tuple[int | None, int | None]:
        group = self._groups["blkio"]
        if group is None:
            return None, None
        with suppress(OSError):
            if group.is_unified:
                return disk_bytes(read(group.folder / "io.stat"))
            return legacy_disk_bytes(read(group.folder / "blkio.throttle.io_service_bytes"))
        return None, None


def device_bytes(text: str) -> tuple[int | None, int | None]:
    """Received and sent bytes of all network devices but the loopback, by /proc/PID/net/dev; None: there are none."""
    devices = (line.partition(":") for line in text.splitlines()[_DEVICES_AT:])
    counted = [numbers.split() for name, _, numbers in devices if name.strip() != "lo"]
    if not counted:
        return None, None
    return sum(int(numbers[0]) for numbers in counted), sum(int(numbers[_SENT_AT]) for numbers in counted)


def disk_bytes(text: str) -> tuple[int, int]:
    """Read and written bytes of all disks, by io.stat (`8:0 rbytes=… wbytes=…`)."""
    words = [word.partition("=") for line in text.splitlines() for word in line.split()]
    read, written = (sum(int(number) for name, _, number in words if name == wanted) for wanted in ("rbytes", "wbytes"))
    return read, written


def legacy_disk_bytes(text: str) -> tuple[int, int]:
    """The same by blkio.throttle.io_service_bytes (`8:0 Read …`)."""
    rows = [line.split() for line in text.splitlines()]
    read, written = (sum(int(row[2]) for row in rows if row[1:2] == [word]) for word in ("Read", "Write"))
    return read, written
