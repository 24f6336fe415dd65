"""What a client saw last, and what follows from it."""

from fastclaw import telemetry_limits
from fastclaw.control.rates import Looks, Rank, Rates


def test_a_rate_is_what_there_is_between_two_looks() -> None:
    rates = Rates()
    assert rates.percent("a", 1_000_000, 10.0) is None
    assert rates.percent("b", None, 10.0) is None
    assert rates.percent("a", 1_500_000, 11.0) == 50.0
    assert rates.percent("a", 5_500_000, 13.0) == 200.0


def test_looks_that_come_too_soon_are_told_what_the_last_one_was() -> None:
    rates = Rates()
    rates.percent("a", 0, 1.0)
    assert rates.percent("a", 999, 1.1) is None
    assert rates.percent("a", 500_000, 2.0) == 50.0
    assert rates.percent("a", 10**9, 2.0 + telemetry_limits.CONTROL_RATE_MS / 1001) == 50.0


def test_a_tree_that_has_lost_a_process_has_no_negative_rate() -> None:
    rates = Rates()
    rates.percent("a", 1_000_000, 1.0)
    assert rates.percent("a", 10, 2.0) == 0.0


def test_what_is_not_kept_is_new_again() -> None:
    rates = Rates()
    for key in ("a", "b"):
        rates.percent(key, 0, 1.0)
    rates.keep({"a"})
    assert (rates.percent("a", 10_000, 2.0), rates.percent("b", 10_000, 2.0)) == (1.0, None)


def test_all_are_measured_no_more_often_than_their_cost_allows() -> None:
    looks = Looks()
    assert looks.may_rank(0.0)
    ranks = {"a": Rank(1.0, 2, 3, 4)}
    looks.ranked(ranks, at=100.0, took_s=0.05, now=10.0)
    assert (looks.ranks, looks.ranked_at) == (ranks, 100.0)
    pause_s = 0.05 * telemetry_limits.CONTROL_RANK_SHARE * 100 / telemetry_limits.CONTROL_RANK_PERCENT
    assert not looks.may_rank(10.0 + pause_s - 0.01)
    assert looks.may_rank(10.0 + pause_s + 0.01)
