"""The frames between fastclaw and its relay workers, over one SOCK_SEQPACKET socket, native byte order.

    OPEN    to the worker, with the descriptors of one process: two listeners, stdout, stderr, and stdin if it has one
    CLOSE   to the worker: close them, unlink the paths
    ASK     to the worker: does output wait for a reader? It answers PENDING
    READY, DRAINED, ABANDONED, GAP, PENDING    from the worker

Bytes in, values out; nothing here knows a socket.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from fastclaw.errors import ProtocolError

if TYPE_CHECKING:
    from fastclaw.runtime import OnDisconnect

OPEN, CLOSE, ASK = 1, 2, 3
READY, DRAINED, ABANDONED, GAP, PENDING = range(16, 21)

_HEAD = struct.Struct("=2I")
EVENT = struct.Struct("=3I")
"""kind, id, value"""

_WORDS: Final[tuple[OnDisconnect, ...]] = ("eof", "hold", "kill")
_LEAST_FDS, _MOST_FDS = 4, 5


class Opened(NamedTuple):
    """What OPEN says. `on_disconnect` is for stdio; a client of stderr may come and go."""

    id: int
    on_disconnect: OnDisconnect
    stdio_path: str
    stderr_path: str


def opening(opened: Opened) -> bytes:
    """The frame of an OPEN."""
    word = _WORDS.index(opened.on_disconnect)
    return EVENT.pack(OPEN, opened.id, word) + f"{opened.stdio_path}\0{opened.stderr_path}".encode(
        "utf-8", "surrogateescape"
    )


def order(op: int, id: int) -> bytes:
    """The frame of a CLOSE or an ASK."""
    return _HEAD.pack(op, id)


def event(kind: int, id: int = 0, value: int = 0) -> bytes:
    """A frame from the worker."""
    return EVENT.pack(kind, id, value)


def parse(frame: bytes, fds: int) -> Opened | tuple[int, int]:
    """An OPEN, or the kind and id of another order.

    Parameters:
        fds: how many descriptors came along.

    Raises:
        ProtocolError: it is none of these.
    """
    if len(frame) == _HEAD.size and fds == 0:
        kind, id = _HEAD.unpack(frame)
        if kind in (CLOSE, ASK):
            return kind, id
    elif len(frame) > EVENT.size and _LEAST_FDS <= fds <= _MOST_FDS:
        kind, id, word = EVENT.unpack_from(frame)
        paths = frame[EVENT.size :].decode("utf-8", "surrogateescape").split("\0")
        if kind == OPEN and word < len(_WORDS) and len(paths) == 2:
            return Opened(id, _WORDS[word], *paths)
    raise ProtocolError(f"a relay worker got a frame of {len(frame)} bytes with {fds} descriptors")
