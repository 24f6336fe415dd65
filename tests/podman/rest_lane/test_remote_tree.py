"""Trees of an engine elsewhere: the script in a real container, and engines that break the second exec."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from podman import PodmanClient

from fastclaw.errors import ExecFailed
from fastclaw.podman.rest_lane import remote_tree
from fastclaw.podman.rest_lane.exec_calls import ExecCalls
from fastclaw.podman.rest_lane.http_client import HttpClient, Upgraded
from fastclaw.podman.rest_lane.remote_tree import RemoteTree
from fastclaw.podman.service.service_process import wait_readable
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, ExitStatus
from tests.podman.rest_rig import (
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
    marked,
    remove_container,
    spec,
    stderr_frame,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.processes.lane import StartSpec
    from tests.podman.conftest import EngineService
    from tests.podman.rest_rig import Engine


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
    pool = HttpClient(rest_engine.url)
    container = next(iter(rest_engine.containers.values()))
    tree = RemoteTree(ExecCalls(pool, 10_000), container)
    await tree(f"nobody-{os.getpid()}", None, grace(), deadline_s=2)
    pool.close()


@pytest.mark.podman
async def test_an_image_without_a_shell_is_not_supported(engine_service: EngineService) -> None:
    pool = HttpClient(engine_service.url)
    with PodmanClient(base_url=engine_service.url) as client:
        changes: dict[str, Any] = {"command": ["/bin/sleep", "1000"], "env": {"PATH": "/nowhere"}}
        container = await asyncio.to_thread(make_container, client, engine_service.image, **changes)
        with pytest.raises(ExecFailed, match="lacks one") as caught:
            await RemoteTree(ExecCalls(pool, 10_000), container)("m", None, grace(), deadline_s=2)
        await asyncio.to_thread(remove_container, client, container)
    pool.close()
    assert caught.value.reason == "unsupported"


# --- Engines made of a script ------------------------------------------------------------------------


async def end(directory: Path, wire: bytes, *, seconds: float = 0.0, deadline_s: float = 2.0) -> list[Request]:
    """End a tree on an engine whose stream carries this; what was asked of it."""
    async with fake_engine(directory, answering(create=SESSION, start=UPGRADED + wire)) as engine:
        await RemoteTree(engine.calls, "c")("m", None, grace(seconds), deadline_s=deadline_s)
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
    asked = await end(short_dir, wire)
    assert [request.step for request in asked] == ["create", "start"]


@pytest.mark.parametrize(("seconds", "turns"), [(-3.0, 0), (0.0, 0), (4.05, 40)])
async def test_what_the_script_is_told(short_dir: Path, seconds: float, turns: int) -> None:
    """It runs as root, without the marker of what it ends, and gets both limits in turns of 100 ms."""
    body = json.loads((await end(short_dir, frame(b"gone\n"), seconds=seconds, deadline_s=2))[0].body)
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
        await end(short_dir, wire)
    assert caught.value.reason == reason


async def test_an_answer_without_end_is_read_up_to_a_bound(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_tree, "MAX_HTTP_BODY_BYTES", 1000)

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(SESSION if request.step == "create" else UPGRADED + frame(b"x" * 5000))

    async with fake_engine(short_dir, serve) as engine:
        with pytest.raises(ExecFailed, match="lacks one"):  # the stream never ends
            await asyncio.wait_for(RemoteTree(engine.calls, "c")("m", None, grace(), deadline_s=20), 10)


async def test_silence_ends_with_grace_and_deadline(short_dir: Path) -> None:
    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(SESSION if request.step == "create" else UPGRADED)

    loop = asyncio.get_running_loop()
    began = loop.time()
    async with fake_engine(short_dir, serve) as engine:
        with pytest.raises(ExecFailed, match="could not be ended") as caught:
            await RemoteTree(engine.calls, "c")("m", None, grace(0.1), deadline_s=0.1)
    assert (caught.value.reason, caught.value.retryable) == ("engine_timeout", True)
    assert 200 <= round(1000 * (loop.time() - began)) < 3000  # uvloop's clock counts these; as seconds they are inexact


async def test_a_stream_that_breaks_is_an_error_of_the_engine() -> None:
    """A Unix socket is reset when its peer closes it with bytes unread."""
    ours, engines = socket.socketpair()
    ours.setblocking(False)
    ours.send(b"unread")
    engines.close()
    with pytest.raises(ExecFailed, match="broke: Connection reset") as caught:
        await remote_tree._stdout(Upgraded(ours, b""))
    assert (caught.value.reason, caught.value.retryable) == ("engine_unavailable", True)
    assert ours.fileno() < 0


async def test_a_refused_second_exec_keeps_its_reason(short_dir: Path) -> None:
    async with fake_engine(short_dir, answering(create=NO_CONTAINER)) as engine:
        with pytest.raises(ExecFailed) as caught:
            await RemoteTree(engine.calls, "c")("m", None, grace(), deadline_s=1)
    assert caught.value.reason == "container_gone"
