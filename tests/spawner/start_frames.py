"""A START as the spawner reads it: `parse` and `lay_out` of spawner/c/start.c, with each of their conditions."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.params import NUMBERS
from fastclaw.spawner import frames

if TYPE_CHECKING:
    from fastclaw.spawner.frames import Start

HEAD = struct.Struct("=16I")
_LIMIT = struct.Struct("=2I2Q")
_ALL_FLAGS = 8191


class Read(NamedTuple):
    """What the spawner finds in a START. `data`: a worker's request for its template."""

    id: int
    flags: int
    argv: list[bytes]
    env: list[bytes]
    directory: bytes | None
    uid: int
    gid: int
    groups: list[int]
    rlimits: list[tuple[int, int, int]]
    window: bytes
    head: int
    limit: int
    drain_ms: int
    input: bytes
    place: int
    data: bytes


def read(made: Start) -> Read:
    """Fails where the spawner would end itself."""
    frame, files = made.frame, list(made.files)
    assert HEAD.size <= len(frame) <= limits.SPAWN_FRAME_BYTES
    op, id, flags, argc, envc, uid, gid, group_count, limit_count, size, *rest = HEAD.unpack_from(frame)
    head, limit, drain_ms, input_bytes, place, joins = rest
    assert (op, flags & ~_ALL_FLAGS) == (frames.START, 0)
    assert joins <= (0 if flags & frames.FLAG_WORKER else 3)
    assert id
    is_worker = flags & frames.FLAG_WORKER
    _check_counts(flags, argc, envc, group_count, limit_count, size, place)
    assert input_bytes <= limits.SPAWN_FRAME_BYTES
    assert head <= limit <= limits.MAX_RUN_OUTPUT_BYTES
    spilled = bool(flags & frames.FLAG_SPILLED)
    assert len(files) == bool(flags & frames.FLAG_INPUT_FILE) + spilled
    at = HEAD.size + _LIMIT.size * limit_count
    rlimits = [(which, soft, hard) for which, _, soft, hard in _LIMIT.iter_unpack(frame[HEAD.size : at])]
    groups = list(struct.unpack_from(f"={group_count}I", frame, at))
    at += 4 * group_count
    window_bytes = 8 if flags & frames.FLAG_TTY else 0
    assert len(frame) == at + (0 if spilled else size) + window_bytes + input_bytes
    data = files[-1] if spilled else frame[at : at + size]
    assert len(data) == size
    given = frame[len(frame) - input_bytes :]
    window = frame[len(frame) - input_bytes - window_bytes : len(frame) - input_bytes]
    told = given if not flags & frames.FLAG_INPUT_FILE else files[0]
    argv, env, directory = ([], [], None) if is_worker else _lay_out(flags, argc, envc, data, spilled=spilled)
    left = data if is_worker else b""
    who = (uid, gid, groups, rlimits, window)
    return Read(id, flags, argv, env, directory, *who, head, limit, drain_ms, told, place, left)


def _check_counts(flags: int, argc: int, envc: int, groups: int, rlimits: int, size: int, place: int) -> None:
    others = frames.FLAG_TEMPLATE | frames.FLAG_WORKER | frames.FLAG_RUN | frames.FLAG_MERGE
    assert not (flags & frames.FLAG_TTY and flags & others)
    assert not (flags & frames.FLAG_TEMPLATE and flags & (frames.FLAG_WORKER | frames.FLAG_RUN))
    if flags & frames.FLAG_WORKER:
        assert place < limits.MAX_PROCESSES + limits.SPAWN_IDLE_REAPERS
        assert size
    else:
        assert 1 <= argc <= limits.SPAWN_STRINGS
        assert envc <= limits.SPAWN_STRINGS
    assert groups <= limits.SPAWN_GROUPS
    assert rlimits <= len(NUMBERS)
    assert size <= limits.SPAWN_STRINGS_BYTES


def _lay_out(
    flags: int, argc: int, envc: int, data: bytes, *, spilled: bool
) -> tuple[list[bytes], list[bytes], bytes | None]:
    assert spilled or argc + envc <= limits.SPAWN_INLINE_STRINGS
    parts = data.split(b"\0")
    directory = parts[argc + envc] if flags & frames.FLAG_DIRECTORY else None
    assert parts[argc + envc + (directory is not None) :] == [b""]
    return parts[:argc], parts[argc : argc + envc], directory
