"""Processes that go on, with their streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed, InvalidParams
from fastclaw.sandbox import SandboxGone

if TYPE_CHECKING:
    from fastclaw.sandbox.sync import Host, Sandbox


def test_streams_are_used_as_those_of_any_process(box: Sandbox) -> None:
    with box.exec('while read -r line; do echo "got $line"; echo err >&2; done; exit 5') as process:
        process.stdin.write("one\n")
        assert process.stdout.readline() == b"got one\n"
        process.stdin.write(b"two\nthree\n")
        assert process.stdout.readline() == b"got two\n"
        process.stdin.close()
        assert list(process.stdout) == [b"got three\n"]
        assert process.stderr.read() == b"err\n" * 3
        done = process.wait(10)
        assert (done.exit_code, done.reason) == (5, "exited")
        assert "exit code 5" in repr(process)


def test_reading_takes_what_there_is(box: Sandbox) -> None:
    with box.exec("printf 123456; cat") as process:
        assert process.stdout.read(3) == b"123"
        assert process.stdout.read(0) == b""
        assert process.stdout.read(100) == b"456"
        process.stdin.write(b"7\n8")
        process.stdin.close()
        assert process.stdout.readline() == b"7\n"
        assert process.stdout.read() == b"8"
        assert process.stdout.read(1) == process.stdout.readline() == process.stdout.read() == b""


def test_a_line_that_does_not_end_comes_in_pieces(box: Sandbox) -> None:
    with box.exec("head -c 200000 /dev/zero; echo") as process:
        lines = list(process.stdout)
    assert b"".join(lines) == b"\0" * 200000 + b"\n"
    assert [len(line) for line in lines] == [65536, 65536, 65536, 200001 - 3 * 65536]


def test_who_is_left_is_killed(box: Sandbox) -> None:
    with box.exec("sleep 100 & echo $!; wait") as process:
        child = process.stdout.readline().decode().strip()
        assert box.run(f"kill -0 {child}").ok
    assert not box.run(f"kill -0 {child}").ok
    assert process.wait(10).reason == "killed"
    process.close()


def test_what_a_process_left_running_goes_on_where_that_is_left_too(box: Sandbox) -> None:
    process = box.exec("sleep 100 </dev/null >/dev/null 2>&1 & echo $!")
    child = process.stdout.read().decode().strip()
    assert process.wait(10).exit_code == 0
    process.leave()
    process.leave()
    assert box.run(f"kill -0 {child}").ok
    process.kill(0)
    assert not box.run(f"kill -0 {child}").ok


def test_waiting_has_an_end(box: Sandbox) -> None:
    with box.exec(["sleep", "100"]) as process:
        with pytest.raises(TimeoutError, match=r"runs still after 0\.01 s"):
            process.wait(0.01)
        process.signal("INT")
        assert process.wait(10).signal == 2


def test_who_reads_no_more_is_a_broken_pipe(box: Sandbox) -> None:
    with box.exec("exec 0<&-; echo closed; sleep 100") as process:
        assert process.stdout.readline() == b"closed\n"
        with pytest.raises(BrokenPipeError):
            process.stdin.write(b"x" * (8 << 20))


def test_a_terminal(box: Sandbox) -> None:
    with box.exec("stty size; read x; stty size; test -t 1", tty=True, size=(33, 99)) as process:
        assert process.stdout.readline() == b"33 99\r\n"
        process.resize(44, 111)
        process.stdin.write("\n")
        assert process.stdout.read().splitlines() == [b"", b"44 111"]
        assert process.wait(10).exit_code == 0


def test_kill_and_its_grace(box: Sandbox) -> None:
    with box.exec("trap 'echo tidied; exit 9' TERM; echo up; while :; do sleep 0.01; done") as process:
        process.stdout.readline()
        process.kill(grace=10)
        assert process.stdout.read() == b"tidied\n"
        assert process.wait().exit_code == 9


def test_its_time_ends(box: Sandbox) -> None:
    with box.exec(["sleep", "100"], timeout=0.1) as process:
        assert process.wait(10).reason == "timeout"


def test_a_process_whose_sandbox_has_ended_says_so(podman_host: Host) -> None:
    with podman_host.start() as box, box.exec(["cat"]) as process, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(process.wait)
        box.close()
        with pytest.raises(SandboxGone):
            waiting.result(10)
        for call in (process.wait, process.kill, process.stdout.read, lambda: process.signal("INT")):
            with pytest.raises(SandboxGone, match="ended with its sandbox"):
                call()


def test_what_does_not_start_is_an_error(box: Sandbox) -> None:
    with pytest.raises(ExecFailed, match="No such file"):
        box.exec(["nonesuch"])
    with pytest.raises(InvalidParams):
        box.exec([])
