"""gVisor as the OCI runtime (`options.oci_runtime: runsc`): what it is told, and what cannot be had with it.

Its kernel is a process of this host, with a second one, the gofer, for files. So the init's connection to a Unix socket
of the host is the gofer's, to whoever asks for the peer's pid, and no descriptor that is made inside leaves it; those
that are sent into it arrive (gVisor, pkg/sentry/fsimpl/host and runsc/fsgofer). Knows no files, no engine, no clocks.
"""

import re
from collections.abc import Sequence

RUNTIME = "runsc"

FLAGS = ("host-uds=open", "network=none")
"""What an engine of our own has it do: its init reaches the socket of its spawner, and it has a loopback device and
nothing else. `options.oci_runtime_flags` come behind, and the last of a name wins (Go's package flag)."""

WITHOUT_CGROUPS = "ignore-cgroups"
"""For an engine that is not root's: it makes the groups that Podman names, and ends where it cannot, or where one of
its controllers is not there. `io` is none of those that systemd delegates to a user by itself (user@.service)."""

OLDEST = "2024"
"""The year of the oldest release that has /proc/PID/task/TID/children and PR_SET_CHILD_SUBREAPER (2022's has not)."""


def is_gvisor(runtime: str) -> bool:
    """Whether an OCI runtime, by name or path, is gVisor's."""
    return runtime.rpartition("/")[2] == RUNTIME


def runtime_flags(runtime: str, given: Sequence[str], *, is_root: bool = True) -> list[str]:
    """What an OCI runtime is called with, each without its dashes.

    Parameters:
        given: `options.oci_runtime_flags`.
        is_root: the engine is root's.
    """
    if not is_gvisor(runtime):
        return [*given]
    return [*FLAGS, *([] if is_root else [WITHOUT_CGROUPS]), *given]


def why_too_old(version: str) -> str | None:
    """Why a release cannot be used, in one line; None where it can, or does not say when it was made.

    Parameters:
        version: the first line of `runsc --version`, with a date as its number.
    """
    made = re.search(r"20\d{6}", version)
    if made is None or made[0] >= OLDEST:
        return None
    return f"gVisor of {made[0][:4]} is too old; install a release of {OLDEST} or later"


def why_no_network(mode: str, flags: Sequence[str] | None) -> str | None:
    """Why its containers cannot have a network mode, in one line; None where they can.

    Parameters:
        flags: `options.oci_runtime_flags`; None for an engine that is not ours and has flags of its own.
    """
    if mode == "bridge":
        return "gVisor takes its interfaces as it starts, before fastclaw has connected any"
    if mode == "proxy":
        return "no listener leaves gVisor for the egress proxy"
    if mode == "open" and flags is not None and not any(flag.startswith("network=") for flag in flags):
        return 'gVisor has no network of the engine\'s; set options.oci_runtime_flags to ["network=sandbox"]'
    return None
