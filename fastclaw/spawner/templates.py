"""Templates: programs that are started once and forked for each worker.

Owns each template's process, its socket and its output, and starts it anew when it ends. A worker is a process like any
other once its template's reaper has adopted it (spawner/c/reaper.c). Knows nothing of containers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from fastclaw import limits, stages
from fastclaw.errors import ExecFailed, FastclawError, ProtocolError, StartFailed
from fastclaw.linux.helper import Backoff
from fastclaw.params import rlimits
from fastclaw.processes.lane import Collection, Grace, StartSpec
from fastclaw.spawner import frames
from fastclaw.spawner.spawn_process import (
    ForkedProcess,
    TemplateProcess,
    resources_refused,
    step_refused,
    text_refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastclaw.options import Template
    from fastclaw.spawner.link import Spawner
    from fastclaw.spawner.spawner_host import SpawnerHost

logger = logging.getLogger(__name__)


ENDED = "it has ended, or closed its descriptor 3"


@dataclass
class Plans:
    """The templates of an environment, as they are started in each of its spawner hosts.

    Parameters:
        templates: by name, as in `options`.
        base_env: what every process gets.
        working_dir: the workspace, as the processes see it.
        user: who they are, by name or number, where a template does not say; None: as the host has it.
        ready_s: how long a template may take until it is ready.
        python_path: where the template's Python finds fastclaw/template.py, if it does not know by itself.
        proven: all have come up once. From then on one that does not is tried again, and delays nothing.
    """

    templates: Mapping[str, Template]
    _: KW_ONLY
    base_env: Mapping[str, str]
    working_dir: str | None
    user: str | None
    ready_s: float
    python_path: str | None = None
    proven: bool = False


class TemplateOutput:
    """A template's stdout or stderr: logged at debug level, and its last bytes kept.

    Parameters:
        on_line: called once, with the first line.

    Attributes:
        theirs: the end for its pump; the caller's.
        tail: the last bytes.
        ended: resolves at its end.

    Raises:
        ExecFailed: `overloaded`, no descriptor is left.
    """

    def __init__(self, name: str, on_line: Callable[[], None] | None = None) -> None:
        self._stream, self.theirs = _pair(socket.SHUT_WR)
        self.tail = b""
        self._name, self._on_line = name, on_line
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._stream.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self._stream.recv(limits.TEMPLATE_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._stream.fileno())
            self._end()
            return
        self.tail = (self.tail + data)[-limits.TEMPLATE_TAIL_BYTES :]
        logger.debug("%s: %s", self._name, data.decode("utf-8", "replace").rstrip())
        on_line = self._on_line
        if on_line is not None and b"\n" in data:
            self._on_line = None
            on_line()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        """Read no more. Idempotent."""
        if self._stream.fileno() < 0:
            return
        self._loop.remove_reader(self._stream.fileno())
        self._stream.close()
        self._end()


class _NotForked(Exception):
    """A template's answer that there is no worker."""

    def __init__(self, told: frames.WorkerFailed) -> None:
        super().__init__(told)
        self.told = told


class TemplateInstance:
    """One process of a template, from its start to its end.

    Parameters:
        identity: who it and its workers are.

    Attributes:
        process: its process, once it has begun.
        ready: resolves when it can be asked for workers; fails with `StartFailed` where it ended before.
        is_open: it has begun and not ended.
    """

    def __init__(self, name: str, spawner: Spawner, identity: frames.Identity | None) -> None:
        self.name, self.spawner, self.identity = name, spawner, identity
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ready.add_done_callback(_retrieve)
        self._asked: dict[int, asyncio.Future[int]] = {}
        self.process: TemplateProcess
        self._outputs: list[TemplateOutput] = []
        self._theirs: list[socket.socket] = []
        self.is_open = False

    def __repr__(self) -> str:
        is_ready = self.ready.done() and self.is_open
        return f"<TemplateInstance {self.name} {'ready' if is_ready else 'starting' if self.is_open else 'closed'}>"

    def begin(self, plan: Template, env: Mapping[str, str], working_dir: str | None) -> None:
        """Send its START. Nothing is left where that fails.

        Raises:
            ExecFailed: as `Spawner.start`.
            ValueError: an argument or variable that no process can have.
        """
        id = self.spawner.next_id()
        request = frames.start(
            id,
            frames.strings(plan.cmd),
            frames.strings(f"{name}={value}" for name, value in env.items()),
            directory=working_dir,
            flags=frames.FLAG_NULL_STDIN | frames.FLAG_TEMPLATE,
            identity=self.identity,
        )
        spec = StartSpec(process_id=self.name, cmd=plan.cmd, working_dir=working_dir, stdin=False, user=plan.user)
        self.process = TemplateProcess(self.spawner, id, spec)
        self.process.hear = self._on_frame
        self._by_frame = plan.ready != "line"
        try:
            for stream, on_line in (("stdout", None if self._by_frame else self._be_ready), ("stderr", None)):
                self._outputs.append(output := TemplateOutput(f"{self.name}, {stream}", on_line))
                self._theirs.append(output.theirs)
            self.is_open = True
            self.spawner.start(self.process, request)
        except BaseException:
            self.is_open = False
            self._close_streams()
            raise
        self.process.started.add_done_callback(self._on_started)
        self.process.exited.add_done_callback(lambda _: self._end_soon("it ended"))

    def _on_started(self, started: asyncio.Future[None]) -> None:
        """Attach to its output as clients do."""
        error = None if started.cancelled() else started.exception()
        if error is not None:
            self.close(_words(error))
            return
        with suppress(ExecFailed):  # the spawner has ended, and so has the template
            while self._theirs and self.is_open:
                stream = self._theirs.pop()
                self.process.attach(len(self._theirs), stream.detach())

    def _close_streams(self) -> None:
        for theirs in self._theirs:
            theirs.close()
        self._theirs.clear()
        for output in self._outputs:
            output.close()

    def _be_ready(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    # --- workers ---

    async def fork(self, process: ForkedProcess, request: bytes, theirs: int, spec: StartSpec, flags: int) -> int:
        """Have a worker forked; its pid, while it waits for its byte. `theirs` is closed in any case.

        Raises:
            ExecFailed: `template_gone`, `overloaded`, or what did not work for this worker.
        """
        if not self.is_open or self.process.place == frames.NOWHERE:
            os.close(theirs)
            raise gone(self.name)
        asked: asyncio.Future[int] = self._loop.create_future()
        self._asked[process.id] = asked
        process.started.add_done_callback(lambda started: _hand_on(started, asked))
        try:
            frame = frames.worker(
                process.id,
                self.process.place,
                request,
                flags=flags,
                identity=self.identity,
                collection=process.collection,
            )
            self.spawner.start(process, frame, [theirs])
            async with asyncio.timeout(limits.SPAWN_START_MS / 1000):
                return await asked
        except _NotForked as refused:
            raise _not_forked(refused.told, self.name, spec) from None
        except TimeoutError:
            self.kill()
            raise gone(f"{self.name} (it did not answer)") from None
        finally:
            self._asked.pop(process.id, None)

    def _on_frame(self, frame: bytes) -> None:
        if not self.is_open:
            return
        if not frame:
            self._end_soon(ENDED)
            return
        try:
            told = frames.parse_template(frame)
        except ProtocolError as error:
            self.close(_words(error))
            return
        if isinstance(told, frames.TemplateReady):
            if self._by_frame:
                self._be_ready()
        elif (asked := self._asked.get(told.id)) is not None and not asked.done():
            if isinstance(told, frames.WorkerForked):
                asked.set_result(told.pid)
            else:
                asked.set_exception(_NotForked(told))

    # --- the end ---

    def kill(self) -> None:
        """Kill the template alone: its workers live on."""
        self.process.signal(signal.SIGKILL)

    def _end_soon(self, why: str) -> None:
        """Close once its last output has been read, or soon."""
        self._loop.call_later(limits.TEMPLATE_LAST_WORDS_MS / 1000, self.close, why)
        self._outputs[-1].ended.add_done_callback(lambda _: self.close(why))

    def close(self, why: str) -> None:
        """Stop asking it, and kill it if it has not ended; its workers live on. Idempotent."""
        if not self.is_open:
            return
        self.is_open = False
        self._close_streams()
        self.kill()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(gone(self.name))
        if not self.ready.done():
            self.ready.set_exception(self.failure(why))

    async def aclose(self, why: str) -> None:
        """Close it and end its tree; returns when nothing is left of that, or after the deadline."""
        self.close(why)
        with suppress(FastclawError):
            await self.process.end_tree(Grace(0.0))

    def failure(self, why: str) -> StartFailed:
        """The error of its start, with its last words on stderr."""
        said = self._outputs[-1].tail.decode("utf-8", "replace").strip()
        return StartFailed(f"{self.name}: {why}{': ' if said else ''}{said}", "template_failed")


class SupervisedTemplate:
    """A template's process, followed by another when it has ended.

    Attributes:
        forks: workers that have been started.
    """

    def __init__(self, name: str, plan: Template, plans: Plans, host: SpawnerHost) -> None:
        self._name, self._plan, self._plans, self._host = name, plan, plans, host
        self._loop = asyncio.get_running_loop()
        self._instance: TemplateInstance | None = None
        self._supervision: asyncio.Task[None] | None = None
        self.forks = 0

    def health(self) -> dict[str, object]:
        """What `health` says of it."""
        is_up = self._instance is not None and self._instance.is_open
        return {"state": "ready" if is_up else "gone", "forks": self.forks}

    async def start(self) -> None:
        """Bring it up; from then on it is started anew when it ends.

        Raises:
            StartFailed: only where it has never been up.
        """
        try:
            self._instance = await self._bring_up()
        except FastclawError as error:
            if not self._plans.proven:
                raise
            logger.warning("%s; trying again", str(error))
        self._supervision = self._loop.create_task(self._supervise())

    async def _bring_up(self) -> TemplateInstance:
        try:
            instance = await self._begin()
        except (ExecFailed, ValueError) as error:
            raise StartFailed(f"template {self._name!r}: {_words(error)}", "template_failed") from error
        try:
            async with asyncio.timeout(self._plans.ready_s):
                await asyncio.shield(instance.ready)
        except TimeoutError:
            late = f"it was not ready within {self._plans.ready_s:g} s"
            await instance.aclose(late)
            raise instance.failure(late) from None
        except BaseException:
            await instance.aclose("it is not needed any more")
            raise
        return instance

    async def _begin(self) -> TemplateInstance:
        user, host = self._plan.user or self._plans.user, self._host
        identity = host.identity if user is None else await host.identify(user)
        await host.spawner.make_room()
        instance = TemplateInstance(f"template {self._name!r}", host.spawner, identity)
        instance.begin(self._plan, self._own_env(identity), self._plan.working_dir or self._plans.working_dir)
        return instance

    def _own_env(self, identity: frames.Identity | None) -> dict[str, str]:
        env = {**common_env(self._plans.base_env, self._host.env, identity), **self._plan.env}
        env[frames.TEMPLATE_FD_VARIABLE] = str(frames.TEMPLATE_FD)
        if self._plans.python_path is not None:
            env["PYTHONPATH"] = ":".join(filter(None, (self._plans.python_path, env.get("PYTHONPATH"))))
        return env

    async def _supervise(self) -> None:
        backoff = Backoff(self._loop.time)
        while True:
            if self._instance is not None:
                backoff.came_up()
                await asyncio.shield(self._instance.process.exited)
                self._instance = None
                logger.warning("template %r has ended; starting it again", self._name)
                backoff.ended()
            await asyncio.sleep(backoff.pause_s)
            try:
                self._instance = await self._bring_up()
            except FastclawError as error:
                backoff.failed()
                logger.warning("%s; trying again", str(error))

    async def fork(self, spec: StartSpec, collection: Collection | None) -> ForkedProcess:
        """A worker that runs. Nothing is left of it where that fails.

        Raises:
            ExecFailed: `template_gone`; else as for any process.
        """
        instance = self._instance
        if instance is None:
            raise gone(f"template {self._name!r}")
        await instance.spawner.make_room()
        id = instance.spawner.next_id()
        try:
            request = frames.template_request(
                id, spec.cmd, self._worker_env(spec, instance), cwd=spec.working_dir, rlimits=rlimits(spec.limits)
            )
        except ValueError as error:
            raise text_refused(spec.cmd[0], error) from error
        # Nothing can be sent to our end, descriptors least of all: the last close of one of a locked pipe blocks.
        go, theirs = _pair(socket.SHUT_RD)
        process = ForkedProcess(id, spec, collection, go, instance.process)
        flags = flags_of(spec, has_stdin=spec.stdin if collection is None else True)
        is_adopted = False
        try:
            spec.flight.reach(stages.SENT)
            pid = await instance.fork(process, request, theirs.detach(), spec, flags)
            instance.spawner.adopt(process, pid, instance.process)
            is_adopted = True
            await process.started
        except BaseException:
            process.drop()
            if not is_adopted:
                instance.spawner.disown(process)
            raise
        self.forks += 1
        return process

    def _worker_env(self, spec: StartSpec, instance: TemplateInstance) -> dict[str, str]:
        base = common_env(spec.base_env, self._host.env, instance.identity)
        return {**base, **self._plan.env, **spec.env, **spec.marker}

    def cancel(self) -> None:
        """It is not started anew. Idempotent."""
        if self._supervision is not None:
            self._supervision.cancel()

    async def aclose(self) -> None:
        """Kill it, and start none anew. Idempotent."""
        self.cancel()
        if self._supervision is not None:
            await asyncio.wait([self._supervision])
        if self._instance is not None:
            self._instance.close("fastclaw has let go of it")


class Templates:
    """All templates of a spawner host."""

    def __init__(self, plans: Plans, host: SpawnerHost) -> None:
        self._plans = plans
        self._all = {name: SupervisedTemplate(name, plan, plans, host) for name, plan in plans.templates.items()}

    async def start(self) -> None:
        """Bring all of them up at once.

        Raises:
            StartFailed: one did not come up; then none is left. Only until all have come up once.
        """
        results = await asyncio.gather(*(one.start() for one in self._all.values()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                await self.aclose()
                raise result
        self._plans.proven = True

    async def fork(self, spec: StartSpec, collection: Collection | None) -> ForkedProcess:
        """A worker of `spec.template`; see `SupervisedTemplate.fork`."""
        one = self._all.get(spec.template or "")
        if one is None:
            raise gone(f"template {spec.template!r}")
        return await one.fork(spec, collection)

    def health(self) -> dict[str, object]:
        """What `health` says of each, by name."""
        return {name: one.health() for name, one in self._all.items()}

    def cancel(self) -> None:
        """None is started anew any more. Idempotent."""
        for one in self._all.values():
            one.cancel()

    async def aclose(self) -> None:
        """Kill all, and start none anew. Idempotent."""
        await asyncio.gather(*(one.aclose() for one in self._all.values()))


def common_env(base: Mapping[str, str], home: Mapping[str, str], identity: frames.Identity | None) -> dict[str, str]:
    """The variables of every process of one user: the host's own, HOME, the environment's."""
    return {**home, **({} if identity is None else {"HOME": identity.home}), **base}


def gone(name: str) -> ExecFailed:
    """The error for a template that does not run now."""
    return ExecFailed(f"{name} is not up; it is being started again", "template_gone")


def _not_forked(told: frames.WorkerFailed, name: str, spec: StartSpec) -> ExecFailed:
    step = {"cwd": frames.STEP_DIRECTORY, "limits": frames.STEP_LIMIT}.get(told.step)
    if step is not None:
        return step_refused(step, told.errno, spec)
    refused = resources_refused(OSError(told.errno, os.strerror(told.errno)))
    if refused.reason == "overloaded":
        return refused
    return ExecFailed(f"{name} cannot fork ({told.step}): {os.strerror(told.errno)}", "template_failed")


def flags_of(spec: StartSpec, *, has_stdin: bool) -> int:
    """The flags of a START for its streams and its orphans."""
    flags = 0 if has_stdin else frames.FLAG_NULL_STDIN
    if spec.merge_stderr:
        flags |= frames.FLAG_MERGE
    if spec.orphans == "kill":
        flags |= frames.FLAG_END_ORPHANS
    return flags | frames.FLAG_HOLD if spec.holds_stdin else flags


def _pair(unused: int) -> tuple[socket.socket, socket.socket]:
    """Our end of a stream, non-blocking and shut down in one direction, and theirs.

    Raises:
        ExecFailed: `overloaded`, no descriptor is left.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise resources_refused(error) from error
    ours.shutdown(unused)
    ours.setblocking(False)
    return ours, theirs


def _hand_on(started: asyncio.Future[None], asked: asyncio.Future[int]) -> None:
    """Fail the request of a worker that was refused before its template was asked."""
    error = None if started.cancelled() else started.exception()
    if error is not None and not asked.done():
        asked.set_exception(error)


def _words(error: BaseException) -> str:
    """An error's message, to be part of another."""
    return str(error).removeprefix(error.prefix if isinstance(error, FastclawError) else "")


def _retrieve(future: asyncio.Future[None]) -> None:
    """Retrieve the exception of a future that may have no reader."""
    if not future.cancelled():
        future.exception()
