"""Dependencies go one way: a module imports only what stands above it in `ORDER`. The design's section 6 as a test."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "fastclaw"
ROOT = Path(__file__).parent.parent / PACKAGE

LAYERS: dict[str, list[str]] = {
    "limits": [],
    "answer_limits": [],
    "network_limits": [],
    "errors": [],
    "runtime": [],
    "lane": [],
    "template": [],
    "protocol": [
        "attach",
        "dns",
        "egress",
        "framing",
        "http1",
        "jsonrpc",
        "program",
        "rtnetlink",
        "spawner",
        "template",
        "tls",
    ],
    "decisions": [
        "addresses",
        "egress_rules",
        "egress",
        "quota",
        "admission",
        "capacity",
        "container",
        "lifecycle",
        "listing",
        "rlimits",
        "params",
        "run_answer",
        "capabilities",
        "user_namespace",
        "options",
        "rotation",
        "service",
        "diagnosis",
        "firewall",
        "tree",
        "userdb",
        "verdict",
    ],
    "transport": [
        "cgroups",
        "child",
        "outbox",
        "watcher",
        "host",
        "loop",
        "pidfd",
        "procfs",
        "directories",
        "foreign_stdin",
        "stdin_server",
        "stdin_helpers",
        "listener",
        "proctree",
        "splice",
        "relay",
        "endpoint",
        "streams",
        "collector",
        "stdio",
        "unix_http",
        "workers",
    ],
    "spawn": [
        "binary",
        "ending",
        "refusals",
        "streams",
        "users",
        "process",
        "spawner",
        "templates",
        "lane",
        "host",
    ],
    "engine": [
        "attached",
        "exec_calls",
        "failures",
        "host",
        "programs",
        "image",
        "owner",
        "room",
        "dirs",
        "id_ranges",
        "choice",
        "podman_client",
        "image_files",
        "lifecycle",
        "janitor",
        "process",
        "pids_limit",
        "program_files",
        "remote_tree",
        "standby",
        "service",
        "monitors",
        "shard",
        "shards",
        "spawn_shard",
        "standing",
        "start_proof",
        "rest_process",
        "rest",
    ],
    "bridge": ["nft", "netns", "links", "network"],
    "egress": [
        "counters",
        "journal",
        "readiness",
        "batching",
        "pipes",
        "tunnel",
        "own",
        "resolver",
        "dial",
        "upstream",
        "gate",
        "targets",
        "fields",
        "heads",
        "waiting",
        "peer",
        "forward",
        "session",
        "transparent",
        "connection",
        "names",
        "server",
        "worker",
        "proxy",
    ],
    "runtimes": [
        "memory_pipes",
        "process",
        "programs",
        "memory_lane",
        "starts",
        "table",
        "begun",
        "keyed",
        "pool",
        "managed",
        "network",
        "rights",
        "container",
        "local",
        "memory",
        "auto",
    ],
    "in_flight": [],
    "dispatch": [],
    "harness": [],
    "client": ["channel", "child", "ending", "ran", "process", "rpc", "session"],
    "conformance": [
        "promises",
        "report",
        "vocabulary",
        "wire",
        "outside",
        "rig",
        "ran",
        "left",
        "registry",
        "check_clients",
        "check_errors",
        "check_sockets",
        "check_streams",
        "check_wire",
        "check_terminals",
        "check_exec",
        "check_lifecycle",
        "check_kill",
        "check_records",
        "check_run",
        "check_run_limits",
        "check_run_ends",
        "check_cancel",
        "run",
    ],
    "observe": ["histogram", "log"],
    "cli": [
        "help",
        "commands",
        "demo_round",
        "demo",
        "doctor",
        "engine",
        "options",
        "check",
        "passthrough",
        "terminal",
        "run",
        "serve",
        "main",
    ],
    "__main__": [],
}
"""The package from its words up to its commands: what stands lower may import what stands above, and nothing else.
A folder has its modules in order; its `__init__` stands below them, for it may offer what they define."""

ORDER = [name for folder, names in LAYERS.items() for name in [*(f"{folder}.{one}" for one in names), folder]]

PURE = ("protocol", "decisions")
"""Folders without I/O, clock or chance: bytes and values in, values out."""

IMPURE = frozenset(
    {"asyncio", "socket", "os", "time", "logging", "random", "subprocess", "threading", "select", "aiofiles"}
)

ONLY_IN = {
    "podman": ("engine",),
    "uvloop": ("transport.loop",),
    "click": ("cli",),
    "rich": ("cli",),
    "hdrh": ("observe",),
}
"""Heavy libraries, each with the only places that may import it: whoever uses the SDK pays for none of them."""


def all_modules() -> list[str]:
    """Dotted names below the package; the package itself is the empty name."""
    return sorted(module_name(path) for path in ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")) if module else ROOT
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every absolute name that is imported, in functions and under TYPE_CHECKING too. `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(module: str) -> list[str]:
    return list(imported_names(ast.parse(source(module).read_text())))


def target(name: str, modules: set[str]) -> str | None:
    """The module of this package that an imported name belongs to; None for another package's."""
    top, _, rest = name.partition(".")
    if top != PACKAGE:
        return None
    while rest and rest not in modules:
        rest = rest.rpartition(".")[0]
    return rest


def upward(module: str, imports: list[str], order: list[str]) -> list[str]:
    """What is imported and does not stand above `module`. Names of the package itself may lead anywhere."""
    known = set(order) | {""}
    place = {name: index for index, name in enumerate(order)}
    found = []
    for name in imports:
        home = target(name, known)
        if home == "" and name != f"{PACKAGE}.__version__":
            found.append(name)
        elif home and place[home] >= place[module]:
            found.append(home)
    return found


def outsiders(imports: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in imports}


def is_in(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_the_list_is_complete_and_has_nothing_else() -> None:
    assert sorted(ORDER) == [module for module in all_modules() if module]


@pytest.mark.parametrize("module", ORDER)
def test_imports_only_what_stands_above(module: str) -> None:
    assert upward(module, imports_of(module), ORDER) == []


def test_the_package_itself_offers_the_sdk_and_loads_nothing() -> None:
    offered = {home for name in imports_of("") if (home := target(name, set(ORDER)))}
    assert offered == {"errors", "harness", "runtime"}
    check = f"import sys, {PACKAGE}; print([name for name in sys.modules if name.startswith('{PACKAGE}.')])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [module for module in ORDER if is_in(module, PURE)])
def test_pure_folders_do_no_io(module: str) -> None:
    assert outsiders(imports_of(module)) & IMPURE == set()


@pytest.mark.parametrize("module", ORDER)
def test_heavy_libraries_stay_in_their_places(module: str) -> None:
    found = outsiders(imports_of(module))
    assert [name for name, places in ONLY_IN.items() if name in found and not is_in(module, places)] == []


def test_importing_the_sdk_loads_no_heavy_library() -> None:
    heavy = sorted(set(ONLY_IN) - {"hdrh"})
    check = f"import sys, {PACKAGE}.harness, {PACKAGE}.client; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


# --- the checks themselves ---


@pytest.mark.parametrize(
    "text",
    [
        "from fastclaw import harness",
        "import fastclaw.harness",
        "from fastclaw.harness import RuntimeHarness",
        "def f():\n    from fastclaw.harness import RuntimeHarness",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fastclaw.harness",
    ],
)
def test_an_upward_import_is_seen(text: str) -> None:
    assert upward("limits", list(imported_names(ast.parse(text))), ORDER) == ["harness"]


def test_an_upward_import_within_a_folder_is_seen() -> None:
    assert upward("a.first", ["fastclaw.a.second.Name"], ["a", "a.first", "a.second"]) == ["a.second"]


def test_a_name_of_the_package_itself_is_no_way_around() -> None:
    assert upward("limits", ["fastclaw.RuntimeHarness"], ORDER) == ["fastclaw.RuntimeHarness"]


def test_downward_imports_are_fine() -> None:
    names = ["fastclaw.limits", "fastclaw.errors.FastclawError", "fastclaw.__version__", "asyncio"]
    assert upward("harness", names, ORDER) == []
