"""Which of root's rights a command may have: names of capabilities(7), and their numbers.

Only those that engines give to containers by default, now or in earlier versions (Podman 4.3.1, containers-common,
`default_capabilities`; Docker 20, oci/caps/defaults.go). Each other one either reaches out of the container or lets
root inside undo what fastclaw has set up: CAP_NET_ADMIN the firewall, CAP_SYS_PTRACE the spawner's memory.
"""

from collections.abc import Iterable

from fastclaw.errors import InvalidParams
from fastclaw.options import Capabilities

NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
"""linux/capability.h"""

UNUSUAL = frozenset({"CAP_KILL", "CAP_NET_RAW", "CAP_MKNOD", "CAP_AUDIT_WRITE"})
"""Only by name: packets of one's own making, device files, the host's audit log. And CAP_KILL, with which `kill -9 -1`
ends the spawner's reapers, and so every process of the environment, where without it ends what is root's."""

DEFAULT = tuple(name for name in NUMBERS if name not in UNUSUAL)

PATH = "$.options.capabilities"


def read_capabilities(wanted: Capabilities) -> tuple[str, ...]:
    """The names that are meant, with their prefix, by number.

    Raises:
        InvalidParams: a name that is none, or none of those that may be had.
    """
    if wanted == "none":
        return ()
    if wanted == "default":
        return DEFAULT
    names = {f"CAP_{name.upper().removeprefix('CAP_')}" for name in wanted}
    if unknown := sorted(names - NUMBERS.keys()):
        there_are = ", ".join(name.removeprefix("CAP_") for name in NUMBERS)
        raise InvalidParams(f"{PATH}: {unknown[0]} cannot be had; there are {there_are}", "unsupported", path=PATH)
    return tuple(name for name in NUMBERS if name in names)


def mask(names: Iterable[str]) -> int:
    """A bit for each of them, as capget(2) has it in its first word."""
    return sum(1 << NUMBERS[name] for name in names)
