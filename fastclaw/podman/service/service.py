"""A private Podman service that lives as long as its owner: started, proven ready, stopped, gone.

    idle ── start() ──> running ── aclose() ──> idle        (a start() that fails closes it before it raises)

The service ends with fastclaw even when fastclaw is killed outright (see `process.py` on threads), and a janitor then
removes the containers. Knows nothing of images and containers.
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.linux.owner import this_process
from fastclaw.linux.sockets import is_readable, wait_readable
from fastclaw.podman.container_spec import LABEL_OWNER
from fastclaw.podman.service import janitor_main
from fastclaw.podman.service.janitor import Standby
from fastclaw.podman.service.plan import (
    JanitorOrder,
    ServicePaths,
    ServicePlan,
    bound_argv,
    janitor_argv,
    runtime_argv,
    service_env,
    tool_argv,
)
from fastclaw.podman.service.service_process import end_service, reap, spawn_service
from fastclaw.podman.service.storage import engine_variables, service_dir, service_paths

if TYPE_CHECKING:
    from fastclaw.linux.directories import HeldDirectory

PING = b"GET /libpod/_ping HTTP/1.0\r\nHost: d\r\n\r\n"
PING_OK = (b"HTTP/1.0 200", b"HTTP/1.1 200")


class ManagedService:
    """Podman's API on a socket of our own.

    Parameters:
        plan: from `plan.plan_service`.
        state_dir: where images are kept (`dirs.default_state_dir`).
        run_dir: where the socket goes (`dirs.default_run_dir`); its path must be short.

    Attributes:
        reserve: room that can be given up (`podman/service/storage.py`), once it has been started.
    """

    def __init__(self, plan: ServicePlan, state_dir: Path, run_dir: Path) -> None:
        self.plan = plan
        self._state_dir = state_dir
        self._run_dir = run_dir
        self._own_dir: HeldDirectory | None = None
        self._process: ServiceProcess | None = None
        self._standby: Standby | None = None
        self._url: str | None = None
        self.reserve: Path | None = None

    @property
    def url(self) -> str:
        """`unix:///…` of the running service."""
        if self._url is None:
            raise RuntimeError("the service is not running")
        return self._url

    @property
    def pid(self) -> int | None:
        """Of the running service."""
        return self._process.pid if self._process else None

    @property
    def log_tail(self) -> str:
        """The last that the service wrote to its stderr."""
        return self._process.log_tail if self._process else ""

    @property
    def trouble(self) -> str | None:
        """What is wrong with its directory now, in one line."""
        gone = self._own_dir is not None and not self._own_dir.is_there()
        return "the directory of the engine's socket is gone: start fastclaw anew" if gone else None

    async def start(self) -> None:
        """Start the service and return once it answers. Call from the thread that outlives it.

        Raises:
            StartFailed: `engine_unavailable` with the service's last words when it dies, `engine_timeout` when it does
                not answer within `limits.ENGINE_READY_MS`. Nothing is left then.
        """
        try:
            paths = await self._prepare()
            self.reserve = Path(paths.reserve)
            env = service_env(paths, engine_variables())
            self._process = ServiceProcess(bound_argv(self.plan, paths, os.getpid()), env)
            self._standby = self._make_standby(paths, env)
            await self._process.ready(paths.socket)
            if self._standby is not None:
                await self._standby.ready()
            self._url = f"unix://{paths.socket}"
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the service and remove its directory. Idempotent, also before `start`."""
        process, self._process, self._url = self._process, None, None
        standby, self._standby = self._standby, None
        own_dir, self._own_dir = self._own_dir, None
        has_died = process is not None and process.has_ended
        try:
            if process is not None:
                await process.end()
        finally:
            if standby is not None and has_died:  # so nobody could ask it to remove what it held
                await standby.take_over()
                if own_dir is not None:
                    own_dir.remove()
            else:
                if own_dir is not None:
                    own_dir.remove()
                if standby is not None:  # last: killed before, we would leave something
                    await standby.end()

    async def _prepare(self) -> ServicePaths:
        self._own_dir = service_dir(self._run_dir)
        return await asyncio.to_thread(service_paths, self._state_dir, self._run_dir, self._own_dir.path, self.plan)

    def _make_standby(self, paths: ServicePaths, env: dict[str, str]) -> Standby | None:
        """A janitor for the service that runs. Without a Python of its own, the next `initialize` has to do."""
        python = self.plan.facts.python
        if python is None or self._process is None or self._own_dir is None:
            return None
        order = JanitorOrder(
            owner=os.getpid(),
            service=self._process.pid,
            own_dir=str(self._own_dir.path),
            podman=tool_argv(self.plan, paths),
            runtime=runtime_argv(self.plan),
            label=f"{LABEL_OWNER}={this_process().label}",
            nft=self.plan.facts.nft if self.plan.facts.is_root else None,
            tables=this_process().table_prefix,
            reserve=paths.reserve,
        )
        return Standby(janitor_argv(python, janitor_main.__file__, order), env)


class ServiceProcess:
    """The process of a managed service with the tail of its stderr.

    Raises:
        StartFailed: `engine_unavailable`: the program cannot be started.
    """

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._log = bytearray()
        self._stderr, stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(stderr, True)
            self.pid = spawn_service(argv, env, stderr)
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            os.close(self._stderr)
            raise StartFailed(f"cannot start {argv[0]}: {error.strerror}", "engine_unavailable") from error
        finally:
            os.close(stderr)
        asyncio.get_running_loop().add_reader(self._stderr, self._read_log)

    @property
    def has_ended(self) -> bool:
        return is_readable(self._pidfd)

    @property
    def log_tail(self) -> str:
        """The last `limits.ENGINE_LOG_BYTES` of its stderr."""
        return self._log.decode(errors="replace")

    async def ready(self, socket: str) -> None:
        """Return once it answers on `socket`; raise when it ends first or never does."""
        try:
            async with asyncio.timeout(limits.ENGINE_READY_MS / 1000):
                while not await answers_ping(socket):
                    if await wait_readable(self._pidfd, limits.ENGINE_READY_POLL_MS):
                        raise self._died()
        except TimeoutError as error:
            raise StartFailed(
                f"podman does not answer after {limits.ENGINE_READY_MS} ms{self._last_words()}", "engine_timeout"
            ) from error

    async def end(self) -> None:
        """End and reap it, and give its descriptors back."""
        try:
            await end_service(self.pid, self._pidfd, limits.ENGINE_STOP_MS)
        finally:
            asyncio.get_running_loop().remove_reader(self._stderr)
            os.close(self._stderr)
            os.close(self._pidfd)
            reap(self.pid)

    def _died(self) -> StartFailed:
        self._read_log()
        return StartFailed(f"podman ended at once{self._last_words()}", "engine_unavailable")

    def _last_words(self) -> str:
        lines = self.log_tail.strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def _read_log(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._stderr, limits.ENGINE_LOG_BYTES)
            if not data:
                asyncio.get_running_loop().remove_reader(self._stderr)
            self._log += data
            del self._log[: -limits.ENGINE_LOG_BYTES]


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
