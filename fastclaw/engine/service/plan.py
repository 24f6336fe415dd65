"""How a private Podman service must be started on this host: OCI runtime, settings, command line, environment.

Owns the rules. Knows no files, processes or clocks: `facts.py` gathers the facts, `service.py` acts.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from fastclaw import engine_limits
from fastclaw.engine.gvisor import runtime_flags
from fastclaw.engine.known_bugs import known_bugs
from fastclaw.engine.traits import NEEDS_SINGLE_CGROUP
from fastclaw.engine_limits import DISK_RESERVE_BYTES
from fastclaw.errors import StartFailed

DEFAULT_IMAGE = "localhost/fastclaw-default:1"
"""The image that fastclaw makes itself, of what is on this host: there need be no registry. The number is that of its
contents: one that an older fastclaw has made is not used."""

FALLBACK_IMAGE = "busybox"
"""Pulled where there is nothing to make it of, from the registry that the engine has for short names."""

CgroupMode = Literal["v1", "hybrid", "v2"]
Storage = Literal["private", "host"]

DROPPED_VARIABLES = frozenset(
    {"CONTAINER_HOST", "CONTAINER_CONNECTION", "CONTAINERS_CONF_OVERRIDE", "NOTIFY_SOCKET"}
    | {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
)
"""They would turn the service into a client of another one, or make it take over another service's socket."""

DIRECTORY_VARIABLES = frozenset(
    {"HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "TMPDIR"}
)
"""Relative ones do not count (XDG Base Directory Specification); Podman would take them for places below its own."""

GC_PERCENT = "400"
"""Podman spends its time on decoding and encoding its containers' records: collecting that garbage a quarter as often
gives 6 % more execs (61 to 65/s, alternating runs) for a few MB of heap. The user's own GOGC wins."""

SHELL = "/bin/sh"

CONMON_WITHOUT_EXIT_COMMAND = """\
#!/bin/sh
left=$#
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case $word in
    --exit-command | --exit-command-arg | --exit-delay)
        shift
        left=$((left - 1))
        ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec {conmon} "$@"
"""
"""Stands for conmon and leaves out the exit command. After an exec Podman's would keep two processes for
`exit_command_delay` and then start a whole Podman to forget the session. At full rate those Podmans starve the engine,
and sessions were gone before their exit code was asked for (measured with delays of 2 and 10 s, 2 CPUs, Podman 4.3.1).
After a container it would start one that outlives our shutdown; we remove every container ourselves.
Sessions then stay in the container's record, about 1 KB each, until `POST /exec/{id}/remove` (Podman 4.8) or the
container's end."""

GUARD = '[ "$PPID" = "$1" ] && cd "$2" || exit 1; shift 2; '
"""The death signal is asked for after the fork: a parent that died before it is noticed by its pid having changed."""

RECORD = 'read -r line < "/proc/$$/stat" && printf "%s\\n" "$line" > "$1" && cd "$2" || exit 1; shift 2; '
"""The service writes its own /proc/PID/stat line before it becomes Podman, so that it can always be found again."""

MOUNT_NAMESPACE = ["-m", "--propagation", "slave"]
"""unshare(1): what Podman mounts stays inside and goes with the last process there, however that ends; a service in the
host's own would leave the bind mount of its storage (4.3.1). `slave`: what the host unmounts is not kept busy."""

HIDE_CGROUP2 = "umount /sys/fs/cgroup/unified && mount -t tmpfs -o mode=755 none /sys/fs/cgroup/unified || exit 1; "
"""crun 1.8 refuses to run where version 2 is mounted beside version 1. It makes a directory there for each container
all the same (1.8.1): in a mount of our own, with which it goes; below the host's it would stay for ever."""

DEATH_SIGNAL = "TERM"
"""What the service gets when its owner dies. It ends what it is in the middle of (libpod/shutdown and
pkg/api/server/server.go, 4.3.1) and then itself; killed, it would leave monitors of unrecorded containers."""

AS_ROOT = "unset XDG_RUNTIME_DIR; "
"""Root's Podman calls a runtime without it, and then crun and runc keep their records in /run."""

PDEATHSIG_WITHOUT_SETPRIV = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""prctl(PR_SET_PDEATHSIG = 1, SIGTERM = 15), prctl(2). It survives execve of a program without file capabilities."""


class HostFacts(Struct, frozen=True, kw_only=True):
    """What the rules need to know of this host.

    Parameters:
        cgroups: `hybrid` is v1 controllers with a cgroup2 mount at /sys/fs/cgroup/unified.
        podman, crun, runc, conmon, catatonit, netavark, iptables, nft, setpriv, unshare, python: absolute paths; None
            where missing.
        conmon_version: as `conmon --version` says it, or None.
        nofile, nproc: hard limits of this process, at most `engine_limits.MAX_NOFILE` and kernel.pid_max.
        storage_driver: what the state directory's file system can carry, or None where Podman may decide.
        state_executable: the state directory's file system lets programs run.
        user_systemd: a systemd of this user's own answers, so that cgroups can be had without root.
    """

    is_root: bool
    cgroups: CgroupMode
    podman: str | None = None
    crun: str | None = None
    runc: str | None = None
    conmon: str | None = None
    conmon_version: str | None = None
    catatonit: str | None = None
    netavark: str | None = None
    iptables: str | None = None
    nft: str | None = None
    setpriv: str | None = None
    unshare: str | None = None
    python: str | None = None
    nofile: int
    nproc: int
    storage_driver: Literal["overlay", "vfs"] | None = None
    state_executable: bool = True
    user_systemd: bool = False


class ServicePlan(Struct, frozen=True, kw_only=True):
    """What was decided.

    Parameters:
        runtime_flags: with which it is called, without their dashes.
        conmon_shim: a shell script to be used as conmon, or None for conmon itself.
        bind_launcher: argv in front of Podman that ties its life to its parent's; the parent's pid comes next, then a
            directory to work in: conmon leaves a file `oom` there when a container ran out of memory.
        free_launcher: the same for a service that lives on by itself; the path of its pid file comes next,
            then the directory.
        tool_launcher: argv in front of Podman for one command that shares the service's storage.
    """

    podman: str
    oci_runtime: str
    runtime_flags: list[str]
    storage: Storage
    storage_driver: str | None
    facts: HostFacts
    conmon_shim: str | None
    bind_launcher: list[str]
    free_launcher: list[str]
    tool_launcher: list[str]


class JanitorOrder(Struct, frozen=True, kw_only=True):
    """What `podman/service/janitor_main.py` is told: JSON, since it runs without this package.

    Parameters:
        owner: the pid whose end it waits for.
        service: pid of the owner's service.
        own_dir: what is to be removed in the end.
        sockets: another directory, which goes once nobody holds it any more; none where it is empty.
        steps_have_size: steps of builds are known by the size of their /dev/shm: of an ordinary user's engine.
        podman: argv in front of a Podman command.
        runtime: argv in front of a command of the OCI runtime.
        label: what the owner's containers and volumes carry, `name=value`.
        nft: the program nft(8); None where there is none, and so no table of the owner's.
        tables: how the names of the owner's tables begin (`Owner.table_prefix`).
        drain_ms: how long the service may take to end by itself.
        call_ms: how long one command may take.
        tries: how often what stays is removed again.
        reserve: a file that is given up where the disk is full.
        reserve_bytes: its size.
    """

    owner: int
    service: int
    own_dir: str
    sockets: str = ""
    steps_have_size: bool = False
    podman: list[str]
    runtime: list[str]
    label: str
    nft: str | None = None
    tables: str = ""
    drain_ms: int = engine_limits.JANITOR_DRAIN_MS
    call_ms: int = engine_limits.JANITOR_CALL_MS
    tries: int = engine_limits.JANITOR_TRIES
    reserve: str = ""
    reserve_bytes: int = DISK_RESERVE_BYTES


class ServicePaths(Struct, frozen=True, kw_only=True):
    """Where one service lives. `root`, `runroot` and `tmpdir` are unused with the host's storage; `reserve` is a file
    beside the private one that can be given up (podman/service/storage.py)."""

    root: str
    runroot: str
    tmpdir: str
    socket: str
    conf: str
    reserve: str


def plan_service(
    facts: HostFacts, *, oci_runtime: str | None = None, flags: Sequence[str] = (), storage: Storage = "private"
) -> ServicePlan:
    """Decide how to run a service here.

    Parameters:
        oci_runtime: the user's choice, which wins over the rule.
        flags: `options.oci_runtime_flags`.

    Raises:
        StartFailed: `engine_unavailable`: something is missing or known to be broken; the message says what to install.
    """
    podman = _usable_podman(facts)
    runtime = oci_runtime or _choose_runtime(facts)
    hide = _must_hide_cgroup2(facts, runtime)
    private = hide or (storage == "private" and _can_have_private_mounts(facts))
    namespace = [facts.unshare, *MOUNT_NAMESPACE] if private and facts.unshare is not None else []
    return ServicePlan(
        podman=podman,
        oci_runtime=runtime,
        runtime_flags=runtime_flags(runtime, flags, is_root=facts.is_root),
        storage=storage,
        storage_driver=facts.storage_driver,
        facts=facts,
        conmon_shim=_conmon_shim(facts),
        bind_launcher=[*_death_signal(facts), *namespace, *_shell(hide, GUARD)],
        free_launcher=[*namespace, *_shell(hide, RECORD)],
        tool_launcher=[*namespace, *_shell(hide)],
    )


def bound_argv(plan: ServicePlan, paths: ServicePaths, parent: int) -> list[str]:
    """The command line of a service that ends with the process `parent`, which starts it."""
    return [
        *plan.bind_launcher,
        str(parent),
        _own_dir(paths),
        plan.podman,
        *_global_flags(plan, paths),
        *_serve(paths),
    ]


def daemon_argv(plan: ServicePlan, paths: ServicePaths, pid_file: str) -> list[str]:
    """The command line of a service that lives on (`fastclaw engine start`).

    Parameters:
        pid_file: gets the service's own line of /proc/PID/stat.
    """
    podman = [plan.podman, "--log-level=error", *_global_flags(plan, paths)]
    return [*plan.free_launcher, pid_file, _own_dir(paths), *podman, *_serve(paths)]


def tool_argv(plan: ServicePlan, paths: ServicePaths) -> list[str]:
    """The beginning of a Podman command on the service's storage that needs no service."""
    return [*plan.tool_launcher, plan.podman, *_global_flags(plan, paths)]


def runtime_argv(plan: ServicePlan) -> list[str]:
    """The beginning of a command of the OCI runtime, which sees the same containers as the service's."""
    environment = [SHELL, "-c", AS_ROOT + 'exec "$@"', "fastclaw-engine"] if plan.facts.is_root else []
    return [*plan.tool_launcher, *environment, plan.oci_runtime, *(f"--{flag}" for flag in plan.runtime_flags)]


def janitor_argv(python: str, script: str, order: JanitorOrder) -> list[str]:
    """The command line of a janitor: without site packages, which it does not need; an idle one takes 5 MB."""
    return [python, "-I", "-S", script, msgspec.json.encode(order).decode()]


_LOGGED = re.compile(r'\bmsg="((?:[^"\\]|\\.)*)"')

_ADVICE = {
    '"newuidmap"': "run: apt-get install uidmap",
    '"newgidmap"': "run: apt-get install uidmap",
    "join the existing user namespace": "run: podman system migrate",
    '"runsc" not found': "docs/gvisor.md says where it is to be had",
}
"""What a Podman says that cannot make or join its user namespace, or finds no gVisor, and what to do."""


def podman_says(line: str) -> str:
    """A line of Podman's without what its log puts around it, and with what to do where that is known."""
    logged = _LOGGED.search(line)
    text = logged[1].replace('\\"', '"') if logged else line.removeprefix("Error: ")
    advice = next((advice for words, advice in _ADVICE.items() if words in text), None)
    return text if advice is None else f"{text}; {advice}"


def why_not_url(url: str) -> str | None:
    """Why an engine cannot be reached by a URL, in one line with what to do; None where it can."""
    scheme, separator, rest = url.partition("://")
    if separator and ((scheme == "unix" and rest.startswith("/")) or (scheme == "tcp" and rest.rpartition(":")[0])):
        return None
    if scheme != "ssh":
        return f"{url} is no engine's address; they are unix:///path, tcp://host:port and host"
    return (
        f"{url} is not spoken here; have ssh forward its socket (`podman system connection list` shows where that is): "
        "ssh -nNT -L /tmp/podman.sock:REMOTE_SOCKET HOST, and take unix:///tmp/podman.sock"
    )


def service_env(paths: ServicePaths, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of the service: the caller's, without what would redirect it, with its own settings file.

    conmon reads its command line in the encoding of the locale, and in the C locale refuses paths that are not ASCII.
    """
    kept = {name: value for name, value in inherited.items() if name not in DROPPED_VARIABLES}
    for name in [name for name in kept if name in DIRECTORY_VARIABLES and not kept[name].startswith("/")]:
        del kept[name]
    return {"GOGC": GC_PERCENT, **kept, "LC_ALL": "C.UTF-8", "CONTAINERS_CONF": paths.conf}


def _usable_podman(facts: HostFacts) -> str:
    _require_utf8(facts)
    if facts.podman is None:
        raise _unavailable("podman is not installed; run: apt-get install podman")
    if facts.conmon is None:
        raise _unavailable("conmon is not installed; run: apt-get install conmon")
    for bug in known_bugs({"conmon": facts.conmon_version or ""}):
        if bug.level == "problem":
            raise _unavailable(f"conmon {facts.conmon_version}: {bug.text}; {bug.advice}")
    return facts.podman


def _require_utf8(facts: HostFacts) -> None:
    """Paths go into the engine's settings and the janitor's order, which are text."""
    for name, path in msgspec.structs.asdict(facts).items():
        try:
            str(path).encode()
        except UnicodeEncodeError:
            found = str(path).encode(errors="surrogateescape")
            raise _unavailable(f"{name} was found at {found!r}, which is no UTF-8; move it, or change PATH") from None


def _choose_runtime(facts: HostFacts) -> str:
    """crun where it works: it starts execs faster than runc (14.6/s against 11.5/s, one container, one at a time)."""
    if facts.crun is not None and (facts.cgroups != "hybrid" or _can_have_private_mounts(facts)):
        return "crun"
    if facts.runc is not None:
        return "runc"
    if facts.crun is not None:
        raise _unavailable("crun refuses this host's hybrid cgroups without root; run: apt-get install runc")
    raise _unavailable("no OCI runtime on this host; run: apt-get install crun")


def _must_hide_cgroup2(facts: HostFacts, runtime: str) -> bool:
    if facts.cgroups != "hybrid" or runtime.rpartition("/")[2] not in NEEDS_SINGLE_CGROUP:
        return False
    if not _can_have_private_mounts(facts):
        raise _unavailable(
            f"{runtime} refuses this host's hybrid cgroups without root; set options.oci_runtime to runc"
        )
    return True


def _can_have_private_mounts(facts: HostFacts) -> bool:
    return facts.is_root and facts.unshare is not None


def conf_text(plan: ServicePlan, conmon: str) -> str:
    """Text of the file for CONTAINERS_CONF.

    Parameters:
        conmon: where conmon, or what stands for it, is.
    """
    facts = plan.facts
    ulimits = [f"nofile={facts.nofile}:{facts.nofile}", f"nproc={facts.nproc}:{facts.nproc}"]
    lines = [
        "[containers]",
        f"default_ulimits = {_toml(ulimits)}",
        "[engine]",
        f"runtime = {_toml(plan.oci_runtime)}",
        f"cgroup_manager = {_toml(_cgroup_manager(facts))}",
        'events_logger = "none"',
        f"exit_command_delay = {engine_limits.EXIT_COMMAND_DELAY_S}",
        f"conmon_path = {_toml([conmon])}",
    ]
    if facts.netavark is not None:
        lines += ["[network]", 'network_backend = "netavark"']
    return "\n".join(lines) + "\n"


def _conmon_shim(facts: HostFacts) -> str | None:
    if not facts.state_executable or facts.conmon is None:
        return None
    return CONMON_WITHOUT_EXIT_COMMAND.format(conmon=shlex.quote(facts.conmon))


def _cgroup_manager(facts: HostFacts) -> str:
    """The systemd manager costs a D-Bus connection per exec; without root it is the only one that may make cgroups."""
    return "systemd" if facts.user_systemd and not facts.is_root else "cgroupfs"


def _death_signal(facts: HostFacts) -> list[str]:
    if facts.setpriv is not None:
        return [facts.setpriv, "--pdeathsig", DEATH_SIGNAL]
    if facts.python is not None:
        return [facts.python, "-I", "-S", "-c", PDEATHSIG_WITHOUT_SETPRIV]
    raise _unavailable("setpriv is not installed; run: apt-get install util-linux")


def _shell(hide_cgroup2: bool, guard: str = "") -> list[str]:
    return [SHELL, "-c", guard + (HIDE_CGROUP2 if hide_cgroup2 else "") + 'exec "$@"', "fastclaw-engine"]


def _global_flags(plan: ServicePlan, paths: ServicePaths) -> list[str]:
    flags = [f"--runtime-flag={flag}" for flag in plan.runtime_flags]
    if plan.storage == "host":
        return flags
    driver = [f"--storage-driver={plan.storage_driver}"] if plan.storage_driver else []
    return [f"--root={paths.root}", f"--runroot={paths.runroot}", f"--tmpdir={paths.tmpdir}", *driver, *flags]


def _serve(paths: ServicePaths) -> list[str]:
    """`--time=0`: never ends by itself, and keeps idle connections open."""
    return ["system", "service", "--time=0", f"unix://{paths.socket}"]


def _own_dir(paths: ServicePaths) -> str:
    return paths.socket.rpartition("/")[0]


def _toml(value: object) -> str:
    """JSON strings and arrays are TOML too."""
    return msgspec.json.encode(value).decode()


def _unavailable(message: str) -> StartFailed:
    return StartFailed(message, "engine_unavailable")
