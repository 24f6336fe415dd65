"""The runtime whose kind is chosen when it starts: by `options.runtime`, else by what the command line said.

`auto` takes podman where an engine is usable and `local`, which isolates nothing, with a warning where none is.
"""

import difflib
import logging
from collections.abc import Callable

from msgspec import structs

from fastclaw import lifecycle
from fastclaw.errors import InvalidParams, InvalidState
from fastclaw.options import RUNTIMES
from fastclaw.podman.service.choice import why_no_engine
from fastclaw.runtime import (
    ExecRequest,
    ExecResult,
    ExitRecord,
    HealthStatus,
    InitializeParams,
    InitializeResult,
    ProcessInfo,
    ProcessRuntime,
    RunRequest,
    RunResult,
)
from fastclaw.runtimes.local import LocalRuntime
from fastclaw.runtimes.memory import MemoryRuntime
from fastclaw.runtimes.read_options import read_options

logger = logging.getLogger(__name__)


def _podman() -> ProcessRuntime:
    """Podman's client is loaded by who uses it: that takes as long as all the rest of `fastclaw serve`."""
    from fastclaw.runtimes.podman import ContainerRuntime

    return ContainerRuntime()


_MAKERS: dict[str, Callable[[], ProcessRuntime]] = dict(
    zip(RUNTIMES, (_podman, LocalRuntime, MemoryRuntime), strict=True)
)


def choose(wanted: str, params: InitializeParams) -> tuple[str, list[str]]:
    """One of `RUNTIMES`, and what is to be said of that choice.

    Parameters:
        wanted: one of them, or `auto`.
        params: as the supervisor sent them: `url` and `oci_runtime` decide whether an engine is usable.

    Raises:
        InvalidParams: there is no such runtime (`data.nearest`), or another option is wrong.
    """
    if wanted not in ("auto", *RUNTIMES):
        nearest = next(iter(difflib.get_close_matches(wanted, RUNTIMES, n=1)), None)
        hint = f"did you mean {nearest!r}?" if nearest else f"there are auto, {', '.join(RUNTIMES)}"
        path = "$.options.runtime"
        raise InvalidParams(f"{path}: no runtime {wanted!r}; {hint}", path=path, nearest=nearest)
    if wanted != "auto":
        return wanted, []
    reason = why_no_engine(read_options(params))
    if reason is None:
        return "podman", []
    warning = f"no usable engine ({reason}); taking the local runtime, which isolates nothing"
    logger.warning("%s", warning)
    return "local", [warning]


class AutoRuntime(ProcessRuntime):
    """Becomes another runtime at `start`.

    Parameters:
        default: taken where `options.runtime` is left out or `auto`.
    """

    def __init__(self, default: str = "auto") -> None:
        self._default = default
        self._chosen: ProcessRuntime | None = None

    def _runtime(self) -> ProcessRuntime:
        if self._chosen is None:
            raise InvalidState("call initialize first", "not_initialized")
        return self._chosen

    @property
    def capabilities(self) -> list[str]:
        return self._runtime().capabilities

    async def start(self, params: InitializeParams) -> InitializeResult:
        wanted = params.options.get("runtime", "auto")
        wanted = self._default if wanted == "auto" else str(wanted)
        name, warnings = choose(wanted, params)
        self._chosen = _MAKERS[name]()
        try:
            result = await self._chosen.start(params)
            return structs.replace(result, warnings=[*warnings, *result.warnings])
        finally:
            self.stop_timeout_ms = self._chosen.stop_timeout_ms

    async def exec(self, request: ExecRequest) -> ExecResult:
        return await self._runtime().exec(request)

    async def run(self, request: RunRequest) -> RunResult:
        return await self._runtime().run(request)

    async def health(self) -> HealthStatus:
        if self._chosen is None:
            return HealthStatus(status="unhealthy", message=lifecycle.RuntimeState.NEW.value)
        return await self._chosen.health()

    async def stop(self) -> None:
        if self._chosen is not None:
            await self._chosen.stop()

    async def kill(self, process_id: str, grace_ms: int | None = None) -> None:
        await self._runtime().kill(process_id, grace_ms)

    def hasten(self) -> None:
        if self._chosen is not None:
            self._chosen.hasten()

    async def wait(self, process_id: str, timeout_ms: int | None = None) -> ExitRecord:
        return await self._runtime().wait(process_id, timeout_ms)

    async def list_processes(self, after: str | None = None) -> list[ProcessInfo]:
        return await self._runtime().list_processes(after)

    async def signal(self, process_id: str, signal: int, *, group: bool = False) -> None:
        await self._runtime().signal(process_id, signal, group=group)

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        await self._runtime().resize(process_id, rows, columns)
