"""How a `StartSpec` becomes a request: environments, and what is refused before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed, InvalidParams
from fastclaw.lane import PROCESS_ID_VARIABLE, StartSpec
from fastclaw.protocol.spawner import Identity, Strings
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import Environments, Home, SpawnLane
from tests.balance import balanced

if TYPE_CHECKING:
    from fastclaw.spawn.spawner import Spawner

ROOT = Identity(0, 0, [], "/root")


class Place(Home):
    """A home without a spawner: nothing is started."""

    spawner: Spawner

    def __init__(self, **env: str) -> None:
        self.env = env
        self.identity = None

    async def identify(self, user: str) -> Identity | None:
        raise AssertionError(user)


def variables(strings: Strings) -> dict[str, str]:
    texts = strings.data.decode().split("\0")[:-1]
    assert len(texts) == strings.number
    return dict(text.split("=", 1) for text in texts)


def spec(**more: object) -> StartSpec:
    return StartSpec(process_id="p-1", cmd=["x"], **more)  # type: ignore[arg-type]  # shorthand


def test_the_last_of_four_wins_and_the_marker_is_always_there() -> None:
    place, base = Place(A="home", B="home", HOME="/h"), {"B": "base", "C": "base"}
    found = Environments().encode(spec(base_env=base, env={"C": "own", "D": "own"}), place, ROOT)
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
    found = Environments().encode(spec(base_env=base, env=env), Place(HOME="/image"), ROOT)
    assert variables(found)["HOME"] == home


def test_without_an_identity_home_is_left_alone() -> None:
    assert variables(Environments().encode(spec(), Place(HOME="/h"), None))["HOME"] == "/h"


def test_what_was_encoded_once_is_not_taken_for_somebody_else() -> None:
    environments, first, second = Environments(), Place(A="1"), Place(A="2")
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
        Environments().encode(spec(env={"A": "\0"}), Place(), None)


@pytest.mark.parametrize(
    ("cmd", "more", "reason"),
    [
        ([""], {}, "not_found"),
        (["x"], {"working_dir": "relative"}, "bad_working_dir"),
        (["x\0"], {}, "invalid_params"),
        (["x"], {"env": {"A": "\0"}}, "invalid_params"),
        (["x"] * 1_100_000, {}, "too_long"),
    ],
)
async def test_what_cannot_be_asked_for_is_refused_and_leaves_nothing(
    cmd: list[str], more: dict[str, object], reason: str
) -> None:
    async with balanced():
        home = HostHome()
        await home.start()
        lane = SpawnLane(home, can_set_user=True)
        with pytest.raises(ExecFailed) as raised:
            await lane.start(StartSpec(process_id="p", cmd=cmd, **more), 0)  # type: ignore[arg-type]  # shorthand
        assert raised.value.reason == reason
        with pytest.raises(InvalidParams):
            await lane.start(spec(limits={"nofiles": 1}), 0)
        assert home.spawner.counts()["kept"] == 0
        await home.aclose()


async def test_who_may_not_change_users_does_not_offer_it() -> None:
    async with balanced():
        home = HostHome()
        await home.start()
        assert "user" in SpawnLane(home, can_set_user=True).capabilities
        assert "user" not in SpawnLane(home, can_set_user=False).capabilities
        await home.aclose()
