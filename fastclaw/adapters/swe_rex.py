"""Deployments of SWE-ReX: `Deployment(image=…)` where there is a `DockerDeployment`; the image needs nothing of it."""

import asyncio
import io
from typing import Any, Final

from swerex import exceptions
from swerex.deployment.abstract import AbstractDeployment
from swerex.deployment.hooks.abstract import CombinedDeploymentHook, DeploymentHook
from swerex.runtime import abstract as rex
from swerex.utils.log import get_logger

from fastclaw import limits, sandbox
from fastclaw.adapters.shared_host import shared_host
from fastclaw.adapters.swe_rex_session import Session
from fastclaw.sandbox.loop_thread import loop_thread

OUTPUT_BYTES: Final = 64 * limits.MIB
"""A command that writes more is ended, and fails: SWE-ReX has no word for a part of an output."""


class Deployment(AbstractDeployment):
    """A sandbox as a deployment of SWE-ReX. All of a process are on one host.

    Parameters:
        image: what the sandbox is made of.
        host: parameters of `fastclaw.sandbox.Host`; deployments with the same ones share a host.
        start: further parameters of `fastclaw.sandbox.Host.start`, as `memory="2g"`.
    """

    def __init__(self, image: str | None = None, *, host: dict[str, Any] | None = None, **start: Any) -> None:
        self.logger = get_logger("rex-deploy")
        self._hooks = CombinedDeploymentHook()
        self._host, self._kind = host or {}, {"image": image, **start}
        self._runtime: Runtime | None = None

    def add_hook(self, hook: DeploymentHook) -> None:
        """Have the steps of the start told to it."""
        self._hooks.add_hook(hook)

    @property
    def runtime(self) -> "Runtime":
        """What runs in the sandbox. Raises DeploymentNotStartedError before `start` and after `stop`."""
        if self._runtime is None:
            raise exceptions.DeploymentNotStartedError
        return self._runtime

    async def is_alive(self, *, timeout: float | None = None) -> rex.IsAliveResponse:
        """Whether the sandbox is there. Raises as `runtime`."""
        return await self.runtime.is_alive(timeout=timeout)

    async def start(self) -> None:
        """Bring the sandbox up."""
        if self._runtime is not None:
            raise exceptions.DeploymentStartupError("it is started already")
        self._hooks.on_custom_step("Starting sandbox")
        shared = await loop_thread().bring(shared_host(**self._host))
        self._runtime = Runtime(await loop_thread().bring(shared.start(**self._kind)))

    async def stop(self) -> None:
        """End the sandbox with everything in it. Idempotent."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            await runtime.close()
            await loop_thread().bring(runtime.box.close())


class Runtime(rex.AbstractRuntime):
    """What SWE-ReX does in the sandbox `box`: sessions of bash, commands, files."""

    def __init__(self, box: sandbox.Sandbox) -> None:
        self.logger = get_logger("rex-runtime")
        self.box = box
        self._sessions: dict[str, Session] = {}

    async def is_alive(self, *, timeout: float | None = None) -> rex.IsAliveResponse:
        """Whether the sandbox is there."""
        try:
            await asyncio.wait_for(loop_thread().bring(self.box.health()), timeout)
        except (sandbox.SandboxGone, TimeoutError) as error:
            return rex.IsAliveResponse(is_alive=False, message=str(error) or "it does not answer in time")
        return rex.IsAliveResponse(is_alive=True)

    async def create_session(self, request: rex.CreateSessionRequest) -> rex.CreateSessionResponse:
        """Start a bash on a terminal of its own."""
        if request.session in self._sessions:
            raise exceptions.SessionExistsError(f"session {request.session} already exists")
        self._sessions[request.session] = Session(request, self.box)
        try:
            return await self._sessions[request.session].start()
        except BaseException:
            await self.close_session(rex.CloseBashSessionRequest(session=request.session))
            raise

    async def run_in_session(self, action: rex.Action) -> rex.Observation:
        """Run a command in a session. Where this is cancelled, the session is ended."""
        return await self._session(action).run(action)

    async def close_session(self, request: rex.CloseSessionRequest) -> rex.CloseSessionResponse:
        """End a session with what runs in it."""
        session = self._session(request)
        del self._sessions[request.session]
        return await session.close()

    def _session(self, of: Any) -> Session:
        if of.session not in self._sessions:
            raise exceptions.SessionDoesNotExistError(f"session {of.session!r} does not exist")
        return self._sessions[of.session]

    async def execute(self, command: rex.Command) -> rex.CommandResponse:
        """Run a command as subprocess.run would, but that `env` is added to the sandbox's own."""
        words = [command.command] if isinstance(command.command, str) else command.command
        argv = ["sh", "-c", *words] if command.shell else words
        how: dict[str, Any] = {"cwd": command.cwd, "env": command.env, "merge_stderr": command.merge_output_streams}
        running = self.box.run(argv, timeout=command.timeout, output_limit=OUTPUT_BYTES, on_limit="kill", **how)
        done = await loop_thread().bring(running)
        if done.error is not None:
            raise (PermissionError if done.exit_code == 126 else FileNotFoundError)(done.error)  # as subprocess does
        if done.reason == "timeout":
            raise exceptions.CommandTimeoutError(f"Timeout ({command.timeout}s) exceeded while running command")
        if done.truncated:
            raise exceptions.SwerexException(f"the command wrote more than {OUTPUT_BYTES} bytes")
        out, err = (stream.decode(errors="backslashreplace") for stream in (done.stdout, done.stderr))
        code = done.exit_code if done.signal is None else -done.signal
        if command.check and code != 0:
            said = command.error_msg or f"Command {command.command!r} failed"
            raise exceptions.NonZeroExitCodeError(f"{said}: exit code {code}, stdout {out!r}, stderr {err!r}")
        return rex.CommandResponse(stdout=out, stderr=err, exit_code=code)

    async def read_file(self, request: rex.ReadFileRequest) -> rex.ReadFileResponse:
        """Read a file as Path.read_text would."""
        content = io.BytesIO(await loop_thread().bring(self.box.read(request.path)))
        text = io.TextIOWrapper(content, request.encoding or "utf-8", request.errors).read()
        return rex.ReadFileResponse(content=text)

    async def write_file(self, request: rex.WriteFileRequest) -> rex.WriteFileResponse:
        """Write a file, in directories that are made where they are missing."""
        await loop_thread().bring(self.box.write(request.path, request.content))
        return rex.WriteFileResponse()

    async def upload(self, request: rex.UploadRequest) -> rex.UploadResponse:
        """Copy a file or directory of this host into the sandbox."""
        await loop_thread().bring(self.box.put(request.source_path, request.target_path))
        return rex.UploadResponse()

    async def close(self) -> rex.CloseResponse:
        """End the sessions."""
        while self._sessions:
            await self._sessions.popitem()[1].close()
        return rex.CloseResponse()
