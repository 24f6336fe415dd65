"""The REST lane: starts processes through a Podman API socket, with create, start and inspect.

Owns the sequence of one start and everything it must take back when it fails or is cancelled. Works with any Podman
service; what needs the engine on this host (signals, ends of trees in milliseconds, exits while nobody reads) says so.
Knows nothing of admission: a runtime decides how many starts a shard gets at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from fastclaw.errors import ExecFailed
from fastclaw.limits import (
    ABANDONED_KILL_MS,
    ABANDONED_START_MS,
    ENGINE_TIMEOUT_MS,
    MAX_ARG_BYTES,
    MAX_ARGS_BYTES,
    RUN_OUTPUT_BYTES,
)
from fastclaw.linux.sockets import is_readable
from fastclaw.podman.rest_lane.demux import Attached
from fastclaw.podman.rest_lane.exec_calls import (
    ExecCalls,
    SessionGone,
    Started,
    create_body,
    explained,
    first_entry,
    prove,
)
from fastclaw.podman.rest_lane.http_client import HttpClient, Upgraded
from fastclaw.podman.rest_lane.rest_process import RestProcess
from fastclaw.podman.rest_lane.stdin import StdinHelpers
from fastclaw.podman.rest_lane.trees import EndTree, end_remote_tree, end_tree
from fastclaw.processes.lane import Collection, Grace, Lane, LaneProcess, Memory, StartSpec, ooms_from_now
from fastclaw.processes.relayed_streams import OutputBudget
from fastclaw.spawner import users

if TYPE_CHECKING:
    from fastclaw.podman.rest_lane.stdin import Input


class Lease(Protocol):
    """One exec's claim on a container."""

    @property
    def container(self) -> str:
        """Its full id."""

    @property
    def memory(self) -> Memory | None:
        """What becomes of its memory, where that is to be seen."""

    def give_back(self) -> None:
        """The exec is over, or did not come about. Called once."""

    def lost(self) -> None:
        """The engine says that the container no longer runs."""


class Containers(Protocol):
    """The containers of an environment, as `containers.Shards` holds them."""

    def take(self, index: int) -> Lease:
        """The container for the next exec of a shard."""

    async def kill(self) -> None:
        """End everything in all of them at once."""


class RestLane(Lane):
    """Starts processes in running containers.

    Parameters:
        url: `unix:///path` or `tcp://host:port` of the engine's API.
        containers: where execs go.
        local: the engine's processes are this host's, and this process may signal them.
        timeout_ms: deadline of each engine call.
        run_output_bytes: what all runs may hold together.

    Raises:
        ValueError: the URL has another form.
    """

    name = "rest"

    def __init__(
        self,
        url: str,
        containers: Containers,
        *,
        local: bool,
        timeout_ms: int = ENGINE_TIMEOUT_MS,
        run_output_bytes: int = RUN_OUTPUT_BYTES,
        reopens: bool = True,
    ) -> None:
        offered = {"user": True, "kill_tree": True, "reopen_stdio": reopens, "signal": local}
        self.capabilities = [name for name, is_offered in offered.items() if is_offered]
        self._http = HttpClient(url)
        self._calls = ExecCalls(self._http, timeout_ms)
        self._containers = containers
        self._local = local
        self._timeout_ms = timeout_ms
        self._budget = OutputBudget(run_output_bytes)
        self._stdin_helpers = StdinHelpers()

    async def start(self, spec: StartSpec, shard: int) -> RestProcess:
        """As `Lane.start`. A cancelled start goes on for a moment in the background of its own cancellation: the engine
        cannot be told to stop, so what it starts is ended as soon as it is known."""
        _refuse_impossible(spec)
        lease = self._containers.take(shard)
        try:
            process = await self._start_in(lease, await self._with_home(lease.container, spec))
        except BaseException as error:
            lease.give_back()
            if isinstance(error, ExecFailed) and error.reason == "container_gone":
                lease.lost()
            raise
        process.on_closed = lease.give_back
        return process

    async def run(self, spec: StartSpec, collection: Collection, shard: int) -> RestProcess:
        """As `Lane.run`: the output is collected from the engine's stream."""
        process = await self.start(spec, shard)
        try:
            process.collect(collection, self._budget)
        except OSError:
            await asyncio.shield(_discard_run(process))
            raise
        return process

    async def _with_home(self, container: str, spec: StartSpec) -> StartSpec:
        """With the HOME of a user that is a number, as on the spawn lane: the engine sets none without an entry."""
        name = "" if spec.user is None else spec.user.partition(":")[0]
        if not name.isdecimal():
            return spec
        archive = await self._calls.beginning_of(container, "/etc/passwd")
        passwd = b"" if archive is None else first_entry(archive).head
        with suppress(ExecFailed):
            home = users.resolve(name, passwd.decode("utf-8", "replace"), "").home
            return structs.replace(spec, base_env={"HOME": home, **spec.base_env})
        return spec

    async def _start_in(self, lease: Lease, spec: StartSpec) -> RestProcess:
        launch = _Launch(self, spec, lease, self._tree_ender(lease.container))
        task = asyncio.get_running_loop().create_task(launch.run(), name=f"start of {spec.process_id}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await launch.take_back(task)
            raise

    def _tree_ender(self, container: str) -> EndTree:
        return end_tree if self._local else partial(end_remote_tree, self._calls, container)

    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        """As `Lane.end_all`. On another host one exec per tree would take too long: there the containers are ended."""
        if self._local:
            await asyncio.gather(*(_end_quietly(process, grace) for process in processes))
        await self._containers.kill()
        if processes:
            await asyncio.wait([process.exited for process in processes])

    def health(self) -> dict[str, object]:
        """As `Lane.health`."""
        return {
            "name": self.name,
            "idle_connections": self._http.idle(),
            "local": self._local,
        }

    async def aclose(self) -> None:
        """Close the kept connections, end the helpers. Processes keep theirs until their own `aclose`, which comes
        before."""
        self._http.close()
        await self._stdin_helpers.aclose()


class _Launch:
    """One start under way."""

    __slots__ = ("_abandoned", "_container", "_end_tree", "_lane", "_may_run", "_ooms", "_spec")

    def __init__(self, lane: RestLane, spec: StartSpec, lease: Lease, end_tree: EndTree) -> None:
        self._lane = lane
        self._end_tree = end_tree
        self._spec = spec
        self._container = lease.container
        self._ooms = ooms_from_now(lease.memory)
        self._abandoned = False
        self._may_run = False

    async def run(self) -> RestProcess:
        """The whole start."""
        try:
            return await self._run()
        except SessionGone as error:
            raise ExecFailed("the container stopped during the start", "container_gone") from error
        except BaseException as error:
            if self._may_run:
                await self._end_leftovers()
            if isinstance(error, ExecFailed) and not self._abandoned:
                raise await explained(error, self._lane._calls, self._container, self._spec) from error
            raise

    async def take_back(self, task: asyncio.Task[RestProcess]) -> None:
        """After a cancellation: let the engine finish, then end what it started."""
        self._abandoned = True
        try:
            await asyncio.wait((task,), timeout=ABANDONED_START_MS / 1000)
        finally:
            if not task.done():
                task.cancel()
        await asyncio.wait((task,))
        if task.cancelled() or task.exception() is not None:
            return
        await self._discard(task.result())

    async def _run(self) -> RestProcess:
        calls, spec = self._lane._calls, self._spec
        if spec.stdin and self._lane._local:
            self._lane._stdin_helpers.prepare()
        began = time.monotonic_ns()
        session = await calls.create(self._container, create_body(spec))
        if self._abandoned:
            raise asyncio.CancelledError
        created = time.monotonic_ns()
        self._may_run = True
        hijacked = await self._attach(session)
        started_at = time.monotonic_ns()
        try:
            started = await prove(
                calls,
                session,
                hijacked.sock,
                hijacked.leftover,
                spec,
                local=self._lane._local,
                timeout_ms=self._lane._timeout_ms,
            )
            process = await self._assemble(session, hijacked, started)
        except BaseException:
            hijacked.sock.close()
            raise
        process.timings = {
            "create_us": (created - began) // 1000,
            "start_us": (started_at - created) // 1000,
            "proof_us": (time.monotonic_ns() - started_at) // 1000,
        }
        return process

    async def _attach(self, session: str) -> Upgraded:
        try:
            return await self._lane._calls.start(session)
        except ExecFailed as error:
            # An answer, even a refusal, means that nothing runs; silence or a broken connection do not.
            self._may_run = error.retryable and error.reason != "container_gone"
            raise

    async def _assemble(self, session: str, hijacked: Upgraded, started: Started) -> RestProcess:
        """Pipes, relay and process; on failure (no descriptors left) nothing stays open but the connection."""
        direct = None
        try:
            direct = await self._direct_input(started)
            pipes = _pipes(3 if self._spec.stdin and direct is None else 2)
        except BaseException as error:
            _close_all(started.pidfd)
            if direct is not None:
                _close_all(direct.fd)
                direct.end()
            if isinstance(error, OSError):
                raise ExecFailed(f"no pipes for the process: {error.strerror}", "io_error") from error
            raise
        lane = self._lane
        marker = self._spec.process_id
        process = RestProcess(lane._calls, self._container, session, marker, started, self._end_tree, self._ooms)
        process.stdout_fd, stdout, process.stderr_fd, stderr = pipes[:4]
        stdin, process.stdin_fd = pipes[4:] or (None, None)
        if stdin is not None and _has_ended(started):
            # Nobody reads it. The engine would throw away what it has not passed on yet, when input comes for a command
            # that has ended (attachExecHTTP in libpod/oci_conmon_exec_common.go, 4.3.1).
            os.close(stdin)
            stdin = None
        if direct is not None:
            process.stdin_fd, process.on_input_over = direct.fd, direct.end
            _end_input(hijacked.sock)
        merged = self._spec.merge_stderr
        attached = Attached(
            hijacked.sock, started.head, stdin, stdout, stderr, process.on_stream_end, merge_stderr=merged
        )
        if self._spec.orphans == "kill":
            process.end_orphans()
        process.attach(attached, ended=started.ended)
        return process

    async def _direct_input(self, started: Started) -> Input | None:
        """A way into stdin with nothing of the engine's in between, where there is one."""
        if not self._spec.stdin or started.pidfd is None or started.ended:
            return None
        return await self._lane._stdin_helpers.open(started.pid)

    async def _discard(self, process: RestProcess) -> None:
        _close_all(process.stdin_fd, process.stdout_fd, process.stderr_fd)
        try:
            await self._end_leftovers()
        finally:
            await process.aclose()

    async def _end_leftovers(self) -> None:
        """End whatever the engine started for this spec. A failure here must not hide the reason for it; what is left
        carries the marker and ends with its container."""
        now = Grace(ends_at=asyncio.get_running_loop().time())
        with suppress(ExecFailed):
            await self._end_tree(self._spec.process_id, None, now, ABANDONED_KILL_MS / 1000)


def _has_ended(started: Started) -> bool:
    return started.ended or (started.pidfd is not None and is_readable(started.pidfd))


def _pipes(count: int) -> list[int]:
    """Read and write end, `count` times; all or none."""
    made: list[int] = []
    try:
        for _ in range(count):
            made += os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        _close_all(*made)
        raise
    return made


def _close_all(*fds: int | None) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)


def _end_input(sock: socket.socket) -> None:
    """The engine closes its own end of stdin, so that ours is the last one."""
    with suppress(OSError):  # the command has ended and the engine with it: nothing is left to close
        sock.shutdown(socket.SHUT_WR)


async def _discard_run(process: RestProcess) -> None:
    """One whose streams could not be watched, and are closed."""
    await _end_quietly(process, Grace(ends_at=0.0))
    await process.aclose()


async def _end_quietly(process: LaneProcess, grace: Grace) -> None:
    with suppress(ExecFailed):
        await process.end_tree(grace)


def _refuse_impossible(spec: StartSpec) -> None:
    """What crun would cut at the NUL, and what execve refuses only after the start was reported."""
    strings = [*spec.cmd, *(f"{name}={value}" for name, value in spec.variables.items())]
    if any("\0" in text for text in (*strings, spec.working_dir or "", spec.user or "")):
        raise ExecFailed("a NUL byte cannot be passed to a process", "invalid_params")
    if sum(map(len, strings)) > MAX_ARGS_BYTES:
        raise ExecFailed(f"command and environment are longer than {MAX_ARGS_BYTES} bytes", "too_long")
    for text in strings:
        if len(text) >= MAX_ARG_BYTES // 4 and len(text.encode(errors="surrogatepass")) >= MAX_ARG_BYTES:
            raise ExecFailed(f"one argument or variable is longer than {MAX_ARG_BYTES} bytes", "too_long")
    if not spec.cmd[0]:
        raise ExecFailed("the command is empty", "not_found")
