"""Listeners and what comes over them: bounds, strangers, ends, and no secret in anything that anybody reads."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from fastclaw import network_limits
from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.proxy_frames import Injection
from fastclaw.network.egress.sandbox_server import Commons, Server
from fastclaw.network.egress.sessions import ProxyDialect
from tests.network.egress.rig import HERE, Client, Rig, a_proxy, config, listening, request
from tests.network.egress.tunnel_rig import fill
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_connection_too_many_is_told_so_and_the_next_one_later_is_served() -> None:
    async with a_proxy(max_connections=2) as rig:
        first = await rig.tunnel()
        await rig.tunnel()
        third = await rig.connect()
        await third.say(request(f"CONNECT {HERE}:1 HTTP/1.1\nHost: x"))
        answer = await third.answer()
        assert (answer.status, answer.reason) == (429, "too_many_connections")
        assert await third.rest() == b""
        await first.close()
        await until(lambda: rig.open == 1)
        await rig.still_works()
        assert rig.denied == {"too_many_connections": 1}


async def test_connections_that_come_too_fast_are_told_so() -> None:
    async with a_proxy(max_connections_per_s=5) as rig:
        answers = []
        for _ in range(12):
            client = await rig.connect()
            answers.append((await client.ask(f"GET {rig.url}/ HTTP/1.1\nHost: x")).reason)
        assert 5 <= answers.count("") < 12
        assert set(answers) == {"", "too_fast"}


async def test_a_flood_of_those_who_are_turned_away_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_LEAVING", 6)  # half of it
    async with a_proxy(max_connections=1) as rig:
        await rig.tunnel()
        clients = [await rig.connect() for _ in range(10)]
        said = [await client.rest() for client in clients]
        assert sum(text.startswith(b"HTTP/1.1 429 ") for text in said) == 3
        assert said.count(b"") == 7
        assert rig.denied == {"too_many_connections": 10}


async def test_strangers_are_turned_away() -> None:
    async with a_proxy(subnet="127.0.0.16/28") as rig:
        stranger, sandbox = await rig.connect(source="127.0.0.2"), await rig.connect(source="127.0.0.17")
        answer = await stranger.answer()
        assert (answer.status, answer.reason) == (403, "not_from_sandbox")
        assert (await sandbox.ask(f"GET {rig.url}/ HTTP/1.1\nHost: x")).status == 200
        assert rig.denied == {"not_from_sandbox": 1}


async def test_the_host_itself_is_a_stranger_on_its_own_bridge() -> None:
    async with a_proxy(subnet="127.0.0.0/8") as rig:
        answer = await (await rig.connect(source=HERE)).answer()
        assert answer.reason == "not_from_sandbox"
        assert rig.server.is_inside("127.0.0.2")
        assert not rig.server.is_inside(HERE)


async def test_what_came_over_a_listener_ends_with_it_and_with_nothing_else(rig: Rig) -> None:
    other = listening()
    port = other.getsockname()[1]
    rig.server.add(2, "proxy", other)
    stays = await rig.tunnel()
    tunnel, asking, silent = [await rig.connect(port) for _ in range(3)]
    await tunnel.say(request(f"CONNECT {HERE}:{rig.origin.port} HTTP/1.1\nHost: x"))
    await tunnel.until(b"\r\n\r\n")
    assert (await tunnel.ask("GET / HTTP/1.1\nHost: x")).status == 200
    await asking.say(request(f"GET {rig.url}/slow HTTP/1.1\nHost: x"))
    await until(lambda: len(rig.origin.seen) == 2 and rig.open == 4)
    rig.server.remove(2)
    rig.server.remove(2)
    assert [await client.rest() for client in (tunnel, asking, silent)] == [b"", b"", b""]
    await until(lambda: rig.open == 1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HERE, port)
    assert (await stays.ask("GET / HTTP/1.1\nHost: x")).status == 200


async def test_a_connection_that_was_accepted_just_now_ends_with_its_listener_as_well(rig: Rig) -> None:
    with socket.create_connection((HERE, rig.port)) as client:
        client.setblocking(False)
        rig.server._on_connections(ProxyDialect, rig.server._listeners[1])
        rig.server.remove(1)  # before the session has had a turn
        await until(lambda: rig.open == 0)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


async def test_closing_ends_everything(rig: Rig) -> None:
    clients = [await rig.tunnel(), await rig.connect(), await rig.connect()]
    await clients[1].say(request(f"GET {rig.url}/slow HTTP/1.1\nHost: x"))
    await until(lambda: len(rig.origin.seen) == 1)
    await rig.server.aclose()
    assert [await client.rest() for client in clients] == [b"", b"", b""]
    assert rig.open == 0


async def test_one_that_opens_all_it_can_leaves_connections_to_the_next() -> None:
    commons = Commons(40 + 2 * network_limits.EGRESS_ENVIRONMENT_FILES)
    async with a_proxy(commons=commons) as greedy, a_proxy(commons=commons) as other:
        clients = [await greedy.connect() for _ in range(30)]
        await until(lambda: greedy.open + greedy.denied.get("too_many_connections", 0) == 30)
        assert greedy.open == 10
        assert {answer.status for answer in [await client.answer() for client in clients[-3:]]} == {429}
        tunnels = [await other.tunnel() for _ in range(3)]
        assert (await tunnels[0].ask("GET / HTTP/1.1\nHost: x")).status == 200
        for client in (*clients, *tunnels):
            await client.close()
        await until(lambda: greedy.open + other.open == 0)
        await until(lambda: commons.files.free == 40)
        await greedy.still_works()
    assert commons.files.free == 40 + 2 * network_limits.EGRESS_ENVIRONMENT_FILES
    commons.close()


async def test_the_bulk_of_one_takes_no_pipe_from_the_other() -> None:
    commons = Commons(1_000)
    commons.pipes.units.free = 8
    async with a_proxy(commons=commons) as greedy, a_proxy(commons=commons) as other, AsyncExitStack() as stack:
        origin = stack.enter_context(listening())
        for _ in range(12):  # nobody reads what comes
            await greedy.tunnel(f"{HERE}:{origin.getsockname()[1]}")
            peer = stack.enter_context(origin.accept()[0])
            peer.setblocking(False)
            await fill(peer)
        await until(lambda: commons.pipes.units.free == 4)
        client = await other.tunnel()
        await client.say(b"GET /big/30000000 HTTP/1.1\r\n\r\n")
        await client.until(b"\r\n\r\n")
        assert len(await client.read(30_000_000)) == 30_000_000
        assert commons.pipes.units.free == 4
    assert commons.pipes.units.free == 8
    commons.close()


async def test_questions_for_addresses_are_answered() -> None:
    async with a_proxy(["origin.test", "127.0.0.1"]) as rig:
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        answering = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        answering.bind((HERE, 0))
        rig.server.add(7, "dns_udp", answering)
        rig.server.add(8, "dns_tcp", tcp := listening())
        with asking:
            asking.setblocking(False)
            asking.connect(answering.getsockname())
            query = bytes.fromhex("0001 0100 0001 0000 0000 0000") + b"\x06origin\x04test\0\0\1\0\1"
            asking.send(query)
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, 512), 20)
            assert answer.endswith(bytes([127, 0, 0, 1]))
            client = await rig.connect(tcp.getsockname()[1])
            await client.say(len(query).to_bytes(2) + query)
            size = int.from_bytes(await client.read(2))
            assert (await client.read(size)).endswith(bytes([127, 0, 0, 1]))
        rig.server.remove(7)
        assert answering.fileno() == -1


async def test_a_bug_in_one_session_is_written_down_and_the_others_go_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        logging.getLogger("fastclaw").handlers.clear()  # the rig's own, for which this would be a failure
        patched.setattr("fastclaw.network.egress.sessions.check", lambda request: 1 / 0)
        client = await rig.connect()
        await client.say(request(f"GET {rig.url}/ HTTP/1.1\nHost: x"))
        assert await client.rest() == b""
    assert "ZeroDivisionError" in caplog.text
    await rig.still_works()


# --- secrets ---


async def test_a_secret_is_in_no_answer_no_log_and_no_refusal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret, log = "s3cret-t0ken", tmp_path / "egress.jsonl"
    inject = [("origin.test", "Authorization", secret)]
    said = b""
    async with a_proxy(["*.test:*", "127.0.0.1:*"], inject=inject, log=log) as rig:
        port = rig.origin.port
        for head in (
            f"GET http://origin.test:{port}/hops HTTP/1.1\nHost: x",
            f"GET http://origin.test:{port}/garbage HTTP/1.1\nHost: x",
            f"GET http://origin.test:{port}/redirect HTTP/1.1\nHost: x",
            f"GET http://other.test:{port}/ HTTP/1.1\nHost: x",
            f"TRACE http://origin.test:{port}/ HTTP/1.1\nHost: x",
            f"CONNECT origin.test:{port} HTTP/1.1\nHost: x",
            "GET http://origin.test:1/ HTTP/1.1\nHost: x",
            "GET http://evil.example/ HTTP/1.1\nHost: origin.test",
            f"GET http://origin.test:{port}/ HTTP/1.1\nHost : x",
        ):
            client = await rig.connect()
            await client.say(request(head))
            client.writer.write_eof()
            said += await client.rest()
        given = [seen for seen in rig.origin.seen if secret.encode() in seen.head]
    assert len(given) == 3
    written = log.read_text()
    assert len(written.splitlines()) == 10
    assert {json.loads(line)["decision"] for line in written.splitlines()} == {"allowed", "denied", "failed"}
    assert secret.encode() not in said
    assert secret not in written
    assert secret not in caplog.text
    assert rig.said == []


async def test_a_secret_that_is_no_field_is_not_in_the_error_either() -> None:
    counters, commons = Counters.create(), Commons(100)
    bad = Injection(host="a.test", header="X-Key", value="s3cret\r\nX: y")
    with pytest.raises(ValueError, match=r"a\.test") as failure:
        Server(config(inject=[bad]), counters, print, commons)
    assert "s3cret" not in str(failure.value)
    commons.close()
    counters.close()


async def test_a_clients_password_is_not_written_down(tmp_path: Path) -> None:
    log = tmp_path / "egress.jsonl"
    async with a_proxy(log=log) as rig:
        client: Client = await rig.connect()
        await client.say(request(f"GET {rig.url}/ HTTP/1.1\nHost: x\nAuthorization : hunter2"))
        assert b"hunter2" not in await client.rest()
    assert "hunter2" not in log.read_text()


async def test_many_connections_at_once(rig: Rig) -> None:
    clients = await asyncio.gather(*(rig.tunnel() for _ in range(300)))
    assert rig.open == 300
    answers = await asyncio.gather(*(client.ask("GET / HTTP/1.1\nHost: x") for client in clients))
    assert {answer.status for answer in answers} == {200}
    await asyncio.gather(*(client.close() for client in clients))
    await until(lambda: rig.open == 0)
