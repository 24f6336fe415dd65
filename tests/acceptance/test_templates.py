"""Templates in a real container, from the supervisor's side: forked workers of the container's own Python."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE
from fastclaw.errors import ExecFailed, InvalidParams, StartFailed
from fastclaw.linux import proc
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engine.conftest import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman", "--log-level", "warning"]
TEMPLATE = {"cmd": ["python3", "-m", "fastclaw.template", "-i", "json", "-i", "decimal"], "user": "65534"}
SEEN = """
import json, os, sys
print(json.dumps({
    "decimal": "decimal" in sys.modules, "uid": os.getuid(), "cwd": os.getcwd(), "argv": sys.argv,
    "in": sys.stdin.read(),
    "env": [os.environ.get(name) for name in ("ONE", "PYTHONPATH", "FASTCLAW_TEMPLATE_FD")],
    "caps": [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "NoNewPrivs"))],
    "fds": [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")],
}))
open("/dev/stderr", "w").write("again")
sys.exit(9)
"""


@pytest.fixture
async def runtime(engine_service: EngineService, image: str) -> AsyncIterator[RuntimeClient]:
    options = {"url": engine_service.url, "image": image, "lane": "spawn", "templates": {"py": TEMPLATE}}
    async with RuntimeClient.spawn(SERVE, namespace="templates", options=options) as client:
        yield client


async def test_workers_in_a_container(runtime: RuntimeClient) -> None:
    assert "template" in runtime.capabilities
    cmd = ["python", "-c", SEEN, "x"]
    async with await runtime.exec(cmd, env={"ONE": "1"}, working_dir="/tmp", template="py") as process:
        out, err = await process.communicate(b"in")
        record = await process.wait()
    assert json.loads(out) == {
        "decimal": True,
        "uid": 65534,
        "cwd": "/tmp",
        "argv": ["-c", "x"],
        "in": "in",
        "env": ["1", None, None],
        "caps": ["0000000000000000", "1"],
        "fds": [0, 1, 2],
    }
    assert (err, record.exit_code, record.usage is not None) == (b"again", 9, True)


async def test_kill_takes_exactly_one_tree(runtime: RuntimeClient) -> None:
    code = """
import os, signal, subprocess
subprocess.Popen(["setsid", "sleep", os.environ["MARK"]])
subprocess.run(["sh", "-c", "sleep $MARK &"])
print(flush=True); signal.pause()
"""
    cmd = ["python", "-c", code]
    async with (
        await runtime.exec(cmd, template="py", env={"MARK": "7771"}) as one,
        await runtime.exec(cmd, template="py", env={"MARK": "7772"}) as two,
    ):
        assert [await one.stdout_read(), await two.stdout_read()] == [b"\n", b"\n"]
        await until(lambda: len(sleeping("7771")) == len(sleeping("7772")) == 2)  # an execve comes after its fork
        await asyncio.wait_for(one.kill(0), 10)
        assert (len(sleeping("7771")), len(sleeping("7772"))) == (0, 2)
        record = await one.wait()
        assert (record.reason, record.signal) == ("killed", signal.SIGKILL)
        await asyncio.wait_for(two.kill(0), 10)
        assert sleeping("7772") == []


def sleeping(mark: str) -> list[int]:
    found = []
    for pid in proc.pids():
        try:
            with open(f"/proc/{pid}/cmdline") as words:
                if words.read() == f"sleep\0{mark}\0":
                    found.append(pid)
        except OSError:
            continue
    return found


async def test_a_container_that_dies_comes_up_again_with_its_templates(
    engine_service: EngineService, runtime: RuntimeClient
) -> None:
    async with await runtime.exec(["python", "-c", "import signal; signal.pause()"], template="py") as process:
        (init,) = await inits(engine_service.url)
        os.kill(init, signal.SIGKILL)
        assert (await asyncio.wait_for(process.wait(), 20)).reason == "container_gone"
    async with asyncio.timeout(60):
        while True:
            try:
                async with await runtime.exec(["python", "-c", "print(1)"], template="py") as process:
                    assert (await process.communicate())[0] == b"1\n"
                break
            except ExecFailed as refused:
                if not refused.retryable:
                    raise
                await asyncio.sleep(0.05)
    details = (await runtime.health()).details
    assert details["lane"]["templates"] == {"py": {"state": "ready", "forks": 1}}


async def inits(url: str) -> list[int]:
    """Of our containers."""
    engine = EngineLifecycle(url)
    try:
        found = await engine.list_containers({LABEL_NAMESPACE: "templates"})
        states = [await engine.inspect_container(one.id) for one in found]
    finally:
        await engine.aclose()
    return [state.pid for state in states if state is not None]


async def test_what_cannot_be_had(engine_service: EngineService, image: str) -> None:
    options = {"url": engine_service.url, "image": image}
    broken = {"py": {"cmd": ["python3", "-m", "fastclaw.template", "-i", "no_such_module"]}}
    with pytest.raises(StartFailed, match=r"(?s)template 'py'.*no_such_module") as failed:
        async with RuntimeClient.spawn(SERVE, namespace="templates", options={**options, "templates": broken}):
            pytest.fail("it came up")
    assert failed.value.reason == "template_failed"
    rest = {**options, "lane": "rest", "templates": {"py": TEMPLATE}}
    with pytest.raises(InvalidParams) as refused:
        async with RuntimeClient.spawn(SERVE, namespace="templates", options=rest):
            pytest.fail("it came up")
    assert (refused.value.reason, refused.value.data["path"]) == ("unsupported", "$.options.templates")
