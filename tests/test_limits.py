"""Every bound has a name, a reason, and somebody who keeps to it."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from fastclaw import answer_limits, limits, network_limits

PACKAGE = Path(limits.__file__).parent
MODULES = (limits, answer_limits, network_limits)
BODY = [statement for one in MODULES for statement in ast.parse(Path(str(one.__file__)).read_text()).body]
REASON = re.compile(r"[:;,(]|\. ")
"""What a bound is comes first; why it has this value follows after one of these."""


def _name(statement: ast.stmt) -> str | None:
    """The one name that a statement assigns to."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


NAMES = [name for name in map(_name, BODY) if name is not None]


def _docstring(name: str) -> str:
    """The string right below the constant."""
    match BODY[[_name(statement) for statement in BODY].index(name) + 1 :]:
        case [ast.Expr(value=ast.Constant(value=str(text))), *_]:
            return " ".join(text.split())
    return ""


def _used(tree: ast.AST) -> set[str]:
    """What a module takes from `limits`."""
    used = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="limits" | "answer_limits" | "network_limits"), attr=name):
                used.add(name)
            case ast.ImportFrom(module="fastclaw.limits" | "fastclaw.answer_limits", names=aliases):
                used |= {alias.name for alias in aliases}
    return used


def test_there_is_nothing_but_constants_and_their_reasons() -> None:
    others = [ast.unparse(node) for node in BODY if _name(node) is None and not isinstance(node, ast.Expr)]
    assert others == ["from fastclaw.limits import KIB, MIB"] * 2


def test_no_bound_is_there_twice() -> None:
    assert [name for name, count in Counter(NAMES).items() if count > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_is_a_number_in_capitals_with_its_reason(name: str) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name)
    value = next(getattr(one, name) for one in MODULES if hasattr(one, name))
    assert all(isinstance(number, int) and number > 0 for number in (value if isinstance(value, tuple) else (value,)))
    said = _docstring(name)
    assert said.endswith(".")
    assert REASON.search(said), "what it bounds is said, but not why this much"


def test_every_bound_is_kept_by_somebody() -> None:
    used = {name for path in PACKAGE.rglob("*.py") for name in _used(ast.parse(path.read_text()))}
    assert set(NAMES) - used == set()
