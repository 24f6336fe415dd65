"""`options` of `initialize` and `environment_start`: names, shapes and defaults of everything a user may set.

Unknown names are refused, with the nearest known one. Which runtime heeds which option is said beside it.
"""

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct, field

from fastclaw import engine_limits, environment_limits, limits, network_limits, telemetry_limits
from fastclaw.errors import InvalidParams
from fastclaw.runtime import Milliseconds, PoolKinds, User

RuntimeName = Literal["auto", "podman", "docker", "local", "memory"]
RUNTIMES: tuple[str, ...] = get_args(RuntimeName)[1:]
ENGINES = ("podman", "docker")
"""Those that have containers and images."""

ENGINE_OPTIONS = ("url", "storage", "state_dir", "oci_runtime", "oci_runtime_flags")
"""Options that say which engine is meant."""

FIRST_ID, ID_RANGES = 0x7000_0000, 1024
"""Ids that no other program gives away: above those of containers of systemd, below its foreign ones (systemd,
UIDS-GIDS.md: 0x70000000 to 0x7FFDFFFF are unused)."""

Capabilities = Literal["none", "default"] | list[str]
"""What root inside may (engine/container_spec.py)."""

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\0]*\Z", max_length=limits.MAX_PATH_CHARS)]
Name = Annotated[str, Meta(min_length=1)]
"""Empty is a variable that is not set, and not the default."""
Cpuset = Annotated[str, Meta(pattern=r"^[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*\Z", max_length=1024)]
"""Numbers of processors (cpuset(7), "List format")."""
RuntimeFlag = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(=[^\0]*)?\Z", max_length=limits.MAX_PATH_CHARS)]
Rule = Annotated[str, Meta(min_length=1, max_length=network_limits.EGRESS_RULE_BYTES)]
Rules = Annotated[list[Rule], Meta(max_length=network_limits.EGRESS_RULES)]


class Workspace(Struct, frozen=True, forbid_unknown_fields=True):
    """A directory for the processes: `source` on the host (None: an empty one of the environment), `target` inside."""

    target: AbsolutePath
    source: AbsolutePath | None = None


class SecretSource(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a secret is: a variable of fastclaw's own environment, or a file on its host. Exactly one of the two."""

    env: Name | None = None
    file: AbsolutePath | None = None


class Inject(Struct, frozen=True, forbid_unknown_fields=True):
    """A header that the proxy adds to plain-HTTP requests, so that its value never enters the sandbox.

    Parameters:
        host: a name, or `*.suffix`; the port is any that `allow` lets through for it.
        header: its name; what a client sends under it is replaced.
    """

    host: Rule
    header: Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}\Z")]
    value_from: SecretSource


class Upstream(Struct, frozen=True, forbid_unknown_fields=True):
    """A proxy outside, as `http://[user:password@]host:port`: itself, or where it is. Exactly one of the three."""

    url: str | None = None
    env: str | None = None
    file: AbsolutePath | None = None


class Network(Struct, frozen=True, forbid_unknown_fields=True):
    """What may leave the sandbox.

    Parameters:
        mode: `proxy`: nothing but the egress proxy, on the sandbox's own loopback. `bridge`: a network of its own,
            whose ports 80 and 443 are turned to the proxy, for programs that ignore proxy variables. `none`: nothing
            but loopback. `open`: the engine's default network, unfiltered.
        allow, deny: rules (`HOST[:PORTS]`, network/egress/policy.py); what no rule allows is refused, and `deny` wins.
        inject: headers that the proxy adds.
        upstream: the proxy outside through which connections leave; None: they go straight.
        log: a file that gets one JSON line for each decision.
        max_bytes: both directions together, for the environment's whole life.
    """

    mode: Literal["proxy", "bridge", "none", "open"] = "proxy"
    allow: Rules = field(default_factory=list)
    deny: Rules = field(default_factory=list)
    inject: Annotated[list[Inject], Meta(max_length=network_limits.EGRESS_RULES)] = field(default_factory=list)
    log: AbsolutePath | None = None
    log_max_bytes: Annotated[int, Meta(ge=limits.KIB)] = network_limits.EGRESS_LOG_BYTES
    max_connections: Count = network_limits.EGRESS_CONNECTIONS
    max_connections_per_s: Count = network_limits.EGRESS_CONNECTIONS_PER_S
    max_bytes: Annotated[int, Meta(ge=0)] | None = None
    idle_timeout_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)] = network_limits.EGRESS_IDLE_MS
    connect_timeout_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)] = network_limits.EGRESS_CONNECT_MS
    upstream: Upstream | None = None


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
    user: User | None = None


class IdRanges(Struct, frozen=True, forbid_unknown_fields=True):
    """Ids of the host that may be lent to environments, `limits.IDS` to each.

    Parameters:
        first: of the first range, a multiple of `limits.IDS`, so that ranges are the same or have nothing in common.
        count: how many ranges there are.
    """

    first: Annotated[int, Meta(ge=limits.IDS, le=2**32 - 2 * limits.IDS, multiple_of=limits.IDS)] = FIRST_ID
    count: Annotated[int, Meta(ge=1, le=limits.MAX_ID_RANGES)] = ID_RANGES


TemplateName = Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAMESPACE_BYTES)]


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options. Times are milliseconds, sizes bytes.

    Parameters:
        runtime, lane: which environment and which way of starting; `auto` takes what works here.
        url: the engine's API (`unix://`, `tcp://`, or `host`: the socket that systemd keeps for this user's own
            Podman); None is CONTAINER_HOST, else an engine of our own. Of Docker: DOCKER_HOST, else its usual socket.
        image, pull: what the containers are made of, and whether it may be fetched.
        containers: of the REST lane; with more than one, each exec runs in another one, with files of its own.
        storage: `private`, or `host` to share the images of the host's own engine (only without `url`).
        oci_runtime: name of the OCI runtime; None is what works here.
        oci_runtime_flags: with which an engine of our own calls it, each a name or `name=value` (engine/gvisor.py).
        clone: `auto`: the first container of a kind is the engine's, and further ones are made after it without asking
            the engine, where that can be; `always`: not even that one is kept, and where there can be no clones, the
            start fails; `never`: all are the engine's.
        user: default user inside.
        user_namespace: `private`: root inside is nobody on this host; `host`: it is the engine's root; `auto`: the
            first where that can be had (engine/container_spec.py).
        id_ranges: the host's ids for it.
        capabilities: what root inside may: `none`, `default`, or names (engine/container_spec.py); None is `default`
            in a user namespace of ours, and else `none`.
        templates: what `exec` may have forked, by name; only on this host and on the spawn lane.
        cpus: processor time of all processes together, in processors; None is as much as there is.
        cpuset: which processors they may use, as `0-3,7`; None is all.
        disk_bytes: what each container may write beside the workspace; refused where the storage keeps no such quota.
        run_output_bytes: what all runs may have collected at a time; over it, one is ended and `overloaded`.
        lifetime_ms: after which the environment is ended, as by `environment_stop`; None is as long as fastclaw runs.
    """

    runtime: RuntimeName = "auto"
    lane: Literal["auto", "spawn", "rest"] = "auto"
    env: dict[str, str] = field(default_factory=dict)
    workspace: Workspace | None = None

    url: Name | None = None
    image: Name | None = None
    pull: Literal["missing", "never", "always"] = "missing"
    containers: Annotated[int, Meta(ge=1, le=64)] = limits.CONTAINERS
    storage: Literal["private", "host"] = "private"
    state_dir: AbsolutePath | None = None
    oci_runtime: Name | None = None
    oci_runtime_flags: Annotated[list[RuntimeFlag], Meta(max_length=engine_limits.MAX_RUNTIME_FLAGS)] = field(
        default_factory=list
    )
    clone: Literal["auto", "always", "never"] = "auto"
    user: User | None = None
    user_namespace: Literal["auto", "host", "private"] = "auto"
    id_ranges: IdRanges = IdRanges()
    capabilities: Capabilities | None = None
    network: Network = Network()
    pids_limit: Count = limits.PIDS_LIMIT
    shm_bytes: Annotated[int, Meta(ge=limits.MIB)] = limits.SHM_BYTES
    memory_bytes: Annotated[int, Meta(ge=limits.MIB)] | None = None
    cpus: Annotated[float, Meta(ge=0.01)] | None = None
    cpuset: Cpuset | None = None
    disk_bytes: Annotated[int, Meta(ge=limits.MIB)] | None = None
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
    run_output_bytes: Annotated[int, Meta(ge=0)] = limits.RUN_OUTPUT_BYTES
    engine_timeout_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)] = limits.ENGINE_TIMEOUT_MS
    start_timeout_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)] = limits.START_TIMEOUT_MS
    lifetime_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class PoolKind(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of environment, and how many of it are kept ready.

    Parameters:
        size: how many; 0 keeps none any more.
    """

    size: Annotated[int, Meta(ge=0, le=environment_limits.MAX_ENVIRONMENTS)]


class HostOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`options` of `initialize`: those of the environment `main`, and of what all environments have in common.

    Parameters:
        environment: whether `main` is started.
        pool: what is kept ready.
        journal: a file that gets a line for each exec, run and start of an environment, with its stages.
        journal_max_bytes: before it is rotated.
        metrics: where Prometheus asks for metrics: the path of a Unix socket, or a loopback address and a port.
        traces: where spans go by OTLP over HTTP: an URL, or `env` for what OpenTelemetry's own variables say.
        control: whether there is a control socket, for `fastclaw top` and `stats`; or where it is to be.
    """

    environment: bool = True
    pool: PoolKinds = field(default_factory=list)
    journal: AbsolutePath | None = None
    journal_max_bytes: Annotated[int, Meta(ge=limits.KIB)] = telemetry_limits.JOURNAL_BYTES
    metrics: str | None = None
    traces: str | None = None
    control: bool | AbsolutePath = False


INHERITED = ("runtime", "lane", *ENGINE_OPTIONS, "id_ranges", "engine_timeout_ms")
"""What an environment takes from `initialize` where its own options do not say: which engine, and how it is asked.
Nothing of what is inside."""


def no_templates(where: str) -> InvalidParams:
    """For what cannot have any."""
    text = f"there are no templates on {where}; they need the spawn lane or runtime 'local'"
    return InvalidParams(text, "unsupported", path="$.options.templates")
