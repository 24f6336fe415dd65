"""Templates over the lane itself, with a real spawner: a forked worker is a process like any other, and nothing of it,
of its siblings or of its template is taken for another's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from fastclaw import limits, stages
from fastclaw.client import RuntimeClient
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.options import Template
from fastclaw.processes.lane import Collected, Collection, Grace, StartSpec
from fastclaw.spawner.spawn_lane import SpawnLane
from fastclaw.spawner.spawn_process import SpawnProcess
from fastclaw.spawner.spawner_host import LocalHost
from fastclaw.spawner.templates import Plans
from tests.balance import balanced, open_descriptors
from tests.pids import descendants_of, has_not_ended, is_there, oldest
from tests.spawner.fake_spawner import busy_reapers_of, commands_of, pump_of
from tests.spawner.rig import Running, needs_root
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PYTHON = Template(cmd=[sys.executable, "-m", "fastclaw.template"])
BOTH = Template(cmd=[sys.executable, "-m", "fastclaw.template"], env={"KIND": "other"})
READY_S = 30.0
MODULE = Path(__file__).parent.parent.parent / "fastclaw" / "template.py"


class Rig:
    """A lane on this host with its templates."""

    def __init__(self, host: LocalHost, lane: SpawnLane) -> None:
        self.host, self.lane = host, lane

    async def start(self, code: str, *argv: str, **more: Any) -> Running:
        process = await self.lane.start(spec(code, *argv, **more), 0)
        assert isinstance(process, SpawnProcess)
        return Running(process)

    async def run(self, code: str, *argv: str, given: bytes = b"", **more: Any) -> tuple[Any, bytes, bytes]:
        return await (await self.start(code, *argv, **more)).finish(given)

    async def collect(self, code: str, *argv: str, given: bytes = b"", **more: Any) -> Collected:
        """The same as a run."""
        process = await self.lane.run(spec(code, *argv), Collection(input=given, **more), 0)
        assert process.collected is not None
        async with asyncio.timeout(20):
            return await process.collected

    async def running(self, code: str, **more: Any) -> tuple[Running, list[int]]:
        """One that has printed numbers and waits, until it is ended."""
        process = await self.start(f"{code}\nsys.stdout.flush(); signal.pause()", **more)
        return process, [int(word) for word in (await line(process)).split()]

    @property
    def reaper(self) -> int:
        """The template's: workers have no others that keep anything."""
        (reaper,) = busy_reapers_of(self.host.pid)
        return reaper

    @property
    def template_pid(self) -> int:
        pids = [
            pid for pid in commands_of(self.reaper) if "fastclaw.template" in cmdline(pid) and os.getsid(pid) == pid
        ]
        return oldest(pids)

    def health(self, name: str = "py") -> Any:
        assert self.host.templates is not None
        return self.host.templates.health()[name]


def as_text(module: Path) -> str:
    """For an interpreter that may not read it where it is."""
    return module.read_text()


def cmdline(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as words:
        return words.read()
    return ""


async def line(process: Running) -> bytes:
    """Up to the first newline."""
    return await process.stdio.read_until(b"\n")


def spec(code: str, *argv: str, template: str = "py", **more: Any) -> StartSpec:
    return StartSpec(process_id=uuid4().hex, cmd=["python", "-c", code, *argv], template=template, **more)


@asynccontextmanager
async def a_rig(ready_s: float = READY_S, **templates: Template) -> AsyncIterator[Rig]:
    async with balanced():
        plans = Plans(templates or {"py": PYTHON}, base_env={"BASE": "b"}, working_dir=None, user=None, ready_s=ready_s)
        host = LocalHost(plans)
        try:
            await host.start()
            yield Rig(host, SpawnLane(host, can_set_user=True))
        finally:
            await host.aclose()


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


async def test_each_stage_of_a_worker_is_known_up_to_the_end_of_its_tree() -> None:
    async with a_rig() as rig:
        process = await rig.start("print(1)")
        await process.finish()
        await until(lambda: process.is_gone)
        at = process.process.flight.at
        order = [at[stage] for stage in (stages.SENT, stages.TAKEN, stages.EXITED, stages.GONE)]
        assert 0 not in order
        assert order == sorted(order)


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
        assert (await process.finish())[0].signal == signal.SIGTERM


async def test_each_stream_ends_by_itself_and_without_stdin_there_is_none() -> None:
    async with a_rig() as rig:
        process = await rig.start("import os, sys; os.close(1); sys.stdin.read(); os._exit(0)")
        assert await process.stdio.read_all() == b""
        assert not process.process.exited.done()
        process.stdio.send_eof()
        assert await process.stderr.read_all() == b""
        assert (await process.exited()).exit_code == 0
        process.close()
        assert (await rig.run("import sys; print(repr(sys.stdin.read()))", stdin=False))[1] == b"''\n"


async def test_stderr_may_be_stdout() -> None:
    async with a_rig() as rig:
        code = "import os, sys; print('out', flush=True); print('bad', file=sys.stderr); os.write(1, b'end')"
        assert (await rig.run(code, merge_stderr=True))[1:] == (b"out\nbad\nend", b"")


async def test_nobody_holds_a_worker_s_streams_but_itself_and_its_pump() -> None:
    """Not we, not main, and neither its template nor that one's pump, which has handed them on."""
    async with a_rig() as rig:
        before = open_descriptors()
        process = await rig.lane.start(spec("import signal; signal.pause()"), 0)
        assert open_descriptors() == before
        (worker,) = [pid for pid in commands_of(rig.reaper) if pid != rig.template_pid]
        theirs = {os.readlink(f"/proc/{worker}/fd/{fd}") for fd in range(3)}
        for holder in (rig.host.pid, rig.template_pid, rig.reaper, pump_of(rig.reaper)):
            assert not theirs & set(open_descriptors(holder).values())
        await process.end_tree(Grace(0.0))


# --- runs ---


async def test_a_run_is_a_worker_too() -> None:
    async with a_rig() as rig:
        code = "import sys; print(len(sys.stdin.read())); print('bad', file=sys.stderr); sys.exit(7)"
        for size in (0, 1, 100_000):
            collected = await rig.collect(code, given=b"x" * size)
            assert (collected.stdout.head, collected.stderr.head) == (b"%d\n" % size, b"bad\n")
            assert collected.status.exit_code == 7
            assert not collected.incomplete
        assert rig.health()["forks"] == 3


@pytest.mark.parametrize("size", [0, 1, limits.SPAWN_INLINE_BYTES, limits.SPAWN_INLINE_BYTES + 1, 3_000_000])
async def test_a_run_s_output_is_whole(size: int) -> None:
    async with a_rig() as rig:
        code = f"import sys; sys.stdout.buffer.write(bytes({size})); sys.stderr.buffer.write(bytes({size}))"
        collected = await rig.collect(code, output_limit=4 * limits.MIB)
        for output in (collected.stdout, collected.stderr):
            assert (output.head + output.tail, output.total) == (bytes(size), size)


async def test_a_run_that_leaves_somebody_is_told_when_its_time_is_over() -> None:
    async with a_rig() as rig:
        code = "import subprocess; subprocess.Popen(['sleep', '1000']); print('up')"
        began = asyncio.get_running_loop().time()
        collected = await rig.collect(code, drain_ms=50)
        assert asyncio.get_running_loop().time() - began < 10
        assert (collected.stdout.head, collected.status.exit_code) == (b"up\n", 0)


async def test_many_runs_at_once() -> None:
    async with a_rig() as rig:
        codes = [f"import sys; print('{number}' * 1_000); sys.exit({number})" for number in range(64)]
        for number, collected in enumerate(await asyncio.gather(*map(rig.collect, codes))):
            assert collected.stdout.head == str(number).encode() * 1_000 + b"\n"
            assert collected.status.exit_code == number
        await until(lambda: rig.host.spawner.counts()["kept"] == 1)


async def test_a_run_over_its_limit_is_ended() -> None:
    async with a_rig() as rig:
        code = "import sys\nwhile True: sys.stdout.write('x' * 1_000)"
        collected = await rig.collect(code, output_limit=100, on_limit="kill")
        assert collected.limited
        assert collected.status.signal == signal.SIGKILL
        assert collected.stdout.head + collected.stdout.tail == b"x" * 100


async def test_limits_hold_and_what_cannot_be_had_is_refused() -> None:
    async with a_rig() as rig:
        code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
        assert (await rig.run(code, limits={"nofile": 77}))[1] == b"(77, 77)\n"
        before = open_descriptors()
        escaped = "\udcff" * (
            limits.SPAWN_STRINGS_BYTES // len("\\udcff")
        )  # longer than any START, and a template takes it
        assert (await rig.run("import os; print(len(os.environ['A']))", env={"A": escaped}))[1] == b"%d\n" % len(
            escaped
        )
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
        await asyncio.wait_for(first.end(), 10)
        assert not any(map(is_there, tree))
        assert all(map(has_not_ended, [*other, template]))
        assert (await first.finish())[0].signal == signal.SIGKILL
        assert (await rig.run("print(1)"))[1] == b"1\n"
        await asyncio.wait_for(second.end(), 10)
        assert not any(map(is_there, other))
        await second.finish()


async def test_a_tree_gets_term_first_and_may_tidy_up() -> None:
    code = "import os, signal, sys\nsignal.signal(15, lambda *_: (print('tidy'), sys.exit(5)))\nprint(os.getpid())"
    async with a_rig() as rig:
        process, _ = await rig.running(code)
        await process.end(10)
        status, out, _ = await process.finish()
        assert (status.exit_code, out) == (5, b"tidy\n")
        code = "import os, signal, sys, subprocess\nsignal.signal(15, 1)\n"
        code += "print(os.getpid(), subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 1000 & wait']).pid)"
        process, tree = await rig.running(code)
        await process.end(0.05)
        assert not any(map(is_there, tree))
        await process.finish()


async def test_what_a_worker_leaves_goes_with_it_and_nothing_of_its_siblings() -> None:
    leave = TREE + "sys.stdout.flush(); os._exit(3)"
    async with a_rig() as rig:
        sibling, other = await rig.running(TREE)
        process = await rig.start(leave)
        left = [int(word) for word in (await line(process)).split()]
        assert (await process.exited()).exit_code == 3
        await asyncio.wait_for(process.end(), 10)
        assert process.is_gone
        assert not any(map(is_there, left))
        assert all(map(has_not_ended, other))
        process.close()
        await sibling.end()
        sibling.close()


async def test_a_worker_that_hands_its_children_over_does_not_take_its_siblings_along() -> None:
    """One that is no subreaper any more: what it leaves falls to the reaper at once, and is ended at once."""
    code = "import ctypes; ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)\n" + TREE
    async with a_rig() as rig:
        sibling, other = await rig.running(TREE)
        process, tree = await rig.running(code)
        assert (await rig.run("pass"))[0].exit_code == 0
        await until(lambda: not is_there(tree[3]))
        assert all(map(has_not_ended, [*tree[:3], *other]))
        for one in (process, sibling):
            await one.end()
            one.close()
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
        await asyncio.wait_for(process.end(), 10)
        assert process.is_gone
        assert all(map(has_not_ended, other))
        reaper = rig.reaper
        assert len(descendants_of(reaper)) == 3, "its pump, the template and the sibling"
        process.close()
        await sibling.end()
        sibling.close()


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
        assert (await process.finish())[0].signal == signal.SIGUSR1
        assert rig.health()["forks"] == 2


async def test_a_signal_to_a_workers_group_reaches_what_it_runs_and_not_its_template() -> None:
    async with a_rig() as rig:
        code = "import os, subprocess; child = subprocess.Popen(['sleep', '1000']); print(child.pid); child.wait()"
        process, (child,) = await rig.running(code)
        process.signal(signal.SIGINT, group=True)
        await process.finish()
        await until(lambda: not has_not_ended(child))
        assert (await rig.run("print(1)"))[1] == b"1\n"
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


async def test_a_reaper_that_is_killed_loses_its_template_and_all_workers() -> None:
    async with a_rig() as rig:
        process, (pid,) = await rig.running("import os, signal, sys; print(os.getpid())")
        reaper = rig.reaper
        os.kill(reaper, signal.SIGKILL)
        status, _, _ = await process.finish()
        assert status.reason == "container_gone"
        assert not is_there(pid)
        assert process.is_gone
        await until(lambda: rig.health()["state"] == "gone")
        await until(lambda: rig.health()["state"] == "ready")
        assert (await rig.run("print(1)"))[1] == b"1\n"
        await until(lambda: rig.host.spawner.counts()["kept"] == 1)


async def test_a_spawner_that_is_killed_comes_up_again_with_its_templates() -> None:
    async with a_rig() as rig:
        process, (pid,) = await rig.running("import os, signal, sys; print(os.getpid())")
        os.kill(rig.host.pid, signal.SIGKILL)
        assert (await process.finish())[0].reason in ("container_gone", "signaled")  # whichever is told first
        await until(lambda: not has_not_ended(pid))
        await until(lambda: rig.host.templates is not None and rig.host.spawner.alive)
        await until(lambda: rig.health()["state"] == "ready")
        assert (await rig.run("print(1)"))[1] == b"1\n"


async def test_a_spawner_that_dies_while_its_templates_come_up_is_followed_too(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    cmd = ["sh", "-c", f"[ -e {flag} ] || echo ready; exec sleep 1000"]
    async with a_rig(py=PYTHON, slow=Template(cmd=cmd, ready="line")) as rig:
        flag.touch()
        killed = set()
        for _ in range(2):  # the second one while it waits for the slow template
            await until(lambda: rig.host.spawner.alive and rig.host._child is not None and rig.host.pid not in killed)
            killed.add(rig.host.pid)
            os.kill(rig.host.pid, signal.SIGKILL)
            await until(lambda: not rig.host.spawner.alive)
        flag.unlink()
        await until(lambda: rig.host.templates is not None and rig.health("slow")["state"] == "ready")
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
        await rig.lane.end_all([process.process], Grace(asyncio.get_running_loop().time() + 5))
        assert not any(map(is_there, tree + other))
        assert rig.host.spawner.counts()["kept"] == 0
        assert busy_reapers_of(rig.host.pid) == []
        process.close()
        first.close()


async def test_what_a_template_leaves_goes_with_it() -> None:
    program = "import os, subprocess, fastclaw.template as t; subprocess.run(['sh', '-c', 'sleep 1000 &']); "
    program += "t.serve(lambda argv: print(os.getpid(), flush=True) or __import__('signal').pause())"
    async with a_rig(py=Template(cmd=[sys.executable, "-c", program])) as rig:
        process = await rig.start("")
        pid = int(await line(process))
        reaper = rig.reaper
        assert len(commands_of(reaper)) == 3
        template = os.getsid(next(one for one in commands_of(reaper) if "sleep" in cmdline(one)))
        os.kill(template, signal.SIGKILL)
        await until(lambda: commands_of(reaper) == [pid])
        await process.end()
        process.close()


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
    patience = 0.5 if "not ready" in said else 20
    fine = Template(cmd=["sh", "-c", "echo; exec sleep 1000"], ready="line")
    with pytest.raises(StartFailed) as refused:
        async with a_rig(patience, **{"fine": fine, "bad": template}):
            pytest.fail("it came up")
    assert refused.value.reason == "template_failed"
    assert "template 'bad'" in str(refused.value)
    assert said in str(refused.value)


async def test_ready_by_a_line(caplog: pytest.LogCaptureFixture) -> None:
    program = "import fastclaw.template as t; print('one\\nsecond', flush=True); t.serve(lambda argv: print(argv))"
    caplog.set_level(logging.DEBUG, "fastclaw.spawner.templates")
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
