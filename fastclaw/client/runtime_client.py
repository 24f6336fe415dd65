"""The supervisor's client: start a runtime, call it, end it.

Owns the runtime's child process and the shapes of its answers. Knows no engine and no particular runtime.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import msgspec

from fastclaw import limits
from fastclaw.client.answers import Shape, given, shaped
from fastclaw.client.environment import Environment, EnvironmentCalls
from fastclaw.client.rpc import Child, PendingCalls, Stderr
from fastclaw.errors import FastclawError
from fastclaw.images import BuildNetwork, ImageResult, LoadedImages
from fastclaw.progress import Tell
from fastclaw.runtime import EnvironmentInfo, ExitRecord, InitializeResult, ListedEnvironment
from fastclaw.wire import EnvironmentList

log = logging.getLogger(__name__)


class Welcome(InitializeResult, frozen=True, kw_only=True):
    """What a runtime answers to `initialize`.

    Parameters:
        server: its name and version.
        capabilities: the optional parts of the contract that it offers.
        control: where its control socket is; None: it has none.
    """

    server: dict[str, str] = msgspec.field(default_factory=dict)
    capabilities: list[str] = msgspec.field(default_factory=list)
    control: str | None = None


class RuntimeClient(EnvironmentCalls):
    """A runtime extension that runs as a child and is spoken to over its stdin and stdout.

        async with RuntimeClient.spawn(["fastclaw", "serve"], namespace="demo") as rt:
            process = await rt.exec(["cat"])
            out, err = await process.communicate(b"hello")

    Attributes:
        welcome: the answer to `initialize`; None before it.
    """

    def __init__(
        self, command: Sequence[str], namespace: str | None, options: dict[str, Any] | None,
        env: Mapping[str, str] | None, stderr: Stderr,
    ) -> None:  # fmt: skip
        self._command = list(command)
        self._namespace = namespace
        self._options = options
        self._env = env
        self._stderr = stderr
        self._child: Child | None = None
        self._calls: PendingCalls | None = None
        self._extra_shutdown_ms = 0
        self.welcome: Welcome | None = None

    @classmethod
    def spawn(
        cls,
        command: Sequence[str],
        *,
        namespace: str | None = None,
        options: dict[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        stderr: Stderr = None,
    ) -> Self:
        """A client whose runtime starts when the client is entered and ends when it is left.

        Parameters:
            command: argv of the runtime.
            namespace: `initialize` is called on entering with this and `options`; None leaves that to the caller.
            env: the runtime's whole environment; None is this process's own.
            stderr: where the runtime's log goes, as for `subprocess`; None is this process's own stderr.
        """
        return cls(command, namespace, options, env, stderr)

    async def __aenter__(self) -> Self:
        child = Child(on_data=lambda data: calls.feed(data), on_lost=lambda why: calls.lose(why))
        calls = PendingCalls(child.write, child.writable)
        await child.start(self._command, self._env, self._stderr)
        self._child, self._calls = child, calls
        if self._namespace is not None:
            try:
                await self.initialize(self._namespace, self._options)
            except BaseException:
                await child.aclose()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if self._child is None:
            return f"<RuntimeClient of {self._command[0]}, not entered>"
        return f"<RuntimeClient pid={self._child.pid} {'ended' if self._child.has_ended else 'running'}>"

    async def aclose(self) -> None:
        """End the runtime: `shutdown`, then EOF, then TERM, then KILL, each with its deadline."""
        if self._child is None:
            return
        try:
            if not self._child.has_ended:
                await self._try_shutdown()
        finally:
            await self._child.aclose()

    async def _try_shutdown(self) -> None:
        try:
            await self.shutdown()
        except FastclawError as error:
            log.debug("the runtime did not take shutdown: %s", error)

    @property
    def client(self) -> Self:
        """Itself."""
        return self

    @property
    def pid(self) -> int:
        """Process id of the runtime."""
        return self._entered().pid

    @property
    def exit_code(self) -> int | None:
        """How the runtime itself ended, negative for a signal; None while it runs, and where this process ignores
        SIGCHLD: then the kernel does not tell."""
        return None if self._child is None else self._child.code

    @property
    def has_ended(self) -> bool:
        """Whether the runtime has ended, however."""
        return self._child is not None and self._child.has_ended

    @property
    def capabilities(self) -> frozenset[str]:
        """The optional parts of the contract that the runtime offers."""
        return frozenset(self.welcome.capabilities if self.welcome else ())

    async def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        timeout_s: float | None = limits.CLIENT_CALL_MS / 1000,
        on_progress: Tell | None = None,
    ) -> Any:
        """Any method, as it is on the wire.

        Parameters:
            timeout_s: seconds until `IoError` (`no_answer`); None waits as long as the runtime lives.
            on_progress: called with what the runtime tells of a call whose params have `progress`.

        Raises:
            FastclawError: what the runtime answered.
            IoError: it did not, or it is gone.
        """
        assert self._calls is not None, "enter the client first"
        return await self._calls.call(method, params, timeout_s, on_progress)

    def _entered(self) -> Child:
        assert self._child is not None, "enter the client first"
        return self._child

    async def initialize(self, namespace: str, options: dict[str, Any] | None = None) -> Welcome:
        """Bring the environment up.

        Raises:
            StartFailed, InvalidParams, InvalidState.
        """
        params: dict[str, Any] = {"namespace": namespace, "options": options or {}}
        told_ms = params["options"].get("shutdown_timeout_ms")
        self._extra_shutdown_ms = max(0, told_ms - limits.SHUTDOWN_TIMEOUT_MS) if isinstance(told_ms, int) else 0
        answer = await self.call("initialize", params, limits.CLIENT_INITIALIZE_MS / 1000)
        self.welcome = shaped(answer, Welcome, "initialize")
        return self.welcome

    async def environment_start(
        self,
        name: str | None = None,
        *,
        token: str | None = None,
        on_progress: Tell | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        **options: Any,
    ) -> Environment:
        """Bring one more environment up.

        Parameters:
            name: None takes one that is free.
            token: a second start with the same token gives the first one's environment.
            on_progress: hears how the pull of its image comes on.
            traceparent, tracestate: the trace that the start belongs to.
            options: as for `initialize`.

        Where this is cancelled, the runtime is told to take the environment back.

        Raises:
            StartFailed, InvalidParams, InvalidState.
        """
        trace = {"traceparent": traceparent, "tracestate": tracestate}
        params = given(environment=name, token=token, options=options, progress=_asked(on_progress), **trace)
        answer = await self.call("environment_start", params, limits.CLIENT_INITIALIZE_MS / 1000, on_progress)
        return Environment(self, shaped(answer, EnvironmentInfo, "environment_start"))

    async def environment_list(self) -> "list[ListedEnvironment]":
        """The environments that there are."""
        return shaped(await self.call("environment_list"), EnvironmentList, "environment_list").environments

    async def pool_set(self, kinds: "Sequence[Mapping[str, Any]]") -> None:
        """Keep environments ready: for each kind its options and a `size`. What is not named is kept no more.

        Raises:
            InvalidParams.
        """
        await self.call("pool_set", {"pool": [dict(kind) for kind in kinds]})

    async def image_pull(
        self, image: str, *, pull: Literal["missing", "always"] = "missing", on_progress: Tell | None = None
    ) -> ImageResult:
        """Have an image of a registry.

        Parameters:
            pull: `always` asks the registry even where there is an image of this name.
            on_progress: called with each `Progress`; what it raises goes to the log.

        Where this is cancelled, the runtime is told to give it up. So it is with a build and a load.

        Raises:
            StartFailed: `image_not_found`, `engine_timeout`, `engine_unavailable`, `engine_error`.
        """
        params = given(image=image, pull=pull, progress=_asked(on_progress))
        return await self._image("image_pull", params, on_progress, ImageResult)

    async def image_build(
        self,
        directory: str | os.PathLike[str],
        *,
        file: str | None = None,
        tag: str | None = None,
        args: Mapping[str, str] | None = None,
        target: str | None = None,
        no_cache: bool = False,
        network: BuildNetwork = "none",
        on_progress: Tell | None = None,
    ) -> ImageResult:
        """Build an image from a directory of the runtime's host.

        Parameters:
            directory: a relative one is made absolute here.
            file: the Containerfile, relative to it; None is `Containerfile`, else `Dockerfile`.
            tag: what the image is called; None leaves it without a name, and `image` is its id.
            args: build arguments.
            target: the stage at which the build ends.
            no_cache: nothing of earlier builds is used.
            network: what RUN steps reach: nothing, what the engine gives a container, or what the host reaches.
            on_progress: called with each `Progress`, the output of the build in its `text`.

        Raises:
            StartFailed: `build_failed`, with the end of the output as `data["output"]`; besides those of `image_pull`.
            IoError: something in the directory cannot be read.
            InvalidParams: the tag is none.
        """
        params = given(
            directory=_absolute(directory),
            file=file,
            tag=tag,
            args=None if args is None else dict(args),
            target=target,
            no_cache=no_cache or None,
            network=network,
            progress=_asked(on_progress),
        )
        return await self._image("image_build", params, on_progress, ImageResult)

    async def image_load(self, archive: str | os.PathLike[str], *, on_progress: Tell | None = None) -> list[str]:
        """Have the images of an archive of the runtime's host, as `docker save` or `podman save` has written it; for
        each of them a reference, or its id where it has none.

        Raises:
            IoError: `bad_archive`, or it cannot be read.
            StartFailed: as `image_pull`.
        """
        params = given(archive=_absolute(archive), progress=_asked(on_progress))
        return (await self._image("image_load", params, on_progress, LoadedImages)).images

    async def _image(self, method: str, params: dict[str, Any], on_progress: Tell | None, shape: type[Shape]) -> Shape:
        return shaped(await self.call(method, params, limits.CLIENT_IMAGE_MS / 1000, on_progress), shape, method)

    async def kill(self, process_id: str, grace_ms: int | None = None) -> None:
        """End a process with its whole tree; back when nothing is left.

        Parameters:
            grace_ms: milliseconds from TERM to KILL; None is the runtime's default, 0 KILL at once.

        Raises:
            InvalidState: `unknown_process`.
        """
        params = given(process_id=process_id, grace_ms=grace_ms)
        await self.call("kill", params, ((grace_ms or 0) + limits.CLIENT_CALL_MS) / 1000)

    async def wait(self, process_id: str, timeout_ms: int | None = None) -> ExitRecord:
        """How a process ended; with `state` "running" where it has not within `timeout_ms` milliseconds.

        Raises:
            InvalidState: `unknown_process`.
        """
        timeout_s = None if timeout_ms is None else (timeout_ms + limits.CLIENT_CALL_MS) / 1000
        params = given(process_id=process_id, timeout_ms=timeout_ms)
        return shaped(await self.call("wait", params, timeout_s), ExitRecord, "wait")

    async def signal(self, process_id: str, signal: int | str, *, group: bool = False) -> None:
        """Send a signal to a process, by number or name.

        Parameters:
            group: to its whole process group, so also to what it runs: what Ctrl-C does.

        Raises:
            InvalidState: `unknown_process`.
        """
        await self.call("signal", given(process_id=process_id, signal=signal, group=group or None))

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        """Give a process's terminal another size.

        Raises:
            InvalidParams: `no_tty`, it was not started with `tty`.
            InvalidState: `unknown_process`.
        """
        await self.call("resize", {"process_id": process_id, "rows": rows, "columns": columns})

    async def shutdown(self) -> None:
        """End every process and take the environment down; the runtime exits after its answer.

        Raises:
            IoError: the runtime is gone, or took longer than `limits.CLIENT_SHUTDOWN_MS` and as much as
                `options.shutdown_timeout_ms` is over its default.
        """
        await self.call("shutdown", None, (limits.CLIENT_SHUTDOWN_MS + self._extra_shutdown_ms) / 1000)

    def close_stdin(self) -> None:
        """End the runtime's input, which is another way to say `shutdown`; `exited` tells when it is through."""
        self._entered().write_eof()

    async def exited(self, timeout_s: float) -> int | None:
        """The runtime's exit code once it ended by itself; None where it has not within `timeout_s` seconds, or as
        `exit_code`."""
        await self._entered().ended(int(timeout_s * 1000))
        return self._entered().code


def _asked(on_progress: Tell | None) -> bool | None:
    """The param `progress`."""
    return None if on_progress is None else True


def _absolute(path: str | os.PathLike[str]) -> str:
    """As the runtime, which may run in another directory, has to be told."""
    return os.path.abspath(path)
