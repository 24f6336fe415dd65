"""Whether a command really runs: on a real Podman with every OCI runtime that is here, and on scripted streams."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import subprocess
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from podman import PodmanClient

from fastclaw import limits
from fastclaw.engine.rest_lane.exec_calls import Seen, SessionGone, Started, confirm, explained, first_entry
from fastclaw.errors import ExecFailed
from fastclaw.limits import EXECVE_PROOF_MS, MAX_HTTP_BODY_BYTES, OCI_ERROR_BYTES
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, ExitStatus
from tests import odd_programs
from tests.balance import open_descriptors
from tests.engine.rest_lane.rest_rig import (
    NO_CONTAINER,
    NO_SESSION,
    RUNTIME,
    Engine,
    answer,
    answering,
    complete,
    fake_engine,
    frame,
    make_container,
    remove_container,
    spec,
    state,
    stderr_frame,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastclaw.engine.rest_lane.rest import RestLane
    from fastclaw.processes.lane import StartSpec
    from tests.engine.conftest import EngineService
    from tests.engine.rest_lane.rest_rig import Request

REFUSED: list[tuple[str, StartSpec, str]] = [
    ("missing", spec("nosuch"), "not_found"),
    ("missing path", spec("/bin/nosuch"), "not_found"),
    ("a newline in it", spec("no\nsuch"), "not_found"),
    ("named as an engine's text", spec("/tmp/not running"), "not_found"),
    ("the same behind a newline", spec("no\nnot running"), "not_found"),
    ("a file as directory", spec("/plain/x"), "not_found"),
    ("a long name", spec("/" + 300 * "x"), "too_long"),
    ("a directory", spec("/tmp"), "permission_denied"),
    ("no x bit", spec("/plain"), "permission_denied"),
    ("no shebang", spec("noshebang"), "not_executable"),
    ("bad ELF", spec("badelf"), "not_executable"),
    ("missing interpreter", spec("/bin/badinterp"), "not_found"),
    ("missing working_dir", spec("true", working_dir="/nope"), "bad_working_dir"),
    ("working_dir is a file", spec("true", working_dir="/plain"), "bad_working_dir"),
    ("an unknown user", spec("true", user="nobodyx"), "unknown_user"),
    ("huge argv", spec("true", *["a" * 100_000] * 40), "too_long"),
]


@pytest.mark.podman
@pytest.mark.parametrize(("what", "given_spec", "reason"), REFUSED, ids=[what for what, _, _ in REFUSED])
async def test_what_cannot_start_is_an_error(any_lane: RestLane, what: str, given_spec: StartSpec, reason: str) -> None:
    with pytest.raises(ExecFailed) as caught:
        await any_lane.start(given_spec, 0)
    assert caught.value.reason == reason


@pytest.mark.podman
async def test_not_found_says_what(rest_engine: Engine, engine_service: EngineService, tmp_path: Path) -> None:
    """moby/moby#40859, alpinelinux/docker-alpine#404: the file is there, and what it needs is not."""
    odd_programs.make(tmp_path)
    huge = tmp_path / "huge"
    huge.write_bytes(odd_programs.ODD["no-loader"].content or b"")
    os.truncate(huge, 2 * MAX_HTTP_BODY_BYTES)
    huge.chmod(0o755)
    busy = tmp_path / "busy"
    busy.write_text("#!/bin/sh\n")
    busy.chmod(0o755)
    mount = {"destination": "/work", "source": str(tmp_path), "type": "bind", "options": ["rbind", "rw"]}
    with PodmanClient(base_url=engine_service.url) as client:
        container = make_container(client, engine_service.image, mounts=[mount])
    lane = Engine(engine_service, {RUNTIME: container}).lane()
    try:
        for name, odd in {**odd_programs.ODD, "huge": odd_programs.ODD["no-loader"]}.items():
            for asked in (spec(f"/work/{name}"), spec(name, env={"PATH": "/no/such:/work"})):
                with pytest.raises(ExecFailed) as caught:
                    await lane.start(asked, 0)
                assert str(caught.value).startswith(f"exec failed: {asked.cmd[0]!r}: {odd.words}")
                assert caught.value.reason == odd.reason
        with busy.open("a"), pytest.raises(ExecFailed) as caught:
            await lane.start(spec("/work/busy"), 0)
        assert (caught.value.reason, caught.value.retryable) == ("file_busy", True)
    finally:
        await lane.aclose()
        with PodmanClient(base_url=engine_service.url) as client:
            remove_container(client, container)


@pytest.mark.podman
@pytest.mark.parametrize(
    ("script", "code", "err"),
    [
        ("exit 125", 125, b""),
        ("exit 126", 126, b""),
        ("exit 127", 127, b""),
        ("echo 'Error: fake' >&2; exit 127", 127, b"Error: fake\n"),
        ("echo 'exec: my own trouble' >&2; exit 1", 1, b"exec: my own trouble\n"),
        ("nosuch", 127, b"sh: nosuch: not found\n"),
    ],
)
async def test_what_only_looks_like_a_failed_start(any_lane: RestLane, script: str, code: int, err: bytes) -> None:
    process = await any_lane.start(spec("sh", "-c", script), 0)
    assert await complete(process) == (b"", err, ExitStatus(reason="exited", exit_code=code))


# --- Scripted streams --------------------------------------------------------------------------------

NOT_FOUND = (
    b"Error: crun: executable file `x` not found in $PATH: No such file or directory: "
    b"OCI runtime attempted to invoke a command that was not found\n"
)
EXEC_TEXT = b"exec /bin/x: exec format error\n"


@contextmanager
def stream(*wires: bytes, end: bool = True) -> Iterator[socket.socket]:
    """Our end of a hijacked connection on which this came, and its end."""
    ours, engines = socket.socketpair()
    with ours, engines:
        ours.setblocking(False)
        for wire in wires:
            engines.sendall(wire)
        if end:
            engines.shutdown(socket.SHUT_WR)
        yield ours


async def proof(
    directory: Path,
    sock: socket.socket,
    inspect: bytes,
    head: bytes = b"",
    given: StartSpec | None = None,
    local: bool = False,
) -> Started:
    """What is found out with these answers to inspect."""
    async with fake_engine(directory, answering(inspect=inspect)) as engine:
        return await confirm(engine.calls, "5e55", sock, head, given or spec("x"), local=local)


async def test_elsewhere_a_pid_is_the_proof(short_dir: Path) -> None:
    with stream(end=False) as sock:
        started = await proof(short_dir, sock, state(running=True, pid=1), head=b"so far")
    assert started == Started(0, None, b"so far", None, ended=False)


@pytest.mark.parametrize(
    ("wires", "code", "expected"),
    [
        ([], 3, None),
        ([frame(b"out")], 3, None),
        ([stderr_frame(b"my own words")], 127, None),
        ([frame(b"out"), stderr_frame(NOT_FOUND)], 127, None),
        ([stderr_frame(NOT_FOUND)], 0, 0),
        ([stderr_frame(b"Error: fake\n")], 127, 127),
        ([stderr_frame(NOT_FOUND[:40])], 127, 127),
    ],
    ids=["nothing", "stdout", "stderr", "stdout first", "another code", "another text", "half a text"],
)
async def test_a_command_that_ended_before_it_was_seen(
    short_dir: Path, wires: list[bytes], code: int, expected: int | None
) -> None:
    """The whole stream is kept; the exit code is known where it had to be asked for."""
    with stream(*wires) as sock:
        started = await proof(short_dir, sock, state(running=False, code=code))
    assert started == Started(0, None, b"".join(wires), expected, ended=True)


@pytest.mark.parametrize("split", [0, 5, 8, 30, 1000])
async def test_a_failed_start_wherever_the_stream_is_cut(short_dir: Path, split: int) -> None:
    wire = stderr_frame(NOT_FOUND)
    with stream(wire[split:]) as sock, pytest.raises(ExecFailed, match="not found in") as caught:
        await proof(short_dir, sock, state(running=False, code=127), head=wire[:split])
    assert caught.value.reason == "not_found"


async def test_a_failed_execve_is_told_from_a_command_of_that_name(short_dir: Path) -> None:
    """crun says it on the command's stderr, with the command's name; other names are the command's own business."""
    with stream(stderr_frame(EXEC_TEXT)) as sock, pytest.raises(ExecFailed) as caught:
        await proof(short_dir, sock, state(running=False, code=255))
    assert caught.value.reason == "not_executable"
    with stream(stderr_frame(EXEC_TEXT)) as sock:
        started = await proof(short_dir, sock, state(running=False, code=255), given=spec("y"))
    assert (started.exit_code, started.ended) == (255, True)


@pytest.mark.parametrize("wires", [[], [stderr_frame(b"Error: ")], [b"\2\0\0\0"]], ids=["none", "a start", "half"])
async def test_a_stream_that_does_not_end_is_a_timeout(short_dir: Path, wires: list[bytes]) -> None:
    with stream(*wires, end=False) as sock, pytest.raises(ExecFailed, match="does not end") as caught:
        await asyncio.wait_for(proof(short_dir, sock, state(running=False, code=127)), 5)
    assert (caught.value.reason, caught.value.retryable) == ("engine_timeout", True)


async def test_what_is_held_back_is_bounded(short_dir: Path) -> None:
    """An engine's text never gets that long, so the stream need not end."""
    wire = stderr_frame(b"Error: " + b"x" * OCI_ERROR_BYTES)
    with stream(wire, end=False) as sock:
        started = await proof(short_dir, sock, state(running=False, code=127))
    assert (started.exit_code, started.ended) == (None, True)
    assert OCI_ERROR_BYTES <= len(started.head) <= len(wire)


@pytest.mark.parametrize("head", [b"", b"garbage!"])
async def test_a_stream_that_makes_no_sense(short_dir: Path, head: bytes) -> None:
    with stream(b"garbage!") as sock, pytest.raises(ExecFailed, match="makes no sense") as caught:
        await proof(short_dir, sock, state(running=False, code=1), head=head)
    assert caught.value.reason == "engine_error"


async def test_a_reset_is_the_end_of_the_stream(short_dir: Path) -> None:
    ours, engines = socket.socketpair()
    with ours:
        ours.setblocking(False)
        ours.send(b"stdin that nobody reads")
        engines.sendall(stderr_frame(b"Error: fake\n"))
        engines.close()
        started = await proof(short_dir, ours, state(running=False, code=127))
    assert (started.head, started.exit_code) == (stderr_frame(b"Error: fake\n"), 127)


async def test_a_connection_that_broke_otherwise_is_the_end_too(short_dir: Path) -> None:
    with socket.socket() as unconnected:  # ENOTCONN, which is no ConnectionError
        unconnected.setblocking(False)
        started = await proof(short_dir, unconnected, state(running=False, code=3))
    assert started == Started(0, None, b"", None, ended=True)


async def test_a_forgotten_session_is_for_the_caller(short_dir: Path) -> None:
    with stream() as sock, pytest.raises(SessionGone):
        await proof(short_dir, sock, NO_SESSION)


# --- Processes of this host --------------------------------------------------------------------------


@contextmanager
def child(*cmd: str, env: dict[str, str] | None = None) -> Iterator[int]:
    """A process that stands for the command; its pid."""
    with subprocess.Popen([*cmd], env=os.environ | (env or {})) as process:
        try:
            yield process.pid
        finally:
            process.kill()


async def local_proof(directory: Path, given_spec: StartSpec, pid: int, *wires: bytes, code: int = 0) -> Started:
    """With an engine that names this pid. The pidfd is the caller's."""
    with stream(*wires) as sock:
        return await proof(directory, sock, state(running=True, pid=pid, code=code), given=given_spec, local=True)


async def test_here_the_marker_is_the_proof(short_dir: Path) -> None:
    given_spec = spec("x")
    with child("sleep", "60", env=given_spec.env) as pid:
        started = await local_proof(short_dir, given_spec, pid)
        assert started.pidfd is not None
        assert open_descriptors()[started.pidfd].endswith("[pidfd]")
        os.close(started.pidfd)
    assert (started.pid, started.exit_code, started.ended) == (pid, None, False)


async def test_a_command_that_hides_its_environment_counts_as_started_in_the_end(short_dir: Path) -> None:
    """Another one's marker is no proof."""
    began = asyncio.get_running_loop().time()
    with child("sleep", "60", env={PROCESS_ID_VARIABLE: "another"}) as pid:
        started = await local_proof(short_dir, spec("x"), pid)
        assert started.pidfd is not None
        os.close(started.pidfd)
    assert not started.ended
    assert EXECVE_PROOF_MS / 1000 <= asyncio.get_running_loop().time() - began < 5


@pytest.mark.parametrize(
    ("script", "wires", "ended"),
    [
        ("exit 3", [], False),  # no code of a failed execve: it ran
        ("kill -9 $$", [], False),
        ("exit 127", [], True),
        ("exit 127", [frame(b"out")], True),
    ],
)
async def test_a_command_that_ended_before_its_environment_was_seen(
    short_dir: Path, script: str, wires: list[bytes], ended: bool
) -> None:
    with child("sh", "-c", script) as pid:
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        started = await local_proof(short_dir, spec("x"), pid, *wires)
        assert started.pidfd is not None
        os.close(started.pidfd)
    assert (started.pid, started.ended, started.head) == (pid, ended, b"".join(wires))


async def test_a_failed_execve_leaves_no_pidfd(short_dir: Path) -> None:
    """One that is left fails the test: descriptors are weighed (tests/conftest.py)."""
    with child("sh", "-c", "exit 127") as pid:
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        wire = stderr_frame(b"exec /bin/x: no such file or directory\n")
        with pytest.raises(ExecFailed) as caught:
            await local_proof(short_dir, spec("x"), pid, wire, code=127)
    assert caught.value.reason == "not_found"


async def test_a_process_that_is_gone_already(short_dir: Path) -> None:
    with child("true") as pid:
        pass
    started = await local_proof(short_dir, spec("x"), pid, frame(b"out"))
    assert started == Started(pid, None, frame(b"out"), None, ended=True)


async def test_no_descriptor_for_a_pidfd(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(pid: int) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(ExecFailed, match="Too many open files") as caught:
        await local_proof(short_dir, spec("x"), os.getpid())
    assert caught.value.reason == "io_error"


# --- Which file is in the way ----------------------------------------------------------------------


def archive(kind: bytes = tarfile.REGTYPE, *, mode: int = 0o755, data: bytes = b"#!/bin/x\n", name: str = "x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.size = kind, mode, len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("tar", "seen"),
    [
        (archive(), Seen(0, b"#!/bin/x\n")),
        (archive()[:515], Seen(0, b"#!/")),
        (archive(name="n" * 300), Seen(0, b"#!/bin/x\n")),
        (archive(mode=0o644), Seen(errno.EACCES, b"#!/bin/x\n")),
        (archive(tarfile.DIRTYPE, data=b""), Seen(errno.EISDIR, b"")),
        (archive(tarfile.FIFOTYPE, data=b""), Seen(errno.ENXIO, b"")),
        (bytes(1024), Seen(errno.ENXIO, b"")),
        (b"", Seen(errno.ENXIO, b"")),
    ],
    ids=["a file", "cut", "a long name", "not executable", "a directory", "a FIFO", "no file", "nothing"],
)
def test_the_first_entry_of_an_archive(tar: bytes, seen: Seen) -> None:
    assert first_entry(tar) == seen


@given(st.binary(max_size=64), st.integers(0, 600))
def test_no_archive_is_too_odd(noise: bytes, at: int) -> None:
    tar = archive(name="n" * 120)
    first_entry(tar[:at] + noise + tar[at + len(noise) :])
    first_entry(tar[:at])


async def test_the_engine_is_asked_a_bounded_number_of_times(short_dir: Path) -> None:
    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(NO_CONTAINER)

    refused = ExecFailed("x: not found", "not_found")
    async with fake_engine(short_dir, serve) as engine:
        path = ":".join(f"/{n}" for n in range(1_000))
        assert await explained(refused, engine.calls, "c", spec("x", env={"PATH": path})) is refused
        assert len(engine.asked) == limits.PROGRAM_LOOKS


async def test_scripts_that_are_each_others_interpreters_are_followed_as_far_as_by_the_kernel(
    short_dir: Path,
) -> None:
    body = archive(data=b"#!/x\n")

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200, body))

    refused = ExecFailed("x: too many levels", "not_found")
    async with fake_engine(short_dir, serve) as engine:
        assert await explained(refused, engine.calls, "c", spec("/x")) is refused
        assert len(engine.asked) == limits.PROGRAM_DEPTH + 1


@pytest.mark.parametrize("reason", ["too_long", "container_gone", "engine_error"])
async def test_what_is_not_about_a_file_is_left_alone(short_dir: Path, reason: str) -> None:
    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        raise AssertionError(request)

    refused = ExecFailed("x", reason)
    async with fake_engine(short_dir, serve) as engine:
        assert await explained(refused, engine.calls, "c", spec("/x")) is refused
        assert engine.asked == []
