"""Every command does what its name promises, on this host and in memory; scripts leave what they say."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from fastclaw.conformance import MEMORY, POSIX, VOCABULARIES, Vocabulary
from fastclaw.conformance.rig import LEFT_BYTES, bearers, has_written, leaves, outlives, seen, soon, writes_on
from fastclaw.linux import proc
from fastclaw.runtimes.memory_programs import BUILT_IN
from tests.runtimes.test_memory_programs import Paper, a_stdin
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[[list[str]], Awaitable[tuple[int, bytes, bytes]]]
    from collections.abc import Iterator


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


# --- Scripts that leave something running ---


MARKER = "FASTCLAW_TEST_LEFT"


def kill_marked(mark: str) -> bool:
    """Whether nothing was left to kill."""
    left = [row.pid for row in proc.scan(MARKER) if row.marker == mark]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not left


@contextmanager
def shell(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell, killed at the end with all that it left. Unbuffered: `communicate` gives nothing of a buffer."""
    mark, pipe = uuid.uuid4().hex, subprocess.PIPE
    env = {**os.environ, MARKER: mark}
    with subprocess.Popen(["sh", "-c", script], stdout=pipe, stderr=pipe, env=env, bufsize=0) as process:
        try:
            yield process
        finally:
            wait_until(lambda: kill_marked(mark))


@pytest.fixture
def token() -> str:
    """A word that nobody has."""
    return uuid.uuid4().hex


async def test_what_is_left_is_seen_in_a_session_of_its_own_and_holds_no_stream(token: str) -> None:
    with shell(f"{leaves(token)} echo up") as process:
        assert process.communicate(timeout=20) == (b"up\n", b"")
        await seen(token)  # the first one is setsid(1) itself, which is still to do it
        await soon("a session of its own", lambda: os.getsid(0) not in {os.getsid(pid) for pid in bearers(token)})
        await seen(token)


async def test_what_outlives_is_not_seen_before_its_time(token: str) -> None:
    """Where it is seen, it was not ended with its command."""
    with shell(f"{outlives(token, after_s=1)} echo up") as process:
        assert process.communicate(timeout=20) == (b"up\n", b"")
        assert bearers(token) == []
        await seen(token)


async def test_who_writes_on_is_seen_once_all_is_taken(token: str) -> None:
    done = uuid.uuid4().hex
    with shell(writes_on(token, done)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        await seen(token)
        assert process.wait(20) == 0
        assert bearers(done) == [], "nobody has read it yet"
        out, err = process.communicate(timeout=20)
        assert (len(out), len(err)) == (LEFT_BYTES, LEFT_BYTES)
        await has_written(token, done)


async def test_a_writer_that_nobody_reads_any_more_is_never_done(token: str) -> None:
    """It had a SIGPIPE: that is what the checks look for."""
    done = uuid.uuid4().hex
    with shell(writes_on(token, done)) as process:
        await seen(token)
        assert process.stdout is not None
        process.stdout.close()
        assert await asyncio.to_thread(process.stderr.read) == b""  # type: ignore[union-attr]  # the writer had it open
        assert bearers(done) == []
