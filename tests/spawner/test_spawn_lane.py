"""How a `StartSpec` becomes a request: environments, and what is refused before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed, InvalidParams
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, Collection, StartSpec
from fastclaw.spawner import frames
from fastclaw.spawner.frames import Identity, Strings
from fastclaw.spawner.spawn_lane import Environments, SpawnLane
from fastclaw.spawner.spawner_host import HostSlot, LocalHost, SpawnerHost
from tests.balance import balanced
from tests.spawner.start_frames import Read, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastclaw.spawner.frames import Start
    from fastclaw.spawner.link import Spawner
    from fastclaw.spawner.spawn_process import SpawnProcess

ROOT = Identity(0, 0, [], "/root")


class FakeHost(SpawnerHost, HostSlot):
    """A host without a spawner: nothing is started."""

    spawner: Spawner

    def __init__(self, **env: str) -> None:
        self.env = env
        self.identity = None

    async def identify(self, user: str) -> Identity | None:
        raise AssertionError(user)

    @property
    def host(self) -> SpawnerHost:
        return self

    def take(self) -> SpawnerHost:
        return self


def variables(strings: Strings) -> dict[str, str]:
    texts = strings.data.decode().split("\0")[:-1]
    assert len(texts) == strings.number
    return dict(text.split("=", 1) for text in texts)


def spec(**more: object) -> StartSpec:
    return StartSpec(process_id="p-1", cmd=["x"], **more)  # type: ignore[arg-type]  # shorthand


def test_the_last_of_four_wins_and_the_marker_is_always_there() -> None:
    host, base = FakeHost(A="home", B="home", HOME="/h"), {"B": "base", "C": "base"}
    found = Environments().encode(spec(base_env=base, env={"C": "own", "D": "own"}), host, ROOT)
    assert variables(found) == {
        "A": "home",
        "B": "base",
        "C": "own",
        "D": "own",
        "HOME": "/root",
        PROCESS_ID_VARIABLE: "p-1",
    }


@pytest.mark.parametrize(
    ("base", "env", "home"),
    [({}, {}, "/root"), ({"HOME": "/base"}, {}, "/base"), ({"HOME": "/base"}, {"HOME": "/own"}, "/own")],
)
def test_home_is_the_user_s_unless_somebody_says_otherwise(
    base: dict[str, str], env: dict[str, str], home: str
) -> None:
    found = Environments().encode(spec(base_env=base, env=env), FakeHost(HOME="/image"), ROOT)
    assert variables(found)["HOME"] == home


def test_without_an_identity_home_is_left_alone() -> None:
    assert variables(Environments().encode(spec(), FakeHost(HOME="/h"), None))["HOME"] == "/h"


def test_what_was_encoded_once_is_not_taken_for_somebody_else() -> None:
    environments, first, second = Environments(), FakeHost(A="1"), FakeHost(A="2")
    base = {"B": "1"}
    assert variables(environments.encode(spec(base_env=base), first, None))["A"] == "1"
    assert variables(environments.encode(spec(base_env=base), second, None))["A"] == "2"
    assert variables(environments.encode(spec(base_env=base), second, ROOT))["HOME"] == "/root"
    assert variables(environments.encode(spec(base_env={"B": "2"}), second, ROOT))["B"] == "2"
    assert variables(environments.encode(spec(base_env=base), first, None)) == {
        "A": "1",
        "B": "1",
        PROCESS_ID_VARIABLE: "p-1",
    }


def test_a_value_that_no_process_can_have() -> None:
    with pytest.raises(ValueError, match="null"):
        Environments().encode(spec(env={"A": "\0"}), FakeHost(), None)


@pytest.mark.parametrize(
    ("cmd", "more", "reason"),
    [
        ([""], {}, "not_found"),
        (["x"], {"working_dir": "relative"}, "bad_working_dir"),
        (["x\0"], {}, "invalid_params"),
        (["x"], {"env": {"A": "\0"}}, "invalid_params"),
        (["x"] * 1_100_000, {}, "too_long"),
        (["x"], {"template": "none"}, "template_gone"),
    ],
)
@pytest.mark.parametrize("is_run", [False, True])
async def test_what_cannot_be_asked_for_is_refused_and_leaves_nothing(
    is_run: bool, cmd: list[str], more: dict[str, object], reason: str
) -> None:
    async with balanced():
        home = LocalHost()
        await home.start()
        lane = SpawnLane(home, can_set_user=True)
        wanted = StartSpec(process_id="p", cmd=cmd, **more)  # type: ignore[arg-type]  # shorthand
        with pytest.raises(ExecFailed) as raised:
            await begin(lane, wanted, is_run=is_run)
        assert raised.value.reason == reason
        with pytest.raises(InvalidParams):
            await begin(lane, spec(limits={"nofiles": 1}), is_run=is_run)
        assert home.spawner.counts()["kept"] == 0
        await home.aclose()


async def begin(lane: SpawnLane, spec: StartSpec, *, is_run: bool) -> None:
    """Until it runs."""
    process = await (lane.run(spec, Collection(), 0) if is_run else lane.start(spec, 0))
    assert process.started is not None
    await process.started


# --- what becomes of a spec ---


class Catcher:
    """In a spawner's place: keeps the one request that it is given."""

    memory = None
    is_gvisor = False

    def __init__(self) -> None:
        self.seen: Read

    async def make_room(self) -> None:
        pass

    def next_id(self) -> int:
        return 7

    def start(self, process: SpawnProcess, request: Start, fds: Sequence[int]) -> None:
        assert (process.id, fds) == (7, [])
        self.seen = read(request)


async def caught(spec: StartSpec, collection: Collection | None = None) -> Read:
    """The request that a spec becomes."""
    host, catcher = FakeHost(A="1"), Catcher()
    host.spawner = catcher  # type: ignore[assignment]  # it has what is used
    lane = SpawnLane(host, can_set_user=True)
    await (lane.start(spec, 0) if collection is None else lane.run(spec, collection, 0))
    return catcher.seen


@pytest.mark.parametrize(
    ("more", "flags"),
    [
        ({}, 0),
        ({"stdin": False}, frames.FLAG_NULL_STDIN),
        ({"merge_stderr": True}, frames.FLAG_MERGE),
        ({"orphans": "kill"}, frames.FLAG_END_ORPHANS),
        ({"holds_stdin": True}, frames.FLAG_HOLD),
        ({"tty": (3, 4)}, frames.FLAG_TTY),
        ({"working_dir": "/d"}, frames.FLAG_DIRECTORY),
    ],
)
async def test_how_a_process_is_to_be_goes_along(more: dict[str, object], flags: int) -> None:
    seen = await caught(spec(**more))
    assert (seen.id, seen.flags, seen.argv, seen.directory) == (
        7,
        flags,
        [b"x"],
        b"/d" if "working_dir" in more else None,
    )
    assert seen.window == (b"\3\0\4\0\0\0\0\0" if "tty" in more else b"")
    assert set(seen.env) == {b"A=1", b"FASTCLAW_PROCESS_ID=p-1"}


async def test_what_a_run_wants_goes_along() -> None:
    collection = Collection(input=b"in", output_limit=9, keep="tail", on_limit="kill", drain_ms=5)
    seen = await caught(spec(merge_stderr=True, orphans="kill"), collection)
    flags = frames.FLAG_RUN | frames.FLAG_LIMIT_KILLS | frames.FLAG_MERGE | frames.FLAG_END_ORPHANS
    assert (seen.flags, seen.input, seen.head, seen.limit, seen.drain_ms) == (flags, b"in", 0, 9, 5)


async def test_limits_go_along() -> None:
    assert (await caught(spec(limits={"nofile": 9, "core": 0}))).rlimits == [(7, 9, 9), (4, 0, 0)]


async def test_who_may_not_change_users_does_not_offer_it() -> None:
    async with balanced():
        home = LocalHost()
        await home.start()
        assert "user" in SpawnLane(home, can_set_user=True).capabilities
        assert "user" not in SpawnLane(home, can_set_user=False).capabilities
        await home.aclose()
