"""Templates over the lane itself, with a real spawner: a forked worker is a process like any other, and nothing of it,
of its siblings or of its template is taken for another's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.decisions.options import Template
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.lane import Grace, StartSpec
from fastclaw.protocol import spawner as frames
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import SpawnLane
from fastclaw.spawn.process import SpawnProcess
from fastclaw.spawn.templates import Plans
from tests.balance import balanced, open_descriptors
from tests.spawn.fake_spawner import a_bare_host, children_of, descendants_of, has_not_ended, is_there, until
from tests.spawn.rig import close_streams, end, finish, needs_root, read_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PYTHON = Template(cmd=[sys.executable, "-m", "fastclaw.template"])
BOTH = Template(cmd=[sys.executable, "-m", "fastclaw.template"], env={"KIND": "other"})
READY_S = 30.0
MODULE = Path(__file__).parent.parent.parent / "fastclaw" / "template.py"


class Rig:
    """A lane on this host with its templates."""

    def __init__(self, home: HostHome, lane: SpawnLane) -> None:
        self.home, self.lane = home, lane

    async def start(self, code: str, *argv: str, template: str = "py", **more: Any) -> SpawnProcess:
        cmd = ["python", "-c", code, *argv]
        spec = StartSpec(process_id=uuid4().hex, cmd=cmd, template=template, **more)
        process = await self.lane.start(spec, 0)
        assert isinstance(process, SpawnProcess)
        return process

    async def run(self, code: str, *argv: str, given: bytes = b"", **more: Any) -> tuple[Any, bytes, bytes]:
        return await finish(await self.start(code, *argv, **more), given)

    async def running(self, code: str, **more: Any) -> tuple[SpawnProcess, list[int]]:
        """One that has printed numbers and waits, until it is ended."""
        process = await self.start(f"{code}\nsys.stdout.flush(); signal.pause()", **more)
        return process, [int(word) for word in (await line(process)).split()]

    @property
    def template_pid(self) -> int:
        (keeper,) = [keeper for keeper in children_of(self.home.pid) if children_of(keeper)]
        pids = [pid for pid in children_of(keeper) if "fastclaw.template" in cmdline(pid) and os.getsid(pid) == pid]
        return min(pids)

    def health(self, name: str = "py") -> Any:
        assert self.home.templates is not None
        return self.home.templates.health()[name]


def as_text(module: Path) -> str:
    """For an interpreter that may not read it where it is."""
    return module.read_text()


def cmdline(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as words:
        return words.read()
    return ""


async def line(process: SpawnProcess) -> bytes:
    """Up to the first newline."""
    data, ready, loop = b"", asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(process.stdout_fd, ready.set)
    try:
        async with asyncio.timeout(20):
            while not data.endswith(b"\n"):
                await ready.wait()
                ready.clear()
                with contextlib.suppress(BlockingIOError):
                    while not data.endswith(b"\n"):
                        data += os.read(process.stdout_fd, 1)
    finally:
        loop.remove_reader(process.stdout_fd)
    return data


@asynccontextmanager
async def a_rig(ready_s: float = READY_S, **templates: Template) -> AsyncIterator[Rig]:
    async with balanced():
        plans = Plans(templates or {"py": PYTHON}, base_env={"BASE": "b"}, working_dir=None, user=None, ready_s=ready_s)
        home = HostHome(plans)
        try:
            await home.start()
            yield Rig(home, SpawnLane(home, can_set_user=True))
        finally:
            await home.aclose()


SEEN = """
import json, os, signal, sys
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "in": sys.stdin.read(),
    "stdio": [os.fstat(fd).st_mode >> 12 for fd in range(3)],
    "env": {name: os.environ.get(name) for name in ("ONE", "BASE", "KIND", "HOME", "FASTCLAW_TEMPLATE_FD")},
    "fds": [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")],
    "again": open("/dev/stdout", "w").fileno() > 2,
}))
sys.stderr.write("bad")
sys.exit(7)
"""


async def test_a_worker_is_what_was_asked_for(tmp_path: Path) -> None:
    leak = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leak, True)
    async with a_rig(py=BOTH) as rig:
        status, out, err = await rig.run(SEEN, "x", given=b"in", env={"ONE": "1"}, working_dir=str(tmp_path))
        assert (status.reason, status.exit_code, err) == ("exited", 7, b"bad")
        env = {"ONE": "1", "BASE": None, "KIND": "other", "HOME": os.environ["HOME"], "FASTCLAW_TEMPLATE_FD": None}
        seen = {"argv": ["-c", "x"], "cwd": str(tmp_path), "in": "in", "stdio": [1] * 3, "fds": [0, 1, 2]}
        assert json.loads(out) == {**seen, "env": env, "again": True}
        assert set(status.usage) == {"user_us", "system_us", "max_rss_kb"}
        assert rig.health() == {"state": "ready", "forks": 1}
    os.close(leak)


async def test_the_environment_is_the_lanes_the_templates_and_the_requests() -> None:
    async with a_rig(py=BOTH) as rig:
        code = "import os; print(os.environ['A'], os.environ['KIND'], os.environ['FASTCLAW_PROCESS_ID'] != '')"
        base = {"A": "base", "KIND": "base"}
        assert (await rig.run(code, base_env=base))[1] == b"base other True\n"
        assert (await rig.run(code, base_env=base, env={"A": "r", "KIND": "r"}))[1] == b"r r True\n"


async def test_exit_codes_and_signals_are_exact() -> None:
    async with a_rig() as rig:
        codes = [0, 1, 126, 127, 255]
        found = await asyncio.gather(*(rig.run(f"import os; os._exit({code})") for code in codes))
        assert [(status.reason, status.exit_code) for status, _, _ in found] == [("exited", code) for code in codes]
        status, _, _ = await rig.run("import os; os.kill(os.getpid(), 9)")
        assert (status.reason, status.exit_code, status.signal) == ("signaled", None, 9)
        process, _ = await rig.running("import os, signal, sys; print(os.getpid())")
        process.signal(signal.SIGTERM)
        assert (await finish(process))[0].signal == signal.SIGTERM


async def test_each_stream_ends_by_itself_and_without_stdin_there_is_none() -> None:
    async with a_rig() as rig:
        process = await rig.start("import os, sys; os.close(1); sys.stdin.read(); os._exit(0)")
        assert await asyncio.wait_for(read_all(process.stdout_fd), 10) == b""
        assert not process.exited.done()
        assert process.stdin_fd is not None
        os.close(process.stdin_fd)
        assert await asyncio.wait_for(read_all(process.stderr_fd), 10) == b""
        assert (await process.exited).exit_code == 0
        process = await rig.start("import sys; print(repr(sys.stdin.read()))", stdin=False)
        assert process.stdin_fd is None
        assert (await finish(process))[1] == b"''\n"


async def test_limits_hold_and_what_cannot_be_had_is_refused() -> None:
    async with a_rig() as rig:
        code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
        assert (await rig.run(code, limits={"nofile": 77}))[1] == b"(77, 77)\n"
        before = open_descriptors()
        for more, reason in (
            ({"working_dir": "/no/such"}, "bad_working_dir"),
            ({"limits": {"nofile": 2**40}}, "permission_denied"),
            ({"env": {"A": "a\0b"}}, "invalid_params"),
            ({"env": {"A": "a" * limits.TEMPLATE_REQUEST_BYTES}}, "too_long"),
            ({"template": "none"}, "template_gone"),
        ):
            with pytest.raises(ExecFailed) as refused:
                await rig.start("print(1)", **more)
            assert refused.value.reason == reason
        assert open_descriptors() == before
        status, out, _ = await rig.run("import sys; print(len(sys.argv[1]))", "x" * 100_000)
        assert (status.exit_code, out) == (0, b"100000\n")


# --- trees ---

TREE = """
import os, signal, subprocess, sys
quiet = dict(stdin=0, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = subprocess.Popen(["sleep", "1000"], **quiet)
apart = subprocess.Popen(["sleep", "1000"], start_new_session=True, **quiet)
shell = "sleep 1000 >&2 2>/dev/null & echo $!"
orphan = int(subprocess.run(["setsid", "sh", "-c", shell], **{**quiet, "stdout": subprocess.PIPE}).stdout)
print(os.getpid(), child.pid, apart.pid, orphan)
"""


async def test_kill_takes_one_workers_tree_and_leaves_siblings_and_the_template_alone() -> None:
    async with a_rig() as rig:
        first, tree = await rig.running(TREE)
        second, other = await rig.running(TREE)
        assert all(map(has_not_ended, tree + other))
        template = rig.template_pid
        await asyncio.wait_for(end(first), 10)
        assert not any(map(is_there, tree))
        assert all(map(has_not_ended, [*other, template]))
        assert (await finish(first))[0].signal == signal.SIGKILL
        assert (await rig.run("print(1)"))[1] == b"1\n"
        await asyncio.wait_for(end(second), 10)
        assert not any(map(is_there, other))
        await finish(second)


async def test_a_tree_gets_term_first_and_may_tidy_up() -> None:
    code = "import os, signal, sys\nsignal.signal(15, lambda *_: (print('tidy'), sys.exit(5)))\nprint(os.getpid())"
    async with a_rig() as rig:
        process, _ = await rig.running(code)
        await end(process, 10)
        status, out, _ = await finish(process)
        assert (status.exit_code, out) == (5, b"tidy\n")
        code = "import os, signal, sys, subprocess\nsignal.signal(15, 1)\n"
        code += "print(os.getpid(), subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 1000 & wait']).pid)"
        process, tree = await rig.running(code)
        await end(process, 0.05)
        assert not any(map(is_there, tree))
        await finish(process)


async def test_what_a_worker_leaves_goes_with_it_and_nothing_of_its_siblings() -> None:
    leave = TREE + "sys.stdout.flush(); os._exit(3)"
    async with a_rig() as rig:
        sibling, other = await rig.running(TREE)
        process = await rig.start(leave)
        left = [int(word) for word in (await line(process)).split()]
        assert (await process.exited).exit_code == 3
        await asyncio.wait_for(end(process), 10)
        assert process.is_gone
        assert not any(map(is_there, left))
        assert all(map(has_not_ended, other))
        close_streams(process)
        await end(sibling)
        close_streams(sibling)


async def test_a_worker_that_hands_its_children_over_does_not_take_its_siblings_along() -> None:
    """One that is no subreaper any more: what it leaves falls to the keeper at once, and is ended at once."""
    code = "import ctypes; ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)\n" + TREE
    async with a_rig() as rig:
        sibling, other = await rig.running(TREE)
        process, tree = await rig.running(code)
        assert (await rig.run("pass"))[0].exit_code == 0
        await until(lambda: not is_there(tree[3]))
        assert all(map(has_not_ended, [*tree[:3], *other]))
        for one in (process, sibling):
            await end(one)
            close_streams(one)
        assert not any(map(is_there, tree + other))


async def test_one_that_forks_for_its_life_is_ended() -> None:
    code = """import os, signal, sys
print(os.getpid(), flush=True)
signal.signal(15, 1)
for _ in range(4): os.fork()
while True:
    if os.fork(): os._exit(0)
"""
    async with a_rig() as rig:
        sibling, other = await rig.running("import os, signal, sys; print(os.getpid())")
        process = await rig.start(code)
        await line(process)
        await asyncio.wait_for(end(process), 10)
        assert process.is_gone
        assert all(map(has_not_ended, other))
        (keeper,) = [one for one in children_of(rig.home.pid) if children_of(one)]
        assert len(descendants_of(keeper)) == 2
        close_streams(process)
        await end(sibling)
        close_streams(sibling)


# --- the template's own life ---


async def test_workers_outlive_their_template_and_the_next_one_comes_up() -> None:
    async with a_rig() as rig:
        process, (pid,) = await rig.running("import os, signal, sys; print(os.getpid())")
        first = rig.template_pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: rig.health()["state"] == "gone")
        with pytest.raises(ExecFailed) as refused:
            await rig.start("print(1)")
        assert (refused.value.reason, refused.value.retryable) == ("template_gone", True)
        await until(lambda: rig.health()["state"] == "ready")
        assert has_not_ended(pid)
        assert (await rig.run("print(1)"))[1] == b"1\n"
        process.signal(signal.SIGUSR1)
        assert (await finish(process))[0].signal == signal.SIGUSR1
        assert rig.health()["forks"] == 2


async def test_a_template_that_dies_while_it_forks_fails_the_start_and_no_other() -> None:
    async with a_rig() as rig:
        os.kill(rig.template_pid, signal.SIGSTOP)
        starting = [asyncio.create_task(rig.start("print(1)")) for _ in range(3)]
        await asyncio.sleep(0)
        before_kill = rig.template_pid
        os.kill(before_kill, signal.SIGKILL)
        for refused in await asyncio.gather(*starting, return_exceptions=True):
            assert isinstance(refused, ExecFailed)
            assert refused.reason == "template_gone"
        await until(lambda: rig.health()["state"] == "ready")
        assert (await rig.run("print(1)"))[1] == b"1\n"


async def test_a_template_that_does_not_answer_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_rig() as rig:
        monkeypatch.setattr(limits, "SPAWN_START_MS", 200)
        os.kill(rig.template_pid, signal.SIGSTOP)
        with pytest.raises(ExecFailed) as refused:
            await rig.start("print(1)")
        assert refused.value.reason == "template_gone"
        monkeypatch.undo()
        await until(lambda: rig.health()["state"] == "gone")
        await until(lambda: rig.health()["state"] == "ready")
        assert (await rig.run("print(1)"))[1] == b"1\n"


async def test_a_keeper_that_is_killed_loses_its_template_and_all_workers() -> None:
    async with a_rig() as rig:
        process, (pid,) = await rig.running("import os, signal, sys; print(os.getpid())")
        (keeper,) = [one for one in children_of(rig.home.pid) if children_of(one)]
        os.kill(keeper, signal.SIGKILL)
        status, _, _ = await finish(process)
        assert status.reason == "container_gone"
        assert not is_there(pid)
        assert process.is_gone
        await until(lambda: rig.health()["state"] == "gone")
        await until(lambda: rig.health()["state"] == "ready")
        assert (await rig.run("print(1)"))[1] == b"1\n"
        await until(lambda: rig.home.spawner.counts()["kept"] == 1)


async def test_a_spawner_that_is_killed_comes_up_again_with_its_templates() -> None:
    async with a_rig() as rig:
        process, (pid,) = await rig.running("import os, signal, sys; print(os.getpid())")
        os.kill(rig.home.pid, signal.SIGKILL)
        assert (await finish(process))[0].reason in ("container_gone", "signaled")  # whichever is told first
        await until(lambda: not has_not_ended(pid))
        await until(lambda: rig.home.templates is not None and rig.home.spawner.alive)
        await until(lambda: rig.health()["state"] == "ready")
        assert (await rig.run("print(1)"))[1] == b"1\n"


async def test_a_spawner_that_dies_while_its_templates_come_up_is_followed_too(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    cmd = ["sh", "-c", f"[ -e {flag} ] || echo ready; exec sleep 1000"]
    async with a_rig(py=PYTHON, slow=Template(cmd=cmd, ready="line")) as rig:
        flag.touch()
        killed = set()
        for _ in range(2):  # the second one while it waits for the slow template
            await until(lambda: rig.home.spawner.alive and rig.home._child is not None and rig.home.pid not in killed)
            killed.add(rig.home.pid)
            os.kill(rig.home.pid, signal.SIGKILL)
            await until(lambda: not rig.home.spawner.alive)
        flag.unlink()
        await until(lambda: rig.home.templates is not None and rig.health("slow")["state"] == "ready")
        await until(lambda: rig.health()["state"] == "ready")
        assert (await rig.run("print(1)"))[1] == b"1\n"


async def test_workers_end_with_fastclaw_when_that_is_killed(short_dir: Path) -> None:
    cmd = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "local", "--log-level", "error"]
    options = {"templates": {"py": {"cmd": PYTHON.cmd}}}
    env = {**os.environ, "XDG_RUNTIME_DIR": str(short_dir)}  # a killed one leaves its sockets there
    async with RuntimeClient.spawn(cmd, namespace="killed", options=options, env=env) as client:
        code = f"{TREE}\nsys.stdout.flush(); signal.pause()"
        async with await client.exec(["python", "-c", code], template="py") as process:
            tree = [int(word) for word in (await process.stdout_read()).split()]
            assert all(map(has_not_ended, tree))
            os.kill(client.pid, signal.SIGKILL)
            async with asyncio.timeout(1):
                await until(lambda: not any(map(has_not_ended, tree)))
            assert await client.exited(10) == -signal.SIGKILL


async def test_the_end_of_all_takes_templates_and_workers() -> None:
    async with a_rig(py=PYTHON, other=BOTH) as rig:
        first, tree = await rig.running(TREE)
        process, other = await rig.running(TREE, template="other")
        await rig.lane.end_all([process], Grace(asyncio.get_running_loop().time() + 5))
        assert not any(map(is_there, tree + other))
        assert rig.home.spawner.counts()["kept"] == 0
        assert [one for keeper in children_of(rig.home.pid) for one in children_of(keeper)] == []
        close_streams(process)
        close_streams(first)


async def test_what_a_template_leaves_goes_with_it() -> None:
    program = "import os, subprocess, fastclaw.template as t; subprocess.run(['sh', '-c', 'sleep 1000 &']); "
    program += "t.serve(lambda argv: print(os.getpid(), flush=True) or __import__('signal').pause())"
    async with a_rig(py=Template(cmd=[sys.executable, "-c", program])) as rig:
        process = await rig.start("")
        pid = int(await line(process))
        (keeper,) = [one for one in children_of(rig.home.pid) if children_of(one)]
        assert len(children_of(keeper)) == 3
        template = os.getsid(next(one for one in children_of(keeper) if "sleep" in cmdline(one)))
        os.kill(template, signal.SIGKILL)
        await until(lambda: children_of(keeper) == [pid])
        await end(process)
        close_streams(process)


# --- starting templates ---


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (Template(cmd=["/no/such/program"]), "No such file"),
        (Template(cmd=[sys.executable, "-c", "raise SystemExit('no luck')"]), "no luck"),
        (Template(cmd=[sys.executable, "-m", "fastclaw.template", "-i", "nowhere"]), "No module named 'nowhere'"),
        (Template(cmd=["sh", "-c", "exec sleep 1000 3<&-"]), "closed its descriptor 3"),
        (Template(cmd=["sh", "-c", "echo nonsense >&3; exec sleep 1000"]), "means nothing"),
        (Template(cmd=["sh", "-c", "echo words >&2; exec sleep 1000"]), "not ready within 0.5 s: words"),
        (Template(cmd=["a\0b"]), "null byte"),
        (Template(cmd=["true"], working_dir="/no/such"), "/no/such"),
        (Template(cmd=["true"], user="no-such-user"), "no-such-user"),
    ],
)
async def test_one_that_does_not_come_up_is_named_with_what_it_said(template: Template, said: str) -> None:
    with pytest.raises(StartFailed) as refused:
        async with a_rig(
            0.5, **{"fine": Template(cmd=["sh", "-c", "echo; exec sleep 1000"], ready="line"), "bad": template}
        ):
            pytest.fail("it came up")
    assert refused.value.reason == "template_failed"
    assert "template 'bad'" in str(refused.value)
    assert said in str(refused.value)


async def test_ready_by_a_line(caplog: pytest.LogCaptureFixture) -> None:
    program = "import fastclaw.template as t; print('one\\nsecond', flush=True); t.serve(lambda argv: print(argv))"
    caplog.set_level(logging.DEBUG, "fastclaw.spawn.templates")
    async with a_rig(py=Template(cmd=[sys.executable, "-c", program], ready="line")) as rig:
        assert (await rig.run("x"))[1] == b"['python', '-c', 'x']\n"
        assert "second" in caplog.text
    assert max(len(record.getMessage()) for record in caplog.records) < 2 * limits.TEMPLATE_READ_BYTES


@needs_root
async def test_a_templates_user_is_its_workers() -> None:
    template = Template(cmd=["/usr/bin/python3", "-c", as_text(MODULE)], user="65534:65534")
    async with a_rig(py=template) as rig:
        code = "import os; print(os.getuid(), os.getgid(), os.getgroups()); open('/dev/stdout', 'w').write('again')"
        assert (await rig.run(code, working_dir="/"))[1] == b"65534 65534 []\nagain"


# --- starts that are given up, and balance ---


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancelled_start_leaves_nothing(turns: int) -> None:
    async with a_rig() as rig:
        (keeper,) = [one for one in children_of(rig.home.pid) if children_of(one)]
        before = open_descriptors()
        starting = asyncio.create_task(rig.start("import time; time.sleep(1000)"))
        for _ in range(turns):
            await asyncio.sleep(0 if turns < 4 else 0.002)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            process = await starting
            await end(process)
            close_streams(process)
        assert (await rig.run("print(1)"))[1] == b"1\n"
        await until(lambda: len(descendants_of(keeper)) == 1)
        await until(lambda: rig.home.spawner.counts()["kept"] == 1)
        assert open_descriptors() == before


async def test_a_start_cancelled_just_as_it_succeeds_leaves_nothing() -> None:
    async with a_rig() as rig:
        before = open_descriptors()
        starting = asyncio.create_task(rig.start("import time; time.sleep(1000)"))
        await until(lambda: rig.home.spawner.counts()["kept"] == 2)
        (process,) = [one for one in rig.home.spawner._kept.values() if one.id in rig.home.spawner._adopted]
        process.started.add_done_callback(lambda _: starting.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            close_streams(await starting)
            await end(process)
        await until(lambda: rig.home.spawner.counts()["kept"] == 1)
        assert open_descriptors() == before


async def test_500_forks_leave_descriptors_and_processes_balanced() -> None:
    async with a_rig() as rig:
        (keeper,) = [one for one in children_of(rig.home.pid) if children_of(one)]
        template = rig.template_pid
        assert (await rig.run("pass"))[0].exit_code == 0
        ours, theirs = open_descriptors(), os.listdir(f"/proc/{template}/fd")
        gate = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with gate:
                status, out, _ = await rig.run(
                    f"print({number}); raise SystemExit({number % 200})", stdin=number % 2 > 0
                )
            assert (status.exit_code, out) == (number % 200, f"{number}\n".encode())

        await asyncio.gather(*(one(number) for number in range(500)))
        await until(lambda: rig.home.spawner.counts()["kept"] == 1)
        assert (open_descriptors(), os.listdir(f"/proc/{template}/fd")) == (ours, theirs)
        assert children_of(keeper) == [template]
        assert children_of(template) == []
        assert rig.health()["forks"] == 501


async def test_many_live_workers_and_their_end_at_once() -> None:
    async with a_rig() as rig:
        workers = await asyncio.gather(*(rig.start("import signal; signal.pause()") for _ in range(60)))
        assert rig.home.spawner.counts()["kept"] == 61
        await asyncio.gather(*(end(worker) for worker in workers))
        assert all(worker.is_gone for worker in workers)
        assert {(await worker.exited).signal for worker in workers} == {9}
        for worker in workers:
            close_streams(worker)


async def test_no_descriptors_left_is_overloaded_and_hurts_nobody_else() -> None:
    async with a_rig() as rig:
        before = open_descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            for room in range(1, 8, 2):
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1 + room, hard))
                with contextlib.suppress(ExecFailed):
                    process = await rig.start("pass")
                    await end(process)
                    close_streams(process)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: rig.home.spawner.counts()["kept"] == 1)
        assert open_descriptors() == before
        assert (await rig.run("print(1)"))[1] == b"1\n"


# --- adoption, frame by frame ---


def test_an_adoption_of_nobody_is_refused() -> None:
    with a_bare_host() as host:
        stream = host.start(7, "sleep", "1000")
        template = children_of(next(keeper for keeper in children_of(host.process.pid) if children_of(keeper)))[0]
        for template_id, pid in ((99, template), (7, template), (7, 1), (7, 2**31 - 1)):
            host.control.send(frames.control(frames.ADOPT, 8, pid, template_id))
            event = host.event()
            assert (event[0], event[1], event[3]) == (frames.REFUSED, 8, frames.STEP_ADOPT)
        host.control.send(frames.control(frames.SIGNAL, 8, 9, 7))
        host.control.send(frames.control(frames.END, 8, frames.LEVEL_KILL, 7))
        assert host.ask(frames.control(frames.PING, 2))[0] == frames.ANSWER
        assert is_there(template)
        os.close(stream)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_an_adoption_without_numbers_is_the_end(numbers: tuple[int, int, int]) -> None:
    with a_bare_host() as host:
        host.control.send(frames.control(frames.ADOPT, *numbers))
        assert host.exit_code() == 0
