"""Whether a budget was missed by more than noise explains. Pure: it is told pairs, and asks for more if it matters."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from bench.figures import spread
from bench.rank_test import sign_test

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOOKS = ((16, 0.05), (32, 0.001))
"""Pairs of a look, and from which p on noise explains them. Where it does not, the next look is at new pairs: the
machine may have been busy with something else. 12 of 16 below are suspect, 26 of 32 new ones a miss: chance alone does
that in one of 100 000 runs of code whose median is the budget itself."""


class Verdict(NamedTuple):
    """What came of it: the values of the look that decided."""

    name: str
    budget: float
    values: Sequence[float]
    missed: bool

    def __str__(self) -> str:
        middle = statistics.median(self.values)
        below = sum(value < self.budget for value in self.values)
        p = p_below(self.values, self.budget)
        found = f"{self.name}: {middle:.3g} ({spread(self.values, '')}), budget {self.budget:g}"
        said = f"below in {below} of {len(self.values)} pairs, p {p:.2g}"
        if self.missed:
            return f"FAILED {found}: {said}, twice"
        return f"ok     {found}: {said if middle < self.budget else f'n {len(self.values)}'}"


def p_below(values: Sequence[float], budget: float) -> float:
    """How likely so many are to be below a budget that is their median."""
    return sign_test(sum(value < budget for value in values), len(values))


def judge(name: str, budget: float, measure: Callable[[int], Sequence[float]]) -> Verdict:
    """Look until noise explains what is seen, or no look is left.

    Parameters:
        measure: so many new pairs; the ratio of each.
    """
    values: Sequence[float] = []
    for count, least_p in LOOKS:
        values = measure(count)
        if p_below(values, budget) >= least_p:
            return Verdict(name, budget, values, missed=False)
    return Verdict(name, budget, values, missed=True)
