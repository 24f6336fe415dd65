"""What a container of `container_spec` really is, seen from inside and from the host's /proc."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from podman import PodmanClient

from fastclaw import engine_limits, limits
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.base_image import static_busybox
from fastclaw.engine.container_spec import INIT_TARGET, SHELL_INIT, InitPlan, container_spec
from fastclaw.engine.service.facts import static_catatonit
from fastclaw.linux.cgroups import group_of, processors
from fastclaw.linux.sockets import wait_readable
from tests.engine.conftest import EngineService
from tests.pids import state_of
from tests.waiting import until

INITS = [InitPlan()] + [InitPlan(catatonit=path) for path in (static_catatonit(),) if path is not None]
"""Every init that this host can offer: the shell's always, catatonit where it is installed."""

LEAVE_AN_ORPHAN = "(sh -c 'echo $$; exec sleep 0.05' &)"
"""Its parent ends at once, so PID 1 adopts a process that ends later; nobody but PID 1 can reap it."""


class Box:
    """One container of these tests."""

    def __init__(self, lifecycle: EngineLifecycle, client: PodmanClient, engine: EngineService) -> None:
        self._lifecycle, self._client, self._engine = lifecycle, client, engine
        self.id = ""
        self.pid = 0

    async def start(self, override: dict[str, Any] | None = None, **arguments: Any) -> None:
        """Create and start it; `override` goes into the spec, the rest into `container_spec`."""
        given = {
            "image": self._engine.image,
            "name": "sandbox",
            "namespace": "sandbox",
            "owner": "o",
            "init": InitPlan(),
        }
        spec = container_spec(**{**given, **arguments}) | (override or {})
        self.id = await self._lifecycle.create_container(spec)
        await self._lifecycle.start_container(self.id)
        state = await self._lifecycle.inspect_container(self.id)
        assert state is not None
        self.pid = state.pid

    async def run(self, script: str, **options: Any) -> str:
        """Output of a shell script inside."""
        call = self._client.containers.get(self.id).exec_run
        _, output = await asyncio.to_thread(call, ["sh", "-c", script], demux=True, **options)
        assert isinstance(output, tuple)
        return b"".join(part for part in output if part).decode().strip()

    def status(self) -> dict[str, str]:
        """/proc/PID/status of PID 1."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def children(self) -> dict[int, str]:
        """State by pid of the children of PID 1."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return {int(pid): state_of(int(pid)) for pid in pids}


def handles(status: dict[str, str], signum: int) -> bool:
    """Whether a process has come as far as to handle a signal; before, PID 1 does not even see it (pid_namespaces(7)).

    catatonit blocks them and reads a signalfd.
    """
    return bool((int(status["SigCgt"], 16) | int(status["SigBlk"], 16)) & (1 << (signum - 1)))


def hard_limits(pid: int) -> dict[str, str]:
    """The hard limits of a process by name (proc(5), /proc/PID/limits)."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[1] for line in lines}


@pytest.fixture
async def box(engine_service: EngineService) -> AsyncIterator[Box]:
    """A container to be started; removed at the end."""
    lifecycle = EngineLifecycle(engine_service.url)
    with PodmanClient(base_url=engine_service.url) as client:
        one = Box(lifecycle, client, engine_service)
        yield one
    await lifecycle.remove_container("sandbox")
    await lifecycle.aclose()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A directory of the host."""
    path = tmp_path / "w"
    path.mkdir()
    (path / "here").write_text("from the host")
    return path


async def test_no_rights(box: Box) -> None:
    await box.start()
    status = box.status()
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    inside = await box.run("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status")
    assert {line.split()[1] for line in inside.splitlines()} == {"0000000000000000", "1", "2"}


async def test_namespaces_of_its_own(box: Box) -> None:
    await box.start()
    for name in ("pid", "net", "ipc", "uts", "mnt", "cgroup"):
        assert os.readlink(f"/proc/{box.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")


async def test_no_route_out(box: Box) -> None:
    await box.start()
    assert await box.run("ls /sys/class/net; cat /proc/net/route") == "lo\n" + await box.run("cat /proc/net/route")
    assert "00000000" not in await box.run("tail -n +2 /proc/net/route")


async def test_limits(box: Box, engine_service: EngineService) -> None:
    await box.start(pids_limit=64, memory_bytes=64 * limits.MIB, shm_bytes=1 * limits.MIB)
    assert int(await box.run("ulimit -Hn")) == engine_service.plan.facts.nofile
    assert hard_limits(box.pid)["Max processes"] == str(engine_service.plan.facts.nproc)
    assert "1.0M" in await box.run("df -h /dev/shm")
    assert await box.run("i=0; while [ $i -lt 100 ]; do sleep 0.5 & i=$((i+1)); done 2>&1 | grep -c fork") != "0"


async def test_processors(box: Box) -> None:
    """What programs ask for when they decide how many threads they have is what there is."""
    await box.start(cpus=0.05, cpuset="0")
    assert await box.run("nproc") == "1"
    assert await box.run("grep Cpus_allowed_list /proc/self/status | cut -f2") == "0"
    await box.run("timeout 1 sh -c 'while :; do :; done'")
    told = processors(group_of(box.pid, "cpu"))
    assert told["limit_percent"] == 5
    assert told["throttled_us"] > 0


async def test_a_bound_workspace_is_writable_both_ways(box: Box, workspace: Path) -> None:
    await box.start(workspace=(str(workspace), "/w"))
    assert await box.run("cat /w/here; echo from inside > /w/there") == "from the host"
    assert (workspace / "there").read_text() == "from inside\n"


async def test_a_workspace_may_be_a_volume(box: Box, engine_service: EngineService) -> None:
    await box._lifecycle.create_volume("fastclaw-test-volume", {"a": "b"})
    await box.start(workspace=("fastclaw-test-volume", "/w"))
    assert await box.run("echo x > /w/x; cat /w/x") == "x"
    with PodmanClient(base_url=engine_service.url) as client:
        assert [volume.name for volume in client.volumes.list()] == ["fastclaw-test-volume"]
        assert [found.name for found in await box._lifecycle.list_volumes({"a": "b"})] == ["fastclaw-test-volume"]
        assert await box._lifecycle.list_volumes({"a": "c"}) == []
        await box._lifecycle.remove_container(box.id)
        await box._lifecycle.remove_volume("fastclaw-test-volume")
        await box._lifecycle.remove_volume("fastclaw-test-volume")
        assert client.volumes.list() == []


async def zombies_after_an_orphan(box: Box) -> list[str]:
    """States of PID 1's children that ended, once an orphan of an exec has ended."""
    orphan = await box.run(f"{LEAVE_AN_ORPHAN}; sleep 0.2; cat /proc/[0-9]*/stat | grep -c ') Z '")
    return orphan.splitlines()


@pytest.mark.parametrize("init", INITS)
async def test_the_init_reaps_orphans(box: Box, init: InitPlan) -> None:
    await box.start(init=init)
    assert (await zombies_after_an_orphan(box))[-1] == "0"
    assert "Z" not in box.children().values()


async def test_an_init_that_does_not_wait_would_leave_zombies(box: Box) -> None:
    """The control: the same orphan under a plain `sleep` stays a zombie."""
    await box.start(override={"entrypoint": ["/bin/sleep", "1000"]})
    assert (await zombies_after_an_orphan(box))[-1] == "1"


@pytest.mark.parametrize("init", INITS)
async def test_the_init_reaps_many_at_once(box: Box, init: InitPlan) -> None:
    await box.start(pids_limit=100, init=init)
    for _ in range(3):
        await box.run("i=0; while [ $i -lt 50 ]; do (true &); i=$((i+1)); done")
    assert "Z" not in await box.run("sleep 0.1; cat /proc/[0-9]*/stat | sed 's/.*) //' | cut -c1 | sort -u")


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_the_init_ends_at_once_on_a_signal(box: Box, init: InitPlan, signum: signal.Signals) -> None:
    await box.start(init=init)
    pidfd = os.pidfd_open(box.pid)
    try:
        async with asyncio.timeout(30):
            while not handles(box.status(), signum):
                assert not await wait_readable(pidfd, engine_limits.ENGINE_READY_POLL_MS)
        os.kill(box.pid, signum)
        assert await wait_readable(pidfd, 1_000)
    finally:
        os.close(pidfd)


async def test_what_is_mounted_for_the_init_is_read_only(box: Box) -> None:
    """Any static program stands for catatonit here, which need not be installed."""
    any_program = InitPlan(catatonit=str(static_busybox()))
    await box.start(init=any_program, override={"entrypoint": ["/bin/sh", "-c", SHELL_INIT]})
    assert "Read-only" in await box.run(f"echo x > {INIT_TARGET}")


async def test_an_exec_leaves_no_process_of_the_engine(box: Box) -> None:
    """conmon would stay for `exit_command_delay` and start a Podman then."""
    await box.start()
    before = conmons(box.id)
    for _ in range(3):
        await box.run("true")
    await until(lambda: conmons(box.id) == before)


def conmons(container: str) -> set[int]:
    """Pids of the conmons of a container and its execs."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found |= {int(entry.name)} if container.encode() in words and b"-c" in words else set()
    return found
