"""Names become addresses: one lookup for all who ask, bounded in number, time and memory; failures are words."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from fastclaw import network_limits
from fastclaw.network.egress import dialing as module
from fastclaw.network.egress.dialing import HostResolver, Resolver
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.proxy import _environment
from tests.balance import balanced
from tests.network.egress.namespaces import needs_root, run_apart
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from fastclaw.network.egress.addresses import Address

ONE, TWO = ip_address("127.0.0.1"), ip_address("127.0.0.2")


class Book:
    """A resolver that tests write the answers of."""

    def __init__(self, *addresses: Address) -> None:
        self.addresses: Sequence[Address] = addresses
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return self.addresses


async def refusal(resolver: Resolver, name: str) -> Refused:
    with pytest.raises(Refused) as caught:
        await resolver.resolve(name)
    return caught.value


@pytest.fixture
async def host() -> AsyncIterator[HostResolver]:
    """The host's own."""
    made = HostResolver()
    yield made
    made.close()


# --- with the host's own resolver ---


async def test_the_hosts_own_resolver_is_asked() -> None:
    async with balanced():
        host = HostResolver()
        resolver = Resolver(10, host.share())
        assert ONE in await resolver.resolve("localhost")
        await resolver.aclose()
        host.close()


SEARCHED = """
import socket, subprocess, sys, threading
from pathlib import Path
from fastclaw.network.egress.dialing import _getaddrinfo
Path("resolv.conf").write_text("nameserver 127.0.0.1\\nsearch captured.test\\noptions ndots:5\\n")
subprocess.run(["mount", "--bind", "resolv.conf", "/etc/resolv.conf"], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))

def serve():
    while True:
        query, client = server.recvfrom(4096)
        print(query[12:-5].decode("latin-1").translate({3: ".", 4: ".", 8: "."}), flush=True)
        server.sendto(query[:2] + bytes.fromhex("8183") + query[4:6] + bytes(6) + query[12:], client)

threading.Thread(target=serve, daemon=True).start()
try:
    _getaddrinfo("name.test")
except socket.gaierror:
    pass
"""


@needs_root
def test_no_search_domain_makes_another_name_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the environment that the proxy's process gets, and a resolv.conf as Kubernetes writes it."""
    monkeypatch.setenv("LOCALDOMAIN", "captured.test")
    env = {**_environment(), "PYTHONPATH": os.getcwd()}
    asked = run_apart(SEARCHED, mounts=True, env=env, cwd=tmp_path).split()
    assert {line.strip(".\0") for line in asked} == {"name.test"}


async def test_a_name_that_cannot_be_asked_for(host: HostResolver) -> None:
    """An empty label has no form in a query (RFC 1035, 3.1), so none is sent."""
    resolver = Resolver(10, host.share())
    refused = await refusal(resolver, "no..name")
    assert (refused.reason, "no..name has no address: " in refused.text) == ("unresolved", True)
    await resolver.aclose()


async def test_a_letter_beyond_ascii_is_not_turned_into_another_name(host: HostResolver) -> None:
    resolver = Resolver(10, host.share())
    assert (await refusal(resolver, "ﬀ.test")).reason == "unresolved"
    await resolver.aclose()


async def test_slow_names_hold_up_no_more_than_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, together = threading.Event(), threading.Barrier(3)

    def slow(name: str) -> list[Address]:
        if name.startswith("slow"):
            together.wait(30)
            go_on.wait(30)
        return [ONE]

    monkeypatch.setattr(module, "_getaddrinfo", slow)
    host = HostResolver(5)
    resolver = Resolver(60, host.share())
    async with asyncio.TaskGroup() as group:
        slow_ones = [group.create_task(resolver.resolve(f"slow{number}.test")) for number in range(2)]
        await asyncio.to_thread(together.wait, 30)  # both threads are taken
        assert await resolver.resolve("quick.test") == [ONE]
        assert not any(task.done() for task in slow_ones)
        go_on.set()
    await resolver.aclose()


class SlowHost:
    """In the place of getaddrinfo(3): names of `slow` wait until they may go on.

    Attributes:
        gate: lets them pass.
        begun: those that have a thread, in order.
    """

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.begun: list[str] = []

    def __call__(self, name: str) -> list[Address]:
        self.begun.append(name)
        if name.startswith("slow"):
            self.gate.acquire(timeout=30)
        return [ONE]


@pytest.fixture
def slow_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowHost]:
    made = SlowHost()
    monkeypatch.setattr(module, "_getaddrinfo", made)
    yield made
    made.gate.release(1_000)


async def test_an_environment_whose_names_are_slow_leaves_threads_to_the_others(slow_host: SlowHost) -> None:
    host = HostResolver(8)
    greedy, other = Resolver(60, host.share()), Resolver(60, host.share())
    waiting = [asyncio.create_task(greedy.resolve(f"slow{number}.test")) for number in range(100)]
    await until(lambda: len(slow_host.begun) == 4)
    for number in range(20):
        assert await other.resolve(f"quick{number}.test") == [ONE]
    assert len([name for name in slow_host.begun if name.startswith("slow")]) == 4
    slow_host.gate.release(1_000)
    assert await asyncio.gather(*waiting) == [[ONE]] * 100
    await until(lambda: host.units.free == 8)
    assert not host.waiting
    host.close()


async def test_a_thread_that_is_free_goes_to_who_has_the_fewest(slow_host: SlowHost) -> None:
    host = HostResolver(3)
    first, second, third = [Resolver(60, host.share()) for _ in range(3)]
    names = [
        (first, "slow1"),
        (first, "slow2"),
        (second, "slow3"),
        (first, "slow4"),
        (second, "quick5"),
        (third, "quick6"),
    ]
    tasks = [asyncio.create_task(resolver.resolve(name)) for resolver, name in names]
    await until(lambda: len(slow_host.begun) == 3)
    assert (slow_host.begun, host.units.free) == (["slow1", "slow2", "slow3"], 0)
    slow_host.gate.release()
    await until(lambda: len(slow_host.begun) > 3)
    assert slow_host.begun[3] == "quick6"
    slow_host.gate.release(10)
    await asyncio.gather(*tasks)
    await until(lambda: host.units.free == 3)
    host.close()


async def test_who_gives_up_while_its_name_waits_takes_no_thread_from_the_others(slow_host: SlowHost) -> None:
    host = HostResolver(2)
    share = host.share()
    stuck = asyncio.create_task(share("slow.test"))
    await until(lambda: slow_host.begun == ["slow.test"])
    waiting = [asyncio.create_task(share(f"quick{number}.test")) for number in range(3)]
    await turns()
    waiting[0].cancel()
    await turns()
    stuck.cancel()  # its thread goes on
    await turns()
    assert (share.held, host.units.free) == (1, 1)
    waiting[1].cancel()
    slow_host.gate.release(1_000)
    await asyncio.wait([stuck, *waiting])
    assert waiting[2].result() == [ONE]
    assert slow_host.begun == ["slow.test", "quick2.test"]
    await until(lambda: host.units.free == 2)
    assert not host.waiting
    host.close()


async def test_given_up_in_the_turn_in_which_its_thread_came_free(slow_host: SlowHost) -> None:
    host = HostResolver(2)
    share = host.share()
    stuck = asyncio.create_task(share("slow.test"))
    await until(lambda: slow_host.begun == ["slow.test"])
    tasks = [asyncio.create_task(share(f"quick{number}.test")) for number in range(2)]
    await turns()
    share._free()  # as if it was: the first has it now, and gives up before it hears of that
    tasks[0].cancel()
    assert await tasks[1] == [ONE]
    assert tasks[0].cancelled()
    slow_host.gate.release(1_000)
    await stuck
    await until(lambda: share.held == -1)  # the one that was given back twice
    host.close()


async def test_closing_does_not_wait_for_the_hosts_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, began, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(name: str) -> list[Address]:
        began.set()
        go_on.wait(30)
        ended.set()
        return [ONE]

    monkeypatch.setattr(module, "_getaddrinfo", slow)
    host = HostResolver()
    resolver = Resolver(60, host.share())
    waiting = asyncio.create_task(resolver.resolve("slow.test"))
    await asyncio.to_thread(began.wait, 30)
    waiting.cancel()
    await asyncio.wait((waiting,))
    await resolver.aclose()
    await resolver.aclose()
    assert not ended.is_set()
    go_on.set()
    await asyncio.to_thread(ended.wait, 30)


# --- one lookup, kept for a while ---


async def test_all_who_ask_at_once_share_one_lookup() -> None:
    book = Book(ONE, TWO)
    resolver = Resolver(10, book)
    answers = await asyncio.gather(*(resolver.resolve("a.test") for _ in range(500)))
    assert answers == [[ONE, TWO]] * 500
    assert book.asked == ["a.test"]
    await resolver.aclose()


async def test_an_answer_is_kept_for_a_while_and_then_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book(ONE)
    resolver = Resolver(10, book)
    assert await resolver.resolve("a.test") == [ONE]
    book.addresses = (TWO,)
    assert await resolver.resolve("a.test") == [ONE]
    monkeypatch.setattr(network_limits, "EGRESS_ANSWER_MS", 0)
    assert await resolver.resolve("b.test") == [TWO]
    book.addresses = (ONE,)
    assert await resolver.resolve("b.test") == [ONE]
    assert book.asked == ["a.test", "b.test", "b.test"]
    await resolver.aclose()


async def test_a_name_that_is_asked_for_anew_is_kept_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_ANSWERS", 2)
    monkeypatch.setattr(network_limits, "EGRESS_ANSWER_MS", 0)
    book = Book(ONE)
    resolver = Resolver(10, book)
    await resolver.resolve("a.test")
    await resolver.resolve("b.test")
    monkeypatch.setattr(network_limits, "EGRESS_ANSWER_MS", 60_000)
    for name in ("a.test", "c.test", "a.test"):
        await resolver.resolve(name)
    assert book.asked == ["a.test", "b.test", "a.test", "c.test"]
    await resolver.aclose()


async def test_whoever_gets_an_answer_may_change_it() -> None:
    resolver = Resolver(10, Book(ONE))
    (await resolver.resolve("a.test")).clear()
    assert await resolver.resolve("a.test") == [ONE]
    await resolver.aclose()


async def test_thousands_of_names_leave_only_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_ANSWERS", 100)
    book = Book(ONE)
    resolver = Resolver(10, book)
    names = [f"n{number}.test" for number in range(5_000)]
    for name in names:
        await resolver.resolve(name)
    book.asked.clear()
    for name in reversed(names[-100:]):
        await resolver.resolve(name)
    assert book.asked == []
    await resolver.resolve(names[-101])
    assert book.asked == [names[-101]]
    await resolver.aclose()


async def test_too_many_names_at_once_are_refused_and_the_others_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_LOOKUPS_WAITING", 50)
    book = Book(ONE)
    book.may_answer.clear()
    resolver = Resolver(10, book)
    tasks = [asyncio.create_task(resolver.resolve(f"n{number}.test")) for number in range(3_000)]
    await turns()
    assert len(book.asked) == 50
    book.may_answer.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:50] == [[ONE]] * 50
    assert {type(result) for result in results[50:]} == {Refused}
    assert (await resolver.resolve("n2999.test")) == [ONE]
    await resolver.aclose()


async def test_the_same_address_counts_once_and_too_many_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_ADDRESSES", 3)
    many = [ip_address(f"127.0.1.{number}") for number in range(9)]
    resolver = Resolver(10, Book(many[0], many[0], *many))
    assert await resolver.resolve("a.test") == many[:3]
    await resolver.aclose()


# --- failures ---


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        OSError("broken"),
    ],
)
async def test_a_failure_is_told_to_all_and_not_kept(error: OSError) -> None:
    book = Book(ONE)
    book.error = error
    resolver = Resolver(10, book)
    first, second = await asyncio.gather(refusal(resolver, "a.test"), refusal(resolver, "a.test"))
    assert first is not second, "an exception has one traceback"
    assert {first.reason, second.reason} == {"unresolved"}
    assert first.text == f"a.test has no address: {error.strerror or 'broken'}"
    book.error = None
    assert await resolver.resolve("a.test") == [ONE]
    assert len(book.asked) == 2
    await resolver.aclose()


async def test_an_empty_answer_is_none() -> None:
    resolver = Resolver(10, Book())
    assert (await refusal(resolver, "a.test")).reason == "unresolved"
    await resolver.aclose()


async def test_an_answer_that_does_not_come_in_time() -> None:
    async with balanced():
        book = Book(ONE)
        book.may_answer.clear()
        resolver = Resolver(0.05, book)
        refused = await refusal(resolver, "a.test")
        assert (refused.reason, refused.text) == ("connect_timeout", "a.test was not resolved within 0.05 s")
        await resolver.aclose()


async def test_a_lookup_that_nobody_waits_for_ends_at_its_deadline() -> None:
    book = Book(ONE)
    book.may_answer.clear()
    resolver = Resolver(0.05, book)
    waiting = asyncio.create_task(resolver.resolve("a.test"))
    await turns()
    waiting.cancel()
    await asyncio.wait((waiting,))
    [lookup] = [task for task in asyncio.all_tasks() if task.get_name() == "lookup of a.test"]
    await asyncio.wait((lookup,), timeout=30)
    assert lookup.done()
    await resolver.aclose()


# --- giving up ---


async def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    book = Book(ONE)
    book.may_answer.clear()
    resolver = Resolver(10, book)
    first, second = (asyncio.create_task(resolver.resolve("a.test")) for _ in range(2))
    await turns()
    first.cancel()
    await asyncio.wait((first,))
    assert first.cancelled()
    book.may_answer.set()
    assert await second == [ONE]
    assert len(book.asked) == 1
    await resolver.aclose()


async def test_closing_ends_every_lookup() -> None:
    async with balanced():
        book = Book(ONE)
        book.may_answer.clear()
        resolver = Resolver(60, book)
        tasks = [asyncio.create_task(resolver.resolve(f"n{number}.test")) for number in range(20)]
        await turns()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await resolver.aclose()
