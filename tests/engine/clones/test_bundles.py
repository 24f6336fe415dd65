"""A clone's configuration is the engine's own, but for what is a container's own; the rest is refused."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.engine.clones.bundles import (
    CREATED,
    FILTER,
    First,
    OwnFile,
    Place,
    Template,
    Unclonable,
    cgroup_of,
    is_held,
    kind_of,
    shown_limits,
)
from fastclaw.engine.clones.learning import learn
from fastclaw.engine.container_spec import ContainerNetwork, Ids, InitPlan, container_spec, mount_option
from fastclaw.linux.file_trees import remove_tree

if TYPE_CHECKING:
    from tests.engine.clones.clone_fleet import CloneFleet

INIT = InitPlan(spawner="/s", socket="/x.init")


def spec_of(**options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"image": "i", "name": "n", "namespace": "ns", "owner": "o", "init": INIT, **options}
    return container_spec(**given)


SAME = [
    {"name": "other"},
    {"owner": "other", "namespace": "other", "number": 7},
    {"init": InitPlan(spawner="/s", socket="/y.init")},
    {"pids_limit": 10},
    {"shm_bytes": 1 << 20},
    {"image": "another-name-of-it"},
]


@pytest.mark.parametrize("other", SAME, ids=str)
def test_what_is_a_containers_own_makes_no_other_kind(other: dict[str, Any]) -> None:
    assert kind_of(spec_of(**other), "id") == kind_of(spec_of(), "id")


OWN_BUT_PRESENT = [
    ("memory_bytes", 1 << 26, 1 << 27),
    ("cpus", 1.5, 0.5),
    ("cpuset", "0", "0-1"),
    ("ids", 1 << 30, 1 << 29),
    ("hosts", "/a", "/b"),
    ("network", ContainerNetwork(resolv_conf="/a"), ContainerNetwork(resolv_conf="/b")),
    ("workspace", ("/a", "/w"), ("/b", "/w")),
    ("workspace", ("a", "/w"), ("b", "/w")),
]


@pytest.mark.parametrize(("name", "one", "other"), OWN_BUT_PRESENT)
def test_that_there_is_one_counts_and_which_does_not(name: str, one: Any, other: Any) -> None:
    with_one, with_other = (kind_of(spec_of(**{name: value}), "id") for value in (one, other))
    assert with_one == with_other != kind_of(spec_of(), "id")


DIFFERENT = [
    {"capabilities": ("CAP_CHOWN",)},
    {"workspace": ("/a", "/w")},
    {"workspace": ("a", "/w")},
    {"oci_runtime": "crun"},
    {"init": InitPlan(spawner="/s", socket="/x", template_module="/t")},
    {"network": ContainerNetwork(mode="bridge")},
]


@pytest.mark.parametrize("other", DIFFERENT, ids=str)
def test_what_is_asked_for_differently_is_another_kind(other: dict[str, Any]) -> None:
    assert kind_of(spec_of(**other), "id") != kind_of(spec_of(), "id")
    assert kind_of(spec_of(), "id") != kind_of(spec_of(), "of another image")


# --- against what Podman writes ---------------------------------------------------------------------

COMBINATIONS = list(
    product((False, True), (None, "volume", "directory"), (None, 64 << 20), (False, True), (False, True))
)


@pytest.mark.parametrize(("is_mapped", "workspace", "memory", "has_files", "has_rights"), COMBINATIONS)
async def test_a_clone_of_the_first_itself_is_configured_as_podman_has_it(
    clones: CloneFleet, is_mapped: bool, workspace: str | None, memory: int | None, has_files: bool, has_rights: bool
) -> None:
    """The differences are these and no others."""
    options: dict[str, Any] = {
        "ids": is_mapped,
        "memory_bytes": memory,
        "has_hosts": has_files,
        "has_resolv": has_files,
    }
    if has_rights:
        options["capabilities"] = ("CAP_CHOWN", "CAP_NET_BIND_SERVICE")
    spec = clones.spec(**options)
    if workspace is not None:
        spec = _with_workspace(clones, spec, workspace)
        if workspace == "volume":
            await clones.cloning.create_volume("bundles", {})
    async with clones.up(clones.over(spec)) as container:
        assert clones.cloning.made_by(container.id)[0] == "engine"
        found = await clones.engine.inspect_files(container.id)
        podmans = read_json(found.config_path)
        learned = learn(container.id, spec, found, str(clones.directory / "seed"))
        volumes = {mount.name: mount.source for mount in found.mounts if mount.name}
        root = podmans["root"]["path"]
        created = podmans["annotations"].get(CREATED, "")
        place = Place(id="f" * 64, owner="me", root=root, files="/own", volumes=volumes, created=created)
        ours = learned.template.config(spec, place)
        expected = _expected(copy.deepcopy(podmans), learned, spec)
    if workspace == "volume":
        await clones.cloning.remove_volume("bundles")
    remove_tree(str(clones.directory / "seed"))
    assert ours == expected


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text())


def _with_workspace(clones: CloneFleet, spec: dict[str, Any], workspace: str) -> dict[str, Any]:
    directory = clones.directory / "work"
    directory.mkdir()
    target, options = "/work", ["rw", "nosuid", "nodev", "rbind", "rprivate"]
    if workspace == "volume":
        return {**spec, "volumes": [{"Name": "bundles", "Dest": target, "Options": ["nosuid", "nodev"]}]}
    if "idmappings" in spec:
        first = spec["idmappings"]["UIDMap"][0]["host_id"]
        options.append(mount_option(first, Ids(uid=1000, gid=1000), Ids(uid=1000, gid=1000)))
        directory.chmod(0o755)
    bind = {"type": "bind", "source": str(directory), "destination": target, "options": options}
    return {**spec, "mounts": [*spec["mounts"], bind]}


def _expected(config: dict[str, Any], learned: Any, spec: dict[str, Any]) -> dict[str, Any]:
    config["linux"]["cgroupsPath"] = "/libpod_parent/fastclaw-me-" + "f" * 64
    config["process"]["oomScoreAdj"] = int(Path("/proc/self/oom_score_adj").read_text())
    said = {limit["type"]: limit for limit in config["process"]["rlimits"]}
    all_limits = {
        limit["type"]: limit for limit in learned.template.config(spec, _nowhere(learned))["process"]["rlimits"]
    }
    assert all_limits.items() >= said.items()
    assert set(all_limits) > {"RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_STACK"}
    config["process"]["rlimits"] = list(all_limits.values())
    own = {file.destination: f"/own/{file.name}" for file, _ in learned.template.files(spec, "f" * 64)}
    assert own.keys() >= {"/etc/hostname", "/run/.containerenv"}
    for mount in config["mounts"]:
        if mount["destination"] in own:
            mount["source"] = own[mount["destination"]]
        if mount["destination"] == "/dev/shm":
            assert mount["options"] == ["bind", "rprivate", "nosuid", "noexec", "nodev"]
            size = f"size={spec['shm_size']}"
            options = ["nosuid", "noexec", "nodev", "mode=1777", size]
            mount.update(type="tmpfs", source="shm", options=options)
    return config


def _nowhere(learned: Any) -> Place:
    return Place(
        id="f" * 64, owner="me", root="/r", files="/own", volumes=dict.fromkeys(learned.volumes, "/v"), created=""
    )


# --- what a template makes of another spec, and refuses ----------------------------------------------

ID = "a" * 64


def config_of(spec: dict[str, Any], **linux: Any) -> dict[str, Any]:
    mounts = [{**mount, "options": list(mount["options"])} for mount in spec["mounts"]]
    own = {"destination": "/etc/hostname", "type": "bind", "source": f"/c/{ID}/hostname", "options": []}
    shm = {"destination": "/dev/shm", "type": "bind", "source": f"/c/{ID}/shm", "options": ["bind", "nosuid"]}
    pids, memory = spec["resource_limits"]["pids"], spec["resource_limits"].get("memory")
    resources = {"pids": dict(pids)}
    if memory is not None:
        resources["memory"] = {"limit": memory["limit"], "swap": 2 * memory["limit"]}
    if "cpu" in spec["resource_limits"]:
        resources["cpu"] = {**spec["resource_limits"]["cpu"], "shares": 7}
    return {
        "process": {"args": spec["entrypoint"], "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]},
        "root": {"path": f"/c/{ID}/merged"},
        "mounts": [*mounts, own, shm],
        "annotations": {CREATED: "then"},
        "linux": {
            "cgroupsPath": f"/parent/libpod-{ID}",
            "resources": resources,
            "namespaces": [{"type": "pid"}],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["A"], "syscalls": ["many"]},
            **linux,
        },
    }


HOSTNAME = OwnFile(destination="/etc/hostname", name="own-0", text=f"n {ID} {ID[:12]}", mode=0o644, uid=0, gid=0)


def template_of(spec: dict[str, Any], config: dict[str, Any] | None = None) -> Template:
    limits = (("RLIMIT_CORE", 0, 5), ("RLIMIT_NOFILE", 9, 9))
    first = First(id=ID, config=config or config_of(spec), files=(HOSTNAME,), rlimits=limits, oom_score=-7)
    return Template(spec, first)


PLACE = Place(id="b" * 64, owner="me", root="/new/merged", files="/new", volumes={}, created="now")


def test_what_is_a_containers_own_is_that_of_its_spec() -> None:
    template = template_of(spec_of(memory_bytes=1 << 26, ids=1 << 30, hosts="/a"))
    assert template.is_mapped is False
    own = spec_of(name="m", memory_bytes=1 << 27, ids=1 << 29, hosts="/b", pids_limit=9, shm_bytes=5, init=INIT)
    made = template.config(own, PLACE)
    assert cgroup_of(made, "o", "c") == "/parent/fastclaw-o-c"
    assert made["linux"]["resources"] == {
        "pids": {"limit": 9},
        "memory": {"limit": 1 << 27, "swap": 1 << 28},
    }
    mounts = {mount["destination"]: mount for mount in made["mounts"]}
    assert mounts["/etc/hosts"]["source"] == "/b"
    assert mounts["/etc/hostname"]["source"] == "/new/own-0"
    assert mounts["/dev/shm"]["options"] == ["nosuid", "mode=1777", "size=5"]
    assert made["root"]["path"] == "/new/merged"
    assert made["annotations"] == {CREATED: "now"}
    assert made["process"]["oomScoreAdj"] == -7
    assert [one["type"] for one in made["process"]["rlimits"]] == ["RLIMIT_NOFILE", "RLIMIT_CORE"]
    assert template.files(own, PLACE.id) == [(HOSTNAME, f"m {'b' * 64} {'b' * 12}")]
    assert made["linux"]["seccomp"]["syscalls"] == ["many"]
    assert ID not in json.dumps(made)


def test_a_clone_has_no_annotation_that_its_first_has_not() -> None:
    """Podman 4.4 and later do not say when a container was created."""
    config = config_of(spec := spec_of()) | {"annotations": {"io.container.manager": "libpod"}}
    assert template_of(spec, config).config(spec, PLACE)["annotations"] == config["annotations"]


def test_a_compiled_filter_takes_the_place_of_the_profile_and_nothing_would_run_without_it() -> None:
    spec = spec_of()
    made = template_of(spec).config(
        spec, Place(id="b", owner="me", root="/", files="/", volumes={}, created="", filter="AAAA")
    )
    assert made["annotations"][FILTER] == "AAAA"
    assert made["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["A"]}


def test_ids_are_those_of_the_spec() -> None:
    spec = spec_of(ids=1 << 30)
    extent = [{"containerID": 0, "hostID": 1 << 30, "size": limits.IDS}]
    template = template_of(spec, config_of(spec, uidMappings=extent, gidMappings=extent))
    made = template.config(spec_of(ids=1 << 29), PLACE)["linux"]
    assert made["uidMappings"] == made["gidMappings"] == [{**extent[0], "hostID": 1 << 29}]


def test_processors_are_those_of_the_spec() -> None:
    template = template_of(spec_of(cpus=1.5, cpuset="0"))
    made = template.config(spec_of(cpus=0.5, cpuset="0-1"), PLACE)["linux"]["resources"]["cpu"]
    assert made == {"quota": 50_000, "period": 100_000, "cpus": "0-1", "shares": 7}


def test_limits_as_the_kernel_shows_them() -> None:
    limits = spec_of(pids_limit=9, memory_bytes=10_000, cpus=0.5, cpuset="0-2,7")["resource_limits"]
    held = {one.controller: (one.legacy, one.unified) for one in shown_limits(limits, 4_096)}
    assert held == {
        "pids": (("pids.max", "9"),) * 2,
        "memory": (("memory.limit_in_bytes", "8192"), ("memory.max", "8192")),
        "cpu": (("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000")),
        "cpuset": (("cpuset.cpus", "0-2,7"),) * 2,
    }
    assert [one.controller for one in shown_limits({"pids": {"limit": 9}}, 4_096)] == ["pids"]


@pytest.mark.parametrize(
    ("shown", "limit", "is_in_force"),
    [
        (["9"], "9", True),
        (["50000", "100000"], "50000 100000", True),
        (["0-2,7"], "0,1,2,7", True),
        (["0-2"], "0-3", False),
        (["max", "100000"], "50000 100000", False),
        (["max"], "9", False),
        ([], "9", False),
    ],
)
def test_whether_a_limit_is_in_force(shown: list[str], limit: str, is_in_force: bool) -> None:
    assert is_held(shown, limit) is is_in_force


def foreign(**linux: Any) -> dict[str, Any]:
    return config_of(spec_of(), **linux)


REFUSED = [
    (foreign(namespaces=[{"type": "network", "path": "/run/netns/x"}]), "namespaces"),
    ({**foreign(), "hooks": {"prestart": [{"path": "/h"}]}}, "hooks"),
    (foreign(mountLabel="system_u"), "SELinux"),
    (foreign(cgroupsPath="machine.slice:libpod:x"), "systemd"),
    ({**foreign(), "annotations": {"id": ID}}, "names its container"),
    ({**foreign(), "mounts": [{"destination": "/d", "type": "bind", "source": "/of/its/own"}]}, "of its own at /d"),
    (
        {**foreign(), "mounts": [{"destination": "/run/fastclaw-init", "type": "bind", "source": "/else"}]},
        "where /s was asked for",
    ),
]


@pytest.mark.parametrize(("config", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_cannot_be_made_anew_is_refused(config: dict[str, Any], why: str) -> None:
    with pytest.raises(Unclonable, match=why):
        template_of(spec_of(), config)
