"""Every promise has a check, a test that cites it, and its line in the docs; no test cites what is not promised."""

import ast
from collections.abc import Iterator
from pathlib import Path

from fastclaw.conformance import BY_ID, PROMISES
from fastclaw.conformance.promises import to_markdown
from fastclaw.conformance.runner import CHECKS
from fastclaw.errors import REASONS

ROOT = Path(__file__).parents[2]


def _marks(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
            yield node


def _cited() -> dict[str, str]:
    """Promise id → where a test cites it."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for call in _marks(ast.parse(path.read_text())):
            place = f"{path.relative_to(ROOT)}:{call.lineno}"
            for argument in call.args:
                assert isinstance(argument, ast.Constant), f"{place}: cite ids as plain strings"
                found[str(argument.value)] = place
    return found


def test_no_test_cites_an_unknown_promise() -> None:
    unknown = {name: place for name, place in _cited().items() if name not in BY_ID}
    assert not unknown


def test_every_promise_is_cited() -> None:
    assert not set(BY_ID) - set(_cited())


def test_every_promise_has_a_check_and_every_check_a_promise() -> None:
    assert set(CHECKS) == set(BY_ID)


def test_ids_are_unique_and_their_first_part_tells_the_section() -> None:
    assert len(BY_ID) == len(PROMISES)
    sections: dict[str, str] = {}
    for promise in PROMISES:
        assert sections.setdefault(promise.id.partition("-")[0], promise.section) == promise.section


def test_the_docs_show_the_promises() -> None:
    assert to_markdown() in (ROOT / "docs" / "contract.md").read_text()


def test_the_docs_name_every_reason() -> None:
    text = (ROOT / "docs" / "contract.md").read_text()
    assert not [reason for reason in REASONS if f"`{reason}`" not in text]
