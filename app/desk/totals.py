"""Sums of measures. All are integers, so a sum depends on no order, and what was added can be taken back exactly."""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

# What is counted: a name, or a name and a currency where it is money, in millionths.
Measure: TypeAlias = str | tuple[str, str]
Measures: TypeAlias = dict[Measure, int]


class Total(NamedTuple):
    """Measures of some days, and the first and the last of these (ordinals)."""

    measures: Measures
    first: int
    last: int


def add(held: Measures, measures: Measures, sign: int = 1) -> None:
    """Adds measures to those that are held; what comes to nothing is held no more."""
    for measure, amount in measures.items():
        sum_ = held.get(measure, 0) + sign * amount
        if sum_:
            held[measure] = sum_
        else:
            held.pop(measure, None)


def together(totals: Iterable[Total | None]) -> Total | None:
    """The sum of those that are there; None where none is."""
    each = [one for one in totals if one is not None]
    if not each:
        return None
    measures: Measures = {}
    for one in each:
        add(measures, one.measures)
    return Total(measures, min(one.first for one in each), max(one.last for one in each))


def currencies(measures: Measures) -> list[str]:
    """The currencies of the money among the measures, in order."""
    return sorted({measure[1] for measure in measures if isinstance(measure, tuple)})
