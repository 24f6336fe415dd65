"""What the operating system grants this process: limits read from /proc and rlimits, the file limit raised, and how its
children end."""

import os
import resource
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class HostLimits(NamedTuple):
    """What the host allows this process. None is no limit.

    Parameters:
        nofile: open files (hard limit).
        nproc: processes of this user.
        pid_max: kernel.pid_max.
        memory_bytes: memory of the machine.
    """

    nofile: int | None
    nproc: int | None
    pid_max: int | None
    memory_bytes: int | None


def host_limits() -> HostLimits:
    """The limits that decide how many processes fit. See `capacity`."""
    return HostLimits(
        nofile=_hard(resource.RLIMIT_NOFILE),
        nproc=None if os.geteuid() == 0 else _hard(resource.RLIMIT_NPROC),  # root is exempt (getrlimit(2))
        pid_max=int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii")),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _hard(which: int) -> int | None:
    hard = resource.getrlimit(which)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def dumps_after_setuid() -> bool:
    """Whether memory is readable to a user's others after a change to that user (fs.suid_dumpable, proc_sys_fs(5))."""
    return Path("/proc/sys/fs/suid_dumpable").read_text(encoding="ascii").strip() == "1"


def raise_file_limit() -> None:
    """Raise this process's soft limit of open files to the hard one. Idempotent."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def await_children() -> None:
    """Have the kernel keep how our children end: not so where whoever started us ignores SIGCHLD.

    SSH daemons and launchers do, and it is inherited: every wait is ECHILD then, which `subprocess` takes for exit
    code 0 (wait(2)).
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def heeded(signals: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those that are not ignored since our start, as nohup(1) has it, and a shell for what it starts in the background:
    such a signal stays ignored. None of them is blocked from then on: a mask is inherited as well, from whichever
    thread started us, and nobody asks for one."""
    found = [signum for signum in signals if signal.getsignal(signum) != signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, found)
    return found
