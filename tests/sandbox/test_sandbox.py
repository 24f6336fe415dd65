"""Commands in a sandbox, by the API that has no `await`: it is the same code."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import FastclawError, InvalidParams
from fastclaw.sandbox import CommandFailed, SandboxGone

if TYPE_CHECKING:
    from fastclaw.sandbox.sync import Host, Sandbox


def test_output_and_exit_code(box: Sandbox) -> None:
    done = box.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.exit_code, done.reason, done.stdout, done.stderr) == (7, "exited", b"out\n", b"err\n")
    assert (done.text, done.error_text, done.truncated, done.ok) == ("out\n", "err\n", False, False)
    assert done.duration >= 0
    assert done.usage is not None
    assert done.usage["max_rss_kb"] > 0


def test_text_is_for_a_shell(box: Sandbox) -> None:
    assert box.run('printf %s "$((6 * 7))" | cat').text == "42"


def test_directory_variables_and_input(box: Sandbox) -> None:
    box.mkdir("sub")
    done = box.run(["sh", "-c", 'pwd; echo "$A"; cat'], cwd="sub", env={"A": "é"}, input="given")
    assert done.text.splitlines() == [os.path.join(box.working_dir, "sub"), "é", "given"]


def test_a_trace_is_handed_on(box: Sandbox) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    script = 'echo "$TRACEPARENT $TRACESTATE"'
    for output_limit in ("1m", "20m"):
        done = box.run(script, traceparent=parent, tracestate="a=b", output_limit=output_limit)
        assert done.text == f"{parent} a=b\n"
    with box.exec(script, traceparent=parent) as process:
        assert process.stdout.readline().decode() == f"{parent} \n"
    with pytest.raises(InvalidParams, match="traceparent"):
        box.run("true", traceparent=parent.upper())


def test_a_start_belongs_to_a_trace(local_host: Host) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with local_host.start(token="traced", traceparent=parent, tracestate="a=b") as box:
        assert local_host.start(token="traced", traceparent=parent[:-1] + "0").info == box.info
    with pytest.raises(InvalidParams, match="tracestate"):
        local_host.start(tracestate="a=b")


@pytest.mark.parametrize("size", [0, 1, 4 << 20, (4 << 20) + 1, 50 << 20])
def test_input_and_output_of_any_size(box: Sandbox, size: int) -> None:
    data = hashlib.shake_128(str(size).encode()).digest(min(size, 1 << 20)) * (size >> 20 or 1)
    done = box.run(["cat"], input=data, output_limit="64m")
    assert (done.stdout == data, done.exit_code, done.truncated) == (True, 0, False)


def test_input_that_nobody_reads_is_no_error(box: Sandbox) -> None:
    for size in (1 << 20, 8 << 20):
        assert box.run(["true"], input=b"x" * size).ok


@pytest.mark.parametrize("limit", [1000, 20 << 20])
def test_the_middle_of_a_long_output_is_left_out_and_said(box: Sandbox, limit: int) -> None:
    """By one line of the wire, and where that is too short."""
    total = 2 * limit
    done = box.run(f"head -c {total // 2} /dev/zero; head -c {total // 2} /dev/zero | tr '\\0' x", output_limit=limit)
    assert done.stdout == b"\0" * (limit // 2) + b"x" * (limit // 2)
    assert (done.dropped, done.gap_at) == ({"stdout": total - limit, "stderr": 0}, {"stdout": limit // 2})
    assert done.truncated


@pytest.mark.parametrize("limit", [1000, 20 << 20])
def test_who_writes_too_much_can_be_ended(box: Sandbox, limit: int) -> None:
    done = box.run(["cat", "/dev/zero"], output_limit=limit, on_limit="kill", keep="head")
    assert (done.reason, len(done.stdout), done.ok) == ("killed", limit, False)


@pytest.mark.parametrize("limit", [1000, 20 << 20])
def test_what_it_leaves_running_holds_up_nobody(box: Sandbox, limit: int) -> None:
    done = box.run("sleep 100 & echo started", output_limit=limit, drain=0.05)
    assert (done.text, done.exit_code) == ("started\n", 0)
    done = box.run("sleep 100 & echo started", output_limit=limit, drain=60, orphans="kill")
    assert (done.text, done.exit_code) == ("started\n", 0)


def test_one_stream_of_both(box: Sandbox) -> None:
    done = box.run("echo 1; echo 2 >&2; echo 3", merge_stderr=True)
    assert (done.text, done.stderr) == ("1\n2\n3\n", b"")


@pytest.mark.parametrize("limit", [1000, 20 << 20])
def test_the_end_of_its_time_ends_the_tree(box: Sandbox, limit: int) -> None:
    done = box.run("echo before; sleep 100 & sleep 100", timeout=0.2, output_limit=limit)
    assert (done.reason, done.text, done.ok) == ("timeout", "before\n", False)
    assert not box.run("kill -0 $(cat pid 2>/dev/null) 2>/dev/null").ok


def test_signals(box: Sandbox) -> None:
    done = box.run("kill -USR1 $$")
    assert (done.exit_code, done.signal, done.reason) == (138, 10, "signaled")


@pytest.mark.parametrize(
    ("cmd", "code", "reason"),
    [
        (["nonesuch"], 127, "not_found"),
        (["/"], 126, "permission_denied"),
        (["./plain"], 126, "permission_denied"),
        (["./text"], 126, "not_executable"),
    ],
)
def test_what_does_not_start_raises_nothing(box: Sandbox, cmd: list[str], code: int, reason: str) -> None:
    box.write("plain", "#!/bin/sh\n", mode=0o644)
    box.write("text", "\0no program", mode=0o755)
    done = box.run(cmd)
    assert (done.exit_code, done.reason, done.stdout) == (code, reason, b"")
    assert done.error is not None
    assert "\n" not in done.error


def test_a_wrong_directory_or_user_raises_nothing(box: Sandbox) -> None:
    assert box.run(["true"], cwd="none").reason == "bad_working_dir"
    assert box.run(["true"], user="nobody-of-this-name").reason == "unknown_user"
    assert box.run(["true", "x" * (3 << 20)]).reason == "too_long"


def test_a_check_raises(box: Sandbox) -> None:
    assert box.run(["true"], check=True).ok
    with pytest.raises(CommandFailed, match="exit code 3: because") as failed:
        box.run("echo because >&2; exit 3", check=True)
    assert failed.value.done.exit_code == 3
    with pytest.raises(CommandFailed, match=r"did not start \(not_found\)"):
        box.run(["nonesuch"], check=True)


def test_what_is_no_command_is_an_error(box: Sandbox) -> None:
    with pytest.raises(InvalidParams, match="cmd"):
        box.run([])
    with pytest.raises(ValueError, match="number of seconds"):
        box.run(["true"], timeout=-1)


def test_threads_run_side_by_side(box: Sandbox) -> None:
    meeting = threading.Barrier(8)

    def one(number: int) -> str:
        meeting.wait(10)
        return box.run(["sh", "-c", "sleep 0.2; echo $0", str(number)]).text.strip()

    before = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(8))) == [str(number) for number in range(8)]
    assert time.monotonic() - before < 8 * 0.2


def test_a_command_whose_output_may_be_large_ends_with_its_sandbox_too(podman_host: Host) -> None:
    with podman_host.start(lifetime=1) as box, pytest.raises(SandboxGone, match="ended with its sandbox"):
        box.run(["sleep", "1000"], output_limit="32m")


def test_after_its_end_it_is_gone(podman_host: Host) -> None:
    with podman_host.start() as box:
        pass
    box.close()
    for call in (lambda: box.run(["true"]), lambda: box.read("f"), box.reset, box.health, lambda: box.exec(["true"])):
        with pytest.raises(SandboxGone, match="it never was, or has ended"):
            call()
    assert issubclass(SandboxGone, FastclawError)


def test_a_command_that_ends_with_its_sandbox(podman_host: Host) -> None:
    with podman_host.start() as box, ThreadPoolExecutor(1) as thread:
        running = thread.submit(box.run, ["sleep", "100"])
        while [listed.live for listed in podman_host.list() if listed.environment == box.id] != [1]:
            time.sleep(0.01)  # nothing tells of it
        box.close()
        with pytest.raises(SandboxGone, match="ended with its sandbox") as gone:
            running.result(10)
        assert gone.value.done is not None
        assert gone.value.done.reason == "killed"


def test_a_command_that_a_reset_ends_is_an_outcome(podman_box: Sandbox, podman_host: Host) -> None:
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(podman_box.run, ["sleep", "100"])
        while [listed.live for listed in podman_host.list() if listed.environment == podman_box.id] != [1]:
            time.sleep(0.01)  # nothing tells of it
        podman_box.reset()
        assert running.result(10).reason == "killed"


def test_its_duration_is_what_it_took(box: Sandbox) -> None:
    started = time.monotonic()
    done = box.run(["sleep", "0.05"])
    assert 0.05 <= done.duration <= time.monotonic() - started


def test_a_parameter_that_is_none_is_refused(box: Sandbox) -> None:
    for call in (box.run, box.exec):
        with pytest.raises(TypeError, match="timout"):
            call("true", timout=1)  # type: ignore[call-arg] # what is tested
