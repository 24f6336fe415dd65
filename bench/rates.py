"""How fast the runtime is for this user on this host, as JSON: what is compared between hosts and users.

    python -m bench.rates

Rates of exec and wait over the wire on the spawn lane, one and sixteen at a time, and how long an environment takes
until it is of use, made by the engine: the median of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys

import msgspec
import uvloop
from msgspec import Struct

from bench.environments import a_home, ready_once, served
from bench.lean_client import LeanClient
from bench.ratios import timed
from fastclaw.engine.service.storage import default_state_dir

TRUE = ("true",)
COUNTS = {1: 400, 16: 1_200}
"""Execs a round, by how many run at once."""
ROUNDS, READY_ROUNDS = 5, 9
"""After one that does not count."""


class Rates(Struct, frozen=True, kw_only=True):
    """What was found.

    Parameters:
        execs_per_s: by how many run at a time.
        ready_ms: until an environment's first byte.
    """

    execs_per_s: dict[int, float]
    ready_ms: float


def measure() -> Rates:
    """All of it, on an engine of this user's own."""
    with a_home() as home, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        os.environ.update(home.env)
        options = {"lane": "spawn", "state_dir": str(default_state_dir())}
        with contextlib.closing(LeanClient("podman", options)) as client:
            rates = {at_once: _rate(client, count, at_once) for at_once, count in COUNTS.items()}
        with served(runner, "podman", home) as runtime:
            taken = [runner.run(ready_once(runtime, clone="never")) for _ in range(READY_ROUNDS + 1)][1:]
    return Rates(execs_per_s=rates, ready_ms=1e3 * statistics.median(taken))


def _rate(client: LeanClient, count: int, at_once: int) -> float:
    taken = [timed(lambda: client.run(TRUE, count, at_once, 0)) for _ in range(ROUNDS + 1)][1:]
    return count / statistics.median(taken)


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(measure()).decode() + "\n")
