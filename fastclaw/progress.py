"""How something that takes long comes on: what is told, and a bounded place for what is told too fast."""

from collections import deque
from collections.abc import Callable

from msgspec import Struct

from fastclaw import limits


class Progress(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What there is to tell since the last time.

    Parameters:
        text: whole lines, each with its LF.
        done: bytes that are through, of what is counted now.
        total: bytes that there are of it, where that is known.
        dropped: lines before `text` that are not told, because there were too many of them.
    """

    text: str = ""
    done: int | None = None
    total: int | None = None
    dropped: int = 0


Tell = Callable[[Progress], None]
"""Takes what there is to tell; never blocks."""


class ProgressBuffer:
    """What was told and is not yet passed on: the newest lines, as many as fit a notice, and the last counters.

    Belongs to who locks it.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._chars = 0
        self._dropped = 0
        self._counters: tuple[int | None, int | None] | None = None

    def add(self, told: Progress) -> None:
        """Take it in. Of too many lines the oldest go, and are counted; of a long line its beginning stays."""
        self._dropped += told.dropped
        for line in told.text.splitlines(keepends=True):
            kept = line if len(line) <= limits.PROGRESS_LINE_CHARS else f"{line[: limits.PROGRESS_LINE_CHARS]}…\n"
            self._lines.append(kept)
            self._chars += len(kept)
        while self._chars > limits.PROGRESS_TEXT_CHARS:
            self._chars -= len(self._lines.popleft())
            self._dropped += 1
        if told.done is not None:
            self._counters = told.done, told.total

    def take(self) -> Progress | None:
        """What has come since the last time, or None."""
        if not self._lines and not self._dropped and self._counters is None:
            return None
        done, total = self._counters or (None, None)
        told = Progress(text="".join(self._lines), done=done, total=total, dropped=self._dropped)
        self._lines.clear()
        self._chars = self._dropped = 0
        self._counters = None
        return told
