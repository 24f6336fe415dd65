"""The production runtime on a real Podman: up, degraded, healthy again, down with nothing left."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from fastclaw import limits
from fastclaw.client.remote_process import Channel
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE
from fastclaw.engine.service.service import ManagedService
from fastclaw.errors import ExecFailed, InvalidParams, StartFailed
from fastclaw.options import Options
from fastclaw.runtime import EnvironmentRequest, ExecRequest, InitializeParams
from fastclaw.runtimes.host import EnvironmentHost
from fastclaw.runtimes.podman import limits_not_in_force, why_not_spawn
from tests.runtimes.commands import check_limits, ended
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.engine.service.plan import ServicePlan
    from tests.engine_fixtures import EngineService

NAMESPACE = "containertest"
PATIENCE_S = 20


@pytest.fixture
async def engine(engine_service: EngineService) -> AsyncIterator[EngineLifecycle]:
    """The tests' engine, which has no container of these tests afterwards."""
    one = EngineLifecycle(engine_service.url)
    try:
        yield one
        assert await containers(one) == set()
    finally:
        await one.aclose()


@pytest.mark.parametrize(
    ("options", "controllers", "names"),
    [
        ({}, (), ["pids_limit"]),
        ({"memory_bytes": limits.MIB}, ("memory", "pids"), []),
        ({"memory_bytes": limits.MIB, "pids_limit": 50}, (), ["memory_bytes", "pids_limit"]),
        ({"memory_bytes": limits.MIB, "pids_limit": 50}, ("pids",), ["memory_bytes"]),
        ({"cpus": 0.5, "cpuset": "0"}, ("pids", "cpu"), ["cpuset"]),
    ],
)
def test_limits_that_nobody_would_hold_are_named(
    options: dict[str, Any], controllers: tuple[str, ...], names: list[str]
) -> None:
    assert limits_not_in_force(Options(**options), controllers) == names


async def containers(engine: EngineLifecycle) -> set[str]:
    return {found.id for found in await engine.list_containers({LABEL_NAMESPACE: NAMESPACE})}


class Told(EnvironmentHost):
    """Attributes:
    warnings: what the answer to `initialize` said.
    """

    warnings: list[str]


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Told]:
    """A runtime that is up, stopped at the end."""
    runtime = Told("podman")
    try:
        runtime.warnings = (await runtime.start(InitializeParams(namespace=NAMESPACE, options=options))).warnings
        yield runtime
    finally:
        await runtime.stop()


async def output(runtime: EnvironmentHost, *cmd: str, **request: Any) -> bytes:
    """What a command without stdin writes on stdout."""
    return (await ended(runtime, *cmd, stdin=False, **request))[0]


async def test_up_and_down_with_a_spawner(engine: EngineLifecycle) -> None:
    """One container: it starts as many at a time as there are cores for."""
    async with running(url=engine.url) as runtime:
        health = await runtime.health()
        assert (health.status, health.details["lane"]["name"]) == ("healthy", "spawn")
        assert "why_not_spawn" not in health.details
        assert runtime.warnings == []
        assert health.details["containers"] == {"places": 1, "usable": 1, "containers": 1}
        assert {"signal", "kill_tree", "user", "usage", "separate_eof", "limits"} <= set(runtime.capabilities)
        assert await output(runtime, "echo", "hi") == b"hi\n"


async def test_a_start_says_when_it_came_how_far(engine: EngineLifecycle) -> None:
    async with running(url=engine.url, environment=False) as runtime:
        for options in ({"clone": "never"}, {"clone": "always"}, {"lane": "rest"}):
            await runtime.environment_start(EnvironmentRequest(options=options))
        await runtime.pool_set([{"size": 1}])
        await until(lambda: runtime._ready is not None and runtime._ready.health()["kinds"][0]["ready"])
        await runtime.environment_start(EnvironmentRequest())
        told = runtime.telemetry.latency.summary()["environment_start"]
    stages = {lane: list(outcomes["ready"]) for lane, outcomes in told.items()}
    all_of_them = ["admitted", "prepared", "made", "up", "ready"]
    assert stages == {"engine": all_of_them, "clone": all_of_them, "pool": ["admitted", "made", "ready"]}
    assert {outcomes["ready"]["up"]["count"] for lane, outcomes in told.items() if lane != "pool"} == {2, 1}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("why_not_spawn", lambda url: "no reason", "no reason"),
        ("find_spawner", lambda: None, "no spawner"),
        ("find_spawner", lambda: Path("/bin/true"), "ended at once"),
    ],
)
async def test_auto_takes_the_rest_lane_where_it_must_and_says_why(
    engine: EngineLifecycle, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, why: str
) -> None:
    monkeypatch.setattr(f"fastclaw.runtimes.podman.{name}", value)
    async with running(url=engine.url) as runtime:
        health = await runtime.health()
        assert health.details["lane"]["name"] == "rest"
        assert why in health.details["why_not_spawn"]
        slower, monitors = runtime.warnings
        assert why in slower
        assert "exit_command_delay" in monitors
        assert len(await containers(engine)) == 1
        assert await output(runtime, "echo", "hi") == b"hi\n"


async def test_a_rule_that_another_one_overrules_is_warned_about(engine: EngineLifecycle) -> None:
    network = {"allow": ["a.test", "b.test:443", "c.test"], "deny": ["*.test:443", "a.test"]}
    async with running(url=engine.url, network=network) as runtime:
        (warning,) = runtime.warnings
    assert warning == (
        "options.network.allow: 'a.test' can never take effect, for 'a.test' denies it, and neither can 1 more"
    )


async def test_a_bound_on_the_disk_is_kept_or_refused(engine: EngineLifecycle) -> None:
    """Whatever file system this machine has: no start goes through without the quota that was asked for."""
    size = 20 * limits.MIB
    try:
        async with running(url=engine.url, disk_bytes=size) as runtime:
            total = await output(runtime, "sh", "-c", "df -k / | tail -1 | awk '{print $2}'")
            assert int(total) * limits.KIB <= size
    except StartFailed as error:
        refused = error
    else:
        return
    assert (refused.reason, "options.disk_bytes needs overlay on XFS" in str(refused)) == ("unsupported", True)


async def test_a_lane_that_was_asked_for_is_not_exchanged(
    engine: EngineLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastclaw.runtimes.podman.find_spawner", lambda: None)
    with pytest.raises(StartFailed):
        async with running(url=engine.url, lane="spawn"):
            pass


def test_an_engine_elsewhere_has_no_spawner() -> None:
    assert "tcp://10.0.0.1:8080" in (why_not_spawn("tcp://10.0.0.1:8080") or "")
    assert why_not_spawn("unix:///run/podman.sock") is None


async def test_an_environment_is_one_file_system_on_the_rest_lane_and_leaves_no_monitors(
    engine_plan: ServicePlan, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UKGovernmentBEIS/inspect_ai's checks: of four containers, each exec landed in another one, and files were gone.
    On an engine of the user's own, two processes for each exec stayed for minutes."""
    monkeypatch.setattr(limits, "EXECS_PER_CONTAINER", 2)
    engine = ManagedService(structs.replace(engine_plan, conmon_shim=None), short_dir / "s", short_dir / "r")
    await engine.start()
    try:
        async with running(url=engine.url, lane="rest") as runtime:
            await output(runtime, "sh", "-c", "echo kept >/tmp/f")
            for _ in range(4):
                assert await output(runtime, "cat", "/tmp/f") == b"kept\n"
            assert (await runtime.health()).details["containers"] == {"places": 1, "usable": 1, "containers": 1}
            assert len(monitors(short_dir)) >= 5
        assert monitors(short_dir) == []
    finally:
        await engine.aclose()


def monitors(directory: Path) -> list[str]:
    """Command lines of the monitors of execs, in an engine that has its storage here."""
    lines = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            lines.append((process / "cmdline").read_bytes().decode() if process.name.isdecimal() else "")
    return [line for line in lines if "conmon\0" in line and f"{directory}/" in line and "--exec-attach" in line]


async def test_up_and_down_on_the_rest_lane(engine: EngineLifecycle) -> None:
    async with running(url=engine.url, containers=2, lane="rest") as runtime:
        health = await runtime.health()
        assert (health.status, health.details["runtime"]) == ("healthy", "podman")
        assert health.details["containers"] == {"places": 2, "usable": 2, "containers": 2}
        assert health.details["engine"]["managed"] is False
        assert health.details["engine"]["podman"]
        assert health.details["lane"]["local"] is True
        assert {"signal", "kill_tree", "user"} <= set(runtime.capabilities)
        assert len(await containers(engine)) == 2
        assert await output(runtime, "echo", "hi") == b"hi\n"


def open_directory(path: Path) -> str:
    """One with a file that everybody may read."""
    path.chmod(0o755)
    (path / "f").write_text("from the host")
    return str(path)


def engine_sockets(path: Path) -> int:
    """How many there are below it."""
    return len(list(path.rglob("podman.sock")))


async def test_environment_workspace_and_user(engine: EngineLifecycle, tmp_path: Path) -> None:
    workspace = {"source": open_directory(tmp_path), "target": "/w"}
    options = {"workspace": workspace, "env": {"A": "b"}, "user": "65534", "containers": 1}
    async with running(url=engine.url, **options) as runtime:
        script = 'echo "$A $(id -u) $PWD $(cat f)"'
        assert await output(runtime, "sh", "-c", script) == b"b 65534 /w from the host\n"


async def test_an_engine_of_our_own_comes_and_goes(
    engine_plan: ServicePlan, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    async with running(state_dir=str(short_dir / "s"), containers=1) as runtime:
        assert (await runtime.health()).details["engine"]["managed"] is True
        assert await output(runtime, "echo", "own") == b"own\n"
        assert engine_sockets(short_dir) == 1
    assert engine_sockets(short_dir) == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image": "localhost/none", "pull": "never"}, "image_not_found"),
        ({"workspace": {"source": "/nonexistent/x", "target": "/w"}}, "bad_mount"),
        ({"start_timeout_ms": 1}, "engine_timeout"),
        ({"url": "unix:///nonexistent/socket"}, "engine_unavailable"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    engine: EngineLifecycle, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StartFailed) as caught:
        async with running(**{"url": engine.url} | options):
            pass
    assert caught.value.reason == reason


async def test_a_start_that_failed_may_be_tried_again(engine: EngineLifecycle) -> None:
    runtime = EnvironmentHost("podman")
    wrong = InitializeParams(namespace=NAMESPACE, options={"url": engine.url, "nonsense": 1})
    with pytest.raises(InvalidParams):
        await runtime.start(wrong)
    await runtime.start(InitializeParams(namespace=NAMESPACE, options={"url": engine.url, "containers": 1}))
    assert await output(runtime, "echo", "second") == b"second\n"
    await runtime.stop()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ssh://user@host/run/podman.sock", "ssh -nNT -L /tmp/podman.sock:REMOTE_SOCKET HOST"),
        ("http://host:1", "they are unix:///path, tcp://host:port and host"),
        ("/run/podman.sock", "they are unix:///path, tcp://host:port and host"),
        ("unix://run/podman.sock", "they are unix:///path, tcp://host:port and host"),
        ("tcp://host", "they are unix:///path, tcp://host:port and host"),
    ],
)
async def test_a_url_that_is_not_spoken_is_refused_in_a_line(
    url: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidParams) as raised:
        async with running(url=url):
            pass
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", "$.options.url")
    monkeypatch.setenv("CONTAINER_HOST", url)
    with pytest.raises(InvalidParams, match="CONTAINER_HOST: "):
        async with running():
            pass


@pytest.mark.promise("T-TTY", "T-TTY-SIZE")
async def test_a_terminal_inside_is_of_its_own_namespace_and_of_its_user(engine: EngineLifecycle) -> None:
    async with running(url=engine.url, lane="spawn") as runtime:
        script = (
            "tty; stty size; echo out >/dev/stdout; echo err >/dev/stderr; stat -c %u $(tty); ls -1 /dev/pts; exit 3"
        )
        for user, uid in ((None, b"0"), ("65534", b"65534"), ("1234:5678", b"1234")):
            out, record = await ended(runtime, "sh", "-c", script, tty=True, tty_size=(50, 132), user=user)
            name, *said, last, _ = out.split(b"\r\n")
            own = name.removeprefix(b"/dev/pts/")
            assert (said[:4], last, record.exit_code) == ([b"50 132", b"out", b"err", uid], b"ptmx", 3)
            assert said[4:] == [b"%d" % number for number in range(int(own) + 1)]  # and no terminal of the host


@pytest.mark.promise("T-TTY-LOSSLESS")
async def test_output_of_an_instant_exit_on_a_terminal(engine: EngineLifecycle) -> None:
    async with running(url=engine.url, lane="spawn") as runtime:
        made = [await runtime.exec(ExecRequest(cmd=["head", "-c", "3000", "/dev/zero"], tty=True)) for _ in range(20)]
        for process in made:
            await runtime.wait(process.process_id)
        for process in made:
            channel = await Channel.connect(process.stdio_addr)
            out = b""
            while part := await channel.read():
                out += part
            channel.close()
            assert out == bytes(3000)


@pytest.mark.promise("T-LIMITS", "T-LIMITS-NAME")
async def test_limits_inside(engine: EngineLifecycle) -> None:
    async with running(url=engine.url, lane="spawn") as runtime:
        await check_limits(lambda *cmd, **request: ended(runtime, *cmd, **request), "/tmp")
        script = "ulimit -Hn; touch /tmp/started"
        hard = int((await ended(runtime, "sh", "-c", script))[0])
        for asked, error, reason, words in (
            ({"nofiles": 1}, InvalidParams, "invalid_params", "did you mean 'nofile'?"),
            ({"nofile": hard + 1}, ExecFailed, "permission_denied", "may lower its hard limits and not raise them"),
        ):
            with pytest.raises(error, match=re.escape(words)) as raised:
                await runtime.exec(ExecRequest(cmd=["rm", "/tmp/started"], limits=asked))
            assert raised.value.reason == reason
        assert (await ended(runtime, "ls", "/tmp/started"))[0] == b"/tmp/started\n"


async def test_the_rest_lane_has_no_terminals_and_no_limits(engine: EngineLifecycle) -> None:
    async with running(url=engine.url, lane="rest", containers=1) as runtime:
        assert not {"tty", "limits"} & set(runtime.capabilities)
        for request in ({"tty": True}, {"limits": {"nofile": 9}}):
            with pytest.raises(InvalidParams) as raised:
                await runtime.exec(ExecRequest(cmd=["true"], **request))
            assert raised.value.reason == "unsupported"
