"""Every bound has a name, says what it is for, and somebody keeps to it."""

import ast
import itertools
import re
from collections import Counter
from pathlib import Path

from fastclaw import bench_limits, engine_limits, environment_limits, limits, network_limits, telemetry_limits

PACKAGE = Path(limits.__file__).parent
MODULES = (limits, bench_limits, engine_limits, environment_limits, network_limits, telemetry_limits)
HOMES = {one.__name__ for one in MODULES}
BODY = [statement for one in MODULES for statement in ast.parse(Path(str(one.__file__)).read_text()).body]


def name_of(statement: ast.stmt) -> str | None:
    """The one name that a statement assigns to."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


NAMES = [name for name in map(name_of, BODY) if name is not None]


def used(tree: ast.AST) -> set[str]:
    """What a module takes from the modules of limits."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(
                value=ast.Name(
                    id="limits"
                    | "bench_limits"
                    | "engine_limits"
                    | "environment_limits"
                    | "network_limits"
                    | "telemetry_limits"
                ),
                attr=name,
            ):
                names.add(name)
            case ast.ImportFrom(module=str(module), names=aliases) if module in HOMES:
                names |= {alias.name for alias in aliases}
    return names


def test_there_is_nothing_but_constants_and_what_they_are_for() -> None:
    others = [ast.unparse(node) for node in BODY if name_of(node) is None and not isinstance(node, ast.Expr)]
    assert len(others) == len(MODULES) - 1
    assert all(re.fullmatch(r"from fastclaw\.limits import [A-Z_, ]+", other) for other in others)


def test_a_bound_is_a_positive_number_in_capitals_and_says_what_it_is_for() -> None:
    assert [name for name, count in Counter(NAMES).items() if count > 1] == []
    assert [name for name in NAMES if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name)] == []
    values = {name: value for one in MODULES for name, value in vars(one).items() if name in NAMES}
    numbers = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    assert [name for name, of in numbers.items() if not all(isinstance(one, int) and one > 0 for one in of)] == []
    texts = [node.value.value for node in BODY if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    assert len(texts) == len(NAMES) + len(MODULES)
    for constant, text in itertools.pairwise(BODY):
        assert name_of(constant) is None or isinstance(text, ast.Expr), ast.unparse(constant)


def test_every_bound_is_kept_by_somebody() -> None:
    found = {name for path in PACKAGE.rglob("*.py") for name in used(ast.parse(path.read_text()))}
    assert set(NAMES) - found == set()
