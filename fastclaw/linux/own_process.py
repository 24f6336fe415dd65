"""This process: what the host allows it, which signals it hears, how its children end, the event loop it runs on."""

import hashlib
import os
import resource
import signal
import socket
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


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
    """The limits that decide how many processes fit."""
    return HostLimits(
        nofile=hard_limit(resource.RLIMIT_NOFILE),
        nproc=None if os.geteuid() == 0 else hard_limit(resource.RLIMIT_NPROC),  # root is exempt (getrlimit(2))
        pid_max=int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii")),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def hard_limit(which: int) -> int | None:
    """The hard limit (getrlimit(2)) of this process as a number; None is no limit."""
    hard = resource.getrlimit(which)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def dumps_after_setuid() -> bool:
    """Whether memory is readable to a user's others after a change to that user (fs.suid_dumpable, proc_sys_fs(5))."""
    return Path("/proc/sys/fs/suid_dumpable").read_text(encoding="ascii").strip() == "1"


def machine_namespace(what: str) -> str:
    """A namespace for `initialize` that all processes of this machine share which do the same: the next one removes
    what a killed one has left in an engine. No other machine has it: what runs there is dead as far as is seen here.

    Parameters:
        what: they do.
    """
    try:
        machine = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        machine = b""
    # Not the number itself, which is to be kept from others (machine-id(5)).
    return f"{what}-{hashlib.sha256(b'fastclaw ' + (machine or socket.gethostname().encode())).hexdigest()[:8]}"


def raise_file_limit() -> None:
    """Raise this process's soft limit of open files to the hard one. Idempotent."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def await_children() -> None:
    """Have the kernel keep how our children end, where our parent ignores SIGCHLD.

    SSH daemons and launchers do, and it is inherited: every wait is ECHILD then, which `subprocess` takes for exit
    code 0 (wait(2)).
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def heeded(signals: Iterable[signal.Signals]) -> list[signal.Signals]:
    """The signals that were not ignored when this process started; they are unblocked.

    nohup(1) ignores one, and a shell those of what it starts in the background: these stay ignored. A mask is inherited
    as well, from the thread that started us, and is never meant.
    """
    found = [signum for signum in signals if signal.getsignal(signum) != signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, found)
    return found


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program to its end on uvloop, the loop of production: its result, or its exception.

    Only programs call it: the SDK works on any asyncio loop, and without uvloop.
    """
    try:
        import uvloop  # here: nobody else has to load it
    except ImportError:
        main.close()
        raise
    return uvloop.run(main)
