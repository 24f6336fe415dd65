"""All processes of a runtime: which ones live, which ones linger, whose records are kept, and until when.

Each stage after the exit is first in, first out with one common time to live, so every step is O(1) and one timer
serves all. Only processes with a stream that no client reads count against `max_lingering`.
"""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Iterator

from fastclaw import limits
from fastclaw.errors import InvalidState
from fastclaw.options import Options
from fastclaw.processes.process import Process


class ProcessTable:
    """Processes by id. Times are those of the loop.

    Parameters:
        options: `keep_exited`, `keep_exited_ms`, `linger_ms`, `max_lingering`.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._processes: dict[str, Process] = {}
        self._by_key: dict[str, Process] = {}
        self._live: dict[str, Process] = {}
        self._lingering: OrderedDict[str, Process] = OrderedDict()
        self._unread: OrderedDict[str, Process] = OrderedDict()
        self._read: OrderedDict[str, Process] = OrderedDict()
        self._kept: OrderedDict[str, Process] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._soon: asyncio.TimerHandle | None = None
        self._has_asked = False
        self._look_at = 0.0

    def __repr__(self) -> str:
        return f"<ProcessTable {' '.join(f'{name}={count}' for name, count in self.counts().items())}>"

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._processes.values()))

    def live(self) -> list[Process]:
        """Those whose command has not ended."""
        return list(self._live.values())

    def counts(self) -> dict[str, int]:
        """For `health`."""
        lingering = len(self._unread) + len(self._read)
        return {"live": len(self._live), "lingering": lingering, "kept": len(self._kept)}

    def add(self, process: Process) -> None:
        """A process that was just started."""
        self._processes[process.id] = process
        self._live[process.id] = process
        if process.key is not None:
            self._by_key[process.key] = process

    def has(self, process: Process) -> bool:
        """Whether it was added and its record has not expired."""
        return process.id in self._processes

    def is_live(self, process: Process) -> bool:
        """Whether it was added and its command has not ended."""
        return process.id in self._live

    def find(self, process_id: str) -> Process:
        """Raises InvalidState: `unknown_process`."""
        process = self._processes.get(process_id)
        if process is None:
            raise unknown_process(process_id)
        return process

    def with_key(self, key: str) -> Process | None:
        """The process of an earlier exec or run with this key, while its record is kept."""
        return self._by_key.get(key)

    def free_key(self, process: Process) -> None:
        """Its request was not answered with it: the next one with its key starts another."""
        if process.key is not None and self._by_key.get(process.key) is process:
            del self._by_key[process.key]

    def exited(self, process: Process) -> None:
        """Its command has ended: sockets linger, the record is kept."""
        del self._live[process.id]
        now = process.expires_at = self._loop.time()
        self._kept[process.id] = process
        if not process.streams.drained:
            self._lingering[process.id] = process
            self._place(process)
            self._enforce_soon()
            return
        process.release()
        self._forget_kept(now)
        if self._timer is None:  # else it rings for an older one before anything is due of this
            self._schedule()

    def forget(self, process: Process) -> None:
        """Drop the record of one that has ended and has no sockets: nobody was told its id."""
        if self._kept.pop(process.id, None) is not None:
            del self._processes[process.id]

    def drained(self, process: Process) -> None:
        """Clients have both streams to the end: a process that has ended needs its sockets no more."""
        if not process.is_running:
            self._release(process)

    def clients_changed(self, process: Process) -> None:
        """A client of a process that has ended came or left, stopped reading or began again."""
        if process.id not in self._unread and process.id not in self._read:
            return
        if process.id in self._lingering or process.streams.is_served():
            self._place(process)
        else:
            self._release(process)
        if self._surplus() > 0:
            self._enforce_soon()

    def cut(self) -> None:
        """Close the sockets of all that have ended; what was not read of them is a gap."""
        for process in {**self._read, **self._unread}.values():
            if process.streams.has_pending_output():
                process.on_gap()
            self._release(process, cut=True)

    def close(self) -> None:
        """Forget everything; close what is still open, whatever its state."""
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        for process in {**self._read, **self._unread, **self._processes}.values():
            process.close()
        for table in (self._processes, self._by_key, self._live):
            table.clear()
        for stage in (self._lingering, self._unread, self._read, self._kept):
            stage.clear()

    def _place(self, process: Process) -> None:
        """Put it among those with an unread stream, or among the others."""
        here, there = (self._unread, self._read) if process.streams.is_unread() else (self._read, self._unread)
        there.pop(process.id, None)
        here.setdefault(process.id, process)

    def _release(self, process: Process, *, cut: bool = False) -> None:
        """Release its sockets. While a client reads on, it stays in its stage."""
        self._lingering.pop(process.id, None)
        process.release(cut=cut)
        if not process.is_closed:
            self._place(process)
            return
        self._unread.pop(process.id, None)
        self._read.pop(process.id, None)

    # --- bounds ---

    def _enforce_soon(self, delay_ms: int = limits.ENFORCE_DELAY_MS) -> None:
        """Enforce a moment later, so that calls that wait for this exit are answered first: closing takes its time."""
        if self._soon is None:
            self._soon = self._loop.call_later(delay_ms / 1000, self._on_soon)

    def _on_soon(self) -> None:
        self._soon = None
        self._enforce()

    def _enforce(self) -> None:
        """Apply every bound now, and have it done again when the next one falls due."""
        now = self._loop.time()
        self._close_lingering(now)
        self._forget_kept(now)
        self._schedule()

    def _close_lingering(self, now: float) -> None:
        linger = self._options.linger_ms / 1000
        while self._lingering and (oldest := next(iter(self._lingering.values()))).expires_at + linger <= now:
            self._release(oldest)
        if self._are_many():
            self._look(now)
        self._close_surplus()

    def _are_many(self) -> bool:
        """Whether there would be too many if no client read."""
        return len(self._unread) + len(self._read) > self._options.max_lingering

    def _look(self, now: float) -> None:
        """Find out whether those that are connected read, a few at a time: where not, `clients_changed` is called."""
        if now < self._look_at:
            return
        self._look_at = now + limits.PUMP_LOOK_MS / 1000
        for process in list(itertools.islice(self._read.values(), limits.DISPENSABLE_SCAN)):
            self._read.move_to_end(process.id)
            process.streams.look()

    def _close_surplus(self) -> None:
        """Release some of the oldest with an unread stream: first those without output, then the oldest."""
        surplus = self._surplus()
        if surplus <= 0:
            self._has_asked = False
            return
        oldest = list(itertools.islice(self._unread.values(), surplus + limits.DISPENSABLE_SCAN))
        if self._ask(oldest):
            self._enforce_soon(limits.LOOK_ANSWER_MS)
            return
        oldest.sort(key=lambda process: process.streams.has_pending_output())
        for process in oldest:
            if self._surplus() <= 0:
                return
            if process.id in self._unread:
                self._release(process, cut=True)

    def _surplus(self) -> int:
        return len(self._unread) - self._options.max_lingering

    def _ask(self, processes: list[Process]) -> bool:
        """Whether what they say is worth waiting for: once, so that no answer is waited for that never comes."""
        answers = [process.streams.look() for process in processes]
        self._has_asked = any(answers) and not self._has_asked
        return self._has_asked

    def _forget_kept(self, now: float) -> None:
        keep = self._options.keep_exited_ms / 1000
        while self._kept and (
            len(self._kept) > self._options.keep_exited or next(iter(self._kept.values())).expires_at + keep <= now
        ):
            process = self._kept.popitem(last=False)[1]
            if process.id in self._lingering:
                self._release(process)
            del self._processes[process.id]
            self.free_key(process)

    def _schedule(self) -> None:
        dues = [
            next(iter(table.values())).expires_at + life / 1000
            for table, life in ((self._lingering, self._options.linger_ms), (self._kept, self._options.keep_exited_ms))
            if table
        ]
        if self._read and self._are_many():
            dues.append(self._look_at)
        if not dues or (self._timer is not None and self._due <= min(dues)):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = min(dues)
        self._timer = self._loop.call_at(self._due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._enforce()


def unknown_process(process_id: str) -> InvalidState:
    """For an id that is no process's."""
    return InvalidState(f"no process {process_id!r}; it never was, or its record has expired", "unknown_process")
