"""`fastclaw run` as a real process: the command's streams and exit code, and nothing left of it."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import secrets
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.cli.run import _exit_code as exit_code_of
from fastclaw.limits import SHUTDOWN_TIMEOUT_MS
from fastclaw.linux import proc
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.runtime import ExitRecord
from tests.cli.programs import DEADLINE_S, FASTCLAW, Call, assert_one_line, fastclaw
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine_fixtures import EngineService

MARKER = "FASTCLAW_TEST_MARK"
BULK = 8 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


class Runner:
    """`fastclaw run` on one runtime; whatever runs on its behalf carries a marker.

    Attributes:
        mark: value of the marker.
    """

    def __init__(self, *options: str) -> None:
        self.mark = secrets.token_hex(8)
        self.argv = [*FASTCLAW, "run", *options, f"-oenv={json.dumps({MARKER: self.mark})}"]
        self.env = {**os.environ, MARKER: self.mark}

    def __call__(self, *command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """To its end."""
        return fastclaw(*command, command=self.argv, env=self.env, **options)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Started only."""
        return subprocess.Popen([*self.argv, *command], env=self.env, bufsize=0, **options)

    def left(self) -> list[int]:
        """Processes of ours that still run."""
        return [row.pid for row in proc.scan(MARKER) if row.marker == self.mark and not proc.is_podman_pause(row.pid)]


@pytest.fixture
def local() -> Iterator[Runner]:
    """On this host."""
    one = Runner("--runtime", "local")
    yield one
    assert one.left() == []


@pytest.fixture(scope="session", params=["local", pytest.param("podman", marks=pytest.mark.podman)])
def runtime_options(request: pytest.FixtureRequest) -> list[str]:
    """For each runtime; Podman is the shared engine."""
    if request.param == "local":
        return ["--runtime=local"]
    service: EngineService = request.getfixturevalue("engine_service")
    return ["--runtime=podman", f"--url={service.url}", f"--image={service.image}", "-ocontainers=1"]


@pytest.fixture
def run(runtime_options: list[str]) -> Iterator[Runner]:
    """On each runtime."""
    one = Runner(*runtime_options)
    yield one
    assert one.left() == []


def shell(script: str) -> list[str]:
    return ["--", "sh", "-c", script]


def own_words(stderr: bytes) -> bytes:
    """Without the log of the runtime."""
    return b"".join(line for line in stderr.splitlines(keepends=True) if b" WARNING fastclaw." not in line)


def read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + DEADLINE_S
    while wanted not in seen:
        assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], seen
        data = os.read(fd, 4096)
        assert data, seen
        seen += data
    return seen


@contextmanager
def started(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ended and closed in any case."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_streams_and_exit_code_are_passed_through(run: Runner) -> None:
    done = run(*shell("cat; echo to stderr >&2; exit 3"), input=b"some input\n")
    assert (done.returncode, done.stdout, own_words(done.stderr)) == (3, b"some input\n", b"to stderr\n")


IGNORED = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
"""As SSH daemons, launchers and managers of workers hand it down."""


def test_an_exit_code_is_true_where_whoever_started_us_ignores_its_children(local: Runner) -> None:
    """enricai/leerie PR 58, python/cpython#76296: every wait is ECHILD then, and the first result is made up."""
    local.argv = [sys.executable, "-c", IGNORED, *local.argv]
    began = time.monotonic()
    done = local(*shell("echo hi; exit 3"))
    assert (done.returncode, done.stdout, own_words(done.stderr)) == (3, b"hi\n", b"")
    assert time.monotonic() - began < SHUTDOWN_TIMEOUT_MS / 1000


@pytest.mark.podman
def test_what_a_killed_one_left_on_the_rest_lane_goes_with_the_next(engine_service: EngineService) -> None:
    """There the container has an init that does not end with fastclaw."""
    options = [f"--url={engine_service.url}", f"--image={engine_service.image}", "-ocontainers=1", "-olane=rest"]
    run = Runner("--runtime=podman", *options)
    with started(
        run.popen(*shell("echo up; exec sleep 1000"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ) as one:
        assert one.stdout is not None
        read_until(one.stdout.fileno(), b"up")
        (serve,) = map(int, Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split())
        os.kill(serve, signal.SIGKILL)
        assert one.wait(DEADLINE_S) != 0
    assert run.left() != [], "the command outlives it"
    other = Runner("--runtime=podman", *options)
    assert other("true", stdin=subprocess.DEVNULL).returncode == 0
    wait_until(lambda: run.left() == [])


def test_bulk_both_ways(run: Runner) -> None:
    data = os.urandom(BULK)
    done = run("--", "cat", input=data)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        (["-e", "A=b c", "--env", "E=", "-w", "/tmp", *shell('echo "$A|$E|$PWD"')], 0, b"b c||/tmp\n"),
        (shell("kill -9 $$"), 128 + signal.SIGKILL, b""),
        (["--timeout", "200", *shell("sleep 1000 & sleep 1000")], 128 + signal.SIGTERM, b""),
        pytest.param(["--user", "65534", "--", "id", "-u"], 0, b"65534\n", marks=needs_root),
        pytest.param(["--memory", "32m", "--pids", "9", "--", "tail", "/dev/zero"], 137, b"", marks=needs_root),
        pytest.param(["--cpus", "0.5", "--", "echo", "up"], 0, b"up\n", marks=needs_root),
    ],
)
def test_its_options_and_how_it_ends(run: Runner, words: list[str], code: int, out: bytes) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (code, out)


@pytest.mark.parametrize(("command", "code"), [("nonesuch", 127), ("/tmp", 126)])
def test_a_command_that_does_not_start_is_what_a_shell_says(run: Runner, command: str, code: int) -> None:
    done = run("--", command)
    assert (done.returncode, done.stdout) == (code, b"")
    assert command in assert_one_line(own_words(done.stderr))


def test_other_failures_of_a_start_are_125(local: Runner) -> None:
    done = local("-w", "/nonexistent", "--", "true")
    assert done.returncode == 125
    assert "/nonexistent" in assert_one_line(own_words(done.stderr))


def test_a_loop_keeps_its_input(local: Runner) -> None:
    """podman-container-tools/podman#24370: the first command of a loop took the lines of all the others."""
    loop = 'printf "a\\nb\\n" | while read -r line; do "$@" echo "got $line"; done'
    done = fastclaw(*local.argv, "-n", "--", command=["sh", "-c", loop, "sh"], env=local.env)
    assert done.stdout == b"got a\ngot b\n"


@pytest.mark.parametrize("tty", [(), ("-t",)])
def test_stdin_that_is_left_alone(run: Runner, tty: tuple[str, ...]) -> None:
    """It stays open and full, and the command has an empty one at once."""
    reading, writing = os.pipe()
    os.write(writing, b"theirs\n")
    done = run("-n", *tty, *shell("readlink /proc/self/fd/0; cat; exit 3"), stdin=reading)
    assert (done.returncode, done.stdout.split()) == (3, [b"/dev/null"])
    assert os.read(reading, 100) == b"theirs\n"
    os.close(reading)
    os.close(writing)


def test_input_from_a_file_and_output_to_one(local: Runner, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        done = local("--", "cat", capture_output=False, stdin=source, stdout=sink)
    assert done.returncode == 0
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_a_standard_descriptor_that_is_closed_stands_for_nothing(local: Runner, closed: str) -> None:
    words = [*local.argv, *shell("cat; echo out; exit 4")]
    done = fastclaw(*words, command=["sh", "-c", f'"$@" {closed}', "sh"], env=local.env)
    assert (done.returncode, done.stdout) == (4, b"" if "1>" in closed else b"out\n")


def test_input_that_ends_later_than_the_command(local: Runner) -> None:
    with started(local.popen("--", "true", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)) as process:
        assert process.wait(DEADLINE_S) == 0


def test_a_command_that_does_not_read_its_input(local: Runner) -> None:
    assert local("--", "echo", "x", input=os.urandom(BULK)).stdout == b"x\n"


def test_a_conversation(local: Runner) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with started(local.popen("--", "cat", **pipes)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            assert read_until(process.stdout.fileno(), b"\n") == line
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(DEADLINE_S) == 0


def test_the_descriptors_that_we_share_stay_blocking(local: Runner) -> None:
    """One socket for all three, as under inetd or a supervisor of its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert (
            fastclaw(
                *shell("echo x"), command=local.argv, env=local.env, stdin=theirs, capture_output=False, stdout=theirs
            ).returncode
            == 0
        )
        assert os.get_blocking(theirs.fileno())
        assert ours.recv(10) == b"x\n"


@pytest.mark.parametrize("endless", ["yes", "yes >&2"])
def test_a_reader_that_leaves_ends_the_command(run: Runner, endless: str) -> None:
    reading, writing = os.pipe()
    name = "stderr" if "2" in endless else "stdout"
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, name: writing}
    with started(run.popen(*shell(endless), stdin=subprocess.DEVNULL, **streams)) as process:
        os.close(writing)
        read_until(reading, b"y\n")
        os.close(reading)
        assert process.wait(DEADLINE_S) == 128 + signal.SIGPIPE


def test_output_that_a_full_disk_does_not_take_is_said_to_be_lost(run: Runner) -> None:
    """It ended without a word, as if nobody had wanted it."""
    with Path("/dev/full").open("wb") as full:
        process = run.popen(*shell("yes"), stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
        with started(process):
            _, said = process.communicate(timeout=DEADLINE_S)
    assert said.splitlines()[-1] == b"fastclaw: output is lost: No space left on device"
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command(local: Runner, signum: signal.Signals) -> None:
    with started(popen_ready(local, "echo ready; exec sleep 1000")) as process:
        process.send_signal(signum)
        assert process.wait(DEADLINE_S) == 128 + signum


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(local: Runner) -> None:
    """containers/crun#2058, ralphlange/procServ#48 and what nohup(1) is for; the command itself ignores nothing."""
    local.argv = ["sh", "-c", 'trap "" HUP INT TERM; exec "$@"', "sh", *local.argv]
    ignored = 'grep -c "^SigIgn:.*[1-9a-f]" /proc/self/status'
    script = f'echo ready; read -r line; echo "got $line"; {ignored}; exit 4'
    with started(popen_ready(local, script, stdin=subprocess.PIPE)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            process.send_signal(signum)
        process.stdin.write(b"it\n")
        assert process.stdout.read() == b"got it\n0\n"
        assert process.wait(DEADLINE_S) == 4


def popen_ready(run: Runner, script: str, **options: Any) -> subprocess.Popen[bytes]:
    """A process that has written `ready`."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
    process = run.popen(*shell(script), stdout=subprocess.PIPE, **given)
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"ready\n")
    return process


def test_control_c_goes_to_the_whole_group_and_all_is_ended(run: Runner) -> None:
    """The runtime must not get it too: it would go before it has ended the command in good order."""
    script = "trap 'echo asked; exit 0' TERM; sleep 1000 & echo ready; wait"
    with started(popen_ready(run, script, start_new_session=True, stderr=subprocess.PIPE)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == b"asked\n"
        assert own_words(process.stderr.read()) == b""
        assert process.wait(DEADLINE_S) == 128 + signal.SIGINT


def test_a_second_control_c_does_not_wait_for_the_grace(local: Runner) -> None:
    options = ["-okill_grace_ms=600000"]
    script = "trap 'echo no' TERM; echo ready; while :; do sleep 0.1; done"
    pipe = subprocess.PIPE
    with started(local.popen(*options, *shell(script), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"ready\n")
        process.send_signal(signal.SIGINT)
        read_until(process.stdout.fileno(), b"no\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 128 + signal.SIGINT


def test_control_c_before_the_command_runs(local: Runner, tmp_path: Path) -> None:
    """An engine that accepts and never answers holds the start."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "e"))
        listener.listen()
        runner = Runner("--runtime=podman", f"--url=unix://{tmp_path}/e")
        with started(runner.popen("--", "true", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)) as process:
            listener.settimeout(DEADLINE_S)
            asked, _ = listener.accept()
            process.send_signal(signal.SIGINT)
            asked.close()
            assert process.wait(DEADLINE_S) == 128 + signal.SIGINT
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()
        assert runner.left() == []


class OnTerminal:
    """`fastclaw run` on a terminal of ours.

    Attributes:
        master: our side of it.
    """

    def __init__(self, runner: Runner, *words: str) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            termios.tcsetwinsize(0, (33, 77))
            env = {**runner.env, "TERM": "vt220"}
            os.execvpe(runner.argv[0], [*runner.argv, *words], env)
        self.before = termios.tcgetattr(self.master)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.master)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def exit_code(self) -> int:
        """Once it has ended and given the terminal back."""
        pidfd = os.pidfd_open(self.pid)
        assert select.select([pidfd], [], [], DEADLINE_S)[0]
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert termios.tcgetattr(self.master) == self.before
        return code


@contextmanager
def on_terminal(runner: Runner, *words: str) -> Iterator[OnTerminal]:
    made = OnTerminal(runner, *words)
    try:
        yield made
    finally:
        os.close(made.master)


def test_a_terminal_from_ours(run: Runner) -> None:
    with on_terminal(run, "-t", *shell("echo $TERM; stty size; read line; echo got $line; exit 7")) as ours:
        assert b"vt220\r\n33 77\r\n" in read_until(ours.master, b"33 77\r\n")
        assert ours.is_raw()
        os.write(ours.master, b"word\r")
        assert b"word\r\ngot word\r\n" in read_until(ours.master, b"got word\r\n")
        assert ours.exit_code() == 7
        assert not ours.is_raw()


def test_control_c_on_a_terminal_that_stays_ours(local: Runner) -> None:
    with on_terminal(local, *shell("echo ready; exec sleep 1000")) as ours:
        read_until(ours.master, b"ready")
        os.write(ours.master, b"\x03")
        assert ours.exit_code() == 128 + signal.SIGINT


def test_a_window_that_changes(run: Runner) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 1 & wait; done"
    with on_terminal(run, "-t", *shell(script)) as ours:
        read_until(ours.master, b"ready")
        termios.tcsetwinsize(ours.master, (50, 132))
        read_until(ours.master, b"50 132")
        assert ours.exit_code() == 0


def test_control_c_is_the_command_s_on_its_own_terminal(run: Runner) -> None:
    with on_terminal(
        run, "-t", *shell("trap 'echo mine; exit 5' INT; echo ready; while :; do sleep 1 & wait; done")
    ) as ours:
        read_until(ours.master, b"ready")
        os.write(ours.master, b"\x03")
        read_until(ours.master, b"mine")
        assert ours.exit_code() == 5


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_gives_the_terminal_back(local: Runner, signum: signal.Signals) -> None:
    with on_terminal(local, "-t", *shell("echo ready; exec sleep 1000")) as ours:
        read_until(ours.master, b"ready")
        assert ours.is_raw()
        os.kill(ours.pid, signum)
        assert ours.exit_code() == 128 + signum


def test_a_runtime_that_dies_gives_the_terminal_back(local: Runner, short_dir: Path) -> None:
    local.env["XDG_RUNTIME_DIR"] = str(short_dir)  # where its sockets stay
    with on_terminal(local, "-t", *shell("echo ready; exec sleep 1000")) as ours:
        read_until(ours.master, b"ready")
        for pid, _ in proc.children(ours.pid):
            os.kill(pid, signal.SIGKILL)
        read_until(ours.master, b"exited with code -9")
        assert ours.exit_code() == 125
    wait_until(lambda: not local.left())


def test_a_command_that_does_not_start_leaves_the_terminal_alone(local: Runner) -> None:
    with on_terminal(local, "-t", "--", "/no/such/program") as ours:
        read_until(ours.master, b"No such file")
        assert not ours.is_raw()
        assert ours.exit_code() == 127


def test_a_terminal_without_one_here(run: Runner) -> None:
    done = run(
        "-t", *shell("test -t 0 && test -t 1 && test -t 2 && stty size; cat; echo err >&2; exit 3"), input=b"in\n"
    )
    assert (done.returncode, own_words(done.stderr)) == (3, b"")
    lines = done.stdout.split(b"\r\n")
    assert b"24 80" in lines
    assert lines.count(b"in") == 2  # typed and shown, read and written
    assert lines[-2:] == [b"err", b""]


def test_a_terminal_on_a_lane_without_them_is_one_line() -> None:
    done = fastclaw("run", "--runtime", "memory", "-t", "--", "true")
    assert done.returncode == 125
    assert "$.tty" in assert_one_line(done.stderr)


def test_a_runtime_that_dies_is_one_line(local: Runner) -> None:
    with started(popen_ready(local, "echo ready; sleep 1000", stderr=subprocess.PIPE)) as process:
        [served] = [pid for pid, _ in proc.children(process.pid)]
        os.kill(served, signal.SIGKILL)
        assert process.wait(DEADLINE_S) == 125
        assert process.stderr is not None
        assert "exited with code -9" in assert_one_line(own_words(process.stderr.read()))
    wait_until(lambda: not local.left())
    SocketDirectory().close()  # the next start removes the directory that the dead one left


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["-o", "max_proceses=1"], 125, "max_processes"),
        (["-o", "containers=0"], 125, "options.containers"),
        (["-o", "containers"], 2, "NAME=JSON"),
        (["-e", "A"], 2, "NAME=VALUE"),
        (["--runtime", "vm"], 2, "vm"),
        (["--timeout", "0"], 2, "--timeout"),
        (["--memory", "much"], 2, "is no size"),
        (["--pids", "0"], 2, "--pids"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_a_wrong_option_is_one_line(call: Call, options: list[str], code: int, says: str) -> None:
    done = call("run", *options, "--", "true")
    assert (done.returncode, done.stdout) == (code, b"")
    assert says in assert_one_line(done.stderr)


@pytest.mark.parametrize(("url", "says"), [("unix:///none/socket", "no engine answers"), ("nonsense://x", "nonsense")])
def test_an_engine_that_is_not_there_is_one_line(url: str, says: str) -> None:
    done = fastclaw("run", "--runtime=podman", "--url", url, "--", "true")
    assert (done.returncode, done.stdout) == (125, b"")
    assert says in assert_one_line(done.stderr)


def test_options_after_the_command_are_its_own(local: Runner) -> None:
    assert local("echo", "-e", "A=b", "--runtime", "--", "-w").stdout in (
        b"A=b --runtime -- -w\n",
        b"-e A=b --runtime -- -w\n",
    )


def test_an_image_that_is_not_there(engine_service: EngineService) -> None:
    done = fastclaw(
        "run", "--runtime=podman", "--url", engine_service.url, "--image=localhost/none", "-opull=never", "true"
    )
    assert done.returncode == 125
    assert "localhost/none" in assert_one_line(own_words(done.stderr))


def test_what_a_command_leaves_running_holds_nobody(run: Runner) -> None:
    began = time.monotonic()
    done = run(*shell("sleep 1000 & echo up"))
    assert (done.returncode, done.stdout, own_words(done.stderr)) == (0, b"up\n", b"")
    assert time.monotonic() - began < DEADLINE_S / 2


def test_all_of_the_last_output_comes_through_a_slow_reader(local: Runner) -> None:
    with started(local.popen(*shell("sleep 1000 & head -c 300000 /dev/zero"), stdout=subprocess.PIPE)) as process:
        time.sleep(1)  # the drain's own time, and more, in which nobody reads
        assert process.stdout is not None
        assert len(process.stdout.read()) == 300_000
        assert process.wait(DEADLINE_S) == 0


def test_out_of_memory_is_said_beside_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """decocms/studio PR 6059: 137 and no word."""
    memory = {"limit_bytes": 64, "peak_bytes": 60}
    told = ExitRecord(process_id="p", state="exited", signal=9, reason="oom", oom_kills=1, memory=memory)
    assert exit_code_of(told) == 128 + signal.SIGKILL
    assert capsys.readouterr().err == "fastclaw: the command was killed: out of memory; the limit is 64 bytes\n"
