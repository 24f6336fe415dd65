"""Every block of code of README.md and docs/ runs, and prints what the page says.

What a block is for is the word behind its fence: `python`, `sh`, `json`, `wire` (lines of JSON-RPC, `->` sent and `<-`
answered), and `text` for what is no code. One without a word, right behind one that runs, is what that prints. One that
cannot run here has a comment with the reason right above it: `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from podman import PodmanClient

from fastclaw.client import RuntimeClient
from fastclaw.options import Options
from fastclaw.runtimes.read_options import read_options
from tests.adapters.image import image_archive
from tests.engine_fixtures import EngineService, unusable
from tests.run_block import GIVEN

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<word>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
DEADLINE_S = 100
IMAGE = "docker.io/library/python:3.12"
"""What `python:3.12` on the pages means, and is an image with Debian's Python here."""

NOT_RUN = {
    "README.md: they are what sets this machine up",
    "README.md: they are the tests",
    "README.md: waits for somebody who types, as tests/cli/test_run_command.py does",
    "docs/docker.md: needs a Docker",
    "docs/gvisor.md: takes runsc, which make test-gvisor gets",
    "docs/from-one-to-many.md: needs a systemd that is up",
    "docs/test-hosts.md: makes machines, for minutes",
    "docs/install.md: changes the user's services",
    "docs/install.md: fetches what it is built with from an index; tests/test_wheels.py builds both",
    "docs/install.md: installs into the user's home",
    "docs/install.md: nothing is published yet",
    "docs/install.md: shows a page on a terminal",
    "docs/install.md: writes into the user's home",
    "docs/top.md: waits for somebody who types",
    "docs/mcp.md: nothing is published yet, and `make test-adapters` runs it",
}
"""Each by its page, with the reason that stands above it."""


class Block(NamedTuple):
    """A block of a page."""

    where: str
    word: str
    code: str
    reason: str | None
    prints: str | None = None

    def __str__(self) -> str:
        return self.where


def blocks() -> Iterator[Block]:
    """Those of all pages; what is printed comes with the block that prints it."""
    for page in PAGES:
        text, name = page.read_text(), str(page.relative_to(ROOT))
        last, end = None, 0
        for found in BLOCK.finditer(text):
            where = f"{name}:{text[: found.start('code')].count(chr(10)) + 1}"
            block = Block(where, found["word"], found["code"], found["reason"])
            if last is not None and not block.word and not text[end : found.start()].strip():
                last = last._replace(prints=block.code)
            else:
                if last is not None:
                    yield last
                last = block
            end = found.end()
        if last is not None:
            yield last


ALL = list(blocks())


def of(*words: str) -> list[Block]:
    found = [block for block in ALL if block.word in words and block.reason is None]
    assert found
    return found


def test_each_block_is_of_a_kind_that_is_known() -> None:
    assert [str(block) for block in ALL if block.word not in {"python", "sh", "json", "wire", "text"}] == []
    assert sum(page.read_text().count("\n```") for page in PAGES) == 2 * (
        len(ALL) + sum(block.prints is not None for block in ALL)
    ), "a fence that is not at the beginning of its line, or without an end"


OF_ADAPTERS = "needs the tool, with which tests/adapters/{} runs it"


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    said = {(page, block.reason) for block in ALL if block.reason for page in [block.where.partition(":")[0]]}
    adapters = {
        (str(page.relative_to(ROOT)), OF_ADAPTERS.format(tool))
        for page in PAGES
        for tool in [page.stem.replace("-", "_")]
        if page.parent.name == "adapters" and (ROOT / "tests" / "adapters" / tool / "requirements.txt").is_file()
    }
    assert {f"{page}: {reason}" for page, reason in said - adapters} == NOT_RUN


# --- Python and shells ---


@pytest.fixture(scope="module")
def engine(engine_service: EngineService, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of one that has the image of the pages."""
    try:
        archive = image_archive(tmp_path_factory.mktemp("image") / "image.tar", IMAGE)
    except (RuntimeError, FileNotFoundError) as error:  # packages are missing, or this is no Debian
        unusable(str(error))
    with PodmanClient(base_url=engine_service.url) as client:
        assert list(client.images.load(file_path=archive))
    archive.unlink()
    return engine_service.url


def run(block: Block, command: list[str], engine: str, directory: Path, text: str) -> None:
    """Run it to its end, which must be a good one; in an empty directory, as who has fastclaw in his PATH."""
    environment = {
        **os.environ,
        "CONTAINER_HOST": engine,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, input=text, cwd=directory, env=environment, capture_output=True, text=True,
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    if block.prints is not None:
        assert without_times(done.stdout) == without_times(block.prints)


def without_times(text: str) -> str:
    return re.sub(r"\b\d+\.\d{3} s", "… s", text)


def free_names(code: str) -> set[str]:
    """Names that it reads and gives no value to."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    return {node.id for node in names if isinstance(node.ctx, ast.Load)} - {
        node.id for node in names if isinstance(node.ctx, ast.Store)
    }


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python(block: Block, engine: str, tmp_path: Path) -> None:
    given = [name for name in GIVEN if name in free_names(block.code)]
    run(block, [sys.executable, "-m", "tests.run_block", block.where, *given], engine, tmp_path, block.code)


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_shell(block: Block, engine: str, tmp_path: Path) -> None:
    run(block, ["bash", "-eu", "-o", "pipefail", "-c", block.code], engine, tmp_path, "")


# --- What is said on the wire ---


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json(block: Block) -> None:
    """What has only a network in it is options, and those must be right."""
    said = json.loads(block.code)
    if set(said) == {"network"}:
        assert read_options(said, Options).network


def keys(text: str) -> set[str]:
    """The names of the fields in JSON, which may have places left out."""
    return set(re.findall(r'"(\w+)":', text))


@pytest.mark.parametrize("block", of("wire"), ids=str)
async def test_wire(block: Block) -> None:
    lines = block.code.splitlines()
    sent = [json.loads(line.removeprefix("-> ")) for line in lines if line.startswith("-> ")]
    shown = [line for line in lines if line.startswith("<- ")]
    assert len(sent) == len(shown) == len(lines) / 2
    async with RuntimeClient.spawn([sys.executable, "-m", "fastclaw", "serve", "--runtime", "memory"]) as runtime:
        for request, answer in zip(sent, shown, strict=True):
            told = await runtime.call(request["method"], request.get("params"))
            assert keys(answer) - {"jsonrpc", "id", "result"} <= keys(json.dumps(told))
