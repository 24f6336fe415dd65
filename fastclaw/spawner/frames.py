"""The frames between fastclaw and its spawner, as fastclaw/spawner/c/ reads and writes them.

Two SOCK_SEQPACKET sockets, one frame a packet, native byte order and alignment (both ends run on one machine):

    control   HELLO, WELCOME (with the channel's other end), then orders to main, each with its ANSWER where one is due
    channel   START, READ and MEASURE to whichever pump is idle, and what becomes of a process: STARTED or REFUSED,
              EXITED or DONE, EMPTY (nothing of its tree is left), FREE (its pump has nothing left to do); before a DONE
              that has no room for all output: STORE with a file that has it, or, where no descriptor can be sent, as
              often as need be, with a stream's next bytes (a: which); of its clients: ENDED, LEFT, GAP; LOST from main
              where a reaper was killed (id 0: an idle one; b: 1 for a template's worker, which has none of its own)

Descriptors travel with the frame (SCM_RIGHTS, unix(7)). Bytes in, values out; nothing here knows a socket.

A template has a SOCK_SEQPACKET socket of its own, its descriptor 3. Its pump has the other end (spawner/c/clients.c),
since a template could send descriptors of pipes that it has locked. One JSON object a packet (fastclaw/template.py):

    to it    {"id", "argv", "env", "cwd", "limits": [[resource, value], …]} with the worker's descriptors: `go` to read
             one byte from, stdin where it has one, stdout, stderr; a longer one as a file after them: {"spilled"}
    from it  {"ready": true} once; for each request {"forked": id, "pid"} or {"failed": id, "errno", "step"}

The template forks twice, so that the worker becomes its reaper's child. The worker waits for the byte; EOF instead
means that it is not wanted. The pid is as seen inside. JSON escapes what is no UTF-8, as os.fsdecode has it.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from fastclaw import limits
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.linux.executable import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastclaw.processes.lane import Collection

VERSION = 7
MAGIC = 0x57414C43

(HELLO, WELCOME, START, RETIRE, GROW, SIGNAL, END, LISTEN, READ, PING, ADOPT) = range(1, 12)
(ATTACH, RELEASE, LOOK, RESIZE, FINISH) = range(12, 17)
HANGUP = 18
"""From fastclaw, of a client whose hang-up gVisor hides (a: which, and 2 where it left output unread)."""
MEASURE = 19
"""What processes take (a: how many), written to the file that comes along."""
(STARTED, REFUSED, EXITED, EMPTY, LOST, ANSWER, DONE, STORE, ENDED, LEFT, FREE, WAITING, STUCK, SAID, GAP, BLOCKED) = (
    range(32, 48)
)

LOOK_BLOCKED = 1
"""With a LOOK: only whether outputs are full and nobody takes from them. Answered by BLOCKED, by bit."""

STEP_REQUEST, STEP_PROCESS, STEP_TTY, STEP_LIMIT, STEP_USER, STEP_DIRECTORY, STEP_EXEC, STEP_ADOPT, STEP_JOIN = range(
    1, 10
)
"""Which step of a start failed."""

LEVEL_TERM, LEVEL_KILL = 1, 2

SIGNAL_GROUP = 256
"""With a SIGNAL's number: to the command's process group."""

FLAG_DIRECTORY, FLAG_NULL_STDIN, FLAG_IDENTITY, FLAG_SPILLED, FLAG_TTY, FLAG_TEMPLATE, FLAG_WORKER, FLAG_RUN = (
    1 << bit for bit in range(8)
)
FLAG_MERGE, FLAG_END_ORPHANS, FLAG_HOLD, FLAG_LIMIT_KILLS, FLAG_INPUT_FILE = (1 << bit for bit in range(8, 13))

WITH_EMPTY, WITH_FREE, INCOMPLETE, LIMITED, OVERLOADED = (1 << bit for bit in range(5))
"""What an EXITED or a DONE says besides."""

CONFINE = 1
"""WELCOME: nothing keeps a capability but main, reapers and pumps, and they only what they need."""

GVISOR = 2
"""WELCOME: its kernel is gVisor, which no descriptor leaves (those that are sent into it arrive), and which ignores
CLONE_PARENT."""

SECRET_VARIABLE = "FASTCLAW_INIT_SECRET"
"""By which a spawner is known where the kernel cannot say who has connected. Taken out of its environment there."""

NO_USER = 2**32 - 1
"""WELCOME: reapers stay who they are (setuid(2) keeps this value for "no change")."""

NOWHERE = 2**32 - 1
"""The place of a process whose place is not known yet."""

_GREETING = struct.Struct("=3I")
"""How a HELLO of every version begins."""
_HELLO = struct.Struct("=4IQ")
_WELCOME = struct.Struct("=4IQ2I")
_CONTROL = struct.Struct("=5I")
_START = struct.Struct("=16I")
_LIMIT = struct.Struct("=2I2Q")
_WINDOW = struct.Struct("=4H")
"""struct winsize (ioctl_tty(2)), of a START with a terminal: rows, columns, and pixels, which nobody uses."""

EVENT = struct.Struct("=2I2i8Q")
"""kind, id, a, b, user_us, system_us, max_rss_kb, and when each stage from `TAKEN` to `GONE` was reached (`stages`)"""

ASKED_USAGE = struct.Struct("=3I")
"""Of each process in a MEASURE: its id, its place, and that of its template where it is a worker."""

_USAGE = struct.Struct("=4Q2I")
"""Of each in the answer: clock ticks, pages, bytes of stdin and of its outputs, processes, and whether it is known."""

TOTALS = struct.Struct("=2Q2I")
"""What follows the event in a DONE: bytes of stdout and stderr, and how many of each follow here."""

_FINDING = struct.Struct("=5I")
"""What follows in a REFUSED of STEP_EXEC: depth, is_loader, error, how many bytes of name and of head; then those."""

INLINE_BYTES = limits.SPAWN_INLINE_BYTES

EVENT_BYTES = EVENT.size + TOTALS.size + 2 * INLINE_BYTES
"""The longest frame that comes back."""

_CHILDREN_LISTED, _CAN_SET_USER = 1, 2


class Hello(NamedTuple):
    """What a spawner says of itself.

    Parameters:
        env: the environment it was started with.
        lists_children: the kernel has /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN).
        can_set_user: it holds CAP_SETUID, CAP_SETGID and CAP_KILL.
        now_ns: its CLOCK_MONOTONIC, in nanoseconds.
    """

    env: dict[str, str]
    lists_children: bool
    can_set_user: bool
    now_ns: int = 0


def parse_hello(frame: bytes) -> Hello:
    """Raises ProtocolError: it is none, or of another version."""
    if len(frame) < _GREETING.size:
        raise ProtocolError("the spawner's greeting is cut short")
    op, magic, version = _GREETING.unpack_from(frame)
    if (op, magic) != (HELLO, MAGIC):
        raise ProtocolError("what connected is no spawner")
    if version != VERSION:
        raise ProtocolError(f"the spawner speaks version {version} and not {VERSION}; install fastclaw anew")
    if len(frame) < _HELLO.size:
        raise ProtocolError("the spawner's greeting is cut short")
    *_, facts, now_ns = _HELLO.unpack_from(frame)
    entries = frame[_HELLO.size :].decode("utf-8", "surrogateescape").split("\0")
    env = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return Hello(env, bool(facts & _CHILDREN_LISTED), bool(facts & _CAN_SET_USER), now_ns)


def control(op: int, id: int = 0, a: int = 0, b: int = 0, place: int = NOWHERE, tail: bytes = b"") -> bytes:
    """An order to main. `tail`: the path of READ. An END of number 0 is for everything that is kept.

    ADOPT has the worker's pid and its template's number; SIGNAL and END of a worker have the template's too, as `b`.
    `place`: what STARTED said of the process (of its template, for a worker's); without it main has to look for it.
    """
    return _CONTROL.pack(op, id, a, b, place) + tail


def welcome(
    *, confine: bool, reaper_uid: int, collect_bytes: int, capabilities: int = 0, is_gvisor: bool = False
) -> bytes:
    """The answer to HELLO; the channel's other end goes along.

    Parameters:
        collect_bytes: what all runs together may have collected beyond what fits their frames.
        capabilities: of commands that are root, where the others are taken away (`capabilities.mask`).
        is_gvisor: its kernel is gVisor.
    """
    flags = (CONFINE if confine else 0) | (GVISOR if is_gvisor else 0)
    return _WELCOME.pack(WELCOME, VERSION, flags, reaper_uid, collect_bytes, capabilities, 0)


def finding(said: memoryview) -> Finding | None:
    """What a REFUSED brought along; None where that is nothing, or makes no sense."""
    if len(said) < _FINDING.size:
        return None
    depth, is_loader, error, name_bytes, head_bytes = _FINDING.unpack_from(said)
    rest = bytes(said[_FINDING.size :])
    if len(rest) != name_bytes + head_bytes:
        return None
    name = rest[:name_bytes].decode("utf-8", "backslashreplace")
    return Finding(depth, bool(is_loader), error, name, rest[name_bytes:])


class Used(NamedTuple):
    """What a process and its tree take, as a MEASURE tells it.

    Parameters:
        ticks: processor time, in clock ticks (sysconf(3), _SC_CLK_TCK).
        pages: resident memory, in pages.
        read, written: bytes of its stdin and of both outputs.
        processes: in its tree.
    """

    ticks: int
    pages: int
    read: int
    written: int
    processes: int


def used(said: bytes) -> list[Used | None]:
    """What the answer to a MEASURE has of each process; None of one that is not there any more."""
    return [Used(*row) if is_known else None for *row, is_known in _USAGE.iter_unpack(said)]


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
    """A START frame. `files`: contents of the files that go along, after the descriptors of a worker."""

    frame: bytes
    files: tuple[bytes, ...] = ()


def start(
    id: int,
    argv: Strings,
    env: Strings,
    *,
    directory: str | None = None,
    flags: int = 0,
    tty: tuple[int, int] | None = None,
    identity: Identity | None = None,
    rlimits: Sequence[tuple[int, int]] = (),
    collection: Collection | None = None,
    joins: int = 0,
) -> Start:
    """One process to start.

    Parameters:
        flags: any of NULL_STDIN, TEMPLATE (its descriptor 3 is then a socket whose other end its pump has), MERGE,
            END_ORPHANS and HOLD; the others follow from the rest.
        tty: rows and columns of its terminal; None: it gets streams.
        rlimits: number of the resource (getrlimit(2)) and its soft and hard limit.
        collection: what a run wants of its streams; None: they are for clients.
        joins: how many descriptors come first that are files of control groups, by which it goes into them.

    Raises:
        ExecFailed: `too_long`.
    """
    window = b""
    if tty is not None:
        flags |= FLAG_TTY
        window = _WINDOW.pack(*tty, 0, 0)
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
    size = _START.size + len(fixed) + len(data)
    more, run, tail, files = _run(collection, limits.SPAWN_FRAME_BYTES - size)
    flags |= more
    tail = tail or window
    count = argv.number + env.number
    if size + len(tail) > limits.SPAWN_FRAME_BYTES or count > limits.SPAWN_INLINE_STRINGS:
        flags |= FLAG_SPILLED
        if len(data) > limits.SPAWN_STRINGS_BYTES or count > limits.SPAWN_STRINGS:
            raise ExecFailed("arguments and environment are longer than the kernel takes", "too_long")
        files += (data,)
    sizes = (len(groups), len(rlimits), len(data))
    head = _START.pack(START, id, flags, argv.number, env.number, uid, gid, *sizes, *run, 0, joins)
    return Start(head + fixed + (b"" if flags & FLAG_SPILLED else data) + tail, files)


def worker(
    id: int,
    place: int,
    request: bytes,
    *,
    flags: int = 0,
    identity: Identity | None = None,
    collection: Collection | None = None,
) -> Start:
    """One worker, whose streams a pump makes and hands to the pump of its template, and that to the template.

    Parameters:
        place: of its template.
        request: the template's own frame (`template_request`).
        flags: any of NULL_STDIN, MERGE and HOLD.
    """
    flags |= FLAG_WORKER
    uid = gid = 0
    if identity is not None:
        flags |= FLAG_IDENTITY
        uid, gid = identity.uid, identity.gid
    more, run, _, files = _run(collection, 0)
    flags |= more
    inline = request
    if _START.size + len(request) > limits.SPAWN_FRAME_BYTES:
        flags |= FLAG_SPILLED
        files += (request,)
        inline = b""
    head = _START.pack(START, id, flags, 0, 0, uid, gid, 0, 0, len(request), *run, place, 0)
    return Start(head + inline, files)


def _run(collection: Collection | None, room: int) -> tuple[int, tuple[int, ...], bytes, tuple[bytes, ...]]:
    """Of a START: flags, the numbers of a run, its input for the frame, which has so much room, or for a file."""
    if collection is None:
        return 0, (0, 0, 0, 0), b"", ()
    flags, data = FLAG_RUN, collection.input
    if not data:
        flags |= FLAG_NULL_STDIN
    if collection.on_limit == "kill":
        flags |= FLAG_LIMIT_KILLS
    numbers = (*kept_bytes(collection), collection.drain_ms)
    if len(data) <= room:
        return flags, (*numbers, len(data)), data, ()
    return flags | FLAG_INPUT_FILE, (*numbers, 0), b"", (data,)


def kept_bytes(collection: Collection) -> tuple[int, int]:
    """How many bytes from a stream's beginning its pump keeps, and how many in all; the rest is for its end.

    With a limit that ends the command these are what was asked for. Else they are no less than a pump has memory for: a
    small ring for the end would be filled a few bytes at a time.
    """
    limit = collection.output_limit
    if collection.on_limit == "truncate":
        limit = max(limit, INLINE_BYTES)
    if collection.keep == "ends":
        return limit - limit // 2, limit
    return limit if collection.keep == "head" else 0, limit


# --- templates ---

TEMPLATE_FD = 3
TEMPLATE_FD_VARIABLE = "FASTCLAW_TEMPLATE_FD"
TEMPLATE_GO = b"g"
_QUOTED = 80
"""Characters of nonsense that an error quotes."""


class TemplateReady(NamedTuple):
    """A template's frame: it can be asked for workers."""


class WorkerForked(NamedTuple):
    """A template's frame: a worker that waits for its adoption, then for its byte."""

    id: int
    pid: int


class WorkerFailed(NamedTuple):
    """A template's frame: the fork did not work. `step` names what failed."""

    id: int
    errno: int
    step: str


def template_request(
    id: int,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: str | None = None,
    rlimits: Sequence[tuple[int, int]] = (),
) -> bytes:
    """A template's request to fork one worker.

    Raises:
        ExecFailed: `too_long`.
        ValueError: a NUL inside, or a lone surrogate that no file name has.
    """
    strings([*argv, *env, *env.values(), *(() if cwd is None else (cwd,))])
    told = {"id": id, "argv": list(argv), "env": dict(env), "cwd": cwd, "limits": list(rlimits)}
    data = json.dumps(told).encode("ascii")
    if len(data) > limits.TEMPLATE_REQUEST_BYTES:
        raise ExecFailed("arguments and environment are longer than the kernel takes", "too_long")
    return data


def parse_template(frame: bytes) -> TemplateReady | WorkerForked | WorkerFailed:
    """What a template says.

    Raises:
        ProtocolError: something else.
    """
    try:
        told = json.loads(frame)
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict):
        if told.get("ready") is True:
            return TemplateReady()
        if "forked" in told:
            return WorkerForked(_number(told, "forked"), _number(told, "pid"))
        if "failed" in told:
            return WorkerFailed(_number(told, "failed"), _number(told, "errno", limits.MAX_ERRNO), _step(told))
    raise ProtocolError(f"a template said {frame[:_QUOTED]!r}, which means nothing")


def _number(told: dict[str, Any], name: str, most: int = NO_USER) -> int:
    value = told.get(name)
    if type(value) is int and 0 < value <= most:
        return value
    raise ProtocolError(f"a template said {repr(value)[:_QUOTED]} where {name} is a number up to {most}")


def _step(told: dict[str, Any]) -> str:
    """Words for a message: JSON may escape lone surrogates, which no answer can hold."""
    value = told.get("step")
    if type(value) is str and len(value) <= limits.TEMPLATE_STEP_CHARS and value.isprintable():
        return value
    raise ProtocolError(f"a template said {repr(value)[:_QUOTED]} where step names what did not work")
