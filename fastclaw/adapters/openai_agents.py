"""The sandbox client of the OpenAI Agents SDK: `SandboxRunConfig(client=FastclawSandboxClient())`."""

import io
import re
import uuid
from pathlib import Path
from typing import Any, Literal

from agents.sandbox import Manifest, errors
from agents.sandbox import session as sdk
from agents.sandbox.session.runtime_helpers import RESOLVE_WORKSPACE_PATH_HELPER, RuntimeHelperScript
from agents.sandbox.session.workspace_payloads import coerce_write_payload
from agents.sandbox.snapshot import SnapshotBase, SnapshotSpec, resolve_snapshot
from pydantic import Field

from fastclaw import FastclawError
from fastclaw.adapters.openai_agents_commands import CommandSession, Who, failing
from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox import Sandbox
from fastclaw.sandbox.loop_thread import loop_thread


class FastclawSandboxClientOptions(sdk.BaseSandboxClientOptions):
    """What sandboxes are started with: an image, and any others of `fastclaw.sandbox.Host.start` as JSON has them."""

    type: Literal["fastclaw"] = "fastclaw"
    image: str | None = None
    start: dict[str, Any] = Field(default_factory=dict)


class FastclawSandboxSessionState(sdk.SandboxSessionState):
    """What finds a session's sandbox again, or starts another one like it."""

    type: Literal["fastclaw"] = "fastclaw"
    options: FastclawSandboxClientOptions
    sandbox: str = ""


class FastclawSandboxSession(CommandSession):
    """A session whose workspace is in a fastclaw sandbox."""

    def __init__(self, state: FastclawSandboxSessionState, box: Sandbox) -> None:
        super().__init__(box)
        self.state = state

    def _runtime_helpers(self) -> tuple[RuntimeHelperScript, ...]:
        return (RESOLVE_WORKSPACE_PATH_HELPER,)

    async def _validate_path_access(self, path: Path | str, *, for_write: bool = False) -> Path:
        return await self._validate_remote_path_access(path, for_write=for_write)

    async def _prepare_backend_workspace(self) -> None:
        try:
            await self._bring(self.box.mkdir(self.state.manifest.root))
        except PermissionError:  # the image's own user may not
            await self._bring(self.box.mkdir(self.state.manifest.root, user="0", mode=0o777))

    async def running(self) -> bool:
        try:
            return (await self._bring(self.box.health())).status != "unhealthy"
        except FastclawError:
            return False

    async def read(self, path: Path, *, user: Who = None) -> io.IOBase:
        inside = str(await self._validate_path_access(path))
        with failing(errors.WorkspaceArchiveReadError, path=path):
            return io.BytesIO(await self._bring(self.box.read(inside, user=getattr(user, "name", user))))

    async def _read_bounded(self, path: Path, *, max_bytes: int) -> bytes:
        inside = str(await self._validate_path_access(path))
        with failing(errors.WorkspaceArchiveReadError, path=path):
            return await self._bring(self.box.read(inside, offset=0, limit=max_bytes))

    async def write(self, path: Path, data: io.IOBase, *, user: Who = None) -> None:
        content = coerce_write_payload(path=path, data=data).stream.read()
        inside = str(await self._validate_path_access(path, for_write=True))
        with failing(errors.WorkspaceArchiveWriteError, path=path):
            await self._bring(self.box.write(inside, content, user=getattr(user, "name", user)))

    async def persist_workspace(self) -> io.IOBase:
        root = self._workspace_root_path()
        skipped = [re.sub(r"([*?[\\])", r"\\\1", f"/{path}") for path in self._persist_workspace_skip_relpaths()]
        with failing(errors.WorkspaceArchiveReadError, path=root):
            return io.BytesIO(await self._bring(self.box.read_tar(str(root), exclude=skipped)))

    async def hydrate_workspace(self, data: io.IOBase) -> None:
        root = self._workspace_root_path()
        await self._prepare_backend_workspace()
        with failing(errors.WorkspaceArchiveWriteError, path=root):
            await self._bring(self.box.write_tar(str(root), data.read()))


class FastclawSandboxClient(sdk.BaseSandboxClient[FastclawSandboxClientOptions | None]):
    """Starts sandboxes for the SDK, on a host with `settings` (`fastclaw.sandbox.Host`) that all such clients share."""

    backend_id = "fastclaw"
    supports_default_options = True

    def __init__(
        self,
        *,
        instrumentation: sdk.Instrumentation | None = None,
        dependencies: sdk.Dependencies | None = None,
        **settings: Any,
    ) -> None:
        self._instrumentation = instrumentation or sdk.Instrumentation()
        self._dependencies = dependencies
        self._settings = settings

    async def create(
        self,
        *,
        snapshot: SnapshotSpec | SnapshotBase | None = None,
        manifest: Manifest | None = None,
        options: FastclawSandboxClientOptions | None = None,
    ) -> sdk.SandboxSession:
        manifest, number = self._validate_manifest_for_create(manifest or Manifest()), uuid.uuid4()
        snapshot, options = resolve_snapshot(snapshot, str(number)), options or FastclawSandboxClientOptions()
        state = FastclawSandboxSessionState(session_id=number, manifest=manifest, snapshot=snapshot, options=options)
        return await self.resume(state)

    async def resume(self, state: sdk.SandboxSessionState) -> sdk.SandboxSession:
        """The session's sandbox, if it is there; else a new one, whose workspace comes from the snapshot."""
        if not isinstance(state, FastclawSandboxSessionState):
            raise TypeError(f"a state of FastclawSandboxClient is expected, not {type(state).__name__}")
        state.assert_path_grants_rebound()
        if any(grant.host_path for grant in state.manifest.extra_path_grants):
            raise ValueError("a directory of this host cannot be granted: give `workspace` in the options' `start`")
        box = await loop_thread().bring(self._start(state))
        place = box.container or box.id
        is_same, state.sandbox = place == state.sandbox, place
        state.workspace_root_ready = is_same and state.workspace_root_ready
        session = FastclawSandboxSession(state, box)
        session._set_start_state_preserved(is_same)
        return self._wrap_session(session, instrumentation=self._instrumentation)

    async def _start(self, state: FastclawSandboxSessionState) -> Sandbox:
        host = await shared_host(**self._settings)
        return await host.start(state.options.image, token=state.session_id.hex, **state.options.start)

    async def delete(self, session: sdk.SandboxSession) -> sdk.SandboxSession:
        """Ends the sandbox; `shutdown` leaves it, for `resume`."""
        await loop_thread().bring(session._inner.box.close())
        return session

    def deserialize_session_state(self, payload: dict[str, object]) -> sdk.SandboxSessionState:
        return self._deserialize_session_state_payload(payload, FastclawSandboxSessionState)
