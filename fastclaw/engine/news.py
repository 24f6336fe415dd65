"""What an engine says while it is at something long: lines of JSON, of which the texts are told.

Reads in the thread that asks; what is told arrives on the loop.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, field

from fastclaw import engine_limits
from fastclaw.progress import Progress, ProgressBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from podman.api.client import APIResponse

    from fastclaw.progress import Tell


class News:
    """From a thread to the loop that made this: what the loop has not taken yet is bounded, whatever comes.

    Parameters:
        tell: called on the loop; None: nobody wants to know.
    """

    def __init__(self, tell: Tell | None) -> None:
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._buffer = ProgressBuffer()
        self._is_due = False

    def __call__(self, told: Progress) -> None:
        """Tell it, from the thread."""
        if self._tell is None:
            return
        with self._lock:
            self._buffer.add(told)
            is_due, self._is_due = self._is_due, True
        if not is_due:
            with suppress(RuntimeError):  # the loop has ended, and with it whoever listens
                self._loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        with self._lock:
            told = self._buffer.take()
            self._is_due = False
        if told is not None and self._tell is not None:
            self._tell(told)


class _Aux(Struct):
    id: str = field(name="ID", default="")


class Line(Struct):
    """One line of a pull or a build.

    Parameters:
        stream: what there is to read, as Podman says it, and Docker of a build.
        error: it has failed.
        id, status: of a pull, in Docker's words: a layer, and what comes of it.
        progress: how far that is; told again and again.
        aux: has the id of what was built, in Docker's words.
    """

    stream: str = ""
    error: str = ""
    id: str = ""
    status: str = ""
    progress: str = ""
    aux: _Aux = field(default_factory=_Aux)

    @property
    def text(self) -> str:
        """What there is to read."""
        if not self.status or self.progress:
            return self.stream
        return f"{self.id}: {self.status}\n" if self.id else f"{self.status}\n"


_decode = msgspec.json.Decoder(Line).decode


def lines_of(response: APIResponse) -> Iterator[Line]:
    """The lines of an answer, as they come.

    Raises:
        msgspec.MsgspecError: one of them is something else.
    """
    for line in response.iter_lines(chunk_size=engine_limits.IMAGE_CHUNK_BYTES):
        if line:
            yield _decode(line)


class Output:
    """What is said in pieces, as whole lines; and the end of it.

    Parameters:
        tell: takes whole lines.
    """

    def __init__(self, tell: Callable[[Progress], None]) -> None:
        self._tell = tell
        self._piece = ""
        self.tail = ""

    def add(self, text: str) -> None:
        """One more piece."""
        self.tail = (self.tail + text)[-engine_limits.BUILD_OUTPUT_CHARS :]
        lines, end, self._piece = (self._piece + text).rpartition("\n")
        if len(self._piece) > engine_limits.BUILD_OUTPUT_CHARS:  # no line: a bar that draws itself
            lines, end, self._piece = lines + end + self._piece, "\n", ""
        if end:
            self._tell(Progress(text=lines + end))

    def close(self) -> None:
        """What came last may have had no end."""
        if self._piece:
            self._tell(Progress(text=f"{self._piece}\n"))
            self._piece = ""

    @property
    def last_line(self) -> str:
        """The last line that is not blank, in one line."""
        lines = [line for line in self.tail.splitlines() if line.strip()]
        return " ".join(lines[-1].split()) if lines else ""
