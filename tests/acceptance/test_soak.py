"""A hundred thousand starts in a row leave nothing behind: `make soak`, not part of `make test` (a minute each)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from bench.lean_client import LeanClient
from bench.processes import descendants, resident_kb
from fastclaw import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine_fixtures import EngineService

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

STARTS = 100_000
AT_ONCE = 16
ROUNDS = 10
GROWTH_KB = 8 * limits.KIB
"""What ten rounds may add to memory after the first: the allocator's own fragments, far below 100 bytes a start."""


@pytest.fixture(params=["local", "podman"])
def client(request: pytest.FixtureRequest, engine_service: EngineService) -> Iterator[LeanClient]:
    options: dict[str, Any] = {"linger_ms": 0, "keep_exited": 100}
    if request.param == "podman":
        options |= {"url": engine_service.url, "lane": "spawn"}
    with contextlib.closing(LeanClient(request.param, options)) as client:
        yield client


class Holdings:
    """What a served runtime has at a moment when nothing runs."""

    def __init__(self, client: LeanClient) -> None:
        pid = client.process.pid
        health = client.call("health")
        while health["details"]["processes"]["lingering"]:  # sockets close a millisecond after the exit
            health = client.call("health")
        counts = health["details"]["processes"]
        self.memory_kb = resident_kb(pid)
        self.numbers = {
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "processes": len(descendants(pid)),
            **{name: counts[name] for name in ("live", "lingering", "waiting", "starting")},
            **{name: health["details"]["lane"][name] for name in ("reapers", "kept")},
        }


def test_nothing_is_left(client: LeanClient) -> None:
    client.run(["true"], STARTS // ROUNDS, AT_ONCE, 0)
    before = Holdings(client)
    for _ in range(ROUNDS):
        client.run(["true"], STARTS // ROUNDS, AT_ONCE, 0)
    client.call("wait", {"process_id": client.call("exec", {"cmd": ["true"]})["process_id"]})
    after = Holdings(client)
    assert after.numbers == before.numbers
    assert after.memory_kb - before.memory_kb < GROWTH_KB
