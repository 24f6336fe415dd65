"""Which network an environment gets, what programs are told of it, and where secrets come from."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import network_limits
from fastclaw.engine.container_spec import HOSTNAME, NO_NETWORK, OPEN_NETWORK
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.network.bridge.bridge import FirewalledBridge, why_no_bridge
from fastclaw.network.egress.proxy import EgressProcess
from fastclaw.network.egress.proxy_frames import Injection, Upstream
from fastclaw.network.modes import (
    NO_PROXY,
    BridgedNetwork,
    EnvironmentNetwork,
    ProxyNetwork,
    beside,
    egress_config,
    open_network,
    proxy_variables,
)
from fastclaw.options import Inject, SecretSource
from fastclaw.options import Network as Options
from fastclaw.options import Upstream as UpstreamOptions
from tests.engine_fixtures import unusable

if TYPE_CHECKING:
    from pathlib import Path


def no_bridge() -> FirewalledBridge:
    raise AssertionError("nobody asked for a bridge")


async def opened(options: Options, setup: AsyncExitStack, *, why_no_listener: str | None = None) -> EnvironmentNetwork:
    return await open_network(
        options, why_no_listener=why_no_listener, bridge=no_bridge, egress=EgressProcess(), setup=setup
    )


@pytest.mark.parametrize(("mode", "spec"), [("none", NO_NETWORK), ("open", OPEN_NETWORK)])
@pytest.mark.parametrize("why_no_listener", [None, "no spawner"])
async def test_what_is_the_engines_own_affair(mode: Any, spec: object, why_no_listener: str | None) -> None:
    async with AsyncExitStack() as setup:
        network = await opened(Options(mode), setup, why_no_listener=why_no_listener)
        assert (network.spec, network.env, network.trouble) == (spec, {}, None)
        assert network.health() == {"mode": mode}


async def test_a_spawner_gets_the_proxy_and_no_route() -> None:
    async with AsyncExitStack() as setup:
        network = await opened(Options(allow=["a.test"]), setup)
        assert isinstance(network, ProxyNetwork)
        assert (network.spec, network.env["http_proxy"]) == (NO_NETWORK, "http://127.0.0.1:3128")
        health = network.health()
        assert (health["mode"], health["proxy"], health["allowed"], health["denied"]) == ("proxy", "idle", 0, {})


async def test_where_nothing_is_allowed_there_needs_to_be_no_bridge() -> None:
    async with AsyncExitStack() as setup:
        network = await opened(Options(), setup, why_no_listener="the REST lane has no spawner")
        health = network.health()
        assert (network.spec, network.env, health["mode"], health["asked"]) == (NO_NETWORK, {}, "none", "proxy")


@pytest.mark.parametrize(("options", "asked"), [(Options("bridge"), None), (Options(allow=["a.test"]), "proxy")])
async def test_a_bridge_and_the_proxy_on_its_gateway(options: Options, asked: str | None, tmp_path: Path) -> None:
    if (reason := await why_no_bridge()) is not None:
        unusable(reason)
    async with AsyncExitStack() as setup:
        network = await open_network(
            options,
            why_no_listener="no spawner",
            bridge=lambda: FirewalledBridge(tmp_path),
            egress=EgressProcess(),
            setup=setup,
        )
        assert isinstance(network, BridgedNetwork)
        gateway = network.env["HTTPS_PROXY"].removeprefix("http://").partition(":")[0]
        assert gateway.endswith(".1")
        assert network.spec.resolv_conf is not None
        assert (network.health()["mode"], network.health().get("asked")) == ("bridge", asked)


async def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    async with AsyncExitStack() as setup:
        with pytest.raises(StartFailed) as raised:
            await opened(Options(log=str(tmp_path / "no" / "log")), setup)
        assert raised.value.reason == "bad_log"


def test_programs_are_told_in_both_cases() -> None:
    variables = proxy_variables("10.0.0.1")
    assert variables["HTTP_PROXY"] == variables["http_proxy"] == variables["https_proxy"] == "http://10.0.0.1:3128"
    assert variables["no_proxy"] == variables["NO_PROXY"] == NO_PROXY
    assert variables["NODE_USE_ENV_PROXY"] == "1"
    assert {"ip6-localhost", HOSTNAME} <= set(NO_PROXY.split(","))
    assert len(variables) == 8


def test_a_jvm_is_told_by_properties_beside_those_that_were_asked_for() -> None:
    """anthropics/claude-code#16222: Gradle heeds no variable of a proxy."""
    variables = proxy_variables("10.0.0.1")
    options = dict(option[2:].split("=") for option in variables["JAVA_TOOL_OPTIONS"].split())
    assert options["http.proxyHost"] == options["https.proxyHost"] == "10.0.0.1"
    assert options["http.proxyPort"] == options["https.proxyPort"] == "3128"
    assert {"localhost", "127.*", "[::1]", "0.0.0.0", "fastclaw"} <= set(options["http.nonProxyHosts"].split("|"))
    both = beside(variables, {"JAVA_TOOL_OPTIONS": "-Xmx1g"})
    assert both["JAVA_TOOL_OPTIONS"] == f"-Xmx1g {variables['JAVA_TOOL_OPTIONS']}"
    assert beside(variables, {"PATH": "/bin"}) == variables
    assert beside({}, {"JAVA_TOOL_OPTIONS": "-Xmx1g"}) == {}


PYTHON_ASKS = """
import sys
from contextlib import suppress
def urllib(url):
    import urllib.request
    urllib.request.urlopen(url, timeout=5)
def requests(url):
    import requests
    requests.get(url, timeout=5)
def httpx(url):
    import httpx
    with httpx.Client(timeout=5) as client:
        with suppress(httpx.TransportError):
            client.get(url)
for url in sys.argv[2:]:
    with suppress(OSError):
        globals()[sys.argv[1]](url)
"""
CLIENTS: dict[str, tuple[list[str], set[str]]] = {
    "curl": (["curl", "--silent", "--max-time", "5"], set()),
    "wget": (["wget", "--quiet", "--timeout=5", "--tries=1", "--output-document=/dev/null"], {"127.0.0.2"}),
    "urllib": ([sys.executable, "-c", PYTHON_ASKS, "urllib"], {"127.0.0.2", "[::1]"}),
    "requests": ([sys.executable, "-c", PYTHON_ASKS, "requests"], set()),
    "httpx": ([sys.executable, "-c", PYTHON_ASKS, "httpx"], {"127.0.0.2"}),
}
"""And which of the sandbox's own names they ask a proxy for all the same: they know no networks."""

OWN = ["localhost", "127.0.0.1", "127.0.0.2", "0.0.0.0", "[::1]"]
"""Those that no resolver has to be asked for."""


def is_here(client: str) -> bool:
    return (shutil.which(client) or importlib.util.find_spec(client)) is not None


@pytest.mark.parametrize(
    "client",
    [pytest.param(one, marks=pytest.mark.skipif(not is_here(one), reason=f"no {one} here")) for one in CLIENTS],
)
def test_no_client_asks_the_proxy_for_what_the_sandbox_calls_itself(client: str) -> None:
    """github/gh-aw-firewall#1032, lensapp/lens-sandbox#367: one's own server answers 403, in the sandbox only."""
    command, misses = CLIENTS[client]
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("127.0.0.1", 0)) as free:
        port, unused = proxy.getsockname()[1], free.getsockname()[1]
        asked: list[str] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with proxy.accept()[0] as connection:
                        asked.append(
                            connection.recv(65536).decode().split()[1].split("/")[2].removesuffix(f":{unused}")
                        )
                        connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        free.close()  # who comes straight is refused at once
        variables = {name: value.replace(":3128", f":{port}") for name, value in proxy_variables("127.0.0.1").items()}
        urls = [f"http://{host}:{unused}/" for host in (*OWN, "elsewhere.test")]
        subprocess.run([*command, *urls], env={**os.environ, **variables}, capture_output=True, timeout=60, check=False)
        proxy.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert set(asked) == {*misses, "elsewhere.test"}


def config_of(source: SecretSource) -> list[Injection]:
    return egress_config(Options(inject=[Inject("a.test", "Key", source)])).inject


@pytest.mark.parametrize(
    ("text", "host", "port", "authorization"),
    [
        ("http://proxy.test:3128", "proxy.test", 3128, None),
        ("http://u:s%40cret@10.1.2.3:8080/", "10.1.2.3", 8080, "Basic dTpzQGNyZXQ="),
        ("u:p@[2001:db8::1]", "2001:db8::1", 80, "Basic dTpw"),
    ],
)
def test_a_proxy_outside_is_taken_from_the_hosts_variables_only_where_that_is_asked_for(
    text: str, host: str, port: int, authorization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", text)
    assert egress_config(Options()).upstream is None
    found = egress_config(Options(upstream=UpstreamOptions(env="HTTPS_PROXY"))).upstream
    assert found == egress_config(Options(upstream=UpstreamOptions(url=text))).upstream
    assert found == Upstream(host=host, port=port, authorization=authorization)
    assert "Basic" not in repr(found)


def test_who_is_behind_a_proxy_that_is_not_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert egress_config(Options()).hint == ""
    monkeypatch.setenv("https_proxy", "http://u:s3cret@p:1")
    assert 'upstream only ({"env": "https_proxy"})' in egress_config(Options()).hint
    assert "s3cret" not in egress_config(Options()).hint
    assert egress_config(Options(upstream=UpstreamOptions(env="https_proxy"))).hint == ""


def test_the_engines_port_is_closed() -> None:
    assert egress_config(Options(), None, "tcp://127.0.0.1:8080").closed_ports == [8080]
    assert egress_config(Options(), None, "unix:///run/podman.sock").closed_ports == []


@pytest.mark.parametrize(
    "text", ["", "https://u:s3cret@p:1", "socks5://u:s3cret@p", "http://u:s3cret@p:x", "http://u:s3cret@/", "u:s3cret"]
)
def test_what_is_no_proxy_is_refused_without_saying_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PROXY", text)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    for name in ("SOME_PROXY", "HTTPS_PROXY"):
        with pytest.raises(InvalidParams, match="upstream") as raised:
            egress_config(Options(upstream=UpstreamOptions(env=name)))
        assert "s3cret" not in str(raised.value)


def test_secrets_out_of_the_environment_and_out_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWORK_TEST_KEY", "s3cret")
    (tmp_path / "key").write_text("Bearer abc\n")
    assert config_of(SecretSource(env="NETWORK_TEST_KEY")) == [Injection(host="a.test", header="Key", value="s3cret")]
    assert config_of(SecretSource(file=str(tmp_path / "key")))[0].value == "Bearer abc"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two\nlines", b"nul\0", "ü".encode(), b"x" * (network_limits.EGRESS_SECRET_BYTES + 1)]
)
def test_what_is_no_value_of_a_header_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(InvalidParams) as raised:
        config_of(SecretSource(file=str(path)))
    assert raised.value.data["path"] == "$.options.network.inject[0].value_from.file"
    assert "lines" not in str(raised.value)


@pytest.mark.parametrize("source", [SecretSource(env="NETWORK_TEST_NONE"), SecretSource(file="/no/such/file")])
def test_a_secret_that_is_not_there(source: SecretSource) -> None:
    with pytest.raises(InvalidParams, match=r"has no NETWORK_TEST_NONE|No such file"):
        config_of(source)


def test_every_option_reaches_the_proxy() -> None:
    options = Options("bridge", ["a"], ["b"], [], "/l", 4096, 1, 2, 3, idle_timeout_ms=4, connect_timeout_ms=5)
    config = egress_config(options, "10.0.0.0/24")
    assert (config.allow, config.deny, config.log, config.log_max_bytes) == (["a"], ["b"], "/l", 4096)
    assert (config.max_connections, config.max_connections_per_s, config.max_bytes) == (1, 2, 3)
    assert (config.idle_timeout_ms, config.connect_timeout_ms, config.subnet) == (4, 5, "10.0.0.0/24")
