"""Environments in gVisor, on a Podman of their own: only by `make test-gvisor`, which says where runsc is.

`make test` leaves them out: Debian 12 has a release that is too old, and another one takes a download.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.control.client import ControlClient
from fastclaw.control.protocol import AskProcesses
from fastclaw.errors import ExecFailed, FastclawError
from fastclaw.linux import proc
from tests.engine import gvisor_table
from tests.engine.gvisor_table import SERVE
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.client import RemoteProcess

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(900)]


TERMINALS = 20
"""One after the other: where a reader's EOF depends on who comes first, one of them shows it."""

CLOCKS_US = 2_000_000
"""By which gVisor's clock may seem behind ours, where its greeting was heard late."""

TERMINALS_S = 60
"""Within which all have ended: one takes 50 ms."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return gvisor_table.options_for(str(tmp_path_factory.mktemp("state")))


@asynccontextmanager
async def running(options: dict[str, Any], **more: Any) -> AsyncIterator[RuntimeClient]:
    async with RuntimeClient.spawn(SERVE, namespace="gvisor", options={**options, **more}) as runtime:
        yield runtime


def sandboxes() -> set[int]:
    """Processes of gVisor's on this host."""
    return {pid for pid in proc.pids() if b"runsc-sandbox" in _command(pid)}


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


async def test_a_command_runs_in_its_kernel_and_nothing_is_left(options: dict[str, Any]) -> None:
    before = sandboxes()
    async with running(options) as runtime:
        done = await runtime.run(["sh", "-c", "dmesg | head -n 1; env; exit 3"])
        assert done.exit_code == 3
        assert b"gVisor" in done.stdout
        assert b"FASTCLAW_INIT_SECRET" not in done.stdout
        stages = ("sent", "taken", "started", "exited", "answered")
        record = await runtime.wait(done.process_id)
        times = [record.timings[stage] for stage in stages]  # two clocks, as close as a greeting makes them
        assert all(later - earlier > -CLOCKS_US for earlier, later in itertools.pairwise(times)), record.timings
        assert times[-1] < 60_000_000
        assert len(sandboxes() - before) == 1
        health = await runtime.health()
        assert health.details["network"]["mode"] == "none"
    await until(lambda: sandboxes() == before)


@pytest.mark.parametrize("size", [0, 8 * limits.KIB, 8 * limits.KIB + 1, 100_000, limits.MIB])
async def test_output_of_every_size_is_whole(options: dict[str, Any], size: int) -> None:
    async with running(options) as runtime:
        script = f"yes 0123456 | head -c {size}; yes abcdefg | head -c {size} >&2"
        done = await runtime.run(["sh", "-c", script], output_limit=limits.MIB)
        assert done.stdout == (b"0123456\n" * (size // 8 + 1))[:size]
        assert done.stderr == (b"abcdefg\n" * (size // 8 + 1))[:size]


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b""), (b"word", b"word"), (b"line\n", b"line\n"), (b"line\x04", b"line")]
)
async def test_who_waits_for_a_terminal_s_input_gets_its_end(
    options: dict[str, Any], before: bytes, after: bytes
) -> None:
    script = "stty -echo -onlcr; echo up; cat; echo end"
    async with running(options) as runtime, asyncio.timeout(TERMINALS_S):
        for _ in range(TERMINALS):
            async with await runtime.exec(["sh", "-c", script], tty=True) as process:
                await expect_line(process, b"up\n")
                await process.write(b"here\n")
                await expect_line(process, b"here\n")  # cat has read it, and reads again
                await process.write(before)
                await process.write_eof()
                assert await process.stdout_read_all(len(after) + 4) == after + b"end\n"


async def expect_line(process: RemoteProcess, line: bytes) -> None:
    got = b""
    while len(got) < len(line):
        got += await process.stdout_read(len(line) - len(got))
    assert got == line


async def test_who_is_killed_leaves_no_sandbox(options: dict[str, Any]) -> None:
    before = sandboxes()
    with suppress(FastclawError):  # its end is noticed on the way out
        async with running(options) as runtime:
            assert (await runtime.run(["true"])).exit_code == 0
            os.kill(runtime.pid, signal.SIGKILL)
            await until(lambda: sandboxes() == before)
    async with running(options):
        """Takes away the directory of the sockets that it has left."""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"network": {"mode": "proxy", "allow": ["a.example"]}}, "no listener leaves gVisor"),
        ({"network": {"mode": "bridge"}}, "interfaces"),
        ({"network": {"mode": "open"}}, "network=sandbox"),
        ({"user_namespace": "private"}, "gVisor"),
        ({"clone": "always"}, "crun on this host is needed"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_its_reason(
    options: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(FastclawError, match=words):
        async with running(options, **more):
            pass


async def test_what_a_command_cannot_have_is_refused_with_its_reason(options: dict[str, Any]) -> None:
    async with running(options) as runtime:
        with pytest.raises(FastclawError, match="one process of this host"):
            await runtime.run(["true"], limits={"memory_bytes": 64 * limits.MIB})
        with pytest.raises(ExecFailed, match="on_disconnect hold"):
            await runtime.exec(["cat"], on_disconnect="hold")


async def test_the_promises_are_kept_that_the_page_says(options: dict[str, Any]) -> None:
    report = await gvisor_table.report_on(options)
    assert report.refused is None
    assert gvisor_table.table(report, options["oci_runtime"]) in gvisor_table.PAGE.read_text(), report.to_text()


async def test_what_processes_take_is_seen_from_inside(options: dict[str, Any]) -> None:
    async with running(options, control=True) as runtime:
        assert runtime.welcome is not None
        assert runtime.welcome.control is not None
        await runtime.exec(["sh", "-c", "sleep 1000 & while :; do :; done"])
        with ControlClient(runtime.welcome.control) as client:

            async def is_seen() -> bool:
                (row,) = (await asyncio.to_thread(client.processes, AskProcesses())).rows
                return row.processes == 2 and (row.cpu_us or 0) > 200_000 and (row.memory_bytes or 0) > 0

            await until(is_seen)
