"""Which processes belong to a tree, and ends of trees: everything that tries to get away, here and elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from podman import PodmanClient

from fastclaw import limits
from fastclaw.engine.rest_lane import trees
from fastclaw.engine.rest_lane.exec_calls import ExecCalls
from fastclaw.engine.rest_lane.http_client import Upgraded
from fastclaw.engine.rest_lane.trees import KernelTable, end_remote_tree, end_tree
from fastclaw.errors import ExecFailed, IoError
from fastclaw.linux import proc
from fastclaw.linux.sockets import wait_readable
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, ExitStatus
from tests.balance import balanced, descriptors_left
from tests.engine.rest_lane.rest_rig import (
    NO_CONTAINER,
    SESSION,
    UPGRADED,
    Request,
    answering,
    complete,
    fake_engine,
    frame,
    grace,
    make_container,
    remove_container,
    spec,
    stderr_frame,
)
from tests.pids import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastclaw.processes.lane import StartSpec
    from tests.engine.conftest import EngineService
    from tests.engine.rest_lane.rest_rig import Engine


# --- Which processes belong to a tree: the ties one by one, then laws over any process table ----------


def row(
    pid: int, ppid: int = 1, *, pgrp: int = 0, session: int = 0, start: int = 100, marker: str | None = None
) -> proc.Row:
    return proc.Row(pid, ppid, pgrp, session, start, marker)


def members(*rows: proc.Row, **how: object) -> set[int]:
    return KernelTable(rows).members("m", **how)  # type: ignore[arg-type]  # a test's shorthand


def test_descendants_of_a_root() -> None:
    assert members(row(10), row(11, 10), row(12, 11), row(13), roots=[10]) == {10, 11, 12}


def test_the_marker_finds_an_orphan_and_its_descendants() -> None:
    assert members(row(20, marker="m"), row(21, 20), row(22, marker="other")) == {20, 21}


def test_session_and_group_led_by_a_member() -> None:
    table = [row(10), row(30, session=10), row(31, pgrp=10), row(32, session=11)]
    assert members(*table, roots=[10]) == {10, 30, 31}


def test_a_session_that_a_member_is_in_but_does_not_lead_is_not_taken() -> None:
    assert members(row(10, session=5), row(11, session=5), roots=[10]) == {10}


def test_roots_that_are_gone_are_ignored() -> None:
    assert members(row(10), roots=[99]) == set()


def test_protected_and_init_are_never_members_nor_passed_through() -> None:
    table = [row(1, 0, session=10), row(10), row(11, 10), row(12, 11)]
    assert members(*table, roots=[10, 1], protected=[11]) == {10}


def test_survivors_of_a_dead_leader_are_found_by_their_age() -> None:
    table = [row(40, session=10, start=100), row(41, session=10, start=900)]
    assert members(*table, led={10: 500}) == {40, 41}


def test_a_number_given_out_anew_is_not_taken_for_the_dead_leader() -> None:
    table = [row(10, session=10, start=600), row(40, session=10, start=601)]
    assert members(*table, led={10: 500}) == set()


def test_ancestors_end_at_a_parent_outside_the_snapshot() -> None:
    table = KernelTable([row(5, 4), row(6, 5), row(7, 6)])
    assert table.ancestors(7) == {7, 6, 5}
    assert table.ancestors(99) == set()


pids = st.integers(1, 30)
rows = st.builds(
    proc.Row, pids, st.integers(0, 30), pids, pids, st.integers(0, 5), st.sampled_from([None, "m", "other"])
)
tables = st.lists(rows, unique_by=lambda one: one.pid, max_size=30)
some = st.sets(pids, max_size=4)


@given(tables, some, some)
def test_members_are_closed_and_never_protected(table: list[proc.Row], roots: set[int], protected: set[int]) -> None:
    found = members(*table, roots=roots, protected=protected)
    allowed = {one.pid for one in table} - protected - {1}
    assert found <= allowed
    for one in table:
        tied = found & {one.ppid, one.pgrp, one.session} or one.marker == "m" or one.pid in roots
        if one.pid in allowed and tied:
            assert one.pid in found


@given(tables, some)
def test_everybody_is_in_for_a_reason(table: list[proc.Row], roots: set[int]) -> None:
    found = members(*table, roots=roots)
    for one in table:
        if one.pid in found:
            tied = found & {one.ppid, one.pgrp, one.session} - {one.pid}
            assert tied or one.marker == "m" or one.pid in roots


@given(tables, some, some)
def test_more_roots_never_mean_fewer_members(table: list[proc.Row], roots: set[int], more: set[int]) -> None:
    assert members(*table, roots=roots) <= members(*table, roots=roots | more)


@given(tables)
def test_ancestors_terminate_on_any_table(table: list[proc.Row]) -> None:
    snapshot = KernelTable(table)
    for one in table:
        assert one.pid in snapshot.ancestors(one.pid)


# --- Ends on this host -------------------------------------------------------------------------------


class Command:
    """A marked command in a session of its own, which tells by a line on stdout that it is ready."""

    def __init__(self, script: str, *argv: str) -> None:
        self.marker = uuid4().hex
        env = {**os.environ, PROCESS_ID_VARIABLE: self.marker}
        args = argv or ("sh", "-c", script)
        self.child = subprocess.Popen(args, stdout=subprocess.PIPE, env=env, start_new_session=True)
        assert self.child.stdout is not None
        self.said = self.child.stdout.readline().split()

    def left(self) -> set[int]:
        """Who is still in the tree: by marker, or in the command's session."""
        rows = proc.scan(PROCESS_ID_VARIABLE)
        return {row.pid for row in rows if row.marker == self.marker or row.session == self.child.pid}

    def close(self) -> None:
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.communicate()


@asynccontextmanager
async def started(script: str, *argv: str) -> AsyncIterator[Command]:
    async with balanced():
        command = Command(script, *argv)
        try:
            yield command
        finally:
            command.close()


TREES = {
    "plain": "echo up; exec sleep 1000",
    "grandchildren": "sleep 1000 & (sleep 1000; true) & echo up; wait",
    "orphan in a new session": "setsid sh -c 'sleep 1000 & echo up; exit' & wait; sleep 1000",
    "without its environment": "env -i sleep 1000 & echo up; wait",
    "new session, no environment, a parent that lives": "env -i setsid sleep 1000 & echo up; wait",
    "ignores TERM": "trap '' TERM; sleep 1000 & echo up; while :; do wait; done",
}


@pytest.mark.parametrize("name", TREES)
async def test_killed_at_once(name: str) -> None:
    async with started(TREES[name]) as command:
        await end_tree(command.marker, command.child.pid, grace())
        assert command.left() == set()
        assert command.child.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "script",
    [
        "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done",
        "trap 'exit 7' TERM; echo up; kill -STOP $$; exit 1",
    ],
    ids=["runs", "is stopped"],
)
async def test_term_ends_it_within_the_grace(script: str) -> None:
    async with started(script) as command:
        if "STOP" in script:
            await asyncio.to_thread(os.waitid, os.P_PID, command.child.pid, os.WSTOPPED)
        async with asyncio.timeout(10):
            await end_tree(command.marker, command.child.pid, grace(30))
        assert command.child.wait() == 7
        assert command.left() == set()


async def test_kill_comes_only_when_the_grace_is_grace() -> None:
    async with started(TREES["ignores TERM"]) as command:
        left = grace(0.3)
        await end_tree(command.marker, command.child.pid, left)
        assert asyncio.get_running_loop().time() >= left.ends_at
        assert command.child.wait() == -signal.SIGKILL


async def test_a_grace_can_be_cut_short_while_it_runs() -> None:
    async with started(TREES["ignores TERM"]) as command:
        left = grace(60)
        ending = asyncio.create_task(end_tree(command.marker, command.child.pid, left))
        await asyncio.wait([ending], timeout=0.1)
        left.ends_at = 0.0
        async with asyncio.timeout(10):
            await ending
        assert command.left() == set()


FORKER = """
import os, signal, sys
print("up", flush=True)
for n in range(4_000):
    if os.fork():
        os._exit(0)
    os.setsid()
"""


async def test_a_chain_that_forks_away_from_every_signal() -> None:
    async with started("", sys.executable, "-c", FORKER) as command:
        command.child.wait()
        await end_tree(command.marker, None, grace())
        assert command.left() == set()
        assert command.child.stdout is not None
        async with asyncio.timeout(1):  # the next link would hold stdout
            assert await asyncio.to_thread(command.child.stdout.read) == b""


async def test_a_crowd_that_forks_faster_than_it_is_scanned() -> None:
    async with started(
        "f() { while :; do sleep 0.01 & [ $((n += 1)) -gt 300 ] && exit; done; }; f & f & echo up; f"
    ) as command:
        await end_tree(command.marker, command.child.pid, grace())
        assert command.left() == set()


async def test_nothing_to_end_is_a_success() -> None:
    async with balanced():
        await end_tree(uuid4().hex, None, grace())


async def test_neighbours_are_left_alone() -> None:
    async with started(TREES["plain"]) as one, started(TREES["plain"]) as other:
        await end_tree(one.marker, one.child.pid, grace())
        assert other.child.poll() is None


async def test_many_at_once_share_their_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = 0

    def counted(variable: str, scan: object = proc.scan_with_doubt) -> object:
        nonlocal scans
        scans += 1
        return scan(variable)  # type: ignore[operator]  # proc.scan_with_doubt itself

    monkeypatch.setattr(proc, "scan_with_doubt", counted)
    async with balanced():
        commands = [Command(TREES["plain"]) for _ in range(40)]
        await asyncio.gather(*(end_tree(each.marker, each.child.pid, grace()) for each in commands))
        assert scans < 40
        assert [each.child.wait() for each in commands] == [-signal.SIGKILL] * 40
        for each in commands:
            each.close()


async def test_past_the_deadline_it_says_who_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees._Held, "kill", lambda held: None)
    async with started(TREES["plain"]) as command:
        with pytest.raises(ExecFailed, match=str(command.child.pid)) as failed:
            await end_tree(command.marker, command.child.pid, grace(), deadline_s=0.1)
        assert failed.value.reason == "engine_timeout"


async def test_cancelled_it_holds_nothing() -> None:
    async with started(TREES["ignores TERM"]) as command:
        ending = asyncio.create_task(end_tree(command.marker, command.child.pid, grace(60)))
        await asyncio.wait([ending], timeout=0.2)
        ending.cancel()
        await asyncio.wait([ending])
        assert ending.cancelled()


async def test_no_descriptors_is_no_proof_of_an_end() -> None:
    async with started(TREES["plain"]) as command:
        ending = asyncio.create_task(end_tree(command.marker, command.child.pid, grace()))
        with descriptors_left(0):
            await asyncio.wait([ending], timeout=0.2)
            assert not ending.done()
            assert command.child.poll() is None
        await ending
        assert command.left() == set()


async def test_a_process_table_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with balanced():
        with monkeypatch.context() as patched:
            patched.setattr(proc, "PROC", "/dev/null")
            with pytest.raises(IoError):
                await end_tree(uuid4().hex, None, grace())


# --- Ends elsewhere: the script in a real container --------------------------------------------------


@pytest.mark.podman
async def test_an_engine_elsewhere_is_asked_to_end_trees(rest_engine: Engine) -> None:
    lane = rest_engine.lane(local=False)
    given_spec = spec("sh", "-c", "trap '' TERM; setsid sleep 100 & echo up; while :; do sleep 0.1; done")
    process = await lane.start(given_spec, 0)
    await wait_readable(process.stdout_fd, 5000)
    await process.end_tree(grace(0.2))
    assert not marked(given_spec.process_id)
    assert (await complete(process))[2] == ExitStatus(reason="exited", exit_code=137)
    await lane.aclose()


@pytest.mark.podman
async def test_term_comes_first_and_only_to_the_tree_that_is_meant(rest_engine: Engine) -> None:
    lane = rest_engine.lane(local=False)
    script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    meant = await lane.start(given_spec := spec("sh", "-c", script), 0)
    longer = {PROCESS_ID_VARIABLE: given_spec.process_id + "0", "A": f"{PROCESS_ID_VARIABLE}={given_spec.process_id}"}
    other = await lane.start(other_spec(longer), 0)
    for process in (meant, other):
        await wait_readable(process.stdout_fd, 5000)
    await meant.end_tree(grace(5))
    out, _, status = await complete(meant)
    assert (out, status) == (b"up\nbye\n", ExitStatus(reason="exited", exit_code=5))
    assert len(marked(longer[PROCESS_ID_VARIABLE])) == 1
    await other.end_tree(grace())
    assert (await complete(other))[2].exit_code in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
    await lane.aclose()


def other_spec(env: dict[str, str]) -> StartSpec:
    """A process whose marker begins with another's, and that carries the other's in a value."""
    made = spec("sh", "-c", "echo up; exec sleep 100")
    return type(made)(process_id=env[PROCESS_ID_VARIABLE], cmd=made.cmd, env=env, stdin=False)


@pytest.mark.podman
async def test_nothing_to_end_is_no_failure(rest_engine: Engine) -> None:
    calls = ExecCalls(rest_engine.url, 10_000)
    container = next(iter(rest_engine.containers.values()))
    await end_remote_tree(calls, container, f"nobody-{os.getpid()}", None, grace(), 2)
    calls.close()


@pytest.mark.podman
async def test_an_image_without_a_shell_is_not_supported(engine_service: EngineService) -> None:
    calls = ExecCalls(engine_service.url, 10_000)
    with PodmanClient(base_url=engine_service.url) as client:
        changes: dict[str, Any] = {"command": ["/bin/sleep", "1000"], "env": {"PATH": "/nowhere"}}
        container = await asyncio.to_thread(make_container, client, engine_service.image, **changes)
        with pytest.raises(ExecFailed, match="lacks one") as caught:
            await end_remote_tree(calls, container, "m", None, grace(), 2)
        await asyncio.to_thread(remove_container, client, container)
    calls.close()
    assert caught.value.reason == "unsupported"


# --- Engines made of a script ------------------------------------------------------------------------


async def end_elsewhere(
    directory: Path, wire: bytes, *, seconds: float = 0.0, deadline_s: float = 2.0
) -> list[Request]:
    """End a tree on an engine whose stream carries this; what was asked of it."""
    async with fake_engine(directory, answering(create=SESSION, start=UPGRADED + wire)) as engine:
        await end_remote_tree(engine.calls, "c", "m", None, grace(seconds), 2)
        return engine.asked


@pytest.mark.parametrize(
    "wire",
    [
        frame(b"gone\n"),
        b"".join(frame(b"%c" % byte) for byte in b"gone\n"),
        stderr_frame(b"warning\n") + frame(b"gone\n"),
    ],
    ids=["at once", "in pieces", "with stderr"],
)
async def test_gone_is_gone(short_dir: Path, wire: bytes) -> None:
    asked = await end_elsewhere(short_dir, wire)
    assert [request.step for request in asked] == ["create", "start"]


@pytest.mark.parametrize(("seconds", "turns"), [(-3.0, 0), (0.0, 0), (4.05, 40)])
async def test_what_the_script_is_told(short_dir: Path, seconds: float, turns: int) -> None:
    """It runs as root, without the marker of what it ends, and gets both limits in turns of 100 ms."""
    body = json.loads((await end_elsewhere(short_dir, frame(b"gone\n"), seconds=seconds))[0].body)
    assert body["Cmd"][:2] == ["sh", "-c"]
    assert body["Cmd"][3:] == ["sh", f"{PROCESS_ID_VARIABLE}=m", str(turns), str(turns + 10)]
    assert (body["User"], body["Env"], body["AttachStdin"]) == ("0", [], False)


@pytest.mark.parametrize(
    ("wire", "reason", "says"),
    [
        (frame(b"left\n"), "engine_timeout", "still there"),
        (frame(b"go"), "unsupported", "lacks one"),
        (frame(b"gone\n" * 2), "unsupported", "lacks one"),
        (stderr_frame(b"gone\n"), "unsupported", "lacks one"),
        (b"", "unsupported", "lacks one"),
        (b"garbage!!", "engine_error", "makes no sense"),
    ],
    ids=["left", "half", "twice", "stderr", "nothing", "garbage"],
)
async def test_every_other_answer_is_an_error(short_dir: Path, wire: bytes, reason: str, says: str) -> None:
    with pytest.raises(ExecFailed, match=says) as caught:
        await end_elsewhere(short_dir, wire)
    assert caught.value.reason == reason


async def test_an_answer_without_end_is_read_up_to_a_bound(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HTTP_BODY_BYTES", 1000)

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(SESSION if request.step == "create" else UPGRADED + frame(b"x" * 5000))

    async with fake_engine(short_dir, serve) as engine:
        with pytest.raises(ExecFailed, match="lacks one"):  # the stream never ends
            await asyncio.wait_for(end_remote_tree(engine.calls, "c", "m", None, grace(), 20), 10)


async def test_silence_ends_with_grace_and_deadline(short_dir: Path) -> None:
    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(SESSION if request.step == "create" else UPGRADED)

    loop = asyncio.get_running_loop()
    began = loop.time()
    async with fake_engine(short_dir, serve) as engine:
        with pytest.raises(ExecFailed, match="could not be ended") as caught:
            await end_remote_tree(engine.calls, "c", "m", None, grace(0.1), 0.1)
    assert (caught.value.reason, caught.value.retryable) == ("engine_timeout", True)
    assert 200 <= round(1000 * (loop.time() - began)) < 3000  # uvloop's clock counts these; as seconds they are inexact


async def test_a_stream_that_breaks_is_an_error_of_the_engine() -> None:
    """A Unix socket is reset when its peer closes it with bytes unread."""
    ours, engines = socket.socketpair()
    ours.setblocking(False)
    ours.send(b"unread")
    engines.close()
    with pytest.raises(ExecFailed, match="broke: Connection reset") as caught:
        await trees._stdout(Upgraded(ours, b""))
    assert (caught.value.reason, caught.value.retryable) == ("engine_unavailable", True)
    assert ours.fileno() < 0


async def test_a_refused_second_exec_keeps_its_reason(short_dir: Path) -> None:
    async with fake_engine(short_dir, answering(create=NO_CONTAINER)) as engine:
        with pytest.raises(ExecFailed) as caught:
            await end_remote_tree(engine.calls, "c", "m", None, grace(), 1)
    assert caught.value.reason == "container_gone"
