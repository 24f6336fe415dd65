"""The runtime on this host: its workspace, its warning, its end."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.errors import ExecFailed, InvalidParams, StartFailed
from fastclaw.runtime import ExecRequest, InitializeParams
from fastclaw.runtimes.host import EnvironmentHost
from tests.runtimes.commands import check_limits, ended

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def params(**options: Any) -> InitializeParams:
    return InitializeParams(namespace="n", options=options)


async def test_stop_ends_what_runs() -> None:
    runtime = EnvironmentHost("local")
    await runtime.start(params(kill_grace_ms=100))
    results = [await runtime.exec(ExecRequest(cmd=["sleep", "1000"])) for _ in range(5)]
    waits = [asyncio.create_task(runtime.wait(result.process_id)) for result in results]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await runtime.stop()
        assert {(await wait).reason for wait in waits} == {"killed"}


async def test_local_says_that_it_isolates_nothing(caplog: pytest.LogCaptureFixture) -> None:
    runtime = EnvironmentHost("local")
    await runtime.start(params())
    assert (await runtime.health()).details["isolation"] == "none"
    assert "no isolation" in caplog.text
    await runtime.stop()


async def test_the_local_workspace(tmp_path: Path) -> None:
    runtime = EnvironmentHost("local")
    with pytest.raises(StartFailed) as raised:
        await runtime.start(params(workspace={"target": "/nowhere/at/all"}))
    assert raised.value.reason == "bad_mount"
    result = await runtime.start(params(workspace={"target": "/w", "source": str(tmp_path)}))
    assert result.workspace_root == str(tmp_path)
    await runtime.exec(ExecRequest(cmd=["touch", "here"]))
    async with asyncio.timeout(10):
        await runtime.wait((await runtime.list_processes())[0].process_id)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]  # noqa: ASYNC240 - a directory of one
    await runtime.stop()


@pytest.fixture
async def local() -> AsyncIterator[EnvironmentHost]:
    runtime = EnvironmentHost("local")
    await runtime.start(params())
    yield runtime
    await runtime.stop()


@pytest.mark.promise("T-TTY", "T-TTY-SIZE")
async def test_a_terminal(local: EnvironmentHost) -> None:
    out, record = await ended(local, "sh", "-c", "tty; stty size; exit 3", tty=True, tty_size=(7, 9))
    name, size, _ = out.split(b"\r\n")
    assert (name[:9], size, record.exit_code) == (b"/dev/pts/", b"7 9", 3)


@pytest.mark.promise("T-LIMITS")
@pytest.mark.parametrize(("name", "option"), [("nofile", "n"), ("core", "c"), ("stack", "s"), ("cpu", "t")])
async def test_a_limit_is_soft_and_hard(local: EnvironmentHost, name: str, option: str) -> None:
    unit = {"stack": 1024, "core": 512}.get(name, 1)  # what ulimit counts in
    script = f"ulimit -S{option}; ulimit -H{option}"
    out, _ = await ended(local, "sh", "-c", script, limits={name: 200 * unit})
    assert out == b"200\n200\n"


@pytest.mark.promise("T-LIMITS")
async def test_limits_hold(local: EnvironmentHost, tmp_path: Path) -> None:
    await check_limits(lambda *cmd, **request: ended(local, *cmd, **request), str(tmp_path))


@pytest.mark.promise("T-LIMITS-NAME")
async def test_limits_that_cannot_be_had(local: EnvironmentHost, tmp_path: Path) -> None:
    for limits, error, reason, words in (
        ({"nofiles": 1}, InvalidParams, "invalid_params", "did you mean 'nofile'?"),
        ({"nofile": 2**40}, ExecFailed, "permission_denied", "limits {'nofile': 1099511627776}"),
    ):
        with pytest.raises(error, match=re.escape(words)) as raised:
            await local.exec(ExecRequest(cmd=["touch", f"{tmp_path}/started"], limits=limits))
        assert raised.value.reason == reason
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - a directory of none


@pytest.mark.promise("T-TEMPLATE-NAME")
async def test_a_template() -> None:
    runtime = EnvironmentHost("local")
    cmd = [sys.executable, "-m", "fastclaw.template"]
    template = {"cmd": cmd, "env": {"A": "template", "B": "template", "C": "template"}}
    await runtime.start(params(templates={"py": template}, env={"A": "options", "D": "options"}))
    try:
        code = "import os; print(*(os.environ[name] for name in 'ABCD')); raise SystemExit(3)"
        out, record = await ended(runtime, "python", "-c", code, template="py", env={"B": "request"})
        assert (out, record.exit_code) == (b"template request template options\n", 3)
        lane = (await runtime.health()).details["lane"]
        assert lane["templates"] == {"py": {"state": "ready", "forks": 1}}
        with pytest.raises(InvalidParams) as raised:
            await runtime.exec(ExecRequest(cmd=["python"], template="pyy"))
        assert raised.value.data == {"path": "$.template", "nearest": "py"}
    finally:
        await runtime.stop()


async def test_a_template_that_does_not_come_up_leaves_nothing() -> None:
    runtime = EnvironmentHost("local")
    with pytest.raises(StartFailed, match="template 'bad'") as raised:
        await runtime.start(params(templates={"bad": {"cmd": ["false"]}}))
    assert raised.value.reason == "template_failed"
    await runtime.start(params())
    await runtime.stop()


@pytest.mark.parametrize(("name", "value"), [("disk_bytes", 1 << 20), ("cpus", 0.5), ("cpuset", "0")])
async def test_local_refuses_a_bound_on_disk_and_processors(name: str, value: object) -> None:
    runtime = EnvironmentHost("local")
    with pytest.raises(InvalidParams) as raised:
        await runtime.start(params(**{name: value}))
    assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", f"$.options.{name}")
    await runtime.stop()
