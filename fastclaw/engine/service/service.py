"""A private Podman service that lives as long as its owner: started, proven ready, ended, gone.

    idle ── start() ──> running ── aclose() ──> idle        (a start() that fails closes it before it raises)
                         │    ^
              it ends by itself; another is started in the same place, at growing intervals

The service ends with fastclaw even when fastclaw is killed outright: the kernel signals it when the *thread* that made
it ends (prctl(2), PR_SET_PDEATHSIG), so it is started by the loop's thread. A janitor then removes the containers.
The same service may also outlive its command, for `fastclaw engine start|stop|status`. Knows nothing of images and
containers.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from fastclaw import engine_limits
from fastclaw.engine.container_spec import LABEL_OWNER
from fastclaw.engine.service import janitor_main
from fastclaw.engine.service.janitor import Janitor
from fastclaw.engine.service.plan import (
    JanitorOrder,
    ServicePaths,
    ServicePlan,
    bound_argv,
    daemon_argv,
    janitor_argv,
    podman_says,
    runtime_argv,
    service_env,
    tool_argv,
)
from fastclaw.engine.service.storage import (
    ENGINE_DIR,
    SOCKET_NAME,
    engine_variables,
    lock_file,
    private_directory,
    service_dir,
    service_paths,
)
from fastclaw.errors import StartFailed
from fastclaw.linux import proc
from fastclaw.linux.helper import Backoff, Child
from fastclaw.linux.packets import close_all
from fastclaw.linux.proc import identity, start_time, this_process
from fastclaw.linux.sockets import wait_readable

if TYPE_CHECKING:
    from fastclaw.linux.directories import HeldDirectory


logger = logging.getLogger(__name__)

PING = b"GET /libpod/_ping HTTP/1.0\r\nHost: d\r\n\r\n"
PING_OK = (b"HTTP/1.0 200", b"HTTP/1.1 200")


class ManagedService:
    """Podman's API on a socket of our own. A service that ends by itself is followed by another on the same socket.

    Parameters:
        plan: from `plan.plan_service`.
        state_dir: where images are kept (`storage.default_state_dir`).
        run_dir: where the socket goes (`storage.default_run_dir`); its path must be short.
        sockets: a directory of its owner's, which the janitor removes too where that is killed.

    Attributes:
        reserve: room that can be given up (`storage.keep_reserve`), once it has been started.
        in_doubt: one has ended by itself or had to be killed, or a call to it broke off: in the end the janitor removes
            what is left of that.
    """

    def __init__(self, plan: ServicePlan, state_dir: Path, run_dir: Path, sockets: Path | None = None) -> None:
        self.plan = plan
        self._sockets = sockets
        self._state_dir = state_dir
        self._run_dir = run_dir
        self._own_dir: HeldDirectory | None = None
        self._paths: ServicePaths | None = None
        self._process: ServiceProcess | None = None
        self._janitor: Janitor | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._is_up = asyncio.Event()
        self._backoff = Backoff(time.monotonic, forgiven=1)
        self._failure: str | None = None
        self._url: str | None = None
        self.reserve: Path | None = None
        self.in_doubt = False

    def __repr__(self) -> str:
        return f"<ManagedService {self._url or 'not running'}, pid {self.pid}>"

    @property
    def url(self) -> str:
        """`unix:///…` of the running service."""
        if self._url is None:
            raise RuntimeError("the service is not running")
        return self._url

    @property
    def pid(self) -> int | None:
        """Of the running service."""
        return self._process.child.pid if self._process else None

    @property
    def trouble(self) -> str | None:
        """What is wrong with it or its directory now, in one line."""
        gone = self._own_dir is not None and not self._own_dir.is_there()
        return "the directory of the engine's socket is gone: start fastclaw anew" if gone else self._failure

    async def start(self) -> None:
        """Start the service and return once it answers. Call from the thread that outlives it.

        Raises:
            StartFailed: `engine_unavailable` with the service's last words when it dies, `engine_timeout` when it does
                not answer within `engine_limits.ENGINE_READY_MS`. Nothing is left then.
        """
        self.in_doubt = False
        try:
            self._own_dir = own_dir = service_dir(self._run_dir)
            self._paths = paths = await asyncio.to_thread(
                service_paths, self._state_dir, self._run_dir, own_dir.path, self.plan
            )
            self.reserve = Path(paths.reserve)
            await self._launch(paths)
            self._url = f"unix://{paths.socket}"
            self._keeping = asyncio.get_running_loop().create_task(self._keep(paths))
        except BaseException:
            await self.aclose()
            raise

    async def _launch(self, paths: ServicePaths) -> None:
        """Start a service and return once it answers and its own janitor is armed; the one before is needed no more."""
        env = service_env(paths, engine_variables())
        self._process = process = ServiceProcess(bound_argv(self.plan, paths, os.getpid()), env)
        janitor: Janitor | None = None
        try:
            if self.plan.facts.python is not None:  # without one, the next `initialize` has to remove what is left
                order = self._order(paths, process.child.pid)
                janitor = Janitor(janitor_argv(self.plan.facts.python, janitor_main.__file__, order), env)
            await await_answer(process.child, paths.socket, process.last_words)
            if janitor is not None:
                await janitor.ready()
        except BaseException:
            await self._end()
            if janitor is not None:  # last: killed before, we would leave something
                await janitor.aclose()
            raise
        self._backoff.came_up()
        self._failure = None
        self._is_up.set()
        before, self._janitor = self._janitor, janitor
        if before is not None:
            await before.aclose()

    async def _keep(self, paths: ServicePaths) -> None:
        """Have another one follow each that ends."""
        while True:
            assert self._process is not None
            await self._process.child.ends(None)
            words = self._process.last_words().removeprefix(": ")
            self.in_doubt = True
            self._is_up.clear()
            self._backoff.ended()
            self._fail(words)
            await self._end()  # rootless, the other of its two processes may still serve
            while not await self._revived(paths):
                pass

    async def _revived(self, paths: ServicePaths) -> bool:
        """After the pause: whether one has come up."""
        await asyncio.sleep(self._backoff.pause_s)
        try:
            with suppress(FileNotFoundError):
                os.unlink(paths.socket)
            await self._launch(paths)
        except (StartFailed, OSError) as error:
            self._backoff.failed()
            self._fail(str(error).removeprefix(StartFailed.prefix))
            return False
        logger.warning("the engine is up again")
        return True

    def _fail(self, words: str) -> None:
        self._failure = f"the engine has ended{f' ({words})' if words else ''}; another is being started"
        logger.warning("%s in %.1f s", self._failure, self._backoff.pause_s)

    async def is_back(self) -> bool:
        """Whether it answers, within `engine_limits.ENGINE_BACK_MS`: for what must be done, and failed as it ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(engine_limits.ENGINE_BACK_MS / 1000):
                while self._paths is not None:
                    await self._is_up.wait()
                    if await answers_ping(self._paths.socket):
                        return True
                    await asyncio.sleep(engine_limits.ENGINE_READY_POLL_MS / 1000)  # it is not seen to have ended yet
        return False

    async def clear(self, container: str) -> None:
        """End what is left of a container that has been removed: a service that died in the middle of its start had not
        written down that it runs.

        Parameters:
            container: its full id.
        """
        if self.in_doubt and self._paths is not None:
            order = msgspec.to_builtins(self._order(self._paths, 0))
            await asyncio.to_thread(janitor_main.clear, order, container)

    def _order(self, paths: ServicePaths, service: int) -> JanitorOrder:
        return JanitorOrder(
            owner=os.getpid(),
            service=service,
            own_dir=str(Path(paths.socket).parent),
            sockets=str(self._sockets or ""),
            steps_have_size=not self.plan.facts.is_root,
            podman=tool_argv(self.plan, paths),
            runtime=runtime_argv(self.plan),
            label=f"{LABEL_OWNER}={this_process().label}",
            nft=self.plan.facts.nft if self.plan.facts.is_root else None,
            tables=this_process().table_prefix,
            reserve=paths.reserve,
        )

    async def _end(self) -> None:
        """End the service, if one runs, and what is left of it."""
        process, self._process = self._process, None
        if process is not None and not await process.aclose():
            self.in_doubt = True

    async def aclose(self) -> None:
        """End the service and remove its directory. Idempotent, also before `start`."""
        keeping, self._keeping, self._url = self._keeping, None, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait((keeping,))
        try:
            await self._end()
        finally:
            janitor, self._janitor = self._janitor, None
            own_dir, self._own_dir, self._paths = self._own_dir, None, None
            self._failure = None
            self._is_up.clear()
            if janitor is not None and self.in_doubt:  # it could not be asked to remove what it held
                await janitor.take_over()
            if own_dir is not None:
                own_dir.remove()
            if janitor is not None and not self.in_doubt:  # last: killed before, we would leave something
                await janitor.aclose()


class ServiceProcess:
    """The process of a managed service, and the tail of its stderr.

    Raises:
        StartFailed: `engine_unavailable`: the program cannot be started.
    """

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._log = bytearray()
        self._stderr, stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(stderr, True)
            self.child = Child(argv, env, {2: stderr})
        except OSError as error:
            os.close(self._stderr)
            raise StartFailed(f"cannot start {argv[0]}: {error.strerror}", "engine_unavailable") from error
        finally:
            os.close(stderr)
        asyncio.get_running_loop().add_reader(self._stderr, self._read_log)

    def last_words(self) -> str:
        """The last line that it wrote, with a colon before it; empty where it wrote none."""
        self._read_log()
        lines = self._log.decode(errors="replace").strip().splitlines()
        return f": {podman_says(lines[-1])}" if lines else ""

    def _read_log(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._stderr, engine_limits.ENGINE_LOG_BYTES)
            if not data:
                asyncio.get_running_loop().remove_reader(self._stderr)
            self._log += data
            del self._log[: -engine_limits.ENGINE_LOG_BYTES]

    async def aclose(self) -> bool:
        """End and reap it; whether it ended in order. Called once."""
        in_order = not self.child.has_ended
        try:
            return await end_service(self.child.pid, self.child.pidfd, engine_limits.ENGINE_STOP_MS) and in_order
        finally:
            asyncio.get_running_loop().remove_reader(self._stderr)
            os.close(self._stderr)
            self.child.close()


async def await_answer(service: Child, socket: str, last_words: Callable[[], str]) -> None:
    """Return once a service answers on its socket.

    Parameters:
        last_words: what the message of an error ends with.

    Raises:
        StartFailed: `engine_unavailable`: it has ended; `engine_timeout`.
    """
    try:
        async with asyncio.timeout(engine_limits.ENGINE_READY_MS / 1000):
            while not await answers_ping(socket):
                if await service.ends(engine_limits.ENGINE_READY_POLL_MS):
                    raise StartFailed(f"podman ended at once{last_words()}", "engine_unavailable")
    except TimeoutError as error:
        raise StartFailed(
            f"podman does not answer after {engine_limits.ENGINE_READY_MS} ms{last_words()}", "engine_timeout"
        ) from error


async def answers_ping(socket: str) -> bool:
    """Whether a service answers 200 on a Unix socket. No deadline of its own."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    try:
        writer.write(PING)
        return (await reader.readline()).startswith(PING_OK)
    except OSError:
        return False
    finally:
        writer.close()


async def end_service(pid: int, pidfd: int, grace_ms: int) -> bool:
    """End the first process of a session, and what is left of its process group then; the caller reaps it.

    Rootless, Podman starts itself once more in a user namespace and waits for that one; and where it was the first to
    make that namespace it may end at TERM without passing it on (seen with 4.3.1).

    Returns:
        Whether TERM was enough for all of them.
    """
    in_order = await end_process(pidfd, grace_ms)
    for _ in range(engine_limits.ENGINE_GROUP_LOOKS):
        rest = list(_open_group(pid))
        try:
            for other in rest:
                in_order &= await end_process(other, grace_ms)
        finally:
            close_all(rest)
        if not rest:
            break
    return in_order


async def end_process(pidfd: int, grace_ms: int) -> bool:
    """TERM, then KILL after `grace_ms`, until the process has ended; whether TERM was enough. Cancelled, it still sends
    KILL."""
    _send(pidfd, signal.SIGTERM)
    try:
        ended = await wait_readable(pidfd, grace_ms)
    except BaseException:
        _send(pidfd, signal.SIGKILL)
        raise
    if not ended:
        _send(pidfd, signal.SIGKILL)
        await wait_readable(pidfd, grace_ms)
    return ended


def _open_group(pgrp: int) -> Iterator[int]:
    """Pidfds of all in a process group."""
    for pid in proc.pids():
        if _is_in_group(pid, pgrp):
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                if _is_in_group(pid, pgrp):  # from the open on it cannot become another process
                    yield pidfd
                else:
                    os.close(pidfd)


def _is_in_group(pid: int, pgrp: int) -> bool:
    stat = proc.read_stat(pid)
    return stat is not None and stat.pgrp == pgrp and not stat.gone


def _send(pidfd: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signum)


LOCK_MS = engine_limits.ENGINE_READY_MS + engine_limits.ENGINE_STOP_MS
"""Another process may be bringing the same service up, and failing."""


class EngineStatus(Struct, frozen=True, kw_only=True):
    """How the service is.

    Parameters:
        answers: it replied to a ping just now.
        pid: None where none runs.
        url: where it is, or would be.
        log: file with its stderr.
    """

    running: bool
    answers: bool
    pid: int | None
    url: str
    log: str


async def engine_start(plan: ServicePlan, state_dir: Path, run_dir: Path) -> EngineStatus:
    """Start the service, or find it running. Nothing is left of one that fails to come up.

    Raises:
        StartFailed: as `ManagedService.start`.
    """
    async with _locked_home(run_dir) as home:
        status = await engine_status(run_dir)
        if not status.answers:
            await _end(home)
            await _start(plan, await asyncio.to_thread(service_paths, state_dir, run_dir, home, plan), home)
            status = await engine_status(run_dir)
        return status


async def engine_stop(run_dir: Path) -> EngineStatus:
    """End the service; nothing happens where none runs. Its containers are not touched."""
    async with _locked_home(run_dir) as home:
        await _end(home)
        return await engine_status(run_dir)


async def engine_status(run_dir: Path) -> EngineStatus:
    """Look, without changing anything."""
    home = run_dir / ENGINE_DIR
    socket = home / SOCKET_NAME
    found = _recorded(home)
    return EngineStatus(
        running=found is not None,
        answers=found is not None and await _answers_in_time(str(socket)),
        pid=found,
        url=f"unix://{socket}",
        log=str(home / "log"),
    )


@asynccontextmanager
async def _locked_home(run_dir: Path) -> AsyncIterator[Path]:
    """The service's directory, with no other process in it."""
    private_directory(run_dir)
    private_directory(run_dir / ENGINE_DIR)
    lock = await asyncio.to_thread(lock_file, run_dir / ENGINE_DIR / "lock", LOCK_MS)
    try:
        yield run_dir / ENGINE_DIR
    finally:
        os.close(lock)


def _recorded(home: Path) -> int | None:
    """Pid of the service if the process that wrote the pid file still runs."""
    try:
        pid, started = identity((home / "pid").read_text())
    except (FileNotFoundError, ValueError, IndexError):
        return None
    return pid if start_time(pid) == started else None


async def _start(plan: ServicePlan, paths: ServicePaths, home: Path) -> None:
    log, argv = home / "log", daemon_argv(plan, paths, str(home / "pid"))
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        service = Child(argv, service_env(paths, engine_variables()), {2: log_fd})
    except OSError as error:
        raise StartFailed(f"cannot start podman: {error.strerror}", "engine_unavailable") from error
    finally:
        os.close(log_fd)
    try:
        await await_answer(service, paths.socket, lambda: f": {_last_line(log)}; see {log}")
    except BaseException:
        await end_service(service.pid, service.pidfd, engine_limits.ENGINE_STOP_MS)
        service.close()
        raise
    service.detach()


async def _end(home: Path) -> None:
    """End the recorded service, of whatever command, and forget it."""
    pid = _recorded(home)
    if pid is not None:
        await _end_recorded(home, pid)
    (home / "pid").unlink(missing_ok=True)
    (home / SOCKET_NAME).unlink(missing_ok=True)


async def _end_recorded(home: Path, pid: int) -> None:
    """The descriptor comes first and the identity is checked after: from then on it cannot become another process."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _recorded(home) == pid:
            await end_service(pid, pidfd, engine_limits.ENGINE_STOP_MS)
            _reap(pid)
    finally:
        os.close(pidfd)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # it is not ours, but of an earlier command
        os.waitpid(pid, os.WNOHANG)


async def _answers_in_time(socket: str) -> bool:
    try:
        async with asyncio.timeout(engine_limits.PROGRAM_ANSWER_MS / 1000):
            return await answers_ping(socket)
    except TimeoutError:
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return podman_says(lines[-1]) if lines else "no message"
