"""What the output topics say, folded: the latest row of each key, and the sums that the screen shows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from app.contract import rows
from app.contract.events import to_micros
from app.contract.rows import ALL, AttributedRow, CountRow

COUNTS: Final = "counts"
ATTRIBUTED: Final = "attributed"
LETTERS: Final = "letters"


@dataclass
class Sums:
    """The counts of one platform and campaign over all windows; money in millionths, `value` by currency."""

    views: int = 0
    engaged_views: int = 0
    clicks: int = 0
    conversions: int = 0
    cost: int = 0
    value: Counter[str] = field(default_factory=Counter)


class Judged(NamedTuple):
    """What is kept of a row of `conversions.attributed`; `value` in millionths."""

    platform: str
    action: str
    status: str
    value: int
    currency: str
    corrected: bool


@dataclass
class Tally:
    """The fold over what was consumed: `campaigns` and the counters always agree with the latest rows. `once`: what is
    counted once over all platforms, which is in no campaign; None where no journeys are followed.
    """

    counts: dict[bytes, CountRow] = field(default_factory=dict)
    attributed: dict[bytes, Judged] = field(default_factory=dict)
    campaigns: dict[tuple[str, str], Sums] = field(default_factory=dict)
    once: Sums | None = None
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)  # (action, status)
    value: dict[str, Counter[str]] = field(
        default_factory=dict
    )  # of the counted ones: action -> currency -> millionths
    reasons: Counter[str] = field(default_factory=Counter)
    corrected: int = 0

    def by_status(self) -> Counter[str]:
        """Conversion rows by status, over all actions."""
        found: Counter[str] = Counter()
        for (_, status), number in self.statuses.items():
            found[status] += number
        return found


def fold_row(tally: Tally, kind: str, key: bytes | None, value: bytes | None) -> None:
    """Takes one consumed record in; `kind` says of which topic. A null value deletes the row of its key."""
    if kind == LETTERS:
        if value is not None:
            tally.reasons[rows.decode_dead_letter(value).reason] += 1
    elif kind == COUNTS:
        _fold_count(tally, key or b"", None if value is None else rows.decode_count(value))
    else:
        _fold_attributed(tally, key or b"", None if value is None else rows.decode_attributed(value))


def _fold_count(tally: Tally, key: bytes, row: CountRow | None) -> None:
    before = tally.counts.pop(key, None)
    if before is not None:
        _add(tally, before, -1)
    if row is not None:
        tally.counts[key] = row
        _add(tally, row, 1)


def _add(tally: Tally, row: CountRow, sign: int) -> None:
    if row.scope == ALL:
        sums = tally.once = tally.once or Sums()
    else:
        campaign = row.dimensions.get("campaign_id") or ""
        sums = tally.campaigns.setdefault((row.platform, campaign), Sums())
    sums.views += sign * row.views
    sums.engaged_views += sign * row.engaged_views
    sums.clicks += sign * row.clicks
    sums.conversions += sign * row.conversions
    sums.cost += sign * to_micros(row.cost)
    sums.value[row.currency] += sign * to_micros(row.value)


def _fold_attributed(tally: Tally, key: bytes, row: AttributedRow | None) -> None:
    before = tally.attributed.pop(key, None)
    if before is not None:
        _judge(tally, before, -1)
    if row is not None:
        judged = Judged(
            row.platform,
            row.conversion_name,
            row.status,
            to_micros(row.value) if row.conversions else 0,
            row.currency or "",
            row.revision > 1,
        )
        tally.attributed[key] = judged
        _judge(tally, judged, 1)


def _judge(tally: Tally, judged: Judged, sign: int) -> None:
    tally.statuses[judged.action, judged.status] += sign
    tally.value.setdefault(judged.action, Counter())[judged.currency] += sign * judged.value
    tally.corrected += sign * judged.corrected


class Line(NamedTuple):
    """One line of the campaigns' table."""

    platform: str
    campaign: str
    sums: Sums


def top_campaigns(tally: Tally, limit: int) -> list[Line]:
    """The campaigns with the most conversions, then clicks, then views; none of which nothing is left."""
    lines = [Line(platform, campaign, sums) for (platform, campaign), sums in tally.campaigns.items()]
    lines = [
        line
        for line in lines
        if line.sums.views or line.sums.engaged_views or line.sums.clicks or line.sums.conversions
    ]
    return sorted(
        lines,
        key=lambda line: (-line.sums.conversions, -line.sums.clicks, -line.sums.views, line.platform, line.campaign),
    )[:limit]


def platforms(tally: Tally) -> list[Line]:
    """The sums of each platform, as lines without a campaign, in the same order as campaigns are."""
    totals = Tally()
    for (platform, _), sums in tally.campaigns.items():
        _merge(totals.campaigns.setdefault((platform, ""), Sums()), sums)
    return top_campaigns(totals, len(totals.campaigns))


def total(tally: Tally) -> Sums:
    """The sums over all platforms: what they claim together."""
    found = Sums()
    for sums in tally.campaigns.values():
        _merge(found, sums)
    return found


def without(whole: Sums, parts: Iterable[Sums]) -> Sums:
    """What is left of a sum when parts of it are taken away."""
    left = Sums()
    _merge(left, whole)
    for part in parts:
        _merge(left, part, -1)
    left.value = Counter({currency: amount for currency, amount in left.value.items() if amount})
    return left


def _merge(into: Sums, more: Sums, sign: int = 1) -> None:
    into.views += sign * more.views
    into.engaged_views += sign * more.engaged_views
    into.clicks += sign * more.clicks
    into.conversions += sign * more.conversions
    into.cost += sign * more.cost
    for currency, amount in more.value.items():
        into.value[currency] += sign * amount
