"""The sandbox provider of NeMo Gym: `sandbox: {fastclaw: {}}` in its configuration."""

import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nemo_gym import sandbox as gym

from fastclaw import FastclawError
from fastclaw.adapters.nemo_gym_pty import PtySession
from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox import Sandbox
from fastclaw.sandbox.loop_thread import loop_thread

OUTPUT_LIMIT = "16m"
"""Of each stream of a command, as much as one answer has; of a longer one, its first and last half."""

_NO_EXIT_CODE = 125
"""What the tool's own providers give for a command that has none, beside `error_type`."""

_logger = logging.getLogger(__name__)
_running: dict[str, "_Box"] = {}


class _Box(NamedTuple):
    sandbox: Sandbox
    shell: str
    working_dir: str


class Provider:
    """Starts sandboxes for NeMo Gym, on a host with `settings` (`fastclaw.sandbox.Host`)."""

    name = "fastclaw"

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    async def create(self, spec: gym.SandboxSpec) -> gym.SandboxHandle:
        """`spec.provider_options` are any others of `fastclaw.sandbox.Host.start`."""
        wanted = {"ports": spec.ports, "entrypoint": spec.entrypoint, "resources.gpu": spec.resources.gpu}
        if missing := [name for name, value in wanted.items() if value]:
            raise gym.SandboxCreateError(f"fastclaw has no {', '.join(missing)}")
        if spec.resources.cpu is not None or spec.resources.disk_gib is not None:
            _logger.warning("fastclaw ignores resources.cpu and disk_gib; see `disk` of its provider_options")
        try:
            box = await loop_thread().bring(self._start(spec))
        except (FastclawError, OSError) as error:
            raise gym.SandboxCreateError(str(error)) from error
        handle = gym.SandboxHandle(f"{box.sandbox.id}-{secrets.token_hex(8)}", self.name, box)
        _running[handle.sandbox_id] = box
        return handle

    async def _start(self, spec: gym.SandboxSpec) -> _Box:
        memory, image = spec.resources.memory_mib, spec.image and spec.image.removeprefix("docker://")
        options = {"env": spec.env, "memory": memory and f"{memory}m", "lifetime": spec.ttl_s, **spec.provider_options}
        if spec.ready_timeout_s is not None:
            options.setdefault("start_timeout_ms", int(spec.ready_timeout_s * 1000))
        host = await shared_host(**self._settings)
        sandbox = await host.start(image, **options)
        try:
            if spec.workdir is not None:
                await _as_whoever_may(sandbox.mkdir, spec.workdir, mode=0o777)
            has_bash = (await sandbox.run(["bash", "-c", ":"])).ok  # commands of tasks are often bash's
        except BaseException:
            await sandbox.close()
            raise
        return _Box(sandbox, "bash" if has_bash else "sh", spec.workdir or sandbox.working_dir)

    async def exec(
        self,
        handle: gym.SandboxHandle,
        command: str,
        *,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_s: float | None = None,
        user: str | int | None = None,
    ) -> gym.SandboxExecResult:
        box, how = handle.raw, _how(handle.raw, cwd, env, user)
        running = box.sandbox.run([box.shell, "-c", command], timeout=timeout_s, output_limit=OUTPUT_LIMIT, **how)
        done = await loop_thread().bring(running)
        out, said = done.text, done.error_text
        if done.reason == "timeout":
            return gym.SandboxExecResult(out, f"{said}\ntimed out after {timeout_s} s", _NO_EXIT_CODE, "timeout")
        return gym.SandboxExecResult(out, said, done.exit_code, None if done.error is None else "sandbox")

    async def upload_file(self, handle: gym.SandboxHandle, source_path: Path, target_path: str) -> None:
        box = handle.raw
        await loop_thread().bring(_as_whoever_may(box.sandbox.put, source_path, _path(box, target_path)))

    async def download_file(self, handle: gym.SandboxHandle, source_path: str, target_path: Path) -> None:
        box = handle.raw
        await loop_thread().bring(_as_whoever_may(box.sandbox.get, _path(box, source_path), target_path))

    async def status(self, handle: gym.SandboxHandle) -> gym.SandboxStatus:
        try:
            health = await loop_thread().bring(handle.raw.sandbox.health())
        except FastclawError:
            return gym.SandboxStatus.STOPPED
        return gym.SandboxStatus.ERROR if health.status == "unhealthy" else gym.SandboxStatus.RUNNING

    async def close(self, handle: gym.SandboxHandle) -> None:
        _running.pop(handle.sandbox_id, None)
        await loop_thread().bring(handle.raw.sandbox.close())

    async def aclose(self) -> None:
        """Nothing: the host ends with the program."""

    async def serialize_handle(self, handle: gym.SandboxHandle, *, scope: str | None = None) -> dict[str, Any]:
        return {"sandbox_id": handle.sandbox_id}

    async def connect(self, descriptor: Mapping[str, Any]) -> gym.SandboxHandle:
        """The handle of a sandbox that this very process has started."""
        name = str(descriptor.get("sandbox_id"))
        if name not in _running:
            raise gym.SandboxCreateError(f"{name} has ended, or another process started it: only that one can reach it")
        return gym.SandboxHandle(name, self.name, _running[name])

    async def create_pty(self, handle: gym.SandboxHandle, spec: gym.SandboxPtySpec) -> PtySession:
        box, how = handle.raw, _how(handle.raw, spec.cwd, spec.env, spec.user)
        argv = [box.shell] if spec.command is None else [box.shell, "-c", spec.command]
        size = (spec.rows or 24, spec.cols or 80) if spec.pty else None
        try:
            process = await loop_thread().bring(box.sandbox.exec(argv, tty=spec.pty, size=size, **how))
        except FastclawError as error:
            raise gym.SandboxPtyError(str(error)) from error
        return PtySession(process, "pty" if spec.pty else "pipe")


def _how(box: _Box, cwd: str | None, env: dict[str, str] | None, user: str | int | None) -> dict[str, Any]:
    return {"cwd": cwd or box.working_dir, "env": env, "user": None if user is None else str(user)}


def _path(box: _Box, path: str) -> str:
    return str(PurePosixPath(box.working_dir, path))


async def _as_whoever_may(call: Callable[..., Coroutine[Any, Any, None]], *paths: object, **as_root: Any) -> None:
    """As the image's user, or where that may not, as root: files of a task go where it wants them."""
    try:
        await call(*paths)
    except PermissionError:
        await call(*paths, user="0", **as_root)
