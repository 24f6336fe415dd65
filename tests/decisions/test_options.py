"""Options: defaults out of limits, and refusals with their path."""

from typing import Any

import pytest

from fastclaw import limits
from fastclaw.decisions.options import Network, Options, Template, Workspace, read_options
from fastclaw.errors import InvalidParams
from fastclaw.runtime import InitializeParams


def read(**options: Any) -> Options:
    return read_options(InitializeParams(namespace="n", options=options))


def test_the_defaults_are_the_limits() -> None:
    options = read()
    assert options == Options()
    assert options.max_processes == limits.MAX_PROCESSES
    assert options.linger_ms == limits.LINGER_MS
    assert options.network.mode == "none"


def test_everything_nested_is_read() -> None:
    options = read(workspace={"target": "/w"}, network={"mode": "open"}, env={"A": "1"})
    assert (options.workspace, options.network, options.env) == (Workspace("/w"), Network("open"), {"A": "1"})


def test_templates() -> None:
    options = read(templates={"t": {"cmd": ["a"]}, "u": {"cmd": ["b"], "ready": "line", "env": {"A": "1"}}})
    assert options.templates == {"t": Template(["a"]), "u": Template(["b"], "line", {"A": "1"})}


@pytest.mark.parametrize("mode", ["proxy", "bridge"])
def test_what_is_not_built_is_said(mode: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        read(network={"mode": mode})
    assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", "$.options.network.mode")


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"max_processes": 0}, "$.options.max_processes"),
        ({"max_processes": "1"}, "$.options.max_processes"),
        ({"linger_ms": -1}, "$.options.linger_ms"),
        ({"runtime": "vm"}, "$.options.runtime"),
        ({"workspace": {}}, "$.options.workspace.target"),
        ({"workspace": {"target": "w"}}, "$.options.workspace.target"),
        ({"workspace": {"target": "/w\0"}}, "$.options.workspace.target"),
        ({"env": {"A": None}}, "$.options.env[...]"),
        ({"templates": {"t": {"cmd": []}}}, "$.options.templates[...].cmd"),
        ({"templates": {"t": {"cmd": ["a"], "ready": "soon"}}}, "$.options.templates[...].ready"),
        ({"templates": {"t": {"cmd": ["a"], "comand": 1}}}, "$.options.templates[...].comand"),
        ({"templates": {"": {"cmd": ["a"]}}}, "$.options"),
        ({"templates": {str(n): {"cmd": ["a"]} for n in range(limits.MAX_TEMPLATES + 1)}}, "$.options.templates"),
        ({"templates": {"t": {"cmd": ["a"]}}, "lane": "rest"}, "$.options.templates"),
        ({"templates": {"t": {"cmd": ["a"]}}, "runtime": "memory"}, "$.options.templates"),
    ],
)
def test_refusals(options: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        read(**options)
    assert raised.value.data["path"] == path
