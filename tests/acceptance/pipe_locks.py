"""Holders of pipes in a served runtime, on every lane: compiled, started, and what must go on while they hold.

Knows the words of pipe_locks.c, no test. Every holder lets go by itself after `HOLD_S`, and is killed from the host's
side when a test is over, so that a runtime that fell asleep wakes up again and the next test has one.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from fastclaw import limits
from fastclaw.client import RemoteProcess, RuntimeClient
from tests.acceptance.hostile import OWNER, a_workspace, need_root_for
from tests.acceptance.leftovers import LOOK_S, TOKEN, asleep, end_programs, nothing_left, socket_directories
from tests.acceptance.slow_files import mounts_of, slow_files
from tests.pids import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from fastclaw.runtime import ExitRecord
    from tests.engine_fixtures import EngineService

HOLD_S = 20
"""Of each hold: longer than any deadline here, and than all that a runtime does before it gives up."""
HEALTH_S = 1.0
"""For an answer to `health`: it takes a millisecond."""
ACT_S = limits.TREE_DEADLINE_MS / 1000
"""For a start, a kill, the end of a stream: each takes milliseconds, on the REST lane tenths of a second."""
WAIT_S = 20
"""For a word of a program that was started: the rest is room for a loaded machine."""
SHUTDOWN_S = (limits.SHUTDOWN_TIMEOUT_MS + limits.FINAL_FLUSH_MS) / 1000
"""For a shutdown, by the runtime's own word: it takes tenths of a second."""
LINGER_MS = 300
"""So that a stream that nobody reads is dealt with while it is held."""

SERVE = "from fastclaw import limits; limits.EXECS_PER_CONTAINER = 10**6; from fastclaw.cli.main import main; main()"
"""The product, but on the REST lane no container takes over from another: neighbours stay neighbours."""

WORKER = """
import os, signal, socket, sys
program, report, seconds, stream, token = sys.argv[1:]
open("/proc/self/comm", "w").write(token)
signal.alarm(int(seconds))
ours, theirs = socket.socketpair()
fd = int(stream)
end = os.open("/proc/self/fd/0", os.O_WRONLY) if fd == 0 else fd
os.posix_spawn(program, [program, "watch", report, seconds, stream], os.environ)
os.write(end, b"x")
if fd:
    os.splice(ours.fileno(), fd, 1)
else:
    ours.setblocking(False)
    try:
        while True: ours.send(bytes(4096))
    except BlockingIOError:
        ours.setblocking(True)
    os.splice(0, ours.fileno(), 4096)
"""
"""The same in a template's worker, by its own interpreter: a program would be a worker no more."""


class Lane(NamedTuple):
    """A way to start processes.

    Parameters:
        directory: with the programs in it; `inside` is the same, as processes see it.
        user: theirs; None is the default one.
        options: of the runtime.
        slow: files in `directory`/slow answer late.
        closed: ways that the engine's own filter does not let in.
    """

    name: str
    directory: Path
    inside: str
    user: str | None
    options: dict[str, Any]
    slow: bool
    closed: tuple[str, ...] = ()


@contextmanager
def a_place() -> Iterator[Path]:
    """A directory with the programs in it, and an empty one for slow files."""
    with a_workspace("pipe_locks", "slow_file") as directory:
        (directory / "slow").mkdir()
        yield directory


@contextmanager
def local_lane(directory: Path) -> Iterator[Lane]:
    """Processes of this host, with templates of this Python."""
    template = {"py": {"cmd": [sys.executable, "-m", "fastclaw.template"]}}
    with slow_files(directory / "slow", HOLD_S) as slow:
        yield Lane("local", directory, str(directory), None, {"templates": template}, slow)


@contextmanager
def engine_lane(name: str, directory: Path, service: EngineService, user: str | None, **options: Any) -> Iterator[Lane]:
    """Processes of containers, all in one. In a user namespace no file is slow: it maps no directory with a mount."""
    chosen = {
        "url": service.url,
        "image": service.image,
        "lane": name,
        "containers": 1,
        "workspace": {"source": str(directory), "target": "/w"},
        "user_namespace": "host",
        **options,
    }
    is_mapped = chosen["user_namespace"] == "private"
    need_root_for(chosen["user_namespace"])
    if os.geteuid() == 0:
        os.chown(directory, *(OWNER if is_mapped else (0, 0)))
    mounts = mounts_of(service.run_dir)
    with nullcontext(False) if is_mapped else slow_files(directory / "slow", HOLD_S, mounts) as slow:
        yield Lane(name, directory, "/w", user, chosen, slow, ("io_uring", "vmsplice"))


class Unlucky(Exception):
    """This pipe cannot be held that way, but the next one is likely to be."""


class Report:
    """What a program says beside its streams: lines in a FIFO of the place."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        path.chmod(0o666)
        owner = path.parent.stat()  # nobody writes a file whose owner has no id in his user namespace
        os.chown(path, owner.st_uid, owner.st_gid)
        self.name = path.name
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # its own writer: it never ends
        self._text = b""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            self._text += os.read(self._fd, 4096)
            self._more.set()

    async def said(self, *words: str) -> str:
        """The rest of the next line that begins with one of these, or the line itself where the way is not open.

        Raises:
            Unlucky: see there.
        """
        async with asyncio.timeout(WAIT_S):
            while True:
                line = await self._line()
                assert not line.startswith(("failed", "not held", "let go")), line
                if line == "unlucky":
                    raise Unlucky
                if line.startswith("not available"):
                    return line
                if line.startswith(words):
                    return line.partition(" ")[2]

    async def _line(self) -> str:
        while b"\n" not in self._text:
            self._more.clear()
            await self._more.wait()
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        """Take it away."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._path.unlink()


class Site:
    """One lane's runtime with the programs in it; a new one where it does not answer any more.

    Parameters:
        lane: where they are, and how they are started.
    """

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.namespace = f"locks-{uuid.uuid4().hex[:8]}"
        self._client: RuntimeClient | None = None
        self._reports: list[Report] = []
        self._open: list[RemoteProcess] = []

    @property
    def client(self) -> RuntimeClient:
        """The runtime's; `come_up` was called."""
        assert self._client is not None
        return self._client

    async def come_up(self) -> None:
        """Start the runtime."""
        runtime = "podman" if "url" in self.lane.options else "local"
        command = [sys.executable, "-c", SERVE, "serve", "--runtime", runtime, "--log-level", "error"]
        options = {"linger_ms": LINGER_MS, **self.lane.options}
        self._client = await RuntimeClient.spawn(command, namespace=self.namespace, options=options).__aenter__()

    async def go_down(self) -> int | None:
        """End it in good order; its exit code."""
        client, self._client = self._client, None
        if client is None:
            return None
        await client.aclose()
        return client.exit_code

    async def shuts_down(self, by: str = "shutdown") -> None:
        """By that call or by `eof`, in time, and with exit code 0."""
        async with self.within(SHUTDOWN_S, by):
            if by == "eof":
                self.client.close_stdin()
            else:
                await self.client.shutdown()
            code = await self.client.exited(SHUTDOWN_S)
        assert code == 0, f"exit code {code}; in state D: {asleep()}"

    async def exit_code(self) -> int | None:
        """Of a runtime that is asked to go, or was."""
        if self.client.exit_code is None:
            await self.client.aclose()
        return self.client.exit_code

    # --- processes ---

    def report(self) -> Report:
        """A new one, which is closed with the test."""
        report = Report(self.lane.directory / f"{TOKEN}-{uuid.uuid4().hex[:8]}")
        self._reports.append(report)
        return report

    async def start(self, *cmd: str, **request: Any) -> RemoteProcess:
        """A command, as the lane's user unless another is asked for."""
        if self.lane.user is not None and "template" not in request:
            request.setdefault("user", self.lane.user)
        async with self.within(ACT_S, f"exec {cmd[0]}"):
            process = await self.client.exec(list(cmd), **request)
        self._open.append(process)
        return process

    async def program(self, word: str, report: Report | None, *arguments: object, **request: Any) -> RemoteProcess:
        """A word of pipe_locks.c."""
        return await self.start(*self.argv(word, report, *arguments), **request)

    def argv(self, word: str, report: Report | None, *arguments: object) -> list[str]:
        """The same as a command line."""
        inside = self.lane.inside
        path = "-" if report is None else f"{inside}/{report.name}"
        return [f"{inside}/pipe_locks", word, path, str(HOLD_S), *map(str, arguments)]

    async def hold(self, how: str, stream: int, who: str, *more: object) -> tuple[RemoteProcess, Report]:
        """Start one that holds a pipe."""
        report = self.report()
        if who == "worker":
            path, _, *rest = self.argv("", report, stream, TOKEN)
            return await self.start("python3", "-c", WORKER, path, *rest, template="py"), report
        env = {"SLOW_FILE": f"{self.lane.inside}/slow/page"} if self.lane.slow else {}
        return await self.program("hold", report, how, stream, who, *more, env=env), report

    # --- what must go on ---

    async def is_well(self) -> None:
        """`health` answers at once, a new command runs and is read, a timeout fires."""
        await self.is_healthy()
        await asyncio.gather(self.echoes(), self.times_out())
        await self.is_healthy()

    @asynccontextmanager
    async def within(self, seconds: float, what: str) -> AsyncIterator[None]:
        """Or a failure that says where the runtime sleeps."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise AssertionError(f"{what}: no answer within {seconds} s; in state D: {asleep()}") from None

    async def is_healthy(self) -> None:
        """`health` and `list` answer at once, who sleeps in a pipe or not."""
        async with self.within(HEALTH_S, "health"):
            await self.client.health()
        async with self.within(HEALTH_S, "list"):
            await self.client.list()

    async def stays_healthy(self, seconds: float) -> None:
        """All the while: beyond every pause after which a runtime does something by itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.is_healthy()
            await asyncio.sleep(LOOK_S)

    async def echoes(self) -> None:
        """A new command runs, and its streams are read to their ends."""
        process = await self.start("echo", "fine", stdin=False)
        async with self.within(ACT_S, "echo"):
            assert await process.communicate() == (b"fine\n", b"")
            assert (await process.wait()).exit_code == 0

    async def warms_up(self, count: int) -> None:
        """What a runtime makes once, and then has: for `count` starts at a time, and for input."""
        await asyncio.gather(*(self.echoes() for _ in range(count)))
        process = await self.start("cat")
        async with self.within(ACT_S, "cat"):
            assert await process.communicate(b"fine") == (b"fine", b"")

    async def times_out(self) -> None:
        """A timeout fires."""
        process = await self.start("sleep", "1000", stdin=False, timeout_ms=100)
        assert (await self.ended(process)).reason == "timeout"

    async def ended(self, process: RemoteProcess) -> ExitRecord:
        """Its record."""
        async with self.within(ACT_S + HEALTH_S, "wait"):
            record = await process.wait(int(ACT_S * 1000))
        assert record.state == "exited"
        return record

    async def is_killed(self, process: RemoteProcess, grace_ms: int = 0) -> ExitRecord:
        """A kill is answered in time, and then nothing of it is left."""
        async with self.within(ACT_S + grace_ms / 1000, "kill"):
            await process.kill(grace_ms)
        assert marked(process.id) == [], "kill says that it is gone"
        return await self.ended(process)

    async def sees_ends(self, process: RemoteProcess) -> None:
        """Its client reads both streams to their ends."""
        async with self.within(ACT_S, "the ends of the streams"):
            for read in (process.stdout_read, process.stderr_read):
                while await read():
                    pass

    # --- books ---

    async def release(self) -> None:
        """Nothing of a test is left, whatever came of it."""
        end_programs()
        for process in self._open:
            await process.aclose()
        for report in self._reports:
            report.close()
        self._open, self._reports = [], []

    async def settle(self) -> None:
        """After a test: the same, and there is a runtime that answers."""
        await self.release()
        if self._client is None or not await self._answers():
            await self.go_down()
            await self.come_up()

    async def _answers(self) -> bool:
        with suppress(Exception):
            async with asyncio.timeout(ACT_S):
                await self.client.health()
                live = [one.process_id for one in await self.client.list() if one.state == "running"]
                await asyncio.gather(*(self.client.kill(process_id, 0) for process_id in live))
                return True
        return False

    async def descriptors(self) -> int:
        """Of the runtime, as soon as they are as few as they get: what ended a moment ago is still being closed."""
        path, fewest = f"/proc/{self.client.pid}/fd", sys.maxsize
        end = time.monotonic() + 2 * LINGER_MS / 1000
        while time.monotonic() < end:
            fewest = min(fewest, len(os.listdir(path)))
            await asyncio.sleep(LOOK_S)
        return fewest


@asynccontextmanager
async def a_site(lane: Lane) -> AsyncIterator[Site]:
    """A runtime that is brought up, and ended whatever happened."""
    site = Site(lane)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(site.go_down)
        stack.push_async_callback(site.release)
        await site.come_up()
        yield site


@asynccontextmanager
async def a_site_that_leaves_nothing(lane: Lane) -> AsyncIterator[Site]:
    """The same, which ends in good order unless the block failed, and is then looked for."""
    sockets = socket_directories()
    async with a_site(lane) as site:
        yield site
        assert await site.exit_code() == 0, asleep()
        await nothing_left(sockets, site.namespace, lane.options.get("url"))
