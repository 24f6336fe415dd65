"""What is resolved, what is connected to, what is counted and written down. Servers here are on loopback."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING

import msgspec
import pytest

from fastclaw import network_limits
from fastclaw.errors import InvalidParams
from fastclaw.network.egress.accounting import Counters, Decision
from fastclaw.network.egress.dialing import Dialled, HostResolver
from fastclaw.network.egress.enforcement import AccessRequest, PolicyEnforcer
from fastclaw.network.egress.policy import ANY_PORT, Refused
from fastclaw.network.egress.shares import Pool, Share
from tests.network.egress.enforcer_rig import (
    ONE,
    OTHER,
    PUBLIC,
    SIX,
    TWO,
    ScriptedNames,
    an_enforcer,
    listening,
    port_of,
    was_connected_to,
)
from tests.network.egress.namespaces import needs_root, run_apart
from tests.network.egress.rig import config, many, reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.network.egress.addresses import Address

# --- what is resolved ---


async def test_a_name_that_no_rule_allows_is_never_resolved() -> None:
    async with an_enforcer(["a.test:443", "*.b.test"], ["denied.b.test"], ScriptedNames(x=[[PUBLIC]])) as rig:
        assert await rig.refusal("x") == "not_allowed"
        assert await rig.refusal("secret.a.test") == "not_allowed"
        assert await rig.refusal("b.test") == "not_allowed"
        assert await rig.refusal("a.test", 80) == "not_allowed"
        assert await rig.refusal("denied.b.test") == "denied"
        assert await rig.refusal("x", 443, PUBLIC) == "not_allowed"
        with pytest.raises(Refused, match="no rule allows secret"):
            await rig.enforcer.admit(AccessRequest("dns", "secret.a.test", ANY_PORT))
        with pytest.raises(Refused):
            await rig.enforcer.connect(AccessRequest("http", "x", 80, "GET"))
        assert rig.names.asked == []


async def test_an_address_is_never_resolved() -> None:
    async with an_enforcer(["8.8.8.8:443", "::1"]) as rig:
        assert await rig.admits(PUBLIC) == [PUBLIC]
        assert await rig.admits(SIX) == [SIX]
        assert rig.names.asked == []


async def test_the_hosts_own_resolver_is_asked_for_an_allowed_name() -> None:
    counters = Counters.create()
    host = HostResolver()
    real = PolicyEnforcer(config(["localhost"]), counters, pytest.fail, host.share(), many())
    assert await reason_of(real.admit(AccessRequest("connect", "localhost", 443))) == "special_address"
    await real.aclose()
    await real.aclose()
    host.close()
    counters.close()


def test_rules_that_are_none_open_nothing() -> None:
    async def make() -> None:
        counters = Counters.create()
        try:
            with pytest.raises(InvalidParams) as caught:
                PolicyEnforcer(config(["a.test", "a b"]), counters, pytest.fail, ScriptedNames(), many())
            assert caught.value.data["path"] == "$.options.network.allow[1]"
        finally:
            counters.close()

    asyncio.run(make())


# --- which addresses are left ---


@pytest.mark.parametrize(
    "inside",
    [
        "127.0.0.1",
        "::1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
async def test_a_public_name_leads_nowhere_inside(inside: str) -> None:
    address = ip_address(inside)
    async with an_enforcer(["*", "a.test"], names=ScriptedNames(a_test=[[address]])) as rig:
        assert await rig.refusal("a.test") == "special_address"
        assert await rig.refusal(address) == "special_address"
        assert await rig.refusal("a.test", 443, address) == "special_address"
        assert await reason_of(rig.enforcer.admit(AccessRequest("dns", "a.test", ANY_PORT))) == "special_address"
        assert rig.counts == {"denied": {"special_address": 4}}


async def test_an_address_that_is_listed_may_be_led_to() -> None:
    async with an_enforcer(["a.test", "10.0.0.0/8:443"], names=ScriptedNames(a_test=[[ip_address("10.1.2.3")]])) as rig:
        assert await rig.admits("a.test") == [ip_address("10.1.2.3")]
        assert await rig.refusal("a.test", 80) == "special_address"


async def test_of_a_mixed_answer_only_the_good_are_used() -> None:
    answer = [ip_address("10.0.0.1"), PUBLIC, ONE, OTHER, SIX]
    async with an_enforcer(["a.test"], names=ScriptedNames(a_test=[answer])) as rig:
        assert await rig.admits("a.test") == [PUBLIC, OTHER]
        assert await rig.enforcer.admit(AccessRequest("dns", "a.test", ANY_PORT)) == [PUBLIC, OTHER]
        assert rig.counts == {"allowed": 2}


async def test_a_denied_network_holds_for_what_a_name_resolves_to() -> None:
    names = ScriptedNames(a_test=[[PUBLIC, OTHER]], b_test=[[PUBLIC]])
    async with an_enforcer(["*"], ["8.8.8.0/24"], names) as rig:
        assert await rig.admits("a.test") == [OTHER]
        assert await rig.refusal("b.test") == "denied"
        assert await rig.refusal(PUBLIC) == "denied"
        assert await rig.refusal(ip_address("::ffff:8.8.8.8")) == "denied"


async def test_the_first_refusal_says_why_none_is_left() -> None:
    async with an_enforcer(["a.test"], ["8.8.8.0/24"], ScriptedNames(a_test=[[PUBLIC, ONE]])) as rig:
        assert await rig.refusal("a.test") == "denied"


OWN_ADDRESS = """
import asyncio, socket, subprocess, sys
from ipaddress import ip_address
import msgspec
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.enforcement import AccessRequest, PolicyEnforcer
from fastclaw.network.egress.proxy_frames import EgressConfig
from fastclaw.network.egress.shares import Pool, Share

PUBLIC = ip_address("8.8.8.8")

async def names(name):
    return [PUBLIC]

async def reason(enforcer, host, address=None):
    try:
        await enforcer.admit(AccessRequest("connect" if address is None else "transparent", host, 443, None, address))
    except Refused as refused:
        return refused.reason + (" own" if "this host's own" in refused.text else "")

async def main(config):
    for command in ("link set lo up", f"address add {PUBLIC}/32 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    counters = Counters.create()
    enforcer = PolicyEnforcer(config, counters, print, names, Share(Pool(100)))
    mapped = ip_address(f"::ffff:{PUBLIC}")
    found = [await reason(enforcer, host) for host in ("a.test", PUBLIC, mapped, ip_address("9.9.9.9"))]
    found += [await reason(enforcer, "a.test", PUBLIC)]
    assert found == ["special_address own"] * 3 + [None] + ["special_address own"], found
    config = msgspec.structs.replace(config, allow=[str(PUBLIC)])
    listed = PolicyEnforcer(config, counters, print, names, Share(Pool(100)))
    with socket.create_server((str(PUBLIC), 443)):
        (await listed.connect(AccessRequest("connect", PUBLIC, 443))).socket.close()
    await enforcer.aclose()
    await listed.aclose()

asyncio.run(main(msgspec.json.decode(sys.argv[1], type=EgressConfig)))
"""


@needs_root
def test_a_public_address_of_this_host_is_refused_unless_it_is_listed() -> None:
    """In a network namespace whose own address is a public one."""
    settings = msgspec.json.encode(config(["*"])).decode()
    assert run_apart(OWN_ADDRESS, settings) == ""


# --- DNS rebinding ---


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """The name answers a good address once and another one for ever after; and it changes while it is looked up."""
    with listening("127.0.0.1", "127.0.0.2") as (good, bad):
        port = port_of(good)
        names = ScriptedNames(a_test=[[ONE], [TWO]])
        async with an_enforcer([f"a.test:{port}", "127.0.0.1:*"], names=names) as rig:
            with (await rig.enforcer.connect(AccessRequest("connect", "a.test", port))).socket as sock:
                assert sock.getpeername() == ("127.0.0.1", port)
            assert names.asked == ["a.test"], "nobody has asked again on the way"
        assert (was_connected_to(good), was_connected_to(bad)) == (True, False)


async def test_a_name_that_turns_inside_is_refused_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_ANSWER_MS", 0)
    with listening("127.0.0.1") as [inside]:
        port = port_of(inside)
        async with an_enforcer([f"a.test:{port}"], names=ScriptedNames(a_test=[[PUBLIC], [ONE]])) as rig:
            assert await rig.admits("a.test", port) == [PUBLIC]
            assert await reason_of(rig.enforcer.connect(AccessRequest("connect", "a.test", port))) == "special_address"
            assert rig.names.asked == ["a.test", "a.test"]
        assert not was_connected_to(inside)


async def test_a_kept_answer_is_checked_anew_each_time() -> None:
    with listening("127.0.0.1") as [server]:
        port = port_of(server)
        async with an_enforcer(["127.0.0.1:*", f"a.test:{port}"], names=ScriptedNames(a_test=[[ONE]])) as rig:
            (await rig.enforcer.connect(AccessRequest("connect", "a.test", port))).socket.close()
            rig.enforcer.policy = type(rig.enforcer.policy)([f"a.test:{port}"])
            with pytest.raises(Refused):
                await rig.enforcer.connect(AccessRequest("connect", "a.test", port))


# --- connections that a firewall has turned to us ---


async def test_a_name_must_be_the_addresss() -> None:
    async with an_enforcer(["a.test", "b.test"], names=ScriptedNames(a_test=[[PUBLIC]], b_test=[[OTHER]])) as rig:
        assert await rig.admits("a.test", 443, PUBLIC) == [PUBLIC]
        assert await rig.refusal("a.test", 443, OTHER) == "name_mismatch"
        assert await rig.refusal("b.test", 443, PUBLIC) == "name_mismatch"
        assert await rig.refusal(PUBLIC, 443, OTHER) == "name_mismatch"


async def test_a_secret_goes_to_its_names_own_address_whatever_rule_lists_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name is asked for anew, though it was answered before, and has to be allowed as a name."""
    monkeypatch.setattr(network_limits, "EGRESS_ANSWER_MS", 0)
    names = ScriptedNames(a_test=[[PUBLIC]], b_test=[[OTHER]])
    async with an_enforcer(["a.test:443", "9.9.9.9"], names=names) as rig:
        plain = AccessRequest("transparent", "a.test", 443, "GET", OTHER)
        for name, address in (("a.test", OTHER), ("b.test", OTHER), ("a.test", PUBLIC)):
            rig.enforcer.remember(name, [address])
        assert await rig.enforcer.admit(plain) == [OTHER]
        secret = plain._replace(has_secret=True)
        for asked, reason in ((secret, "name_mismatch"), (secret._replace(host="b.test"), "not_allowed")):
            assert await reason_of(rig.enforcer.admit(asked)) == reason
        assert await rig.enforcer.admit(secret._replace(address=PUBLIC)) == [PUBLIC]
        assert names.asked == ["a.test", "a.test"]


async def test_what_our_dns_has_answered_agrees_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_ANSWERED", 3)
    async with an_enforcer(["*.test"], names=ScriptedNames(a_test=[[PUBLIC]])) as rig:
        rig.enforcer.remember("a.test", [OTHER])
        assert await rig.admits("a.test", 443, OTHER) == [OTHER]
        assert rig.names.asked == []
        for number in range(3):
            rig.enforcer.remember(f"n{number}.test", [PUBLIC])
        assert not rig.enforcer.agrees("a.test", OTHER)
        assert rig.enforcer.agrees("n0.test", PUBLIC)
        assert await rig.refusal("a.test", 443, OTHER) == "name_mismatch"
        monkeypatch.setattr(network_limits, "EGRESS_ANSWERED_MS", 0)
        rig.enforcer.remember("n0.test", [PUBLIC])
        assert not rig.enforcer.agrees("n0.test", PUBLIC)
        assert rig.enforcer.agrees("n2.test", PUBLIC)


async def test_a_remembered_answer_is_checked_all_the_same() -> None:
    async with an_enforcer(["a.test"]) as rig:
        rig.enforcer.remember("a.test", [ONE])
        assert await rig.refusal("a.test", 443, ONE) == "special_address"


@pytest.mark.parametrize(
    ("allow", "deny", "host", "outcome"),
    [
        (["*"], [], PUBLIC, "no_name"),
        ([], [], PUBLIC, "no_name"),
        (["8.8.8.0/24"], [], PUBLIC, None),
        (["8.8.8.8:80"], [], PUBLIC, "no_name"),
        (["8.8.8.8"], ["8.0.0.0/8"], PUBLIC, "denied"),
        (["*"], ["8.0.0.0/8"], PUBLIC, "denied"),
        (["8.8.8.8"], [], "a.test", None),
        (["8.8.8.8"], ["a.test"], "a.test", "denied"),
        (["8.8.8.8", "*"], ["*.test"], "a.test", "denied"),
        (["8.8.8.8", "a.test"], ["8.8.8.8"], "a.test", "denied"),
    ],
)
async def test_no_name_or_one_that_only_its_address_is_listed_for(
    allow: list[str], deny: list[str], host: str | Address, outcome: str | None
) -> None:
    async with an_enforcer(allow, deny, ScriptedNames(a_test=[[PUBLIC]])) as rig:
        if outcome is None:
            assert await rig.admits(host, 443, PUBLIC) == [PUBLIC]
            assert rig.names.asked == []
        else:
            assert await rig.refusal(host, 443, PUBLIC) == outcome


async def test_without_its_destination_nothing_is_allowed() -> None:
    async with an_enforcer(["*"]) as rig:
        assert await reason_of(rig.enforcer.admit(AccessRequest("transparent", "a.test", 443))) == "no_name"


@pytest.mark.parametrize(
    "asked",
    [AccessRequest("connect", PUBLIC, 0), AccessRequest("http", "a.test", 0), AccessRequest("dns", "a.test", 53)],
)
async def test_the_port_that_means_any_is_none_to_connect_to(asked: AccessRequest) -> None:
    async with an_enforcer(["*", "8.8.8.8"]) as rig:
        assert await reason_of(rig.enforcer.connect(asked)) == "bad_target"


# --- counted and written down ---


async def test_each_outcome_is_counted_once_and_written_once(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with listening("127.0.0.1") as [server]:
        port = port_of(server)
        allow = ["127.0.0.1:*", "127.0.0.2:1", f"a.test:{port}", "*.gone.test"]
        async with an_enforcer(allow, ["evil.test"], ScriptedNames(a_test=[[TWO, ONE]]), log=log) as rig:
            (await rig.enforcer.connect(AccessRequest("connect", "a.test", port))).socket.close()
            await rig.enforcer.admit(AccessRequest("http", ONE, 80, "GET"))
            for asked in (
                AccessRequest("connect", "evil.test", 443),
                AccessRequest("connect", "x.gone.test", 443),
                AccessRequest("connect", TWO, 1),
                AccessRequest("transparent", ONE, port, None, TWO),
            ):
                with pytest.raises(Refused):
                    await rig.enforcer.connect(asked)
            refused = await rig.enforcer.record(Refused("bad_request", "no method"), None)
            assert (refused.reason, refused.text) == ("bad_request", "no method")
            assert rig.counts == {
                "allowed": 2,
                "denied": {"denied": 1, "name_mismatch": 1, "bad_request": 1},
                "failed": {"unresolved": 1, "unreachable": 1},
            }
            lines = await rig.lines()
    picked = ("decision", "reason", "how", "host", "port", "address", "method", "rule")
    assert [tuple(line[name] for name in picked) for line in lines] == [
        ("allowed", None, "connect", "a.test", port, "127.0.0.1", None, "127.0.0.1:*"),
        ("allowed", None, "http", "127.0.0.1", 80, "127.0.0.1", "GET", "127.0.0.1:*"),
        ("denied", "denied", "connect", "evil.test", 443, None, None, "evil.test"),
        ("failed", "unresolved", "connect", "x.gone.test", 443, None, None, None),
        ("failed", "unreachable", "connect", "127.0.0.2", 1, None, None, None),
        ("denied", "name_mismatch", "transparent", "127.0.0.1", port, "127.0.0.2", None, None),
        ("denied", "bad_request", "connect", "", 0, None, None, None),
    ]
    assert all(line["text"] for line in lines)


async def test_silence_is_a_failure_of_its_own(tmp_path: Path) -> None:
    with listening("127.0.0.1", backlog=0) as [server], socket.create_connection(server.getsockname()):
        port = port_of(server)
        async with an_enforcer(["127.0.0.1:*"], connect_timeout_ms=100, log=str(tmp_path / "log")) as rig:
            assert await reason_of(rig.enforcer.connect(AccessRequest("connect", ONE, port))) == "connect_timeout"
            assert rig.counts == {"failed": {"connect_timeout": 1}}
            assert [line["decision"] for line in await rig.lines()] == ["failed"]


async def test_resolving_and_connecting_share_one_deadline() -> None:
    loop = asyncio.get_running_loop()

    async def slow(name: str) -> list[Address]:
        await asyncio.sleep(0.2)
        return [ONE]

    with listening("127.0.0.1", backlog=0) as [server], socket.create_connection(server.getsockname()):
        port = port_of(server)
        counters = Counters.create()
        settings = config(["127.0.0.1:*", f"a.test:{port}"], connect_timeout_ms=400)
        made = PolicyEnforcer(settings, counters, pytest.fail, slow, many())
        began = loop.time()
        with pytest.raises(Refused) as caught:
            await made.connect(AccessRequest("connect", "a.test", port))
        assert round(loop.time() - began, 3) >= 0.4  # whole milliseconds, but for the digits of a float
        assert caught.value.reason == "connect_timeout"
        left = re.search(r"no answer within (\S+) s", caught.value.text)
        assert left is not None
        assert float(left[1]) <= 0.2
        await made.aclose()
        counters.close()


async def test_clients_are_counted_in_and_out() -> None:
    async with an_enforcer([], max_connections=2) as rig:
        rig.enforcer.enter()
        rig.enforcer.enter()
        with pytest.raises(Refused, match="max_connections") as caught:
            rig.enforcer.enter()
        assert caught.value.reason == "too_many_connections"
        assert rig.counts == {"open": 2, "denied": {"too_many_connections": 1}}
        rig.enforcer.leave()
        rig.enforcer.enter()
        rig.enforcer.leave()
        rig.enforcer.leave()
        assert rig.counts == {"denied": {"too_many_connections": 1}}


async def test_a_crowd_that_is_turned_away_takes_a_few_lines(tmp_path: Path) -> None:
    async with an_enforcer([], max_connections_per_s=1, log=str(tmp_path / "log")) as rig:
        rig.enforcer.enter()
        for _ in range(500):
            with pytest.raises(Refused):
                rig.enforcer.enter()
        assert rig.counters.snapshot()["denied"] == {"too_fast": 500}
        lines = await rig.lines()
        rig.enforcer.leave()
    [line] = lines
    assert (line["reason"], line["text"].endswith("; 500 turned away")) == ("too_fast", True)


async def test_bytes_are_counted_and_end_at_the_budget() -> None:
    async with an_enforcer(["8.8.8.8"], max_bytes=1_000) as rig:
        assert rig.enforcer.meter.sent(400)
        assert rig.enforcer.meter.received(500)
        assert await rig.admits(PUBLIC) == [PUBLIC]
        assert not rig.enforcer.meter.received(200)
        assert rig.counters.snapshot()["bytes"] == {"sent": 400, "received": 700}
        assert await rig.refusal(PUBLIC) == "too_many_bytes"


async def test_a_proxy_that_takes_over_goes_on_with_the_budget() -> None:
    counters = Counters.create()
    counters.sent(600)
    counters.received(400)
    made = PolicyEnforcer(config(["8.8.8.8"], max_bytes=1_000), counters, pytest.fail, ScriptedNames(), many())
    assert await reason_of(made.admit(AccessRequest("connect", PUBLIC, 443))) == "too_many_bytes"
    await made.aclose()
    counters.close()


async def test_without_a_descriptor_a_client_is_turned_away_and_others_have_theirs(tmp_path: Path) -> None:
    pool, log = Pool(8), tmp_path / "log"
    counters = Counters.create()
    greedy = PolicyEnforcer(config(log=str(log)), counters, pytest.fail, ScriptedNames(), Share(pool))
    other = PolicyEnforcer(config(), counters, pytest.fail, ScriptedNames(), Share(pool))
    greedy.enter()
    greedy.enter()
    with pytest.raises(Refused, match="no descriptor is left for it") as caught:
        greedy.enter()
    assert caught.value.reason == "too_many_connections"
    other.enter()
    greedy.leave()
    greedy.enter()
    assert counters.snapshot()["denied"] == {"too_many_connections": 1}
    for enforcer in (greedy, greedy, other):
        enforcer.leave()
    assert (pool.free, counters.snapshot()["open"]) == (8, 0)
    await greedy.aclose()
    await other.aclose()
    assert "no descriptor is left" in log.read_text()
    counters.close()


# --- giving up ---


@pytest.mark.parametrize("turns", range(12))
async def test_giving_up_at_any_turn_leaves_nothing(tmp_path: Path, turns: int) -> None:
    """Before, in and after the lookup, the dial and the log: `an_enforcer` compares descriptors and tasks."""
    with listening("127.0.0.1") as [server]:
        port = port_of(server)
        allow = ["127.0.0.1:*", f"a.test:{port}"]
        async with an_enforcer(allow, names=ScriptedNames(a_test=[[ONE]]), log=str(tmp_path / "log")) as rig:
            task = asyncio.create_task(rig.enforcer.connect(AccessRequest("connect", "a.test", port)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, Dialled):
                result.socket.close()
            else:
                assert isinstance(result, asyncio.CancelledError)


async def test_giving_up_while_the_other_end_is_silent_counts_as_allowed(tmp_path: Path) -> None:
    with listening("127.0.0.1", backlog=0) as [server], socket.create_connection(server.getsockname()):
        async with an_enforcer(["127.0.0.1:*"], log=str(tmp_path / "log")) as rig:
            task = asyncio.create_task(rig.enforcer.connect(AccessRequest("connect", ONE, port_of(server))))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled()
            assert rig.counts == {"allowed": 1}
            assert [line["decision"] for line in await rig.lines()] == ["allowed"]


async def test_giving_up_while_the_log_is_slow_closes_the_connection(tmp_path: Path) -> None:
    with listening("127.0.0.1") as [server]:
        async with an_enforcer(["127.0.0.1:*"], log=str(tmp_path / "log")) as rig:
            audit_log = rig.enforcer._audit_log
            assert audit_log is not None
            disk_is_back = threading.Event()
            audit_log._thread.submit(disk_is_back.wait, 30)
            entry = Decision(decision="allowed", how="connect", host="a.test", port=443, text="filler")
            await audit_log.write(entry)
            await asyncio.sleep(0)  # it takes up all there is so far, and waits for the disk
            while not audit_log._lines.full():
                await audit_log.write(entry)
            task = asyncio.create_task(rig.enforcer.connect(AccessRequest("connect", ONE, port_of(server))))
            await asyncio.sleep(0)
            assert not task.done()
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled()
            disk_is_back.set()
        server.setblocking(True)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b""
