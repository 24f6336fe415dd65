"""The network on a real Podman, with a real origin: each mode, for programs that heed proxy variables or do not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.engine.container_spec import HOSTS
from fastclaw.errors import InvalidParams, StartFailed
from tests.acceptance.egress_rig import (
    NAMESPACE,
    ORIGIN,
    SERVE,
    UNLISTED,
    Origin,
    inside,
    interfaces,
    options_of,
    served,
    tables,
)
from tests.pids import init_of
from tests.telemetry.test_metrics import asked, samples
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.engine_fixtures import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]

ALLOW = ["origin.test:80,443,8080", "*.wild.test:443", f"{ORIGIN}:80,443,8080"]
"""The origin's address is one of a range for documentation, so it has to be listed beside its names."""

WAYS: dict[str, dict[str, Any]] = {
    "proxy": {"lane": "spawn", "network": {"mode": "proxy"}},
    "bridge": {"lane": "spawn", "network": {"mode": "bridge"}},
    "bridge-rest": {"lane": "rest", "containers": 1, "network": {"mode": "bridge"}},
    "proxy-rest": {"lane": "rest", "containers": 1, "network": {"mode": "proxy"}},
}
BRIDGED = [way for way in WAYS if way != "proxy"]


class World:
    """A served runtime and what it may reach."""

    def __init__(self, client: RuntimeClient, origin: Origin, way: str) -> None:
        self.client, self.origin, self.way = client, origin, way

    async def inside(self, word: str, *arguments: object, **request: Any) -> Any:
        return await inside(self.client, word, *arguments, **request)

    async def health(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.health()).details["network"]
        return found


@pytest.fixture
async def world(
    engine_service: EngineService, image: str, origin: Origin, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    options = dict(WAYS[request.param])
    network = {"allow": ALLOW, **options.pop("network")}
    origin.drain()
    async with served(engine_service, origin, network, image=image, **options) as client:
        yield World(client, origin, request.param)


everywhere = pytest.mark.parametrize("world", WAYS, indirect=True)
bridged = pytest.mark.parametrize("world", BRIDGED, indirect=True)
proxied = pytest.mark.parametrize("world", ["proxy"], indirect=True)


@everywhere
async def test_a_program_that_honours_the_variables(world: World) -> None:
    assert (await world.inside("fetch", "http://origin.test/a"))["status"] == 200
    assert (await world.inside("fetch", "https://origin.test/b"))["status"] == 200
    assert (await world.inside("fetch", "https://sub.wild.test/c"))["status"] == 200
    heads = "".join(event["data"] for event in world.origin.drain())
    assert [path in heads for path in ("GET /a HTTP", "GET /b HTTP", "GET /c HTTP")] == [True] * 3
    refused = await world.inside("fetch", "http://other.test/")
    assert (refused["status"], refused["reason"]) == (403, "not_allowed")
    assert len(refused["body"].splitlines()) == 1
    assert "403" in (await world.inside("fetch", "https://other.test/"))["text"]
    assert (await world.inside("via", "other.test:443"))["reason"] == "not_allowed"
    assert world.origin.drain() == []
    health = await world.health()
    assert (health["allowed"], health["denied"], health["open"]) == (3, {"not_allowed": 3}, 0)
    assert health["bytes"]["received"] > health["bytes"]["sent"] > 0


async def test_prometheus_is_told_what_was_decided_for_all(
    engine_service: EngineService, image: str, origin: Origin, short_dir: Path
) -> None:
    network, path = {"mode": "proxy", "allow": ALLOW}, str(short_dir / "metrics")
    name = "fastclaw_egress_decisions_total"
    async with served(engine_service, origin, network, image=image, metrics=path) as client:
        assert (await inside(client, "fetch", "http://origin.test/a"))["status"] == 200
        assert (await inside(client, "fetch", "http://other.test/"))["status"] == 403
        for goes_on in (True, False):  # what has ended has been counted
            found = samples(await asyncio.to_thread(asked, path))
            assert found[name, (("decision", "allowed"), ("reason", ""))] == 1
            assert found[name, (("decision", "denied"), ("reason", "not_allowed"))] == 1
            if goes_on:
                await client.call("environment_stop", {"environment": "main"})


@everywhere
async def test_what_initialize_says(world: World) -> None:
    assert world.client.welcome is not None
    env = world.client.welcome.env
    names = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]
    others = ["JAVA_TOOL_OPTIONS", "NODE_USE_ENV_PROXY"]
    assert sorted(env) == sorted(names + [name.lower() for name in names] + others)
    assert all(env[name] == env[name.lower()] for name in names)
    assert (await world.inside("environment")).items() >= env.items()
    hosts = await world.client.run(["sh", "-c", "cat /etc/hosts; echo 127.0.0.1 mine >> /etc/hosts"])
    assert (hosts.stdout, hosts.stderr) == (HOSTS.encode(), b"")
    assert await world.inside("own", "localhost", "127.0.0.1", "0.0.0.0", "fastclaw", "ip6-localhost") == 5
    own = await world.inside("environment", env={"HTTP_PROXY": "mine"})
    assert (own["HTTP_PROXY"], own["http_proxy"]) == ("mine", env["http_proxy"])


@proxied
async def test_in_proxy_mode_a_program_that_ignores_them_reaches_nothing(world: World) -> None:
    assert await world.inside("routes") == {"devices": ["lo"], "routed": []}
    assert (await world.inside("plain", ORIGIN, 80))["error"] == "ENETUNREACH"
    assert (await world.inside("resolve", "origin.test"))["error"] == "gaierror"
    assert world.origin.drain() == []


@bridged
async def test_on_a_bridge_a_program_that_ignores_them_gets_what_is_allowed(world: World) -> None:
    assert await world.inside("resolve", "origin.test") == [ORIGIN]
    assert (await world.inside("plain", "origin.test", 80))["status"] == 200
    assert (await world.inside("tls", "origin.test", 443, "origin.test"))["status"] == 200
    assert (await world.inside("tls", ORIGIN, 443, "sub.wild.test"))["status"] == 200
    assert len(world.origin.drain()) == 6
    assert (await world.health())["denied"] == {}


@bridged
async def test_on_a_bridge_a_program_that_ignores_them_gets_nothing_else(world: World) -> None:
    assert (await world.inside("resolve", "other.test"))["error"] == "gaierror"
    refused = await world.inside("plain", UNLISTED, 80, "other.test")
    assert (refused["status"], refused["reason"]) == (403, "not_allowed")
    assert "error" in await world.inside("tls", UNLISTED, 443, "other.test")
    assert "error" in await world.inside("tcp", ORIGIN, 22)
    assert world.origin.drain() == []
    denied = (await world.health())["denied"]
    assert denied["not_allowed"] >= 3


@everywhere
async def test_ten_megabytes_through_a_tunnel(world: World) -> None:
    got = await world.inside("fetch", "https://origin.test/big")
    assert (got["status"], got["bytes"]) == (200, 10_000_000)


async def test_mode_none_has_nothing_and_nobody_to_ask(
    engine_service: EngineService, image: str, origin: Origin
) -> None:
    origin.drain()
    async with served(engine_service, origin, {"mode": "none"}, image=image) as client:
        assert client.welcome is not None
        assert client.welcome.env == {}
        assert await inside(client, "routes") == {"devices": ["lo"], "routed": []}
        assert (await inside(client, "plain", ORIGIN, 80))["error"] == "ENETUNREACH"
        assert (await client.health()).details["network"] == {"mode": "none"}
    assert origin.drain() == []


async def test_by_default_nothing_gets_out_and_who_asks_is_told(
    engine_service: EngineService, image: str, origin: Origin
) -> None:
    async with served(engine_service, origin, {}, image=image) as client:
        health = (await client.health()).details["network"]
        assert (health["mode"], health["proxy"], health["allowed"]) == ("proxy", "idle", 0)
        assert (await inside(client, "fetch", "http://origin.test/"))["reason"] == "not_allowed"
        assert (await client.health()).details["network"]["proxy"] == "running"


@pytest.mark.parametrize(("network", "mode"), [({}, "none"), ({"allow": ["origin.test"]}, "bridge")])
async def test_the_rest_lane_takes_something_else_for_proxy_and_says_so(
    engine_service: EngineService, origin: Origin, network: dict[str, Any], mode: str
) -> None:
    async with served(engine_service, origin, network, lane="rest", containers=1) as client:
        health = (await client.health()).details["network"]
        assert (health["mode"], health["asked"]) == (mode, "proxy")
        assert "spawner" in health["why"]


@pytest.mark.parametrize("world", ["proxy", "bridge", "bridge-rest"], indirect=True)
async def test_a_container_that_dies_is_followed_by_one_with_the_same_network(world: World) -> None:
    async with await world.client.exec(["sleep", "1000"], stdin=False) as process:
        os.kill(init_of(process.id), signal.SIGKILL)
        assert (await process.wait()).reason == "container_gone"

    async def is_healthy() -> bool:
        return (await world.client.health()).status == "healthy"

    await until(is_healthy, 20)
    assert (await world.inside("fetch", "http://origin.test/"))["status"] == 200


async def test_the_log_has_a_line_for_each_decision(
    engine_service: EngineService, image: str, origin: Origin, tmp_path: Path
) -> None:
    path = tmp_path / "egress.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        allow = [*ALLOW, f"host.fastclaw.internal:{port}"]
        network = {"allow": allow, "deny": ["origin.test:8080"], "log": str(path)}
        async with served(engine_service, origin, network, image=image) as client:
            for url in ("http://origin.test/", "https://origin.test/", "http://origin.test:8080/", "http://10.1.2.3/"):
                await inside(client, "fetch", url)
            assert (await inside(client, "via", f"host.fastclaw.internal:{port}"))["status"] == 200
            ours.accept()[0].close()
            shown = await inside(client, "fetch", "http://rules.fastclaw.internal/")
            assert json.loads(shown["body"])["allow"] == allow
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["how"], line["decision"], line["reason"], line["host"], line["port"]) for line in lines] == [
        ("http", "allowed", None, "origin.test", 80),
        ("connect", "allowed", None, "origin.test", 443),
        ("http", "denied", "denied", "origin.test", 8080),
        ("http", "denied", "special_address", "10.1.2.3", 80),
        ("connect", "allowed", None, "host.fastclaw.internal", port),
    ]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_log_that_cannot_be_written_is_said_at_once(
    engine_service: EngineService, image: str, origin: Origin
) -> None:
    with pytest.raises(StartFailed) as raised:
        async with served(engine_service, origin, {"log": "/no/such/directory/log"}, image=image):
            pass
    assert raised.value.reason == "bad_log"


async def test_an_injected_header_reaches_the_origin_and_never_the_sandbox(
    engine_service: EngineService, image: str, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    monkeypatch.setenv("EGRESS_TEST_KEY", "from-a-variable")
    inject = [
        {"host": "origin.test", "header": "Authorization", "value_from": {"env": "EGRESS_TEST_KEY"}},
        {"host": "*.test", "header": "X-Key", "value_from": {"file": str(tmp_path / "key")}},
    ]
    network = {"allow": [*ALLOW, "other.test:80"], "inject": inject}
    origin.drain()
    async with served(engine_service, origin, network, image=image) as client:
        assert (await inside(client, "fetch", "http://origin.test/", "Authorization=mine"))["status"] == 200
        assert (await inside(client, "fetch", "http://other.test/"))["status"] == 200
        assert "from-a" not in json.dumps(await inside(client, "environment"))
        assert "from-a" not in json.dumps((await client.health()).details)
    first, second = [event["data"].lower() for event in origin.drain() if event["data"]]
    assert ("authorization: from-a-variable" in first, "x-key: from-a-file" in first, "mine" in first) == (
        True,
        True,
        False,
    )
    assert ("from-a-variable" in second, "x-key: from-a-file" in second) == (False, True)


async def test_a_companys_proxy_is_asked_for_what_is_allowed_and_its_credentials_stay_outside(
    engine_service: EngineService, image: str, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """opensandbox-group/OpenSandbox#1815: the name is one that only that proxy can resolve."""
    with socket.create_server(("127.0.0.1", 0)) as company:
        company.setblocking(False)
        monkeypatch.setenv("EGRESS_TEST_PROXY", f"http://me:s3cret@127.0.0.1:{company.getsockname()[1]}")
        network = {"allow": ["far.test"], "upstream": {"env": "EGRESS_TEST_PROXY"}}
        async with served(engine_service, origin, network, image=image) as client:

            async def serve() -> str:
                loop = asyncio.get_running_loop()
                peer, _ = await loop.sock_accept(company)
                with peer:
                    head = await loop.sock_recv(peer, 65536)
                    await loop.sock_sendall(peer, b"HTTP/1.1 200 Yes\r\nContent-Length: 5\r\n\r\nhello")
                return head.decode()

            found, asked = await asyncio.gather(inside(client, "fetch", "http://far.test/"), serve())
            assert (found["status"], found["body"]) == (200, "hello")
            assert "GET http://far.test/ HTTP/1.1" in asked
            assert "Proxy-Authorization: Basic bWU6czNjcmV0" in asked
            for shown in (await inside(client, "environment"), (await client.health()).details):
                assert not re.search("s3cret|bWU6czNjcmV0", json.dumps(shown))
            assert (await inside(client, "via", "near.test:443"))["reason"] == "not_allowed"


@pytest.mark.parametrize("source", [{"env": "NO_SUCH_VARIABLE_HERE"}, {"file": "/no/such/file"}])
async def test_a_secret_that_is_not_there_is_said_at_once(
    engine_service: EngineService, image: str, origin: Origin, source: dict[str, str]
) -> None:
    inject = [{"host": "origin.test", "header": "Key", "value_from": source}]
    with pytest.raises(InvalidParams, match=r"No such file|has no NO_SUCH"):
        async with served(engine_service, origin, {"allow": ALLOW, "inject": inject}, image=image):
            pass


@pytest.mark.parametrize("mode", ["proxy", "bridge"])
async def test_what_a_killed_owner_left_goes_with_the_next_start(
    engine_service: EngineService, image: str, origin: Origin, mode: str
) -> None:
    options = options_of(engine_service, {"mode": mode, "allow": ALLOW}, image=image)
    async with RuntimeClient.spawn(origin.named(*SERVE), namespace=NAMESPACE, options=options) as client:
        await inside(client, "fetch", "http://origin.test/")
        os.kill(client.pid, signal.SIGKILL)
        assert await client.exited(10) == -signal.SIGKILL
        dead = client.pid
    left = tables(dead)
    assert bool(left) == bool(interfaces(left)) == (mode == "bridge")
    async with served(engine_service, origin, {"mode": mode, "allow": ALLOW}, image=image) as client:
        assert (await inside(client, "fetch", "http://origin.test/"))["status"] == 200
    assert (tables(dead), interfaces(left)) == ([], [])


async def test_fastclaw_run_with_an_allowed_host(engine_service: EngineService, image: str, origin: Origin) -> None:
    command = [*origin.named(*SERVE[:3]), "run", "--url", engine_service.url, "--image", image]
    program = "import urllib.request as u; print(u.urlopen('http://origin.test/').status)"
    for allowed, code in ((ALLOW, 0), ([], 1)):
        allow = [word for rule in allowed for word in ("--allow", rule)]
        done = await asyncio.create_subprocess_exec(
            *command, *allow, "--", "python3", "-c", program, stdout=-1, stderr=-1
        )
        out, err = await done.communicate()
        assert done.returncode == code, err.decode()
        assert out == (b"200\n" if code == 0 else b"")
        assert code == 0 or b"403" in err
