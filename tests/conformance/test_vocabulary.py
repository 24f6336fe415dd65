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

from fastclaw import limits
from fastclaw.conformance import MEMORY, POSIX, VOCABULARIES, Vocabulary
from fastclaw.conformance.rig import bearers, seen, soon
from fastclaw.conformance.vocabulary import LEFT_BYTES, becomes, leaves, outlives, writes_on
from fastclaw.linux import proc
from fastclaw.runtimes.memory_programs import BUILT_IN
from tests.runtimes.test_memory_programs import Paper, a_stdin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[[list[str]], Awaitable[tuple[int, bytes, bytes]]]
    from collections.abc import Iterable, Iterator


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


def sessions_of(pids: Iterable[int]) -> set[int]:
    """But not our own."""
    found = {stat.session for pid in pids if (stat := proc.read_stat(pid)) is not None}
    return found - {os.getsid(0)}


def end_sessions(sessions: set[int]) -> None:
    """Whatever is in them."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and sessions_of([int(name)]) & sessions:
            with suppress(ProcessLookupError):
                os.kill(int(name), signal.SIGKILL)


@contextmanager
def tokens(count: int = 1) -> Iterator[list[str]]:
    """Words that nobody has; whoever has one at the end is killed with its session."""
    made = [uuid.uuid4().hex for _ in range(count)]
    try:
        yield made
    finally:
        end_sessions(sessions_of(pid for token in made for pid in bearers(token)))


@contextmanager
def shell(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """In a session of its own, which is killed at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", script], stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            yield process
        finally:
            end_sessions({process.pid})


def output(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Both streams to their ends."""
    return process.communicate(timeout=20)


async def test_what_is_left_is_seen_and_holds_no_stream() -> None:
    with tokens() as (token,), shell(f"{leaves(token)} echo up") as process:
        assert output(process) == (b"up\n", b"")
        await seen(token)


async def test_it_is_in_a_session_of_its_own() -> None:
    with tokens() as (token,), shell(f"{leaves(token)} exit 0") as process:
        output(process)
        await seen(token)  # the first one is setsid(1) itself, which is still to do it
        others = {os.getsid(0), process.pid}
        await soon("a session of its own", lambda: not others & {os.getsid(pid) for pid in bearers(token)})
        await seen(token)


async def test_what_outlives_is_not_seen_before_its_time() -> None:
    """So whoever sees it knows that it was not ended with its command; nobody can have seen it before."""
    with tokens() as (token,), shell(f"{outlives(token, after_s=1)} echo up") as process:
        assert output(process) == (b"up\n", b"")
        assert bearers(token) == []
        await seen(token)


async def test_a_token_is_in_no_command_line_before_it_is_reached() -> None:
    with tokens() as (token,), shell(f"echo up; read go </dev/null; sleep 0.2; {becomes(token)}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert bearers(token) == []
        await seen(token)


async def test_who_writes_on_is_seen_once_all_is_taken() -> None:
    with tokens(2) as (witness, done), shell(writes_on(witness, done)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        await seen(witness)
        assert process.wait(20) == 0
        assert bearers(done) == [], "nobody has read it yet"
        out, err = output(process)
        assert (len(out), len(err)) == (LEFT_BYTES, LEFT_BYTES)
        await seen(done)


async def test_a_writer_that_nobody_reads_any_more_is_never_done() -> None:
    """It had a SIGPIPE: that is what the checks look for."""
    with tokens(2) as (witness, done), shell(writes_on(witness, done)) as process:
        await seen(witness)
        assert process.stdout is not None
        process.stdout.close()
        assert await asyncio.to_thread(process.stderr.read) == b""  # type: ignore[union-attr]  # the writer had it open
        assert bearers(done) == []


async def test_it_holds_more_than_a_pipe_and_a_socket() -> None:
    assert LEFT_BYTES > limits.PIPE_BYTES + 4 * limits.PIPE_BYTES
