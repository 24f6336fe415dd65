"""`options` of `initialize`: names, shapes and defaults of everything a user may set.

Unknown names are refused, with the nearest known one. Which runtime heeds which option is said beside it.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from fastclaw import limits
from fastclaw.decisions.params import convert
from fastclaw.errors import InvalidParams
from fastclaw.runtime import InitializeParams, Milliseconds

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\0]*\Z")]


class Workspace(Struct, frozen=True, forbid_unknown_fields=True):
    """A directory for the processes: `source` on the host (None: an empty one of the environment), `target` inside."""

    target: AbsolutePath
    source: AbsolutePath | None = None


class Network(Struct, frozen=True, forbid_unknown_fields=True):
    """`none`: no network but loopback. `open`: the engine's default network, unfiltered."""

    mode: Literal["none", "open", "proxy", "bridge"] = "none"


class Template(Struct, frozen=True, forbid_unknown_fields=True):
    """A program that is started once and forked for each worker (fastclaw/template.py is one).

    Parameters:
        cmd: argv.
        ready: it says so on its descriptor 3, or with the first line of its output.
        env: for itself and its workers; a request's own variables win.
        working_dir: its own; None is the workspace.
        user: its own and its workers'; None is `options.user`.
    """

    cmd: Annotated[list[str], Meta(min_length=1)]
    ready: Literal["fd", "line"] = "fd"
    env: dict[str, str] = field(default_factory=dict)
    working_dir: AbsolutePath | None = None
    user: str | None = None


TemplateName = Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAMESPACE_BYTES)]


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options. Times are milliseconds, sizes bytes.

    Parameters:
        runtime, lane: which environment and which way of starting; `auto` takes what works here.
        url: the engine's API (`unix://`, `tcp://`, `ssh://`); None is CONTAINER_HOST, else an engine of our own.
        image, pull: what the containers are made of, and whether it may be fetched.
        containers: shards of the REST lane.
        storage: `private`, or `host` to share the images of the host's own engine (only without `url`).
        oci_runtime: name of the OCI runtime; None is what works here.
        user: default user inside.
        templates: what `exec` may have forked, by name; only on this host and on the spawn lane.
    """

    runtime: Literal["auto", "podman", "local", "memory"] = "auto"
    lane: Literal["auto", "spawn", "rest"] = "auto"
    env: dict[str, str] = field(default_factory=dict)
    workspace: Workspace | None = None

    url: str | None = None
    image: str | None = None
    pull: Literal["missing", "never", "always"] = "missing"
    containers: Annotated[int, Meta(ge=1, le=64)] = limits.CONTAINERS
    storage: Literal["private", "host"] = "private"
    state_dir: AbsolutePath | None = None
    oci_runtime: str | None = None
    user: str | None = None
    network: Network = Network()
    pids_limit: Count = limits.PIDS_LIMIT
    shm_bytes: Annotated[int, Meta(ge=limits.MIB)] = limits.SHM_BYTES
    memory_bytes: Annotated[int, Meta(ge=limits.MIB)] | None = None
    templates: Annotated[dict[TemplateName, Template], Meta(max_length=limits.MAX_TEMPLATES)] = field(
        default_factory=dict
    )

    max_processes: Count = limits.MAX_PROCESSES
    max_starting: Count | None = None
    queue_limit: Annotated[int, Meta(ge=0, le=1_000_000)] = limits.QUEUE_LIMIT
    queue_timeout_ms: Milliseconds = limits.QUEUE_TIMEOUT_MS
    kill_grace_ms: Milliseconds = limits.KILL_GRACE_MS
    shutdown_timeout_ms: Milliseconds = limits.SHUTDOWN_TIMEOUT_MS
    keep_exited_ms: Milliseconds = limits.KEEP_EXITED_MS
    keep_exited: Annotated[int, Meta(ge=0, le=1_000_000)] = limits.KEEP_EXITED
    linger_ms: Milliseconds = limits.LINGER_MS
    max_lingering: Annotated[int, Meta(ge=0, le=1_000_000)] = limits.MAX_LINGERING
    engine_timeout_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)] = limits.ENGINE_TIMEOUT_MS
    start_timeout_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)] = limits.START_TIMEOUT_MS


def read_options(params: InitializeParams) -> Options:
    """The options of one `initialize`.

    Raises:
        InvalidParams: `unknown_option` with `data.nearest`, a wrong shape, or a network mode that is not there yet.
    """
    options = convert(params.options, Options, "$.options")
    if options.network.mode in ("proxy", "bridge"):
        raise InvalidParams(
            f"network mode {options.network.mode!r} is not built yet; use 'none' (nothing gets out) or 'open'",
            "unsupported",
            path="$.options.network.mode",
        )
    if options.templates and (options.lane == "rest" or options.runtime == "memory"):
        raise no_templates(f"lane {options.lane!r} of runtime {options.runtime!r}")
    return options


def no_templates(where: str) -> InvalidParams:
    """For what cannot have any."""
    text = f"there are no templates on {where}; they need the spawn lane or runtime 'local'"
    return InvalidParams(text, "unsupported", path="$.options.templates")
