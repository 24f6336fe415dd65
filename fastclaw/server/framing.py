"""Newline-delimited framing. Bytes in, lines out; no byte is looked at twice, however it arrives.

Owns the partial line between two reads and its bound. Does not know what a line means.
"""

from typing import Final

from fastclaw import limits


class Oversized:
    """Stands for a line over the limit: what had come of it is dropped, and so is the rest up to its newline."""


OVERSIZED: Final = Oversized()


class LineFramer:
    """Splits a byte stream into lines: LF, one trailing CR dropped, blank lines skipped.

    Parameters:
        limit: the longest line in bytes, its newline not counted.
    """

    __slots__ = ("_dropping", "_held", "_limit")

    def __init__(self, limit: int = limits.MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._held = bytearray()  # not a list of pieces: 16 million of two bytes each would take a GiB
        self._dropping = False

    @property
    def held_bytes(self) -> int:
        """Bytes of the unfinished line."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """Take what one read brought, give back the lines that it completed, in order."""
        pieces = data.split(b"\n")
        tail = pieces.pop()
        lines: list[bytes | Oversized] = []
        if pieces:
            self._finish(pieces[0], lines)
            for piece in pieces[1:]:
                if piece[:1] == b"{" and piece[-1:] == b"}" and len(piece) <= self._limit:
                    lines.append(piece)  # what nearly all lines look like, without a call
                else:
                    self._keep(piece, lines)
        if tail:
            self._hold(tail, lines)
        return lines

    def _finish(self, piece: bytes, lines: list[bytes | Oversized]) -> None:
        """The newline of the held line has come, `piece` before it."""
        if self._dropping:
            self._dropping = False
            return
        if self._held:
            self._held += piece
            piece = bytes(self._held)
            self._held.clear()
        self._keep(piece, lines)

    def _keep(self, line: bytes, lines: list[bytes | Oversized]) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if len(line) > self._limit:
            lines.append(OVERSIZED)
        elif line and not line.isspace():
            lines.append(line)

    def _hold(self, tail: bytes, lines: list[bytes | Oversized]) -> None:
        if self._dropping:
            return
        self._held += tail
        # One more than the limit may still be the CR.
        if len(self._held) > self._limit + 1:
            self._held.clear()
            self._dropping = True
            lines.append(OVERSIZED)
