"""Which check proves which promise."""

import pytest

from fastclaw.conformance import registry
from fastclaw.conformance.registry import Entry, proves
from fastclaw.conformance.rig import Rig


async def first(rig: Rig) -> None:
    """A check."""


async def second(rig: Rig) -> None:
    """Another one."""


def test_a_promise_may_have_several_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "CHECKS", [])
    assert proves("W-LINE")(first) is first
    assert proves("W-LINE")(second) is second
    assert [Entry("W-LINE", first), Entry("W-LINE", second)] == registry.CHECKS


def test_a_check_for_no_promise_is_refused() -> None:
    with pytest.raises(AssertionError, match="X-NO-SUCH-PROMISE"):
        proves("X-NO-SUCH-PROMISE")


def test_no_check_is_registered_twice() -> None:
    assert len({entry.run for entry in registry.CHECKS}) == len(registry.CHECKS)
