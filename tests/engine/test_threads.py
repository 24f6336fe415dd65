"""Threads for blocking calls: as many as are needed, ended when they are not."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from podman.api.client import APIClient

from fastclaw import engine_limits
from fastclaw.engine.podman_client import make_client
from fastclaw.engine.threads import EngineThreads
from tests.waiting import wait_until


def alive() -> int:
    """Threads of this kind in this process."""
    return sum(thread.name == "fastclaw-engine" for thread in threading.enumerate())


@pytest.fixture
def threads(short_dir: Path) -> Iterator[EngineThreads]:
    """Their clients have nobody to talk to, and are not used."""
    before = alive()
    one = EngineThreads(lambda: make_client(f"unix://{short_dir}/none.sock", 5))
    yield one
    one.close()
    wait_until(lambda: alive() == before)
    assert len(one) == 0


def held(threads: EngineThreads, count: int, go: threading.Event) -> list[Future[int]]:
    """So many calls at the same time, each of which says in which thread it is."""
    together = threading.Barrier(count + 1)

    def call(client: APIClient) -> int:
        together.wait(5)
        assert go.wait(5)
        return threading.get_ident()

    futures = [threads.submit(call) for _ in range(count)]
    together.wait(5)
    return futures


def test_there_are_as_many_as_calls_at_the_same_time_and_they_are_used_again(threads: EngineThreads) -> None:
    go = threading.Event()
    futures = held(threads, 3, go)
    assert len(threads) == 3
    go.set()
    first = {future.result(5) for future in futures}
    assert len(first) == 3
    for _ in range(50):
        assert threads.submit(lambda client: threading.get_ident()).result(5) in first
    assert len(threads) == 3


def test_a_thread_has_a_client_of_its_own(threads: EngineThreads) -> None:
    go = threading.Event()
    go.set()
    one = threads.submit(lambda client: client).result(5)
    assert threads.submit(lambda client: client).result(5) is one
    other = threading.Barrier(2)
    more = [threads.submit(lambda client: (other.wait(5), client)[1]) for _ in range(2)]
    assert len({id(future.result(5)) for future in more}) == 2


def test_one_that_nobody_needs_ends(threads: EngineThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_limits, "ENGINE_THREAD_IDLE_MS", 20)
    assert threads.submit(lambda client: 1).result(5) == 1
    wait_until(lambda: len(threads) == 0)
    assert threads.submit(lambda client: 2).result(5) == 2


def test_what_a_call_raises_is_the_callers_and_the_thread_goes_on(threads: EngineThreads) -> None:
    def fail(client: APIClient) -> None:
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            threads.submit(fail).result(5)
    assert len(threads) == 1


def test_a_client_that_cannot_be_made() -> None:
    def fail() -> APIClient:
        raise ValueError("no such scheme")

    threads = EngineThreads(fail)
    with pytest.raises(ValueError, match="no such scheme"):
        threads.submit(lambda client: 1).result(5)
    threads.close()


def test_closed_they_take_no_calls_and_finish_those_they_have(threads: EngineThreads) -> None:
    go = threading.Event()
    [busy] = held(threads, 1, go)
    threads.close()
    threads.close()
    with pytest.raises(RuntimeError, match="closed"):
        threads.submit(lambda client: 1)
    go.set()
    assert busy.result(5)
    wait_until(lambda: len(threads) == 0)


def test_it_can_be_awaited_that_all_of_them_end(threads: EngineThreads) -> None:
    go = threading.Event()
    held(threads, 2, go)
    threads.close()
    assert not threads.join(0.01)
    go.set()
    assert threads.join(5)
    assert len(threads) == 0
