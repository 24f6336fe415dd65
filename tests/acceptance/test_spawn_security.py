"""The threat model of the spawn lane (docs/security.md), line by line, on a real Podman with the real spawner."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from fastclaw import limits
from fastclaw.engine.container_spec import INIT_TARGET, SOCKET_TARGET
from fastclaw.errors import ExecFailed, FastclawError, ProtocolError, StartFailed
from fastclaw.linux import proc
from fastclaw.spawner import frames
from fastclaw.spawner.link import greet
from tests import odd_programs
from tests.acceptance.hostile import (
    PROGRAM,
    PUMP_UIDS,
    SECRET,
    WAIT_S,
    Box,
    a_workspace,
    ended,
    need_limits,
    need_root_for,
    require_pids_limit,
    serve_with,
    served,
)
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastclaw.client import RemoteProcess
    from tests.engine.conftest import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]
PUMPS_OF_A_BATCH = 24
"""Which hear one socket: BATCH in spawner.h."""
shared = pytest.mark.asyncio(loop_scope="module")
"""For tests that use the module's runtime: its client lives on the module's loop."""

USERS = ["0", "1000"]
ROOT, OTHER = USERS
DENIED = {"EPERM", "EACCES"}
PIDS = 200
CLONE = "always" if os.geteuid() == 0 else "never"
NEIGHBOURS = 10
"""Of each user, that nobody has connected to when the bomb goes off."""
LATE_KILLS = 100
KILL_S = 5
"""How long a kill without grace may take here: far more than it needs, and less than its own deadline."""


@pytest.fixture(scope="module")
def workspace() -> Iterator[Path]:
    """With the hostile program in it, and a copy that is setuid root."""
    with a_workspace("hostile") as directory:
        shutil.copy(directory / "hostile", directory / "raised")
        (directory / "raised").chmod(0o4755)
        yield directory


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["host", "private", "clone"])
async def box(engine_service: EngineService, workspace: Path, request: pytest.FixtureRequest) -> AsyncIterator[Box]:
    """The runtimes that the tests share: root without rights, root with some in a user namespace, and that as a clone.

    At the end their spawners are still the first ones.
    """
    need_root_for(request.param)
    mode = {"clone": "always"} if request.param == "clone" else {"clone": "never", "user_namespace": request.param}
    async with served(engine_service, workspace, **mode) as one:
        assert (one.capabilities == 0) == (request.param == "host")
        yield one
        assert await one.works()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(engine_service: EngineService, workspace: Path) -> AsyncIterator[Box]:
    """A runtime that gives up sooner."""
    async with served(engine_service, workspace, serve_with(SPAWN_START_MS=700, TREE_DEADLINE_MS=700)) as one:
        yield one


async def refused(box: Box, user: str, word: str, *arguments: object) -> set[str]:
    """The attempts of a word that did not fail for want of a right."""
    results = await box.results(word, *arguments, user=user)
    assert results
    return {name for name, result in results if result not in DENIED}


async def killed(process: RemoteProcess) -> None:
    async with asyncio.timeout(KILL_S):
        await process.kill(0)
    await process.aclose()


# --- the spawner itself -----------------------------------------------------------------------------


@asynccontextmanager
async def echoing(box: Box, user: str) -> AsyncIterator[list[int]]:
    """A command of a user that says what it hears; main, its reaper and its pump. In the end it still does."""
    async with await box.start("sh", "-c", "echo $$; exec cat", user=user, stdin=True) as process:
        pid = int(await asyncio.wait_for(process.stdout_read(), WAIT_S))
        spawner = await box.spawner_of(pid)
        assert len(spawner) == 3
        yield spawner
        assert await box.spawner_of(pid) == spawner
        await echoes(process)
        await killed(process)


async def echoes(process: RemoteProcess) -> None:
    await process.write(b"still here")
    assert await asyncio.wait_for(process.stdout_read(), WAIT_S) == b"still here"


@shared
@pytest.mark.parametrize("user", USERS)
async def test_nobody_reaches_into_the_spawner(box: Box, user: str) -> None:
    """Neither its memory nor its environment, descriptors, files. Root may count its descriptors: the numbers only.

    Who has CAP_DAC_OVERRIDE may also open, for writing, the file that resets the counters of used pages.
    """
    may = {ROOT: {"fd", "clear_refs"} if box.capabilities else {"fd"}, OTHER: set()}
    async with echoing(box, user) as spawner:
        for target in (*spawner, (await box.reapers())[0], (await box.pumps())[0]):
            assert await refused(box, user, "reach", target) <= may[user]


@shared
@pytest.mark.parametrize("user", USERS)
async def test_nobody_changes_the_limits_or_priority_of_the_spawner(box: Box, user: str) -> None:
    async with echoing(box, user) as spawner:
        for target in (*spawner, (await box.reapers())[0], (await box.pumps())[0]):
            assert await refused(box, user, "meddle", target) == set()


@shared
async def test_what_belongs_to_uid_0_of_the_spawner_is_what_the_kernel_gives_it(box: Box) -> None:
    """No other user may write any of it. Root may make it the first victim: see "What is not defended"."""
    async with echoing(box, OTHER) as spawner:
        for target in spawner:
            assert await refused(box, OTHER, "adjust", target) == set()
            written = await refused(box, ROOT, "adjust", target)
            assert written <= {"oom_score_adj", "coredump_filter", "autogroup", "sched", "clear_refs", "comm"}


@shared
@pytest.mark.parametrize("user", USERS)
async def test_no_signal_has_an_effect_on_the_spawner(box: Box, user: str) -> None:
    reapers, pumps = await box.reapers(), await box.pumps()
    assert len(reapers) == len(pumps)
    await box.results("kill", 1, "1,2,3,9,10,12,15,17,18,19,34,64", user=user)
    async with echoing(box, user) as (_, *in_use):
        for target in (*in_use, *reapers[:2], *pumps[:2]):
            assert await refused(box, user, "kill", target, "0,9,10,15,17,18,19,64") == set()
    assert set(reapers) <= set(await box.reapers())
    assert set(pumps) <= set(await box.pumps())
    assert await box.works()


@shared
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("signum", [9, 19])
async def test_no_signal_by_way_of_a_descriptors_owner_has_an_effect_on_a_reaper_or_a_pump(
    box: Box, user: str, signum: int
) -> None:
    """fcntl(2), F_SETOWN and F_SETSIG: the kernel sends it, and asks for other rights than kill(2) does."""
    async with echoing(box, user) as (_, *in_use):
        for target in in_use:
            await box.results("pipe", target, signum, user=user)
            state = await box.output("sh", "-c", f"cat /proc/{target}/stat")
            assert f"{target} (fastclaw-init) S" in state


@shared
@pytest.mark.parametrize("user", USERS)
async def test_nobody_speaks_to_a_pump(box: Box, user: str) -> None:
    """What it hears comes from one socket. That takes what is sent to it, and nobody reads it."""
    async with echoing(box, user):
        for _ in range(20):
            results = await box.results("sockets", user=user)
            assert results.count(("send", "EPERM")) == len(await box.pumps())
            ours = -(-len(await box.pumps()) // PUMPS_OF_A_BATCH) + 1  # one for each batch, and one for templates
            assert [result for name, result in results if name == "send"].count("ok") <= ours


@shared
@pytest.mark.parametrize("user", USERS)
async def test_an_event_of_the_hosts_making_does_not_end_the_init(box: Box, user: str) -> None:
    """A signal from outside its PID namespace would; that of a descriptor's owner does not count as one."""
    async with await box.until_ready("stdin", 1, 9, user=user, stdin=True) as process:
        await process.write(b"x")
        assert await box.works()
        await killed(process)


@shared
@pytest.mark.parametrize("user", USERS)
async def test_the_control_socket_is_gone(box: Box, user: str) -> None:
    results = await box.results("connect", SOCKET_TARGET, user=user)
    assert {result for _, result in results} <= DENIED | {"ECONNREFUSED"}


@shared
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("path", [INIT_TARGET, SOCKET_TARGET])
async def test_what_is_mounted_for_the_spawner_cannot_be_changed(box: Box, user: str, path: str) -> None:
    results = await box.results("replace", path, user=user)
    assert {result for _, result in results} <= DENIED | {"EROFS", "EBUSY", "ETXTBSY", "EINVAL", "ENXIO"}


@shared
async def test_the_init_knows_no_secret_of_the_host(box: Box) -> None:
    async with await box.start("sleep", "1000") as process:
        pid = next(row.pid for row in proc.scan("FASTCLAW_PROCESS_ID") if row.marker == process.id)
        init = parent_of(parent_of(pid))
        known = procfs_text(init, "environ") + procfs_text(init, "cmdline")
        await killed(process)
    assert INIT_TARGET in known
    for text in (known, await box.output("env")):
        assert SECRET not in text
        assert "s3cret" not in text


def procfs_text(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8")


def parent_of(pid: int) -> int:
    lines = procfs_text(pid, "status").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid:"))


@shared
@pytest.mark.parametrize("user", USERS)
async def test_nobody_changes_the_containers_own_limits(box: Box, user: str) -> None:
    names = " -o ".join(f"-name {name}" for name in ("pids.max", "memory.limit_in_bytes", "memory.max", "cgroup.procs"))
    script = f"for f in $(find /sys/fs/cgroup {names}); do (echo 1 > $f) 2>/dev/null && echo $f; done"
    found = await box.output("sh", "-c", script, user=user)
    assert found == ""


# --- the rights of a command ------------------------------------------------------------------------


@shared
@pytest.mark.parametrize("user", USERS)
async def test_a_command_has_the_rights_that_were_decided(box: Box, user: str) -> None:
    lines = (await box.output("cat", "/proc/self/status", user=user)).splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = box.capabilities if user == ROOT else 0
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [has, has, 0, 0]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == [user] * 4


@shared
@pytest.mark.parametrize("user", USERS)
async def test_a_command_gets_no_right_back(box: Box, user: str) -> None:
    """Who has CAP_SETPCAP may give up more; who has CAP_SETUID may become another user, and has none then."""
    results = dict(await box.results("regain", user=user))
    assert results.pop("privileges") == "EINVAL"
    may = {"bounding", "securebits", "other"} if box.capabilities and user == ROOT else set()
    assert {name for name, result in results.items() if result not in DENIED} == may


@shared
@pytest.mark.parametrize("user", USERS)
async def test_nobody_becomes_a_user_of_the_spawner(box: Box, user: str) -> None:
    """Not even who has CAP_SETUID, and may become everybody else."""
    for uid in (limits.REAPER_UID, max(PUMP_UIDS), min(PUMP_UIDS)):
        assert await refused(box, user, "become", uid) == set()
    others = [await refused(box, user, "become", uid) for uid in (min(PUMP_UIDS) - 1, limits.REAPER_UID + 1)]
    assert all(("setuid" in became) == bool(box.capabilities and user == ROOT) for became in others)


@shared
@pytest.mark.parametrize("user", USERS)
async def test_a_command_gets_no_user_namespace(box: Box, user: str) -> None:
    assert await refused(box, user, "userns") == set()


@shared
@pytest.mark.parametrize("user", USERS)
async def test_nobody_gets_a_socket_to_the_hypervisor(box: Box, user: str) -> None:
    """Which is in no network namespace (vsock(7)); others are had as ever."""
    results = dict(await box.results("vsock", user=user))
    assert (results["native"], results["inet"]) == ("EAFNOSUPPORT", "ok")
    assert results["compat"] in {"EAFNOSUPPORT", "ENOSYS"}  # the latter of a kernel without calls for 32 bits
    assert results["socketcall"] == "ENOSYS"


@shared
async def test_a_setuid_program_raises_nobody(box: Box) -> None:
    """One in the workspace (nosuid), and one in the container's own file system (no_new_privs)."""
    await box.output("sh", "-c", "cp /w/hostile /tmp/raised && chmod 4755 /tmp/raised")
    for path in ("/w/raised", "/tmp/raised"):
        assert await box.output(path, "rights", user=OTHER) == "uid 1000 1000\ncapabilities 0 0\n"


@shared
@pytest.mark.parametrize("stdin", [True, False])
async def test_a_command_holds_nothing_but_its_stdio(box: Box, stdin: bool) -> None:
    """3 is the directory that `ls` reads. Many at once, so that none sees another's."""
    texts = await asyncio.gather(*(box.output("ls", "/proc/self/fd", stdin=stdin) for _ in range(20)))
    assert set(texts) == {"0\n1\n2\n3\n"}


@shared
async def test_the_reapers_user_is_refused(box: Box) -> None:
    for user in (str(limits.REAPER_UID), f"0{limits.REAPER_UID}", f"{limits.REAPER_UID}:0"):
        with pytest.raises(ExecFailed) as caught:
            await box.start("true", user=user)
        assert caught.value.reason == "permission_denied"


@shared
async def test_the_pumps_users_are_refused(box: Box) -> None:
    """And no other number next to them."""
    assert await box.spawner_users() == {limits.REAPER_UID, max(PUMP_UIDS)}
    for uid in PUMP_UIDS:
        with pytest.raises(ExecFailed) as caught:
            await box.start("true", user=str(uid))
        assert caught.value.reason == "permission_denied"
    for uid in (min(PUMP_UIDS) - 1, limits.REAPER_UID + 1):
        assert (await box.output(PROGRAM, "rights", user=str(uid))).startswith(f"uid {uid} {uid}\n")


@shared
async def test_a_changed_user_database_makes_nobody_a_reaper_and_no_number_another(box: Box) -> None:
    users = {"wolf": 0, "reaper": limits.REAPER_UID, "pump": max(PUMP_UIDS), "1000": 0, "sheep": 4294967295}
    lines = "".join(f"{name}:x:{uid}:0::/:\\n" for name, uid in users.items())
    await box.output("sh", "-c", f"cp /etc/passwd /tmp/passwd; printf '{lines}' >> /etc/passwd")
    try:
        has = f"{box.capabilities:x}"
        assert await box.output(PROGRAM, "rights", user="wolf") == f"uid 0 0\ncapabilities {has} {has}\n"
        for user, reason in (
            ("reaper", "permission_denied"),
            ("pump", "permission_denied"),
            ("sheep", "unknown_user"),
        ):
            with pytest.raises(ExecFailed) as caught:
                await box.start("true", user=user)
            assert caught.value.reason == reason
        assert (await box.output(PROGRAM, "rights", user=OTHER)).startswith("uid 1000 1000\n")
    finally:
        await box.output("cp", "/tmp/passwd", "/etc/passwd", user=ROOT)


@shared
@pytest.mark.parametrize(
    "trick",
    [
        "mkfifo /etc/passwd",
        "mkdir /etc/passwd",
        "ln -s /dev/zero /etc/passwd",
        "ln -s /proc/1/environ /etc/passwd",
        "ln -s /etc/passwd /etc/passwd",
        "yes ::::::: | head -c 4000000 > /etc/passwd",
        "head -c 4000000 /dev/urandom > /etc/passwd",
    ],
)
async def test_a_strange_user_database_holds_nobody_up(box: Box, trick: str) -> None:
    await box.output("sh", "-c", f"mv /etc/passwd /tmp/passwd; {trick}")
    try:
        async with asyncio.timeout(KILL_S):
            assert (await box.output(PROGRAM, "rights", user=OTHER)).startswith("uid 1000 1000\n")
    finally:
        await box.output("sh", "-c", "rm -rf /etc/passwd; mv /tmp/passwd /etc/passwd")


# --- neighbours -------------------------------------------------------------------------------------


@shared
@pytest.mark.parametrize("user", USERS)
async def test_who_kills_everybody_hits_only_his_own_user(box: Box, user: str) -> None:
    reapers = await box.reapers()
    same, foreign = [await box.start("sleep", "1000", user=one) for one in (user, other(user))]
    async with same, foreign:
        await box.output(PROGRAM, "everybody", "9", user=user)
        record = await ended(same)
        assert (record.signal, record.reason) == (9, "signaled")
        assert (await foreign.wait(0)).state == "running"
        await killed(foreign)
    assert set(reapers) <= set(await box.reapers())
    assert await box.works()


@shared
@pytest.mark.parametrize("user", USERS)
async def test_who_stops_everybody_hits_only_his_own_user(box: Box, user: str) -> None:
    same, foreign = await box.start("sleep", "1000", user=user), await box.start("cat", user=other(user), stdin=True)
    async with same, foreign:
        await box.output(PROGRAM, "everybody", "19", user=user)
        await foreign.write(b"still here")
        assert await asyncio.wait_for(foreign.stdout_read(), WAIT_S) == b"still here"
        assert await box.works()
        await killed(same)
        await killed(foreign)


def other(user: str) -> str:
    return OTHER if user == ROOT else ROOT


@shared
async def test_a_foreign_users_command_is_out_of_reach(box: Box) -> None:
    """Root has no rights over other users, unless it becomes them; whoever is the same user is not defended."""
    async with await box.start("sleep", "1000", user=OTHER) as process:
        pid = (await box.output("pidof", "sleep")).split()[0]
        for word in (("reach", pid), ("meddle", pid), ("kill", pid, "0,9,15,19")):
            assert await refused(box, ROOT, *word) <= {"fd", "clear_refs"}
        assert dict(await box.results("reach", pid, user=OTHER))["attach"] == "ok"
        await killed(process)


@shared
async def test_who_takes_every_descriptor_takes_only_his_own(box: Box) -> None:
    async with await box.until_ready("files", limits={"nofile": 1_000}) as process:
        assert await box.works()
        await killed(process)


@shared
async def test_output_that_nobody_reads_blocks_only_its_process(box: Box) -> None:
    floods = [await box.start("cat", "/dev/zero") for _ in range(4)]
    for flood in floods[:2]:
        await flood.connect()
    assert await box.works()
    for flood in floods:
        await killed(flood)
        assert (await ended(flood)).reason == "killed"


@shared
@pytest.mark.parametrize(
    "cmd",
    [
        ["echo", *["x"] * 200_000],
        ["echo", "\ufffd\n\r\x1b[2J'\"" * 1_000],
        ["echo", "x" * 1_000_000],
        ["x" * 100_000],
        ["/" * 5_000],
        [""],
        ["/proc/self/mem"],
        ["echo", *["x" * 100_000] * 100],
    ],
)
async def test_strange_command_lines_are_started_or_refused(box: Box, cmd: list[str]) -> None:
    with suppress(FastclawError):
        await box.output(*cmd)
    assert await box.works()


@shared
async def test_why_a_command_is_refused_is_found_out_by_itself_and_as_who_it_is(box: Box, workspace: Path) -> None:
    """Its files are opened with its own rights, a FIFO and a file of somebody else's are not, and nobody else waits."""
    directory = workspace / "odd"
    directory.mkdir()
    odd_programs.make(directory)
    os.mkfifo(directory / "fifo", 0o777)
    for name, mode in (("fifo-for-interpreter", 0o755), ("unreadable", 0o711)):
        (directory / name).write_text("#!/w/odd/fifo\n")
        (directory / name).chmod(mode)
    expected = {name: (odd.reason, odd.words) for name, odd in odd_programs.ODD.items()}
    expected["fifo-for-interpreter"] = ("permission_denied", "its interpreter '/w/odd/fifo' is no regular file")
    expected["unreadable"] = ("permission_denied", "Permission denied")
    for name, (reason, words) in expected.items():
        with pytest.raises(ExecFailed) as refusal:
            await box.start(f"/w/odd/{name}", user=OTHER)
        assert str(refusal.value).startswith(f"exec failed: '/w/odd/{name}': {words}")
        assert refusal.value.reason == reason
    shutil.rmtree(directory)
    assert await box.works()


@shared
@pytest.mark.parametrize("bound", ["as", "stack", "nofile", "nproc", "fsize", "cpu", "data"])
async def test_strange_limits_hit_only_their_command(box: Box, bound: str) -> None:
    with suppress(FastclawError):
        await killed(await box.start("sleep", "1000", user=OTHER, limits={bound: 0}))
    assert await box.works()


# --- trees that do not want to end ------------------------------------------------------------------


@shared
@pytest.mark.parametrize(
    ("word", "arguments"),
    [("escape", ()), ("leader", ()), ("deep", (2_000,)), ("chains", (1,)), ("chains", (200,))],
)
async def test_kill_ends_every_tree(box: Box, word: str, arguments: tuple[int, ...]) -> None:
    process = await box.until_ready(word, *arguments)
    await killed(process)
    assert (await ended(process)).reason in ("killed", "exited")
    assert await box.commands() == []


def test_no_bomb_goes_off_where_nothing_holds_it() -> None:
    """As on hosts without the pids controller, which one of these tests has filled."""
    with pytest.raises(pytest.fail.Exception, match="no pids limit of 1 is in force"):
        require_pids_limit(os.getpid(), 1)


@shared
@pytest.mark.parametrize("apart", [0, 1])
async def test_a_fork_bomb_ends_with_its_kill(engine_service: EngineService, workspace: Path, apart: int) -> None:
    """In one session, and with a session for each process. Who runs already is reached all the same."""
    async with served(engine_service, workspace, pids_limit=PIDS, clone=CLONE) as box:
        await need_limits(box.client, "pids_limit")
        there = await asyncio.gather(*(box.start("cat", user=user, stdin=True) for user in USERS * NEIGHBOURS))
        bomb = await box.bomb(apart, 2 * PIDS, OTHER)
        with pytest.raises(ExecFailed) as caught:
            await box.start("true")
        assert (caught.value.reason, caught.value.retryable) == ("overloaded", True)
        assert (await asyncio.wait_for(box.client.health(), WAIT_S)).status == "healthy"
        await asyncio.gather(*map(echoes, there))
        await killed(bomb)
        await asyncio.gather(*map(killed, there))
        assert await box.works()
        assert await box.commands() == []


@shared
async def test_who_takes_all_memory_is_the_one_who_dies(engine_service: EngineService, workspace: Path) -> None:
    async with served(engine_service, workspace, memory_bytes=64 * limits.MIB, clone=CLONE) as box:
        await need_limits(box.client, "memory_bytes")
        async with await box.start("sleep", "1000") as neighbour, await box.start(PROGRAM, "hog", "256") as hog:
            record = await ended(hog)
            assert (record.signal, record.reason) == (9, "oom")
            assert (await neighbour.wait(0)).state == "running"
            await killed(neighbour)
        assert await box.works()


@shared
async def test_who_makes_the_spawner_the_first_victim_ends_the_container_and_nothing_else(
    engine_service: EngineService, workspace: Path
) -> None:
    """Not defended: /proc/1/oom_score_adj is uid 0's. The records say so, and a new container takes over."""
    script = f"echo 1000 > /proc/1/oom_score_adj; for i in 1 2 3 4 5 6 7 8; do {PROGRAM} hog 12 & done; wait"
    async with served(engine_service, workspace, memory_bytes=64 * limits.MIB, clone=CLONE) as box:
        await need_limits(box.client, "memory_bytes")
        async with await box.start("sleep", "1000", user=OTHER) as neighbour, await box.start("sh", "-c", script):
            record = await ended(neighbour)
            assert (record.reason, record.oom_kills) == ("container_gone", 1)
        await until(lambda: is_back(box), WAIT_S)
        assert await box.works()


async def is_back(box: Box) -> bool:
    with suppress(ExecFailed):
        return await box.output("echo", "fine") == "fine\n"
    return False


@shared
async def test_a_kill_never_hits_the_next_start(box: Box) -> None:
    """The reaper of what was killed takes the next request while main is still at the kill."""

    async def rounds() -> None:
        for _ in range(LATE_KILLS):
            await killed(await box.start("sleep", "1000"))
            assert await box.output("echo", "fine") == "fine\n"

    await asyncio.gather(*(rounds() for _ in range(4)))


@shared
async def test_a_command_that_is_stopped_before_it_runs_is_given_up(hasty: Box) -> None:
    """A neighbour of the same user stops it between fork and execve; a search path of many steps makes that long."""
    stopper = await hasty.until_ready("stop", user=OTHER)
    path = "a:" * 60_000
    with pytest.raises(ExecFailed) as caught:
        await hasty.start("no-such-program", user=OTHER, env={"PATH": path})
    assert caught.value.reason == "engine_timeout"
    assert await hasty.output("echo", "fine", user=ROOT) == "fine\n"
    await killed(stopper)
    assert await hasty.works()
    assert (await hasty.lane())["kept"] == 0


@shared
async def test_a_traced_command_is_not_called_gone(hasty: Box) -> None:
    """The kernel shows a zombie to its tracer first: while a neighbour of the same user holds one, a kill says so."""
    async with await hasty.start("sleep", "1000", user=OTHER) as process:
        pid = (await hasty.output("pidof", "sleep")).strip()
        tracer = await hasty.until_ready("hold", pid, user=OTHER)
        with pytest.raises(ExecFailed) as caught:
            await process.kill(0)
        assert caught.value.reason == "engine_timeout"
        assert await hasty.works()
        await killed(tracer)
        await killed(process)


# --- the host's side --------------------------------------------------------------------------------


async def test_who_connects_before_the_init_is_refused(engine_service: EngineService, workspace: Path) -> None:
    intruder = asyncio.ensure_future(intrude(Path(os.environ["XDG_RUNTIME_DIR"])))
    try:
        with pytest.raises(StartFailed, match="connected to the spawner's socket"):
            async with served(engine_service, workspace):
                pass
    finally:
        (await intruder).close()


async def intrude(parent: Path) -> socket.socket:
    """A connection to the first awaited socket that shows up."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    await until(lambda: try_connect(connection, parent))
    return connection


def try_connect(connection: socket.socket, parent: Path) -> bool:
    for path in parent.glob("fastclaw-*/*.init"):
        with suppress(ConnectionRefusedError, FileNotFoundError):
            connection.connect(str(path))
            return True
    return False


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"x",
        b"\0" * 16,
        frames.control(frames.HELLO, frames.MAGIC, frames.VERSION + 1),
        frames.control(frames.ANSWER, frames.MAGIC, frames.VERSION),
    ],
)
async def test_a_stranger_that_greets_wrongly_is_turned_away(greeting: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(greeting)
    if not greeting:
        theirs.close()
    with pytest.raises((ProtocolError, StartFailed)):
        await greet(
            ours,
            confine=True,
            reaper_uid=limits.REAPER_UID,
            collect_bytes=limits.RUN_OUTPUT_BYTES,
            on_end=lambda: None,
        )
    theirs.close()
