"""`fastclaw engine start|stop|status` on the real Podman."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fastclaw.engine.service.plan import ServicePlan
from fastclaw.engine.service.service import answers_ping, engine_start, engine_status, engine_stop
from fastclaw.errors import StartFailed
from fastclaw.linux.proc import start_time
from fastclaw.linux.sockets import wait_readable


async def test_start_status_stop(engine_plan: ServicePlan, short_dir: Path) -> None:
    run_dir = short_dir / "r"
    assert not (await engine_status(run_dir)).running
    started = await engine_start(engine_plan, short_dir / "s", run_dir)
    try:
        assert (started.running, started.answers) == (True, True)
        assert await answers_ping(started.url.removeprefix("unix://"))
        assert started.pid is not None
        assert await engine_start(engine_plan, short_dir / "s", run_dir) == started
        assert await engine_status(run_dir) == started
    finally:
        stopped = await engine_stop(run_dir)
    assert (stopped.running, stopped.pid) == (False, None)
    assert start_time(started.pid) is None
    assert not await answers_ping(started.url.removeprefix("unix://"))
    assert not (await engine_stop(run_dir)).running


async def test_two_that_start_at_once_get_the_same_service(engine_plan: ServicePlan, short_dir: Path) -> None:
    run_dir = short_dir / "r"
    try:
        one, two = await asyncio.gather(*(engine_start(engine_plan, short_dir / "s", run_dir) for _ in range(2)))
        assert one == two
        assert one.answers
    finally:
        await engine_stop(run_dir)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with the service."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def other_process_with_its_pid(pid: int) -> str:
    """A line of /proc/PID/stat of a process that had this pid before."""
    fields = Path(f"/proc/{pid}/stat").read_text().split(" ")
    fields[21] = str(int(fields[21]) - 1)
    return " ".join(fields)


async def test_a_reused_pid_is_never_signalled(short_dir: Path, bystander: subprocess.Popen[bytes]) -> None:
    home = short_dir / "r" / "engine"
    home.mkdir(parents=True, mode=0o700)
    (home / "pid").write_text(other_process_with_its_pid(bystander.pid))
    assert not (await engine_status(short_dir / "r")).running
    await engine_stop(short_dir / "r")
    assert bystander.poll() is None
    assert not (home / "pid").exists()


@pytest.mark.parametrize("content", ["", "garbage", "1", "12 (x) S"])
async def test_a_broken_pid_file_means_nothing_runs(short_dir: Path, content: str) -> None:
    home = short_dir / "r" / "engine"
    home.mkdir(parents=True, mode=0o700)
    (home / "pid").write_text(content)
    assert not (await engine_status(short_dir / "r")).running
    await engine_stop(short_dir / "r")


async def test_one_that_hangs_is_replaced(engine_plan: ServicePlan, short_dir: Path) -> None:
    """Runs, but does not answer: a new start ends it and takes its place."""
    run_dir = short_dir / "r"
    first = await engine_start(engine_plan, short_dir / "s", run_dir)
    assert first.pid is not None
    try:
        os.unlink(first.url.removeprefix("unix://"))
        second = await engine_start(engine_plan, short_dir / "s", run_dir)
        assert second.answers
        assert second.pid != first.pid
        assert start_time(first.pid) is None
    finally:
        await engine_stop(run_dir)


async def test_one_that_fails_leaves_nothing(engine_plan: ServicePlan, short_dir: Path) -> None:
    broken = msgspec.structs.replace(engine_plan, oci_runtime="/nowhere")
    with pytest.raises(StartFailed, match=r"ended at once: .*no valid executable") as caught:
        await engine_start(broken, short_dir / "s", short_dir / "r")
    assert caught.value.reason == "engine_unavailable"
    assert not (await engine_status(short_dir / "r")).running


async def test_it_outlives_the_command_that_started_it(engine_plan: ServicePlan, short_dir: Path) -> None:
    script = (
        "import asyncio, sys, msgspec; from pathlib import Path; "
        "from fastclaw.engine.service.plan import ServicePlan; "
        "from fastclaw.engine.service.service import engine_start; "
        "base = Path(sys.argv[2]); plan = msgspec.json.decode(sys.argv[1], type=ServicePlan); "
        "print(asyncio.run(engine_start(plan, base / 's', base / 'r')).pid)"
    )
    argv = [sys.executable, "-c", script, msgspec.json.encode(engine_plan).decode(), str(short_dir)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=True)
    status = await engine_status(short_dir / "r")
    assert (status.pid, status.answers) == (int(done.stdout), True)
    pidfd = os.pidfd_open(int(done.stdout))
    try:
        await engine_stop(short_dir / "r")
        assert await wait_readable(pidfd, 1_000)
    finally:
        os.close(pidfd)
