"""What checks stand on: sessions with the runtime, processes with their sockets, and what is seen from outside.

Owns the sessions of one run. Knows no promise.
"""

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastclaw import limits
from fastclaw.client.child import Stderr
from fastclaw.client.remote_process import Channel
from fastclaw.conformance.vocabulary import Vocabulary
from fastclaw.conformance.wire import Broken, NotOffered, Wire, expect, refused


class Process:
    """A process in the runtime under check, and the checker's connections to it."""

    def __init__(self, session: "Session", answer: dict[str, Any]) -> None:
        expect(
            all(
                isinstance(answer.get(key), str) and answer[key] for key in ("process_id", "stdio_addr", "stderr_addr")
            ),
            f"exec answered {answer}",
        )
        self.id: str = answer["process_id"]
        self.stdio_addr: str = answer["stdio_addr"]
        self.stderr_addr: str = answer["stderr_addr"]
        self._session = session
        self._channels: list[Channel] = []

    async def stdio(self) -> Channel:
        """A new connection to stdin and stdout."""
        return await self._connect(self.stdio_addr)

    async def stderr(self) -> Channel:
        """A new connection to stderr."""
        return await self._connect(self.stderr_addr)

    async def _connect(self, path: str) -> Channel:
        channel = await Channel.connect(path)
        self._channels.append(channel)
        return channel

    async def outputs(self, data: bytes = b"") -> tuple[bytes, bytes]:
        """Send `data`, half-close, and read both streams to their ends."""
        stdio, stderr = await self.stdio(), await self.stderr()
        async with asyncio.TaskGroup() as group:
            group.create_task(_pour(stdio, data))
            out, err = group.create_task(drain(stdio)), group.create_task(drain(stderr))
        return out.result(), err.result()

    async def wait(self, **params: Any) -> dict[str, Any]:
        """The runtime's answer to `wait`."""
        answer: dict[str, Any] = await self._session.result("wait", {"process_id": self.id, **params})
        return answer

    async def kill(self, **params: Any) -> Any:
        """The runtime's answer to `kill`."""
        return await self._session.result("kill", {"process_id": self.id, **params})

    def leave(self) -> None:
        """Close every connection."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()


class Session:
    """One runtime child; its answers unpacked."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.welcome: dict[str, Any] = {}
        self._processes: list[Process] = []
        self._ran: list[str] = []

    def needs(self, capability: str) -> None:
        """For a check that stands on more than the capability of its promise.

        Raises:
            NotOffered: the runtime does not report it.
        """
        if capability not in self.welcome.get("capabilities", []):
            raise NotOffered(f"cannot be seen without {capability!r}")

    async def initialize(self, namespace: str, options: dict[str, Any]) -> None:
        """Bring the environment up.

        Raises:
            Broken: the runtime refuses.
        """
        request_id = self.wire.post("initialize", {"namespace": namespace, "options": options})
        answer = await self.wire.answer(request_id, limits.CLIENT_INITIALIZE_MS)
        if "error" in answer:
            error = answer["error"]
            raise Broken(f"initialize failed: {error.get('message', error) if isinstance(error, dict) else error}")
        expect(isinstance(answer.get("result"), dict), f"initialize answered {answer.get('result', answer)!r}")
        self.welcome = answer["result"]

    async def result(self, method: str, params: Any = None) -> Any:
        """What a call answers.

        Raises:
            Broken: it is an error.
        """
        answer = await self.wire.request(method, params)
        expect("result" in answer, f"{method} answered {answer.get('error')}")
        return answer["result"]

    async def error(self, method: str, params: Any, code: int, reason: str | None = None) -> dict[str, Any]:
        """The error of a call that must fail in this way.

        Raises:
            Broken: it does not.
        """
        return refused(await self.wire.request(method, params), code, reason)

    async def exec(self, cmd: list[str], **params: Any) -> Process:
        """Start a process.

        Raises:
            Broken: the runtime refuses.
        """
        return await self.began(self.wire.post("exec", {"cmd": cmd, **params}))

    async def began(self, request_id: Any) -> Process:
        """The process of an `exec` that was posted.

        Raises:
            Broken: the runtime refuses.
        """
        answer = await self.wire.answer(request_id)
        expect(isinstance(answer.get("result"), dict), f"exec answered {answer.get('error', answer)}")
        process = Process(self, answer["result"])
        self._processes.append(process)
        return process

    async def run(self, cmd: list[str], timeout_ms: int | None = None, /, **params: Any) -> dict[str, Any]:
        """What `run` answers.

        Parameters:
            timeout_ms: within which it must; None is `limits.CHECK_ANSWER_MS`.

        Raises:
            Broken: it is an error, or does not come.
        """
        return await self.ran(self.wire.post("run", {"cmd": cmd, **params}), timeout_ms)

    async def ran(self, request_id: Any, timeout_ms: int | None = None) -> dict[str, Any]:
        """What a `run` that was posted answers; what it left running ends with the check.

        Raises:
            Broken: it is an error, or does not come.
        """
        answer = await self.wire.answer(request_id, timeout_ms)
        result = answer.get("result")
        if not isinstance(result, dict) or not isinstance(result.get("process_id"), str):
            raise Broken(f"run answered {str(answer.get('error', result))[: limits.CHECK_ENTRY_CHARS]}")
        self._ran.append(result["process_id"])
        return result

    async def none_runs(self, cmd: list[str]) -> None:
        """Where the runtime can list, see that it lists no live process of this command.

        Raises:
            Broken: it does.
        """
        if "list" in self.welcome.get("capabilities", []):
            rows = (await self.result("list"))["processes"]
            left = [row for row in rows if row["cmd"] == cmd and row["state"] == "running"]
            expect(not left, f"still there: {left}")

    async def tidy(self) -> None:
        """Leave every process's sockets and end what still runs."""
        processes, self._processes = self._processes, []
        ids, self._ran = [*(process.id for process in processes), *self._ran], []
        for process in processes:
            process.leave()
        if not self.wire.lost:
            for request_id in [self.wire.post("kill", {"process_id": name, "grace_ms": 0}) for name in ids]:
                await self.wire.answer(request_id)

    async def aclose(self) -> None:
        """End the session and its runtime."""
        for process in self._processes:
            process.leave()
        await self.wire.aclose()


_COUNT = itertools.count(1)


class Rig:
    """One run: the command under check, and a session that checks share where they do not break it."""

    def __init__(
        self, command: list[str], vocabulary: Vocabulary, options: dict[str, Any], stderr: Stderr = None
    ) -> None:
        self.words = vocabulary
        self._command = command
        self.options = options
        self._stderr = stderr
        self._shared: Session | None = None
        self._open: list[Wire] = []

    def namespace(self) -> str:
        """A namespace that nobody else on this host uses."""
        return f"check-{os.getpid()}-{next(_COUNT)}-{time.monotonic_ns() % 1_000_000}"

    def exchange(self) -> list[str]:
        """What went over the wires of the current check."""
        wires = [*reversed(self._open), *([self._shared.wire] if self._shared else [])]
        return next((list(wire.exchange) for wire in wires if wire.exchange), [])

    async def shared(self) -> Session:
        """The common initialized session, started anew where a check has ended it."""
        if self._shared is None or self._shared.wire.lost:
            await self.aclose()
            self._shared = await self._start(self.namespace(), {})
        return self._shared

    async def between_checks(self) -> None:
        """Forget the last check's exchange and end its processes."""
        self._open.clear()
        if self._shared is None:
            return
        try:
            await self._shared.tidy()
            self._shared.wire.exchange.clear()
            if await self._shared.wire.rest() or self._shared.wire.foul:
                await self.aclose()
        except Broken:
            await self.aclose()
        if self._shared is not None:
            self._shared.wire.exchange.clear()

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Session]:
        """A session of the check's own, not initialized."""
        session = Session(await Wire.start(self._command, self._stderr))
        self._open.append(session.wire)
        try:
            yield session
        finally:
            await session.aclose()

    @asynccontextmanager
    async def started(self, namespace: str | None = None, **options: Any) -> AsyncIterator[Session]:
        """A session of the check's own, initialized with further options."""
        async with self.fresh() as session:
            await session.initialize(namespace or self.namespace(), {**self.options, **options})
            yield session

    @asynccontextmanager
    async def with_options(self, **options: Any) -> AsyncIterator[Session]:
        """A session of the check's own with options that the runtime may not have.

        Raises:
            NotOffered: it has one of them not.
        """
        async with self.fresh() as session:
            try:
                await session.initialize(self.namespace(), {**self.options, **options})
            except Broken as error:
                if any(name in str(error) for name in options):
                    raise NotOffered(f"the runtime has no option {' or no '.join(options)}") from error
                raise
            yield session

    async def _start(self, namespace: str, options: dict[str, Any]) -> Session:
        session = Session(await Wire.start(self._command, self._stderr))
        self._open.append(session.wire)
        try:
            await session.initialize(namespace, {**self.options, **options})
        except BaseException:
            await session.aclose()
            raise
        return session

    async def aclose(self) -> None:
        """End the shared session."""
        session, self._shared = self._shared, None
        if session is not None:
            await session.aclose()

    def shell(self, script: str) -> list[str]:
        """argv that runs a shell script.

        Raises:
            NotOffered: this vocabulary has no shell.
        """
        if self.words.shell is None:
            raise NotOffered(f"the {self.words.name} vocabulary has no shell")
        return self.words.shell(script)


async def drain(channel: Channel) -> bytes:
    """Everything up to EOF."""
    chunks = []
    while chunk := await channel.read():
        chunks.append(chunk)
    return b"".join(chunks)


async def read_exactly(channel: Channel, count: int) -> bytes:
    """`count` bytes, or fewer where EOF comes first."""
    got = b""
    while len(got) < count and (chunk := await channel.read(count - len(got))):
        got += chunk
    return got


async def _pour(channel: Channel, data: bytes) -> None:
    await channel.write(data)
    channel.write_eof()


# --- What is seen from outside the protocol: paths and /proc ---


async def soon(what: str, holds: Callable[[], bool], timeout_ms: int = limits.CHECK_SOON_MS) -> None:
    """Look until it holds; for what sends no event.

    Raises:
        Broken: not within `timeout_ms`.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while not holds():
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not within {timeout_ms} ms")
        await asyncio.sleep(limits.CHECK_POLL_MS / 1000)


def bearers(token: str) -> list[int]:
    """Processes of this host, those in containers included, that have `token` in their command line."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _bears(entry, token)]


async def seen(token: str) -> None:
    """Look until a process with `token` is there.

    Raises:
        NotOffered: it is not, and so nothing can be said of its end.
    """
    try:
        await soon("the process is seen", lambda: bool(bearers(token)))
    except Broken as error:
        raise NotOffered("the processes cannot be seen from this host") from error


def _bears(entry: Path, token: str) -> bool:
    try:
        return token.encode() in (entry / "cmdline").read_bytes()
    except OSError:
        # It ended while we looked.
        return False


def existing(paths: Iterable[str]) -> list[str]:
    """Those of the paths that are there."""
    return [path for path in paths if Path(path).exists()]


async def must_be_seen(rig: Rig, session: Session) -> None:
    """Before a check says that something has ended too soon.

    Raises:
        NotOffered: not even what certainly lives can be seen from this host.
    """
    token = uuid.uuid4().hex
    await session.exec(rig.shell(f"sleep 300; : {token}"))
    await seen(token)
