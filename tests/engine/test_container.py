"""One container on a real Podman, with and without a spawner: up, watched, limited, killed, removed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.engine import container as container_module
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container import PidsLimit
from fastclaw.engine.container_spec import spawner_pids
from fastclaw.engine.containers import SpawnerSlot
from fastclaw.engine.podman_client import JSON
from fastclaw.engine.service.facts import CGROUP_ROOT, cgroup_mode
from fastclaw.errors import ExecFailed, FastclawError, StartFailed
from fastclaw.linux.cgroups import Group
from fastclaw.processes.lane import StartSpec
from fastclaw.spawner.spawn_lane import SpawnLane
from tests.engine.test_sandbox import handles
from tests.spawner.rig import finish
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from podman.api.client import APIClient

    from fastclaw.engine.container import Container, SpawnerContainer
    from tests.engine.fleet import Fleet
    from tests.engine_fixtures import EngineService


async def command(container: Container, *words: str) -> None:
    """Start a command in it that nobody attends to."""

    def start(client: APIClient) -> None:
        created = client.post(f"/containers/{container.id}/exec", data=json.dumps({"Cmd": [*words]}), headers=JSON)
        client.post(
            f"/exec/{created.json()['Id']}/start", data=json.dumps({"Detach": True}), headers=JSON
        ).raise_for_status()

    engine = container._engine
    assert isinstance(engine, EngineLifecycle)
    await engine.change("exec", start)


async def test_up_and_away(fleet: Fleet) -> None:
    container = fleet.make()
    name = container._spec["name"]
    assert (container.id, container.alive) == ("", False)
    assert repr(container) == f"<Container {name} not created not up>"
    await container.start()
    assert (container.alive, container.is_local) == (True, True)
    assert repr(container) == f"<Container {name} {container.id[:12]} up>"
    assert await fleet.containers() == {container.id}
    with pytest.raises(ExecFailed, match="no spawner"):
        await container.listen_inside(80)
    await container.remove()
    assert not container.alive
    assert await fleet.containers() == set()
    await container.remove()
    assert fleet.deaths.count == 0


@pytest.mark.skipif(cgroup_mode(CGROUP_ROOT) != "hybrid", reason="cgroup version 2 is not mounted beside version 1")
async def test_nothing_stays_below_the_mount_that_is_hidden_from_crun(fleet: Fleet) -> None:
    before = below_cgroup2()
    container = fleet.make()
    await container.start()
    assert below_cgroup2() == before
    await container.remove()


def below_cgroup2() -> str:
    """What there is where cgroup version 2 is mounted over it."""
    hidden = f"{CGROUP_ROOT}/unified"
    script = f"umount {hidden} && find {hidden}"
    argv = ["unshare", "-m", "--propagation", "slave", "sh", "-c", script]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


async def test_one_that_never_started_is_removed_without_a_word(fleet: Fleet) -> None:
    await fleet.make().remove()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_its_end_is_noticed_at_once_and_once(fleet: Fleet, signum: signal.Signals) -> None:
    container = fleet.make()
    await container.start()
    init = await fleet.init_of(container.id)
    while not init_handles(init, signum):  # noqa: ASYNC110 - /proc sends no event
        await asyncio.sleep(0.01)
    os.kill(init, signum)
    await asyncio.wait_for(fleet.deaths.first.wait(), 2)
    assert not container.alive
    container.mark_dead()
    assert fleet.deaths.count == 1
    await container.remove()


def init_handles(pid: int, signum: int) -> bool:
    """PID 1 is not even sent a signal that it does not handle yet (pid_namespaces(7)), KILL from outside apart."""
    with open(f"/proc/{pid}/status") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    return signum == signal.SIGKILL or handles(status, signum)


async def test_idle_means_that_only_its_init_runs(fleet: Fleet) -> None:
    container = fleet.make()
    await container.start()
    assert await container.is_idle()
    await command(container, "sleep", "1000")
    assert not await container.is_idle()
    await container.remove()
    assert not await container.is_idle()


async def test_kill_ends_everything_in_it(fleet: Fleet) -> None:
    container = fleet.make()
    await container.start()
    await command(container, "sleep", "1000")
    await container.kill()
    await asyncio.wait_for(fleet.deaths.first.wait(), 2)
    await container.kill()
    await container.remove()


async def test_an_engine_elsewhere_is_asked_to_kill(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the number of its init means nothing here, or somebody else."""
    monkeypatch.setattr(container_module, "_PROC", tmp_path)
    container = fleet.make()
    await container.start()
    assert (container.alive, container.is_local, container._pidfd) == (True, False, None)
    await container.kill()
    await container.remove()


@pytest.mark.parametrize(
    ("override", "reason"),
    [({"entrypoint": ["/bin/true"]}, "engine_error"), ({"image": "localhost/none:latest"}, "image_not_found")],
)
@pytest.mark.parametrize("kind", ["make", "make_spawner"])
async def test_a_container_that_does_not_come_up(
    fleet: Fleet, kind: str, override: dict[str, object], reason: str
) -> None:
    fleet.override = override
    container = getattr(fleet, kind)()
    with pytest.raises(StartFailed) as caught:
        await container.start()
    assert (caught.value.reason, container.alive) == (reason, False)
    await container.remove()


async def test_no_descriptor_left_to_watch_with(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    container = fleet.make()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", none_left)
        with pytest.raises(FastclawError, match="Too many open files"):
            await container.start()
    await container.remove()


@pytest.mark.parametrize("stage", ["creating", "starting"])
async def test_a_cancelled_start_leaves_nothing_once_removed(fleet: Fleet, stage: str) -> None:
    container = fleet.make()
    starting = asyncio.create_task(container.start())
    await getattr(fleet.engine, stage).wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await container.remove()
    assert await fleet.containers() == set()


async def test_a_creation_that_hangs_is_given_up(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ABANDONED_START_MS", 50)
    cancelled = asyncio.Event()

    async def hang(spec: object) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    monkeypatch.setattr(fleet.engine, "create_container", hang)
    container = fleet.make()
    starting = asyncio.create_task(container.start())
    await until(lambda: container._creation is not None)
    starting.cancel()
    await asyncio.wait([starting])
    await asyncio.wait_for(container.remove(), 2)
    assert cancelled.is_set()


# --- with a spawner ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def up(fleet: Fleet, user: str = "0") -> AsyncIterator[SpawnerContainer]:
    container = fleet.make_spawner(user)
    try:
        await container.start()
        yield container
    finally:
        await container.remove()


async def fails(fleet: Fleet, user: str = "0") -> None:
    """Bring one up that is expected not to come up, and take it down again."""
    async with up(fleet, user):
        pass


def lane_over(container: SpawnerContainer) -> SpawnLane:
    slot = SpawnerSlot(lambda on_death: container)
    slot.container = container
    return SpawnLane(slot, can_set_user=True)


async def run(container: SpawnerContainer, *cmd: str, user: str | None = None) -> tuple[int | None, str]:
    """Exit code and output."""
    process = await lane_over(container).start(StartSpec(process_id="p", cmd=list(cmd), user=user), 0)
    assert process.started is not None
    await process.started
    status, out, err = await finish(process)
    return status.exit_code, (out + err).decode()


async def test_up_run_and_down_with_a_spawner(fleet: Fleet) -> None:
    async with up(fleet) as container:
        assert container.alive
        assert container.is_local
        assert container.host is not None
        assert container.host.env["PATH"]
        assert await run(container, "sh", "-c", "echo out; exit 3") == (3, "out\n")
    assert await fleet.engine.inspect_container(container.id) is None
    assert fleet.deaths.count == 0


@pytest.mark.parametrize(
    ("default", "asked", "expected"),
    [
        ("0", None, "0 0 0 /"),
        ("1000:1000", None, "1000 1000 1000 /"),
        ("0", "1234", "1234 0 0 /"),
        ("1000", "0:7", "0 7 7 /"),
    ],
)
async def test_who_processes_are(fleet: Fleet, default: str, asked: str | None, expected: str) -> None:
    async with up(fleet, default) as container:
        code, said = await run(container, "sh", "-c", 'echo "$(id -u) $(id -g) $(id -G) $HOME"', user=asked)
        assert code == 0
        assert said.split()[:3] == expected.split()[:3]


async def test_an_unknown_user(fleet: Fleet) -> None:
    async with up(fleet) as container:
        for user, reason in (("nobody-knows", "unknown_user"), (str(limits.REAPER_UID), "permission_denied")):
            with pytest.raises(ExecFailed) as raised:
                await run(container, "true", user=user)
            assert raised.value.reason == reason
        assert container.host is not None
        assert await container.host.identify("0") is await container.host.identify("0")
        await run(container, "sh", "-c", "mkdir -p /etc; echo nobody-knows:x:77:78::/: >>/etc/passwd")
        assert (await run(container, "id", "-u", user="nobody-knows"))[1] == "77\n"
        await run(container, "sh", "-c", "sed -i s/:77:/:79:/ /etc/passwd")
        assert (await run(container, "id", "-u", user="nobody-knows"))[1] == "79\n"
    with pytest.raises(StartFailed) as failed:
        await fails(fleet, "nobody-knows")
    assert failed.value.reason == "unknown_user"


async def test_its_death_is_noticed_and_its_processes_are_gone(fleet: Fleet) -> None:
    async with up(fleet) as container:
        process = await lane_over(container).start(StartSpec(process_id="p", cmd=["sleep", "1000"]), 0)
        assert process.started is not None
        await process.started
        await container.kill()
        status, _, _ = await finish(process)
        assert status.reason == "container_gone"
        await asyncio.wait_for(fleet.deaths.first.wait(), 10)
        assert (container.alive, fleet.deaths.count) == (False, 1)


async def test_an_init_that_does_not_connect(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_HELLO_MS", 50)
    fleet.override = {"entrypoint": ["sleep", "1000"]}
    with pytest.raises(StartFailed, match="did not connect"):
        await fails(fleet)


async def test_an_init_that_ends_a_little_later(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does one whose start takes long, on busy cores, where the engine says before that it runs."""
    monkeypatch.setattr(limits, "SPAWN_HELLO_MS", 1_000)
    fleet.override = {"entrypoint": ["sleep", "0.4"]}
    with pytest.raises(StartFailed, match="ended at once"):
        await fails(fleet)


async def test_somebody_else_who_connects_is_turned_away(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the socket is there; the real init connects later, and nobody serves it."""
    start = EngineLifecycle.start_container
    strangers: list[socket.socket] = []

    async def intrude(engine: EngineLifecycle, container: str) -> None:
        strangers.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        strangers[-1].connect(str(next(fleet.directory.iterdir())))
        await start(engine, container)

    monkeypatch.setattr(EngineLifecycle, "start_container", intrude)
    with pytest.raises(StartFailed, match="not the container's init"):
        await fails(fleet)
    for stranger in strangers:
        stranger.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="ranges of ids are root's to give")
async def test_no_device_of_the_hosts_belongs_to_root_inside(fleet: Fleet) -> None:
    """crun gives its streams to the container's root (1.8.1, maybe_chown_std_streams), and conmon's stdin is /dev/null:
    root inside could then forbid the host's users to open it."""
    extent = [{"container_id": 0, "host_id": 1 << 30, "size": limits.IDS}]
    fleet.override = {"userns": {"nsmode": "private"}, "idmappings": {"UIDMap": extent, "GIDMap": extent}}
    fleet.directory.chmod(0o711)
    before = os.stat("/dev/null")
    async with up(fleet) as container:
        _, said = await run(container, "sh", "-c", "chmod 600 /dev/null 2>&1; stat -c '%u %g %a' /dev/null")
        found = os.stat("/dev/null")
    os.chown("/dev/null", before.st_uid, before.st_gid)
    os.chmod("/dev/null", 0o666)
    assert (found.st_uid, found.st_gid, found.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert said.splitlines()[-1] == "65534 65534 666"


# --- its pids limit ----------------------------------------------------------------------------------

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
LIMIT = 100
"""Of commands: each `sleep` is one."""
SHORT_ID = "0123abcd"


def group(root: Path, limit: str) -> Group:
    """A container's, below one with a limit of its own."""
    folder = root / "above" / f"libpod-{SHORT_ID}"
    folder.mkdir(parents=True)
    (folder / "pids.max").write_text(limit)
    (folder.parent / "pids.max").write_text("4915")
    return Group(folder, root, is_unified=True)


def test_a_limit_that_cannot_be_written_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = PidsLimit(group(tmp_path, str(LIMIT)), SHORT_ID, LIMIT)
    shutil.rmtree(tmp_path / "above")
    with caplog.at_level(logging.INFO):
        limit.make_room(5)
        limit.make_room(6)
    assert [record.message for record in caplog.records] == [
        "the container's pids limit cannot be raised: No such file or directory"
    ]


def test_a_limit_is_raised_by_what_is_ours(tmp_path: Path) -> None:
    own = group(tmp_path, str(LIMIT))
    limit = PidsLimit(own, SHORT_ID, LIMIT)
    limit.make_room(5)
    assert (own.folder / "pids.max").read_text() == str(LIMIT + spawner_pids(5)) == str(LIMIT + 11)
    assert limit.health() == {"limit": LIMIT, "hits": 0}


def test_a_limit_further_up_is_not_the_containers(tmp_path: Path) -> None:
    """As where the pids controller is not delegated: the next limit is that of the user's session."""
    limit = PidsLimit(group(tmp_path, "max"), SHORT_ID, LIMIT)
    limit.make_room(5)
    assert (tmp_path / "above" / "pids.max").read_text() == "4915"
    assert limit.health() == {}


async def test_commands_have_all_of_their_limit(engine_service: EngineService) -> None:
    options = {"url": engine_service.url, "image": engine_service.image, "pids_limit": LIMIT}
    async with RuntimeClient.spawn(SERVE, namespace="pids-limit", options=options) as runtime:
        sleepers = await asyncio.gather(*(runtime.exec(["sleep", "1000"]) for _ in range(LIMIT - 1)))
        assert (await runtime.run(["true"])).exit_code == 0
        last = await runtime.exec(["sleep", "1000"])

        async def too_many() -> None:
            for _ in range(LIMIT):  # some reapers are idle: their room is taken first
                await runtime.exec(["sleep", "1000"])

        with pytest.raises(ExecFailed, match="no room for one more process"):
            await too_many()
        told = (await runtime.health()).details["limits"]["pids"]
        assert (told["limit"], told["hits"] > 0) == (LIMIT, True)
        await asyncio.gather(*(process.kill(0) for process in (*sleepers, last)))
