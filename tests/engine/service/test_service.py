"""The managed service on the real Podman: ready, tuned, stopped, and gone with its owner however that ends."""

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import uvloop
from podman import PodmanClient

from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import InitPlan, container_spec
from fastclaw.engine.service import janitor_main
from fastclaw.engine.service.facts import host_facts
from fastclaw.engine.service.plan import DEFAULT_IMAGE, ServicePlan, plan_service
from fastclaw.engine.service.service import ManagedService, answers_ping, end_process, end_service
from fastclaw.errors import StartFailed
from fastclaw.linux import proc
from fastclaw.linux.helper import Child
from fastclaw.linux.proc import start_time
from fastclaw.linux.sockets import wait_readable
from tests.balance import balanced, children
from tests.pids import command_line
from tests.waiting import turns, until

OWNER_SCRIPT = """
import asyncio, sys
from pathlib import Path
import msgspec
from fastclaw.engine.service.plan import ServicePlan
from fastclaw.engine.service.service import ManagedService

async def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=ServicePlan)
    service = ManagedService(plan, Path(sys.argv[2]) / "s", Path(sys.argv[2]) / "r")
    await service.start()
    print(service.pid, service.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def open_fds() -> set[str]:
    """Descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


async def round_trip(plan: ServicePlan, base: Path) -> tuple[int, Path]:
    """Start, ask, stop; returns the service's pid and its socket."""
    service = ManagedService(plan, base / "s", base / "r")
    await service.start()
    pid, socket = service.pid, service.url.removeprefix("unix://")
    assert pid is not None
    assert await answers_ping(socket)
    await service.aclose()
    return pid, Path(socket)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_starts_answers_stops_and_leaves_nothing(
    engine_plan: ServicePlan, short_dir: Path, loop_factory: type[asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.sleep(0))  # a loop keeps a few descriptors for the next one of its kind
    before = open_fds()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        pid, socket = runner.run(round_trip(engine_plan, short_dir))
    assert start_time(pid) is None
    assert not socket.parent.exists()
    assert open_fds() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def test_the_service_is_tuned(engine_plan: ServicePlan, short_dir: Path) -> None:
    service = ManagedService(engine_plan, short_dir / "s", short_dir / "r")
    await service.start()
    try:
        with PodmanClient(base_url=service.url) as client:
            info = await asyncio.to_thread(client.info)
    finally:
        await service.aclose()
    assert info["host"]["eventLogger"] == "none"
    assert info["host"]["ociRuntime"]["name"] == engine_plan.oci_runtime
    assert info["store"]["graphRoot"].startswith(str(short_dir / "s"))
    assert info["store"]["runRoot"].startswith(str(short_dir / "r"))


async def test_a_service_that_dies_says_its_last_words(engine_plan: ServicePlan, short_dir: Path) -> None:
    broken = msgspec.structs.replace(engine_plan, oci_runtime="/nowhere")
    service = ManagedService(broken, short_dir / "s", short_dir / "r")
    with pytest.raises(StartFailed, match=r"ended at once: .*no valid executable") as caught:
        await service.start()
    assert caught.value.reason == "engine_unavailable"
    assert "\n" not in str(caught.value)
    assert [path.name for path in (short_dir / "r").iterdir() if path.name[0].isdigit()] == []


async def test_a_program_that_is_not_there(engine_plan: ServicePlan, short_dir: Path) -> None:
    broken = msgspec.structs.replace(engine_plan, bind_launcher=["/nonexistent/setpriv"])
    with pytest.raises(StartFailed, match="cannot start /nonexistent/setpriv") as caught:
        await ManagedService(broken, short_dir / "s", short_dir / "r").start()
    assert caught.value.reason == "engine_unavailable"


async def test_a_service_that_never_answers(
    engine_plan: ServicePlan, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastclaw.engine_limits.ENGINE_READY_MS", 100)
    silent = msgspec.structs.replace(engine_plan, bind_launcher=["/bin/sh", "-c", "exec sleep 60"])
    service = ManagedService(silent, short_dir / "s", short_dir / "r")
    with pytest.raises(StartFailed, match="does not answer") as caught:
        await service.start()
    assert caught.value.reason == "engine_timeout"
    assert service.pid is None


async def test_a_loud_service_does_not_block_and_only_the_tail_is_kept(
    engine_plan: ServicePlan, short_dir: Path
) -> None:
    loud = "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; echo the end >&2; exit 7"
    noisy = msgspec.structs.replace(engine_plan, bind_launcher=["/bin/sh", "-c", loud])
    with pytest.raises(StartFailed, match=r"ended at once: the end$"):
        await ManagedService(noisy, short_dir / "s", short_dir / "r").start()


async def test_closing_twice_or_before_the_start_is_fine(engine_plan: ServicePlan, short_dir: Path) -> None:
    service = ManagedService(engine_plan, short_dir / "s", short_dir / "r")
    await service.aclose()
    assert repr(service) == "<ManagedService not running, pid None>"
    await service.start()
    assert repr(service) == f"<ManagedService {service.url}, pid {service.pid}>"
    await service.aclose()
    await service.aclose()
    with pytest.raises(RuntimeError, match="not running"):
        _ = service.url


async def test_several_services_share_one_storage(engine_plan: ServicePlan, short_dir: Path) -> None:
    services = [ManagedService(engine_plan, short_dir / "s", short_dir / "r") for _ in range(3)]
    try:
        await asyncio.gather(*(service.start() for service in services))
        first, second, third = (EngineLifecycle(service.url) for service in services)
        await first.ensure_image(DEFAULT_IMAGE)
        assert await second.image(DEFAULT_IMAGE) is not None
        spec = container_spec(image=DEFAULT_IMAGE, name="shared", namespace="n", owner="o", init=InitPlan())
        created = await second.create_container(spec)
        await second.start_container(created)
        await services[1].aclose()
        [found] = await third.list_containers({"io.fastclaw.namespace": "n"})
        assert (found.id, found.state) == (created, "running")
        await third.remove_container(created)
        assert await first.list_containers({}) == []
        for lifecycle in (first, second, third):
            await lifecycle.aclose()
    finally:
        for service in services:
            await service.aclose()


@pytest.fixture(params=["setpriv", "python"])
def owned(request: pytest.FixtureRequest, engine_plan: ServicePlan, short_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a service, bound to it either way."""
    facts = host_facts(short_dir)
    if request.param == "python":
        facts = msgspec.structs.replace(facts, setpriv=None)
    argv = [sys.executable, "-c", OWNER_SCRIPT, msgspec.json.encode(plan_service(facts)).decode(), str(short_dir)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


async def test_it_dies_with_an_owner_that_is_killed(owned: subprocess.Popen[str], engine_plan: ServicePlan) -> None:
    assert owned.stdout is not None
    words = (await asyncio.to_thread(owned.stdout.readline)).split()
    pid, socket = int(words[0]), words[1].removeprefix("unix://")
    pidfd = os.pidfd_open(pid)
    try:
        assert await answers_ping(socket)
        owned.send_signal(signal.SIGKILL)
        assert await wait_readable(pidfd, 5_000)
    finally:
        os.close(pidfd)
    owned.wait(5)
    left = Path(socket).parent
    await until(lambda: not left.exists())


async def test_what_a_killed_owner_without_a_janitor_leaves_goes_with_the_next_start(
    engine_plan: ServicePlan, short_dir: Path
) -> None:
    left = short_dir / "r" / "1-abcdefgh"
    left.mkdir(parents=True, mode=0o700)
    await round_trip(engine_plan, short_dir)
    assert not left.exists()


async def test_without_a_python_there_is_no_janitor(engine_plan: ServicePlan, short_dir: Path) -> None:
    facts = msgspec.structs.replace(engine_plan.facts, python=None)
    plan = msgspec.structs.replace(engine_plan, facts=facts)
    before = children()
    service = ManagedService(plan, short_dir / "s", short_dir / "r")
    await service.start()
    assert children() - before == {service.pid}
    await service.aclose()


async def test_a_janitor_that_cannot_be_had_fails_the_start(engine_plan: ServicePlan, short_dir: Path) -> None:
    facts = msgspec.structs.replace(engine_plan.facts, python="/bin/false")
    service = ManagedService(msgspec.structs.replace(engine_plan, facts=facts), short_dir / "s", short_dir / "r")
    before = children()
    with pytest.raises(StartFailed, match="the janitor ended at once"):
        await service.start()
    assert children() == before


def test_a_parent_that_died_before_is_noticed(engine_plan: ServicePlan) -> None:
    """The guard sees another parent than it was told and never becomes Podman."""
    lied_to = [*engine_plan.bind_launcher, "1", "/", "/bin/echo", "became podman"]
    done = subprocess.run(lied_to, capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    told = [*engine_plan.bind_launcher, str(os.getpid()), "/", "/bin/echo", "became podman"]
    assert subprocess.run(told, capture_output=True, timeout=10, check=True).stdout == b"became podman\n"


# --- one that ends by itself -------------------------------------------------------------------------


@asynccontextmanager
async def running(plan: ServicePlan, base: Path) -> AsyncIterator[ManagedService]:
    """A service that leaves nothing."""
    await answers_ping(str(base / "none"))  # the first stream of a loop takes a descriptor for good (libuv)
    await turns()
    async with balanced():
        service = ManagedService(plan, base / "s", base / "r")
        await service.start()
        try:
            yield service
        finally:
            await service.aclose()
            await turns()
    assert not [path for path in (base / "r").iterdir() if path.name[0].isdigit()]


def killed(service: ManagedService, signum: int = signal.SIGKILL) -> int:
    """Its pid, as long as it ran."""
    pid = service.pid
    assert pid is not None
    os.kill(pid, signum)
    return pid


def armed(service: ManagedService, others: set[int]) -> set[int]:
    """Its janitors.

    Parameters:
        others: our children before it, as the engine of other tests.
    """
    return children() - {service.pid} - others


async def test_a_service_that_ends_is_followed_by_another_in_the_same_place(
    engine_plan: ServicePlan, short_dir: Path
) -> None:
    others = children()
    async with running(engine_plan, short_dir) as service:
        url, janitors = service.url, armed(service, others)
        engine = EngineLifecycle(url, keeper=service)
        await engine.ensure_image(DEFAULT_IMAGE)
        spec = container_spec(image=DEFAULT_IMAGE, name="on", namespace="n", owner="o", init=InitPlan())
        container = await engine.create_container(spec)
        await engine.start_container(container)
        first = killed(service)
        await until(lambda: service.trouble)
        assert service.trouble is not None
        assert re.fullmatch(r"the engine has ended( \(.+\))?; another is being started", service.trouble)
        with pytest.raises(StartFailed, match="another one is being started; try again") as caught:
            await engine.list_containers({})
        assert (caught.value.reason, caught.value.retryable) == ("engine_unavailable", True)
        assert janitors <= children()  # that of the dead one stays until the next is armed
        await until(lambda: service.trouble is None)
        await until(lambda: len(armed(service, others)) == 1)
        assert (service.url, service.pid == first) == (url, False)
        assert armed(service, others) != janitors
        [found] = await engine.list_containers({"io.fastclaw.namespace": "n"})
        assert (found.id, found.state) == (container, "running")
        killed(service)
        await engine.remove_container(container)  # at once: it waits for the next one
        assert await engine.list_containers({}) == []
        await engine.aclose()
        await engine.join()


async def test_it_says_the_last_words_of_one_that_ended(engine_plan: ServicePlan, short_dir: Path) -> None:
    async with running(engine_plan, short_dir) as service:
        assert service._process is not None
        service._process._log += b"once\nthat was it\n"
        killed(service, signal.SIGTERM)
        await until(lambda: service.trouble)
        assert service.trouble == "the engine has ended (that was it); another is being started"


async def test_one_that_dies_again_and_again_is_tried_at_growing_intervals(
    engine_plan: ServicePlan, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastclaw.limits.REVIVE_LAST_MS", 800)
    async with running(engine_plan, short_dir) as service:
        log = short_dir / "starts"
        dies = ["/bin/sh", "-c", f"date +%s%N >>{log}; echo no >&2; exit 1"]
        service.plan = msgspec.structs.replace(engine_plan, bind_launcher=dies)
        killed(service)
        await until(lambda: log.exists() and len(log.read_text().split()) >= 6)
        assert service.trouble is not None
        assert "podman ended at once: no" in service.trouble
        times = [int(word) / 1e9 for word in log.read_text().split()]
        pauses = [after - before for before, after in itertools.pairwise(times)]
        wanted = [0.2, 0.4, 0.8, 0.8, 0.8]
        assert all(pause >= least for pause, least in zip(pauses, wanted, strict=False)), pauses
        service.plan = engine_plan
        await until(lambda: service.trouble is None)
        assert await service.is_back()


@pytest.mark.parametrize("state", ["waits", "comes up", "has come up"])
async def test_closed_while_it_is_followed(
    engine_plan: ServicePlan, short_dir: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastclaw.limits.REVIVE_FIRST_MS", 60_000 if state == "waits" else 1)
    async with running(engine_plan, short_dir) as service:
        if state == "comes up":
            silent = msgspec.structs.replace(engine_plan, bind_launcher=["/bin/sh", "-c", "exec sleep 60"])
            service.plan = silent
        first = killed(service)
        await until(lambda: service.trouble)
        if state != "waits":
            await until(lambda: service.pid not in (None, first))
        if state == "has come up":
            await until(lambda: service.trouble is None)


async def test_an_owner_that_is_killed_after_its_service_leaves_nothing(
    owned: subprocess.Popen[str], engine_plan: ServicePlan
) -> None:
    """At once: no service runs, or one that no janitor was told of."""
    assert owned.stdout is not None
    words = (await asyncio.to_thread(owned.stdout.readline)).split()
    pid, socket = int(words[0]), Path(words[1].removeprefix("unix://"))
    others = {other for other, _ in proc.children(owned.pid)} - {pid}
    os.kill(pid, signal.SIGKILL)
    await until(lambda: {other for other, _ in proc.children(owned.pid)} - others - {pid})
    owned.send_signal(signal.SIGKILL)
    await until(lambda: not socket.parent.exists())
    await until(lambda: not [pid for pid in proc.pids() if f"unix://{socket}".encode() in command_line(pid)])


async def test_one_that_has_to_be_killed_in_the_end_has_its_containers_removed(
    engine_plan: ServicePlan, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastclaw.engine_limits.ENGINE_STOP_MS", 2_000)
    async with running(engine_plan, short_dir) as service:
        engine = EngineLifecycle(service.url, keeper=service)
        await engine.ensure_image(DEFAULT_IMAGE)
        label = proc.this_process().label
        spec = container_spec(image=DEFAULT_IMAGE, name="held", namespace="n", owner=label, init=InitPlan())
        container = await engine.create_container(spec)
        await engine.start_container(container)
        assert of_container(container)
        await engine.aclose()
        await engine.join()
        killed(service, signal.SIGSTOP)
    await until(lambda: not of_container(container) and records_of(container) == [])


HANGS = """#!/bin/sh
case "$*" in *" create "*) {crun} "$@"; code=$?; echo > {flag}; sleep 60; exit $code ;; esac
exec {crun} "$@"
"""
"""An OCI runtime that has made the container, and does not say so yet."""


@pytest.mark.parametrize("is_removed", [True, False])
async def test_what_a_service_that_died_in_the_middle_of_a_start_has_left(short_dir: Path, is_removed: bool) -> None:
    """It runs, and the engine does not know; whether the next one is asked for its removal, or the janitor comes."""
    flag, runtime = short_dir / "flag", short_dir / "crun"
    facts = host_facts(short_dir)
    runtime.write_text(HANGS.format(crun=facts.crun, flag=flag))
    runtime.chmod(0o755)
    async with running(plan_service(facts, oci_runtime=str(runtime)), short_dir) as service:
        engine = EngineLifecycle(service.url, keeper=service)
        await engine.ensure_image(DEFAULT_IMAGE)
        label = proc.this_process().label
        pids = 99 if "pids" in (await engine.version()).controllers else None  # else crun refuses it
        spec = container_spec(
            image=DEFAULT_IMAGE, name="half", namespace="n", owner=label, init=InitPlan(), pids_limit=pids
        )
        container = await engine.create_container(spec)
        starting = asyncio.ensure_future(engine.start_container(container))
        await until(flag.exists)
        assert of_container(container)
        assert records_of(container)
        killed(service)
        with pytest.raises(StartFailed) as caught:
            await starting
        assert caught.value.reason == "engine_unavailable"
        if is_removed:
            await engine.remove_container(container)
            assert not of_container(container)
            assert await engine.list_containers({}) == []
        await engine.aclose()
        await engine.join()
    assert not of_container(container)
    assert records_of(container) == []


def of_container(container: str) -> list[int]:
    """What runs in it, and its monitor."""
    return [pid for pid in proc.pids() if janitor_main._belongs(pid, [container])]


def records_of(container: str) -> list[Path]:
    """The OCI runtime's own, and control groups."""
    groups = Path("/sys/fs/cgroup").glob(f"**/libpod_parent/libpod-*{container}")
    return [*Path("/run").glob(f"*/{container}"), *groups]


# --- ends --------------------------------------------------------------------------------------------

DEAF = "trap '' TERM; echo ready >&2; while :; do sleep 60; done"


async def started(script: str, tmp_path: Path, words: int = 0) -> Child:
    """A shell that runs a script, once it has written so many words to its stderr."""
    with (tmp_path / "err").open("wb") as err:
        child = Child(["/bin/sh", "-c", script], fds={2: err.fileno()})
    await until(lambda: len((tmp_path / "err").read_text().split()) >= words)
    return child


async def signal_of(child: Child) -> int:
    """The signal that has ended it; it is reaped."""
    assert await child.ends(5_000)
    child.detach()
    return os.WTERMSIG(collected(child.pid))


def collected(pid: int) -> int:
    """The wait status of a child."""
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize(("script", "by"), [("exec sleep 60", signal.SIGTERM), (DEAF, signal.SIGKILL), ("exit 3", 0)])
async def test_term_is_enough_for_most(tmp_path: Path, script: str, by: int) -> None:
    child = await started(script, tmp_path, words=int(script == DEAF))
    if by == 0:
        assert await child.ends(5_000)
    await end_process(child.pidfd, 50 if script == DEAF else 5_000)
    assert await signal_of(child) == by


async def test_cancelled_it_still_kills(tmp_path: Path) -> None:
    child = await started(DEAF, tmp_path, words=1)
    task = asyncio.create_task(end_process(child.pidfd, 60_000))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await signal_of(child) == signal.SIGKILL


@pytest.mark.parametrize("rest", ["sleep 60", "sh -c 'trap : TERM; while :; do sleep 60; done'"])
async def test_the_rest_of_a_service_ends_with_it_and_no_other_process(tmp_path: Path, rest: str) -> None:
    child = await started(f"{rest} & setsid sleep 60 & echo $! >&2; exec sleep 60", tmp_path, words=1)
    other = int((tmp_path / "err").read_text())
    await until(lambda: os.getsid(other) == other)  # before that it is in the child's
    await until(lambda: len(in_session(child.pid)) >= 2)
    await end_service(child.pid, child.pidfd, 200)
    assert in_session(child.pid) == []
    assert await signal_of(child) == signal.SIGTERM
    os.kill(other, signal.SIGKILL)


def in_session(sid: int) -> list[int]:
    stats = ((pid, proc.read_stat(pid)) for pid in proc.pids())
    return [pid for pid, stat in stats if stat is not None and stat.session == sid and not stat.gone]
