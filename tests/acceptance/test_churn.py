"""Environments that come and go, fifty at a time, leave nothing: a hundred of them here, a thousand by `make soak`.

Looked at twice: while the runtime goes on with none, and after its end.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.processes import descendants, resident_kb
from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.engine.rights import ID_LOCKS
from fastclaw.network.bridge import firewall
from fastclaw.network.bridge.bridge import our_tables
from tests.acceptance.homes import Home, nothing_is_left
from tests.balance import open_descriptors
from tests.network.bridge.rig import need_bridge
from tests.pids import command_line

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.podman

LIVE = 50
KIND_COUNT = RESET_EACH = 10
KINDS: dict[int, dict[str, Any]] = {
    3: {"network": {"mode": "bridge"}},
    5: {"workspace": {"target": "/work"}},
    7: {"clone": "never"},
}
"""Those that are not as most are."""

GROWTH_KB = 16 * limits.KIB
"""What ever so many of them may add to the runtime's memory: fifty at a time leave fragments in its heap."""
SETTLE_S, SETTLE_LOOKS = 0.5, 24
"""Threads and connections to the engine go when they were idle for 5 s (engine_limits.ENGINE_THREAD_IDLE_MS)."""


class Holdings:
    """What a runtime has at a moment when nothing runs; and the names of what it has had, as they were seen."""

    def __init__(self, client: RuntimeClient, home: Home) -> None:
        self._client, self._home = client, home
        self.clones = set[str]()
        self.bridges = set[str]()

    def look(self) -> None:
        """Remember what there is now."""
        self.clones |= {path.name for path in self._home.found("s/fastclaw/*/storage/fastclaw-clones/*/clones/*")}
        self.bridges |= set(_bridges(self._client.pid))

    def now(self) -> dict[str, Any]:
        """By kind. Of what is common to the host, what is this runtime's."""
        pid = self._client.pid
        open_files = open_descriptors(pid).values()
        return {
            "descriptors": len(open_files),
            "id locks": [path for path in open_files if path.startswith(f"{ID_LOCKS}/")],
            "processes": sorted(command_line(one).split(b"\0")[0] for one in descendants(pid)),
            "sockets": self._home.found("r/fastclaw-*/*"),
            "containers": self._home.containers(),
            "layers": len(self._home.found("s/fastclaw/*/storage/overlay/" + "[0-9a-f]" * 64)),
            "clones": self._home.found("s/fastclaw/*/storage/fastclaw-clones/*/[csv]*/*"),
            "volumes": self._home.found("s/fastclaw/*/storage/volumes/fastclaw-*"),
            "mounts": self._home.mounts(),
            "rules": _bridges(pid),
            **self.of_the_host(),
        }

    def of_the_host(self) -> dict[str, Any]:
        """Control groups and interfaces of what was seen."""
        groups = Path("/sys/fs/cgroup").glob("*/libpod_parent/fastclaw-*")
        links = (path.name for path in Path("/sys/class/net").iterdir())
        return {
            "groups": [str(path) for path in groups if path.name.removeprefix("fastclaw-") in self.clones],
            "interfaces": [name for name in links if any(token in name for token in self.bridges)],
        }


def _bridges(pid: int) -> list[str]:
    """Tokens of the bridges for which a runtime has rules."""
    tables = (firewall.parse_table(name) for name in our_tables("nft"))
    return [table[1] for table in tables if table is not None and table[0].pid == pid]


async def live(client: RuntimeClient, number: int, seen: Callable[[], None]) -> None:
    """One environment, from its start to its stop."""
    async with await client.environment_start(**KINDS.get(number % KIND_COUNT, {})) as box:
        assert (await box.run(["echo", "-n", "on"])).stdout == b"on"
        await box.write_file("/tmp/mine", f"{number}")
        if number % RESET_EACH == 0:
            await box.reset()
            await box.write_file("/tmp/mine", f"{number}")
        assert await box.read_file("/tmp/mine") == str(number).encode()
        seen()


@pytest.fixture
def bridged() -> None:
    """This host can have bridges."""
    need_bridge()


@pytest.mark.usefixtures("bridged")
@pytest.mark.parametrize(
    "count", [pytest.param(100), pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
async def test_nothing_is_left(home: Home, count: int) -> None:
    command = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", "--runtime", "podman"]
    options = {"environment": False}
    async with RuntimeClient.spawn(command, namespace="churn", options=options, env=home.env) as client:
        holdings = Holdings(client, home)
        for number in range(KIND_COUNT):
            await live(client, number, holdings.look)
        before, memory_kb = await _settled(holdings, None), resident_kb(client.pid)
        at_once = asyncio.Semaphore(LIVE)

        async def one(number: int) -> None:
            async with at_once:
                await live(client, number, lambda: None if number % RESET_EACH else holdings.look())

        await asyncio.gather(*(one(number) for number in range(count)))
        after = await _settled(holdings, before)
        # Fewer descriptors are none left: a connection to the engine may have been open still at the first look.
        before["descriptors"] = min(before["descriptors"], after["descriptors"])
        assert {name: found for name, found in after.items() if found != before[name]} == {}, before
        assert resident_kb(client.pid) - memory_kb < GROWTH_KB
    await nothing_is_left(home)
    assert home.directories() == []
    assert holdings.of_the_host() == {"groups": [], "interfaces": []}
    assert len(holdings.clones) > count // KIND_COUNT
    assert len(holdings.bridges) > 0


async def _settled(holdings: Holdings, wanted: dict[str, Any] | None) -> dict[str, Any]:
    """As it is once connections and threads that nobody needs have gone; what is left then is left for good."""
    found = holdings.now()
    last = found if wanted is None else wanted
    for _ in range(SETTLE_LOOKS):
        await asyncio.sleep(SETTLE_S)
        found, before = holdings.now(), found
        if found == (before if wanted is None else last):
            break
    return found
