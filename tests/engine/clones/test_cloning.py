"""One container of a kind is the engine's, every further one a clone; whatever happens, nothing is left of either."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fastclaw import engine_limits
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.base_image import default_archive
from fastclaw.engine.clones import bundles, cloning
from fastclaw.engine.clones.cloning import CloningEngine, why_no_clones
from fastclaw.engine.container_spec import OPEN_NETWORK, InitPlan
from fastclaw.errors import StartFailed
from fastclaw.linux.cgroups import Group, group_of, limit_in
from tests.engine.clones.clone_fleet import directories, groups
from tests.engine.test_container import run
from tests.engine.versions import VERSION
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from podman.api.client import APIClient

    from fastclaw.engine.container import SpawnerContainer
    from fastclaw.engine.dialects import EngineVersion
    from tests.engine.clones.clone_fleet import CloneFleet


def made_by(clones: CloneFleet, container: SpawnerContainer) -> str:
    return clones.cloning.made_by(container.id)[0]


def with_socket(spec: dict[str, Any]) -> dict[str, Any]:
    """For one that is created and not started: a file has to be where its spawner is awaited."""
    for mount in spec["mounts"]:
        Path(mount["source"]).touch()
    return spec


# --- which is whose ---------------------------------------------------------------------------------


async def test_the_first_is_the_engines_and_the_next_are_clones(clones: CloneFleet) -> None:
    async with clones.up() as first, clones.up() as second, clones.up() as third:
        assert clones.cloning.made_by(first.id) == ("engine", "it is the first of its kind")
        for one in (second, third):
            assert clones.cloning.made_by(one.id) == ("clone", None)
            assert (one.alive, one.is_local) == (True, True)
            assert await clones.engine.inspect_container(one.id) is None
        assert repr(clones.cloning) == f"<CloningEngine of {clones.engine.url}, 1 kinds, 2 clones>"
        assert len(groups()) > 0
    assert groups() == []
    assert len(directories(clones.storage)) == 1
    assert clones.deaths.count == 0


async def test_many_at_once_are_one_of_the_engines_and_clones(clones: CloneFleet) -> None:
    many = [clones.make() for _ in range(12)]
    await asyncio.gather(*(container.start() for container in many))
    assert sorted(made_by(clones, one) for one in many) == ["clone"] * 11 + ["engine"]
    assert [await run(container, "true") for container in many] == [(0, "")] * 12
    await asyncio.gather(*(container.remove() for container in many))
    assert groups() == []


@contextmanager
def covered(path: str) -> Iterator[None]:
    """A directory with itself mounted on it."""
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


async def test_layers_that_a_podman_by_hand_has_covered_can_be_kept(clones: CloneFleet) -> None:
    """It mounts them onto themselves, where it has no mount namespace of its own: a link is `Invalid cross-device`."""
    with covered(str(clones.storage / "overlay")):
        async with clones.up() as first, clones.up() as second:
            assert [made_by(clones, one) for one in (first, second)] == ["engine", "clone"]
            assert await run(second, "true") == (0, "")


async def test_where_the_first_fails_the_next_one_is_the_first(clones: CloneFleet) -> None:
    bad = clones.spec()
    for mount in bad["mounts"]:
        if mount["destination"] == "/etc/hosts":
            mount["source"] = "/no/such/hosts"
    first, others = clones.over(bad), [clones.make() for _ in range(3)]
    outcomes = await asyncio.gather(*(one.start() for one in (first, *others)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StartFailed, *[type(None)] * 3]
    assert sorted(made_by(clones, one) for one in others) == ["clone", "clone", "engine"]
    await asyncio.gather(*(one.remove() for one in (first, *others)))


@pytest.mark.parametrize("is_created", [False, True])
async def test_where_the_first_is_given_up_the_next_one_is_the_first(clones: CloneFleet, is_created: bool) -> None:
    first = asyncio.create_task(clones.cloning.create_container(with_socket(clones.spec())))
    await until(lambda: any(kind.has_first for kind in clones.cloning._kinds.values()))
    second = clones.make()
    starting = asyncio.create_task(second.start())
    if is_created:
        await clones.cloning.remove_container(await first)
    else:
        first.cancel()
    await starting
    assert made_by(clones, second) == "engine"
    await second.remove()


async def test_who_has_waited_for_too_long_is_the_engines(clones: CloneFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_limits, "CLONE_LEARN_MS", 50)
    first = await clones.cloning.create_container(with_socket(clones.spec()))
    async with clones.up() as second:
        assert clones.cloning.made_by(second.id) == ("engine", "the first container of its kind took too long")
    await clones.cloning.remove_container(first)


async def test_kinds_that_were_not_used_for_longest_are_forgotten_with_their_layers(
    clones: CloneFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_limits, "CLONE_KINDS", 2)
    (own,) = directories(clones.storage)

    def layers() -> int:
        return len(os.listdir(f"{own}/layers"))

    async with clones.clone():
        assert layers() == 2  # what the engine has put in, and the image's only layer
        for capability in ("CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID"):
            async with clones.clone(capabilities=(capability,)):
                pass
        await until(lambda: layers() == 3)  # the kind that has a clone stays
    async with clones.clone(memory_bytes=1 << 26), clones.up(memory_bytes=1 << 26) as another:
        assert made_by(clones, another) == "clone"
        await until(lambda: layers() == 3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"network": OPEN_NETWORK}, "network.mode open"),
        ({"disk_bytes": 1 << 20}, "options.disk_bytes"),
        ({"oci_runtime": "/usr/bin/runc"}, "runc"),
    ],
)
def test_what_is_left_to_the_engine(clones: CloneFleet, options: dict[str, Any], why: str) -> None:
    assert why in (cloning._why_not_this(clones.spec(**options)) or "")
    assert cloning._why_not_this(clones.spec(oci_runtime="/usr/bin/crun")) is None


def test_containers_of_the_rest_lane_are_left_to_the_engine(clones: CloneFleet) -> None:
    for init in (InitPlan(), InitPlan(catatonit="/c")):
        assert "REST" in (cloning._why_not_this({**clones.spec(), "entrypoint": init.command}) or "")


def version(**changed: Any) -> EngineVersion:
    return msgspec.structs.replace(VERSION, **{"rootless": False, "cgroup_version": "v1", "storage": "/", **changed})


@pytest.mark.parametrize(
    ("url", "found", "crun", "why"),
    [
        ("unix:///x", version(), "/crun", None),
        ("tcp://x:1", version(), "/crun", "is not on this host"),
        ("unix:///x", version(docker="20.10.24"), "/crun", "the engine is Docker"),
        ("unix:///x", version(rootless=True), "/crun", "not root's"),
        ("unix:///x", version(storage_driver="vfs"), "/crun", "storage is vfs"),
        ("unix:///x", version(storage="/no/such"), "/crun", "overlay on this host"),
        ("unix:///x", version(oci_runtime="runc"), "/crun", "runtime is runc"),
        ("unix:///x", version(), None, "crun on this host"),
    ],
)
def test_why_there_are_no_clones_at_all(url: str, found: EngineVersion, crun: str | None, why: str | None) -> None:
    said = why_no_clones(url, found, crun)
    assert (said is None) == (why is None)
    assert why is None or (said is not None and why in said)


async def test_without_clones_everything_is_the_engines(clones: CloneFleet) -> None:
    found = msgspec.structs.replace(await clones.engine.version(), oci_runtime="other")
    await clones.cloning.aclose()
    clones.cloning = await CloningEngine.open(clones.engine, found, clones.engine.image_id)
    assert directories(clones.storage) == []
    async with clones.up(), clones.up() as second:
        kind, why = clones.cloning.made_by(second.id)
        assert kind == "engine"
        assert why == "the engine's OCI runtime is other; crun on this host is needed"


# --- each has its own -------------------------------------------------------------------------------

EVERYWHERE = "/dev/shm /tmp / /etc /run"


async def test_two_clones_see_nothing_of_each_other(clones: CloneFleet) -> None:
    async with clones.clone() as one, clones.up() as other:
        script = f"for way in {EVERYWHERE}; do echo mine >$way/mine; done"
        script += "; for file in hosts hostname; do echo mine >/etc/$file; done"
        assert await run(one, "sh", "-c", script) == (0, "")
        script = f"for way in {EVERYWHERE}; do ls $way/mine 2>&1; done; cat /etc/hosts /etc/hostname; hostname"
        code, said = await run(other, "sh", "-c", script)
        assert "mine\n" not in said.replace("/mine: No", "")
        assert said.count("No such file") == len(EVERYWHERE.split())
        assert "".join(said.split()).endswith("fastclawfastclaw")  # in Podman 5's file the name is a line
        assert code == 0
        inits = [await clones.cloning.inspect_container(container.id) for container in (one, other)]
        spaces = [
            {os.readlink(f"/proc/{init.pid}/ns/{name}") for name in ("net", "ipc", "uts", "mnt", "pid", "cgroup")}
            for init in inits
            if init is not None
        ]
        assert len(spaces[0] & spaces[1]) == 0
        assert len(spaces[0]) == len(spaces[1]) == 6


async def test_shared_memory_has_the_size_that_was_asked_for(clones: CloneFleet) -> None:
    for size in (1 << 20, 1 << 21):
        async with clones.up(shm_bytes=size) as one:
            code, said = await run(one, "sh", "-c", "stat -f -c '%b %s' /dev/shm")
            blocks, block = map(int, said.split())
            assert (code, blocks * block) == (0, size)
    assert len(clones.cloning._kinds) == 1


async def test_ids_are_each_ones_own(clones: CloneFleet) -> None:
    async with clones.clone(ids=True) as one, clones.up(ids=True) as other:
        for container in (one, other):
            root = container._spec["idmappings"]["UIDMap"][0]["host_id"]
            script = "echo x >/mine; echo y >>/etc/passwd; stat -c '%u %g' /mine / /etc/passwd /dev/shm /etc/hostname"
            assert await run(container, "sh", "-c", script) == (0, "0 0\n" * 5)
            upper = f"{directories(clones.storage)[0]}/clones/{container.id}/upper"
            assert {os.lstat(f"{upper}/{name}").st_uid for name in (".", "mine", "etc", "etc/passwd")} == {root}


async def test_limits_are_in_force(clones: CloneFleet) -> None:
    first: dict[str, Any] = {"memory_bytes": 32 << 20, "cpus": 0.5, "cpuset": "0"}
    own: dict[str, Any] = {"memory_bytes": 64 << 20, "cpus": 1.5, "cpuset": "0-1", "pids_limit": 77}
    async with clones.clone(**first), clones.up(**own) as one:
        state = await clones.cloning.inspect_container(one.id)
        assert state is not None
        pids, memory = (group_of(state.pid, name) for name in ("pids", "memory"))
        assert pids is not None
        assert memory is not None
        assert (limit_in(pids.folder / "pids.max") or 0) >= 77
        assert limit_in(memory.folder / "memory.limit_in_bytes") == 64 << 20
        assert one.limits()["memory"]["limit_bytes"] == 64 << 20
        assert one.limits()["cpu"]["limit_percent"] == 150
        assert await run(one, "nproc") == (0, f"{min(2, os.cpu_count() or 1)}\n")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"pids": {"limit": 5}, "memory": {"limit": 64 << 20}}, "pids limit of a clone is 5, and not 4105"),
        ({"pids": {"limit": 4105}, "memory": {"limit": 32 << 20}}, "memory limit of a clone is 33554432, and not"),
    ],
)
async def test_a_limit_that_is_not_in_force_is_a_failed_start(
    clones: CloneFleet, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], why: str
) -> None:
    async with clones.clone(memory_bytes=64 << 20):
        pass
    monkeypatch.setattr(bundles, "_resources", lambda resources, own: {**resources, **wrong})
    with pytest.raises(StartFailed, match=why):
        async with clones.up(memory_bytes=64 << 20):
            pass


# --- volumes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_mapped", [False, True])
async def test_a_volume_is_a_clones_own_and_outlives_it(clones: CloneFleet, is_mapped: bool) -> None:
    def options(name: str) -> dict[str, Any]:
        return {"workspace": (name, "/work"), "ids": is_mapped}

    def make(name: str) -> SpawnerContainer:
        return clones.make(**options(name))

    containers = {name: make(name) for name in ("engines", "one", "other")}
    for name, container in containers.items():
        mappings = container._spec.get("idmappings")
        root = mappings["UIDMap"][0]["host_id"] if mappings else 0
        await clones.cloning.create_volume(name, {}, f"{root + 1000}:{root + 1000}")
    engines, own, others = containers.values()
    async with clones.up(engines) as first, clones.up(own) as one, clones.up(others) as other:
        script = "echo $(stat -c '%u %g %a' /work) $(ls /work); echo x >/work/file && stat -c '%u' /work/file"
        said = [await run(each, "sh", "-c", script, user="1000:1000") for each in (first, one, other)]
        assert said[0] == said[1] == said[2]
        assert said[0][1].startswith("1000 1000 ")
        assert [made_by(clones, each) for each in (first, one, other)] == ["engine", "clone", "clone"]
    again = clones.over(own._spec)
    async with clones.up(again):
        assert (await run(again, "cat", "/work/file"))[1] == "x\n"
    same = clones.over(engines._spec)
    async with clones.up(same):
        assert clones.cloning.made_by(same.id) == ("engine", "its workspace is a volume of the engine's")
        assert (await run(same, "cat", "/work/file"))[1] == "x\n"
    for name in containers:
        await clones.cloning.remove_volume(name)
    assert os.listdir(f"{directories(clones.storage)[0]}/volumes") == []
    assert await clones.engine.list_volumes({}) == []
    await clones.cloning.remove_volume("one")


async def test_a_volume_that_the_engine_fills_is_never_a_clones(clones: CloneFleet) -> None:
    for name in ("a", "b"):
        await clones.cloning.create_volume(name, {})
        async with clones.up(workspace=(name, "/etc")) as one:
            kind, why = clones.cloning.made_by(one.id)
            assert kind == "engine"
        await clones.cloning.remove_volume(name)
    assert why is not None
    assert "the engine copies them into each volume" in why


async def test_containers_that_are_made_at_once_wait_for_their_volume(
    clones: CloneFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine would make it with a container that comes before it is there, and then refuse to make it."""
    said, may_go = [], asyncio.Event()

    async def volume(name: str, labels: object, owner: object) -> None:
        said.append("begun")
        await may_go.wait()
        said.append("there")

    monkeypatch.setattr(clones.engine, "create_volume", volume)
    await clones.cloning.create_volume("shared", {})
    giving = [asyncio.ensure_future(clones.cloning._give_to_engine("shared")) for _ in range(2)]
    for one in giving:
        one.add_done_callback(lambda _: said.append("given"))
    await until(lambda: said)
    may_go.set()
    await asyncio.gather(*giving)
    assert said == ["begun", "there", "given", "given"]
    clones.cloning._volumes.pop("shared")


async def test_a_volume_that_no_container_had_is_removed_without_a_word(clones: CloneFleet) -> None:
    await clones.cloning.create_volume("unused", {})
    await clones.cloning.remove_volume("unused")


async def test_a_volume_of_a_clone_that_failed_is_made_by_the_engine_and_removed_by_it(clones: CloneFleet) -> None:
    """It would make one by itself, without labels and owner."""
    for name in ("moved-1", "moved-2"):
        await clones.cloning.create_volume(name, {"l": name}, "7:7")
    async with clones.up(workspace=("moved-1", "/work")):
        pass
    spec = with_socket(clones.spec(workspace=("moved-2", "/work")))
    failed = await clones.cloning.create_container(spec)
    assert clones.cloning.made_by(failed)[0] == "clone"
    await clones.cloning.remove_container(failed)
    other = await clones.cloning.create_container({**spec, "entrypoint": InitPlan().command})
    assert clones.cloning.made_by(other)[0] == "engine"
    assert [found.name for found in await clones.engine.list_volumes({"l": "moved-2"})] == ["moved-2"]
    await clones.cloning.remove_container(other)
    for name in ("moved-1", "moved-2"):
        await clones.cloning.remove_volume(name)
    assert await clones.engine.list_volumes({}) == []


def _is_there_for_others(path: Path) -> bool:
    tried = subprocess.run(["test", "-e", path], user=65534, group=65534, extra_groups=[], check=False)
    return tried.returncode == 0


@pytest.mark.parametrize("is_mapped", [False, True])
async def test_no_other_user_of_the_host_gets_to_the_files_of_a_clone(clones: CloneFleet, is_mapped: bool) -> None:
    """Root inside, who may be the host's, makes set-user-ID files, and images have some. The names are no secret: they
    are in /proc/PID/mountinfo."""
    for name in ("closed-1", "closed-2"):
        await clones.cloning.create_volume(name, {})
    async with clones.up(workspace=("closed-1", "/work"), ids=is_mapped):
        pass
    async with clones.up(workspace=("closed-2", "/work"), ids=is_mapped) as clone:
        script = "cp /bin/busybox /tmp/b && cp /bin/busybox /work/b && chmod 4755 /tmp/b /work/b"
        assert made_by(clones, clone) == "clone"
        assert await run(clone, "sh", "-c", script) == (0, "")
        (own,) = map(Path, directories(clones.storage))
        found = [path for path in own.rglob("*") if path.name in ("b", "busybox") and not path.is_symlink()]
        assert len(found) == 3  # of the writable layer, of the volume, of the image
        assert [path for path in found if _is_there_for_others(path)] == []
    for name in ("closed-1", "closed-2"):
        await clones.cloning.remove_volume(name)


# --- what goes wrong --------------------------------------------------------------------------------


async def test_what_a_container_has_written_is_removed_whatever_it_is(clones: CloneFleet) -> None:
    script = """
cd /tmp; i=0; while [ $i -lt 300 ]; do mkdir 0123456789abcdef0123456789; cd 0123456789abcdef0123456789; i=$((i+1)); done
: >deep; cd /tmp; : >"$(printf '\\377\\376')"; mkdir -m 0 closed; ln -s / link; mkfifo pipe; mv /bin/ls .; rm /bin/cat
"""
    async with clones.clone() as one:
        assert (await run(one, "sh", "-c", script))[0] == 0
        (own,) = directories(clones.storage)
        assert os.listdir(f"{own}/clones") == [one.id]
    assert os.listdir(f"{own}/clones") == os.listdir(f"{own}/state") == []


async def test_a_start_that_is_cancelled_leaves_nothing(clones: CloneFleet) -> None:
    async with clones.clone():
        pass
    many = [clones.make() for _ in range(8)]
    starts = [asyncio.create_task(one.start()) for one in many]
    await until(lambda: groups() != [])
    for start in starts:
        start.cancel()
    await asyncio.gather(*starts, return_exceptions=True)
    await asyncio.gather(*(one.remove() for one in many))
    assert groups() == []
    (own,) = directories(clones.storage)
    assert os.listdir(f"{own}/clones") == os.listdir(f"{own}/state") == []


async def test_one_whose_spawner_does_not_come_up_is_one_error(clones: CloneFleet) -> None:
    async with clones.clone():
        pass
    spec = clones.spec()
    for mount in spec["mounts"]:
        if mount["destination"] == "/run/fastclaw-init":
            mount["source"] = "/etc/passwd"
    with pytest.raises(StartFailed, match=r"open executable: Permission denied|not executable"):
        async with clones.up(clones.over(spec)):
            pass


async def test_a_crun_that_takes_no_compiled_filter_gets_the_profile(
    clones: CloneFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "FILTER", "run.oci.unknown")
    async with clones.clone() as one:
        code, said = await run(one, "sh", "-c", "grep Seccomp: /proc/self/status")
        assert (code, said) == (0, "Seccomp:\t2\n")
    assert [kind.filter for kind in clones.cloning._kinds.values()] == [None]


async def test_with_the_engine_dead_clones_go_on_and_the_rest_is_one_error(clones: CloneFleet) -> None:
    image = await clones.engine.image_id(clones.image)

    async def image_id(reference: str) -> str:
        return image

    clones.cloning._image_id = image_id
    async with clones.clone():
        alive = clones.cloning._engine
        clones.cloning._engine = dead = EngineLifecycle(f"unix://{clones.directory}/none.sock")
        async with clones.up() as one:
            assert made_by(clones, one) == "clone"
        another = clones.make(memory_bytes=64 << 20)
        with pytest.raises(StartFailed) as caught:
            await another.start()
        assert caught.value.reason == "engine_unavailable"
        clones.cloning._engine = alive
        await another.remove()
        await dead.aclose()


# --- images -----------------------------------------------------------------------------------------


def archive_with(name: str, data: bytes) -> bytes:
    """The default image's files, and one more."""
    buffer = io.BytesIO(default_archive())
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


async def _call(clones: CloneFleet, method: str, path: str, **more: Any) -> None:
    def call(client: APIClient) -> None:
        getattr(client, method)(path, **more).raise_for_status()

    await clones.engine.change("test", call)


@pytest.mark.parametrize("by", ["name", "other", "id"])
async def test_an_image_that_is_removed_stays_under_its_clones(clones: CloneFleet, by: str) -> None:
    """By `podman rmi -f`; also where another name of it is removed first."""
    name, other = f"localhost/held-{by}:1", f"localhost/other-{by}:1"
    data = os.urandom(1 << 19).hex()
    await _call(
        clones, "post", "/images/import", params={"reference": name}, data=archive_with("big", data.encode()),
        headers={"Content-Type": "application/x-tar"},
    )  # fmt: skip
    await _call(clones, "post", f"/images/{name}/tag", params={"repo": other.split(":")[0], "tag": "1"})
    id = await clones.engine.image_id(name)
    clones.image = name
    layers = clones.storage / "overlay"
    before = set(os.listdir(layers))
    async with clones.clone() as one:
        for reference in {"name": (name, other), "other": (other, name), "id": (id,)}[by]:
            await _call(clones, "delete", f"/images/{reference}", params={"force": "true"})
        assert not await clones.engine.image(name)
        await until(lambda: len(before - set(os.listdir(layers))) == 1)
        assert await run(one, "cat", "/big") == (0, data)
        assert await run(one, "sh", "-c", "echo y >>/big; rm -r /bin/sh; ls /bin/sh 2>&1 | grep -c No") == (0, "1\n")


@pytest.mark.parametrize(
    ("controllers", "shown", "why"),
    [
        ("pids\n", "9\n", None),
        ("pids\n", "max\n", "the pids limit of a clone is max, and not 9"),
        ("pids\n", None, "the pids limit of a clone is , and not 9"),
        ("\n", None, None),
    ],
)
def test_a_limit_that_is_not_in_force_is_an_error_where_there_is_a_controller(
    controllers: str, shown: str | None, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clone-1"
    folder.mkdir()
    (folder / "cgroup.controllers").write_text(controllers)
    if shown is not None:
        (folder / "pids.max").write_text(shown)
    monkeypatch.setattr(cloning, "group_of", lambda pid, controller: Group(folder, tmp_path, True))
    with nullcontext() if why is None else pytest.raises(StartFailed, match=why):
        cloning._check_limits(1, "clone-1", {"pids": {"limit": 9}})
