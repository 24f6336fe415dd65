"""Sessions and processes that checks stand on, and what is seen from outside: scripted runtimes where one must
misbehave, else the real one."""

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from fastclaw import limits
from fastclaw.conformance import MEMORY, POSIX, Vocabulary
from fastclaw.conformance import rig as rig_module
from fastclaw.conformance.rig import Rig, bearers, drain, existing, must_be_seen, read_exactly, soon
from fastclaw.conformance.wire import Broken, NotOffered, data_of, expect, refused
from tests.client.fakes import POLITE, fake

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "memory", "--log-level", "error"]
SERVE_LOCAL = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "local", "--log-level", "error"]
ERROR = {"code": -32000, "message": "exec failed: no", "data": {"reason": "not_found"}}


@asynccontextmanager
async def a_rig(
    command: list[str], vocabulary: Vocabulary = MEMORY, options: dict[str, Any] | None = None
) -> AsyncIterator[Rig]:
    """A rig, closed at the end."""
    rig = Rig(command, vocabulary, options or {})
    try:
        yield rig
    finally:
        await rig.aclose()


def answering(result: str) -> list[str]:
    """A runtime that answers every call with this expression over `request`."""
    return fake(f"for request in requests():\n    answer(request, {result})\n")


def test_what_is_expected_passes() -> None:
    expect(True, "not said")
    with pytest.raises(Broken, match=r"^seen$"):
        expect(False, "seen")
    assert refused({"error": ERROR}, -32000) is refused({"error": ERROR}, -32000, "not_found") is ERROR


@pytest.mark.parametrize(
    ("answer", "code", "reason", "seen"),
    [
        ({"result": 7}, -32000, None, "expected the error -32000, got 7"),
        ({"error": "no"}, -32000, None, "expected the error -32000"),
        ({"error": ERROR}, -32001, None, "expected the error -32001"),
        ({"error": ERROR}, -32000, "overloaded", "expected the reason 'overloaded'"),
        ({"error": {"code": 1, "data": "text"}}, 1, "overloaded", "expected the reason 'overloaded'"),
    ],
)
def test_refused_tells_what_came_instead(answer: dict[str, Any], code: int, reason: str | None, seen: str) -> None:
    with pytest.raises(Broken, match=seen):
        refused(answer, code, reason)


@pytest.mark.parametrize("error", [{}, {"data": None}, {"data": []}, {"data": "text"}])
def test_data_that_is_no_object_is_empty(error: dict[str, Any]) -> None:
    assert data_of(error) == {}


def test_only_some_vocabularies_have_a_shell() -> None:
    assert Rig([], POSIX, {}).shell("exit")[:2] == ["sh", "-c"]
    with pytest.raises(NotOffered, match="the memory vocabulary has no shell"):
        Rig([], MEMORY, {}).shell("exit")


def test_namespaces_differ_and_are_short() -> None:
    rig = Rig([], MEMORY, {})
    names = {rig.namespace() for _ in range(100)}
    assert len(names) == 100
    assert all(len(name) <= limits.MAX_NAMESPACE_BYTES for name in names)


async def test_a_session_unpacks_answers() -> None:
    async with a_rig(answering("{'method': request['method']}")) as rig, rig.fresh() as session:
        assert await session.result("health") == {"method": "health"}
        with pytest.raises(Broken, match="expected the error -32000"):
            await session.error("exec", {}, -32000)
    async with a_rig(answering("'hello'")) as rig:
        with pytest.raises(Broken, match="initialize answered 'hello'"):
            await rig.shared()


@pytest.mark.parametrize(("path", "fits"), [("$.cmd", True), ("$.cmd[0]", True), ("$.cmd.x", True), ("$.cmds", False)])
async def test_a_session_wants_the_wrong_field_named(path: str, fits: bool) -> None:
    error = {"code": -32602, "message": "no", "data": {"path": path}}
    script = f"for request in requests():\n    say(id=request['id'], error={error!r})\n"
    async with a_rig(fake(script)) as rig, rig.fresh() as session:
        with nullcontext() if fits else pytest.raises(Broken, match=r"data.path is '\$.cmds', not '\$.cmd'"):
            assert await session.rejects("exec", {}, "$.cmd") == {"path": path}


async def test_a_session_unpacks_errors() -> None:
    script = f"for request in requests():\n    say(id=request['id'], error={ERROR!r})\n"
    async with a_rig(fake(script)) as rig, rig.fresh() as session:
        assert await session.error("exec", {}, -32000, "not_found") == ERROR
        with pytest.raises(Broken, match=r"exec answered .*not_found"):
            await session.result("exec")
        with pytest.raises(Broken, match="initialize failed"):
            await session.initialize("n", {})
        with pytest.raises(Broken, match="initialize failed"):
            await rig.shared()


@pytest.mark.parametrize(
    "answer",
    [
        "{}",
        "{'process_id': 7, 'stdio_addr': '/a', 'stderr_addr': '/b'}",
        "{'process_id': '', 'stdio_addr': '/a', 'stderr_addr': '/b'}",
        "{'process_id': '1', 'stdio_addr': '/a'}",
    ],
)
async def test_a_process_needs_an_id_and_two_addresses(answer: str) -> None:
    async with a_rig(answering(answer)) as rig, rig.fresh() as session:
        with pytest.raises(Broken, match="exec answered"):
            await session.exec(["true"])


async def test_options_of_the_run_and_of_the_check_reach_initialize() -> None:
    script = answering("request['params']")
    async with (
        a_rig(script, options={"a": 1, "b": 1}) as rig,
        rig.started("mine", b=2) as session,
    ):
        assert session.welcome == {"namespace": "mine", "options": {"a": 1, "b": 2}}
        shared = await rig.shared()
        assert shared.welcome["options"] == {"a": 1, "b": 1}


async def test_the_shared_session_is_shared_and_replaced_once_it_is_lost() -> None:
    async with a_rig(fake(POLITE)) as rig:
        first = await rig.shared()
        assert await rig.shared() is first
        await first.result("shutdown")
        await first.finished()
        second = await rig.shared()
        assert second is not first
        assert await second.result("echo", [1]) == [1]


@pytest.mark.parametrize("spoiled", ["say(id=None, result='extra')", "print('noise', flush=True)", "sys.exit(3)"])
async def test_a_spoiled_session_is_not_handed_to_the_next_check(spoiled: str) -> None:
    script = f"""
for request in requests():
    answer(request, {{}})
    if request["method"] == "spoil":
        {spoiled}
"""
    async with a_rig(fake(script)) as rig:
        first = await rig.shared()
        await rig.between_checks()
        assert await rig.shared() is first
        await first.result("spoil")
        await rig.between_checks()
        assert await rig.shared() is not first


async def test_the_exchange_is_that_of_the_current_check() -> None:
    async with a_rig(fake(POLITE)) as rig:
        assert rig.exchange() == []
        shared = await rig.shared()
        await rig.between_checks()
        assert rig.exchange() == []
        await shared.result("one")
        assert '"method":"one"' in rig.exchange()[0]
        async with rig.fresh() as session:
            await session.result("two")
        assert '"method":"two"' in rig.exchange()[0]
        await rig.between_checks()
        assert rig.exchange() == []


async def test_processes_of_the_real_runtime() -> None:
    async with a_rig(SERVE) as rig:
        session = await rig.shared()
        process = await session.exec(MEMORY.cat)
        assert await process.outputs(b"in") == (b"in", b"")
        record = await process.wait()
        assert (record["process_id"], record["exit_code"]) == (process.id, 0)
        assert await (await session.exec(MEMORY.stderr("bad"))).outputs() == (b"", b"bad\n")


async def test_reading_by_count_and_to_the_end() -> None:
    async with a_rig(SERVE) as rig:
        process = await (await rig.shared()).exec(MEMORY.out(100_000))
        stdio = await process.stdio()
        assert await read_exactly(stdio, 10) == MEMORY.written(10)
        assert await drain(stdio) == MEMORY.written(100_000)[10:]
        assert await read_exactly(stdio, 10) == b""
        assert await drain(await process.stderr()) == b""


async def test_between_checks_processes_are_ended() -> None:
    async with a_rig(SERVE) as rig:
        session = await rig.shared()
        process = await session.exec(MEMORY.sleep(1000))
        stdio = await process.stdio()
        await rig.between_checks()
        assert await rig.shared() is session
        assert (await process.wait())["reason"] == "killed"
        with pytest.raises(Exception, match="closed"):
            await stdio.read()
        assert await process.kill() == {}


# --- What is seen from outside ---


async def test_what_comes_to_hold_is_waited_for_and_what_never_does_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECK_POLL_MS", 1)
    await soon("now", lambda: True, 0)
    looks = iter([False, False, True])
    await soon("at the third look", lambda: next(looks))
    assert list(looks) == []
    with pytest.raises(Broken, match="the moon falls: not within 30 ms"):
        await soon("the moon falls", lambda: False, 30)


def test_bearers_are_the_processes_with_the_token_in_their_command_line() -> None:
    token = uuid.uuid4().hex
    assert bearers(token) == []
    argv = [sys.executable, "-S", "-c", "print('up', flush=True); input()", token]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as bearer:
        assert bearer.stdout is not None
        assert bearer.stdout.readline() == b"up\n"  # before that, the kernel may not have its command line yet
        assert bearers(token) == [bearer.pid]
        bearer.kill()
        os.waitid(os.P_PID, bearer.pid, os.WEXITED | os.WNOWAIT)
        assert bearers(token) == []


def test_existing_paths_in_their_order(tmp_path: Path) -> None:
    path, listening = tmp_path / "file", tmp_path / "socket"
    path.touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
    assert existing([listening, tmp_path / "missing", path]) == [listening, path]


async def test_a_check_goes_on_where_processes_can_be_seen_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_rig(SERVE_LOCAL, POSIX) as rig, rig.started() as session:
        await must_be_seen(rig, session)
        monkeypatch.setattr(rig_module, "bearers", lambda token: [])
        monkeypatch.setattr(limits, "CHECK_SOON_MS", 20)
        with pytest.raises(NotOffered, match="cannot be seen from this host"):
            await must_be_seen(rig, session)
    async with a_rig(SERVE, MEMORY) as rig, rig.started() as session:
        with pytest.raises(NotOffered, match="no shell"):
            await must_be_seen(rig, session)
