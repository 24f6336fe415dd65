"""Options: defaults out of limits, and refusals with their path."""

from typing import Any

import pytest

from fastclaw import limits
from fastclaw.errors import InvalidParams
from fastclaw.options import Inject, Network, Options, SecretSource, Template, Workspace
from fastclaw.runtimes.read_options import read_options


def read(**options: Any) -> Options:
    return read_options(options, Options)


def test_the_defaults_are_the_limits() -> None:
    options = read()
    assert options == Options()
    assert options.max_processes == limits.MAX_PROCESSES
    assert options.linger_ms == limits.LINGER_MS
    assert (options.network.mode, options.network.allow) == ("proxy", [])


def test_everything_nested_is_read() -> None:
    options = read(workspace={"target": "/w"}, network={"mode": "open"}, env={"A": "1"})
    assert (options.workspace, options.network, options.env) == (Workspace("/w"), Network("open"), {"A": "1"})


def test_templates() -> None:
    options = read(templates={"t": {"cmd": ["a"]}, "u": {"cmd": ["b"], "ready": "line", "env": {"A": "1"}}})
    assert options.templates == {"t": Template(["a"]), "u": Template(["b"], "line", {"A": "1"})}


def test_the_network() -> None:
    rules = {"allow": ["api.example.com:443", "*.pypi.org"], "deny": ["10.0.0.0/8"], "log": "/l", "max_bytes": 0}
    network = read(network={**rules, "mode": "bridge", "max_connections": 7}).network
    assert network == Network("bridge", max_connections=7, **rules)  # type: ignore[arg-type]


def test_injected_headers() -> None:
    inject = {"host": "api.example.com", "header": "Authorization", "value_from": {"env": "KEY"}}
    options = read(network={"allow": ["api.example.com:80"], "inject": [inject]})
    assert options.network.inject == [Inject("api.example.com", "Authorization", SecretSource(env="KEY"))]


def injecting(allow: str = "h:80", **changes: Any) -> dict[str, Any]:
    inject = {"host": "h", "header": "Key", "value_from": {"env": "KEY"}, **changes}
    return {"network": {"allow": [allow], "inject": [inject]}}


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"max_processes": 0}, "$.options.max_processes"),
        ({"max_processes": "1"}, "$.options.max_processes"),
        ({"linger_ms": -1}, "$.options.linger_ms"),
        ({"runtime": "vm"}, "$.options.runtime"),
        ({"workspace": {}}, "$.options.workspace.target"),
        ({"workspace": {"target": "w"}}, "$.options.workspace.target"),
        ({"workspace": {"target": "/" + "w" * 4_096}}, "$.options.workspace.target"),
        ({"workspace": {"target": "/w\0"}}, "$.options.workspace.target"),
        ({"env": {"A": None}}, "$.options.env[...]"),
        ({"user": ""}, "$.options.user"),
        ({"image": ""}, "$.options.image"),
        ({"url": ""}, "$.options.url"),
        ({"oci_runtime": ""}, "$.options.oci_runtime"),
        ({"oci_runtime_flags": ["--debug"]}, "$.options.oci_runtime_flags[0]"),
        ({"id_ranges": {"first": 2**32 - 2 * limits.IDS, "count": 2}}, "$.options.id_ranges.count"),
        ({"templates": {"t": {"cmd": ["a"], "user": ""}}}, "$.options.templates[...].user"),
        ({"run_output_bytes": -1}, "$.options.run_output_bytes"),
        ({"templates": {"t": {"cmd": []}}}, "$.options.templates[...].cmd"),
        ({"templates": {"t": {"cmd": ["a"], "ready": "soon"}}}, "$.options.templates[...].ready"),
        ({"templates": {"t": {"cmd": ["a"], "comand": 1}}}, "$.options.templates[...].comand"),
        ({"templates": {"": {"cmd": ["a"]}}}, "$.options"),
        ({"templates": {str(n): {"cmd": ["a"]} for n in range(limits.MAX_TEMPLATES + 1)}}, "$.options.templates"),
        ({"templates": {"t": {"cmd": ["a"]}}, "lane": "rest"}, "$.options.templates"),
        ({"templates": {"t": {"cmd": ["a"]}}, "runtime": "memory"}, "$.options.templates"),
        ({"network": {"mode": "brigde"}}, "$.options.network.mode"),
        ({"network": {"alow": []}}, "$.options.network.alow"),
        ({"network": {"allow": ["a:443", "b:http"]}}, "$.options.network.allow[1]"),
        ({"network": {"deny": ["999.0.0.1"]}}, "$.options.network.deny[0]"),
        ({"network": {"allow": ["a", "127.0.0.1:8123"]}}, "$.options.network.allow[1]"),
        ({"network": {"mode": "none", "allow": ["a"]}}, "$.options.network.allow"),
        ({"network": {"mode": "open", "deny": ["a"]}}, "$.options.network.deny"),
        ({"network": {"mode": "none", "log": "/l"}}, "$.options.network.log"),
        ({"network": {"log": "l"}}, "$.options.network.log"),
        ({"network": {"max_connections": 0}}, "$.options.network.max_connections"),
        ({"network": {"upstream": {}}}, "$.options.network.upstream"),
        ({"network": {"upstream": {"url": "http://p:1", "env": "HTTPS_PROXY"}}}, "$.options.network.upstream"),
        ({"network": {"mode": "open", "upstream": {"env": "A"}}}, "$.options.network.upstream"),
        (injecting(value_from={}), "$.options.network.inject[0].value_from"),
        (injecting(value_from={"env": "A", "file": "/b"}), "$.options.network.inject[0].value_from"),
        (injecting(header="a b"), "$.options.network.inject[0].header"),
        (injecting(header="Content-Length"), "$.options.network.inject[0].header"),
        (injecting("h:443"), "$.options.network.inject[0].host"),
        (injecting("*.h:80"), "$.options.network.inject[0].host"),
        (injecting("other:80"), "$.options.network.inject[0].host"),
    ],
)
def test_refusals(options: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        read(**options)
    assert raised.value.data["path"] == path
