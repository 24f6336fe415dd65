"""What the docs name is there, and their example runtime is a runtime. tests/test_code_blocks.py runs their code."""

import re
import sys
from pathlib import Path

import pytest

from fastclaw import engine_limits, environment_limits, limits, network_limits, options
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


@pytest.mark.parametrize("page", ["environments", "images"])
def test_the_program_of_a_page_is_its_file(page: str) -> None:
    program = (ROOT / "docs" / f"{page}.py").read_text()
    assert f"```python\n{program}```" in (ROOT / "docs" / f"{page}.md").read_text()


# --- llms.txt, and links ---

LLMS = (ROOT / "llms.txt").read_text()
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]+)?\)")


def test_llms_txt_has_the_form_of_its_specification() -> None:
    """https://llmstxt.org: a title, a quote that says what it is, and lists of links, each with what is there."""
    title, _, quote, *rest = LLMS.splitlines()
    assert title == "# fastclaw"
    assert quote.startswith("> ")
    listed = [line for line in "\n".join(rest).split("\n## ", 1)[1].splitlines() if line.startswith("-")]
    assert [line for line in listed if not re.fullmatch(r"- \[[^\]]+\]\([^)]+\): .+", line)] == []


def test_each_page_is_in_llms_txt_and_each_of_its_links_is_there() -> None:
    links = [link for link, _ in LINK.findall(LLMS)]
    assert [link for link in links if not (ROOT / link).is_file()] == []
    assert {str(page.relative_to(ROOT)) for page in PAGES} - {*links} == set()


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_each_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link, anchor in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        target = (page.parent / link) if link else page
        assert target.exists(), link
        assert not anchor or anchor[1:] in anchors(target), link + anchor


# --- Numbers ---

BOUNDS = {
    "starts at a time": (limits.MAX_STARTING_SPAWN, limits.MAX_STARTING_REST),
    "live processes": (limits.MAX_PROCESSES,),
    "starts that wait": (limits.QUEUE_LIMIT,),
    "how long they wait": (limits.QUEUE_TIMEOUT_MS // 1000,),
    "processes and threads of the commands": (limits.PIDS_LIMIT,),
    "output of all runs at a time": (limits.RUN_OUTPUT_BYTES // (1024 * limits.MIB),),
    "output of one run": (limits.RUN_OUTPUT_LIMIT_BYTES // limits.MIB, limits.MAX_RUN_OUTPUT_BYTES // limits.MIB),
    "records of ended processes": (limits.KEEP_EXITED, limits.KEEP_EXITED_MS // 60_000),
    "ended processes with output that nobody reads": (limits.MAX_LINGERING, limits.LINGER_MS // 1000),
    "ranges of user ids": (options.ID_RANGES, limits.MAX_ID_RANGES),
    "descriptors of": (
        environment_limits.FILES_PER_ENVIRONMENT,
        limits.FILES_PER_PUMPED,
        limits.FILES_PER_PROCESS,
        limits.RESERVED_FILES,
    ),
    "sandboxes of one": (environment_limits.MAX_ENVIRONMENTS,),
    "processes of the host": (
        limits.PIDS_PER_PROCESS,
        environment_limits.PIDS_PER_ENVIRONMENT,
        limits.RESERVED_PIDS,
    ),
    "memory | 2": (environment_limits.POOL_MEMORY_PERCENT,),
    "kinds that are cloned": (engine_limits.CLONE_KINDS,),
    "session keyrings": (limits.WANTED_KEYS,),
    "connections to the outside": (network_limits.EGRESS_CONNECTIONS, network_limits.EGRESS_CONNECTIONS_PER_S),
    "requests that are worked on": (limits.MAX_IN_FLIGHT,),
    "a request, an answer": (limits.MAX_LINE_BYTES // limits.MIB,),
    "answers that are not read": (
        limits.OUTPUT_HIGH_WATER_BYTES // limits.MIB,
        limits.OUTPUT_LOW_WATER_BYTES // limits.MIB,
    ),
    "requests in a batch": (limits.MAX_BATCH_ITEMS,),
}
"""The beginning of a row of from-one-to-many.md, and the numbers that have to be in it."""


def test_the_bounds_on_the_page_about_many_are_those_in_force() -> None:
    rows = [line for line in (ROOT / "docs" / "from-one-to-many.md").read_text().splitlines() if line.startswith("| ")]
    for begins, numbers in BOUNDS.items():
        [row] = [row for row in rows if row.startswith(f"| {begins}")]
        told = {int(number.replace(" ", "")) for number in re.findall(r"\d+(?: \d{3})*", row.replace("=", " = "))}
        assert told >= {*numbers}, begins
