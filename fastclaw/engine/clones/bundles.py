"""What a clone is made of: what kind of container a spec asks for, and the OCI configuration of one more of a kind.

The first container of a kind is Podman's, and its configuration (config.json of the OCI runtime specification 1.0) is
the template: its seccomp profile, masks, read-only paths, capabilities, limits and namespaces are taken as they are.
What is a container's own is replaced by what the own spec says: names, ids, limits, where its files are. A template
that has anything that is not understood is refused, with the reason. Reads and writes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

SHM = "/dev/shm"
CREATED = "io.kubernetes.cri-o.Created"
"""Podman 4.3 writes it (libpod/container_internal_common.go), 4.4 and later do not."""

FILTER = "run.oci.seccomp_bpf_data"
"""crun(1): the seccomp filter as the kernel takes it, in base64, instead of a profile to be compiled: 35 of 44 ms."""

_OWN = frozenset({"name", "labels", "shm_size", "resource_limits", "idmappings", "mounts", "volumes", "image"})
_IDMAP = "idmap="


class Unclonable(Exception):
    """Containers of this kind are left to the engine; the text says why, in one line."""


class OwnFile(Struct, frozen=True, kw_only=True):
    """A small file that the engine makes for each container.

    Parameters:
        name: among the files of a clone.
        text: with the names of its container in it, as the first one has it.
        uid, gid: as the container sees them.
    """

    destination: str
    name: str
    text: str
    mode: int
    uid: int
    gid: int


class First(Struct, frozen=True, kw_only=True):
    """What is known of the first container of a kind, beyond its spec.

    Parameters:
        id: its full id.
        config: its config.json.
        files: what the engine made for it.
        volumes: by name, where it has them.
        rlimits: in force in its init: name, soft, hard; None is no limit.
        oom_score: /proc/PID/oom_score_adj of its init.
    """

    id: str
    config: dict[str, Any]
    files: tuple[OwnFile, ...] = ()
    volumes: Mapping[str, str] = {}
    rlimits: tuple[tuple[str, int, int], ...] = ()
    oom_score: int = 0


class Place(Struct, frozen=True, kw_only=True):
    """Where a clone's parts are.

    Parameters:
        id: of the clone.
        owner: the name of the directory of its fastclaw.
        root: its root directory.
        files: the directory of its own files.
        volumes: directories, by name.
        created: when, as RFC 3339 has it.
        filter: the compiled seccomp filter in base64, once it is known.
    """

    id: str
    owner: str
    root: str
    files: str
    volumes: Mapping[str, str]
    created: str
    filter: str | None = None


def kind_of(spec: Mapping[str, Any], image: str) -> str:
    """What containers have in common that can be cloned from each other.

    Parameters:
        spec: as from `container_spec.container_spec`.
        image: the id of its image.
    """
    mappings = spec.get("idmappings") or {}
    limits = spec["resource_limits"]
    shape = {
        **{name: value for name, value in spec.items() if name not in _OWN},
        "image": image,
        "mounts": [[one["type"], one["destination"], *map(_shape, one["options"])] for one in spec["mounts"]],
        "volumes": [[one["Dest"], one["Options"]] for one in spec.get("volumes", ())],
        "limits": sorted((name, *sorted(of)) for name, of in limits.items()),
        "ids": {name: [[one["container_id"], one["size"]] for one in of] for name, of in mappings.items()},
    }
    return json.dumps(shape, sort_keys=True)


def _shape(option: str) -> str:
    return _IDMAP if option.startswith(_IDMAP) else option


def cgroup_of(config: Mapping[str, Any], owner: str, id: str) -> str:
    """The control group of one more container beside the first one's."""
    parent, _, _ = config["linux"]["cgroupsPath"].rpartition("/")
    return f"{parent}/fastclaw-{owner}-{id}"


class Template:
    """What is the same in all containers of a kind.

    Parameters:
        spec: of the first one.
        first: what the engine made of it.

    Raises:
        Unclonable: it has something that cannot be made anew.
    """

    def __init__(self, spec: Mapping[str, Any], first: First) -> None:
        self._config = config = first.config
        self._spec = spec
        self._files = {file.destination: file for file in first.files}
        self._given = {one["destination"]: index for index, one in enumerate(spec["mounts"])}
        self._volumes = {one["Dest"]: index for index, one in enumerate(spec.get("volumes", ()))}
        self._first = first
        _refuse_foreign(config)
        for mount in config["mounts"]:
            self._refuse_unknown(mount)
        place = Place(
            id="x" * 64, owner="o", root="/r", files="/f", volumes=dict.fromkeys(first.volumes, "/v"), created=""
        )
        if first.id in json.dumps(self.config(spec, place)):
            raise Unclonable("the engine's configuration names its container where no clone's name can be put")

    def _refuse_unknown(self, mount: Mapping[str, Any]) -> None:
        destination, source = mount["destination"], mount.get("source", "")
        if not source.startswith("/") or destination in self._files or destination == SHM:
            return
        if destination in self._given:
            expected = self._spec["mounts"][self._given[destination]]["source"]
        elif destination in self._volumes:
            expected = self._first.volumes[self._spec["volumes"][self._volumes[destination]]["Name"]]
        else:
            raise Unclonable(f"the engine mounts {source} of its own at {destination}")
        if source != expected:
            raise Unclonable(f"the engine mounts {source} at {destination}, where {expected} was asked for")

    @property
    def is_mapped(self) -> bool:
        """It has a user namespace."""
        return "uidMappings" in self._config["linux"]

    def files(self, spec: Mapping[str, Any], id: str) -> list[tuple[OwnFile, str]]:
        """A clone's own files, with their texts."""
        renamed = ((self._first.id, id), (self._first.id[:12], id[:12]), (self._spec["name"], spec["name"]))
        return [(file, _replaced(file.text, renamed)) for file in self._files.values()]

    def config(self, spec: Mapping[str, Any], place: Place) -> dict[str, Any]:
        """The config.json of a clone.

        Parameters:
            spec: its own, of the same kind.
        """
        config = self._config
        annotations = dict(config["annotations"])
        if CREATED in annotations:
            annotations[CREATED] = place.created
        linux = {
            **config["linux"],
            "cgroupsPath": cgroup_of(config, place.owner, place.id),
            "resources": _resources(config["linux"]["resources"], spec["resource_limits"]),
        }
        if self.is_mapped:
            linux["uidMappings"], linux["gidMappings"] = (
                [{"containerID": one["container_id"], "hostID": one["host_id"], "size": one["size"]} for one in given]
                for given in (spec["idmappings"]["UIDMap"], spec["idmappings"]["GIDMap"])
            )
        if place.filter is not None and "seccomp" in linux:
            # Where the annotation is not understood, every system call is refused, and nothing starts.
            annotations[FILTER] = place.filter
            linux["seccomp"] = {name: of for name, of in linux["seccomp"].items() if name != "syscalls"}
        return {
            **config,
            "process": self._process(),
            "root": {**config["root"], "path": place.root},
            "mounts": [self._mount(mount, spec, place) for mount in config["mounts"]],
            "annotations": annotations,
            "linux": linux,
        }

    def _process(self) -> dict[str, Any]:
        """What the first one has from the engine's own process, a clone would have from ours."""
        process = self._config["process"]
        said = {one["type"] for one in process.get("rlimits", ())}
        inherited = [
            {"type": name, "soft": soft, "hard": hard} for name, soft, hard in self._first.rlimits if name not in said
        ]
        return {
            "oomScoreAdj": self._first.oom_score,
            **process,
            "rlimits": [*process.get("rlimits", ()), *inherited],
        }

    def _mount(self, mount: dict[str, Any], spec: Mapping[str, Any], place: Place) -> dict[str, Any]:
        destination = mount["destination"]
        if destination in self._given:
            return self._bind(mount, spec["mounts"][self._given[destination]])
        if destination in self._volumes:
            return {**mount, "source": place.volumes[spec["volumes"][self._volumes[destination]]["Name"]]}
        if destination in self._files:
            return {**mount, "source": f"{place.files}/{self._files[destination].name}"}
        if destination == SHM and mount["type"] == "bind":
            options = [option for option in mount["options"] if option not in ("bind", "rbind", "rprivate")]
            own = [*options, "mode=1777", f"size={spec['shm_size']}"]
            return {"destination": SHM, "type": "tmpfs", "source": "shm", "options": own}
        return mount

    def _bind(self, mount: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        own = next((option for option in given["options"] if option.startswith(_IDMAP)), "")
        options = [own if option.startswith(_IDMAP) else option for option in mount["options"]]
        return {**mount, "source": given["source"], "options": options}


def _refuse_foreign(config: Mapping[str, Any]) -> None:
    linux = config["linux"]
    if any("path" in namespace for namespace in linux["namespaces"]):
        raise Unclonable("the engine makes its namespaces, as for network.mode open")
    if any(config.get("hooks", {}).values()):
        raise Unclonable("the engine has OCI hooks, which are for its own containers")
    if linux.get("mountLabel") or config["process"].get("selinuxLabel"):
        raise Unclonable("SELinux labels are the engine's to give out")
    if not linux["cgroupsPath"].startswith("/"):
        raise Unclonable("the engine has systemd make control groups (cgroup_manager in containers.conf)")


def _resources(resources: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    made = {**resources, "pids": {**resources["pids"], "limit": own["pids"]["limit"]}}
    if "memory" in own:
        memory, limit = resources["memory"], own["memory"]["limit"]
        made["memory"] = {name: number // memory["limit"] * limit for name, number in memory.items()}
    if "cpu" in own:
        made["cpu"] = {**resources["cpu"], **own["cpu"]}
    return made


class Held(NamedTuple):
    """A limit as the kernel shows it: in which file of which version's group, and what is in it."""

    controller: str
    legacy: tuple[str, str]
    unified: tuple[str, str]


def shown_limits(limits: Mapping[str, Mapping[str, Any]], page_bytes: int) -> list[Held]:
    """How the kernel shows these, of a container's own spec."""
    cpu, found = limits.get("cpu", {}), []
    if "pids" in limits:
        found.append(Held("pids", *2 * (("pids.max", str(limits["pids"]["limit"])),)))
    if "memory" in limits:
        size = str(limits["memory"]["limit"] // page_bytes * page_bytes)
        found.append(Held("memory", ("memory.limit_in_bytes", size), ("memory.max", size)))
    if "quota" in cpu:
        both = f"{cpu['quota']} {cpu['period']}"
        found.append(Held("cpu", ("cpu.cfs_quota_us", str(cpu["quota"])), ("cpu.max", both)))
    if "cpus" in cpu:
        found.append(Held("cpuset", *2 * (("cpuset.cpus", cpu["cpus"]),)))
    return found


def is_held(shown: Sequence[str], limit: str) -> bool:
    """Whether the words that a file shows are this limit: of a list of processors the kernel has its own spelling."""
    return " ".join(shown) == limit or (len(shown) == 1 and _processors(shown[0]) == _processors(limit))


def _processors(text: str) -> set[int] | str:
    """The numbers in such a list (cpuset(7)), or the text where it is none."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            return text
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _replaced(text: str, renamed: tuple[tuple[str, str], ...]) -> str:
    for old, new in renamed:
        text = text.replace(old, new)
    return text
