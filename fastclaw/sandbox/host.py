"""The host of sandboxes: one `fastclaw serve` child with one engine, however many sandboxes there are."""

import sys
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any, Literal, Self

import msgspec

from fastclaw.client import RuntimeClient
from fastclaw.client.answers import given
from fastclaw.images import BuildNetwork
from fastclaw.linux.own_process import machine_namespace
from fastclaw.options import Capabilities, Network, Workspace
from fastclaw.progress import Tell
from fastclaw.runtime import HealthStatus, ListedEnvironment
from fastclaw.sandbox.progress_bar import listening
from fastclaw.sandbox.raised import raised
from fastclaw.sandbox.sandbox import Sandbox
from fastclaw.sandbox.units import Size, milliseconds, size_bytes

SERVE = (sys.executable, "-m", "fastclaw", "serve", "--log-level", "warning")
"""What is started: this very package."""


class Host:
    """Where sandboxes are started; entered, it is up, and left, it is gone with all of them.

        async with Host() as host:
            async with await host.start("python:3.12") as box: ...

    Parameters:
        runtime: `podman`, `docker`, `local` (isolates nothing), or `auto`: the first that can be had.
        url: the engine's API (`unix://`, `tcp://`); None is CONTAINER_HOST, else an engine of our own.
        storage: `host` shares the images of this user's own Podman; `private` has its own.
        options: any other of `fastclaw.options.HostOptions`, for all sandboxes together.

    Attributes:
        warnings: lines for people: what is otherwise than one will think.
    """

    def __init__(
        self, *, runtime: str | None = None, url: str | None = None, storage: str | None = None, **options: Any
    ) -> None:
        shared = given(runtime=runtime, url=url, storage=storage)
        self._options = {**shared, **options, "environment": False}
        self._client: RuntimeClient | None = None
        self._pools: dict[bytes, dict[str, Any]] = {}
        self.warnings: list[str] = []

    def __repr__(self) -> str:
        if self._client is None:
            return "<Host, not entered>"
        return f"<Host pid={self._client.pid}{'' if self._client.exit_code is None else ', ended'}>"

    async def __aenter__(self) -> Self:
        if self._client is not None and not self.has_ended:
            raise RuntimeError("the host is entered already")
        client = RuntimeClient.spawn(SERVE, namespace=machine_namespace("sandbox"), options=self._options)
        await client.__aenter__()
        self._client = client
        assert client.welcome is not None
        self.warnings = client.welcome.warnings
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def client(self) -> RuntimeClient:
        """What sends the calls."""
        if self._client is None:
            raise RuntimeError("enter the host first: async with Host() as host")
        return self._client

    @property
    def has_ended(self) -> bool:
        """Whether it was up and is no more."""
        return self._client is not None and self._client.has_ended

    async def start(
        self,
        /,
        image: str | None = None,
        *,
        name: str | None = None,
        token: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        shm: Size | None = None,
        pids: int | None = None,
        network: Network | None = None,
        workspace: Workspace | None = None,
        capabilities: Capabilities | None = None,
        lifetime: float | None = None,
        on_progress: Tell | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        **options: Any,
    ) -> Sandbox:
        """Bring a sandbox up.

        Parameters:
            image: reference or id; None is a small one that is made of what is on this host.
            name: of the sandbox; None takes one that is free.
            token: a second start with the same token gives the first one's sandbox.
            user: whom commands run as: name or `uid[:gid]`; None is the image's own.
            env: variables for every process.
            memory, disk, shm: how much it may use, in bytes or as "2g".
            pids: how many processes and threads it may have.
            network: what it may reach; None is nothing.
            workspace: a directory of this host, or one of its own, for its processes.
            capabilities: what root inside may: `none`, `default` or names.
            lifetime: seconds after which it is ended.
            on_progress: hears how a pull of the image comes on; None shows a bar where stderr is a terminal.
            traceparent, tracestate: the trace that the start belongs to (docs/performance.md).
            options: any other of `fastclaw.options.Options`.

        Where the task is cancelled, what there is of it goes.

        Raises:
            StartFailed: with the reason.
            InvalidParams: an option is wrong.
            SandboxGone: the host is gone.
        """
        kind = _options(
            image=image,
            user=user,
            env=env,
            memory=memory,
            disk=disk,
            shm=shm,
            pids=pids,
            network=network,
            workspace=workspace,
            capabilities=capabilities,
            lifetime=lifetime,
            **options,
        )
        with raised(), listening(on_progress, f"pulling {image}") as tell:
            trace = {"traceparent": traceparent, "tracestate": tracestate}
            return Sandbox(await self.client.environment_start(name, token=token, on_progress=tell, **trace, **kind))

    async def pool(
        self,
        /,
        image: str | None = None,
        size: int = 1,
        **kind: Any,
    ) -> None:
        """Keep sandboxes of a kind ready, for starts and resets to take.

        Parameters:
            size: how many; 0 keeps none of this kind any more.
            kind: as for `start`, but its name and token. A start that differs in one of them takes none.
        """
        options = _options(image=image, **kind)
        pools = {**self._pools, msgspec.json.encode(options, order="sorted"): {**options, "size": size}}
        pools = {kind: wanted for kind, wanted in pools.items() if wanted["size"]}
        with raised():
            await self.client.pool_set(list(pools.values()))
        self._pools = pools

    # --- images ---

    async def pull(self, image: str, *, always: bool = False, on_progress: Tell | None = None) -> str:
        """Have an image of a registry, before a sandbox of it is started.

        Parameters:
            always: ask the registry even where there is an image of this name.
            on_progress: as for `start`.

        Returns:
            What `start` takes.

        Raises:
            StartFailed: `image_not_found`, and the reasons of every start.
        """
        with raised(), listening(on_progress, f"pulling {image}") as tell:
            pull: Literal["missing", "always"] = "always" if always else "missing"
            return (await self.client.image_pull(image, pull=pull, on_progress=tell)).image

    async def build(
        self,
        directory: str | PathLike[str],
        *,
        file: str | None = None,
        tag: str | None = None,
        args: Mapping[str, str] | None = None,
        target: str | None = None,
        no_cache: bool = False,
        network: BuildNetwork = "none",
        on_progress: Tell | None = None,
    ) -> str:
        """Build an image from a directory of this host with a Containerfile (or Dockerfile) in it.

        Parameters:
            file: the Containerfile, relative to the directory.
            tag: what the image is called.
            args: build arguments.
            target: the stage at which the build ends.
            no_cache: nothing of earlier builds is used.
            network: what RUN steps reach: `none`; `default`, what the engine gives a container; `host`, this host's.
            on_progress: hears the output; None shows its last line where stderr is a terminal.

        Returns:
            What `start` takes.

        Raises:
            StartFailed: `build_failed`, with the end of its output as `data["output"]`.
            OSError: the directory, or a file in it, cannot be read.
        """
        with raised(fspath(directory)), listening(on_progress, f"building {tag or fspath(directory)}") as tell:
            built = await self.client.image_build(
                directory,
                file=file,
                tag=tag,
                args=args,
                target=target,
                no_cache=no_cache,
                network=network,
                on_progress=tell,
            )
        return built.image

    async def load(self, archive: str | PathLike[str], *, on_progress: Tell | None = None) -> "list[str]":
        """Have the images of an archive, as `podman save` and `docker save` write them.

        Returns:
            For each of them what `start` takes.

        Raises:
            OSError: it cannot be read, or is none.
        """
        with raised(fspath(archive)), listening(on_progress, f"loading {fspath(archive)}") as tell:
            return await self.client.image_load(archive, on_progress=tell)

    # --- the host itself ---

    async def list(self) -> "list[ListedEnvironment]":
        """The sandboxes that there are."""
        with raised():
            return await self.client.environment_list()

    async def health(self) -> HealthStatus:
        """How the host is, in a word, with a message and details."""
        with raised():
            return await self.client.health()

    async def close(self) -> None:
        """End it, with all its sandboxes. Idempotent."""
        if self._client is not None:
            await self._client.aclose()


def _options(
    *,
    memory: Size | None = None,
    disk: Size | None = None,
    shm: Size | None = None,
    pids: int | None = None,
    lifetime: float | None = None,
    **others: Any,
) -> dict[str, Any]:
    """What is given, in the words of the wire."""
    sizes = {"memory_bytes": memory, "disk_bytes": disk, "shm_bytes": shm}
    told = given(**others) | given(
        pids_limit=pids,
        lifetime_ms=None if lifetime is None else milliseconds(lifetime),
        **{name: None if size is None else size_bytes(size) for name, size in sizes.items()},
    )
    made: dict[str, Any] = msgspec.to_builtins(told)
    return made
