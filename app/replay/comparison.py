"""Live counts beside recounted ones, per window and platform: plain data, no connection."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from app.contract.events import from_micros, to_micros
from app.contract.rows import ALL, MEASURES, MONEY_MEASURES, CountRow

# A window's start (epoch ms) and a platform; `ALL` for what is counted once over all platforms.
Place: TypeAlias = tuple[int, str]
# A measure, and its currency: "" for what has none.
Measure: TypeAlias = tuple[str, str]
Sums: TypeAlias = Counter[Measure]

COUNTS: Final = tuple(name for name in MEASURES if name not in MONEY_MEASURES)


class Difference(NamedTuple):
    """One measure of a window and platform, live and recounted; money in millionths."""

    window_start: int
    platform: str
    measure: str
    currency: str
    live: int
    replay: int
    is_final: bool

    def amounts(self) -> tuple[float, float, float]:
        """Live, replay, and how much more the replay has; money in its own unit."""
        found = (self.live, self.replay, self.replay - self.live)
        return found if self.measure in COUNTS else tuple(map(from_micros, found))  # type: ignore[return-value]


@dataclass
class Comparison:
    """The sums of both sides by window and platform (money in millionths), and how many rows of each place differ.

    A row may differ where no sum does: credit that moved from one campaign to another one of the same platform. Rows are
    compared only where both sides split their counts alike.
    """

    live: dict[Place, Sums] = field(default_factory=dict)
    replay: dict[Place, Sums] = field(default_factory=dict)
    rows: Counter[Place] = field(default_factory=Counter)
    changed_rows: Counter[Place] = field(default_factory=Counter)

    def add(self, live: Mapping[bytes, CountRow], replay: Mapping[bytes, CountRow], same_keys: bool) -> None:
        """Takes in rows by their keys; each key's live and recounted row must come in the same call."""
        for rows, sums in ((live, self.live), (replay, self.replay)):
            for row in rows.values():
                sums.setdefault(_place(row), Counter()).update(measures(row))
        if not same_keys:
            return
        for key in live.keys() | replay.keys():
            one, other = live.get(key), replay.get(key)
            row = one or other
            assert row is not None
            self.rows[_place(row)] += 1
            # a row that counts nothing any more, and one that never was, say the same
            if (measures(one) if one else Counter()) != (measures(other) if other else Counter()):
                self.changed_rows[_place(row)] += 1

    def places(self) -> list[Place]:
        """Every window and platform that either side has, by time."""
        return sorted(self.live.keys() | self.replay.keys())

    def differs(self, place: Place) -> bool:
        """Whether the sums or the rows of a window and platform differ."""
        return self.changed_rows[place] > 0 or self._sums(self.live, place) != self._sums(self.replay, place)

    def lines(self, place: Place, is_final: bool) -> list[Difference]:
        """Each measure of a window and platform that is not 0 on both sides."""
        return _beside(*place, self._sums(self.live, place), self._sums(self.replay, place), is_final)

    def totals(self, places: Iterable[Place]) -> dict[str, list[Difference]]:
        """Each measure over these windows, by platform, `ALL` last; `window_start` is 0."""
        sums: dict[str, tuple[Sums, Sums]] = {}
        for place in places:
            live, replay = sums.setdefault(place[1], (Counter(), Counter()))
            live.update(self._sums(self.live, place))
            replay.update(self._sums(self.replay, place))
        return {platform: _beside(0, platform, *sums[platform], True) for platform in sorted(sums, key=_order)}

    @staticmethod
    def _sums(side: dict[Place, Sums], place: Place) -> Sums:
        return side.get(place, Counter())


def measures(row: CountRow) -> Sums:
    """What a row counts, without zeros."""
    found: Sums = Counter({(name, ""): getattr(row, name) for name in COUNTS})
    found["value", row.currency] = to_micros(row.value)
    found["cost", ""] = to_micros(row.cost)
    return Counter({measure: amount for measure, amount in found.items() if amount})


def _order(platform: str) -> tuple[bool, str]:
    return platform == ALL, platform


def _place(row: CountRow) -> Place:
    return row.window_start, row.platform


def _beside(window: int, platform: str, live: Sums, replay: Sums, is_final: bool) -> list[Difference]:
    names = {each for each in live.keys() | replay.keys() if live[each] or replay[each]}
    return [
        Difference(window, platform, *measure, live[measure], replay[measure], is_final)
        for measure in sorted(names, key=lambda each: (MEASURES.index(each[0]), each[1]))
    ]
