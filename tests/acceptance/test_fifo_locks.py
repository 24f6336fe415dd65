"""Nothing that container root puts in a file's place holds up PID 1 or a reaper: no FIFO that is locked, no slow file.

open(2) of a FIFO waits for its lock, O_NONBLOCK or not, and whoever waits so is woken by no signal. PID 1 in that state
kills nobody, and the engine cannot even remove its container.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed
from tests.acceptance.leftovers import programs
from tests.acceptance.pipe_locks import ACT_S, Lane, Site, a_place, a_site_that_leaves_nothing, engine_lane

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.engine_fixtures import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]

ROOT, OTHER = "0", "1000"
READ_FILES = ("/etc/passwd", "/etc/group")
LOCKED = "/tmp/locked"


SLOW = pytest.mark.parametrize("lane", ["host"], indirect=True)
"""Where files can be slow."""


@pytest.fixture(scope="module", params=["host", "private"])
def lane(engine_service: EngineService, request: pytest.FixtureRequest) -> Iterator[Lane]:
    """The spawn lane, whose default user is container root: the host's without rights, or with some in a namespace."""
    options = {"user_namespace": request.param}
    with a_place() as directory, engine_lane("spawn", directory, engine_service, None, **options) as one:
        yield one


@asynccontextmanager
async def spoiled(lane: Lane) -> AsyncIterator[Site]:
    """A runtime whose container is not used again. It ends while the locks are held, and leaves nothing."""
    async with a_site_that_leaves_nothing(lane) as site:
        yield site
        assert programs(), "the lock was let go before the end"
        await site.shuts_down()


async def lock(site: Site, path: str) -> None:
    """Container root makes it a FIFO that is locked."""
    report = site.report()
    await site.program("fifo", report, path, user=ROOT)
    assert await report.said("held") == ""


async def goes_on(site: Site) -> None:
    """What has nothing to do with the files: health, a start, a timeout, a signal, a kill of another user's command."""
    await site.is_well()
    other = await site.start("sh", "-c", "trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done")
    assert await other.stdout_read() == b"up\n"
    await other.signal("USR1")
    assert (await site.ended(other)).exit_code == 7


@pytest.mark.parametrize("by_link", [False, True], ids=["itself", "link"])
@pytest.mark.parametrize("path", READ_FILES)
async def test_a_user_database_that_is_a_locked_fifo(lane: Lane, path: str, by_link: bool) -> None:
    async with spoiled(lane) as site:
        other = await site.start("sleep", "1000", user=OTHER)
        await lock(site, LOCKED if by_link else path)
        if by_link:
            await site.ended(await site.start("ln", "-sf", LOCKED, path))
        process = await site.start("grep", "Uid", "/proc/self/status", user=OTHER, stdin=False)
        async with site.within(ACT_S, "the command's output"):
            assert (await process.communicate())[0].split() == [b"Uid:", *[b"1000"] * 4]
        if path == "/etc/passwd":
            with pytest.raises(ExecFailed) as refused:
                await site.start("true", user="nobody")
            assert refused.value.reason == "unknown_user"
        await goes_on(site)
        await site.is_killed(other)


@SLOW
@pytest.mark.parametrize("path", READ_FILES)
async def test_a_user_database_on_a_slow_file_system(lane: Lane, path: str) -> None:
    """Whoever asks for a user waits for it, or is refused; PID 1 does not, and nobody else does."""
    if not lane.slow:
        pytest.skip("nobody here may mount a slow file system")
    async with spoiled(lane) as site:
        other = await site.start("sleep", "1000", user=OTHER)
        await lock(site, LOCKED)  # only so that there is a program to look for at the end
        await site.ended(await site.start("ln", "-sf", "/w/slow/page", path))
        asking = asyncio.ensure_future(site.client.exec(["true"], user=OTHER))
        try:
            await site.stays_healthy(0.5)
            await goes_on(site)
            await site.is_killed(other)
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError, ExecFailed):
                await asking


@pytest.mark.parametrize("path", ["/dev/ptmx", "/dev/pts/ptmx", "/dev/null", "/dev/tty"])
async def test_a_device_that_is_a_locked_fifo(lane: Lane, path: str) -> None:
    """With a terminal is refused at once, or works; everything else goes on, and the reapers are as many as before."""
    async with spoiled(lane) as site:
        other = await site.start("sleep", "1000", user=OTHER)
        attempt = await site.start("sh", "-c", f"rm {path}", stdin=False)
        can_be_replaced = (await site.ended(attempt)).exit_code == 0
        await lock(site, path if can_be_replaced else LOCKED)
        for _ in range(3):
            with suppress(ExecFailed):
                process = await site.start("echo", "fine", tty=True)
                assert (await site.ended(process)).exit_code == 0
        await goes_on(site)
        await site.is_killed(other)
        details = (await site.client.health()).details
        assert details is not None
        assert details["lane"]["kept"] <= 1, "somebody keeps more than the one that holds the lock"


async def test_a_locked_fifo_as_a_command_a_directory_or_a_part_of_the_search_path(lane: Lane) -> None:
    async with spoiled(lane) as site:
        await lock(site, LOCKED)
        for cmd, request, reasons in (
            ([LOCKED], {}, {"permission_denied"}),
            (["true"], {"working_dir": LOCKED}, {"bad_working_dir"}),
            ([f"{LOCKED}/true"], {}, {"not_found", "permission_denied", "not_executable"}),
        ):
            with pytest.raises(ExecFailed) as refused:
                await site.start(*cmd, **request)
            assert refused.value.reason in reasons
        process = await site.start("true", env={"PATH": f"{LOCKED}:/tmp/none:/bin"})
        assert (await site.ended(process)).exit_code == 0
        await goes_on(site)
