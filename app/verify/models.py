"""How models share a conversion among its touches: docs/counting.md, section 10, in exact fractions."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor, lcm
from typing import Final

ONE: Final = 1_000_000  # shares are whole millionths
# What time decay's weights are whole multiples of: the last bits of a double are not the same on every machine.
GRAIN: Final = 2**40


def shares(model: str, times_ms: Sequence[int], half_life_ms: int) -> list[int]:
    """The share of each touch in millionths, which sum to 1,000,000. `times_ms`: of one or more touches, in order."""
    return share_out(ONE, weights(model, times_ms, half_life_ms))


def weights(model: str, times_ms: Sequence[int], half_life_ms: int) -> list[Fraction]:
    """What each touch weighs by a model. Raises ValueError for a model that the rules do not know."""
    last = len(times_ms) - 1
    places = range(len(times_ms))
    if model == "first_touch":
        return [Fraction(place == 0) for place in places]
    if model == "last_touch":
        return [Fraction(place == last) for place in places]
    if model == "linear":
        return [Fraction(1) for _ in places]
    if model == "position":
        if len(times_ms) <= 2:
            return [Fraction(1, len(times_ms)) for _ in places]
        return [Fraction(2, 5) if place in (0, last) else Fraction(1, 5) / (last - 1) for place in places]
    if model == "time_decay":
        return [Fraction(floor(GRAIN * 2 ** -((times_ms[last] - time_ms) / half_life_ms))) for time_ms in times_ms]
    raise ValueError(f"no model {model!r}")


def share_out(amount: int, among: Sequence[Fraction | int]) -> list[int]:
    """`amount` in whole parts by weight, each rounded down; what is missing goes one each to the largest remainders, of
    equal ones to the earlier.
    """
    unit = lcm(*(Fraction(weight).denominator for weight in among))
    wholes = [int(weight * unit) for weight in among]  # the same weights, quicker to share by
    whole = sum(wholes)
    parts = [amount * weight // whole for weight in wholes]
    remainders = [amount * weight % whole for weight in wholes]
    for place in sorted(range(len(parts)), key=lambda place: (-remainders[place], place))[: amount - sum(parts)]:
        parts[place] += 1
    return parts
