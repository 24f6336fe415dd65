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
from fastclaw.errors import ExecFailed, InvalidParams, StartFailed
from fastclaw.transport import procfs
from tests.acceptance.python_image import import_python_image

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


@pytest.fixture(scope="module")
def image(engine_service: EngineService) -> str:
    return import_python_image(engine_service.url)


@pytest.fixture
async def runtime(engine_service: EngineService, image: str) -> AsyncIterator[RuntimeClient]:
    options = {"url": engine_service.url, "image": image, "lane": "spawn", "templates": {"py": TEMPLATE}}
    async with RuntimeClient.spawn(SERVE, namespace="templates", options=options) as client:
        yield client


async def test_workers_in_a_container(runtime: RuntimeClient) -> None:
    assert "template" in runtime.capabilities
    request = {"template": "py", "env": {"ONE": "1"}, "working_dir": "/tmp"}
    async with await runtime.exec(["python", "-c", SEEN, "x"], **request) as process:
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
    one, two = [
        await runtime.exec(["python", "-c", code], template="py", env={"MARK": mark}) for mark in ("7771", "7772")
    ]
    for process in (one, two):
        assert await process.stdout_read() == b"\n"
    assert (len(sleeping("7771")), len(sleeping("7772"))) == (2, 2)
    await asyncio.wait_for(one.kill(0), 10)
    assert (len(sleeping("7771")), len(sleeping("7772"))) == (0, 2)
    assert ((await one.wait()).reason, (await one.wait()).signal) == ("killed", signal.SIGKILL)
    await asyncio.wait_for(two.kill(0), 10)
    assert sleeping("7772") == []


def sleeping(mark: str) -> list[int]:
    found = []
    for pid in procfs.pids():
        try:
            with open(f"/proc/{pid}/cmdline") as words:
                if words.read() == f"sleep\0{mark}\0":
                    found.append(pid)
        except OSError:
            continue
    return found


async def test_a_container_that_dies_comes_up_again_with_its_templates(runtime: RuntimeClient) -> None:
    async with await runtime.exec(["python", "-c", "import signal; signal.pause()"], template="py") as process:
        (init,) = [pid for pid in procfs.pids() if is_init_of(pid, "templates")]
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


def is_init_of(pid: int, namespace: str) -> bool:
    """Whether it is a spawner whose socket was in a directory of ours: PID 1 of a container."""
    try:
        with open(f"/proc/{pid}/cmdline") as words, open(f"/proc/{pid}/status") as status:
            return words.read().startswith("/run/fastclaw-init\0") and "\t1\n" in status.read()
    except OSError:
        return False


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
