"""The frames between fastclaw and its spawner, as fastclaw/spawn/spawner.c reads and writes them.

Two SOCK_SEQPACKET sockets, one frame a packet, native byte order and alignment (both ends run on one machine):

    control   HELLO, WELCOME (with the channel's other end), then orders to main, each with its ANSWER where one is due
    channel   START to whichever keeper is idle, and what becomes of it: STARTED or REFUSED, EXITED, EMPTY; LOST from
              main where a keeper was killed (b: 1 for a template's worker, which has no keeper of its own)

Descriptors travel with the frame (SCM_RIGHTS, unix(7)). Bytes in, values out; nothing here knows a socket.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.errors import ExecFailed, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VERSION = 1
MAGIC = 0x57414C43

HELLO, WELCOME, START, RETIRE, GROW, SIGNAL, END, LISTEN, READ, PING, SHUTDOWN, ADOPT = range(1, 13)
STARTED, REFUSED, EXITED, EMPTY, LOST, ANSWER = range(32, 38)

STEP_REQUEST, STEP_PROCESS, STEP_TTY, STEP_LIMIT, STEP_USER, STEP_DIRECTORY, STEP_EXEC, STEP_ADOPT = range(1, 9)
"""Which step of a start failed."""

LEVEL_TERM, LEVEL_KILL = 1, 2

FLAG_DIRECTORY, FLAG_NULL_STDIN, FLAG_IDENTITY, FLAG_SPILLED, FLAG_TTY, FLAG_CONTROL = 1, 2, 4, 8, 16, 32
CONFINE = 1
"""WELCOME: nothing keeps a capability but main and the keepers, and they only what they need."""

NO_USER = 2**32 - 1
"""WELCOME: keepers stay who they are (setuid(2) keeps this value for "no change")."""

_CONTROL = struct.Struct("=4I")
_START = struct.Struct("=10I")
_LIMIT = struct.Struct("=2I2Q")
_WINDOW = struct.Struct("=4H")
"""struct winsize (ioctl_tty(2)), the end of a START with a terminal: rows, columns, and pixels, which nobody uses."""

EVENT = struct.Struct("=2I2i3Q")
"""kind, id, a, b, user_us, system_us, max_rss_kb"""

_CHILDREN_LISTED, _CAN_SET_USER = 1, 2


class Hello(NamedTuple):
    """What a spawner says of itself.

    Parameters:
        env: the environment it was started with.
        lists_children: the kernel has /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN).
        can_set_user: it holds CAP_SETUID, CAP_SETGID and CAP_KILL.
    """

    env: dict[str, str]
    lists_children: bool
    can_set_user: bool


def parse_hello(frame: bytes) -> Hello:
    """Raises ProtocolError: it is none, or of another version."""
    if len(frame) < _CONTROL.size:
        raise ProtocolError("the spawner's greeting is cut short")
    op, magic, version, facts = _CONTROL.unpack_from(frame)
    if (op, magic) != (HELLO, MAGIC):
        raise ProtocolError("what connected is no spawner")
    if version != VERSION:
        raise ProtocolError(f"the spawner speaks version {version} and not {VERSION}; install fastclaw anew")
    entries = frame[_CONTROL.size :].decode("utf-8", "surrogateescape").split("\0")
    env = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return Hello(env, bool(facts & _CHILDREN_LISTED), bool(facts & _CAN_SET_USER))


def control(op: int, id: int = 0, a: int = 0, b: int = 0, tail: bytes = b"") -> bytes:
    """An order to main. `tail`: the path of READ. An END of number 0 is for everything that is kept.

    ADOPT has the worker's pid and its template's number; SIGNAL and END of a worker have the template's too, as `b`.
    """
    return _CONTROL.pack(op, id, a, b) + tail


def welcome(*, confine: bool, keeper_uid: int = NO_USER) -> bytes:
    """The answer to HELLO; the channel's other end goes along."""
    return _CONTROL.pack(WELCOME, VERSION, CONFINE if confine else 0, keeper_uid)


class Identity(NamedTuple):
    """Who a process runs as. `groups` are the supplementary ones; `home` goes into HOME."""

    uid: int
    gid: int
    groups: list[int]
    home: str = "/"


class Strings(NamedTuple):
    """NUL-terminated strings one after the other, and how many they are."""

    data: bytes
    number: int


def strings(texts: Iterable[str]) -> Strings:
    """Raises ValueError: a NUL inside, or a lone surrogate that no file name has."""
    listed = list(texts)
    joined = "\0".join(listed)
    if joined.count("\0") != max(len(listed) - 1, 0):
        raise ValueError("embedded null byte")
    return Strings(joined.encode("utf-8", "surrogateescape") + b"\0" if listed else b"", len(listed))


class Start(NamedTuple):
    """A START frame. `spilled`: the strings, which go as a file after the standard streams, or None."""

    frame: bytes
    spilled: bytes | None


def start(
    id: int,
    argv: Strings,
    env: Strings,
    *,
    directory: str | None = None,
    null_stdin: bool = False,
    tty: tuple[int, int] | None = None,
    with_control: bool = False,
    identity: Identity | None = None,
    rlimits: Sequence[tuple[int, int]] = (),
) -> Start:
    """One process to start.

    Parameters:
        tty: rows and columns of its terminal; None: it gets streams.
        with_control: it is a template: one more descriptor goes along after its streams, and becomes its number 3.
        rlimits: number of the resource (getrlimit(2)) and its soft and hard limit.

    Raises:
        ExecFailed: `too_long`.
    """
    flags = FLAG_NULL_STDIN if null_stdin else 0
    window = b""
    if tty is not None:
        flags |= FLAG_TTY
        window = _WINDOW.pack(*tty, 0, 0)
    if with_control:
        flags |= FLAG_CONTROL
    data = argv.data + env.data
    if directory is not None:
        flags |= FLAG_DIRECTORY
        data += strings([directory]).data
    uid = gid = 0
    groups: Sequence[int] = ()
    if identity is not None:
        flags |= FLAG_IDENTITY
        uid, gid, groups = identity.uid, identity.gid, identity.groups[: limits.SPAWN_GROUPS]
    fixed = b""
    if rlimits or groups:
        fixed = b"".join(_LIMIT.pack(which, 0, value, value) for which, value in rlimits)
        fixed += struct.pack(f"={len(groups)}I", *groups)
    count = argv.number + env.number
    whole = _START.size + len(fixed) + len(data) + len(window)
    spills = count > limits.SPAWN_INLINE_STRINGS or whole > limits.SPAWN_FRAME_BYTES
    if spills:
        flags |= FLAG_SPILLED
        if len(data) > limits.SPAWN_STRINGS_BYTES or count > limits.SPAWN_STRINGS:
            raise ExecFailed("arguments and environment are longer than the kernel takes", "too_long")
    head = _START.pack(START, id, flags, argv.number, env.number, uid, gid, len(groups), len(rlimits), len(data))
    return Start(head + fixed + window, data) if spills else Start(head + fixed + data + window, None)
