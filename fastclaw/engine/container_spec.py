"""The sandbox: what a container is allowed, in Podman's SpecGenerator JSON, and whose it is.

Every safe default of the sandbox is here and nowhere else. Knows no engine, no files, no clocks. Field names are those
of Podman 4.3.1 (pkg/specgen/specgen.go); later versions still read them.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from fastclaw import engine_limits, environment_limits, limits
from fastclaw.engine.gvisor import is_gvisor
from fastclaw.engine.traits import MAPS_SINCE, MAPS_WORKSPACES, maps_workspaces
from fastclaw.errors import InvalidParams
from fastclaw.spawner.frames import SECRET_VARIABLE

if TYPE_CHECKING:
    from fastclaw.options import Capabilities

LABEL_NAMESPACE = "io.fastclaw.namespace"
LABEL_OWNER = "io.fastclaw.owner"
LABEL_NUMBER = "io.fastclaw.shard"

INIT_TARGET = "/run/fastclaw-init"
SOCKET_TARGET = "/run/fastclaw-init.sock"
PYTHON_TARGET = "/run/fastclaw-python"
"""Where a container's Python finds fastclaw/template.py, and nothing else of ours."""

SHELL_INIT = "trap 'exit 0' TERM INT; while :; do sleep 2147483 & wait $!; done"
"""An init of the image's own shell: its `wait` reaps every child of PID 1, adopted orphans included, and a trapped
signal ends that `wait` at once. 2 147 483 s is the longest sleep whose milliseconds fit into 31 bits."""

RESOLV_CONF = "/etc/resolv.conf"

HOSTS_TARGET = "/etc/hosts"
HOSTNAME = "fastclaw"
"""The host name of every container: known before there is one, so that programs can be told to ask no proxy for it."""

HOSTS = f"127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
"""A container's hosts(5): what it calls itself. The engine would copy this host's, and add what the host is called."""

Workspace = tuple[str, str]
"""Source (an absolute path on the engine's host, or a volume's name), and absolute target inside."""


class InitPlan(Struct, frozen=True, kw_only=True):
    """What runs as PID 1.

    Parameters:
        catatonit: the host's static catatonit, bind-mounted read-only; None takes the image's own /bin/sh.
        spawner: our own spawner instead, bind-mounted read-only: the spawn lane. It needs nothing of the image.
        socket: where the spawner is awaited, on the host.
        template_module: fastclaw/template.py on the host, where there are templates.
        secret: by which the spawner is known where another process connects for it (gvisor.py).
    """

    catatonit: str | None = None
    spawner: str | None = None
    socket: str | None = None
    template_module: str | None = None
    secret: str | None = None

    @property
    def command(self) -> list[str]:
        """Its command line."""
        if self.spawner is not None:
            return [INIT_TARGET, SOCKET_TARGET]
        return ["/bin/sh", "-c", SHELL_INIT] if self.catatonit is None else [INIT_TARGET, "-P"]

    @property
    def mounts(self) -> list[tuple[str, str, str]]:
        """What it needs of the host: source, target, access."""
        program = self.spawner or self.catatonit
        template = f"{PYTHON_TARGET}/fastclaw/template.py"
        needed = ((program, INIT_TARGET), (self.socket, SOCKET_TARGET), (self.template_module, template))
        return [(source, target, "ro") for source, target in needed if source is not None]

    @property
    def processes(self) -> int:
        """How many processes it consists of: catatonit alone, or the shell and its sleep."""
        return 2 if self.catatonit is None else 1


class ContainerNetwork(Struct, frozen=True, kw_only=True):
    """What a container is connected to when it starts. What fastclaw connects it to comes later, and only then.

    Parameters:
        mode: Podman's word: `none` has a loopback device only; `bridge` is the engine's default network, unfiltered.
        resolv_conf: a file of the engine's host in the place of the container's resolv.conf(5); None leaves that to the
            engine, which makes none where the mode is `none`.
    """

    mode: Literal["none", "bridge"] = "none"
    resolv_conf: str | None = None


NO_NETWORK = ContainerNetwork()
OPEN_NETWORK = ContainerNetwork(mode="bridge")


def container_spec(
    *,
    image: str,
    name: str,
    namespace: str,
    owner: str,
    init: InitPlan,
    number: int = 0,
    workspace: Workspace | None = None,
    workspace_option: str | None = None,
    network: ContainerNetwork = NO_NETWORK,
    hosts: str | None = None,
    pids_limit: int | None = limits.PIDS_LIMIT,
    own_pids: int = 0,
    shm_bytes: int = limits.SHM_BYTES,
    memory_bytes: int | None = None,
    cpus: float | None = None,
    cpuset: str | None = None,
    disk_bytes: int | None = None,
    user: str | None = None,
    capabilities: Sequence[str] = (),
    ids: int | None = None,
    oci_runtime: str | None = None,
) -> dict[str, Any]:
    """The body of `POST /libpod/containers/create`.

    Parameters:
        owner: from `Owner.label`.
        number: 0-based, among the containers of one environment.
        pids_limit: processes and threads of all commands together; None where nothing would hold a limit.
        workspace_option: of the mount of a directory (`user_namespace.mount_option`).
        own_pids: what the container has besides (`spawner_pids`).
        memory_bytes, cpus, cpuset, disk_bytes: None is no limit.
        hosts: a file of the engine's host in the place of the container's hosts(5), which its root may write to. None
            leaves that to the engine, as does its own network.
        user: name or `uid[:gid]` for PID 1 and the default of every exec; None is the image's. A spawner is always
            the container's root and takes on the user of each process.
        capabilities: of commands that are root; a spawner keeps its own besides.
        ids: the host's id of root inside, with the next `limits.IDS` behind it; None is no user namespace of its own.
        oci_runtime: None is the service's default.
    """
    return {
        "image": image,
        "name": name,
        "hostname": HOSTNAME,
        "manage_password": False,  # else a user without an entry gets one, and with it a group of its own
        "labels": container_labels(namespace, owner, number),
        "env": {} if init.secret is None else {SECRET_VARIABLE: init.secret},
        **_chosen(user="0" if init.spawner else user, oci_runtime=oci_runtime),
        **_lifecycle(init),
        **_confinement(init, capabilities),
        **_resources(NO_PIDS_LIMIT if pids_limit is None else pids_limit + own_pids, memory_bytes, cpus, cpuset),
        **_user_namespace(ids),
        **({} if disk_bytes is None else {"storage_opts": {"size": str(disk_bytes)}}),
        "shm_size": shm_bytes,
        "netns": {"nsmode": network.mode},
        **_places(init, workspace, workspace_option, network, None if network == OPEN_NETWORK else hosts),
    }


def spawner_pids(reapers: int) -> int:
    """What a spawner needs for itself: main, and a pump beside each reaper."""
    return 1 + 2 * reapers


def container_labels(namespace: str, owner: str, number: int) -> dict[str, str]:
    """What a container is found by again."""
    return {LABEL_NAMESPACE: namespace, LABEL_OWNER: owner, LABEL_NUMBER: str(number)}


def _chosen(**fields: str | None) -> dict[str, str]:
    """The fields that are set: an empty one would not mean "the default" to every version."""
    return {name: value for name, value in fields.items() if value is not None}


def _lifecycle(init: InitPlan) -> dict[str, Any]:
    """Gone when it stops, nothing logged, no health checks (each would be an exec that holds the container's lock)."""
    return {
        "entrypoint": init.command,
        "command": [],
        "remove": True,
        "stop_timeout": engine_limits.CONTAINER_STOP_S,
        "systemd": "false",
        "log_configuration": {"driver": "none"},
        "healthconfig": {"Test": ["NONE"]},
    }


SPAWNER_CAPABILITIES = ["CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
"""What the spawner keeps, to become another user and to signal its processes; commands have those of
`options.capabilities` (spawner/c/confine.c)."""


def _confinement(init: InitPlan, capabilities: Sequence[str]) -> dict[str, Any]:
    """These rights and no others, nothing shared. seccomp is the engine's default profile where the spec names none."""
    private = {"nsmode": "private"}
    added = sorted({*capabilities, *(SPAWNER_CAPABILITIES if init.spawner else ())})
    return {
        "cap_drop": ["ALL"],
        **({"cap_add": added} if added else {}),
        "no_new_privileges": True,
        "privileged": False,
        "pidns": private,
        "ipcns": private,
        "utsns": private,
        "cgroupns": private,
        "umask": "0022",
    }


def _user_namespace(ids: int | None) -> dict[str, Any]:
    if ids is None:
        return {}
    extent = [{"container_id": 0, "host_id": ids, "size": limits.IDS}]
    return {"userns": {"nsmode": "private"}, "idmappings": {"UIDMap": extent, "GIDMap": extent}}


NO_PIDS_LIMIT = 0
"""Without a number Podman takes its settings' own (2 048), and -1 is still written: where there is no such controller,
crun 1.21 fails at both."""


def _resources(pids_limit: int, memory_bytes: int | None, cpus: float | None, cpuset: str | None) -> dict[str, Any]:
    memory = {} if memory_bytes is None else {"memory": {"limit": memory_bytes}}
    period = environment_limits.CPU_PERIOD_US
    share = {} if cpus is None else {"quota": round(cpus * period), "period": period}
    cpu = share if cpuset is None else {**share, "cpus": cpuset}
    return {
        "resource_limits": {"pids": {"limit": pids_limit}, **memory, **({"cpu": cpu} if cpu else {})},
        "r_limits": [],
    }


def _places(
    init: InitPlan,
    workspace: Workspace | None,
    workspace_option: str | None,
    network: ContainerNetwork,
    hosts: str | None,
) -> dict[str, Any]:
    """`use_image_hosts`: the engine makes no file of its own."""
    mounts = [_bind(*mount) for mount in init.mounts]
    more = {} if hosts is None else {"use_image_hosts": True}
    if hosts is not None:
        mounts.append(_bind(hosts, HOSTS_TARGET, "rw"))
    if network.resolv_conf is not None:
        mounts.append(_bind(network.resolv_conf, RESOLV_CONF, "ro"))
    if workspace is None:
        return {"mounts": mounts, **more}
    source, target = workspace
    if not source.startswith("/"):
        volume = {"Name": source, "Dest": target, "Options": ["nosuid", "nodev"]}
        return {"mounts": mounts, "volumes": [volume], **more}
    return {**more, "mounts": [*mounts, _bind(source, target, "rw", *([workspace_option] if workspace_option else []))]}


def _bind(source: str, target: str, access: str, *more: str) -> dict[str, Any]:
    options = [access, "nosuid", "nodev", "rbind", "rprivate", *more]
    return {"type": "bind", "source": source, "destination": target, "options": options}


# --- User namespaces and capabilities -------------------------------------------------------------------
#
# Whether containers get a user namespace of their own, whose root has no rights on the host (user_namespaces(7)), and
# how a workspace is seen through it: the ids of its owner are those of the environment's user, both ways, and all
# others that the environment has are themselves, so that nothing inside writes what belongs to the host's root. And
# which of root's capabilities(7) a command may have. `rights.py` gathers the facts and takes a range of ids.

IDMAPPED_LAYERS = (5, 19)
"""Since when an image's layers can be mapped without copying them (Linux 5.19, "ovl: support idmapped layers")."""

IDMAPPED_MOUNTS = {"ext4": (5, 12), "xfs": (5, 12), "vfat": (5, 12), "btrfs": (5, 15), "f2fs": (5, 18), "tmpfs": (6, 3)}
"""Since when a file system can be mapped by mount (mount_setattr(2), "ID-mapped mounts")."""


class Ids(Struct, frozen=True, kw_only=True):
    """A user and a group, by number."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


class NamespaceFacts(Struct, frozen=True, kw_only=True):
    """What the rules need to know.

    Parameters:
        is_root: fastclaw is the host's root.
        is_here: the engine is on this host.
        rootless: the engine has a user namespace already, and no ids but its own.
        is_docker: it gives a container none of its own.
        storage_driver, oci_runtime: the engine's; of the runtime the last part of its path.
        oci_runtime_version: as it says it; empty where it is not known.
        kernel: version and patch level.
        user_namespaces: how many there may be (/proc/sys/user/max_user_namespaces).
        highest_id: of the environment's user and its group, as far as they are known.
        owner: of the workspace's directory on the host; None where it is not the host's.
        file_system: the type of what that directory is on.
        has_mounts: something else is mounted in that directory.
    """

    is_root: bool
    is_here: bool
    rootless: bool
    storage_driver: str
    oci_runtime: str
    oci_runtime_version: str = ""
    kernel: tuple[int, int]
    user_namespaces: int
    is_docker: bool = False
    highest_id: int = 0
    owner: Ids | None = None
    file_system: str = ""
    has_mounts: bool = False


def why_none(facts: NamespaceFacts) -> str | None:
    """Why there can be no user namespace, in one line; None where there can."""
    if facts.rootless:
        return "a rootless engine has one already, whose root is the engine's user"
    if facts.is_docker:
        return "Docker gives containers none of their own"
    if not (facts.is_root and facts.is_here):
        return "ids of this host are its root's to give away, to an engine that is here"
    if is_gvisor(facts.oci_runtime):
        return "gVisor mounts as root inside, for whom the spawner's socket would be out of reach"
    if not facts.user_namespaces:
        return "this kernel allows none (sysctl user.max_user_namespaces)"
    if facts.storage_driver != "overlay" or facts.kernel < IDMAPPED_LAYERS:
        wanted = ".".join(map(str, IDMAPPED_LAYERS))
        return f"images would have to be copied: that takes storage driver overlay and Linux {wanted}"
    if facts.highest_id >= limits.IDS:
        return f"user or group {facts.highest_id} is beyond the {limits.IDS} ids that it has"
    return _why_no_workspace(facts)


def _why_no_workspace(facts: NamespaceFacts) -> str | None:
    if facts.owner is None:
        return None
    if 0 in (facts.owner.uid, facts.owner.gid):
        return (
            f"the workspace belongs to {facts.owner} of the host, and what is written inside would be root's; "
            "give it to another user and group (chown)"
        )
    if not maps_workspaces(facts.oci_runtime, facts.oci_runtime_version):
        wanted = f"{MAPS_WORKSPACES} {'.'.join(map(str, MAPS_SINCE))}"
        return f"the OCI runtime {facts.oci_runtime} cannot map a workspace; {wanted} and later can"
    if facts.has_mounts:
        return "something else is mounted in the workspace, and only the workspace itself could be mapped"
    since = IDMAPPED_MOUNTS.get(facts.file_system)
    if since is None or facts.kernel < since:
        return f"a workspace on {facts.file_system} cannot be mapped by this kernel"
    return None


def mount_option(first: int, owner: Ids, user: Ids) -> str:
    """The mount option that makes what the owner has the user's, and the other way round.

    Parameters:
        first: the host's id of root inside.
        owner: of the directory, on the host.
        user: of the environment, inside.
    """
    uids, gids = _extents(first, owner.uid, user.uid), _extents(first, owner.gid, user.gid)
    return f"idmap=uids={uids};gids={gids}"


def _extents(first: int, owner: int, user: int) -> str:
    """On disk, on the host, how many: the one id that is meant, and all others of the environment as themselves.

    What root inside has written belongs to an id of a range, and may be a workspace itself: it and the user's change
    places then, since no id may come twice.
    """
    meant, end = first + user, first + limits.IDS
    changed = {owner: meant}
    if first <= owner < end:
        changed[meant] = owner
    extents = [(disk, host, 1) for disk, host in changed.items()]
    start = first
    for stop in (*sorted({meant, owner} & set(range(first, end))), end):
        if stop > start:
            extents.append((start, start, stop - start))
        start = stop + 1
    return "#".join(f"{disk}-{host}-{count}" for disk, host, count in extents)


NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
"""linux/capability.h"""

UNUSUAL = frozenset({"CAP_KILL", "CAP_NET_RAW", "CAP_MKNOD", "CAP_AUDIT_WRITE"})
"""Only by name: packets of one's own making, device files, the host's audit log. And CAP_KILL, with which `kill -9 -1`
ends the spawner's reapers, and so every process of the environment, where without it ends what is root's."""

DEFAULT = tuple(name for name in NUMBERS if name not in UNUSUAL)

PATH = "$.options.capabilities"


def read_capabilities(wanted: "Capabilities") -> tuple[str, ...]:
    """The names that are meant, with their prefix, by number.

    Raises:
        InvalidParams: a name that is none, or none of those that may be had.
    """
    if wanted == "none":
        return ()
    if wanted == "default":
        return DEFAULT
    names = {f"CAP_{name.upper().removeprefix('CAP_')}" for name in wanted}
    if unknown := sorted(names - NUMBERS.keys()):
        there_are = ", ".join(name.removeprefix("CAP_") for name in NUMBERS)
        raise InvalidParams(f"{PATH}: {unknown[0]} cannot be had; there are {there_are}", "unsupported", path=PATH)
    return tuple(name for name in NUMBERS if name in names)


def mask(names: Iterable[str]) -> int:
    """A bit for each of them, as capget(2) has it in its first word."""
    return sum(1 << NUMBERS[name] for name in names)
