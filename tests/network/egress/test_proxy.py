"""The egress proxy comes with the first connection, is replaced when it dies, and goes with fastclaw in any case."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastclaw import limits, network_limits
from fastclaw.network.egress.proxy_frames import Injection, Logged, Ready, encode
from tests.balance import children
from tests.network.egress.proxy_rig import has_tunnel, served
from tests.network.egress.rig import HERE, PATIENCE_S, Client, Origin, config, listening, request
from tests.waiting import until

SECRET = "s3cr3t-s3cr3t"
NOTHING = {"allowed": 0, "denied": {}, "failed": {}, "bytes": {"sent": 0, "received": 0}, "open": 0}


async def test_unused_it_is_neither_a_process_nor_a_thread() -> None:
    before, threads = children(), threading.active_count()
    async with served() as it:
        it.listens()
        await asyncio.sleep(0)
        assert children() == before
        assert threading.active_count() == threads
        assert it.proxy.health() == {"proxy": "idle", **NOTHING}
        assert it.proxy.trouble is None
        assert repr(it.proxy) == "<EgressProxy idle, 2 listeners>"
    assert repr(it.proxy) == "<EgressProxy closed, 0 listeners>"


async def test_the_first_connection_starts_it_and_none_is_lost() -> None:
    async with served() as it:
        clients = [await it.asks() for _ in range(50)]
        for client in clients:
            await has_tunnel(client)
        assert it.health("proxy", "allowed", "open") == ["running", 50, 50]
        assert it.proxy.trouble is None
        await clients[0].say(b"GET /any HTTP/1.1\r\n\r\n")
        assert (await clients[0].until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert it.health("proxy", "allowed", "open") == ["idle", 50, 0]


async def test_a_listener_that_comes_later_is_served_and_one_that_goes_takes_its_connections_along() -> None:
    async with served() as it:
        kept = await it.tunnel()
        number, port = it.listens()
        ended = await it.tunnel(port)
        it.proxy.unlisten(number)
        it.proxy.unlisten(number)
        assert await ended.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await it.asks(port)
        await until(lambda: it.health("open") == [1])
        await kept.say(b"GET /any HTTP/1.1\r\n\r\n")
        assert (await kept.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_listener_that_goes_before_anybody_came() -> None:
    async with served() as it:
        it.proxy.unlisten(it.number)
        with pytest.raises(ConnectionRefusedError):
            await it.asks()
        assert it.health("proxy") == ["idle"]


async def test_killed_it_is_replaced_and_who_waits_is_served(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as it:
        cut, pid = await it.tunnel(), it.pid
        os.kill(pid, signal.SIGKILL)
        assert await cut.rest() == b""
        waiting = [await it.asks() for _ in range(20)]
        await until(lambda: it.health("proxy", "open") == ["failed", 0])
        assert it.health("allowed") == [1]
        assert "it ended" in str(it.proxy.trouble)
        _, port = it.listens()  # while there is none
        for client in waiting:
            await has_tunnel(client)
        await it.tunnel(port)
        assert it.pid != pid
        assert it.health("proxy", "allowed", "open") == ["running", 22, 21]
        assert it.proxy.trouble is None
    assert "another one is started in 0.1 s" in caplog.text


async def test_killed_without_a_listener_left_it_waits_for_one() -> None:
    async with served() as it:
        await it.tunnel()
        os.kill(it.pid, signal.SIGKILL)
        it.proxy.unlisten(it.number)
        await until(lambda: it.health("proxy") == ["idle"])
        assert it.proxy.trouble is None
        _, port = it.listens()
        await it.tunnel(port)


@pytest.mark.parametrize("program", ["/bin/false", "/no/such/program"])
async def test_one_that_cannot_be_started_is_tried_again_ever_later(
    program: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 10)
    async with served() as it:
        with monkeypatch.context() as patch:
            patch.setattr("fastclaw.network.egress.proxy.sys.executable", program)
            client = await it.asks()
            await until(lambda: len(caplog.records) >= 4)
            assert "the egress proxy failed: it " in (it.proxy.trouble or "")
        await has_tunnel(client)
        assert it.proxy.trouble is None
    assert [float(record.args[1]) for record in caplog.records[:4]] == [0.01, 0.02, 0.04, 0.08]  # type: ignore[index,arg-type]


async def test_one_that_never_comes_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as it:
        with monkeypatch.context() as patch:
            patch.setattr(network_limits, "EGRESS_READY_MS", 1)
            client = await it.asks()
            await until(lambda: it.proxy.trouble == "the egress proxy failed: it does not come up")
        await has_tunnel(client)


def pretender(path: Path, *frames: bytes) -> str:
    """A program that says these frames in the worker's place, and waits."""
    code = f"import signal, socket, sys\nother = socket.socket(fileno=int(sys.argv[-1]))\nfor frame in {frames}:"
    path.write_text(f"#!{sys.executable}\n{code} other.send(frame)\nsignal.pause()\n")
    path.chmod(0o700)
    return str(path)


async def test_one_that_does_not_keep_to_the_protocol_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served() as it:
        with monkeypatch.context() as patch:
            patch.setattr("fastclaw.network.egress.proxy.sys.executable", pretender(tmp_path / "python", b"[]"))
            client = await it.asks()
            await until(lambda: "does not keep to its protocol" in (it.proxy.trouble or ""))
        await has_tunnel(client)


async def test_a_line_for_the_log_is_no_lasting_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = pretender(tmp_path / "python", encode(Ready(1)), encode(Logged("once")))
    monkeypatch.setattr("fastclaw.network.egress.proxy.sys.executable", program)
    monkeypatch.setattr(network_limits, "EGRESS_EXIT_MS", 1)
    async with served() as it:
        await it.asks()
        await until(lambda: "the egress proxy says: once" in caplog.text)
        assert it.proxy.trouble is None
        assert it.health("proxy") == ["running"]


async def test_its_trouble_is_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(log=str(tmp_path / "gone" / "log")) as it:
        await it.tunnel()
        await until(lambda: it.proxy.trouble is not None)
        assert "decision log" in (it.proxy.trouble or "")
        assert it.health("log_lost") == [1]
    assert "the egress proxy says: the decision log" in caplog.text


async def test_it_does_not_end_by_signals_that_are_for_us() -> None:
    async with served() as it:
        client = await it.tunnel()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(it.pid, signum)
        await client.say(b"GET /any HTTP/1.1\r\n\r\n")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_the_end_takes_all_connections_along() -> None:
    async with served() as it:
        client = await it.tunnel()
        await it.proxy.aclose()
        await it.proxy.aclose()
        assert await client.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await it.asks()
        number, port = it.listens()
        with pytest.raises(ConnectionRefusedError):
            await it.asks(port)
        it.proxy.unlisten(number)


@pytest.mark.parametrize("moment", ["coming up", "stopped", "failed"])
async def test_the_end_comes_at_any_moment(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_EXIT_MS", 100 if moment == "stopped" else network_limits.EGRESS_EXIT_MS)
    async with served() as it:
        if moment == "coming up":
            await it.asks()
            await until(lambda: it.health("proxy") == ["running"])
        else:
            await it.tunnel()
            os.kill(it.pid, signal.SIGSTOP if moment == "stopped" else signal.SIGKILL)
        if moment == "failed":
            await until(lambda: it.health("proxy") == ["failed"])
        await asyncio.wait_for(it.proxy.aclose(), network_limits.EGRESS_EXIT_MS / 1000 + PATIENCE_S)


async def test_a_secret_is_nowhere_but_in_the_header(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOKEN_OF_A_TEST", SECRET)
    injection = Injection(host=HERE, header="Authorization", value=SECRET)
    assert SECRET not in repr(config(inject=[injection]))
    async with served(inject=[injection]) as it:
        client = Client(*await asyncio.open_connection(HERE, it.port))
        answer = await client.ask(f"GET http://{HERE}:{it.origin.port}/any HTTP/1.1\nHost: x")
        assert f"authorization: {SECRET}" in answer.body.decode().lower()
        await client.close()
        of_process = Path("/proc", str(it.pid))
        for name in ("cmdline", "environ"):
            told = of_process.joinpath(name).read_bytes()
            assert SECRET.encode() not in told
            assert b"TOKEN_OF_A_TEST" not in told
        os.kill(it.pid, signal.SIGSEGV)
        await until(lambda: it.health("proxy") == ["failed"])
        assert SECRET not in repr(it.proxy.health()) + str(it.proxy.trouble)
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


FASTCLAW = f"""
import asyncio
from fastclaw.network.egress.proxy import EgressProcess, EgressProxy
from tests.network.egress.rig import config, listening
async def main():
    process = EgressProcess()
    proxy = EgressProxy(config(["{HERE}:*"]), process)
    sock = listening()
    print(sock.getsockname()[1], flush=True)
    proxy.listen("proxy", sock)
    while process.pid is None:
        await asyncio.sleep(0.002)
    print(process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_it_ends_with_a_fastclaw_that_is_killed() -> None:
    origin = Origin()
    await origin.start(listening())
    fastclaw = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", FASTCLAW], stdout=subprocess.PIPE, text=True
    )
    assert fastclaw.stdout is not None
    port = int(await asyncio.to_thread(fastclaw.stdout.readline))
    client = Client(*await asyncio.open_connection(HERE, port))
    await client.say(request(f"CONNECT {HERE}:{origin.port} HTTP/1.1\nHost: x"))
    await has_tunnel(client)
    pidfd = os.pidfd_open(int(fastclaw.stdout.readline()))
    fastclaw.kill()
    assert await client.rest() == b""
    assert await asyncio.to_thread(select.select, [pidfd], [], [], PATIENCE_S) == ([pidfd], [], [])
    os.close(pidfd)
    fastclaw.stdout.close()
    fastclaw.wait()
    await client.close()
    await origin.aclose()
