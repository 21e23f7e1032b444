"""What the oracle answers: every row that must be published, and why."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TypeAlias

import orjson

from app.contract.journeys import JourneyRow, ModelRow
from app.contract.rows import MEASURES, AttributedRow, CountRow
from app.verify.click_ids import Click
from app.verify.records import Coordinates, Person

# A count row's identity: window start, platform, advertiser, dimensions, conversion_name, currency.
CountIdentity: TypeAlias = tuple[int, str, str, tuple[str | None, ...], str, str]
# A count row's measures in the order of `MEASURES`, money in millionths.
Amounts: TypeAlias = tuple[int, ...]


@dataclass
class Tally:
    """The measures of one count row, money in millionths, and the events behind them."""

    measures: dict[str, int] = field(default_factory=dict)
    behind: list[Coordinates] = field(default_factory=list)

    def amounts(self) -> Amounts:
        """All of the measures."""
        return tuple(self.measures.get(name, 0) for name in MEASURES)


@dataclass
class Answer:
    """What must stand in the output topics, and why.

    Rows are by their Kafka key; `revision` is 0 and `final` False, for neither is a function of the input.
    `journeys` and `models` are empty, and no count row is of scope `all`, where the policy has no `journeys`.
    `rejected`, `duplicates` and `refused_adjustments` are by the coordinates of the raw record; a refused adjustment
    is an accepted event too. `faults` names what is wrong with the batches and the re-keyed copies.
    """

    attributed: dict[bytes, AttributedRow] = field(default_factory=dict)
    counts: dict[bytes, CountRow] = field(default_factory=dict)
    journeys: dict[bytes, JourneyRow] = field(default_factory=dict)
    models: dict[bytes, ModelRow] = field(default_factory=dict)
    rejected: dict[Coordinates, str] = field(default_factory=dict)
    duplicates: set[Coordinates] = field(default_factory=set)
    refused_adjustments: dict[Coordinates, str] = field(default_factory=dict)
    produced: int = 0
    accepted: int = 0
    noise: int = 0
    forgets: int = 0
    forgotten: int = 0  # conversions and adjustments that came after their person's forget, of before it
    faults: list[str] = field(default_factory=list)
    # Section 13: how many of the events that name no user found one and still wait for one; the accepted clicks.
    matched: int = 0
    waiting: int = 0
    clicks: Counter[Click] = field(default_factory=Counter)
    # Of (advertiser_id, user_id).
    people: dict[tuple[str, str], Person] = field(default_factory=lambda: defaultdict(Person))
    # What each count row adds up.
    tallies: dict[CountIdentity, Tally] = field(default_factory=lambda: defaultdict(Tally))

    def is_forgotten(self, key: bytes) -> bool:
        """Whether a row's key, whose first two parts are advertiser and user, is that of somebody who was forgotten."""
        advertiser_id, user_id, *_ = orjson.loads(key)
        person = self.people.get((advertiser_id, user_id))
        return person is not None and person.forgotten_ms >= 0
