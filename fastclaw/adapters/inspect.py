"""The sandbox provider of inspect-ai, `sandbox="fastclaw"`, which inspect-ai finds by its entry point."""

from __future__ import annotations

import asyncio
import posixpath
import shlex
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import anyio.to_thread
from inspect_ai import util
from inspect_ai.util import SandboxEnvironmentLimits as Limits

from fastclaw.adapters.inspect_config import CONFIG_FILES, Config, FastclawSandbox, config_of
from fastclaw.errors import FastclawError, InvalidParams
from fastclaw.sandbox import FileTooLarge
from fastclaw.sandbox.loop_thread import loop_thread

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fastclaw.sandbox import Sandbox

T = TypeVar("T")

_settled: dict[Config, FastclawSandbox] = {}
"""What `task_init` has made of configurations: later, relative paths would start from another directory."""


@util.sandboxenv(name="fastclaw")
class FastclawSandboxEnvironment(util.SandboxEnvironment):
    """The sandbox of one sample. What each method does and raises is inspect-ai's to say."""

    def __init__(self, box: Sandbox, config: FastclawSandbox) -> None:
        super().__init__()
        self._box, self._config = box, config

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,  # the signature is inspect-ai's
        timeout_retry: bool = True,  # of no use: nothing but the command itself takes the time
        concurrency: bool = True,  # likewise: fastclaw has a queue of its own
    ) -> util.ExecResult[str]:
        """A command that writes more than the limit runs to its end, and the error has the end of its output."""
        most, there = Limits.MAX_EXEC_OUTPUT_SIZE, self._path(cwd or "") or None
        running = self._box.run(
            cmd, input=input, cwd=there, env=env, user=user, timeout=timeout, output_limit=most, keep="tail"
        )
        done = await _brought(running)
        if done.reason == "timeout":
            error = TimeoutError(f"Command timed out after {timeout} seconds")
            error.truncated_output = done.text + done.error_text  # type: ignore[attr-defined]  # inspect-ai's own word
            raise error
        if done.reason in ("permission_denied", "not_executable"):
            raise PermissionError(done.error)
        if any(done.dropped.values()):
            raise util.OutputLimitExceededError(Limits.MAX_EXEC_OUTPUT_SIZE_STR, done.text + done.error_text)
        return util.ExecResult(done.exit_code == 0, done.exit_code, done.text, done.error_text)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        await _brought(self._box.write(self._path(file), contents))

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        try:
            data = await _brought(self._box.read(self._path(file), limit=Limits.MAX_READ_FILE_SIZE))
        except FileTooLarge:
            raise util.OutputLimitExceededError(Limits.MAX_READ_FILE_SIZE_STR, None) from None
        return data.decode() if text else data

    def _path(self, path: str) -> str:
        return posixpath.join(self._config.working_dir, path)

    async def connection(self, *, user: str | None = None) -> util.SandboxConnection:
        """A shell in the container, by the engine, where that knows it: a clone was made without it."""
        info = self._box.info
        url = await _brought(self._config.engine_url())
        if url is None or info.container is None or info.made_by != "engine":
            raise ConnectionError("no engine knows this container; with FastclawSandbox(clone='never') one does")
        where = ["--user", user or info.user, "--workdir", self._config.working_dir or info.working_dir]
        command = shlex.join(["podman", "--url", url, "exec", "-it", *where, info.container, "sh", "-l"])
        return util.SandboxConnection(type="fastclaw", command=command, container=info.container)

    def default_polling_interval(self) -> float:
        """In seconds: to look costs a few milliseconds."""
        return 0.2

    @classmethod
    async def task_init(cls, task_name: str, config: Config) -> None:
        """Build or pull once, and bring one sandbox up, so that what is wrong is told before the first sample."""
        _settled[config] = await _brought(config_of(config).settled())
        tried = await cls.sample_init(task_name, config, {})
        await cls.sample_cleanup(task_name, config, tried, interrupted=False)

    @classmethod
    async def task_cleanup(cls, task_name: str, config: Config, cleanup: bool) -> None:
        """The samples' sandboxes have ended before; with `--no-sandbox-cleanup` they end with this program."""
        _settled.pop(config, None)

    @classmethod
    async def sample_init(
        cls, task_name: str, config: Config, metadata: dict[str, str]
    ) -> dict[str, util.SandboxEnvironment]:
        known = _settled.get(config)
        settled = await _brought(config_of(config).settled()) if known is None else known
        return {"default": cls(await _brought(settled.start()), settled)}

    @classmethod
    async def sample_cleanup(
        cls, task_name: str, config: Config, environments: dict[str, util.SandboxEnvironment], interrupted: bool
    ) -> None:
        """At once, also where it was interrupted: it takes a tenth of a second."""
        for environment in environments.values():
            await _brought(environment.as_type(cls)._box.close())

    @classmethod
    def config_files(cls) -> list[str]:
        return CONFIG_FILES

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> FastclawSandbox:
        return FastclawSandbox(**config)


async def _brought(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine brings on the hosts' loop, awaited by asyncio or trio, and cancelled with whoever awaits it."""
    try:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # trio
            future = asyncio.run_coroutine_threadsafe(coroutine, loop_thread().loop)
            try:
                return await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)
            finally:
                future.cancel()
        return await loop_thread().bring(coroutine)
    except InvalidParams:
        raise
    except FastclawError as error:
        raise util.SandboxUnavailableError(str(error)) from error
