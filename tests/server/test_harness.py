"""The harness as a supervisor meets it: a child process, its stdio, its signals, its end."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from fastclaw import limits
from tests.pids import has_not_ended
from tests.served import Served, line, marked_processes, resident_bytes, serve_command, served

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Served]:
    yield from served(tmp_path)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Served]:
    yield from served(tmp_path, "local")


def sockets_of(child: Served) -> str:
    return os.path.dirname(str(child.exec("true")["stdio_addr"]))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_nothing_left(signum: signal.Signals, local: Served) -> None:
    local.initialize()
    directory = sockets_of(local)
    mark = str(random.randrange(10**6, 10**7))
    process = local.exec("sleep", mark)
    local.post("wait", "wait", process_id=process["process_id"])
    local.call("health")
    local.signal(signum)
    assert local.exit_code() == 0
    assert local.answers["wait"]["result"]["reason"] == "killed"
    assert marked_processes(mark) == []
    assert not os.path.exists(directory)


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    """As nohup(1) starts it, and a shell what is in the background."""
    ignoring = ["sh", "-c", 'trap "" HUP INT TERM; exec "$@"', "sh", *serve_command()]
    with Served(ignoring, tmp_path / "log") as child:
        child.initialize()
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            child.signal(signum)
        assert child.call("health")["result"]["status"] == "healthy"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_was_blocked_at_the_start_ends_it(signum: signal.Signals, tmp_path: Path) -> None:
    """As where a thread that hears no signals starts it."""
    blocking = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); os.execv(sys.argv[1], "
    with Served([sys.executable, "-c", blocking + "sys.argv[1:])", *serve_command()], tmp_path / "log") as child:
        child.initialize()
        child.signal(signum)
        assert child.exit_code() == 0


def test_a_second_signal_cuts_the_grace_short(local: Served) -> None:
    local.initialize(kill_grace_ms=20_000, shutdown_timeout_ms=60_000)
    mark = str(random.randrange(10**6, 10**7))
    process = local.exec("sh", "-c", f"trap '' TERM; echo ready; while :; do sleep {mark}; done")
    with socket.socket(socket.AF_UNIX) as stdio:
        stdio.connect(process["stdio_addr"])
        assert stdio.recv(100) == b"ready\n"
        began = time.monotonic()
        local.post("wait", "wait", process_id=process["process_id"])
        local.signal(signal.SIGTERM)
        while "shutting down" not in str(local.call("health")):
            pass
        local.signal(signal.SIGTERM)
        assert local.exit_code() == 0
    assert time.monotonic() - began < 10
    assert marked_processes(mark) == []


def test_eof_in_the_middle_of_1_000_execs(local: Served) -> None:
    local.initialize()
    directory = sockets_of(local)
    mark = str(random.randrange(10**6, 10**7))
    requests = b"".join(line("exec", number, cmd=["sleep", mark]) for number in range(1_000))
    local.send(requests)
    local.until(lambda: len(local.answers) >= 200)
    local.end_input()
    assert local.exit_code() == 0
    answered = [local.answers[number] for number in range(1_000)]
    refused = [answer["error"] for answer in answered if "result" not in answer]
    assert [error for error in refused if error["data"]["reason"] != "shutting_down"] == []
    assert marked_processes(mark) == []
    assert not os.path.exists(directory)


@pytest.mark.parametrize("source", ["file", "null"])
def test_stdin_may_be_a_file_and_stdout_too(source: str, tmp_path: Path) -> None:
    requests, answers = tmp_path / "in", tmp_path / "out"
    requests.write_bytes(line("initialize", 1, namespace="n") + line("health", 2) + line("shutdown", 3))
    path = os.devnull if source == "null" else str(requests)
    with open(path, "rb") as stdin, answers.open("wb") as stdout:
        done = subprocess.run(serve_command(), stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=20)
    assert done.returncode == 0
    assert done.stderr == b""
    found = {message["id"]: message for message in map(orjson.loads, answers.read_bytes().splitlines())}
    assert set(found) == ({1, 2, 3} if source == "file" else set())
    assert all("result" in message or message["error"]["data"]["reason"] for message in found.values())


def test_a_stray_print_does_not_touch_the_wire(tmp_path: Path) -> None:
    code = """
import os
from fastclaw.server.harness import RuntimeHarness
from fastclaw.runtimes.host import EnvironmentHost
class Noisy(EnvironmentHost):
    async def health(self, environment=None):
        print(repr(harness), flush=True)
        os.system("echo from a child")
        return await super().health()
harness = RuntimeHarness(Noisy("memory"))
assert repr(harness) == "<RuntimeHarness not serving>"
harness.run()
"""
    with Served([sys.executable, "-c", code], tmp_path / "log") as child:
        child.initialize()
        assert child.call("health")["result"]["status"] == "healthy"
        child.end_input()
        assert child.exit_code() == 0
    assert (tmp_path / "log").read_text().endswith("1 environments>>>\nfrom a child\n")
    assert (tmp_path / "log").read_text().startswith("<RuntimeHarness <Session running: <Noisy ")


def test_a_reader_that_stops_stops_the_reading(memory: Served) -> None:
    memory.initialize()
    before = resident_bytes(memory.child.pid)
    os.set_blocking(memory.input_fd, False)
    request = line("health", "x" * 256)
    sent, stuck_since = 0, time.monotonic()
    while time.monotonic() - stuck_since < 0.5:  # that long without taking a byte: it has stopped
        try:
            sent += os.write(memory.input_fd, request * 50)
            stuck_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.005)
        assert sent < 64 * limits.MIB
    grown = resident_bytes(memory.child.pid) - before
    assert grown < 8 * limits.OUTPUT_HIGH_WATER_BYTES
    assert has_not_ended(memory.child.pid)
    os.read(memory.output_fd, 1 << 20)
    memory.signal(signal.SIGTERM)
    assert memory.child.wait(limits.FINAL_FLUSH_MS / 1000 + 10) == 0


def test_a_supervisor_that_stops_listening_ends_it(memory: Served) -> None:
    memory.initialize()
    assert memory.child.stdout is not None
    memory.child.stdout.close()
    os.write(memory.input_fd, line("health", 1))
    assert memory.child.wait(20) == 0


def test_the_inherited_pipe_keeps_its_flag(memory: Served) -> None:
    memory.initialize()
    for number in (0, 1):
        fdinfo = Path(f"/proc/{memory.child.pid}/fdinfo/{number}").read_text()
        assert int(fdinfo.split("flags:")[1].split()[0], 8) & os.O_NONBLOCK == 0
    assert os.get_blocking(memory.output_fd)


def test_json_logs_are_lines(tmp_path: Path) -> None:
    for child in served(tmp_path, "local", "--log-format", "json"):
        child.initialize()
        child.end_input()
        assert child.exit_code() == 0
    entries = [orjson.loads(text) for text in (tmp_path / "log").read_bytes().splitlines()]
    assert any("no isolation" in entry["message"] for entry in entries)


def test_a_closed_stdin_is_one_line_of_error() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *serve_command()], capture_output=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert b"stdin or stdout is closed" in done.stderr


def test_one_harness_per_process() -> None:
    code = """
import asyncio
from fastclaw.errors import IoError
from fastclaw.server.harness import RuntimeHarness
from fastclaw.runtimes.host import EnvironmentHost
async def main():
    first = asyncio.create_task(RuntimeHarness(EnvironmentHost("memory")).serve())
    await asyncio.sleep(0)
    try:
        await RuntimeHarness(EnvironmentHost("memory")).serve()
    except IoError:
        pass
    else:
        raise SystemExit(1)
    await first
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, check=True, timeout=20)
