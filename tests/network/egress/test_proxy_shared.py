"""Many environments over one egress proxy: they share the process, and nothing that either can see."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits, network_limits
from fastclaw.network.egress.proxy import EgressProcess
from fastclaw.network.egress.proxy_frames import Injection
from tests.balance import children, open_descriptors
from tests.network.egress.proxy_rig import Served, has_tunnel, served
from tests.network.egress.rig import HERE, Answer, Client
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "s3cr3t-s3cr3t"


@pytest.fixture
async def process() -> AsyncIterator[EgressProcess]:
    """For all environments of a test."""
    made = EgressProcess()
    yield made
    await made.aclose()


async def gets(it: Served, url: str) -> Answer:
    """What an environment is answered."""
    client = Client(*await asyncio.open_connection(HERE, it.port))
    answer = await client.ask(f"GET {url} HTTP/1.1\nHost: x")
    await client.close()
    return answer


async def echoes(client: Client) -> None:
    """A tunnel to an origin still works."""
    await client.say(b"GET /any HTTP/1.1\r\n\r\n")
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    await client.until(b"\r\n\r\n")  # the origin shows the head


async def test_what_one_may_the_other_may_not_and_each_is_counted(process: EgressProcess, tmp_path: Path) -> None:
    logs, before = [tmp_path / "one", tmp_path / "two"], children()
    async with (
        served(process=process, log=str(logs[0])) as one,
        served(allow=[], process=process, log=str(logs[1])) as two,
    ):
        url = f"http://{HERE}:{one.origin.port}/any"
        assert (await gets(one, url)).status == 200
        assert (await gets(two, url)).reason == "special_address"
        assert children() - before == {process.pid}
        assert (one.health("allowed", "denied"), two.health("allowed", "denied")) == (
            [1, {}],
            [0, {"special_address": 1}],
        )
        decisions = {("allowed", ""): 1, ("denied", "special_address"): 1}
        assert process.decisions() == decisions
    assert process.decisions() == decisions, "those of environments that have ended are kept"
    lines = [[json.loads(line)["decision"] for line in log.read_text().splitlines()] for log in logs]
    assert lines == [["allowed"], ["denied"]]


async def test_a_secret_of_one_goes_along_with_no_request_of_the_other(process: EgressProcess) -> None:
    injection = Injection(host=HERE, header="Authorization", value=SECRET)
    async with served(process=process, inject=[injection]) as one, served(process=process) as two:
        url = f"http://{HERE}:{one.origin.port}/any"
        rules = "http://rules.fastclaw.internal/"
        for _ in range(3):
            assert SECRET in (await gets(one, url)).body.decode()
            assert "authorization" not in (await gets(two, url)).body.decode().lower()
        assert json.loads((await gets(one, rules)).body)["inject"] == [{"host": HERE, "header": "Authorization"}]
        assert json.loads((await gets(two, rules)).body)["inject"] == []


async def test_the_bytes_of_one_are_used_up_and_the_other_has_its_own(process: EgressProcess) -> None:
    async with served(process=process, max_bytes=1_000) as one, served(process=process, max_bytes=100_000) as two:
        url = f"http://{HERE}:{one.origin.port}"
        kept = await two.tunnel()
        await gets(one, f"{url}/any")
        client = Client(*await asyncio.open_connection(HERE, one.port))
        await client.say(f"GET {url}/big/5000 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await client.rest()
        await client.close()
        assert (await gets(one, f"{url}/any")).reason == "too_many_bytes"
        await echoes(kept)
        assert (await gets(two, f"{url}/any")).status == 200


async def test_one_ends_in_the_middle_of_the_others_download(process: EgressProcess, tmp_path: Path) -> None:
    size = 64 * limits.MIB
    async with served(process=process) as two:
        assert (await gets(two, f"http://{HERE}:{two.origin.port}/any")).status == 200
        await until(lambda: two.health("open") == [0])
        before = len(open_descriptors(two.pid))
        download = await two.tunnel()
        await download.say(b"GET /big/%d HTTP/1.1\r\n\r\n" % size)
        await download.until(b"\r\n\r\n")
        await download.read(limits.MIB)
        async with served(process=process, log=str(tmp_path / "log")) as one:
            ended = await one.tunnel()
            bulk = await one.tunnel()
            await bulk.say(b"GET /big/%d HTTP/1.1\r\n\r\n" % size)
            await bulk.read(limits.MIB)
            await one.proxy.aclose()
            assert await ended.rest() == b""
            assert one.health("proxy", "open", "allowed") == ["idle", 0, 2]
            assert not any(str(tmp_path) in path for path in open_descriptors(two.pid).values())
        for _ in range(size // limits.MIB - 1):
            await download.read(limits.MIB)
        await echoes(download)
        await download.close()
        await until(lambda: two.health("open") == [0])
        spare = 2 * network_limits.TUNNEL_SPARE_PIPES
        assert before <= len(open_descriptors(two.pid)) <= before + spare


async def test_one_that_nobody_connects_from_costs_the_process_nothing(process: EgressProcess) -> None:
    async with served(process=process) as one:
        await one.tunnel()
        before = open_descriptors(one.pid)
        async with AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(served(process=process)) for _ in range(20)]
            await echoes(await one.tunnel())
            assert {it.health("proxy")[0] for it in idle} == {"idle"}
            assert len(open_descriptors(one.pid)) == len(before) + 2
            await idle[7].tunnel()
            assert [it.health("proxy")[0] for it in idle].count("running") == 1


async def test_a_hundred_come_and_go_and_nothing_is_left_of_them(process: EgressProcess) -> None:
    async with served(process=process) as it:
        kept = await it.tunnel()

        async def lives() -> None:
            async with served(process=process) as other:
                await echoes(await other.tunnel())

        async def ten_at_a_time(count: int) -> None:
            for _ in range(count // 10):
                await asyncio.gather(*(lives() for _ in range(10)))

        await ten_at_a_time(20)
        descriptors, kilobytes = len(open_descriptors(it.pid)), resident_kb(it.pid)
        await ten_at_a_time(100)
        await until(lambda: len(open_descriptors(it.pid)) == descriptors)
        assert resident_kb(it.pid) < kilobytes + 2_000
        await echoes(kept)
        assert repr(process) == "<EgressProcess running, 1 environments>"


def resident_kb(pid: int) -> int:
    """What a process has in memory."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


async def test_killed_it_is_replaced_for_all_of_them(process: EgressProcess) -> None:
    async with (
        served(process=process) as one,
        served(process=process) as two,
        served(process=process) as idle,
    ):
        cut = [await one.tunnel(), await two.tunnel()]
        os.kill(one.pid, signal.SIGKILL)
        assert [await client.rest() for client in cut] == [b"", b""]
        waiting = [await one.asks(), await two.asks()]
        await until(lambda: one.health("proxy", "open") == ["failed", 0])
        assert two.health("proxy", "open", "allowed") == ["failed", 0, 1]
        assert {it.proxy.trouble for it in (one, two)} == {"the egress proxy failed: it ended"}
        assert (idle.health("proxy"), idle.proxy.trouble) == (["idle"], None)
        for client in waiting:
            await has_tunnel(client)
        assert one.health("proxy", "allowed") == two.health("proxy", "allowed") == ["running", 2]
        assert one.proxy.trouble is None
        assert one.pid in children()
        await idle.tunnel()


async def test_one_ends_while_there_is_no_process(process: EgressProcess) -> None:
    async with served(process=process) as two:
        async with served(process=process) as one:
            for it in (one, two):
                await it.tunnel()
            os.kill(one.pid, signal.SIGKILL)
            await until(lambda: one.health("proxy") == ["failed"])
        assert one.health("open", "allowed") == [0, 1]
        await two.tunnel()


async def test_rules_that_are_none_are_the_trouble_of_one(
    process: EgressProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 10)
    async with served(process=process) as two:
        kept = await two.tunnel()
        async with served(allow=["no rule at all"], process=process) as one:
            await one.asks()
            await until(lambda: caplog.text.count("does not serve an environment") >= 3)
            assert (one.proxy.trouble or "").startswith("the egress proxy failed: InvalidParams at ")
            assert one.health("proxy") == ["failed"]
            assert (two.health("proxy"), two.proxy.trouble) == (["running"], None)
            await echoes(kept)
        assert "no rule at all" not in caplog.text
        await echoes(kept)


async def test_a_log_that_cannot_be_written_is_the_trouble_of_one(process: EgressProcess, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        served(process=process, log=str(tmp_path / "gone" / "log")) as one,
        served(process=process, log=str(log)) as two,
    ):
        for it in (one, two):
            await it.tunnel()
        await until(lambda: one.proxy.trouble is not None)
        assert "decision log" in (one.proxy.trouble or "")
        assert (one.health("log_lost"), two.proxy.trouble) == ([1], None)
        assert "log_lost" not in two.proxy.health()
    assert log.read_text().count("\n") == 1


@pytest.mark.parametrize("copies", range(3))
async def test_one_that_the_process_cannot_be_told_of_is_told_of_later(
    copies: int, process: EgressProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its configuration, its counters and its listener, so many copies can be made at first."""
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 10)
    dup, left = os.dup, copies

    def scarce(fd: int) -> int:
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(errno.EMFILE, "Too many open files")
        return dup(fd)

    async with served(process=process) as two, served(process=process) as one:
        kept = await two.tunnel()
        monkeypatch.setattr("fastclaw.network.egress.proxy.os.dup", scarce)
        client = await one.asks()
        await until(lambda: one.health("proxy") == ["failed"])
        assert " be told " in (one.proxy.trouble or "")
        await has_tunnel(client)
        assert (one.health("proxy", "open"), one.proxy.trouble) == (["running", 1], None)
        await echoes(kept)


async def test_the_process_ends_with_its_owner_whatever_is_left() -> None:
    process, before = EgressProcess(), children()
    async with served(process=process) as one, served(process=process) as idle:
        client = await one.tunnel()
        await process.aclose()
        await process.aclose()
        assert await client.rest() == b""
        assert children() == before
        assert (one.health("proxy", "open"), one.proxy.trouble) == (["idle", 0], None)
        await idle.asks()
        await asyncio.sleep(0)
        assert (process.pid, repr(process)) == (None, "<EgressProcess closed, 0 environments>")


async def test_one_that_does_not_end_an_environment_is_replaced(
    process: EgressProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_EXIT_MS", 100)
    async with served(process=process) as two:
        await two.tunnel()
        async with served(process=process) as one:
            await one.tunnel()
            os.kill(one.pid, signal.SIGSTOP)
        assert two.proxy.trouble == "the egress proxy failed: it does not end what it has of an environment"
        await two.tunnel()
