"""What a spawner says of a process becomes its status and its output; what is asked of it becomes orders."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.cgroups import MemoryWatch, OomKills
from fastclaw.linux.executable import Finding
from fastclaw.processes.lane import Collection, ExitStatus, Grace, Output, StartSpec
from fastclaw.spawner import frames
from fastclaw.spawner.spawn_process import SpawnProcess, end_tree, resources_refused, step_refused, text_refused
from tests.balance import open_descriptors
from tests.spawner.fake_spawner import outputs

if TYPE_CHECKING:
    from fastclaw.runtime import Keep

USAGE = {"user_us": 1, "system_us": 2, "max_rss_kb": 3}
SPEC = StartSpec(process_id="p", cmd=["x"], working_dir="/d")
PLACE = 5


class Recorder:
    """In a spawner's place: remembers what it is told to do."""

    memory: MemoryWatch | None = None

    def __init__(self) -> None:
        self.orders: list[tuple[object, ...]] = []

    def signal(self, id: int, signum: int, place: int, template: int = 0, *, group: bool = False) -> None:
        self.orders.append(("group" if group else "signal", id, signum, place, template))

    def end(self, id: int, level: int, place: int = frames.NOWHERE, template: int = 0) -> None:
        self.orders.append(("end", id, level, place, template))

    def attach(self, id: int, place: int, which: int, fd: int) -> None:
        self.orders.append(("attach", id, place, which, fd))

    def order(self, op: int, id: int, a: int = 0, b: int = 0, place: int = frames.NOWHERE) -> None:
        self.orders.append((op, id, a, b, place))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def process(recorder: Recorder) -> SpawnProcess:
    made = a_process(recorder)
    made.place = PLACE
    return made


def a_process(recorder: Recorder, collection: Collection | None = None) -> SpawnProcess:
    return SpawnProcess(recorder, 7, SPEC, collection)  # type: ignore[arg-type]  # it has what is used


async def a_run(recorder: Recorder, **wanted: object) -> SpawnProcess:
    return a_process(recorder, Collection(**wanted))  # type: ignore[arg-type]  # shorthand


@pytest.mark.parametrize(
    ("wait_status", "status"),
    [
        (0, ExitStatus(reason="exited", exit_code=0, usage=USAGE)),
        (255 << 8, ExitStatus(reason="exited", exit_code=255, usage=USAGE)),
        (9, ExitStatus(reason="signaled", signal=9, usage=USAGE)),
        (11 | 0x80, ExitStatus(reason="signaled", signal=11, usage=USAGE)),
        (64, ExitStatus(reason="signaled", signal=64, usage=USAGE)),
    ],
)
async def test_a_wait_status_is_a_code_or_a_signal(process: SpawnProcess, wait_status: int, status: ExitStatus) -> None:
    assert repr(process) == "<SpawnProcess 7 starting>"
    process.on_started()
    assert repr(process) == "<SpawnProcess 7 started>"
    process.on_exited(wait_status, 1, 2, 3)
    assert await process.exited == status
    assert (process.is_gone, process.is_free) == (False, False)
    assert repr(process) == "<SpawnProcess 7 exited>"
    process.on_gone()
    assert repr(process) == "<SpawnProcess 7 gone>"
    assert (process.is_gone, process.is_free) == (True, False)
    process.on_free()
    assert (process.is_gone, process.is_free) == (True, True)


async def test_who_has_ended_had_begun(process: SpawnProcess) -> None:
    process.on_exited(0, 1, 2, 3)
    await process.started
    process.on_started()  # so late, it changes nothing
    assert (await process.exited).exit_code == 0


async def test_a_refusal_is_the_start_s(process: SpawnProcess) -> None:
    process.on_refused(frames.STEP_DIRECTORY, errno.ENOENT)
    with pytest.raises(ExecFailed, match="/d") as raised:
        await process.started
    assert raised.value.reason == "bad_working_dir"
    assert process.is_gone
    assert process.is_free


class Shortage(MemoryWatch):
    """An environment in which so many are killed between a command's begin and its end."""

    def __init__(self, kills: int) -> None:
        super().__init__(None)
        self._kills = kills

    def mark(self) -> int:
        return 5

    def since(self, mark: int, is_killed: bool) -> OomKills | None:
        assert mark == 5
        return OomKills(self._kills, {"limit_bytes": 64}) if self._kills else None


@pytest.mark.parametrize(
    ("kills", "wait_status", "reason"),
    [(1, 9, "oom"), (0, 9, "signaled"), (2, 15, "signaled"), (1, 137 << 8, "exited"), (1, 0, "exited")],
    ids=["victim", "killed by somebody", "another signal", "its child", "a survivor"],
)
async def test_only_who_was_killed_itself_is_the_victim(
    recorder: Recorder, kills: int, wait_status: int, reason: str
) -> None:
    """vm0-ai/vm0#20599, kubernetes/kubernetes#19825: out of memory looks like any other 137."""
    recorder.memory = Shortage(kills)
    process = a_process(recorder)
    process.on_exited(wait_status, 1, 2, 3)
    status = process.exited.result()
    assert (status.reason, status.ooms) == (reason, OomKills(kills, {"limit_bytes": 64}) if kills else None)


async def test_signals_go_out_until_it_has_ended(process: SpawnProcess, recorder: Recorder) -> None:
    process.on_started()
    process.signal(10)
    process.on_exited(0, 1, 2, 3)
    process.signal(12)
    process.signal(12, group=True)
    assert recorder.orders == [("signal", 7, 10, PLACE, 0)]


async def test_a_signal_may_be_for_its_group(process: SpawnProcess, recorder: Recorder) -> None:
    process.on_started()
    process.signal(10, group=True)
    assert recorder.orders == [("group", 7, 10, PLACE, 0)]


@pytest.mark.parametrize("signum", [-1, 0, 65, 4711])
async def test_what_is_no_signal_is_not_sent(process: SpawnProcess, recorder: Recorder, signum: int) -> None:
    process.on_started()
    with pytest.raises(ExecFailed) as refused:
        process.signal(signum)
    assert refused.value.reason == "unsupported"
    assert recorder.orders == []


async def test_what_its_pump_is_told_names_its_place(process: SpawnProcess, recorder: Recorder) -> None:
    process.on_started()
    process.attach(1, 99)
    process.order(frames.RELEASE, 1)
    process.resize(24, 80)
    assert recorder.orders == [
        ("attach", 7, PLACE, 1, 99),
        (frames.RELEASE, 7, 1, 0, PLACE),
        (frames.RESIZE, 7, 24 << 16 | 80, 0, PLACE),
    ]
    process.on_exited(0, 1, 2, 3)
    process.resize(1, 1)
    assert len(recorder.orders) == 3


async def test_a_tree_that_is_gone_costs_no_order(process: SpawnProcess, recorder: Recorder) -> None:
    process.on_started()
    process.on_exited(0, 1, 2, 3)
    process.on_gone()
    await process.end_tree(Grace(0.0))
    process.drop()
    assert recorder.orders == []


async def test_ended_before_its_start_is_known_it_is_killed_when_it_is(
    process: SpawnProcess, recorder: Recorder
) -> None:
    ending = asyncio.create_task(process.end_tree(Grace(0.0)))
    await asyncio.sleep(0)
    assert process.started.cancelled()
    process.on_started()
    process.on_exited(9, 1, 2, 3)
    process.on_gone()
    await ending
    assert recorder.orders == [("end", 7, frames.LEVEL_KILL, PLACE, 0)] * 2


@pytest.mark.parametrize("is_known", [False, True])
async def test_one_that_nobody_will_be_told_of_is_killed_now_and_when_it_runs(
    process: SpawnProcess, recorder: Recorder, is_known: bool
) -> None:
    if is_known:
        process.on_started()
    process.drop()
    kill = ("end", 7, frames.LEVEL_KILL, PLACE, 0)
    assert recorder.orders == [kill]
    assert process.started.cancelled() != is_known
    process.on_started()
    assert recorder.orders == [kill] * (1 if is_known else 2)


async def test_given_up_it_fails_and_is_killed_however_late_it_runs(process: SpawnProcess, recorder: Recorder) -> None:
    process.give_up(ExecFailed("slow", "engine_timeout"))
    with pytest.raises(ExecFailed, match="slow"):
        await process.started
    assert recorder.orders == [("end", 7, frames.LEVEL_KILL, PLACE, 0)]


async def test_lost_with_its_environment(process: SpawnProcess) -> None:
    process.on_lost("why")
    with pytest.raises(ExecFailed) as raised:
        await process.started
    assert (raised.value.reason, raised.value.retryable) == ("container_gone", True)
    assert (await process.exited).reason == "container_gone"
    assert process.is_gone
    assert process.is_free


async def test_lost_after_its_end_changes_nothing(process: SpawnProcess) -> None:
    process.on_started()
    process.on_exited(3 << 8, 1, 2, 3)
    process.on_lost("why")
    assert (await process.exited).exit_code == 3


# --- runs ---


async def test_a_run_s_end_brings_what_it_wrote(recorder: Recorder) -> None:
    process = await a_run(recorder)
    process.on_exited(7 << 8, 1, 2, 3)
    process.on_collected(memoryview(outputs(b"out", b"problem")), frames.WITH_EMPTY | frames.WITH_FREE)
    assert process.collected is not None
    collected = await process.collected
    assert (collected.stdout, collected.stderr) == (Output(b"out", b"", 3), Output(b"problem", b"", 7))
    assert collected.status.exit_code == 7
    assert (collected.incomplete, collected.limited, collected.overloaded) == (False, False, False)


@pytest.mark.parametrize("flag", ["INCOMPLETE", "LIMITED", "OVERLOADED"])
async def test_what_was_wrong_with_it_is_said(recorder: Recorder, flag: str) -> None:
    process = await a_run(recorder)
    process.on_exited(9, 1, 2, 3)
    process.on_collected(memoryview(outputs()), getattr(frames, flag))
    assert process.collected is not None
    collected = await process.collected
    assert [name for name in ("incomplete", "limited", "overloaded") if getattr(collected, name)] == [flag.lower()]


def ring(data: bytes, head: int, limit: int) -> bytes:
    """What a pump has of a stream: the beginning, and behind it the last bytes, each at its place in a ring."""
    kept = bytearray(data[:limit])
    for at in range(limit, len(data)):
        if limit > head:
            kept[head + (at - head) % (limit - head)] = data[at]
    return bytes(kept)


@pytest.mark.parametrize("where", ["inline", "file"])
@pytest.mark.parametrize("keep", ["head", "tail", "ends"])
@pytest.mark.parametrize("total", [0, 1, 9_999, 10_000, 10_001, 14_999, 15_000, 15_001, 25_003])
async def test_what_is_kept_is_put_in_order(recorder: Recorder, where: str, keep: Keep, total: int) -> None:
    limit = 10_000 if where == "file" else 1_000
    total = total if where == "file" else total // 10
    data = os.urandom(total)
    process = await a_run(recorder, output_limit=limit, keep=keep)
    assert process.collection is not None
    kept = ring(data, *frames.kept_bytes(process.collection))
    process.on_exited(0, 1, 2, 3)
    if where == "file":
        file = os.memfd_create("store")
        os.ftruncate(file, 2 * limit)
        os.pwrite(file, kept, limit)
        process.on_store(file)
    given = kept[: frames.INLINE_BYTES]
    process.on_collected(memoryview(outputs(b"", given, totals=(0, total))), 0)
    assert process.collected is not None
    output = (await process.collected).stderr
    assert output.total == total
    if total <= limit:
        assert output.head + output.tail == data
    else:
        head = {"head": limit, "tail": 0, "ends": limit // 2}[keep]
        assert (output.head, output.tail) == (data[:head], data[total - (limit - head) :])


async def test_a_limit_of_nothing_keeps_nothing(recorder: Recorder) -> None:
    process = await a_run(recorder, output_limit=0)
    process.on_exited(0, 1, 2, 3)
    process.on_collected(memoryview(outputs(b"xyz", totals=(12, 0))), 0)
    assert process.collected is not None
    assert (await process.collected).stdout == Output(b"", b"", 12)


@pytest.mark.parametrize(
    "how", ["collected", "lost", "two files", "nobody wants it", "given up before", "given up after"]
)
async def test_a_file_is_closed_whatever_becomes_of_the_run(recorder: Recorder, how: str) -> None:
    before = open_descriptors()
    process = await a_run(recorder, output_limit=9_000)
    assert process.collected is not None
    if how == "given up before":
        process.give_up(ExecFailed("slow", "engine_timeout"))
    for _ in range(2 if how == "two files" else 1):
        process.on_store(os.memfd_create("store"))
    if how == "given up after":
        process.give_up(ExecFailed("slow", "engine_timeout"))
    elif how == "nobody wants it":
        process.collected.cancel()
    if how == "lost":
        process.on_lost("why")
    else:
        process.on_exited(0, 1, 2, 3)
        process.on_collected(memoryview(outputs()), 0)
        process.on_store(os.memfd_create("store"))  # after the end
    assert open_descriptors() == before


async def test_no_file_is_taken_for_an_exec(process: SpawnProcess) -> None:
    before = open_descriptors()
    process.on_store(os.memfd_create("store"))
    assert open_descriptors() == before


@pytest.mark.parametrize("how", ["refused", "lost", "given up"])
async def test_a_run_that_never_ran_fails_where_its_output_is_waited_for(recorder: Recorder, how: str) -> None:
    process = await a_run(recorder)
    if how == "refused":
        process.on_refused(frames.STEP_EXEC, errno.ENOENT)
    elif how == "lost":
        process.on_lost("why")
    else:
        process.give_up(ExecFailed("slow", "engine_timeout"))
    assert process.collected is not None
    reasons = {"refused": "not_found", "lost": "container_gone", "given up": "engine_timeout"}
    for future in (process.started, process.collected):
        with pytest.raises(ExecFailed) as raised:
            await future
        assert raised.value.reason == reasons[how]


# --- ending a tree ---


class Tree:
    """Something that ends with the order that it heeds."""

    def __init__(self, heeds: int) -> None:
        self.gone = asyncio.Event()
        self.orders: list[int] = []
        self._heeds = heeds

    def order(self, level: int) -> None:
        self.orders.append(level)
        if level == self._heeds:
            self.gone.set()


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_who_heeds_term_is_not_killed() -> None:
    tree = Tree(frames.LEVEL_TERM)
    await end_tree(tree.order, tree.gone, Grace(now() + 60))
    assert tree.orders == [frames.LEVEL_TERM]


async def test_who_does_not_is_killed_once_the_grace_is_over() -> None:
    tree, grace = Tree(frames.LEVEL_KILL), Grace(now() + 0.05)
    await end_tree(tree.order, tree.gone, grace)
    assert tree.orders == [frames.LEVEL_TERM, frames.LEVEL_KILL]
    assert now() >= grace.ends_at


async def test_without_a_grace_it_is_killed_at_once() -> None:
    tree = Tree(frames.LEVEL_KILL)
    await end_tree(tree.order, tree.gone, Grace(0.0))
    assert tree.orders == [frames.LEVEL_KILL]


async def test_a_grace_can_be_cut_short_while_it_runs() -> None:
    tree, grace = Tree(frames.LEVEL_KILL), Grace(now() + 3600)
    running = asyncio.create_task(end_tree(tree.order, tree.gone, grace))
    await asyncio.sleep(0)
    grace.ends_at = 0.0
    async with asyncio.timeout(10):
        await running
    assert tree.orders == [frames.LEVEL_TERM, frames.LEVEL_KILL]


async def test_what_does_not_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TREE_DEADLINE_MS", 20)
    tree = Tree(0)
    with pytest.raises(ExecFailed) as raised:
        await end_tree(tree.order, tree.gone, Grace(0.0))
    assert raised.value.reason == "engine_timeout"


# --- refusals ---

REFUSED = StartSpec(
    process_id="p",
    cmd=["/bin/prog", "-x"],
    working_dir="/work",
    user="me",
    limits={"nofile": 9},
    tty=(24, 80),
    template="warm",
)
STEPS = {number for name, number in vars(frames).items() if name.startswith("STEP_")}
OVERLOADED = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOENT, "not_found"),
        (errno.ENOTDIR, "not_found"),
        (errno.ELOOP, "not_found"),
        (errno.EACCES, "permission_denied"),
        (errno.EPERM, "permission_denied"),
        (errno.ENOEXEC, "not_executable"),
        (errno.EINVAL, "not_executable"),
        (errno.ELIBBAD, "not_executable"),
        (errno.EISDIR, "not_executable"),
        (errno.ETXTBSY, "file_busy"),
        (errno.E2BIG, "too_long"),
        (errno.ENAMETOOLONG, "too_long"),
        (errno.ENOMEM, "overloaded"),
        (errno.EAGAIN, "overloaded"),
        (errno.EMFILE, "overloaded"),
        (errno.ENFILE, "overloaded"),
        (errno.EIO, "io_error"),
    ],
)
def test_execve(number: int, reason: str) -> None:
    refused = step_refused(frames.STEP_EXEC, number, REFUSED)
    assert refused.reason == reason
    assert refused.retryable == (reason in ("overloaded", "file_busy"))
    assert str(refused) == f"exec failed: '/bin/prog': {os.strerror(number)}"


def test_what_was_found_is_said_in_place_of_the_kernel_s_word_and_only_where_it_is_about_files() -> None:
    found = Finding(1, False, errno.ENOENT, "/no/such/sh", b"")
    refused = step_refused(frames.STEP_EXEC, errno.ENOENT, REFUSED, found)
    assert str(refused) == "exec failed: '/bin/prog': its interpreter '/no/such/sh' does not exist here"
    for number in (errno.ETXTBSY, errno.E2BIG, errno.ENOMEM):
        assert str(step_refused(frames.STEP_EXEC, number, REFUSED, found)).endswith(os.strerror(number))


@pytest.mark.parametrize("number", OVERLOADED)
@pytest.mark.parametrize("step", sorted(STEPS - {frames.STEP_EXEC}))
def test_what_will_pass_may_be_tried_again_whatever_the_step(step: int, number: int) -> None:
    refused = step_refused(step, number, REFUSED)
    assert (refused.reason, refused.retryable) == ("overloaded", True)


@pytest.mark.parametrize(
    ("step", "number", "reason", "words"),
    [
        (frames.STEP_DIRECTORY, errno.ENOENT, "bad_working_dir", "working directory '/work': No such file"),
        (frames.STEP_DIRECTORY, errno.EACCES, "bad_working_dir", "working directory '/work': Permission denied"),
        (frames.STEP_TTY, errno.ENOENT, "io_error", "no pseudo-terminal: No such file"),
        (frames.STEP_LIMIT, errno.EPERM, "permission_denied", "limits {'nofile': 9}: Operation not permitted"),
        (frames.STEP_LIMIT, errno.EINVAL, "io_error", "limits {'nofile': 9}: Invalid argument"),
        (frames.STEP_USER, errno.EPERM, "permission_denied", "user 'me' is fastclaw's own in this"),
        (frames.STEP_USER, errno.EINVAL, "unknown_user", "user 'me': the environment's user namespace has no such id"),
        (frames.STEP_PROCESS, errno.ENOSYS, "io_error", "the process: Function not implemented"),
        (frames.STEP_REQUEST, errno.EBADF, "io_error", "the process: Bad file descriptor"),
        (frames.STEP_ADOPT, errno.ESRCH, "template_gone", "the worker ended before template 'warm'"),
        (999, errno.EIO, "io_error", "the process: Input/output error"),
    ],
)
def test_the_other_steps(step: int, number: int, reason: str, words: str) -> None:
    refused = step_refused(step, number, REFUSED)
    assert (refused.reason, refused.retryable) == (reason, reason == "template_gone")
    assert str(refused).startswith(f"exec failed: {words}")


def test_an_errno_that_nobody_knows_still_has_words() -> None:
    assert step_refused(frames.STEP_EXEC, 9_999, REFUSED).reason == "io_error"


def test_no_room() -> None:
    full = resources_refused(OSError(errno.EMFILE, "x"))
    assert (full.reason, full.retryable) == ("overloaded", True)
    assert "one more process: Too many open files" in str(full)
    other = resources_refused(OSError("no number"))
    assert (other.reason, str(other)) == ("io_error", "exec failed: there is no room for one more process: no number")


def test_a_text_that_cannot_be_passed_is_the_callers() -> None:
    refused = text_refused("true", ValueError("embedded null byte"))
    assert (refused.reason, refused.fault) == ("invalid_params", "caller")
    assert str(refused) == "exec failed: 'true': embedded null byte"
