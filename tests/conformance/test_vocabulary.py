"""Every command does what its name promises, on this host and in memory."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING

import pytest

from fastclaw.conformance import MEMORY, POSIX, VOCABULARIES, Vocabulary
from fastclaw.runtimes.memory_programs import BUILT_IN
from tests.runtimes.test_memory_programs import Paper, a_stdin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[[list[str]], Awaitable[tuple[int, bytes, bytes]]]

ENV = {"PATH": "/usr/bin:/bin", "VALUE": "a  'b\"$x"}


async def run_here(argv: list[str]) -> tuple[int, bytes, bytes]:
    done = await asyncio.to_thread(subprocess.run, argv, input=b"in", env=ENV, cwd="/", capture_output=True)
    return done.returncode, done.stdout, done.stderr


async def run_in_memory(argv: list[str]) -> tuple[int, bytes, bytes]:
    out, err = Paper(), Paper()
    code = await BUILT_IN[argv[0]](argv, ENV, "/", a_stdin(b"in"), out, err)
    return code, out.data, err.data


both = pytest.mark.parametrize(
    ("words", "run"), [(POSIX, run_here), (MEMORY, run_in_memory)], ids=lambda value: getattr(value, "name", "")
)


@both
async def test_the_commands_do_what_they_promise(words: Vocabulary, run: Run) -> None:
    assert await run(words.true) == (0, b"", b"")
    assert await run(words.cat) == (0, b"in", b"")
    assert await run(words.echo("a -n 'b\"$x")) == (0, b"a -n 'b\"$x\n", b"")
    assert await run(words.exit(42)) == (42, b"", b"")
    assert await run(words.sleep(0)) == (0, b"", b"")
    assert await run(words.printenv("VALUE")) == (0, f"{ENV['VALUE']}\n".encode(), b"")
    assert await run(words.pwd) == (0, b"/\n", b"")
    code, out, err = await run(words.stderr("to stderr"))
    assert (code, out, err.rstrip(b"\n")) == (0, b"", b"to stderr")


@both
@pytest.mark.parametrize("count", [0, 1, 10, 300, 70_000])
async def test_out_writes_what_is_expected_of_it(words: Vocabulary, run: Run, count: int) -> None:
    code, out, err = await run(words.out(count))
    assert (code, len(out), err) == (0, count, b"")
    assert out == words.written(count)


async def test_the_shell_runs_scripts_and_memory_has_none() -> None:
    assert POSIX.shell is not None
    assert await run_here(POSIX.shell("read line; echo $line >&2; exit 3")) == (3, b"", b"in\n")
    assert (MEMORY.shell, MEMORY.directory) == (None, None)


def test_vocabularies_are_found_by_their_names() -> None:
    assert VOCABULARIES == {"posix": POSIX, "memory": MEMORY}
