"""The sandbox: what a container is allowed, in Podman's SpecGenerator JSON, and whose it is.

Every safe default of the sandbox is here and nowhere else. Knows no engine, no files, no clocks. Field names are those
of Podman 4.3.1 (pkg/specgen/specgen.go); later versions still read them.
"""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from fastclaw import limits

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
    """

    catatonit: str | None = None
    spawner: str | None = None
    socket: str | None = None
    template_module: str | None = None

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
    pids_limit: int = limits.PIDS_LIMIT,
    own_pids: int = 0,
    shm_bytes: int = limits.SHM_BYTES,
    memory_bytes: int | None = None,
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
        pids_limit: processes and threads of all commands together.
        workspace_option: of the mount of a directory (`user_namespace.mount_option`).
        own_pids: what the container has besides (`spawner_pids`).
        memory_bytes, disk_bytes: None is no limit.
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
        "env": {},
        **_chosen(user="0" if init.spawner else user, oci_runtime=oci_runtime),
        **_lifecycle(init),
        **_confinement(init, capabilities),
        **_resources(pids_limit + own_pids, memory_bytes),
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
        "stop_timeout": limits.CONTAINER_STOP_S,
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


def _resources(pids_limit: int, memory_bytes: int | None) -> dict[str, Any]:
    memory = {} if memory_bytes is None else {"memory": {"limit": memory_bytes}}
    return {"resource_limits": {"pids": {"limit": pids_limit}, **memory}, "r_limits": []}


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
