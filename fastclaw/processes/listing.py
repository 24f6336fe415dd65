"""What `list` shows: how much of a command line.

Owns the cut. Knows neither records nor how an answer is written.
"""

from __future__ import annotations

from fastclaw.answer_limits import SHOWN_COMMAND_BYTES, WORD_BYTES


def shown_command(cmd: list[str]) -> list[str]:
    """The beginning of a command line, for as long as its record is kept; the very same list where it is short."""
    room = SHOWN_COMMAND_BYTES
    for index, word in enumerate(cmd):
        length = len(word) if word.isascii() else len(word.encode("utf-8", "surrogatepass"))
        if WORD_BYTES + length > room:
            begun = _beginning(word, room - WORD_BYTES)
            return [*cmd[:index], begun] if begun or not index else cmd[:index]
        room -= WORD_BYTES + length
    return cmd


def _beginning(word: str, room: int) -> str:
    """As many whole characters as have room, as UTF-8."""
    return word[: max(room, 0)].encode("utf-8", "surrogatepass")[: max(room, 0)].decode("utf-8", "ignore")
