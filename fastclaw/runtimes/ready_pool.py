"""Sandboxes that are up before anybody asks for them: so many of a kind, made again behind those that are taken.

Owns the sandboxes until they are taken, and the tasks that make and close them. What the host bears is decided by
`why_no_more`, on facts that it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fastclaw import environment_limits, limits
from fastclaw.errors import FastclawError
from fastclaw.linux.helper import pause_s
from fastclaw.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastclaw.options import PoolKind
    from fastclaw.processes.admission import HostRoom
    from fastclaw.runtimes.sandbox import Sandbox, SandboxFactory

logger = logging.getLogger(__name__)

_OF_PROCESSES = frozenset(
    {
        "runtime",
        "lifetime_ms",
        "max_processes",
        "queue_limit",
        "queue_timeout_ms",
        "kill_grace_ms",
        "shutdown_timeout_ms",
        "keep_exited_ms",
        "keep_exited",
        "linger_ms",
        "max_lingering",
        "start_timeout_ms",
    }
)
"""Options that a sandbox does not depend on: one that is ready fits whatever they are. Which `runtime` was chosen is
known apart from them."""

_DECIDING = tuple(name for name in Options.__struct_fields__ if name not in _OF_PROCESSES)


class HostLoad(NamedTuple):
    """How full this host is.

    Parameters:
        memory_bytes, available_bytes: of memory: all, and what can be had without swapping.
        tasks, max_tasks: processes and threads that there are, and that there can be.
    """

    memory_bytes: int
    available_bytes: int
    tasks: int
    max_tasks: int


def why_no_more(load: HostLoad, making: int) -> str | None:
    """Why no further sandbox is made ready now, in one line; None where one more can be borne.

    Parameters:
        making: how many are on their way.
    """
    left = load.available_bytes - (making + 1) * environment_limits.MEMORY_PER_ENVIRONMENT
    if left < load.memory_bytes * environment_limits.POOL_MEMORY_PERCENT // 100:
        return f"{load.available_bytes // limits.MIB} MiB of memory are left"
    left = load.max_tasks - load.tasks - (making + 1) * environment_limits.PIDS_PER_ENVIRONMENT
    if left < load.max_tasks * environment_limits.POOL_PIDS_PERCENT // 100:
        return f"there are {load.tasks} of {load.max_tasks} processes"
    return None


def host_load(proc: Path = Path("/proc")) -> HostLoad:
    """This host's, by proc(5)."""
    lines = (line.split() for line in (proc / "meminfo").read_text(encoding="ascii").splitlines())
    memory = {words[0]: int(words[1]) * limits.KIB for words in lines if words[0] in ("MemTotal:", "MemAvailable:")}
    tasks = (proc / "loadavg").read_text(encoding="ascii").split()[3].partition("/")[2]
    most = min(int((proc / "sys/kernel" / name).read_text(encoding="ascii")) for name in ("pid_max", "threads-max"))
    return HostLoad(memory["MemTotal:"], memory["MemAvailable:"], int(tasks), most)


class _Kind:
    """One kind of sandbox.

    Attributes:
        ready: those that are up, the oldest first.
        making: how many are on their way.
        why: why the last one could not be had.
        failures: in a row.
        not_before: when the next one may be made, in the loop's time.
    """

    def __init__(self, runtime: str, options: Options, size: int) -> None:
        self.runtime, self.options, self.size = runtime, options, size
        self.ready: deque[Sandbox] = deque()
        self.making = 0
        self.why: str | None = None
        self.failures = 0
        self.not_before = 0.0

    def health(self) -> dict[str, Any]:
        trouble = {} if self.why is None else {"trouble": self.why}
        image = {} if self.options.image is None else {"image": self.options.image}
        return {**image, "size": self.size, "ready": len(self.ready), "starting": self.making, **trouble}


class ReadyPool:
    """Ready sandboxes by kind.

    Parameters:
        factory: gives the factory of a runtime's sandboxes.
        room: descriptors, as for environments.
        load: tells how full the host is.

    Attributes:
        starting: how many are being made for callers that wait: these go first.
    """

    def __init__(
        self, factory: Callable[[str], SandboxFactory], room: HostRoom, load: Callable[[], HostLoad] = host_load
    ) -> None:
        self._factory, self._room, self._load = factory, room, load
        self._kinds: dict[bytes, _Kind] = {}
        self._makers: set[asyncio.Task[None]] = set()
        self._closers: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._why: str | None = None
        self._closed = False
        self.starting = 0

    def __repr__(self) -> str:
        ready = sum(len(kind.ready) for kind in self._kinds.values())
        return f"<ReadyPool {ready} ready of {len(self._kinds)} kinds>"

    def keep(self, kinds: list[tuple[str, PoolKind]]) -> None:
        """Keep these from now on. What is ready of a kind that stays, stays; the rest is closed behind.

        Parameters:
            kinds: each with the name of its runtime.
        """
        before, self._kinds = self._kinds, {}
        for runtime, wanted in kinds:
            key = _key(runtime, wanted)
            if key not in self._kinds:
                self._kinds[key] = before.pop(key) if key in before else _Kind(runtime, wanted, 0)
            self._kinds[key].size = wanted.size
        for kind in (*before.values(), *self._kinds.values()):
            kept = kind.size if kind in self._kinds.values() else 0
            while len(kind.ready) > kept:
                self._discard(kind.ready.popleft())
        self._fill()

    async def take(self, runtime: str, options: Options) -> Sandbox | None:
        """One that is up and is as one would be that is made now; the caller owns it. None: there is none."""
        kind = self._kinds.get(_key(runtime, options)) if self._kinds else None
        if kind is None:
            return None
        while kind.ready:
            sandbox = kind.ready.popleft()
            try:
                fits = sandbox.is_alive and await sandbox.is_fresh()
            except BaseException:
                self._discard(sandbox)
                self._fill()
                raise
            if fits:
                self._room.let_go(environment_limits.FILES_PER_ENVIRONMENT)
                self._fill()
                return sandbox
            self._discard(sandbox)
        self._fill()
        return None

    # --- refill ---

    def _fill(self) -> None:
        """Make as many as are missing and the host bears; look again where it bears no more."""
        if self._closed:
            return
        self._why = None
        now = self._loop.time()
        later: list[float] = []
        for kind in self._kinds.values():
            while len(kind.ready) + kind.making < kind.size and self._why is None:
                if kind.not_before > now:
                    later.append(kind.not_before)
                    break
                making = sum(one.making for one in self._kinds.values())
                if making >= (environment_limits.POOL_STARTING if not self.starting else 1):
                    return  # the end of one that is on its way calls again
                self._why = why_no_more(self._load(), making)
                if self._why is None:
                    kind.making += 1
                    self._own(self._make(kind), self._makers)
        if self._why is not None:
            later.append(now + environment_limits.POOL_LOOK_MS / 1000)
        if later:
            self._look_at(min(later))

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._fill)

    async def _make(self, kind: _Kind) -> None:
        try:
            self._room.hold(environment_limits.FILES_PER_ENVIRONMENT)
            try:
                sandbox = self._factory(kind.runtime).make(kind.options)
                await sandbox.start()
            except BaseException:
                self._room.let_go(environment_limits.FILES_PER_ENVIRONMENT)
                raise
        except FastclawError as error:
            kind.failures += 1
            kind.why, kind.not_before = str(error), self._loop.time() + pause_s(kind.failures)
            logger.warning("nothing is made ready for the pool: %s", kind.why)
        else:
            kind.failures, kind.why = 0, None
            kind.ready.append(sandbox)
        finally:
            kind.making -= 1
        while len(kind.ready) > (kind.size if kind in self._kinds.values() else 0):
            self._discard(kind.ready.popleft())
        self._fill()

    def _discard(self, sandbox: Sandbox) -> None:
        self._own(self._close(sandbox), self._closers)

    async def _close(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.aclose()
        except FastclawError as error:  # the next `initialize` of the namespace removes it
            logger.warning("%r is not removed: %s", sandbox, str(error))
        finally:
            self._room.let_go(environment_limits.FILES_PER_ENVIRONMENT)
            self._room.serve()

    def _own(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = self._loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    # --- for health, and the end ---

    def health(self) -> dict[str, Any]:
        """For `health.details.pool`: each kind, and why it is not filled up."""
        waiting = {} if self._why is None else {"waits": self._why}
        return {"kinds": [kind.health() for kind in self._kinds.values()], **waiting}

    async def aclose(self) -> None:
        """Close all that are ready, and what is on its way. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._makers):
            task.cancel()
        await asyncio.gather(*self._makers, return_exceptions=True)
        for kind in self._kinds.values():
            while kind.ready:
                self._discard(kind.ready.popleft())
        await asyncio.gather(*self._closers)


def _key(runtime: str, options: Options) -> bytes:
    return msgspec.json.encode([runtime, *(getattr(options, name) for name in _DECIDING)])
