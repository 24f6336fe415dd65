"""Waits until the fastclaw that owns a private engine has died, then removes what it left there. A program of its own.

    argv[1]   what to remove, and how: `plan.JanitorOrder` as JSON
    stdin     a socket; its other end is the owner's, which hears on it that it may rely on us

Containers, their monitors, volumes, networks and the service's directory: whatever the owner was in the middle of, the
engine's own records say what there is, and its labels whose it is; of networks the names of their firewall's tables do.
The service is let finish first. An owner that shuts down in order removes everything itself and kills the janitor,
which has nothing to do then.

Runs as `python -I -S janitor.py`, so it knows the standard library only, and most of that only once it is needed: an
idle one should be small. Its stdout and stderr are /dev/null: errors are not reported.
"""

import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TypedDict

ARMED = b"!"
"""Said on the socket once the owner may rely on us."""

STEPS = "build_"
"""After the prefix of the owner's tables, how the control groups begin in which steps of builds run."""

KIB = 1_024

SHM_FIRST_KIB, SHM_STEP_KIB = 64 * 1024 + 4, 8
"""Sizes of /dev/shm that nobody asks for: odd numbers of pages, from the usual one on."""

SHM_OWNERS, SHM_BUILDS = 8_192, 8
"""So many owners' sizes are told apart, and of each its builds, twice as many as there may be at a time: half a GiB
more at the most, which is a bound and takes nothing."""

BUILDAH = "buildah"
"""How the directories begin in which buildah keeps what a step needs, and the command of the container in which it
works, as the engine shows it."""

TEMPORARY = "/var/tmp"
"""Where Podman has such directories, unless TMPDIR says otherwise."""

KILLED_MS = 1_000
"""From SIGKILL to the end of a process: milliseconds. Not in limits.py, which is not to be had here."""


class Order(TypedDict):
    """`plan.JanitorOrder`, decoded."""

    owner: int
    service: int
    own_dir: str
    sockets: str
    steps_have_size: bool
    podman: list[str]
    runtime: list[str]
    label: str
    nft: str | None
    tables: str
    drain_ms: int
    call_ms: int
    tries: int
    reserve: str
    reserve_bytes: int


def main() -> None:
    """Wait, then clean up."""
    order: Order = json.loads(sys.argv[1])
    owner, service = _hold(order)
    with suppress(OSError):  # it is dead already
        os.write(0, ARMED)
    if owner is not None:
        _await_any(owner, 0)
    clean_up(order, service)


def clean_up(order: Order, service: int | None) -> None:
    """Remove what the owner left.

    Parameters:
        service: pidfd of its service.
    """
    steps = order["tables"] + STEPS if order["tables"] else None
    marks = [b'"cgroupsPath":"/' + steps.encode()] if steps is not None else []
    if order["steps_have_size"]:
        marks += [b'"size=%d"' % (kib * KIB) for kib in _shm_sizes(order)]
    hosts = _hosts(marks)
    if steps is not None:
        _end_processes([steps], order["tries"])
    if service is not None:
        _end_service(service, order["drain_ms"])
    _end_twin(order["own_dir"], order["drain_ms"])
    if order["steps_have_size"]:
        _end_steps(_shm_sizes(order))
    _make_room(order["reserve"], order["reserve_bytes"])
    found = set()
    for _ in range(order["tries"]):
        containers = _podman(order, "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={order['label']}")
        if not containers:
            break
        found.update(containers)
        _podman(order, "rm", "--force", "--time", "0", "--volumes", *containers)
        _end_processes(containers, order["tries"])
    volumes = _podman(order, "volume", "ls", "--quiet", "--filter", f"label={order['label']}")
    if volumes:
        _podman(order, "volume", "rm", "--force", *volumes)
    if order["nft"] is not None and order["tables"]:
        _remove_networks(order, order["nft"])
    _delete(order, sorted(found))  # last, so that what was killed has been reaped
    _remove_builds(order, hosts | _hosts(marks))
    if steps is not None:
        _remove_groups(steps)
    _remove_directory(order["own_dir"])
    if order["sockets"]:
        _remove_abandoned(order["sockets"])


def clear(order: Order, container: str) -> None:
    """End what runs in a container that the engine has removed, as one that was killed had not written down that it
    runs."""
    _end_processes([container], order["tries"])
    _delete(order, [container])


def _remove_builds(order: Order, hosts: set[str]) -> None:
    """The containers in which steps of the owner's builds ran, since their engine may have died before it could.

    Parameters:
        hosts: what the steps were called.
    """
    for _ in range(order["tries"] if hosts else 0):
        shown = _podman(order, "ps", "--all", "--external", "--no-trunc", "--format", "{{.ID}}={{.Command}}")
        working = [word.partition("=")[0] for word in shown if word.endswith(f"={BUILDAH}")]
        mine = [name for name in working if name[:12] in hosts]
        if not mine:
            break
        _podman(order, "rm", "--force", *mine)


def shm_kib(label: str, build: int) -> int:
    """The size of /dev/shm in the steps of a build. They cannot change it, and where an engine puts them into no
    control group that we name, they are known by it.

    Parameters:
        label: the owner's.
        build: counted by the owner.
    """
    import zlib  # as subprocess

    number = zlib.crc32(label.encode()) % SHM_OWNERS * SHM_BUILDS + build % SHM_BUILDS
    return SHM_FIRST_KIB + SHM_STEP_KIB * number


def has_shm(pid: int, sizes: "set[int]") -> bool:
    """Whether a process has a /dev/shm of one of these sizes (proc_pid_mountinfo(5)): KiB."""
    wanted = {b"size=%dk" % size for size in sizes}
    mounts = (line.split() for line in _read(pid, "mountinfo").splitlines())
    return any(one[4] == b"/dev/shm" and not wanted.isdisjoint(one[-1].split(b",")) for one in mounts)


def _shm_sizes(order: Order) -> set[int]:
    label = order["label"].partition("=")[2]
    return {shm_kib(label, build) for build in range(SHM_BUILDS)}


def _end_steps(sizes: "set[int]") -> None:
    for pid in _processes():
        if has_shm(pid, sizes) and (pidfd := _pidfd(pid)) is not None:
            with suppress(OSError):
                if has_shm(pid, sizes):  # from the open on it cannot become another process
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def _hosts(marks: list[bytes]) -> set[str]:
    """What steps are called as hosts that have one of these in their settings: the beginning of their container's id.
    Their directories stay: something of this host may be mounted there."""
    found: set[str] = set()
    if not marks:
        return found
    with suppress(OSError):
        for entry in os.scandir(os.environ.get("TMPDIR") or TEMPORARY):
            if entry.name.startswith(BUILDAH) and _is_own_directory(entry):
                config = _content(os.path.join(entry.path, "config.json"))
                if any(mark in config for mark in marks):
                    with suppress(ValueError, KeyError):  # it was being written
                        found.add(json.loads(config)["hostname"])
    return found


def _is_own_directory(entry: "os.DirEntry[str]") -> bool:
    """Others may make what they like there: a FIFO that is never written, too."""
    with suppress(OSError):
        return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    return False


def _remove_groups(mark: str) -> None:
    """The control groups of the steps, in each hierarchy that there is: their OCI runtime has died with the service."""
    with suppress(OSError):
        for folder in ("/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir())):
            for name in os.listdir(folder):
                if name.startswith(mark):
                    with suppress(OSError):
                        os.rmdir(os.path.join(folder, name))


def _delete(order: Order, containers: list[str]) -> None:
    """The OCI runtime's own records, and the control groups."""
    for name in containers:
        _output(order, *order["runtime"], "delete", "--force", name)


def _make_room(reserve: str, least: int) -> None:
    """On a full disk Podman can remove nothing, and the next service has the reserve again."""
    with suppress(OSError):
        found = os.statvfs(os.path.dirname(reserve))
        if found.f_bavail * found.f_frsize < least or not found.f_favail:
            os.unlink(reserve)


def _remove_networks(order: Order, nft: str) -> None:
    """First the interfaces, then the rules that confined them (network/bridge/bridge.py)."""
    tables = [word for word in _output(order, nft, "list", "tables") if word.startswith(order["tables"])]
    for table in tables:
        interface = f"fc{table.rpartition('_')[2]}"
        if _remove_interface(interface):
            _output(order, nft, "delete", "table", "inet", table)


def _remove_interface(name: str) -> bool:
    """Whether there is no such interface any more: RTM_DELLINK of rtnetlink(7), as linux/netlink.py has it."""
    import socket  # as subprocess
    import struct

    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(KILLED_MS / 1000)
        kernel.send(struct.pack("=IHHIIBxHiII", 32, 17, 0x5, 0, 0, 0, 0, socket.if_nametoindex(name), 0, 0))
        kernel.recv(8192)
    return name not in (other for _, other in socket.if_nameindex())


def _end_processes(containers: list[str], tries: int) -> None:
    """What the engine does not know of: a service that was killed while it started a container has not written down
    that it runs. So its processes stay, and after them its control groups and the runtime's own record."""
    for _ in range(tries):  # again: what was killed may just have started another one
        if not [pid for pid in _processes() if _belongs(pid, containers) and _killed(pid, containers)]:
            break


def _killed(pid: int, containers: list[str]) -> bool:
    pidfd = _pidfd(pid)
    if pidfd is None:
        return False
    try:
        if not _belongs(pid, containers):  # from the open on it cannot become another process
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return _await_any(pidfd, timeout_ms=KILLED_MS)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)


def _hold(order: Order) -> tuple[int | None, int | None]:
    """Pidfds of the owner and of its service; none where the owner died before.

    The owner is our parent and the service a child that it has not reaped. So if it still is our parent once both are
    open, neither number was given out anew.
    """
    owner, service = _pidfd(order["owner"]), _pidfd(order["service"])
    return (owner, service) if os.getppid() == order["owner"] else (None, None)


def _pidfd(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.pidfd_open(pid)
    return None


def _end_service(pidfd: int, timeout_ms: int) -> None:
    """The kernel has sent it TERM; KILL it when it takes too long."""
    if not _await_any(pidfd, timeout_ms=timeout_ms):
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _await_any(pidfd, timeout_ms=timeout_ms)


def _end_twin(own_dir: str, timeout_ms: int) -> None:
    """Rootless, the service is two processes with one command line, and the one that is left may not have heard TERM
    (`service.end_service`)."""
    address = f"unix://{own_dir}/podman.sock".encode()
    for pid in _processes():
        if address in _read(pid, "cmdline").split(b"\0") and (pidfd := _pidfd(pid)) is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                _end_service(pidfd, timeout_ms)
            os.close(pidfd)


def _await_any(*fds: int, timeout_ms: int | None = None) -> bool:
    """A process has ended, or a socket's other end is closed: by the owner, or with it. Both, since a child that it
    has forked and that executes nothing would keep the socket open."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def _podman(order: Order, *command: str) -> list[str]:
    return _output(order, *order["podman"], *command)


def _output(order: Order, *argv: str) -> list[str]:
    """The words that a command prints; none where it cannot be had."""
    import subprocess  # here: it takes a third of our memory, and most janitors never need it

    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=order["call_ms"] / 1000,
            check=False,
        )
        return done.stdout.split()
    return []


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _belongs(pid: int, containers: list[str]) -> bool:
    """Whether a process is in one of the containers or names one as a word of its own: conmon and what it starts."""
    words, cgroups = _read(pid, "cmdline").split(b"\0"), _read(pid, "cgroup")
    return any(name in words or name in cgroups for name in map(str.encode, containers))


def _read(pid: int, name: str) -> bytes:
    return _content(f"/proc/{pid}/{name}")


def _content(path: str) -> bytes:
    with suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def _remove_abandoned(path: str) -> None:
    """The owner's sockets; where it lives it holds them, since it ends only this engine (`linux/directories.py`)."""
    import fcntl

    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_directory(path)
        os.close(fd)


def _remove_directory(path: str) -> None:
    import shutil  # as subprocess

    shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
