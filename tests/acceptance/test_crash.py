"""What is left when fastclaw or a container is killed at any point: no process, no container, no mount."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE
from fastclaw.engine.service.facts import CGROUP_ROOT, cgroup_mode
from fastclaw.errors import ExecFailed, FastclawError, StartFailed
from fastclaw.linux import proc
from fastclaw.linux.helper import pause_s
from fastclaw.linux.proc import start_time
from fastclaw.runtime import InitializeParams
from fastclaw.runtimes import podman
from fastclaw.runtimes.host import EnvironmentHost
from tests.acceptance.homes import DAEMONS, PATIENCE_S, PROMISED_S, Home, Watch, killed, nothing_is_left
from tests.engine_fixtures import unusable
from tests.pids import command_line, marked
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastclaw.client import RemoteProcess, RuntimeClient
    from fastclaw.engine.service.plan import ServicePlan
    from tests.engine_fixtures import EngineService

pytestmark = pytest.mark.timeout(60)

NAMESPACE = "crash"
"""Between two looks at what sends no event: /proc and the engine's directories."""

CROWD = 50
UNWILLING = "trap '' TERM; setsid sh -c \"trap '' TERM; while :; do sleep 1000; done\" & while :; do sleep 1000; done"

DEAF_INIT = "#!/bin/sh\nexec sleep 1000\n"
STRANGE_INIT = "#!/bin/sh\nexit 3\n"
SILENT_INIT = """\
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(int count, char **words) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, words[count - 1], sizeof at.sun_path - 1);
    if (connect(socket(AF_UNIX, SOCK_SEQPACKET, 0), (struct sockaddr *)&at, sizeof at)) return 1;
    for (;;) pause();
}
"""


def kill_engine(client: RuntimeClient) -> None:
    """SIGKILL to its private engine alone."""
    [engine] = [pid for pid, _ in proc.children(client.pid) if b"service" in command_line(pid).split(b"\0")]
    os.kill(engine, signal.SIGKILL)


def traces_in_the_system(home: Home, containers: set[str]) -> list[str]:
    """Control groups and state of the OCI runtimes, which is in the user's runtime directory where that is not root."""
    places = [path for run in (Path("/run"), home.run) for name in ("crun", "runc") for path in run.glob(f"{name}/*")]
    for folder, _, _ in os.walk("/sys/fs/cgroup"):
        places.append(Path(folder))
    return [str(path) for path in places if any(name in path.name for name in containers)]


async def no_container_is_left(home: Home, plan: ServicePlan, containers: set[str]) -> None:
    """The same, and nobody knows of these containers any more: neither Podman nor the system."""
    await nothing_is_left(home)
    assert home.records(plan) == ""
    assert traces_in_the_system(home, containers) == []


@contextlib.asynccontextmanager
async def started(home: Home, *words: str) -> AsyncIterator[RuntimeClient]:
    """Up and initialized; its end is the test's."""
    async with home.client(*words) as client:
        await client.initialize(NAMESPACE)
        yield client


async def shell(client: RuntimeClient, script: str, **request: Any) -> RemoteProcess:
    return await client.exec(["sh", "-c", script], stdin=False, **request)


async def quietly(call: asyncio.Future[Any]) -> None:
    """The end of a call whose runtime was killed."""
    with contextlib.suppress(FastclawError):
        await call


# --- fastclaw killed: its private engine ---

MILESTONES: dict[str, Callable[[Home], Any]] = {
    "the engine is being started": lambda home: home.found("r/fastclaw/[0-9]*-*/"),
    "the engine answers": lambda home: home.found("r/fastclaw/[0-9]*-*/podman.sock"),
    "the container is created": lambda home: home.containers(),
    "the container is being started": lambda home: home.found("r/fastclaw/store-*/run/*/*/userdata/conmon.pid"),
    "the init has not been greeted": lambda home: home.inits(),
}


@contextlib.asynccontextmanager
async def initializing(
    home: Home, plan: ServicePlan, milestone: str = "the container is being started"
) -> AsyncIterator[tuple[RuntimeClient, asyncio.Future[Any]]]:
    """A runtime that has come so far in its `initialize`. Whatever becomes of it, nothing is left of its container."""
    async with home.client("--runtime", "podman") as client:
        call = asyncio.ensure_future(client.initialize(NAMESPACE))
        await until(lambda: MILESTONES[milestone](home))
        seen = home.containers()
        yield client, call
    await no_container_is_left(home, plan, seen)


@pytest.mark.parametrize("milestone", MILESTONES)
async def test_killed_during_initialize(home: Home, engine_plan: ServicePlan, milestone: str) -> None:
    async with initializing(home, engine_plan, milestone) as (client, call):
        assert not call.done(), "too late: it is up already"
        await killed(client)
        await quietly(call)


async def test_killed_together_with_the_engine_that_starts_a_container(home: Home, engine_plan: ServicePlan) -> None:
    """The engine has not written down then what runs already."""
    async with initializing(home, engine_plan) as (client, call):
        kill_engine(client)
        await killed(client)
        await quietly(call)


async def test_an_engine_that_is_killed_while_it_starts_a_container(home: Home, engine_plan: ServicePlan) -> None:
    """We live, and cannot ask it to remove anything: its janitor does."""
    async with initializing(home, engine_plan) as (client, call):
        kill_engine(client)
        with pytest.raises(StartFailed):
            await call


async def test_killed_while_idle(home: Home, engine_plan: ServicePlan) -> None:
    async with started(home, "--runtime", "podman") as client:
        seen = home.containers()
        assert len(seen) == 1
        assert traces_in_the_system(home, seen)
        await killed(client)
    await no_container_is_left(home, engine_plan, seen)


@pytest.mark.parametrize("lane", ["spawn", "rest"])
async def test_killed_with_a_crowd_of_daemons(home: Home, engine_plan: ServicePlan, lane: str) -> None:
    crowd = CROWD if lane == "spawn" else CROWD // 10
    async with home.client("--runtime", "podman") as client:
        await client.initialize(NAMESPACE, {"lane": lane, "workspace": {"target": "/w"}})
        await asyncio.gather(*(shell(client, DAEMONS) for _ in range(crowd)))
        await until(lambda: len(home.processes()) > 4 * crowd)
        seen = home.containers()
        await killed(client)
    await no_container_is_left(home, engine_plan, seen)


async def test_killed_during_a_kill(home: Home, engine_plan: ServicePlan) -> None:
    async with started(home, "--runtime", "podman") as client:
        seen = home.containers()
        process = await shell(client, UNWILLING)
        call = asyncio.ensure_future(client.kill(process.id, PATIENCE_S * 1000))
        await asyncio.sleep(0.1)  # TERM has no effect that could be seen
        await killed(client)
        await quietly(call)
    await no_container_is_left(home, engine_plan, seen)


SHUTDOWN: dict[str, Callable[[Home], bool]] = {
    "processes have their grace time": lambda home: True,
    "the container has ended": lambda home: all(start_time(pid) is None for pid in home.inits()),
    "the container is removed": lambda home: not home.containers(),
    "the engine is ended": lambda home: not home.found("r/fastclaw/[0-9]*-*/podman.sock"),
}


@pytest.mark.parametrize("milestone", SHUTDOWN)
async def test_killed_during_shutdown(home: Home, engine_plan: ServicePlan, milestone: str) -> None:
    async with started(home, "--runtime", "podman") as client:
        seen = home.containers()
        await shell(client, UNWILLING)
        call = asyncio.ensure_future(client.shutdown())
        await until(lambda: SHUTDOWN[milestone](home))
        with contextlib.suppress(ProcessLookupError):
            os.kill(client.pid, signal.SIGKILL)
        assert await client.exited(PATIENCE_S) in (0, -signal.SIGKILL)
        await quietly(call)
    await no_container_is_left(home, engine_plan, seen)


async def test_a_successor_that_starts_at_once_has_no_trouble(home: Home, engine_plan: ServicePlan) -> None:
    """It and the janitor remove the same container; directories are gone once it is up."""
    async with started(home, "--runtime", "podman") as client:
        await shell(client, DAEMONS)
        dead = client.pid
        await killed(client)
    async with started(home, "--runtime", "podman") as client:
        async with await shell(client, "echo on") as process:
            assert (await process.communicate())[0] == b"on\n"
        await until(lambda: len(home.containers()) == 1, PROMISED_S)
        assert [name for name in home.directories() if str(dead) in name] == []
        assert (await client.health()).status == "healthy"
    assert client.exit_code == 0
    assert (home.processes(), home.containers(), home.directories()) == ([], set(), [])
    assert home.records(engine_plan) == ""


@pytest.mark.podman
@pytest.mark.parametrize("oci_runtime", ["crun", "runc"])
async def test_an_orderly_end_leaves_no_mount_and_no_janitor(home: Home, oci_runtime: str) -> None:
    if shutil.which(oci_runtime) is None:
        unusable(f"{oci_runtime} is not installed")
    if oci_runtime == "crun" and os.geteuid() != 0 and cgroup_mode(CGROUP_ROOT) == "hybrid":
        unusable("crun refuses hybrid cgroups to who is not root")
    async with home.client("--runtime", "podman") as client:
        await client.initialize(NAMESPACE, {"oci_runtime": oci_runtime})
        assert any("janitor" in line for line in home.processes())
    assert client.exit_code == 0
    assert (home.processes(), home.containers(), home.directories()) == ([], set(), [])
    assert home.mounts() == []


# --- fastclaw killed: an engine that somebody else runs ---


async def test_killed_on_an_engine_that_a_url_names(home: Home, engine_service: EngineService) -> None:
    """The container ends at once; its record goes with the next start in its namespace."""
    engine = EngineLifecycle(engine_service.url)
    options = {"url": engine_service.url, "image": engine_service.image}
    try:
        async with home.client("--runtime", "podman") as client:
            await client.initialize(NAMESPACE, options)
            process = await shell(client, DAEMONS)
            [left] = await engine.list_containers({LABEL_NAMESPACE: NAMESPACE})
            pids = _inside(left.id)
            assert len(pids) > 4
            await killed(client)
        await until(lambda: not _inside(left.id), PROMISED_S)
        assert [row for row in proc.scan("FASTCLAW_PROCESS_ID") if row.marker == process.id] == []
        async with home.client("--runtime", "podman") as client:
            await client.initialize(NAMESPACE, options)
            assert left.id not in {one.id for one in await engine.list_containers({LABEL_NAMESPACE: NAMESPACE})}
        assert await engine.list_containers({LABEL_NAMESPACE: NAMESPACE}) == []
    finally:
        await engine.aclose()
    assert home.directories() == []


def _inside(container: str) -> list[int]:
    """Processes in a container: by its control group, or where the engine has made none by what it has mounted."""
    found = []
    for pid in proc.pids():
        with contextlib.suppress(OSError):
            names = ("cgroup", "mountinfo") if is_inside(pid) else ("cgroup",)
            if any(container in Path(f"/proc/{pid}/{name}").read_text() for name in names):
                found.append(pid)
    return found


# --- fastclaw killed: the local runtime ---


async def _crowd(client: RuntimeClient) -> None:
    await client.initialize(NAMESPACE)
    await asyncio.gather(*(shell(client, DAEMONS) for _ in range(CROWD)))


async def _kill(client: RuntimeClient) -> None:
    await client.initialize(NAMESPACE)
    process = await shell(client, UNWILLING)
    with contextlib.suppress(FastclawError):
        await client.call("kill", {"process_id": process.id, "grace_ms": PATIENCE_S * 1000}, 0.1)


async def _shutdown(client: RuntimeClient) -> None:
    await client.initialize(NAMESPACE)
    await shell(client, UNWILLING)
    with contextlib.suppress(FastclawError):
        await client.call("shutdown", None, 0.1)


async def _initialize(client: RuntimeClient) -> None:
    with contextlib.suppress(FastclawError):
        await client.call("initialize", {"namespace": NAMESPACE}, 0.002)


@pytest.mark.parametrize("before", [_initialize, _crowd, _kill, _shutdown])
async def test_killed_on_this_host(home: Home, before: Callable[[RuntimeClient], Any]) -> None:
    async with home.client("--runtime", "local") as client:
        await before(client)
        await killed(client)
    await nothing_is_left(home)
    async with started(home, "--runtime", "local"):
        pass
    assert home.directories() == []


# --- a container killed ---


@pytest.fixture
async def engine(engine_service: EngineService) -> AsyncIterator[EngineLifecycle]:
    """The shared engine; afterwards there must be nothing of ours in it."""
    engine = EngineLifecycle(engine_service.url)
    try:
        yield engine
        assert await engine.list_containers({LABEL_NAMESPACE: NAMESPACE}) == []
    finally:
        await engine.aclose()


@pytest.fixture
async def client(home: Home, engine: EngineLifecycle, engine_service: EngineService) -> AsyncIterator[RuntimeClient]:
    """On the shared engine, whose containers are to be killed."""
    async with home.client("--runtime", "podman") as client:
        await client.initialize(NAMESPACE, {"url": engine_service.url, "image": engine_service.image})
        yield client


async def kill_container(client: RuntimeClient) -> Watch:
    """SIGKILL to the init of the one that runs, whoever made it: the successors of Podman's container are clones.

    Returns: a watch that runs since the signal.
    """
    async with await shell(client, DAEMONS) as process:
        pid, *_ = marked(process.id)
        while (stat := proc.read_stat(pid)) and is_inside(stat.ppid):
            pid = stat.ppid
        watch = Watch()
        os.kill(pid, signal.SIGKILL)
        await process.wait()
        return watch


def is_inside(pid: int) -> bool:
    """Whether it is in a pid namespace below ours, by the line NSpid of proc_pid_status(5)."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")]
    return len(line.split()) > 2


async def becomes(client: RuntimeClient, status: str) -> str | None:
    """What health says with it."""
    health = await client.health()

    async def is_so() -> bool:
        nonlocal health
        health = await client.health()
        return health.status == status

    await until(is_so, PATIENCE_S)
    return health.message


async def test_a_container_that_dies_takes_its_processes_and_comes_back(
    client: RuntimeClient, engine: EngineLifecycle
) -> None:
    processes = await asyncio.gather(*(shell(client, DAEMONS) for _ in range(CROWD)))
    ends = asyncio.gather(*(process.wait() for process in processes))
    [dead] = [found.id for found in await engine.list_containers({LABEL_NAMESPACE: NAMESPACE})]
    watch = await kill_container(client)
    records = await ends
    assert watch.seconds() < PROMISED_S / 2
    assert {(record.reason, record.exit_code, record.signal) for record in records} == {("container_gone", None, None)}
    assert await becomes(client, "degraded") == "1 of 1 containers are gone; they are being replaced"
    with pytest.raises(ExecFailed) as caught:
        await shell(client, "true")
    assert (caught.value.reason, caught.value.retryable) == ("container_gone", True)
    assert await becomes(client, "healthy") is None
    async with await shell(client, "echo again") as process:
        assert (await process.communicate())[0] == b"again\n"

    async def is_removed() -> bool:
        return await engine.inspect_container(dead) is None

    await until(is_removed, PATIENCE_S)


async def test_containers_that_keep_dying_come_back_later_and_later(client: RuntimeClient) -> None:
    for failures in (1, 2, 3):
        await kill_container(client)
        began = time.monotonic()
        await becomes(client, "degraded")
        await becomes(client, "healthy")
        assert time.monotonic() - began >= pause_s(failures)
        assert await _code(client, "exit 7") == 7


async def _code(client: RuntimeClient, script: str) -> int | None:
    async with await shell(client, script) as process:
        return (await process.wait()).exit_code


# --- a container whose init is not what it should be ---


@pytest.fixture
def other_init(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that takes the spawner's place, from its source; it is given up soon."""
    path = tmp_path / "init"
    monkeypatch.setattr(podman, "find_spawner", lambda: path)
    monkeypatch.setattr(limits, "SPAWN_HELLO_MS", 300)
    if request.param.startswith("#!"):
        path.write_text(request.param)
        path.chmod(0o755)
        return
    compiler = shutil.which("cc")
    if compiler is None:
        unusable("no C compiler")
    argv = [compiler, "-static", "-x", "c", "-", "-o", str(path)]
    subprocess.run(argv, input=request.param, text=True, check=True)


async def failure(engine_service: EngineService) -> StartFailed:
    """How a start on the spawn lane fails; the runtime itself has to take back everything."""
    runtime = EnvironmentHost("podman")
    options = {"url": engine_service.url, "image": engine_service.image, "lane": "spawn"}
    with pytest.raises(StartFailed) as caught:
        await runtime.start(InitializeParams(namespace=NAMESPACE, options=options))
    await runtime.stop()
    return caught.value


@pytest.mark.usefixtures("engine", "other_init")
@pytest.mark.parametrize(
    ("other_init", "says", "reason"),
    [
        (SILENT_INIT, "the spawner said nothing for 300 ms", "engine_timeout"),
        (DEAF_INIT, "the container's spawner did not connect", "engine_error"),
        (STRANGE_INIT, "the container ended at once", "engine_error"),
    ],
    indirect=["other_init"],
    ids=["connects and says nothing", "does not connect", "ends at once"],
)
async def test_a_container_with_another_init(engine_service: EngineService, says: str, reason: str) -> None:
    error = await failure(engine_service)
    assert says in str(error)
    assert error.reason == reason
    assert "\n" not in str(error)
