"""The scripts that leave something running: what they leave, seen from outside, and what it holds."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.conformance import MEMORY, POSIX
from fastclaw.conformance import left as left_module
from fastclaw.conformance.left import LEFT_BYTES, becomes, leaves, must_be_seen, outlives, writes_on
from fastclaw.conformance.outside import bearers, seen, soon
from fastclaw.conformance.wire import NotOffered
from fastclaw.linux import proc
from tests.conformance.test_rig import SERVE, a_rig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SERVE_LOCAL = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "local", "--log-level", "error"]


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


async def test_where_processes_can_be_seen_a_check_goes_on() -> None:
    async with a_rig(SERVE_LOCAL, POSIX) as rig, rig.started() as session:
        await must_be_seen(rig, session)


async def test_where_they_cannot_be_seen_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hidden(token: str) -> None:
        raise NotOffered("the processes cannot be seen from this host")

    monkeypatch.setattr(left_module, "seen", hidden)
    async with a_rig(SERVE_LOCAL, POSIX) as rig, rig.started() as session:
        with pytest.raises(NotOffered):
            await must_be_seen(rig, session)


async def test_without_a_shell_nothing_can_be_left() -> None:
    async with a_rig(SERVE, MEMORY) as rig, rig.started() as session:
        with pytest.raises(NotOffered, match="no shell"):
            await must_be_seen(rig, session)
