"""A spawner on this host, with real processes: starting, refusing, exits, descriptors."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import pwd
import re
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import ANY

import pytest
from msgspec.structs import replace

from fastclaw import limits
from fastclaw.errors import ExecFailed, InvalidParams, StartFailed
from fastclaw.processes.lane import Collection, ExitStatus, Grace, StartSpec
from fastclaw.spawner import spawner_host
from fastclaw.spawner.frames import Identity
from fastclaw.spawner.spawner_host import ARCHITECTURES, LocalHost, find_spawner, path_for, resolve_user, why_no_spawner
from tests import odd_programs
from tests.balance import balanced, descriptors_left, open_descriptors
from tests.pids import descendants_of
from tests.spawner.fake_spawner import commands_of, pumps_of
from tests.spawner.rig import STDIO, Client, a_host, a_lane, needs_root, run, settled, spec, start, start_spec
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


async def test_all_three_streams_and_the_exit_code() -> None:
    async with a_lane() as lane:
        status, out, err = await run(lane, "sh", "-c", "cat; echo bad >&2; exit 7", stdin=b"in")
        assert (status.reason, status.exit_code, status.signal) == ("exited", 7, None)
        assert (out, err) == (b"in", b"bad\n")


async def test_an_end_by_signal_and_its_usage() -> None:
    async with a_lane() as lane:
        status, _, _ = await run(lane, "sh", "-c", "kill -9 $$")
        assert (status.reason, status.exit_code, status.signal) == ("signaled", None, 9)
        assert status.usage is not None
        assert set(status.usage) == {"user_us", "system_us", "max_rss_kb"}
        assert status.usage["max_rss_kb"] > 0


async def test_instant_exits_are_exact() -> None:
    async with a_lane() as lane:
        processes = [await start(lane, "sh", "-c", f"exit {n}") for n in range(32)]
        statuses = [status for status, _, _ in await asyncio.gather(*(process.finish() for process in processes))]
        assert [status.exit_code for status in statuses] == list(range(32))


async def test_without_stdin_it_reads_nothing() -> None:
    async with a_lane() as lane:
        process = await start(lane, "cat", stdin=False)
        ended = ExitStatus(reason="exited", exit_code=0, usage=ANY)
        assert await process.exited() == ended
        assert await process.finish(b"for nobody") == (ended, b"", b"")


async def test_environment_and_working_directory(tmp_path: Path) -> None:
    async with a_lane() as lane:
        _, out, _ = await run(lane, "sh", "-c", "pwd; env", env={"ONE": "1"}, working_dir=str(tmp_path))
        lines = out.decode().splitlines()
        assert lines[0] == str(tmp_path)
        assert {"ONE=1", f"HOME={os.environ['HOME']}"} <= set(lines)


async def test_the_command_is_looked_up_in_its_own_path(tmp_path: Path) -> None:
    tool = tmp_path / "only-here"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    async with a_lane() as lane:
        assert (await run(lane, "only-here", env={"PATH": f"{tmp_path}:/bin"}))[1] == b"found\n"
        with pytest.raises(ExecFailed):
            await start(lane, "only-here")


INSIDE = """
import json, os, signal
fds = {int(fd) for fd in os.listdir("/proc/self/fd")}
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "blocking": [os.get_blocking(fd) for fd in (0, 1, 2)],
    "fds": sorted(fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")),
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16),
    "leads": os.getsid(0) == os.getpid() == os.getpgrp(),
}))
"""


async def test_a_clean_start_whatever_we_are_ourselves(tmp_path: Path) -> None:
    leak = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leak, True)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with a_lane() as lane:
            _, out, _ = await run(lane, sys.executable, "-S", "-c", INSIDE)
    finally:
        signal.signal(signal.SIGHUP, before)
        os.close(leak)
    seen = json.loads(out)
    python = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    assert seen == {"blocking": [True] * 3, "fds": [0, 1, 2], "ignored": python, "blocked": 0, "leads": True}


async def test_a_start_costs_us_no_descriptor() -> None:
    async with a_lane() as lane:
        before = open_descriptors()
        processes = [await lane.start(spec("cat"), 0) for _ in range(20)]
        for process in processes:
            assert process.started is not None
            await process.started
        assert open_descriptors() == before
        await lane.end_all(list(processes), Grace(0.0))


async def test_stderr_may_be_stdout() -> None:
    async with a_lane() as lane:
        script = "echo one; echo two >&2; echo three; [ /dev/stdout -ef /dev/stderr ] && echo same"
        status, out, err = await run(lane, "sh", "-c", script, merge_stderr=True)
        assert (status.exit_code, out, err) == (0, b"one\ntwo\nthree\nsame\n", b"")


@pytest.mark.parametrize("orphans", ["keep", "kill"])
async def test_what_a_command_leaves_is_kept_or_ended(orphans: str) -> None:
    async with a_host() as (host, lane):
        process = await start(lane, "sh", "-c", "(setsid sleep 1000 >/dev/null 2>&1 &); exit 3", orphans=orphans)
        assert (await process.exited()).exit_code == 3
        if orphans == "kill":
            await settled(host)
            assert process.is_gone
        else:
            assert not process.is_gone
            (reaper,) = [one for one in descendants_of(host.pid) if commands_of(one)]
            await until(lambda: len(commands_of(reaper)) == 1)
            await process.end()
            await until(lambda: not commands_of(reaper))
        process.close()


@pytest.mark.parametrize(("holds", "seen"), [(False, b"gone\n"), (True, b"word\ngone\n")])
async def test_a_client_that_leaves_ends_stdin_unless_it_is_held(holds: bool, seen: bytes) -> None:
    async with a_lane() as lane:
        process = await start(lane, "sh", "-c", "cat >&2; echo gone >&2", holds_stdin=holds)
        process.stdio.close()
        if holds:
            other = Client(process.process, STDIO)
            await other.send(b"word\n")
            other.send_eof()
            assert await other.read_all() == b""
            other.close()
        assert await process.stderr.read_all() == seen
        process.close()


async def test_stdio_can_be_opened_again() -> None:
    async with a_lane() as lane:
        _, out, err = await run(lane, "sh", "-c", "cat </dev/stdin >/dev/stdout; echo e >/dev/stderr", stdin=b"through")
        assert (out, err) == (b"through", b"e\n")


def refusals(path: Path) -> dict[str, tuple[StartSpec, str]]:
    (path / "text").write_text("echo no shebang\n")
    (path / "text").chmod(0o755)
    (path / "plain").write_text("#!/bin/sh\n")
    (path / "plain").chmod(0o644)
    (path / "lost").write_text("#!/no/such/interpreter\n")
    (path / "lost").chmod(0o755)
    (path / "foreign").write_bytes(odd_programs.elf(odd_programs.FOREIGN))
    (path / "foreign").chmod(0o755)
    (path / "bytes").write_bytes(bytes(64))
    (path / "bytes").chmod(0o755)
    return {
        "missing in PATH": (spec("no-such-command"), "not_found"),
        "missing file": (spec("/no/such/file"), "not_found"),
        "below a file": (spec("/etc/passwd/x"), "not_found"),
        "missing interpreter": (spec(str(path / "lost")), "not_found"),
        "empty": (spec(""), "not_found"),
        "not executable": (spec(str(path / "plain")), "permission_denied"),
        "a directory": (spec(str(path)), "permission_denied"),
        "a directory, in itself": (spec(str(path), working_dir=str(path)), "permission_denied"),
        "no shebang": (spec(str(path / "text")), "not_executable"),
        "no shebang, by PATH": (spec("text", env={"PATH": str(path)}), "not_executable"),
        "of another machine": (spec(str(path / "foreign")), "not_executable"),
        "no program at all": (spec(str(path / "bytes")), "not_executable"),
        "missing directory": (spec("true", working_dir="/no/such"), "bad_working_dir"),
        "a file as directory": (spec("true", working_dir=str(path / "text")), "bad_working_dir"),
        "directory and command the same": (spec("/no/such", working_dir="/no/such"), "bad_working_dir"),
        "relative directory": (spec("true", working_dir="tmp"), "bad_working_dir"),
        "an argument too long": (spec("true", "x" * limits.MIB), "too_long"),
        "a variable too long": (spec("true", env={"BIG": "x" * limits.MIB}), "too_long"),
        "a name too long": (spec("/" + "x" * 300), "too_long"),
        "NUL in an argument": (spec("true", "a\0b"), "invalid_params"),
        "NUL in a value": (spec("true", env={"A": "\0"}), "invalid_params"),
        "lone surrogate": (spec("true", "\ud800"), "invalid_params"),
        "unknown user": (spec("true", user="no-such-user"), "unknown_user"),
        "unknown limit": (spec("true", limits={"nofiles": 1}), "invalid_params"),
        "a limit below what is asked for": (spec("true", limits={"nofile": 2**63}), "permission_denied"),
    }


@pytest.mark.parametrize("group", [{}, {"pids": 99}], ids=["alone", "group"])
async def test_every_refusal_has_its_reason_and_leaves_nothing(tmp_path: Path, group: dict[str, int]) -> None:
    """Also of what is to have a control group of its own, where this host has them."""
    async with a_lane() as lane:
        own = {name: limit for name, limit in group.items() if name in lane.capabilities}
        for name, (bad, reason) in refusals(tmp_path).items():
            with pytest.raises((ExecFailed, InvalidParams)) as refused:
                await start_spec(lane, replace(bad, limits={**bad.limits, **own}))
            assert (name, refused.value.reason) == (name, reason)
        assert lane.health()["kept"] == 0
        assert (await run(lane, "echo", "on"))[1] == b"on\n"


async def test_not_found_says_what(tmp_path: Path) -> None:
    """moby/moby#40859, fish-shell/fish-shell#8938: the file is there, and what it needs is not."""
    odd_programs.make(tmp_path)
    (tmp_path / "locked").write_text(f"#!{tmp_path}/fifo\n")
    (tmp_path / "locked").chmod(0o755)
    os.mkfifo(tmp_path / "fifo", 0o777)
    nested = odd_programs.Odd(b"", "not_found", "its interpreter's loader '/no/such/ld.so' does not exist here")
    (tmp_path / "nested").write_text(f"#!{tmp_path}/no-loader\n")
    (tmp_path / "nested").chmod(0o755)
    fifo = odd_programs.Odd(b"", "permission_denied", f"its interpreter '{tmp_path}/fifo' is no regular file")
    async with a_lane() as lane:
        for name, odd in {**odd_programs.ODD, "nested": nested, "locked": fifo}.items():
            for asked in (spec(str(tmp_path / name)), spec(name, env={"PATH": f"/no/such:{tmp_path}"})):
                with pytest.raises(ExecFailed) as refused:
                    await start_spec(lane, asked)
                assert str(refused.value).startswith(f"exec failed: {asked.cmd[0]!r}: {odd.words}")
                assert refused.value.reason == odd.reason


async def test_a_file_that_is_being_written_may_be_tried_again(tmp_path: Path) -> None:
    """eminwux/sbsh#376: write and run is what agents do all day."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    async with a_lane() as lane:
        with script.open("a"), pytest.raises(ExecFailed) as refused:
            await start_spec(lane, spec(str(script)))
        assert (refused.value.reason, refused.value.retryable) == ("file_busy", True)
        await run(lane, str(script))


async def test_a_directory_that_was_deleted_is_a_bad_working_dir(tmp_path: Path) -> None:
    async with a_lane() as lane:
        directory = tmp_path / "gone"
        directory.mkdir()
        process = await start(lane, "sh", "-c", "read line; pwd -P", working_dir=str(directory))
        directory.rmdir()
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true", working_dir=str(directory))
        assert refused.value.reason == "bad_working_dir"
        assert str(directory) in str(refused.value)
        await process.finish(b"\n")


async def test_without_descriptors_only_what_needs_a_file_is_overloaded() -> None:
    async with a_lane() as lane:
        await run(lane, "true")
        with descriptors_left(0):
            process = await lane.start(spec("sleep", "1000"), 0)  # its pump has its streams
            assert process.started is not None
            await process.started
            with pytest.raises(ExecFailed) as refused:
                await lane.start(spec("true", "x" * limits.SPAWN_FRAME_BYTES), 0)
            assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)
            with pytest.raises(ExecFailed) as refused:
                await lane.run(spec("cat"), Collection(input=bytes(limits.SPAWN_FRAME_BYTES)), 0)
            assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)
        await process.end_tree(Grace(0.0))
        assert (await run(lane, "echo", "on"))[1] == b"on\n"


@pytest.mark.parametrize("room", range(8))
async def test_a_spawner_without_descriptors_is_overloaded_and_recovers(room: int) -> None:
    """Each of a pump's own steps fails in turn: the pipes of stdin, stdout and stderr."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with a_host() as (host, lane):
        await run(lane, "true")
        for pump in pumps_of(host.pid):
            held = max(int(fd) for fd in os.listdir(f"/proc/{pump}/fd"))
            resource.prlimit(pump, resource.RLIMIT_NOFILE, (held + 1 + room, hard))
        results = await asyncio.gather(*(run(lane, "cat", stdin=b"x") for _ in range(8)), return_exceptions=True)
        for result in results:
            if isinstance(result, ExecFailed):
                assert (result.reason, result.retryable) == ("overloaded", True)
            else:
                assert not isinstance(result, BaseException)
                assert result[1] == b"x"
        assert any(isinstance(result, ExecFailed) for result in results) == (room < 6)
        await settled(host)
        for pump in pumps_of(host.pid):
            resource.prlimit(pump, resource.RLIMIT_NOFILE, (soft, hard))
        assert {out for _, out, _ in await asyncio.gather(*(run(lane, "echo", "on") for _ in range(20)))} == {b"on\n"}


async def test_limits_are_the_processes_own() -> None:
    async with a_lane() as lane:
        script = "ulimit -n; ulimit -c; ulimit -Hn"
        _, out, _ = await run(lane, "sh", "-c", script, limits={"nofile": 123, "core": 0})
        assert out.split() == [b"123", b"0", b"123"]
        _, out, _ = await run(lane, "sh", "-c", "ulimit -n")
        assert int(out) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@needs_root
@pytest.mark.parametrize(
    ("user", "ids"),
    [("nobody", "65534 65534 65534"), ("65534:0", "65534 0 0"), ("54321", "54321 0 0"), ("root", None)],
)
async def test_users(user: str, ids: str | None) -> None:
    async with a_lane() as lane:
        _, out, _ = await run(lane, "sh", "-c", "echo $(id -u) $(id -g) $(id -G)", user=user)
        assert out.decode().strip().startswith(ids or "0 0")


# --- bringing it up ---


async def test_without_a_spawner_for_this_machine_it_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawner_host, "BINARIES", tmp_path)
    host = LocalHost()
    with pytest.raises(StartFailed, match="was not built with this package") as refused:
        await host.start()
    assert refused.value.reason == "unsupported"
    await host.aclose()


@pytest.mark.parametrize(
    ("program", "reason"), [(b"", "io_error"), (b"#!/bin/sh\nexit 0\n", "engine_error"), (b"#!/no/such\n", "io_error")]
)
async def test_a_spawner_that_is_none_does_not_start(
    program: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawner_host, "BINARIES", tmp_path)
    path = path_for(platform.machine())
    path.write_bytes(program)
    path.chmod(0o755)
    async with balanced():
        with pytest.raises(StartFailed) as refused:
            await LocalHost().start()
    assert refused.value.reason == reason


async def test_one_that_says_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawner_host, "BINARIES", tmp_path)
    monkeypatch.setattr(limits, "SPAWN_HELLO_MS", 20)
    monkeypatch.setattr(limits, "SPAWN_EXIT_MS", 20)
    path = path_for(platform.machine())
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o755)
    async with balanced():
        with pytest.raises(StartFailed, match="said nothing"):
            await LocalHost().start()


async def test_a_large_environment_of_ours_does_not_keep_it_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG", "x" * limits.SPAWN_HELLO_BYTES)
    async with a_lane() as lane:
        assert len((await run(lane, "sh", "-c", "echo $BIG"))[1]) == limits.SPAWN_HELLO_BYTES + 1


async def test_health() -> None:
    async with a_lane() as lane:
        process = await start(lane, "cat")
        health = lane.health()
        assert (health["name"], health["isolation"], health["kept"]) == ("spawn", "none", 1)
        assert health["reapers"] == 2 * limits.SPAWN_SPARE_REAPERS or health["reapers"] == limits.SPAWN_SPARE_REAPERS
        await process.finish()


async def test_a_spawner_that_dies_again_and_again_is_followed_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 1)
    async with a_host() as (host, lane):

        async def failures_after_a_death() -> int:
            died = host.pid
            os.kill(died, signal.SIGKILL)
            await until(lambda: host.spawner.alive and host.pid != died)
            return host.backoff.failures

        assert [await failures_after_a_death() for _ in range(3)] == [1, 2, 3]
        monkeypatch.setattr(limits, "REVIVE_PROVEN_MS", 0)
        assert await failures_after_a_death() == 0
        assert (await run(lane, "echo", "on"))[1] == b"on\n"


# --- the binary ---


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder instead of the package's."""
    monkeypatch.setattr(spawner_host, "BINARIES", tmp_path)
    return tmp_path


def machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: name)


def test_the_one_for_this_machine_is_there() -> None:
    found = find_spawner()
    assert found == path_for(platform.machine())
    assert os.access(found, os.X_OK)
    assert why_no_spawner() is None


def test_the_source_has_system_calls_for_each_architecture_and_no_other() -> None:
    sources = sorted((Path(spawner_host.__file__).parent / "c").glob("*.[ch]"))
    named = [re.findall(r"defined\(__(\w+)__\)", source.read_text()) for source in sources]
    assert {name for names in named for name in names} == set(ARCHITECTURES)
    calls = next(source.read_text() for source in sources if source.name == "spawner.h")
    assert tuple(re.findall(r"if defined\(__(\w+)__\)", calls)) == ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_has_its_own(name: str, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, name)
    for architecture in ARCHITECTURES:
        path_for(architecture).touch(mode=0o755)
    assert find_spawner() == built / f"spawner-{name}"
    assert why_no_spawner() is None


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_package_without_it_says_how_to_get_it(
    mode: int | None, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "aarch64")
    if mode is not None:
        path_for("aarch64").touch(mode=mode)
    assert find_spawner() is None
    assert why_no_spawner() == (
        "spawner-aarch64 was not built with this package; "
        "install it again: make install, or pip install --force-reinstall fastclaw"
    )


def test_another_machine_is_told_what_there_is(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "riscv64")
    assert find_spawner() is None
    assert why_no_spawner() == "the spawner knows x86_64 and aarch64, and this machine is riscv64"


# --- users of this host ---


NOBODY = pwd.getpwnam("nobody")
UNLISTED = 54_321


@contextmanager
def without_privilege() -> Iterator[None]:
    """For a while this process is nobody in particular."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        os.setegid(NOBODY.pw_gid)
        os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)


@needs_root
@pytest.mark.parametrize("user", ["nobody", str(NOBODY.pw_uid), f"000{NOBODY.pw_uid}"])
def test_a_name_and_its_number_are_the_same_user(user: str) -> None:
    groups = os.getgrouplist("nobody", NOBODY.pw_gid)
    assert resolve_user(user) == Identity(NOBODY.pw_uid, NOBODY.pw_gid, groups, NOBODY.pw_dir)


@needs_root
@pytest.mark.parametrize(
    ("user", "identity"),
    [
        (f"{UNLISTED}", Identity(UNLISTED, 0, [])),
        (f"{UNLISTED}:7", Identity(UNLISTED, 7, [])),
        ("nobody:root", Identity(NOBODY.pw_uid, 0, [], NOBODY.pw_dir)),
        (f"nobody:{UNLISTED}", Identity(NOBODY.pw_uid, UNLISTED, [], NOBODY.pw_dir)),
        ("0:0", Identity(0, 0, [], pwd.getpwuid(0).pw_dir)),
        ("4294967294", Identity(2**32 - 2, 0, [])),
    ],
)
def test_numbers_need_no_entry_and_a_given_group_is_the_only_one(user: str, identity: Identity) -> None:
    assert resolve_user(user) == identity


@pytest.mark.parametrize(
    "user",
    [
        "no-such-user",
        "0:no-such-group",
        "",
        ":",
        "0:",
        ":0",
        "0:0:0",
        "-1",
        "+1",
        " 0",
        "4294967295",
        "0:4294967295",
        "9" * 5_000,
        "0:" + "9" * 5_000,
        "\N{ARABIC-INDIC DIGIT THREE}",
        "0:\N{ARABIC-INDIC DIGIT THREE}",
        "a\0b",
        "0:a\0b",
        "\ud800",
    ],
)
def test_who_is_not_there_is_unknown(user: str) -> None:
    with pytest.raises(ExecFailed) as refused:
        resolve_user(user)
    assert (refused.value.reason, refused.value.fault) == ("unknown_user", "caller")


def test_without_privilege_we_are_ourselves_and_nobody_else() -> None:
    with without_privilege():
        assert resolve_user(f"{os.geteuid()}:{os.getegid()}") is None
        with pytest.raises(ExecFailed) as refused:
            resolve_user("root")
    assert refused.value.reason == "permission_denied"


def test_without_privilege_an_unknown_user_is_still_called_unknown() -> None:
    with without_privilege(), pytest.raises(ExecFailed) as refused:
        resolve_user("no-such-user")
    assert refused.value.reason == "unknown_user"
