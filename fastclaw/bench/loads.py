"""What one operation is: calls to a runtime and what is seen on its sockets, each stage timed, each answer judged.

Nothing is believed of a runtime: an answer of another shape than the contract's is a failure with a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from fastclaw import bench_limits
from fastclaw.bench.recorder import Ended, Failed
from fastclaw.bench.streams import Stream
from fastclaw.options import HostOptions, Options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastclaw.bench.calls import Calls
    from fastclaw.bench.job import Job, LoadName

_CAT = ["cat"]
_HELLO = ["echo", "hello"]
_OF_ALL = set(HostOptions.__struct_fields__) - set(Options.__struct_fields__)
"""Options of `initialize` that no environment has by itself."""

_STARTED_AT_ONCE = 64
"""Processes of `hold` that are started together: as many as a runtime of ours starts at a time."""


class Load(ABC):
    """One kind of operation, on one runtime.

    Parameters:
        calls: the runtime, initialized.
        offered: its capabilities.

    Attributes:
        needs: capabilities without which it cannot be.
        sockets: that were handed out, the last ones.
        containers: that were told of, the last ones.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, calls: Calls, job: Job, offered: Iterable[str]) -> None:
        self.calls = calls
        self.job = job
        self.offered = frozenset(offered)
        self.sockets: deque[str] = deque(maxlen=bench_limits.BENCH_SOCKETS)
        self.containers: deque[str] = deque(maxlen=bench_limits.BENCH_ENVIRONMENTS)

    async def begin(self) -> None:  # noqa: B027 - most need nothing
        """What there has to be before the first operation.

        Raises:
            Failed: it cannot be had.
        """

    @abstractmethod
    async def once(self, slot: int) -> Ended:
        """One operation.

        Parameters:
            slot: a number that no other operation has at the same time, the least there is.

        Raises:
            Failed: with the reason.
        """

    async def end(self) -> None:  # noqa: B027 - most have made nothing
        """Take back what `begin` has made, as far as the runtime lets it."""

    async def exec(self, params: bytes) -> tuple[int, str, str, str]:
        """Start a process: when that was answered, its id, and its two sockets."""
        arrived, result = await self.calls.result("exec", params)
        told = [result.get(name) for name in ("process_id", "stdio_addr", "stderr_addr")]
        if not all(isinstance(value, str) and value for value in told):
            raise Failed("wrong_result")
        process_id, stdio, stderr = map(str, told)
        self.sockets += (stdio, stderr)
        return arrived, process_id, stdio, stderr

    async def connect(self, address: str) -> Stream:
        """A connection with a process's socket."""
        return await Stream.connect(address, self.job.deadline_ms)


class Exec(Load):
    """`exec`, then `wait`; of a runtime without `wait`, the end of both streams instead."""

    def __init__(self, calls: Calls, job: Job, offered: Iterable[str]) -> None:
        super().__init__(calls, job, offered)
        self._params = orjson.dumps({"cmd": job.cmd, "stdin": False})
        self._waits = "wait" in self.offered

    async def once(self, slot: int) -> Ended:
        began = time.monotonic_ns()
        started, process_id, stdio, stderr = await self.exec(self._params)
        timings = None
        if self._waits:
            ended, record = await self.calls.result("wait", b'{"process_id":%b}' % orjson.dumps(process_id))
            must_be_good(record)
            timings = record.get("timings")
        else:
            ended = await self._streams_ended(stdio, stderr)
        return Ended(ended, (("exec", started - began), ("wait", ended - started)), timings)

    async def _streams_ended(self, *addresses: str) -> int:
        streams: list[Stream] = []
        try:
            for address in addresses:
                stream = await self.connect(address)
                streams.append(stream)
                stream.write_eof()
            return max([await stream.end() for stream in streams])
        finally:
            for stream in streams:
                stream.close()


class Run(Load):
    """`run`: one call for one command."""

    needs = ("run",)

    def __init__(self, calls: Calls, job: Job, offered: Iterable[str]) -> None:
        super().__init__(calls, job, offered)
        self._params = orjson.dumps({"cmd": job.cmd})

    async def once(self, slot: int) -> Ended:
        ended, record = await self.calls.result("run", self._params)
        must_be_good(record)
        return Ended(ended, timings=record.get("timings"))


class Held:
    """A process that is held; runtimes that lie may call two by the same id."""

    def __init__(self, process_id: str) -> None:
        self.process_id = process_id
        self.stream: Stream | None = None


class Hold(Load):
    """Processes that are held, and a ping-pong with one of them over its socket."""

    def __init__(self, calls: Calls, job: Job, offered: Iterable[str]) -> None:
        super().__init__(calls, job, offered)
        self._free: asyncio.Queue[Held | None] = asyncio.Queue()
        self._held: set[Held] = set()
        self._ping = os.urandom(bench_limits.BENCH_PING_BYTES // 2).hex().encode()[:-1] + b"\n"

    async def begin(self) -> None:
        for first in range(0, self.job.live, _STARTED_AT_ONCE):
            count = min(_STARTED_AT_ONCE, self.job.live - first)
            started = await asyncio.gather(*(self._start() for _ in range(count)), return_exceptions=True)
            for held in started:
                if isinstance(held, BaseException):
                    raise held
                self._free.put_nowait(held)

    async def _start(self) -> Held:
        _, process_id, stdio, _ = await self.exec(orjson.dumps({"cmd": _CAT}))
        held = Held(process_id)
        self._held.add(held)
        held.stream = await self.connect(stdio)
        return held

    async def once(self, slot: int) -> Ended:
        """Ping one that is free; in the place of one that failed there is another, or None where there is none."""
        held = await self._free.get()
        try:
            if held is None:
                held = await self._start()
            assert held.stream is not None
            return Ended(await held.stream.echo(self._ping))
        except Failed:
            held = await self._instead_of(held)
            raise
        finally:
            self._free.put_nowait(held)

    async def _instead_of(self, failed: Held | None) -> Held | None:
        try:
            if failed is not None:
                await self._end(failed)
            return await self._start()
        except Failed:
            return None

    async def end(self) -> None:
        await asyncio.gather(*(self._end(held) for held in list(self._held)))

    async def _end(self, held: Held) -> None:
        self._held.discard(held)
        if held.stream is not None:
            held.stream.close()
        with contextlib.suppress(Failed):
            await self.calls.result("kill", orjson.dumps({"process_id": held.process_id, "grace_ms": 0}))


class Environments(Load):
    """`environment_start`, a command in it up to its first byte, `environment_stop`."""

    needs = ("environments",)

    def __init__(self, calls: Calls, job: Job, offered: Iterable[str]) -> None:
        super().__init__(calls, job, offered)
        options = {name: value for name, value in job.options.items() if name not in _OF_ALL}
        self._options = orjson.dumps(options)
        self._names = itertools.count(1)
        self._up: set[str] = set()

    async def once(self, slot: int) -> Ended:
        name = f"bench-{next(self._names)}"
        self._up.add(name)
        began = time.monotonic_ns()
        try:
            started = await self._start(name)
            first = await self._first_byte(name)
        except Failed:
            with contextlib.suppress(Failed):
                await self._stop(name)
            raise
        stopped = await self._stop(name)
        stages = (("start", started - began), ("first byte", first - started), ("stop", stopped - first))
        return Ended(stopped, stages)

    async def _start(self, name: str) -> int:
        params = b'{"environment":"%b","options":%b}' % (name.encode(), self._options)
        arrived, welcome = await self.calls.result("environment_start", params)
        if welcome.get("environment") != name:
            raise Failed("wrong_result")
        if isinstance(welcome.get("container"), str):
            self.containers.append(welcome["container"])
        return arrived

    async def _first_byte(self, name: str) -> int:
        _, _, stdio, _ = await self.exec(orjson.dumps({"environment": name, "cmd": _HELLO, "stdin": False}))
        stream = await self.connect(stdio)
        try:
            return await stream.first_byte()
        finally:
            stream.close()

    async def _stop(self, name: str) -> int:
        arrived, _ = await self.calls.result("environment_stop", orjson.dumps({"environment": name}))
        self._up.discard(name)
        return arrived

    async def end(self) -> None:
        """Those of operations that were cut off or given up may be there, or on their way."""
        await asyncio.gather(*(self._stop(name) for name in self._up), return_exceptions=True)


class Files(Load):
    """`write_file` and `read_file` of a file, whose content is compared."""

    needs = ("files",)

    def __init__(self, calls: Calls, job: Job, offered: Iterable[str]) -> None:
        super().__init__(calls, job, offered)
        self._directory = f"/tmp/fastclaw-bench-{os.urandom(8).hex()}"
        self._text = os.urandom(job.size // 2 + 1).hex()[: job.size]
        self._text_json = orjson.dumps(self._text)

    async def once(self, slot: int) -> Ended:
        began = time.monotonic_ns()
        path = orjson.dumps(f"{self._directory}/{slot}")
        written, _ = await self.calls.result(
            "write_file", b'{"path":%b,"parents":true,"text":%b}' % (path, self._text_json)
        )
        read, result = await self.calls.result("read_file", b'{"path":%b,"limit":%d}' % (path, max(self.job.size, 1)))
        if result.get("text") != self._text:
            raise Failed("wrong_bytes")
        return Ended(read, (("write", written - began), ("read", read - written)))

    async def end(self) -> None:
        with contextlib.suppress(Failed):
            if "file_helper" in self.offered:
                await self.calls.result("remove", orjson.dumps({"path": self._directory, "recursive": True}))
            elif "run" in self.offered:
                await self.calls.result("run", orjson.dumps({"cmd": ["rm", "-r", self._directory]}))


def must_be_good(record: dict[str, Any]) -> None:
    """Raise `Failed` unless the command of an exit record has exited with 0 by itself."""
    code, reason = record.get("exit_code", ""), record.get("reason")
    if type(code) is int and code == 0 and reason == "exited":
        return
    signum = record.get("signal")
    if reason == "signaled" and type(signum) is int:
        raise Failed(f"signal {signum}")
    if reason == "exited" and type(code) is int:
        raise Failed(f"exit code {code}")
    is_known = isinstance(reason, str) and reason in ("killed", "timeout", "oom", "container_gone", "unknown")
    raise Failed(str(reason) if is_known else "wrong_result")


LOADS: dict[LoadName, type[Load]] = {
    "exec": Exec,
    "run": Run,
    "hold": Hold,
    "environments": Environments,
    "files": Files,
}
