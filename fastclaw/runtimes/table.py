"""All processes of a runtime: who lives, who lingers, whose record is kept, and until when.

Each stage after the exit is first in, first out with one common time to live, so every step is O(1) and one timer
serves all.
"""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Iterator

from fastclaw import limits
from fastclaw.decisions.options import Options
from fastclaw.errors import InvalidState
from fastclaw.runtimes.process import Process


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
        self._kept: OrderedDict[str, Process] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._processes.values()))

    def live(self) -> list[Process]:
        """Those whose command has not ended."""
        return list(self._live.values())

    def counts(self) -> dict[str, int]:
        """For `health`."""
        return {"live": len(self._live), "lingering": len(self._lingering), "kept": len(self._kept)}

    def add(self, process: Process) -> None:
        """A process that was just started."""
        self._processes[process.id] = process
        self._live[process.id] = process
        if process.request.key is not None:
            self._by_key[process.request.key] = process

    def find(self, process_id: str) -> Process:
        """Raises InvalidState: `unknown_process`."""
        process = self._processes.get(process_id)
        if process is None:
            raise InvalidState(f"no process {process_id!r}; it never was, or its record has expired", "unknown_process")
        return process

    def with_key(self, key: str) -> Process | None:
        """The process of an earlier exec with this key, while its record is kept."""
        return self._by_key.get(key)

    def exited(self, process: Process) -> None:
        """Its command has ended: sockets linger, the record is kept."""
        del self._live[process.id]
        process.expires_at = self._loop.time()
        self._lingering[process.id] = process
        self._kept[process.id] = process
        if process.is_drained:
            self.drained(process)
        self._enforce_soon()

    def drained(self, process: Process) -> None:
        """Clients have both streams to the end: a process that has ended needs its sockets no more."""
        if not process.is_running:
            self._lingering.pop(process.id, None)
            process.close_sockets()

    def close(self) -> None:
        """Forget everything; close what is still open, whatever its state."""
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        for process in self._processes.values():
            process.give_up()
        for table in (self._processes, self._by_key, self._live, self._lingering, self._kept):
            table.clear()

    # --- bounds ---

    def _enforce_soon(self) -> None:
        """Whoever waits for this exit is answered first: closing what others have left takes as long as all else."""
        if self._soon is None:
            self._soon = self._loop.call_later(limits.ENFORCE_DELAY_MS / 1000, self._on_soon)

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
        while self._lingering and next(iter(self._lingering.values())).expires_at + linger <= now:
            self._lingering.popitem(last=False)[1].close_sockets()
        while len(self._lingering) > self._options.max_lingering:
            self._lingering.pop(self._dispensable().id).close_sockets()

    def _dispensable(self) -> Process:
        """The oldest without output to read, among the oldest few; else the oldest."""
        oldest = itertools.islice(self._lingering.values(), limits.DISPENSABLE_SCAN)
        empty = (process for process in oldest if not process.has_pending_output())
        return next(empty, None) or next(iter(self._lingering.values()))

    def _forget_kept(self, now: float) -> None:
        keep = self._options.keep_exited_ms / 1000
        while self._kept and (
            len(self._kept) > self._options.keep_exited or next(iter(self._kept.values())).expires_at + keep <= now
        ):
            process = self._kept.popitem(last=False)[1]
            if process.id in self._lingering:
                del self._lingering[process.id]
                process.close_sockets()
            del self._processes[process.id]
            if process.request.key is not None:
                del self._by_key[process.request.key]

    def _schedule(self) -> None:
        dues = [
            next(iter(table.values())).expires_at + life / 1000
            for table, life in ((self._lingering, self._options.linger_ms), (self._kept, self._options.keep_exited_ms))
            if table
        ]
        if not dues or (self._timer is not None and self._timer.when() <= min(dues)):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(dues), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._enforce()
