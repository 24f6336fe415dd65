"""Where the processes of one environment run: the interface of all such places, and of what makes them.

A reset gives an environment another sandbox, so all that a reset renews is in it, and nothing else. What all sandboxes
of a kind have in common (an engine, its image cache, the egress process) is in their factory.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fastclaw import limits, stages
from fastclaw.errors import MethodNotFound, StartFailed
from fastclaw.linux.meter import Takes
from fastclaw.spawner.templates import Plans

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastclaw.files import Files
    from fastclaw.images import BuildImage, ImageResult, LoadedImages, LoadImages, PullImage
    from fastclaw.options import Options
    from fastclaw.processes.lane import Lane
    from fastclaw.processes.listeners import SocketDirectory
    from fastclaw.progress import Tell
    from fastclaw.runtime import MadeBy
    from fastclaw.stages import Flight


class SandboxFacts(NamedTuple):
    """What is known of a sandbox that is up.

    Parameters:
        lane: starts its processes.
        env: for every process, and for the supervisor to know of.
        workspace: the workspace as the processes see it.
        directory: where a process starts that names no directory.
        containers, max_starting: how starts are spread.
        user, home, container, image, made_by, why_no_clone, warnings: as `EnvironmentInfo` has them.
        labels: as `ListedEnvironment` has them.
        files: its files, where the lane's own helpers do not reach them.
    """

    lane: Lane
    directory: str
    user: str
    max_starting: int
    env: Mapping[str, str] = {}
    workspace: str | None = None
    containers: int = 1
    home: str | None = None
    container: str | None = None
    image: str | None = None
    made_by: MadeBy | None = None
    why_no_clone: str | None = None
    warnings: Sequence[str] = ()
    labels: Mapping[str, str] = {}
    files: Files | None = None


class Sandbox(ABC):
    """A place for processes, and all that belongs to it alone.

    Parameters:
        options: of its environment.

    Attributes:
        facts: once it is up.
    """

    facts: SandboxFacts

    def __init__(self, options: Options) -> None:
        self.options = options
        self._setup = contextlib.AsyncExitStack()
        self._tell: Tell | None = None
        self._flight = stages.unseen(stages.ENVIRONMENT_STAGES)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'up' if self.is_alive else 'not up'}>"

    async def start(self, tell: Tell | None = None, flight: Flight | None = None) -> None:
        """Bring it up. One that fails, or is cancelled, has undone what it did.

        Parameters:
            tell: hears how the pull of its image comes on.
            flight: of the call that it is for.

        Raises:
            StartFailed, InvalidParams.
        """
        self._tell = tell
        if flight is not None:
            self._flight = flight
        try:
            self.facts = await self._bring_up(self._setup)
        except BaseException as error:
            await self.aclose()
            if isinstance(error, OSError):  # a full /dev/shm, no descriptor: those who wait for it go on
                raise StartFailed(
                    f"{error.strerror or error}: {error.filename or 'a resource of this host'}"
                ) from error
            raise

    @abstractmethod
    async def _bring_up(self, setup: contextlib.AsyncExitStack) -> SandboxFacts:
        """Set everything up. What must be undone goes on `setup`, which is unwound even when this fails."""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether a process can be started in it now, as far as is known."""

    async def is_fresh(self) -> bool:
        """Whether one that would be made now, by the same options, would be the same."""
        return True

    @property
    def trouble(self) -> str | None:
        """What is wrong with it now, in one line."""
        return None

    def described(self) -> SandboxFacts:
        """The facts, as they are now."""
        return self.facts

    def takes(self) -> Takes:
        """What the kernel has counted of all that is in it."""
        return Takes()

    def decisions(self) -> dict[str, int] | None:
        """How many connections its egress proxy has `allowed`, `denied`, and has seen to have `failed`; None: it has
        none."""
        return None

    def details(self) -> dict[str, Any]:
        """What `health.details` says of it."""
        return {}

    async def kill(self) -> None:
        """End everything in it at once; return when nothing runs. `aclose` follows."""
        await self.aclose()

    async def aclose(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        await asyncio.shield(self._setup.aclose())


class ImageStore(Protocol):
    """The images that sandboxes of a kind can be made of."""

    async def pull(self, request: PullImage, tell: Tell | None) -> ImageResult:
        """As `ImageRuntime.image_pull`."""

    async def build(self, request: BuildImage, tell: Tell | None) -> ImageResult:
        """As `ImageRuntime.image_build`."""

    async def load(self, request: LoadImages, tell: Tell | None) -> LoadedImages:
        """As `ImageRuntime.image_load`."""


class SandboxFactory(ABC):
    """Makes the sandboxes of one kind, and has what they share.

    Parameters:
        namespace: the owner's, unique on this host.
        sockets: a private directory for what containers connect to.
    """

    name: str
    """The runtime's, as `options.runtime` has it."""

    def __init__(self, namespace: str, sockets: SocketDirectory) -> None:
        self.namespace, self.sockets = namespace, sockets

    @abstractmethod
    def make(self, options: Options) -> Sandbox:
        """One that is not up yet.

        Raises:
            InvalidParams: it cannot be had with these options.
        """

    async def images(self, options: Options) -> ImageStore:
        """Those that these options mean.

        Raises:
            StartFailed: the engine cannot be had.
            MethodNotFound: there are none.
        """
        raise MethodNotFound(f"the {self.name} runtime has no images")

    def health(self) -> dict[str, Any]:
        """What `health.details` says of what is shared."""
        return {}

    def decisions(self) -> Counter[tuple[str, str]]:
        """How often its egress proxy has decided what, by decision and reason."""
        return Counter()

    async def aclose(self) -> None:  # noqa: B027 - some have nothing to close
        """Close what is shared; every sandbox is closed. Idempotent."""


def plans(options: Options, workspace: str | None, *, python_path: str | None) -> Plans | None:
    """The environment's templates, for a lane that can have some; None: there are none.

    Parameters:
        workspace: as the processes see it.
        python_path: where a Python inside finds fastclaw/template.py, where it does not know by itself.
    """
    if not options.templates:
        return None
    ready_ms = options.start_timeout_ms * limits.TEMPLATE_START_PERCENT // 100
    return Plans(
        options.templates,
        base_env=options.env,
        working_dir=workspace,
        user=options.user,
        ready_s=ready_ms / 1000,
        python_path=python_path,
    )
