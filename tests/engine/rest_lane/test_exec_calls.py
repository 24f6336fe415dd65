"""The calls of one exec, on engines made of a script and on a real Podman: what is asked, and every way it can fail."""

from __future__ import annotations

import asyncio
import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from podman import PodmanClient

from fastclaw.engine.dialects import PODMAN
from fastclaw.engine.rest_lane.exec_calls import DETACH_KEYS, ExecCalls, ExecState, SessionGone, create_body
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.limits import MAX_HTTP_BODY_BYTES
from fastclaw.processes.lane import StartSpec
from tests.engine.rest_lane.rest_rig import (
    FAKE_TIMEOUT_MS,
    NO_CONTAINER,
    NO_SESSION,
    SESSION,
    UPGRADED,
    Request,
    answer,
    answering,
    container_state,
    fake_engine,
    make_container,
    remove_container,
    spec,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.engine.conftest import EngineService
    from tests.engine.rest_lane.rest_rig import Engine

CALLS: dict[str, Callable[[ExecCalls], Awaitable[object]]] = {
    "create": lambda calls: calls.create("c", b"{}"),
    "start": lambda calls: calls.start("5e55"),
    "inspect": lambda calls: calls.inspect("5e55"),
    "container": lambda calls: calls.is_running("c"),
}
DECODED = [step for step in CALLS if step != "start"]
"""Those whose answer is JSON that is looked at."""


async def failure(directory: Path, step: str, wire: bytes, *, close: bool = False) -> ExecFailed:
    """How the call fails where the engine's answer is `wire`."""

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.step == step
        writer.write(wire)
        if close:
            await writer.drain()
            raise EOFError

    async with fake_engine(directory, serve, 10_000 if wire or close else FAKE_TIMEOUT_MS) as engine:
        with pytest.raises(ExecFailed) as caught:
            await CALLS[step](engine.calls)
    return caught.value


# --- What is asked -----------------------------------------------------------------------------------


def test_a_body_says_what_was_decided_and_no_more() -> None:
    body = json.loads(create_body(StartSpec(process_id="p", cmd=["a", "b c"], env={"A": "1", "B": "x=y"}, stdin=False)))
    assert body == {
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "DetachKeys": DETACH_KEYS,
        "Cmd": ["a", "b c"],
        "Env": ["A=1", "B=x=y", "FASTCLAW_PROCESS_ID=p"],
    }


def test_directory_user_and_stdin_are_asked_for_where_wanted() -> None:
    body = json.loads(create_body(StartSpec(process_id="p", cmd=["a"], env={}, working_dir="/é", user="1:2")))
    assert (body["WorkingDir"], body["User"], body["AttachStdin"], body["Env"]) == (
        "/é",
        "1:2",
        True,
        ["FASTCLAW_PROCESS_ID=p"],
    )


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ExecFailed, match="UTF-8") as caught:
        create_body(StartSpec(process_id="p", cmd=["echo", "\udcff"], env={}))
    assert (caught.value.reason, caught.value.fault) == ("invalid_params", "caller")


def test_detach_keys_are_too_long_to_be_typed() -> None:
    keys = DETACH_KEYS.split(",")
    assert len(keys) == 16
    assert all(first != second for first, second in pairwise(keys))


async def test_each_call_asks_one_question(short_dir: Path) -> None:
    steps = {"create": SESSION, "start": UPGRADED + b"first", "inspect": state(running=True, pid=7)}
    async with fake_engine(short_dir, answering(**steps, container=container_state(running=True))) as engine:
        assert await engine.calls.create("c", b'{"Cmd":[]}') == "5e55"
        hijacked = await engine.calls.start("5e55")
        with hijacked.sock:
            assert hijacked.leftover == b"first"
        assert await engine.calls.inspect("5e55") == ExecState(running=True, exit_code=0, pid=7)
        assert await engine.calls.is_running("c")
    assert engine.asked == [
        Request("create", f"POST {PODMAN.api}/containers/c/exec", b'{"Cmd":[]}'),
        Request("start", f"POST {PODMAN.api}/exec/5e55/start", b'{"Detach":false,"Tty":false}'),
        Request("inspect", f"GET {PODMAN.api}/exec/5e55/json", b""),
        Request("container", f"GET {PODMAN.api}/containers/c/json", b""),
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"Running":false,"ExitCode":-1,"Pid":0}', ExecState(running=False, exit_code=-1, pid=0)),
        (b'{"ID":"x","ExitCode":137,"Pid":0,"Running":false,"more":[1]}', ExecState(False, 137, 0)),
    ],
)
async def test_fields_that_are_not_needed_do_not_matter(short_dir: Path, body: bytes, expected: ExecState) -> None:
    async with fake_engine(short_dir, answering(inspect=answer(200, body))) as engine:
        assert await engine.calls.inspect("5e55") == expected


async def test_a_container_that_does_not_run(short_dir: Path) -> None:
    async with fake_engine(short_dir, answering(container=container_state(running=False))) as engine:
        assert await engine.calls.is_running("c") is False


# --- Every way to fail -------------------------------------------------------------------------------


TOO_LONG = b"HTTP/1.1 201 X\r\nContent-Length: %d\r\n\r\n" % (MAX_HTTP_BODY_BYTES + 1)


@pytest.mark.parametrize("step", CALLS)
@pytest.mark.parametrize(
    ("wire", "reason", "cause", "says"),
    [
        (b"SSH-2.0-x\r\n\r\n", "engine_error", ProtocolError, "HTTP"),
        (b"HTTP/1.1 200 O", "engine_error", ProtocolError, "HTTP"),
        (b"HTTP/1.1 200 X\r\nContent-Length: x\r\n\r\n", "engine_error", ProtocolError, "HTTP"),
        (TOO_LONG, "engine_error", ProtocolError, str(MAX_HTTP_BODY_BYTES)),
        (b"", "engine_unavailable", ConnectionResetError, "reached"),
    ],
    ids=["another protocol", "cut", "nonsense", "above the bound", "closed"],
)
async def test_what_is_no_answer(
    short_dir: Path, step: str, wire: bytes, reason: str, cause: type[Exception], says: str
) -> None:
    error = await failure(short_dir, step, wire, close=True)
    assert (error.reason, error.retryable) == (reason, reason == "engine_unavailable")
    assert isinstance(error.__cause__, cause)
    assert says in str(error)


@pytest.mark.parametrize("step", CALLS)
async def test_silence_is_a_timeout(short_dir: Path, step: str) -> None:
    error = await failure(short_dir, step, b"")
    assert (error.reason, error.fault, error.retryable) == ("engine_timeout", "engine", True)
    assert f"{FAKE_TIMEOUT_MS} ms" in str(error)
    assert isinstance(error.__cause__, TimeoutError)


@pytest.mark.parametrize("step", CALLS)
async def test_no_engine_at_all(short_dir: Path, step: str) -> None:
    calls = ExecCalls(f"unix://{short_dir}/none.sock", FAKE_TIMEOUT_MS)
    with pytest.raises(ExecFailed, match="No such file or directory") as caught:
        await CALLS[step](calls)
    calls.close()
    assert caught.value.reason == "engine_unavailable"


@pytest.mark.parametrize("step", CALLS)
@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (NO_CONTAINER, "container_gone"),
        (answer(409, b'{"message":"container c is not running: container state improper"}'), "container_gone"),
        (answer(500, b'{"message":"unable to find user x: no matching entries in passwd file"}'), "unknown_user"),
        (answer(500, b'{"message":"database is locked"}'), "engine_error"),
        (answer(500, b"\xff no JSON"), "engine_error"),
        (answer(500, b""), "engine_error"),
    ],
)
async def test_refusals(short_dir: Path, step: str, wire: bytes, reason: str) -> None:
    assert (await failure(short_dir, step, wire)).reason == reason


@pytest.mark.parametrize("step", DECODED)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"Id":5,"Running":1,"ExitCode":"0","State":[]}',
        b'{"Id":"\xff","State":{"Running":"\xff"},"Running":"\xff"}',
        b'{"x":' + b"[" * 100_000,
    ],
    ids=["empty", "a list", "nothing in it", "wrong types", "broken UTF-8", "deep"],
)
async def test_answers_that_make_no_sense(short_dir: Path, step: str, body: bytes) -> None:
    error = await failure(short_dir, step, answer(201 if step == "create" else 200, body))
    assert error.reason == "engine_error"
    assert "makes no sense" in str(error)
    assert error.__cause__ is not None


@pytest.mark.parametrize("status", [200, 204, 409])
async def test_a_session_counts_only_when_it_was_created(short_dir: Path, status: int) -> None:
    assert (await failure(short_dir, "create", answer(status, b'{"Id":"5e55"}'))).reason == "engine_error"


async def test_a_session_that_was_forgotten_is_no_failure_of_the_engine(short_dir: Path) -> None:
    async with fake_engine(short_dir, answering(inspect=NO_SESSION)) as engine:
        with pytest.raises(SessionGone, match="5e55"):
            await engine.calls.inspect("5e55")


# --- A real Podman -----------------------------------------------------------------------------------


@pytest.fixture
def calls(rest_engine: Engine) -> Iterator[ExecCalls]:
    """On the shared service."""
    made = ExecCalls(rest_engine.url, 10_000)
    yield made
    made.close()


@pytest.mark.podman
async def test_a_session_of_podman_runs_once(calls: ExecCalls, rest_engine: Engine) -> None:
    container = next(iter(rest_engine.containers.values()))
    session = await calls.create(container, create_body(spec("echo", "hi")))
    assert await calls.inspect(session) == ExecState(running=False, exit_code=0, pid=0)
    hijacked = await calls.start(session)
    with hijacked.sock:
        while await asyncio.get_running_loop().sock_recv(hijacked.sock, 100):
            pass
    assert not (await calls.inspect(session)).running
    with pytest.raises(ExecFailed):
        await calls.start(session)
    assert await calls.is_running(container)


@pytest.mark.podman
async def test_what_podman_does_not_know(calls: ExecCalls) -> None:
    unknown = os.urandom(32).hex()
    with pytest.raises(SessionGone):
        await calls.inspect(unknown)
    for call in (calls.create(unknown, create_body(spec("true"))), calls.is_running(unknown)):
        with pytest.raises(ExecFailed) as caught:
            await call
        assert caught.value.reason == "container_gone"


@pytest.mark.podman
async def test_a_container_of_podman_that_has_stopped(calls: ExecCalls, engine_service: EngineService) -> None:
    with PodmanClient(base_url=engine_service.url) as client:
        container = await asyncio.to_thread(make_container, client, engine_service.image)
        stop = f"/containers/{container}/stop"
        (await asyncio.to_thread(client.api.post, stop, params={"timeout": 0})).raise_for_status()
        assert not await calls.is_running(container)
        with pytest.raises(ExecFailed) as caught:
            await calls.create(container, create_body(spec("true")))
        await asyncio.to_thread(remove_container, client, container)
    assert caught.value.reason == "container_gone"
