"""Resource limits by name."""

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.errors import InvalidParams
from fastclaw.params import NUMBERS, rlimits


def test_the_numbers_are_those_of_this_kernel() -> None:
    known = {name: getattr(resource, f"RLIMIT_{name.upper()}", number) for name, number in NUMBERS.items()}
    assert known == NUMBERS
    assert sorted(NUMBERS.values()) == list(range(len(NUMBERS)))
    theirs = {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
    assert theirs <= set(NUMBERS.values())


@given(st.dictionaries(st.sampled_from(list(NUMBERS)), st.integers(0, 2**64 - 1)))
def test_each_becomes_its_number(limits: dict[str, int]) -> None:
    assert dict(rlimits(limits)) == {NUMBERS[name]: value for name, value in limits.items()}


@given(st.text(max_size=20).filter(lambda name: name not in NUMBERS))
def test_an_unknown_name_is_refused_with_its_path(name: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        rlimits({"nofile": 1, name: 1})
    assert refused.value.data["path"] == f"$.limits.{name}"


@pytest.mark.parametrize(("name", "nearest"), [("nofiles", "nofile"), ("NPROC", None), ("zzz", None), ("cpuz", "cpu")])
def test_the_nearest_name_is_told(name: str, nearest: str | None) -> None:
    with pytest.raises(InvalidParams) as refused:
        rlimits({name: 1})
    assert refused.value.data["nearest"] == nearest
    assert (nearest or "cpu, fsize") in str(refused.value)


@pytest.mark.parametrize("value", [-1, 2**64, 10**100])
def test_a_value_that_is_no_limit_is_refused(value: int) -> None:
    with pytest.raises(InvalidParams) as refused:
        rlimits({"nofile": value})
    assert refused.value.data["path"] == "$.limits.nofile"
