"""Processes that are not our children: reads /proc, whatever vanishes meanwhile, and holds them by pidfds.

Owns the formats of proc_pid_stat(5), proc_pid_environ(5) and proc_pid_mountinfo(5). Knows nothing of trees.

A process is identified by its start time and boot beyond its pid, which is given out anew. What fastclaw makes outside
of itself says whose it is by such an identity: containers and volumes in a label, nftables tables in their name.

Measured: 8 µs per process for stat and environ (2 cores, Linux 6.18), so 5 000 processes are one scan of 40 ms.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits

if TYPE_CHECKING:
    from collections.abc import Iterable


PROC = "/proc"
_STAT_BYTES = 4096
_LONG_BYTES = 65536
"""Of one read(2): files that are longer take several."""

_GONE_STATES = (b"Z", b"X")
_EXIT_CODE = 49
"""Where field 52 is, counted from the state, which follows the parenthesis."""

_LABEL = re.compile(r"([0-9]{1,20}):([0-9]{1,20}):([^:]+):([0-9]{1,20})")


class Row(NamedTuple):
    """One live process.

    Parameters:
        starttime: clock ticks since boot, field 22 of proc_pid_stat(5); with `pid` it identifies a process.
        marker: value of the marker variable in its environment, or None.
    """

    pid: int
    ppid: int
    pgrp: int
    session: int
    starttime: int
    marker: str | None


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that matter here. `bare` is a process without memory: a kernel thread or zombie."""

    ppid: int
    pgrp: int
    session: int
    starttime: int
    gone: bool
    bare: bool


def parse_stat(data: bytes) -> Stat:
    """Take /proc/PID/stat apart; the command's name may hold blanks and parentheses, so count from the last one.

    A zombie counts as gone, unless it is only the first thread that ended while others run on.
    """
    field = _fields(data, 21)
    gone = field[0] in _GONE_STATES and int(field[17]) <= 1
    return Stat(int(field[1]), int(field[2]), int(field[3]), int(field[19]), gone, field[20] == b"0")


def _fields(data: bytes, count: int) -> list[bytes]:
    """The first ones that follow the name, and the rest."""
    return data[data.rindex(b")") + 2 :].split(None, count)


def read_stat(pid: int) -> Stat | None:
    """The process's stat, or None where there is no such process."""
    data = _read(f"{PROC}/{pid}/stat", _STAT_BYTES)
    return parse_stat(data) if data else None


def is_running(pid: int, starttime: int) -> bool:
    """Whether `pid` is still the process that started at `starttime`, and has not ended."""
    stat = read_stat(pid)
    return stat is not None and stat.starttime == starttime and not stat.gone


def zombie_status(pid: int) -> int | None:
    """The wait status (wait(2)) of a process that has ended and is not reaped; None for every other one.

    The kernel shows 0 to a reader without the right to trace the process (proc_pid_stat(5)): 0 counts only where
    something else that takes this right can be read (proc_pid_ns(5)), and a zombie still has.
    """
    data = _read(f"{PROC}/{pid}/stat", _STAT_BYTES)
    field = _fields(data, _EXIT_CODE + 1) if data else [b""]
    if field[0] != b"Z":
        return None
    status = int(field[_EXIT_CODE])
    return status if status or _may_trace(pid) else None


def _may_trace(pid: int) -> bool:
    try:
        os.readlink(f"{PROC}/{pid}/ns/user")
    except OSError:
        return False
    return True


def find_value(environ: bytes, variable: bytes) -> str | None:
    """The value of `variable` in a block of NUL-terminated `K=V` strings; the first one counts, as in getenv(3)."""
    start = _position(environ, variable + b"=")
    if start < 0:
        return None
    end = environ.find(b"\0", start)
    return environ[start : len(environ) if end < 0 else end].decode("utf-8", "surrogateescape")


def _position(environ: bytes, entry: bytes) -> int:
    if environ.startswith(entry):
        return len(entry)
    at = environ.find(b"\0" + entry)
    return -1 if at < 0 else at + 1 + len(entry)


def pids() -> list[int]:
    """Every process number there is, the highest first: the youngest processes are the first to be gone."""
    return sorted((int(name) for name in os.listdir(PROC) if name.isdigit()), reverse=True)


def scan(variable: str) -> list[Row]:
    """All live processes, each with its value of `variable`; zombies are left out.

    The environment of another user's process cannot be read without privilege: its marker is None then.
    """
    return scan_with_doubt(variable)[0]


def scan_with_doubt(variable: str) -> tuple[list[Row], bool]:
    """As `scan`, and whether it may have missed a process that is alive at its end.

    A child may start with a number that was passed already, while its parent ends with one still to come. So processes
    started meanwhile are read too, until none starts between two looks: then the scan is complete. It is in doubt where
    that does not happen within `limits.TREE_CATCH_UPS` looks.
    """
    name, latest = os.fsencode(variable), _last_pid()
    rows = _rows(pids(), name)
    for _ in range(limits.TREE_CATCH_UPS):
        before, latest = latest, _last_pid()
        if latest == before:
            return list(rows.values()), False
        first = before + 1 if before < latest else latest  # numbers start over at pid_max
        rows |= _rows(range(latest, first - 1, -1), name)
    return list(rows.values()), True


def _rows(numbers: Iterable[int], variable: bytes) -> dict[int, Row]:
    stats = ((pid, read_stat(pid)) for pid in numbers)
    return {pid: _row(pid, stat, variable) for pid, stat in stats if stat is not None and not stat.gone}


def _last_pid() -> int:
    """The process number given out last, the fifth field of /proc/loadavg (proc_loadavg(5))."""
    return int(_read(f"{PROC}/loadavg", _STAT_BYTES).rsplit(None, 1)[-1])


def _row(pid: int, stat: Stat, variable: bytes) -> Row:
    marker = None if stat.bare else read_marker(pid, variable)
    return Row(pid, stat.ppid, stat.pgrp, stat.session, stat.starttime, marker)


def read_marker(pid: int, variable: bytes) -> str | None:
    """The process's value of `variable`, or None where it has none, is gone, or is not ours to look at."""
    return find_value(_read(f"{PROC}/{pid}/environ", _LONG_BYTES), variable)


def has_variable(pid: int, entry: bytes) -> bool:
    """Whether the process started (execve) with `NAME=value` in its environment. False where it is gone.

    True, too, where it cannot be looked at, for want of rights or descriptors: then there is nothing to wait for.
    """
    try:
        with open(f"{PROC}/{pid}/environ", "rb", buffering=0) as file:
            return entry in file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True


def children(parent: int) -> list[tuple[int, Stat]]:
    """The children of `parent`, those included that have ended and wait for it to reap them (`gone`)."""
    stats = [(pid, read_stat(pid)) for pid in pids()]
    return [(pid, stat) for pid, stat in stats if stat is not None and stat.ppid == parent]


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether a process is another one or descends from it. One that has ended is nobody's: True."""
    while pid > 0 and pid != ancestor:
        stat = read_stat(pid)
        if stat is None:
            return True
        pid = stat.ppid
    return pid == ancestor


def is_podman_pause(pid: int) -> bool:
    """Whether this is the process that keeps the user namespace of a rootless Podman. The first Podman of a session
    starts it, with its own environment, and it stays for all later ones: it is no leftover (podman,
    pkg/rootless/rootless_linux.c, `create_pause_process`)."""
    words = _read(f"{PROC}/{pid}/cmdline", _STAT_BYTES).split(b"\0")
    is_catatonit = words[0].endswith(b"catatonit") and words[1:2] == [b"-P"]
    return is_catatonit or _read(f"{PROC}/{pid}/comm", _STAT_BYTES) == b"podman pause\n"


class Mount(NamedTuple):
    """A line of mountinfo: the mount point, and the type of the file system there."""

    point: str
    kind: str


def parse_mounts(data: bytes) -> list[Mount]:
    """Take mountinfo apart: the mount point is its field 5, the type follows the dash.

    A mount point may be of any bytes: only blanks, tabs, newlines and backslashes are escaped in it, so all of Python's
    other line ends and white space may be part of a name.
    """
    lines = (line.split(" ") for line in os.fsdecode(data).split("\n") if line)
    return [Mount(_unescape(fields[4]), fields[fields.index("-") + 1]) for fields in lines]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def mounts() -> list[Mount]:
    """What is mounted where this process is, in the order of mounting."""
    return parse_mounts(_read(f"{PROC}/self/mountinfo", _LONG_BYTES))


def file_system(path: str | os.PathLike[str], mounted: list[Mount]) -> str:
    """Type of the file system that holds a path."""
    wanted = os.path.realpath(path)
    holding = [mount for mount in mounted if is_below(wanted, mount.point)]
    return max(reversed(holding), key=lambda mount: len(mount.point), default=Mount("", "")).kind


def is_below(path: str, point: str) -> bool:
    """Whether a path is a directory or something in it; both without symbolic links."""
    return path == point or path.startswith(point.rstrip("/") + "/")


def is_in_memory(path: str | os.PathLike[str]) -> bool:
    """Whether a path is on a file system without a disk behind it."""
    return file_system(path, mounts()) == "tmpfs"


def ticks_now() -> int:
    """The present on the scale of `starttime`."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


# --- who a process is, beyond its pid ---


class Owner(NamedTuple):
    """The process that made something.

    Parameters:
        start_time: clock ticks since boot (/proc/PID/stat, field 22).
        pid_namespace: inode of its /proc/PID/ns/pid: elsewhere its pid means somebody else, or nobody.
        boot_id: /proc/sys/kernel/random/boot_id; None for what lasts no longer than a boot.
    """

    pid: int
    start_time: int
    pid_namespace: int
    boot_id: str | None = None

    @property
    def label(self) -> str:
        """As it stands in a container's label."""
        return f"{self.pid}:{self.start_time}:{self.boot_id}:{self.pid_namespace}"

    @property
    def table_prefix(self) -> str:
        """How the names of its nftables tables begin."""
        return f"fastclaw_{self.pid}_{self.start_time}_{self.pid_namespace}_"

    def is_gone(self, here: Owner, start_time: int | None) -> bool:
        """Whether it has ended for certain.

        Parameters:
            here: a process of this boot and PID namespace; of another namespace we know nothing.
            start_time: of the process that has its pid now; None where there is none.
        """
        if self.boot_id not in (None, here.boot_id):
            return True
        return self.pid_namespace == here.pid_namespace and self.start_time != start_time


def parse_label(label: str) -> Owner | None:
    """The owner in a label, or None where the label is not one of ours."""
    found = _LABEL.fullmatch(label)
    if found is None:
        return None
    pid, start, boot, namespace = found.groups()
    return Owner(int(pid), int(start), int(namespace), boot)


def is_dead(owner: Owner | None) -> bool:
    """Whether it has ended for certain. What names no owner is nobody's to remove."""
    return owner is not None and owner.is_gone(this_process(), start_time(owner.pid))


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, or None where there is none. A zombie counts as gone."""
    stat = read_stat(pid)
    return None if stat is None or stat.gone else stat.starttime


def identity(line: str) -> tuple[int, int]:
    """Pid and start time in a line of /proc/PID/stat."""
    return int(line.partition(" ")[0]), parse_stat(line.encode()).starttime


def this_process() -> Owner:
    """Who we are."""
    ticks = start_time(os.getpid())
    if ticks is None:
        raise RuntimeError("this process is not in /proc")
    return Owner(os.getpid(), ticks, os.stat("/proc/self/ns/pid").st_ino, boot_id())


@cache
def boot_id() -> str:
    """The kernel's random id of this boot (random(4))."""
    return Path(f"{PROC}/sys/kernel/random/boot_id").read_text().strip()


# --- files ---


def _read(path: str, chunk: int) -> bytes:
    """The whole file, or nothing where the process went away or is not ours to look at (ENOENT, ESRCH, EACCES)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
    try:
        return _read_all(fd, chunk)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
    finally:
        os.close(fd)


def _read_all(fd: int, chunk: int) -> bytes:
    data = part = os.read(fd, chunk)
    while len(part) == chunk:
        part = os.read(fd, chunk)
        data += part
    return data


_INFO = struct.Struct("<Q52xi")
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, 64 bytes)


def send_signal(pidfd: int, pid: int, signum: int, *, group: bool = False) -> None:
    """Send a signal to the process, if it is there.

    Parameters:
        group: to the process group that it is in now, unless that is ours too. It goes by its number, which was its own
            a moment ago: the process had not been reaped.
    """
    with suppress(ProcessLookupError):
        number = os.getpgid(pid) if group else os.getpgrp()
        signal.pidfd_send_signal(pidfd, 0)
        if number == os.getpgrp():
            signal.pidfd_send_signal(pidfd, signum)
        else:
            os.killpg(number, signum)


def wait_status(pidfd: int, pid: int) -> int | None:
    """The wait status as of wait(2), or None where it runs, or where the kernel no longer tells."""
    status = _kept_status(pidfd)
    if status is None:
        status = _zombie_status(pidfd, pid)
    return _kept_status(pidfd) if status is None else status


def _kept_status(pidfd: int) -> int | None:
    """What the kernel keeps after the reap."""
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, 0)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None  # ENOTTY, EINVAL: an older kernel; ESRCH: reaped, and not kept
    mask, status = _INFO.unpack(buffer)
    return status if mask & _PIDFD_INFO_EXIT else None


def _zombie_status(pidfd: int, pid: int) -> int | None:
    """What /proc says before the reap. The number is ours for sure if the pidfd can still be signalled afterwards."""
    try:
        status = zombie_status(pid)
        signal.pidfd_send_signal(pidfd, 0)
    except OSError:
        return None
    return status
