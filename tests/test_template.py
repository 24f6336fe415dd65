"""The template module by itself, over its socket: what a worker is, how it ends, and what is refused."""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from fastclaw import limits, template
from fastclaw.spawner import frames
from tests.balance import children

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 20.0
ENV = {"PATH": os.environ["PATH"], "HOME": "/", "LANG": "C.UTF-8"}
COMMAND = [sys.executable, "-m", "fastclaw.template"]


class Ended(NamedTuple):
    """`status`: as os.waitpid has it."""

    status: int
    out: bytes
    err: bytes


class Worker:
    """One that waits for its byte. It falls to the test, which is a subreaper in this file."""

    def __init__(self, pid: int, go: int, stdin: int, out: int, err: int) -> None:
        self.pid, self.stdin, self.out, self.err = pid, stdin, out, err
        self._go = go

    def go(self) -> None:
        os.write(self._go, frames.TEMPLATE_GO)
        os.close(self._go)

    def drop(self) -> None:
        os.close(self._go)

    def finish(self, stdin: bytes = b"") -> Ended:
        """Everything it wrote, and its end."""
        os.write(self.stdin, stdin)
        os.close(self.stdin)
        out, err = read_all(self.out, self.err)
        return Ended(os.waitpid(self.pid, 0)[1], out, err)


def read_all(*fds: int) -> list[bytes]:
    """Up to the end of each; closes them."""
    data = dict.fromkeys(fds, b"")
    left = set(fds)
    while left:
        ready, _, _ = select.select(list(left), [], [], PATIENCE_S)
        assert ready, "nothing comes any more"
        for fd in ready:
            part = os.read(fd, 65_536)
            data[fd] += part
            if not part:
                left.discard(fd)
                os.close(fd)
    return [data[fd] for fd in fds]


class Driver:
    """Fastclaw's side of a template."""

    def __init__(self, *cmd: str, env: dict[str, str] | None = None) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(PATIENCE_S)
        with theirs:
            variables = {**ENV, **(env or {}), frames.TEMPLATE_FD_VARIABLE: str(theirs.fileno())}
            self.process = subprocess.Popen(cmd, pass_fds=[theirs.fileno()], env=variables, stderr=subprocess.PIPE)
        self.id = 0

    def hear(self) -> frames.TemplateReady | frames.WorkerForked | frames.WorkerFailed:
        return frames.parse_template(self.control.recv(template.FRAME_BYTES))

    def ask(
        self, *argv: str, stdin: bool = True, **more: Any
    ) -> tuple[frames.WorkerForked | frames.WorkerFailed, Worker]:
        self.id += 1
        pipes = [os.pipe() for _ in range(4)]
        (waits, go), (into, stdin_end), (out, out_end), (err, err_end) = pipes
        request = frames.template_request(self.id, argv, {**ENV, **more.pop("env", {})}, **more)
        fds = [waits, *([into] if stdin else []), out_end, err_end]
        if len(request) > limits.SPAWN_FRAME_BYTES:  # as a pump hands it on
            file = os.memfd_create("test")
            os.write(file, request)
            fds.append(file)
            request = b'{"spilled": %d}' % len(request)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self.control.sendmsg([request], rights)
        for fd in {*fds, into}:
            os.close(fd)
        told = self.hear()
        assert not isinstance(told, frames.TemplateReady)
        return told, Worker(getattr(told, "pid", 0), go, stdin_end, out, err)

    def run(self, *argv: str, given: bytes = b"", **more: Any) -> Ended:
        told, worker = self.ask(*argv, **more)
        assert isinstance(told, frames.WorkerForked), told
        worker.go()
        return worker.finish(given)

    def fail(self, *argv: str, **more: Any) -> frames.WorkerFailed:
        others = children()
        told, worker = self.ask(*argv, **more)
        worker.drop()
        os.close(worker.stdin)
        assert read_all(worker.out, worker.err) == [b"", b""]
        assert isinstance(told, frames.WorkerFailed)
        for fallen in children() - others:
            os.waitpid(fallen, 0)
        return told

    def close(self) -> tuple[int, bytes]:
        """Let go of it: exit code and stderr."""
        self.control.close()
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err


@contextmanager
def driven(*cmd: str, env: dict[str, str] | None = None) -> Iterator[Driver]:
    driver = Driver(*(cmd or COMMAND), env=env)
    try:
        assert driver.hear() == frames.TemplateReady()
        yield driver
    finally:
        assert driver.close() == (0, b"")


@pytest.fixture(scope="module", autouse=True)
def orphans_are_ours() -> Iterator[None]:
    """As a reaper has it."""
    template._prctl(template._PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    template._prctl(template._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def python() -> Iterator[Driver]:
    with driven() as driver:
        yield driver


SEEN = """
import json, os, resource, signal, sys, threading
print(json.dumps({
    "argv": sys.argv, "env": dict(os.environ), "cwd": os.getcwd(), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
    "fds": [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")],
    "leads": os.getsid(0) == os.getpid() == os.getpgrp(), "threads": threading.active_count(),
    "inter": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "masked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "name": __name__, "path": sys.path[0],
}))
"""


def test_a_worker_is_what_was_asked_for(python: Driver, tmp_path: Path) -> None:
    ended = python.run("python", "-c", SEEN, "a", "b c", env={"ONE": "1"}, cwd=str(tmp_path), rlimits=[(7, 77)])
    assert (ended.status, ended.err) == (0, b"")
    assert json.loads(ended.out) == {
        "argv": ["-c", "a", "b c"],
        "env": {**ENV, "ONE": "1"},
        "cwd": str(tmp_path),
        "nofile": [77, 77],
        "fds": [0, 1, 2],
        "leads": True,
        "threads": 1,
        "inter": True,
        "term": True,
        "masked": 0,
        "name": "__main__",
        "path": "",
    }


def test_all_three_streams(python: Driver) -> None:
    code = "import sys; print(sys.stdin.read().upper()); print('bad', file=sys.stderr)"
    assert python.run("python", "-c", code, given=b"in\xc3\xa9") == Ended(0, "INÉ\n".encode(), b"bad\n")
    assert python.run("python", "-c", "print(len(input().encode()))", given=b"x" * 9) == Ended(0, b"9\n", b"")


def test_without_stdin_it_reads_nothing(python: Driver) -> None:
    told, worker = python.ask("python", "-c", "import sys; print(repr(sys.stdin.read()))", stdin=False)
    assert isinstance(told, frames.WorkerForked)
    worker.go()
    os.close(worker.stdin)
    assert read_all(worker.out, worker.err) == [b"''\n", b""]
    assert os.waitpid(worker.pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("code", "exit_code", "err"),
    [
        ("pass", 0, b""),
        ("import sys; sys.exit(7)", 7, b""),
        ("import sys; sys.exit(-1)", 255, b""),
        ("import sys; sys.exit(256)", 0, b""),
        ("import sys; sys.exit('words')", 1, b"words\n"),
        ("raise SystemExit", 0, b""),
        ("import os; os._exit(9)", 9, b""),
        ("import atexit; atexit.register(print, 'late', file=__import__('sys').stderr)", 0, b"late\n"),
        ("import sys; sys.stderr.write('no line'); print('x')", 0, b"no line"),
        ("import sys; sys.excepthook = lambda *e: sys.stderr.write('own'); 1 / 0", 1, b"own"),
    ],
)
def test_it_ends_as_an_interpreter_does(python: Driver, code: str, exit_code: int, err: bytes) -> None:
    ended = python.run("python", "-c", code)
    assert (os.waitstatus_to_exitcode(ended.status), ended.err) == (exit_code, err)
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=ENV)
    assert (fresh.returncode, fresh.stdout, fresh.stderr) == (exit_code, ended.out, err)


def test_a_traceback_has_nothing_of_the_template(python: Driver, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("def deep():\n    raise KeyError('here')\n\n\ndeep()\n")
    ended = python.run("python", str(script))
    fresh = subprocess.run([sys.executable, str(script)], capture_output=True, check=False, env=ENV)
    assert (os.waitstatus_to_exitcode(ended.status), ended.err) == (fresh.returncode, fresh.stderr)
    assert b"template" not in ended.err


def test_what_is_still_open_is_written(python: Driver, tmp_path: Path) -> None:
    path = tmp_path / "late"
    assert python.run("python", "-c", f"file = open({str(path)!r}, 'w'); file.write('all')").status == 0
    assert path.read_text() == "all"


def test_a_thread_is_waited_for(python: Driver) -> None:
    code = "import threading, os; r, w = os.pipe(); t = threading.Thread(target=lambda: (os.read(r, 1), print('done')))"
    assert python.run("python", "-c", f"{code}; t.start(); os.write(w, b'x')") == Ended(0, b"done\n", b"")


def test_an_interrupt_ends_it_by_its_signal(python: Driver) -> None:
    code = "import atexit, os, signal; atexit.register(print, 'late'); os.kill(os.getpid(), signal.SIGINT)"
    ended = python.run("python", "-c", code)
    assert (os.waitstatus_to_exitcode(ended.status), ended.out) == (-signal.SIGINT, b"late\n")
    assert ended.err.endswith(b"KeyboardInterrupt\n")


def test_a_closed_output_is_told_as_an_interpreter_does(python: Driver) -> None:
    code = "import os; print('x'); os.close(1)"
    ended = python.run("python", "-c", code)
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=ENV)
    first, *_, last = ended.err.splitlines()
    assert (os.waitstatus_to_exitcode(ended.status), [first, last]) == (fresh.returncode, fresh.stderr.splitlines())


def test_a_script_is_the_main_module(python: Driver, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import __main__; print(__main__.__file__, __main__.VALUE)\n")
    script = tmp_path / "script.py"
    script.write_text("import sys\nVALUE = 3\nimport beside\nprint(__name__, sys.argv, __file__)\n")
    expected = f"{script} 3\n__main__ ['{script}', 'x'] {script}\n"
    assert python.run("python", str(script), "x").out.decode() == expected


def test_a_module_is_run(python: Driver, tmp_path: Path) -> None:
    (tmp_path / "some_module.py").write_text("import sys; print(__name__, sys.argv[1:], sys.path[0])\n")
    ended = python.run("python", "-m", "some_module", "x", cwd=str(tmp_path))
    assert ended == Ended(0, f"__main__ ['x'] {tmp_path}\n".encode(), b"")
    missing = python.run("python", "-mno_such_module")
    assert (os.waitstatus_to_exitcode(missing.status), missing.err) == (
        1,
        f"{sys.executable}: No module named no_such_module\n".encode(),
    )


def test_a_directory_is_run(python: Driver, tmp_path: Path) -> None:
    (tmp_path / "__main__.py").write_text("import sys; print(sys.argv, sys.path[0])\n")
    assert python.run("python", str(tmp_path), "x").out.decode() == f"['{tmp_path}', 'x'] {tmp_path}\n"


@pytest.mark.parametrize("words", [[], ["-"]])
def test_a_program_from_stdin(python: Driver, words: list[str]) -> None:
    assert python.run("python", *words, given=b"print(6 * 7)").out == b"42\n"


@pytest.mark.parametrize("words", [["-u", "-c"], ["-uc"], ["-Buc"]])
def test_options(python: Driver, words: list[str]) -> None:
    code = "import os, sys; sys.stdout.write('at once'); os._exit(0)"
    assert python.run("python", *words, code).out == b"at once"
    assert python.run("python", "-c", code).out == b""
    assert python.run("python", "-c", code, env={"PYTHONUNBUFFERED": "1"}).out == b"at once"


def test_what_cannot_be_run(python: Driver) -> None:
    for words, err in (
        (["-X", "dev"], b"cannot have the option -X"),
        (["/no/such.py"], b"can't open file '/no/such.py': [Errno 2] No such file or directory"),
    ):
        ended = python.run("python", *words)
        assert (os.waitstatus_to_exitcode(ended.status), err in ended.err) == (2, True)


def test_pythonpath_is_the_requests(python: Driver, tmp_path: Path) -> None:
    (tmp_path / "only_there.py").write_text("print('there')")
    env = {"PYTHONPATH": str(tmp_path)}
    assert python.run("python", "-c", "import only_there", env=env).out == b"there\n"
    assert python.run("python", "-c", "import only_there").status != 0


def test_bytes_that_are_no_utf8_and_long_requests(python: Driver) -> None:
    code = "import os, sys; print(os.environb[b'RAW'], len(sys.argv[1]), os.fsencode(sys.argv[2]))"
    raw = os.fsdecode(b"\xff\xfe")
    ended = python.run("python", "-c", code, "x" * 2 * template.FRAME_BYTES, raw, env={"RAW": raw})
    assert ended == Ended(0, b"b'\\xff\\xfe' 131072 b'\\xff\\xfe'\n", b"")


@pytest.mark.parametrize(
    ("more", "step", "errno"),
    [({"cwd": "/no/such"}, "cwd", 2), ({"cwd": "/etc/passwd"}, "cwd", 20), ({"rlimits": [(7, 2**40)]}, "limits", 1)],
)
def test_what_cannot_be_had_is_told_before_it_starts(python: Driver, more: Any, step: str, errno: int) -> None:
    assert python.fail("python", "-c", "print(1)", **more) == frames.WorkerFailed(python.id, errno, step)
    assert python.run("python", "-c", "print(1)").out == b"1\n"


def test_it_does_nothing_before_it_may_and_goes_if_nobody_wants_it(python: Driver) -> None:
    told, worker = python.ask("python", "-c", "print(1)")
    assert isinstance(told, frames.WorkerForked)
    assert select.select([worker.out], [], [], 0.05)[0] == []
    assert sorted(map(int, os.listdir(f"/proc/{worker.pid}/fd")))[:3] == [0, 1, 2]
    assert len(os.listdir(f"/proc/{worker.pid}/fd")) == 4
    assert os.getsid(worker.pid) == os.getsid(python.process.pid)
    worker.drop()
    assert worker.finish() == Ended(0, b"", b"")


def test_a_worker_keeps_what_it_starts(python: Driver) -> None:
    """It is a subreaper, so that an orphan of its own does not fall to the reaper while it lives."""
    code = """if True:
        import os
        if os.fork() == 0:
            if os.fork() == 0:
                os.setsid()
            os._exit(0)
        ended = {os.wait()[0], os.wait()[0]}
        print(len(ended))
    """
    assert python.run("python", "-c", code) == Ended(0, b"2\n", b"")


def test_many_forks_leave_nothing_in_the_template(python: Driver) -> None:
    def held() -> list[str]:
        return sorted(os.listdir(f"/proc/{python.process.pid}/fd"))

    before = held()
    for _ in range(50):
        assert python.run("python", "-c", "").status == 0
    assert held() == before
    with open(f"/proc/{python.process.pid}/task/{python.process.pid}/children") as listed:
        assert listed.read() == ""


# --- what is loaded, and programs of one's own ---


def test_what_is_preloaded_is_there_already() -> None:
    with driven(*COMMAND, "-i", "decimal", "-i", "sqlite3") as driver:
        code = "import sys; print('decimal' in sys.modules, 'sqlite3' in sys.modules, 'unittest' in sys.modules)"
        assert driver.run("python", "-c", code).out == b"True True False\n"


def test_workers_do_not_share_their_chance() -> None:
    with driven(*COMMAND, "-i", "random", "-i", "uuid") as driver:
        code = "import random, uuid; print(random.random(), uuid.uuid4())"
        assert driver.run("python", "-c", code).out != driver.run("python", "-c", code).out


PROGRAM = """
import sys
import {path}template as template
loaded = ["x"]
print("said by the template")  # buffered: it must not come out of every worker again

def main(argv):
    print(argv, sys.argv, loaded, __name__)
    return len(argv)

template.serve(main)
"""


@pytest.mark.parametrize("path", ["fastclaw.", ""])
def test_a_program_of_ones_own(tmp_path: Path, path: str) -> None:
    """Also with the module as the one file that it is."""
    if not path:
        (tmp_path / "template.py").symlink_to(template.__file__)
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(path=path).replace("import template as template", "import template"))
    with driven(sys.executable, str(script)) as driver:
        ended = driver.run("any", "thing")
        assert (os.waitstatus_to_exitcode(ended.status), ended.err) == (2, b"")
        assert ended.out == b"['any', 'thing'] ['any', 'thing'] ['x'] __main__\n"


@pytest.mark.parametrize(
    ("words", "err"),
    [
        (["-i", "no_such_module"], "No module named 'no_such_module'"),
        (["-i"], "usage:"),
        (["what"], "usage:"),
        (["-i", "threaded"], "1 threads besides the main one"),
    ],
)
def test_a_template_that_cannot_be_one_says_why(tmp_path: Path, words: list[str], err: str) -> None:
    threaded = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    (tmp_path / "threaded.py").write_text(threaded)
    driver = Driver(*COMMAND, *words, env={"PYTHONPATH": str(tmp_path)})
    assert driver.control.recv(1) == b""
    code, said = driver.close()
    assert (code, err in said.decode()) == (1, True)


def test_a_thread_that_comes_later_is_told_at_each_fork(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import os, threading\nstop = threading.Event()\n"
        "os.register_at_fork(after_in_parent=lambda: threading.Thread(target=stop.wait, daemon=True).start())\n"
    )
    with driven(*COMMAND, "-i", "late", env={"PYTHONPATH": str(tmp_path)}) as driver:
        assert driver.run("python", "-c", "print(1)").out == b"1\n"
        assert driver.fail("python", "-c", "print(1)").step == "threads"


def test_without_fastclaw_it_says_what_it_is_for() -> None:
    done = subprocess.run(COMMAND, capture_output=True, check=False, env=ENV)
    assert (done.returncode, b"options.templates" in done.stderr) == (1, True)


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; import runpy"
    code += f"; runpy.run_path({template.__file__!r}, run_name='x'); print('fastclaw' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=True, cwd="/", env=ENV)
    assert done.stdout == b"False\n"
