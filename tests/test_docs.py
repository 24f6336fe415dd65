"""What the docs name is there, and their example runtime is a runtime."""

import re
import sys
from pathlib import Path

from fastclaw.client import RuntimeClient
from fastclaw.conformance import POSIX, check

ROOT = Path(__file__).parent.parent
EXAMPLE = [sys.executable, str(ROOT / "docs" / "echo_runtime.py")]


def test_each_test_that_the_docs_name_is_there() -> None:
    texts = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    code = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)[`\[]", texts))
    assert len(named) > 50
    assert [name for name in sorted(named) if f"def {name}(" not in code] == []
    files = set(re.findall(r"`(tests/[\w/]+\.(?:py|c))`", texts))
    assert files
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []


def test_each_class_that_the_pages_of_the_design_name_is_there() -> None:
    code = "".join(file.read_text() for file in (ROOT / "fastclaw").rglob("*.py"))
    for page in ("architecture.md", "ends.md"):
        named = set(re.findall(r"`([A-Z][a-z]+[A-Z]\w*)\b", (ROOT / "docs" / page).read_text()))
        assert len(named) > 5
        assert [name for name in sorted(named) if f"class {name}" not in code] == []


async def test_the_example_runtime_serves_a_supervisor() -> None:
    async with RuntimeClient.spawn(EXAMPLE, namespace="docs") as runtime:
        assert runtime.welcome is not None
        assert runtime.welcome.env == {"WHERE": "nowhere"}
        assert (await runtime.health()).status == "healthy"
        async with await runtime.exec(["anything"]) as process:
            assert await process.communicate(b"hello") == (b"hello", b"")
            await process.kill()
    assert runtime.exit_code == 0


async def test_the_example_runtime_keeps_the_promises_of_the_wire() -> None:
    report = await check(EXAMPLE, POSIX, {}, {"W-LINE", "W-PIECES", "W-PARSE", "W-INVALID", "W-ID-ECHO", "W-LINE-OVER"})
    assert report.ok, report.to_text()
