"""The sandbox's questions for addresses: what is answered, how, to whom, and how much of it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from fastclaw import network_limits
from tests.network.egress.dns_rig import (
    AAAA,
    ANY,
    AXFR,
    FORMERR,
    HTTPS,
    NOERROR,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    TCP,
    TXT,
    UDP,
    WAIT_S,
    ZONE,
    A,
    Served,
    a_client,
    bound,
    hear,
    opt,
    query,
    read,
    say,
    serving,
    wire_name,
)
from tests.network.egress.rig import HERE
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may listen on port 53 and change resolv.conf")


# --- what is answered ---


async def test_a_name_that_may_be_reached_is_answered_and_known_again() -> None:
    async with serving() as served:
        assert (await served.ask("A.Example")).addresses == ZONE["a.example"][:2]
        assert (await served.ask("a.example", AAAA)).addresses == ZONE["a.example"][2:]
        assert served.enforcer.agrees("a.example", ip_address("5.5.5.2"))
        assert not served.enforcer.agrees("a.example", ip_address("5.5.5.3"))
        assert served.counters.snapshot()["allowed"] == 2
        assert served.denied() == {}


@pytest.mark.parametrize("type", [AAAA, HTTPS, TXT, ANY])
async def test_what_a_name_has_not_is_an_empty_answer(type: int) -> None:
    async with serving() as served:
        told = await served.ask("four.example", type)
        assert (told.code, told.addresses) == (NOERROR, [])


async def test_a_rule_for_any_port_opens_a_name() -> None:
    async with serving(["a.example:8443", "5.5.5.0/24:22"]) as served:
        assert (await served.ask("a.example")).addresses == ZONE["a.example"][:2]
        assert (await served.ask("four.example")).code == REFUSED


@pytest.mark.parametrize("type", [A, AAAA, HTTPS, TXT, ANY])
@pytest.mark.parametrize(
    "name",
    ["c2VjcmV0.tunnel.test", "example", "a.example.test", "xa.example2", "localhost", "bad.example", "x.bad.example"],
)
async def test_any_other_name_goes_nowhere(name: str, type: int) -> None:
    async with serving(deny=["bad.example", "*.bad.example"]) as served:
        assert (await served.ask(name, type)).code == REFUSED
        assert served.asked == []
        assert sum(served.denied().values()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        b"\0",
        b"\x05a.exa\x07example\0",
        b"\x02a\0\x07example\0",
        b"\x02\xc3\xbc\x07example\0",
        "-a.example",
    ],
)
async def test_a_name_that_is_none_goes_nowhere_even_where_all_names_are_open(name: str | bytes) -> None:
    async with serving(["*"]) as served:
        assert (await served.ask(name)).code == REFUSED
        assert served.asked == []
        assert served.denied() == {"bad_target": 1}


async def test_no_name_leads_inside() -> None:
    async with serving(["*"]) as served:
        assert (await served.ask("rebound.example")).addresses == ["5.5.5.4"]
        assert (await served.ask("rebound.example", AAAA)).addresses == []
        assert not served.enforcer.agrees("rebound.example", ip_address("127.0.0.1"))
        for type in (A, AAAA):
            told = await served.ask("inside.example", type)
            assert (told.code, told.addresses) == (REFUSED, [])
        assert served.denied() == {"special_address": 2}


async def test_an_address_inside_that_a_rule_lists_is_answered() -> None:
    async with serving(["*.example", "10.0.0.0/8"], ["127.0.0.0/8"]) as served:
        assert (await served.ask("inside.example")).addresses == ["10.0.0.1"]


async def test_an_address_that_is_denied_is_left_out() -> None:
    async with serving(deny=["5.5.5.1"]) as served:
        assert (await served.ask("a.example")).addresses == ["5.5.5.2"]


async def test_a_name_that_cannot_be_resolved() -> None:
    async with serving(connect_timeout_ms=50) as served:
        assert (await served.ask("nowhere.example")).code == NXDOMAIN
        assert (await served.ask("dead.example")).code == SERVFAIL
        assert (await served.ask("stuck.example")).code == SERVFAIL
        assert served.counters.snapshot()["failed"] == {"unresolved": 2, "connect_timeout": 1}


async def test_a_sandbox_without_bytes_left_gets_no_answer_out_of_anybody() -> None:
    async with serving(max_bytes=1) as served:
        served.enforcer.meter.sent(1)
        assert (await served.ask("a.example")).code == REFUSED
        assert served.asked == []


async def test_each_decision_is_written_down(tmp_path: Path) -> None:
    async with serving(log=str(tmp_path / "log")) as served:
        for name in ("a.example", "secret.test", "nowhere.example"):
            await served.ask(name)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["decision"], line["how"], line["host"]) for line in lines] == [
        ("allowed", "dns", "a.example"),
        ("denied", "dns", "secret.test"),
        ("failed", "dns", "nowhere.example"),
    ]


# --- how it is answered ---


async def test_an_answer_goes_to_its_asker_only() -> None:
    async with serving() as served:
        with a_client(served.udp_at) as one, a_client(served.udp_at) as other:
            one.send(query(wire_name("a.example")))
            other.send(query(wire_name("four.example")))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(WAIT_S):
                assert read(await loop.sock_recv(other, 512)).addresses == ZONE["four.example"]
                assert read(await loop.sock_recv(one, 512)).addresses == ZONE["a.example"][:2]
            for client in (one, other):
                with pytest.raises(BlockingIOError):
                    client.recv(512)


async def test_a_long_answer_is_cut_over_udp_and_whole_over_tcp() -> None:
    async with serving() as served:
        for extra, most in [
            ((), 512),
            ((opt(600),), 600),
            ((opt(0),), 512),
            ((opt(65_535),), network_limits.DNS_UDP_BYTES),
        ]:
            answer = await served.exchange(query(wire_name("many.example"), additional=extra))
            told = read(answer)
            assert len(answer) <= most
            assert told.is_cut == (len(told.addresses) < network_limits.DNS_ANSWERS)
            assert told.addresses == ZONE["many.example"][: len(told.addresses)]
        with a_client(served.tcp_at, socket.SOCK_STREAM) as client:
            await say(client, query(wire_name("many.example")))
            told = read(await hear(client))
        assert (told.is_cut, told.addresses) == (False, ZONE["many.example"][: network_limits.DNS_ANSWERS])


async def test_several_questions_over_one_connection_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "DNS_QUESTIONS", 1)
    async with serving() as served:
        with a_client(served.tcp_at, socket.SOCK_STREAM) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = [query(wire_name("a.example"), id=4), query(wire_name("b.test"), id=5), query(id=6)]
            stream = b"".join(len(message).to_bytes(2) + message for message in asked)
            for start, end in [*((at, at + 1) for at in range(5)), (5, len(stream))]:
                client.send(stream[start:end])
                await asyncio.sleep(0.005)  # no event says that a part of a question was read
            answers = [await hear(client) for _ in asked]
            assert [answer[:2] for answer in answers] == [b"\0\4", b"\0\5", b"\0\6"]
            assert [read(answer).code for answer in answers] == [NOERROR, REFUSED, NOERROR]
            await say(client, query(wire_name("a.example")))
            assert read(await hear(client)).addresses == ZONE["a.example"][:2]
            assert served.counters.snapshot()["open"] == 1
            client.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(network_limits.DNS_IDLE_MS / 2000):  # it has noticed, and not lost patience
                assert await hear(client) == b""


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (query()[:-1], FORMERR),
        (query(type=AXFR), REFUSED),
        (query(klass=3), REFUSED),
        (query(additional=(opt(version=1),)), 16),
        (query(flags=0x2800), 4),
        (query(additional=(opt(options=bytes(network_limits.DNS_QUERY_BYTES)),)), FORMERR),
    ],
)
async def test_what_cannot_be_answered_is_said_and_counted(message: bytes, code: int) -> None:
    async with serving() as served:
        assert read(await served.exchange(message)).code == code
        assert served.denied() == {"bad_request": 1}
        assert served.asked == []


async def test_garbage_is_passed_over() -> None:
    async with serving() as served:
        with a_client(served.udp_at) as client:
            for junk in (b"", b"x", query(flags=0x8180), os.urandom(11), bytes(5)):
                client.send(junk)
            client.send(query())
            async with asyncio.timeout(WAIT_S):
                assert read(await asyncio.get_running_loop().sock_recv(client, 512)).addresses == ZONE["a.example"][:2]
        assert served.denied() == {}


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff", b"\0\0", b"\0\5hello", len(query()).to_bytes(2) + query(flags=0x8000), b"\x16\x03\x01\0\x05hello"],
)
async def test_garbage_over_tcp_ends_the_connection(data: bytes) -> None:
    async with serving() as served:
        with a_client(served.tcp_at, socket.SOCK_STREAM) as client:
            client.send(data)
            async with asyncio.timeout(network_limits.DNS_IDLE_MS / 2000):  # and not because nothing more comes
                assert await hear(client) == b""
        assert (await served.ask("a.example")).code == NOERROR


async def test_who_is_not_of_the_sandbox_gets_no_answer(tmp_path: Path) -> None:
    async with serving(subnet="10.9.8.0/24", log=str(tmp_path / "log")) as served:
        with a_client(served.tcp_at, socket.SOCK_STREAM) as stream, a_client(served.udp_at) as datagrams:
            datagrams.send(query())
            await say(stream, query())
            assert await hear(stream) == b""
            with pytest.raises(BlockingIOError):
                datagrams.recv(512)
        assert served.denied() == {"not_from_sandbox": 2}
        assert served.asked == []
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["host"], line["text"].endswith(HERE)) for line in lines] == [("a.example", True)] * 2


@needs_root
async def test_the_resolver_of_libc_is_content(tmp_path: Path) -> None:
    """With the system's own stub resolver, which knows port 53 only, asks again over TCP, and uses both families."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.53.0.1\noptions attempts:1 timeout:5\n")
    program = """
import socket, sys
for name in sys.argv[1:]:
    try:
        print(name, *sorted({found[4][0] for found in socket.getaddrinfo(name, None)}))
    except socket.gaierror as error:
        print(name, error.errno == socket.EAI_AGAIN)
"""
    mounted = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, "sh", str(tmp_path / "resolv.conf"), sys.executable, "-c", program]
    async with serving(["*.example"]) as served:
        served.server.add(3, "dns_udp", bound(socket.SOCK_DGRAM, ("127.53.0.1", 53)))
        served.server.add(4, "dns_tcp", bound(socket.SOCK_STREAM, ("127.53.0.1", 53)))
        child = await asyncio.create_subprocess_exec(
            *command, "a.example", "many.example", "four.example", "b.test", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(child.communicate(), WAIT_S)
    told = {name: rest for name, *rest in map(str.split, out.decode().splitlines())}
    assert told["a.example"] == sorted(ZONE["a.example"])
    assert told["many.example"] == sorted(ZONE["many.example"][: network_limits.DNS_ANSWERS])
    assert told["four.example"] == ZONE["four.example"]
    assert told["b.test"] == ["True"]


# --- bounds ---


async def test_a_flood_is_dropped_and_told_of_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network_limits, "DNS_QUESTIONS", 3)
    async with serving(log=str(tmp_path / "log")) as served:
        with a_client(served.udp_at) as client:
            for number in range(10):
                client.send(query(wire_name(f"stuck{number}.example")))
            await asyncio.wait_for(served.stuck.wait(), WAIT_S)
            await served_up_to_here(served)
        assert sorted(served.asked) == ["stuck0.example", "stuck1.example", "stuck2.example"]
        await served.server.aclose()
        assert served.denied() == {"too_fast": 1}
    assert "8 questions" in (tmp_path / "log").read_text()


async def served_up_to_here(served: Served) -> None:
    """Until all datagrams that were sent are taken: then one more client's connection has been, too."""
    with a_client(served.tcp_at, socket.SOCK_STREAM) as client:
        await say(client, query())
        assert await hear(client) == b""  # it is over the bound as well


async def test_dropped_questions_are_told_of_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "DNS_QUESTIONS_PER_S", 1)
    monkeypatch.setattr(network_limits, "DNS_DROPPED_MS", 1)
    async with serving() as served:
        with a_client(served.udp_at) as client:
            for _ in range(3):
                client.send(query())
            await until(lambda: served.denied() == {"too_fast": 1})


async def test_clients_over_tcp_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "DNS_CLIENTS", 1)
    async with serving() as served:
        with (
            a_client(served.tcp_at, socket.SOCK_STREAM) as first,
            a_client(served.tcp_at, socket.SOCK_STREAM) as second,
        ):
            await say(first, query())
            assert read(await hear(first)).code == NOERROR
            await say(second, query())
            assert await hear(second) == b""
            first.shutdown(socket.SHUT_WR)
            assert await hear(first) == b""
        with a_client(served.tcp_at, socket.SOCK_STREAM) as third:
            await say(third, query())
            assert read(await hear(third)).code == NOERROR


async def test_clients_over_tcp_are_connections_of_the_sandbox() -> None:
    async with serving(max_connections=1) as served:
        served.enforcer.enter()
        with a_client(served.tcp_at, socket.SOCK_STREAM) as client:
            assert await hear(client) == b""
        served.enforcer.leave()
        assert served.denied() == {"too_many_connections": 1}


@pytest.mark.parametrize("begun", [b"", b"\0", b"\0\x20half"])
async def test_a_client_that_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(network_limits, "DNS_IDLE_MS", 50)
    async with serving() as served:
        with a_client(served.tcp_at, socket.SOCK_STREAM) as client:
            client.send(begun)
            assert await hear(client) == b""


async def test_a_client_that_does_not_read_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "DNS_IDLE_MS", 200)
    monkeypatch.setattr(network_limits, "DNS_QUESTIONS_PER_S", 1 << 30)
    async with serving() as served:
        served.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(served.tcp_at)
            client.setblocking(False)
            message = query(wire_name("many.example"))
            flood = (len(message).to_bytes(2) + message) * 100
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await asyncio.wait_for(send_for_ever(client, flood), WAIT_S)


async def send_for_ever(client: socket.socket, data: bytes) -> None:
    while True:
        await asyncio.get_running_loop().sock_sendall(client, data)


# --- the end ---


async def test_what_is_removed_ends_and_the_others_do_not() -> None:
    async with serving() as served:
        with a_client(served.tcp_at, socket.SOCK_STREAM) as client:
            await say(client, query())
            await hear(client)
            await say(client, query(wire_name("stuck.example")))
            await asyncio.wait_for(served.stuck.wait(), WAIT_S)
            served.server.remove(TCP)
            served.server.remove(TCP)
            assert await hear(client) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(served.tcp_at)
        assert (await served.ask("a.example")).code == NOERROR
        served.server.remove(UDP)
        with a_client(served.udp_at) as client:
            client.send(query())
            with pytest.raises(ConnectionRefusedError):
                client.recv(512)


async def test_it_ends_in_the_middle_of_everything() -> None:
    async with serving() as served:
        with a_client(served.tcp_at, socket.SOCK_STREAM) as client, a_client(served.udp_at) as other:
            other.send(query(wire_name("stuck.example")))
            await say(client, query(wire_name("stuck.example")))
            await asyncio.wait_for(served.stuck.wait(), WAIT_S)
            await served.server.aclose()
            await served.server.aclose()
            assert await hear(client) == b""


async def test_what_has_not_begun_ends_as_well() -> None:
    async with serving() as served:
        with a_client(served.tcp_at, socket.SOCK_STREAM) as client, a_client(served.udp_at) as other:
            other.send(query())
            await say(client, query())
            loop = asyncio.get_running_loop()
            taken = loop.create_future()

            def end_at_once() -> None:  # in the turn of the loop in which the tasks are made, and before they run
                for id in (1, 2):
                    served.server.remove(id)
                loop.remove_reader(marker)
                taken.set_result(None)

            marker, there = socket.socketpair()
            with marker, there:
                there.send(b"x")
                loop.add_reader(marker, end_at_once)
                await asyncio.wait_for(taken, WAIT_S)
            assert await hear(client) == b""
