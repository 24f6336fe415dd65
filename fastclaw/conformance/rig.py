"""What checks stand on: sessions with the runtime, processes with their sockets, and what is seen from outside.

Owns the sessions of one run. Knows no promise.

Also the vocabulary of the checks: argv templates of the commands that they run, by what those do.
"""

import asyncio
import hashlib
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from fastclaw import limits
from fastclaw.client.remote_process import Channel
from fastclaw.client.rpc import Stderr
from fastclaw.conformance.wire import INVALID_PARAMS, Broken, NotOffered, Wire, data_of, expect, refused


class Vocabulary(Struct, frozen=True, kw_only=True):
    """Commands of one kind of environment.

    Parameters:
        name: for the report.
        true: ends at once with 0, silently.
        cat: copies stdin to stdout until EOF.
        echo: writes its text and a newline to stdout.
        exit: ends with that code.
        sleep: runs for that many seconds, reads nothing.
        printenv: writes the variable's value and a newline.
        pwd: writes the working directory and a newline.
        stderr: writes its text to stderr; a newline may follow.
        out: writes that many bytes to stdout, `pattern` again and again, and ends.
        pattern: what `out` repeats.
        shell: runs a POSIX shell script; everything finer is built on it.
        directory: a directory that exists and is no program.
    """

    name: str
    true: list[str]
    cat: list[str]
    echo: Callable[[str], list[str]]
    exit: Callable[[int], list[str]]
    sleep: Callable[[int], list[str]]
    printenv: Callable[[str], list[str]]
    pwd: list[str]
    stderr: Callable[[str], list[str]]
    out: Callable[[int], list[str]]
    pattern: bytes
    shell: Callable[[str], list[str]] | None = None
    directory: str | None = None

    def written(self, count: int) -> bytes:
        """What `out(count)` writes."""
        return (self.pattern * (count // len(self.pattern) + 1))[:count]


def _sh(script: str, *words: str) -> list[str]:
    return ["sh", "-c", script, "sh", *words]


POSIX = Vocabulary(
    name="posix",
    true=["true"],
    cat=["cat"],
    echo=lambda text: _sh('printf "%s\\n" "$1"', text),
    exit=lambda code: _sh(f"exit {code}"),
    sleep=lambda seconds: ["sleep", str(seconds)],
    printenv=lambda name: _sh('eval "printf \\"%s\\\\n\\" \\"\\${$1-}\\""', name),
    pwd=_sh("pwd"),
    stderr=lambda text: _sh('printf "%s" "$1" >&2', text),
    out=lambda count: _sh('yes 0123456789 2>/dev/null | head -c "$1"', str(count)),
    pattern=b"0123456789\n",
    shell=_sh,
    directory="/",
)
"""sh, cat, true, sleep, yes, head -c; for trees also setsid, where it is there; for terminals tty and stty."""

MEMORY = Vocabulary(
    name="memory",
    true=["true"],
    cat=["cat"],
    echo=lambda text: ["echo", text],
    exit=lambda code: ["exit", str(code)],
    sleep=lambda seconds: ["sleep", str(seconds)],
    printenv=lambda name: ["printenv", name],
    pwd=["pwd"],
    stderr=lambda text: ["stderr", text],
    out=lambda count: ["out", str(count)],
    pattern=bytes(range(256)),
)
"""The built-in programs of the `memory` runtime: no shell, no directories, no users."""

VOCABULARIES = {vocabulary.name: vocabulary for vocabulary in (POSIX, MEMORY)}


# --- Scripts that leave something running ---


LEFT_BYTES = limits.MIB
"""More than a pipe and a socket hold."""


def leaves(token: str) -> str:
    """Leaves a session of its own that has `token` in its command line, from now on, and holds no stream.

    The shell waits for the end of what it substitutes, and so until what it leaves is that far.
    """
    return f": $(setsid sh -c 'exec >/dev/null 2>&1; sleep 300; : {token}' &); "


def outlives(token: str, after_s: int = 1) -> str:
    """Leaves such a session, with its token there some seconds later: proof that it has outlived the command."""
    return f"setsid sh -c 'sleep {after_s}; {becomes(token)}' >/dev/null 2>&1 & "


def becomes(token: str) -> str:
    """Gets the token into its command line; it is cut in two, so that none has it before this is reached."""
    return f'exec sh -c "sleep 300; : {token[:8]}""{token[8:]}" >/dev/null 2>&1'


def writes_on(witness: str, done: str, after_s: int = 0) -> str:
    """Says `up`, and leaves a writer of `LEFT_BYTES` to each stream and a witness.

    Parameters:
        witness: in the command line of a process that is there from the beginning and holds no stream.
        done: in the writer's command line once every byte was taken: not after SIGPIPE, not while it is held up.
        after_s: how long the writer waits before it begins.
    """
    write = f"head -c {LEFT_BYTES} /dev/zero"
    watch = f"sh -c 'sleep 300; : {witness}' >/dev/null 2>&1"
    return f"{watch} & (sleep {after_s}; {write} && {write} >&2 && {becomes(done)}) & echo up"


class Process:
    """A process in the runtime under check, and the checker's connections to it.

    Parameters:
        answer: of the exec that started it.
    """

    def __init__(self, session: "Session", answer: dict[str, Any]) -> None:
        told = [answer.get(key) for key in ("process_id", "stdio_addr", "stderr_addr")]
        expect(all(isinstance(value, str) and value for value in told), f"exec answered {answer}")
        self.id, self.stdio_addr, self.stderr_addr = map(str, told)
        self.paths = (Path(self.stdio_addr), Path(self.stderr_addr))
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

    def close(self) -> None:
        """Close every connection; the process lives on."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()


class Session(Wire):
    """A wire with its answers unpacked. An answer of another kind than asked for, or none, is `Broken`."""

    def __init__(self) -> None:
        super().__init__()
        self.welcome: dict[str, Any] = {}
        self._processes: list[Process] = []
        self._ran: list[str] = []

    def offers(self, capability: str) -> bool:
        """Whether the runtime reports it."""
        return capability in self.welcome.get("capabilities", [])

    def needs(self, capability: str) -> None:
        """For a check that stands on more than the capability of its promise.

        Raises:
            NotOffered: the runtime does not report it.
        """
        if not self.offers(capability):
            raise NotOffered(f"cannot be seen without {capability!r}")

    async def initialize(self, namespace: str, options: dict[str, Any]) -> None:
        """Bring the environment up."""
        request_id = self.post("initialize", {"namespace": namespace, "options": options})
        answer = await self.answer(request_id, limits.CLIENT_INITIALIZE_MS)
        if "error" in answer:
            error = answer["error"]
            raise Broken(f"initialize failed: {error.get('message', error) if isinstance(error, dict) else error}")
        expect(isinstance(answer.get("result"), dict), f"initialize answered {answer.get('result', answer)!r}")
        self.welcome = answer["result"]

    async def result(self, method: str, params: Any = None) -> Any:
        """What a call answers."""
        answer = await self.request(method, params)
        expect("result" in answer, f"{method} answered {answer.get('error')}")
        return answer["result"]

    async def error(self, method: str, params: Any, code: int, reason: str | None = None) -> dict[str, Any]:
        """The error of a call that must fail in this way."""
        return refused(await self.request(method, params), code, reason)

    async def rejects(self, method: str, params: Any, path: str) -> dict[str, Any]:
        """`error.data` of a call whose params are wrong; its `path` must be this one, or lead on from it."""
        data = data_of(await self.error(method, params, INVALID_PARAMS))
        named = str(data.get("path"))
        expect(named == path or named.startswith((f"{path}.", f"{path}[")), f"data.path is {named!r}, not {path!r}")
        return data

    async def exec(self, cmd: list[str], **params: Any) -> Process:
        """Start a process."""
        return await self.began(self.post("exec", {"cmd": cmd, **params}))

    async def began(self, request_id: Any) -> Process:
        """The process of an `exec` that was posted."""
        answer = await self.answer(request_id)
        expect(isinstance(answer.get("result"), dict), f"exec answered {answer.get('error', answer)}")
        process = Process(self, answer["result"])
        self._processes.append(process)
        return process

    async def ready(self, cmd: list[str], **params: Any) -> tuple[Process, Channel]:
        """Start a command and wait until it says `ready`; the process, and the connection on which it said so."""
        process = await self.exec(cmd, **params)
        stdio = await process.stdio()
        await read_exactly(stdio, len("ready\n"))
        return process, stdio

    async def record(self, cmd: list[str], **params: Any) -> dict[str, Any]:
        """How a command ends."""
        return await (await self.exec(cmd, **params)).wait()

    async def outputs(self, cmd: list[str], **params: Any) -> tuple[bytes, bytes]:
        """What a process without input writes to stdout and stderr."""
        return await (await self.exec(cmd, **params)).outputs()

    async def run(self, cmd: list[str], timeout_ms: int | None = None, /, **params: Any) -> dict[str, Any]:
        """What `run` answers.

        Parameters:
            timeout_ms: within which it must; None is `limits.CHECK_ANSWER_MS`.
        """
        return await self.ran(self.post("run", {"cmd": cmd, **params}), timeout_ms)

    async def ran(self, request_id: Any, timeout_ms: int | None = None) -> dict[str, Any]:
        """What a `run` that was posted answers; what it left running ends with the check."""
        answer = await self.answer(request_id, timeout_ms)
        result = answer.get("result")
        if not isinstance(result, dict) or not isinstance(result.get("process_id"), str):
            raise Broken(f"run answered {str(answer.get('error', result))[: limits.CHECK_ENTRY_CHARS]}")
        self._ran.append(result["process_id"])
        return result

    async def listed(self) -> dict[str, dict[str, Any]]:
        """The rows of `list` by process."""
        return {row["process_id"]: row for row in (await self.result("list"))["processes"]}

    async def running(self, cmd: list[str]) -> list[str]:
        """The live processes of this command that are listed."""
        rows = (await self.listed()).values()
        return [row["process_id"] for row in rows if (row["cmd"], row["state"]) == (cmd, "running")]

    async def none_runs(self, cmd: list[str]) -> None:
        """Where the runtime can list, see that it lists no live process of this command."""
        left = await self.running(cmd) if self.offers("list") else []
        expect(not left, f"still there: {left}")

    async def tidy(self) -> None:
        """Leave every process's sockets and end what still runs."""
        processes, self._processes = self._processes, []
        ids, self._ran = [*(process.id for process in processes), *self._ran], []
        for process in processes:
            process.close()
        if not self.lost:
            for request_id in [self.post("kill", {"process_id": name, "grace_ms": 0}) for name in ids]:
                await self.answer(request_id)

    async def aclose(self) -> None:
        """End the session and its runtime."""
        for process in self._processes:
            process.close()
        await super().aclose()


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
        self._ends_shared = AsyncExitStack()
        self._open: list[Session] = []

    def namespace(self) -> str:
        """A namespace that nobody else on this host uses."""
        return f"check-{os.getpid()}-{next(_COUNT)}-{time.monotonic_ns() % 1_000_000}"

    def exchange(self) -> list[str]:
        """What went over the wires of the current check."""
        wires = [*reversed(self._open), *([self._shared] if self._shared else [])]
        return next((list(wire.exchange) for wire in wires if wire.exchange), [])

    async def shared(self) -> Session:
        """The common initialized session, started anew where a check has ended it."""
        if self._shared is None or self._shared.lost:
            await self.aclose()
            self._shared = await self._ends_shared.enter_async_context(self.started())
        return self._shared

    async def between_checks(self) -> None:
        """Forget the last check's exchange and end its processes."""
        self._open.clear()
        if self._shared is None:
            return
        try:
            await self._shared.tidy()
            self._shared.exchange.clear()
            if await self._shared.rest() or self._shared.foul:
                await self.aclose()
        except Broken:
            await self.aclose()
        if self._shared is not None:
            self._shared.exchange.clear()

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Session]:
        """A session of the check's own, not initialized."""
        session = await Session.start(self._command, self._stderr)
        self._open.append(session)
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
            NotOffered: it does not have one of them.
        """
        async with self.fresh() as session:
            try:
                await session.initialize(self.namespace(), {**self.options, **options})
            except Broken as error:
                if any(name in str(error) for name in options):
                    raise NotOffered(f"the runtime has no option {' or no '.join(options)}") from error
                raise
            yield session

    async def aclose(self) -> None:
        """End the shared session."""
        self._shared = None
        await self._ends_shared.aclose()

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


async def drain_soon(*channels: Channel) -> list[bytes]:
    """Everything up to EOF of one channel after the other, all within `limits.CHECK_SOON_MS`."""
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        return [await drain(channel) for channel in channels]


async def read_exactly(channel: Channel, count: int) -> bytes:
    """`count` bytes, or fewer where EOF comes first."""
    got = b""
    while len(got) < count and (chunk := await channel.read(count - len(got))):
        got += chunk
    return got


async def echoed(channel: Channel, data: bytes) -> bytes:
    """What comes for `data`, at most as much."""
    await channel.write(data)
    return await read_exactly(channel, len(data))


def same(got: bytes, wanted: bytes) -> bool:
    """Whether they are equal, without a comparison that pytest or a report would print."""
    return len(got) == len(wanted) and hashlib.sha256(got).digest() == hashlib.sha256(wanted).digest()


async def _pour(channel: Channel, data: bytes) -> None:
    await channel.write(data)
    channel.write_eof()


# --- What is seen from outside the protocol: paths and /proc ---


async def soon(what: str, holds: Callable[[], bool | Awaitable[bool]], timeout_ms: int | None = None) -> None:
    """Look until it holds; for what sends no event.

    Parameters:
        timeout_ms: None is `limits.CHECK_SOON_MS`.

    Raises:
        Broken: not within that.
    """
    within_ms = limits.CHECK_SOON_MS if timeout_ms is None else timeout_ms
    deadline = time.monotonic() + within_ms / 1000
    while True:
        held = holds()
        if held if isinstance(held, bool) else await held:
            return
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not within {within_ms} ms")
        await asyncio.sleep(limits.CHECK_POLL_MS / 1000)


def bearers(token: str) -> list[int]:
    """Processes of this host, those in containers included, that have `token` in their command line."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _bears(entry, token)]


def _bears(entry: Path, token: str) -> bool:
    try:
        return token.encode() in (entry / "cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return False


def none_bears(token: str) -> None:
    """Raise `Broken` where a process with `token` is left."""
    left = bearers(token)
    expect(not left, f"processes are left: {left}")


async def seen(token: str, count: int = 1, within_ms: int | None = None) -> None:
    """Look until so many processes with `token` are there.

    Parameters:
        within_ms: as for `soon`.

    Raises:
        NotOffered: they are not, and so nothing can be said of their end.
    """
    try:
        await soon("they are seen", lambda: len(bearers(token)) >= count, within_ms)
    except Broken as error:
        raise NotOffered("the processes cannot be seen from this host") from error


async def has_written(witness: str, done: str) -> None:
    """After `writes_on` with these two: wait until all that was left behind is written.

    Raises:
        Broken: it is not, or the writer has ended meanwhile.
    """
    await seen(witness)
    await soon("what was left behind has written everything and lives", lambda: bool(bearers(done)))


async def must_be_seen(rig: Rig, session: Session) -> None:
    """Before a check says that something has ended too soon.

    Raises:
        NotOffered: not even what certainly lives can be seen from this host.
    """
    token = uuid.uuid4().hex
    await session.exec(rig.shell(f"sleep 300; : {token}"))
    await seen(token)


def existing(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that are there."""
    return [path for path in paths if path.exists()]
